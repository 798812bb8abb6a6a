//! The root task: made by the kernel from the first program of the initrd, with a capability to everything.

use super::{Early, Loaded, Range};
use crate::{
    arch::{tsc, virt},
    cap,
    memory::{Obj, Page},
    object::{
        address_space::{self, AddressSpace},
        cap_table::{self, CapTable},
        life,
        sched_context::SchedContext,
        thread::{self, Thread},
        untyped::{self, Untyped},
    },
    percpu::Cpu,
};
use core::sync::atomic::Ordering::*;
use elf::{ElfBytes, abi, endian::LittleEndian, file::Class};
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

/// Copies an ELF file's segments into fresh pages of the root task. Answers its entry.
fn load(maker: &mut Maker, file: &[u8]) -> Option<u64> {
    let program = ElfBytes::<LittleEndian>::minimal_parse(file).ok()?;
    if program.ehdr.class != Class::ELF64 || program.ehdr.e_machine != abi::EM_X86_64 {
        return None;
    }
    for segment in program.segments()?.iter().filter(|one| one.p_type == abi::PT_LOAD && one.p_memsz != 0) {
        let address = segment.p_vaddr;
        let (start, end) = (address & !4095, address.checked_add(segment.p_memsz)?.checked_add(4095)? & !4095);
        let source = program.segment_data(&segment).ok()?;
        if source.len() as u64 > segment.p_memsz || end > STACK_TOP - STACK {
            return None;
        }
        let rights = match segment.p_flags & (abi::PF_X | abi::PF_W) {
            abi::PF_X => Rights::READ.or(Rights::EXECUTE),
            abi::PF_W => Rights::READ.or(Rights::WRITE),
            0 => Rights::READ,
            _ => return None,
        };
        let to = Page(maker.map_new(start, end - start, rights) + (address - start)).address() as *mut u8;
        // SAFETY: fresh pages of the root task, as long as the segment in memory.
        unsafe { to.copy_from_nonoverlapping(source.as_ptr(), source.len()) };
    }
    Some(program.ehdr.e_entry)
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
    let Some(program) = cpio_reader::iter_files(archive).next() else {
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
    let Some(entry) = load(&mut maker, program.file()) else {
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
    context.thread.set(Some(thread));
    context.index.set(cpu.take_index(context));
    context.header.life.store(life::ACTIVE, Release);
    thread.context.set(Some(context));
    thread.beneficiary.set(Some(context));
    thread::boot_root(thread, entry, STACK_TOP, INFO);

    let used = Range { start: early_start, end: early.next };
    // SAFETY: two fresh zeroed pages of the root task, which does not run yet; zero is valid for every field.
    let boot_info = unsafe { &mut *(Page(info).address() as *mut BootInfo) };
    boot_info.magic = BOOT_MAGIC;
    boot_info.tsc_hz = tsc::hz();
    boot_info.boot_tsc = boot_tsc;
    boot_info.rsdp = loaded.rsdp;
    boot_info.rsdp_copy[..loaded.rsdp_bytes.len()].copy_from_slice(&loaded.rsdp_bytes);
    boot_info.initrd_address = INITRD;
    boot_info.initrd_physical = initrd.start;
    boot_info.initrd_length = length;
    boot_info.message_buffer = BUFFER;
    boot_info.free_address = (INITRD + length + 0x3fff_ffff) & !0x3fff_ffff;
    boot_info.slot_count = cap_table_slots(TABLE_BITS);
    boot_info.boot_apic_id = cpu.apic_id.get();
    boot_info.virtualization = virtualization;
    boot_info.guest_xcr0 = virt::guest_xcr0();
    boot_info.command_line_length = loaded.command_line.len() as u32;
    boot_info.command_line[..loaded.command_line.len()].copy_from_slice(loaded.command_line.as_bytes());
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
    for range in &loaded.ranges {
        range.free_of([image, initrd, used], |piece| give(piece, untyped_kind::DIRTY));
    }
    boot_info.free_slot = slot::UNTYPED + boot_info.untyped_count;
    thread
}
