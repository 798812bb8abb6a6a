//! Building the machine: memory, vCPUs, devices.

use crate::backend::{Console, Device, Entropy, Line, Shared};
use crate::control::Control;
use crate::debugger::Debugger;
use crate::hardware;
use crate::processor::{INPUT, Kernel, WAKE, Wires};
use alloc::boxed::Box;
use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};
use moira_rt::Env;
use moira_rt::memory::{Mapping, Memory, MemoryError};
use moira_rt::sys::{
    Capability, Cpu as HostCpu, Endpoint, Error, Frame, FrameSize, GuestSpace, IoPorts, MapFlags, Notification, Rights,
    Slot, Space, Untyped, Vcpu, abi,
};
use spin::Once;
use vmm_core::disk::MemoryDisk;
use vmm_core::history::History;
use vmm_core::machine::{MOST_CPUS, Machine};
use vmm_core::ram::Ram;
use vmm_core::state::StatePage;
use vmm_core::vm::{Parts, Vm, cr4_bits};
use vmm_devices::board::{Board, BoardConfig};
use vmm_devices::platform;
use vmm_devices::virtio::{
    VirtioPci, block::Block, console::Console as VirtioConsole, entropy::Entropy as VirtioEntropy,
};
use vmm_machine::boot::firmware;
use vmm_machine::cpuid::{CpuidConfig, CpuidTable, Live, Vendor};
use vmm_machine::layout;
use vmm_machine::memory_map::{MapError, MemoryMap};
use vmm_machine::msr::{MsrConfig, efer_mask};

/// Frequency of the virtual APIC timers.
const APIC_TIMER_HZ: u32 = 1_000_000_000;
/// What the guest's clock starts with if nobody knows the time: 2026-01-01.
const NO_CLOCK: u64 = 1_767_225_600;
/// MSRs that the guest may read and write by itself: the kernel switches them, and checks that the hardware can.
const OPEN_MSRS: [u32; 11] = [
    0x174,
    0x175,
    0x176,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
];

/// Why the machine cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A capability is not granted.
    Missing(&'static str),
    /// The kernel refused a step.
    Kernel(&'static str, Error),
    /// Memory could not be made.
    Memory(&'static str, MemoryError),
    /// No machine has so much memory.
    Size(MapError),
    /// The firmware's image is none.
    Firmware(firmware::FirmwareError),
    /// What the firmware has to be told cannot be made.
    FirmwareFiles(&'static str),
    /// The heap has no room for so many bytes that the guest may change of its disk.
    DiskChanges(u64),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Missing(name) => write!(f, "the manifest grants no `{name}`"),
            Failure::Kernel(what, error) => write!(f, "{what}: {error:?}"),
            Failure::Memory(what, error) => write!(f, "{what}: {error:?}"),
            Failure::Size(error) => error.fmt(f),
            Failure::Firmware(error) => write!(f, "the firmware is refused: {error}"),
            Failure::FirmwareFiles(what) => write!(f, "no files for the firmware: {what}"),
            Failure::DiskChanges(bytes) => {
                let kib = bytes.div_ceil(1024);
                write!(
                    f,
                    "no room for {kib} KiB of changes of the disk in the heap: make it larger (--set vmm-heap=SIZE)"
                )
            }
        }
    }
}

/// A processor of the machine, for its own thread.
pub struct Cpu {
    /// The machine as it sees it.
    pub vm: Vm<'static>,
    /// The kernel's side.
    pub kernel: Kernel,
    frame: Frame,
    space: GuestSpace,
}

impl Cpu {
    /// Sets the vCPU up where the calling thread lives: it stays there.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn settle(&self) -> Result<(), Failure> {
        let here = HostCpu::new(Slot::NONE);
        let vcpu = self.kernel.vcpu;
        vcpu.configure(self.frame, self.space, here).map_err(|error| Failure::Kernel("vCPU", error))?;
        for number in OPEN_MSRS {
            // Refused where the hardware cannot: then each access exits, and works as well.
            let _ = vcpu.allow_msr(number, true, true).or_else(|_| vcpu.allow_msr(number, true, false));
        }
        Ok(())
    }
}

/// State pages and exits of the machine's processors, for whoever reports on a panic.
static PROCESSORS: Once<(Vec<StatePage<'static>>, &'static Machine<'static>)> = Once::new();

/// The state pages of the machine's processors.
pub fn pages() -> &'static [StatePage<'static>] {
    PROCESSORS.get().map_or(&[], |(pages, _)| pages)
}

