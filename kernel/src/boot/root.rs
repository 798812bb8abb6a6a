//! The root task: made by the kernel from the first program of the initrd, with a capability to everything.

use super::{Early, Loaded, Range};
use crate::{
    arch::{tsc, virt},
    cap,
    memory::{self, Obj, Page},
    object::{
        address_space::{self, AddressSpace},
        cap_table::{self, CapTable},
        life,
        platform::Platform,
        sched_context::SchedContext,
        thread::{self, Thread},
        untyped::{self, Untyped},
    },
    percpu::Cpu,
};
use core::sync::atomic::Ordering::*;
use moira_abi::{
    FrameSize, ObjectType, Rights,
    boot::{BOOT_MAGIC, BootInfo, BootUntyped, MAX_UNTYPED, slot, untyped_kind},
    object::{cap_table_slots, space_kind},
};
use moira_kernel_core::{
    capword::CapWord,
    radix::{self, Cache, Format, Mapping},
    untyped::first_block,
};

const TABLE_BITS: u8 = 18;
const STACK: u64 = 128 * 1024;
const STACK_TOP: u64 = 0x7f00_0000;
const INFO: u64 = 0x7f10_0000;
const BUFFER: u64 = 0x7f20_0000;
const INITRD: u64 = 0x8000_0000;

struct Maker<'a> {
    early: &'a mut Early,
    space: Obj<AddressSpace>,
}

impl Maker<'_> {
    fn object<T>(early: &mut Early, kind: ObjectType, bits: u8) -> Obj<T> {
        let at = early.take(1 << bits, 1 << bits);
        // SAFETY: zeroed memory that becomes this object.
        unsafe {
            Obj::<crate::object::Header>::at(at).init(kind, bits, 0);
            Obj::at(at)
        }
    }

    fn map(&mut self, address: u64, physical: u64, rights: Rights) {
        let page = Mapping { address, physical, size: FrameSize::Small };
        let root = self.space.root.get();
        let done = radix::map(&self.space, Format::Paging, root, page, rights, Cache::WriteBack);
        if done.is_err() {
            super::fail(format_args!("the root task's image overlaps or is too large at {address:#x}"));
        }
    }

    fn map_new(&mut self, address: u64, bytes: u64, rights: Rights) -> u64 {
        let physical = self.early.take(bytes, 4096);
        for offset in (0..bytes).step_by(4096) {
            self.map(address + offset, physical + offset, rights);
        }
        physical
    }
}

/// The first file of a cpio archive in "newc" format: its contents.
fn first_file(archive: &[u8]) -> Option<&[u8]> {
    let field = |index: usize| {
        let text = core::str::from_utf8(archive.get(6 + index * 8..14 + index * 8)?).ok()?;
        usize::from_str_radix(text, 16).ok()
    };
    if archive.get(..6)? != b"070701" {
        return None;
    }
    let (size, name) = (field(6)?, field(11)?);
    let start = 110usize.checked_add(name)?.checked_add(3)? & !3;
    archive.get(start..start.checked_add(size)?)
}

/// Copies an ELF file's segments into fresh pages of the root task. Answers its entry.
fn load(maker: &mut Maker, file: &[u8]) -> Option<u64> {
    let word = |at: usize, bytes: usize| -> Option<u64> {
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(file.get(at..at.checked_add(bytes)?)?);
        Some(u64::from_le_bytes(value))
    };
    if file.get(..6)? != [0x7f, b'E', b'L', b'F', 2, 1] || word(18, 2)? != 62 {
        return None;
    }
    let (headers, count) = (word(32, 8)? as usize, word(56, 2)? as usize);
    for i in 0..count.min(16) {
        let at = headers.checked_add(i * 56)?;
        if word(at, 4)? != 1 {
            continue;
        }
        let (flags, offset, address) = (word(at + 4, 4)?, word(at + 8, 8)? as usize, word(at + 16, 8)?);
        let (in_file, in_memory) = (word(at + 32, 8)? as usize, word(at + 40, 8)?);
        if in_memory == 0 {
            continue;
        }
        let (start, end) = (address & !4095, address.checked_add(in_memory)?.checked_add(4095)? & !4095);
        if in_file as u64 > in_memory || end > STACK_TOP - STACK {
            return None;
        }
        let rights = match flags & 3 {
            1 => Rights::READ.or(Rights::EXECUTE),
            2 => Rights::READ.or(Rights::WRITE),
            0 => Rights::READ,
            _ => return None,
        };
        let physical = maker.map_new(start, end - start, rights);
        let source = file.get(offset..offset.checked_add(in_file)?)?;
        for (i, byte) in source.iter().enumerate() {
            let to = physical + (address - start) + i as u64;
            // SAFETY: fresh pages of the root task.
            unsafe { (Page(to).address() as *mut u8).write(*byte) };
        }
    }
    word(24, 8)
}

