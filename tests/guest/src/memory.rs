//! All of the machine's memory: each MiB holds its own number at its first and its last word, written before any is read.

use core::arch::asm;

const MIB: u64 = 1 << 20;
/// Below are the guest itself and what it was started with.
const FROM: u64 = 8 * MIB;
/// Memory below 4 GiB ends here at the latest.
const LOW_END: u64 = 0xb000_0000;
const HIGH: u64 = 1 << 32;
/// What is mapped from 4 GiB on.
const HIGH_MAPPED: u64 = 1 << 30;
const LARGE: u64 = 2 * MIB;
/// Present, writable, a large page (SDM vol. 3, 4.5).
const TABLE: u64 = 3;
const PAGE: u64 = 0x83;

#[repr(align(4096))]
struct Directory([u64; 512]);

static mut DIRECTORY: Directory = Directory([0; 512]);

/// Writes and reads all of `bytes` but for the first 8 MiB.
pub fn run(bytes: u64) {
    let (low, high) = (bytes.min(LOW_END), bytes.saturating_sub(LOW_END).min(HIGH_MAPPED));
    if high > 0 {
        map_high();
    }
    let words = || {
        let pieces = (FROM..low).step_by(MIB as usize).chain((HIGH..HIGH + high).step_by(MIB as usize));
        pieces.flat_map(|start| [start, start + MIB - 8])
    };
    for address in words() {
        // SAFETY: mapped memory of this machine that holds nothing.
        unsafe { (address as *mut u64).write_volatile(!address) };
    }
    // SAFETY: as above.
    let wrong = words().filter(|address| unsafe { (*address as *const u64).read_volatile() } != !address).count();
    say!("memory: {} MiB from 8 MiB on, {} MiB from 4 GiB on, {wrong} wrong", (low - FROM.min(low)) / MIB, high / MIB);
}

/// Maps the GiB from 4 GiB on: the monitor's tables end there.
fn map_high() {
    // SAFETY: one processor runs; tables and memory are mapped where they lie. The monitor's first table has one entry, its second
    // one four.
    unsafe {
        let directory = &raw mut DIRECTORY;
        for (number, entry) in (*directory).0.iter_mut().enumerate() {
            *entry = HIGH + number as u64 * LARGE | PAGE;
        }
        let top: u64;
        asm!("mov {}, cr3", out(reg) top, options(nomem, nostack, preserves_flags));
        let pointers = (top as *const u64).read_volatile() & !0xfff;
        (pointers as *mut u64).add(4).write_volatile(directory as u64 | TABLE);
        asm!("mov cr3, {}", in(reg) top, options(nostack, preserves_flags));
    }
}