/// The last exits of a processor.
pub fn history(cpu: usize) -> Option<&'static History> {
    PROCESSORS.get().map(|(_, machine)| machine.history(cpu))
}

/// The machine: its processors, the boot processor first, one for each thread of this task.
///
/// # Errors
/// [`Failure`].
pub fn build(env: &Env) -> Result<Vec<Cpu>, Failure> {
    let objects: Untyped = env.capability("objects").ok_or(Failure::Missing("objects"))?;
    let guest = env.capabilities::<Untyped>("guest").ok_or(Failure::Missing("guest"))?;
    let guest = guest.iter().map(|memory| {
        let info = memory.info().map_err(|error| Failure::Kernel("guest memory", error))?;
        Ok((memory, 1u64 << info.size_bits.min(47)))
    });
    let guest = guest.collect::<Result<Vec<_>, _>>()?;
    let bytes = guest.iter().map(|(_, bytes)| *bytes).sum();
    let map = MemoryMap::new(bytes).map_err(Failure::Size)?;
    let image = env.file("guest-firmware");
    if let Some(image) = image {
        firmware::check(image).map_err(Failure::Firmware)?;
    }
    let mut memory = Memory::new(env, objects);
    // Objects in the order of falling size leave no gaps between them.
    let vcpus =
        (0..=env.threads().len()).take(MOST_CPUS).map(|_| make_vcpu(&mut memory)).collect::<Result<Vec<_>, _>>()?;
    let space = guest_space(&mut memory, bytes)?;
    // Page tables come from this task's other memory: all of the guest's is the guest's.
    let tables = memory.feed_tables_with(table_bits(bytes));
    tables.map_err(|error| Failure::Memory("page tables for the guest's memory", error))?;
    let mut notifications: Vec<Notification> =
        core::iter::once(env.notification()).chain(env.threads().iter()).collect();
    notifications.truncate(MOST_CPUS);
    let mut frames = Vec::new();
    let mut pages = Vec::new();
    for _ in &notifications {
        let page: &Mapping = Box::leak(Box::new(small_page(&mut memory)?));
        frames.push(page.frames().next().ok_or(Failure::Missing("state page"))?);
        pages.push(StatePage::new(page.shared().words64()).ok_or(Failure::Missing("state page"))?);
    }
    let mut ram = guest_memory(&mut memory, &guest, &map, space)?;
    if let Some(image) = image {
        let untyped: Untyped = env.capability("rom").ok_or(Failure::Missing("rom"))?;
        ram = ram.with_rom(rom(&mut memory, untyped, image, space)?);
    }
    let wires = wires(&mut memory, &notifications, &vcpus)?;
    let console = Console::new(env.capability::<Endpoint>("console"), wires.input);
    console.lock().listen(wires.input.slot());

    let tsc_hz = env.info.tsc_hz;
    let apic_ids: Vec<u32> = (0..notifications.len() as u32).collect();
    let mut board = Board::new(BoardConfig {
        apic_ids: &apic_ids,
        apic_timer_hz: APIC_TIMER_HZ.into(),
        tsc_hz,
        unix_ns: clock_at_zero(env),
        memory_below_4g: map.low_end(),
        memory_above_4g: map.high_size(),
        without_firmware: image.is_none(),
        console: Box::new(Line::new(&console, Device::Serial)),
    });
    let changes = env.bytes("disk-changes", 0);
    plug(&mut board, &console, env.file("guest-disk"), changes).map_err(|_| Failure::DiskChanges(changes))?;
    if image.is_some() {
        let debug = env.argument("firmware-debug") == Some("on");
        crate::firmware::tell(&mut board, &map, apic_ids.len() as u32, debug).map_err(Failure::FirmwareFiles)?;
    }
    let wires: &Wires = Box::leak(Box::new(wires));
    let machine: &'static Machine<'static> =
        Box::leak(Box::new(Machine::new(ram, map, board, tsc_hz, apic_ids.len(), wires)));
    PROCESSORS.call_once(|| (pages.clone(), machine));
    let control: &Control = Box::leak(Box::new(Control::new(env, apic_ids.len())));
    let mut debugger = Debugger::new(control.region(), machine, pages.clone());
    let mut cpus = Vec::new();
    let parts = apic_ids.iter().zip(notifications).zip(vcpus).zip(frames).zip(pages);
    for ((((&id, notification), vcpu), frame), page) in parts {
        let (cpuid, msr, xcr0) = processor_model(env.info.guest_xcr0, tsc_hz, apic_ids.len() as u32, id);
        let cr4 = cr4_bits(&cpuid);
        let vm = Vm::new(Parts { machine, index: id as usize, page, cpuid, msr, xcr0, cr4 });
        cpus.push(Cpu {
            vm,
            kernel: Kernel { vcpu, notification, console: console.clone(), control, debugger: debugger.take() },
            frame,
            space,
        });
    }
    Ok(cpus)
}