/// Makes the root task and gives it everything. `early_start` is where the kernel's early allocations began.
pub fn make(
    cpu: &'static Cpu,
    loaded: &Loaded,
    mut early: Early,
    early_start: u64,
    image: Range,
    boot_tsc: u64,
    virtualization: u32,
) -> Obj<Thread> {
    let initrd = loaded.initrd;
    if !initrd.start.is_multiple_of(4096) {
        super::fail(format_args!("the module does not begin on a page boundary"));
    }
    let length = initrd.end - initrd.start;
    let archive = Page(initrd.start).bytes(length as usize);
    let Some(program) = first_file(archive) else {
        super::fail(format_args!("the module is not a system image, or is truncated"));
    };

    let table: Obj<CapTable> = Maker::object(&mut early, ObjectType::CapTable, TABLE_BITS);
    cap_table::init(table, TABLE_BITS);
    let thread: Obj<Thread> = Maker::object(&mut early, ObjectType::Thread, 10);
    let context: Obj<SchedContext> = Maker::object(&mut early, ObjectType::SchedContext, 9);
    let space: Obj<AddressSpace> = Maker::object(&mut early, ObjectType::AddressSpace, 8);
    let platform = early.take(64, 64);
    let controls = early.take((MAX_UNTYPED as u64) << untyped::CONTROL_BITS, 1 << untyped::CONTROL_BITS);
    let _ = address_space::init(space, space_kind::TASK);
    let tables = 64 + length / 0x20_0000;
    let pool = early.take(tables * 4096, 4096);
    address_space::donate(space, pool, pool + tables * 4096);

    let mut maker = Maker { early: &mut early, space };
    let Some(entry) = load(&mut maker, program) else {
        super::fail(format_args!("the first file of the module is not a program for this machine"));
    };
    let writable = Rights::READ.or(Rights::WRITE);
    maker.map_new(STACK_TOP - STACK, STACK, writable);
    let info = maker.map_new(INFO, 8192, Rights::READ);
    let buffer = maker.map_new(BUFFER, 4096, writable);
    for offset in (0..length).step_by(4096) {
        maker.map(INITRD + offset, initrd.start + offset, Rights::READ);
    }

    let put = |index: u32, word: CapWord| {
        if let Ok(slot) = cap::slot_of(table, index as u64) {
            slot.write(word, 0);
        }
    };
    let word = |kind, address| CapWord::new(kind, address, Rights::ALL, 0);
    put(slot::TABLE, word(ObjectType::CapTable, table.physical()));
    put(slot::SPACE, word(ObjectType::AddressSpace, space.physical()));
    put(slot::THREAD, word(ObjectType::Thread, thread.physical()));
    put(slot::CONTEXT, word(ObjectType::SchedContext, context.physical()));
    put(slot::CPU, word(ObjectType::Cpu, Obj::from_ref(cpu).physical()));
    put(slot::PLATFORM, word(ObjectType::Platform, platform));
    thread.table.write(word(ObjectType::CapTable, table.physical()), 0);
    thread.space.write(word(ObjectType::AddressSpace, space.physical()), 0);
    thread.buffer.write(word(ObjectType::Frame, buffer), 0);
    // SAFETY: zeroed memory.
    let _ = unsafe { Obj::<Platform>::at(platform) };

    context.thread.set(Some(thread));
    context.index.set(cpu.take_index(context));
    context.header.life.store(life::ACTIVE, Release);
    thread.context.set(Some(context));
    thread.beneficiary.set(Some(context));
    thread::boot_root(thread, entry, STACK_TOP, INFO);

    let used = Range { start: early_start, end: (early.next() + 4095) & !4095 };
    let mut boot_info = BootInfo {
        magic: BOOT_MAGIC,
        tsc_hz: tsc::hz(),
        rsdp: loaded.rsdp,
        rsdp_copy: [0; 40],
        initrd_address: INITRD,
        initrd_physical: initrd.start,
        initrd_length: length,
        message_buffer: BUFFER,
        free_address: (INITRD + length + 0x3fff_ffff) & !0x3fff_ffff,
        free_slot: 0,
        slot_count: cap_table_slots(TABLE_BITS),
        boot_apic_id: cpu.apic_id.get(),
        virtualization,
        boot_tsc,
        guest_xcr0: virt::guest_xcr0(),
        untyped_count: 0,
        command_line_length: loaded.command_line().len() as u32,
        command_line: [0; moira_abi::boot::MAX_COMMAND_LINE],
        untyped: [BootUntyped::default(); MAX_UNTYPED],
    };
    boot_info.command_line[..loaded.command_line().len()].copy_from_slice(loaded.command_line().as_bytes());
    if loaded.rsdp != 0 && loaded.rsdp < 1 << 32 {
        boot_info.rsdp_copy[..36].copy_from_slice(&loaded.rsdp_bytes);
    }
    let mut give = |range: Range, kind: u32| {
        let mut at = range.start;
        while let Some((address, bits)) = first_block(at, range.end) {
            let number = boot_info.untyped_count;
            if number as usize == MAX_UNTYPED {
                return;
            }
            // SAFETY: zeroed control blocks from early memory.
            let control = unsafe { Obj::<Untyped>::at(controls + ((number as u64) << untyped::CONTROL_BITS)) };
            untyped::init(control, address, bits, kind, 0);
            put(slot::UNTYPED + number, word(ObjectType::Untyped, control.physical()));
            boot_info.untyped[number as usize] = BootUntyped { address, size_bits: bits as u32, kind };
            boot_info.untyped_count += 1;
            at = address + (1 << bits);
        }
    };
    give(Range { start: initrd.start, end: (initrd.end + 4095) & !4095 }, untyped_kind::CONTENT);
    for range in loaded.ranges() {
        let mut obstacles = [image, Range { start: initrd.start, end: (initrd.end + 4095) & !4095 }, used];
        obstacles.sort_unstable_by_key(|obstacle| obstacle.start);
        let mut at = range.start;
        for obstacle in obstacles.into_iter().filter(|o| o.start < range.end && o.end > range.start) {
            if obstacle.start > at {
                give(Range { start: at, end: obstacle.start }, untyped_kind::DIRTY);
            }
            at = at.max(obstacle.end);
        }
        if at < range.end {
            give(Range { start: at, end: range.end }, untyped_kind::DIRTY);
        }
    }
    boot_info.free_slot = slot::UNTYPED + boot_info.untyped_count;
    memory::write_struct(info, &boot_info);
    thread
}
