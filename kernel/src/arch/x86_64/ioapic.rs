//! I/O APICs: lines (82093AA data sheet; ACPI 5.2.12.3 for the numbering). Which there are, the platform task says.

use super::paging;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};

const MOST: usize = 8;

struct IoApic {
    /// Virtual address of the registers; 0: none.
    address: AtomicU64,
    first: AtomicU32,
    pins: AtomicU32,
}

static ALL: [IoApic; MOST] =
    [const { IoApic { address: AtomicU64::new(0), first: AtomicU32::new(0), pins: AtomicU32::new(0) } }; MOST];

/// Selecting a register and accessing it are two steps: nobody may come between.
/// In turn: whoever waits for it has at most the other processors' two accesses each before its own.
static LOCK: spin::mutex::TicketMutex<()> = spin::mutex::TicketMutex::new(());

fn read(address: u64, register: u32) -> u32 {
    // SAFETY: `address` is the uncached mapping of an I/O APIC, of which only the kernel knows.
    unsafe {
        (address as *mut u32).write_volatile(register);
        ((address + 0x10) as *const u32).read_volatile()
    }
}

fn write(address: u64, register: u32, value: u32) {
    // SAFETY: as for `read`.
    unsafe {
        (address as *mut u32).write_volatile(register);
        ((address + 0x10) as *mut u32).write_volatile(value);
    }
}

/// Adds one; all its lines are masked. Answers the number of its pins. Adding the same one twice changes nothing.
pub fn add(physical: u64, first: u32) -> Option<u32> {
    let _lock = LOCK.lock();
    if let Some(known) = ALL.iter().find(|apic| apic.address.load(Relaxed) != 0 && apic.first.load(Relaxed) == first) {
        return Some(known.pins.load(Relaxed));
    }
    let free = ALL.iter().find(|apic| apic.address.load(Relaxed) == 0)?;
    let address = paging::map_device(physical);
    let pins = (read(address, 1) >> 16 & 0xff) + 1;
    for pin in 0..pins {
        write(address, 0x10 + 2 * pin, 1 << 16);
    }
    free.first.store(first, Relaxed);
    free.pins.store(pins, Relaxed);
    free.address.store(address, Release);
    Some(pins)
}

fn pin_of(gsi: u64) -> Option<(u64, u32)> {
    ALL.iter().find_map(|apic| {
        let (address, first) = (apic.address.load(Acquire), apic.first.load(Relaxed) as u64);
        (address != 0 && gsi >= first && gsi < first + apic.pins.load(Relaxed) as u64)
            .then(|| (address, (gsi - first) as u32))
    })
}

/// Whether a global system interrupt has a pin.
pub fn exists(gsi: u64) -> bool {
    pin_of(gsi).is_some()
}

/// Where a routed line's entry is, and what it holds when unmasked.
#[derive(Clone, Copy, Default)]
pub struct Line {
    address: u64,
    register: u32,
    entry: u32,
}

impl Line {
    /// Masks or unmasks the line.
    #[inline(always)]
    pub fn mask(self, masked: bool) {
        if self.address != 0 {
            let _lock = LOCK.lock();
            write(self.address, self.register, self.entry | (masked as u32) << 16);
        }
    }
}

/// Routes a line to a vector of a processor (physical destination), masked.
pub fn route(gsi: u32, vector: u8, apic_id: u32, level: bool, active_low: bool) -> Line {
    let Some((address, pin)) = pin_of(gsi as u64) else { return Line::default() };
    let entry = (level as u32) << 15 | (active_low as u32) << 13 | vector as u32;
    let line = Line { address, register: 0x10 + 2 * pin, entry };
    line.mask(true);
    {
        let _lock = LOCK.lock();
        write(address, line.register + 1, apic_id << 24);
    }
    line
}