fn slot(memory: &mut Memory) -> Result<Slot, Failure> {
    memory.slots.take(1).ok_or(Failure::Memory("slots", MemoryError::NoSlots))
}

fn small_page(memory: &mut Memory) -> Result<Mapping, Failure> {
    memory.make(abi::PAGE, FrameSize::Small).map_err(|error| Failure::Memory("state page", error))
}

/// log2 of the bytes of page tables for `bytes` of memory in large frames and an odd MiB in small ones: a directory for each GiB that
/// they touch, the tables above these, one for the odd MiB, one for other small pages here and one for the ROM there.
fn table_bits(bytes: u64) -> u8 {
    let pages = (bytes >> 30) + 7;
    12 + pages.next_power_of_two().trailing_zeros() as u8
}

fn guest_space(memory: &mut Memory, bytes: u64) -> Result<GuestSpace, Failure> {
    let failed = |error| Failure::Kernel("guest address space", error);
    let (space, tables) = (slot(memory)?, slot(memory)?);
    let space = memory.untyped.retype_guest_space(space).map_err(failed)?;
    let tables = memory.untyped.retype_untypeds(table_bits(bytes), 1, tables).map_err(failed)?;
    let tables = tables.get(0).ok_or(Failure::Missing("tables"))?;
    space.add_memory(tables).map_err(failed)?;
    Ok(space)
}

fn make_vcpu(memory: &mut Memory) -> Result<Vcpu, Failure> {
    let at = slot(memory)?;
    let vcpus = memory.untyped.retype_vcpus(1, at).map_err(|error| Failure::Kernel("vCPU", error))?;
    vcpus.get(0).ok_or(Failure::Missing("vCPU"))
}

/// All of `guest`, mapped here in one piece and in the guest's space around the hole below 4 GiB.
fn guest_memory(
    memory: &mut Memory,
    guest: &[(Untyped, u64)],
    map: &MemoryMap,
    space: GuestSpace,
) -> Result<Ram<'static>, Failure> {
    let made = memory.make_whole(guest).map_err(|error| Failure::Memory("guest memory", error))?;
    let mapping: &Mapping = Box::leak(Box::new(made));
    let low = map.low_end();
    let mut offset = 0;
    for (frame, size) in mapping.sized_frames() {
        let copy = slot(memory)?;
        let copy =
            memory.table.copy(frame, copy, Rights::ALL).map_err(|error| Failure::Kernel("guest frame", error))?;
        let at = if offset < low { offset } else { offset - low + layout::HIGH_RAM_BASE };
        space.map(copy, at, MapFlags::GUEST_ALL).map_err(|error| Failure::Kernel("guest mapping", error))?;
        offset += size.bytes();
    }
    let words = mapping.shared().words64();
    let (low, high) = words.split_at_checked((low / 8) as usize).unwrap_or((words, &[]));
    Ok(Ram::new(low, high))
}

/// The firmware's image at the end of whole frames from `untyped`, which end at 4 GiB in the guest's space, where they
/// can be read and executed.
fn rom(
    memory: &mut Memory,
    untyped: Untyped,
    image: &[u8],
    space: GuestSpace,
) -> Result<&'static [AtomicU64], Failure> {
    let own = core::mem::replace(&mut memory.untyped, untyped);
    let made = memory.make(image.len() as u64, FrameSize::Large);
    memory.untyped = own;
    let mapping: &Mapping = Box::leak(Box::new(made.map_err(|error| Failure::Memory("ROM", error))?));
    let mut at = layout::HIGH_RAM_BASE - mapping.bytes();
    for frame in mapping.frames() {
        let copy = slot(memory)?;
        let copy = memory.table.copy(frame, copy, Rights::ALL).map_err(|error| Failure::Kernel("ROM frame", error))?;
        space.map(copy, at, MapFlags::READ_EXECUTE).map_err(|error| Failure::Kernel("ROM mapping", error))?;
        at += FrameSize::Large.bytes();
    }
    let words = mapping.shared().words64();
    // The image is a whole number of pages.
    let start = words.len().saturating_sub(image.len() / 8);
    for (word, bytes) in words.iter().skip(start).zip(image.as_chunks::<8>().0) {
        word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
    }
    Ok(words)
}

/// Capabilities by which threads reach each other, and the console reaches the main one.
fn wires(memory: &mut Memory, notifications: &[Notification], vcpus: &[Vcpu]) -> Result<Wires, Failure> {
    let mut signal = |notification: Notification, bits: u64| -> Result<Notification, Failure> {
        let at = slot(memory)?;
        memory
            .table
            .mint(notification, at, Rights::SIGNAL, bits)
            .map_err(|error| Failure::Kernel("notification", error))
    };
    let wake: Result<Vec<_>, _> = notifications.iter().map(|notification| signal(*notification, WAKE)).collect();
    let main = notifications.first().copied().ok_or(Failure::Missing("notification"))?;
    Ok(Wires { wake: wake?, vcpus: vcpus.to_vec(), input: signal(main, INPUT)? })
}

/// What CPUID and the MSRs say.
fn processor_model(guest_xcr0: u64, tsc_hz: u64, cpus: u32, apic_id: u32) -> (CpuidTable, MsrConfig, u64) {
    let host = &|leaf, subleaf| hardware::cpuid(leaf, subleaf);
    let physical_bits = (host(0x8000_0008, 0).eax & 0xff).clamp(36, 52) as u8;
    let config = CpuidConfig {
        cpus,
        xcr0: guest_xcr0,
        tsc_khz: u32::try_from(tsc_hz / 1000).unwrap_or(0),
        apic_timer_hz: APIC_TIMER_HZ,
        physical_bits,
        speculation_control: false,
        arch_capabilities: None,
        pcid: false,
    };
    let cpuid = CpuidTable::new(&config, apic_id, host);
    let features = cpuid.answer(0x8000_0001, 0, Live::default()).edx;
    let msr = MsrConfig {
        vendor: Vendor::of(host(0, 0)),
        physical_bits,
        speculation_control: config.speculation_control,
        arch_capabilities: config.arch_capabilities,
        efer_mask: efer_mask(features),
    };
    (cpuid, msr, guest_xcr0)
}

/// Devices on the PCI bus.
fn plug(board: &mut Board, console: &Shared, disk: Option<&'static [u8]>, changes: u64) -> Result<(), TryReserveError> {
    let line = Box::new(Line::new(console, Device::Virtio));
    board.plug(platform::SLOT_CONSOLE, Box::new(VirtioPci::new(Box::new(VirtioConsole::new(line)))));
    if let Some(image) = disk {
        let disk = Box::new(MemoryDisk::new(image, usize::try_from(changes).unwrap_or(usize::MAX))?);
        board.plug(platform::SLOT_BLOCK, Box::new(VirtioPci::new(Box::new(Block::new(disk, b"moira")))));
    }
    let entropy = Box::new(Entropy::new());
    board.plug(platform::SLOT_ENTROPY, Box::new(VirtioPci::new(Box::new(VirtioEntropy::new(entropy)))));
    Ok(())
}

/// Nanoseconds since 1970 when the TSC was zero.
fn clock_at_zero(env: &Env) -> u64 {
    let now = env.capability::<IoPorts>("rtc").and_then(read_clock).unwrap_or(NO_CLOCK);
    let running = u128::from(moira_rt::sys::now()) * 1_000_000_000 / u128::from(env.info.tsc_hz.max(1));
    (now * 1_000_000_000).saturating_sub(u64::try_from(running).unwrap_or(0))
}

/// Seconds since 1970 by the machine's clock; `None` if it does not make sense.
fn read_clock(ports: IoPorts) -> Option<u64> {
    let read = |index: u8| {
        ports.out8(0x70, index).ok()?;
        ports.in8(0x71).ok()
    };
    // Twice the same: no update came in between.
    let mut last = [0; 7];
    for _ in 0..8 {
        let mut now = [0; 7];
        for (value, index) in now.iter_mut().zip([0, 2, 4, 7, 8, 9, 0x32]) {
            *value = read(index)?;
        }
        if now == last {
            return vmm_core::clock::unix_seconds(now, read(0xb)?);
        }
        last = now;
    }
    None
}

const _: () = assert!(layout::LOW_RAM_LIMIT.is_multiple_of(1 << 21));
