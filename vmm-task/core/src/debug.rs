//! What a debugger and the processors' threads share: who is held, where the guest stops, who takes a single step.
//!
//! A software break point is INT1 in the guest's memory, which exits on every processor of the guest. Hardware break points are debug registers,
//! of which there are four. While a debugger is there, those are its own: what the guest writes to them has no effect.

use crate::machine::MOST_CPUS;
use crate::ram::Ram;
use crate::state::{StatePage, field};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use moira_abi::vcpu::EXITS_ON_REQUEST;
use spin::mutex::SpinMutex;
use vmm_devices::traits::GuestMemory;

/// Break points.
pub const POINTS: usize = 4;
/// RFLAGS.TF: a trap after the next instruction.
pub(crate) const TF: u64 = 1 << 8;
/// DR6.BS: it was a single step.
pub(crate) const BS: u64 = 1 << 14;
/// DR7 without break points: its bit 10 is always set (SDM 17.2.4).
const NOTHING: u64 = 1 << 10;

/// INT1, one byte that exits (`docs/abi/vcpu.md`): INT3 does not.
const INT1: u8 = 0xf1;
/// Most break points in memory.
const MOST_PLANTED: usize = 256;

/// A break point in memory.
#[derive(Clone, Copy, Debug)]
struct Planted {
    linear: u64,
    gpa: u64,
    /// What was there.
    byte: u8,
}

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A single step was taken.
    Step,
    /// A break point in a debug register was reached.
    Break,
    /// A break point in memory was reached; RIP stands at it.
    Planted,
}

/// The state of debugging.
pub struct Debug {
    on: AtomicBool,
    /// Processors that stay out of the guest, as bits.
    held: AtomicU64,
    /// Processors that are out of it.
    out: AtomicU64,
    /// Processors that take a single step.
    step: AtomicU64,
    points: [AtomicU64; POINTS],
    used: AtomicU64,
    /// Groups of each processor's state page that the debugger changed.
    loaded: [AtomicU64; MOST_CPUS],
    planted: SpinMutex<Vec<Planted>>,
    stop: SpinMutex<Option<(usize, Why)>>,
}

impl Debug {
    pub(crate) const fn new() -> Debug {
        Debug {
            on: AtomicBool::new(false),
            held: AtomicU64::new(0),
            out: AtomicU64::new(0),
            step: AtomicU64::new(0),
            points: [const { AtomicU64::new(0) }; POINTS],
            used: AtomicU64::new(0),
            loaded: [const { AtomicU64::new(0) }; MOST_CPUS],
            planted: SpinMutex::new(Vec::new()),
            stop: SpinMutex::new(None),
        }
    }

    /// Whether there is a debugger.
    pub fn on(&self) -> bool {
        self.on.load(SeqCst)
    }

    /// Takes up or ends debugging. At the end all break points are gone.
    pub(crate) fn set_on(&self, on: bool) {
        if !on {
            self.used.store(0, SeqCst);
            self.step.store(0, SeqCst);
            *self.stop.lock() = None;
        }
        self.on.store(on, SeqCst);
    }

    pub(crate) fn held(&self) -> u64 {
        self.held.load(SeqCst)
    }

    pub(crate) fn set_held(&self, held: u64) {
        self.held.store(held, SeqCst);
    }

    /// Whether these processors are all out of the guest.
    pub fn all_out(&self, cpus: usize) -> bool {
        let all = (1 << cpus.min(MOST_CPUS)) - 1;
        self.out.load(SeqCst) & all == all
    }

    pub(crate) fn set_out(&self, cpu: usize, out: bool) -> bool {
        let bit = 1 << (cpu % MOST_CPUS);
        let before = if out { self.out.fetch_or(bit, SeqCst) } else { self.out.fetch_and(!bit, SeqCst) };
        (before & bit != 0) != out
    }

    /// A processor shall take one step when it goes on.
    pub fn set_step(&self, cpu: usize) {
        self.step.fetch_or(1 << (cpu % MOST_CPUS), SeqCst);
    }

    pub(crate) fn steps(&self, cpu: usize) -> bool {
        self.step.load(SeqCst) >> (cpu % MOST_CPUS) & 1 != 0
    }

    pub(crate) fn take_step(&self, cpu: usize) -> bool {
        let bit = 1 << (cpu % MOST_CPUS);
        self.step.fetch_and(!bit, SeqCst) & bit != 0
    }

    /// Sets a break point; answers whether there was a place.
    pub fn add(&self, address: u64) -> bool {
        let used = self.used.load(SeqCst);
        let Some((index, point)) = self.points.iter().enumerate().find(|(index, _)| used >> index & 1 == 0) else {
            return false;
        };
        point.store(address, SeqCst);
        self.used.fetch_or(1 << index, SeqCst);
        true
    }

    /// Takes a break point away; answers whether it was there.
    pub fn remove(&self, address: u64) -> bool {
        let used = self.used.load(SeqCst);
        let mut points = self.points.iter().enumerate();
        let found = points.find(|(index, point)| used >> index & 1 != 0 && point.load(SeqCst) == address);
        found.map(|(index, _)| self.used.fetch_and(!(1 << index), SeqCst)).is_some()
    }

    /// Puts a break point into memory, for linear address `linear` at `gpa`; answers whether it stands there now. All processors are out of
    /// the guest.
    pub(crate) fn plant(&self, linear: u64, gpa: u64, ram: &Ram<'_>) -> bool {
        let mut planted = self.planted.lock();
        if planted.iter().any(|point| point.gpa == gpa) {
            return true;
        }
        let mut byte = [0];
        // ROM takes no write.
        let written = planted.len() < MOST_PLANTED
            && ram.read(gpa, &mut byte).is_ok()
            && ram.write(gpa, &[INT1]).is_ok()
            && holds(ram, gpa);
        if written {
            planted.push(Planted { linear, gpa, byte: byte[0] });
        }
        written
    }

    /// Takes a break point out of memory; answers whether it was there.
    pub(crate) fn uproot(&self, linear: u64, ram: &Ram<'_>) -> bool {
        let mut planted = self.planted.lock();
        let found = planted.iter().position(|point| point.linear == linear);
        found.map(|index| restore(planted.swap_remove(index), ram)).is_some()
    }

    /// Takes all break points out of memory.
    pub(crate) fn uproot_all(&self, ram: &Ram<'_>) {
        self.planted.lock().drain(..).for_each(|point| restore(point, ram));
    }

    /// Whether a break point stands in memory there.
    pub(crate) fn planted(&self, linear: u64) -> bool {
        self.planted.lock().iter().any(|point| point.linear == linear)
    }

    /// What a debugger reads at `gpa` is what the guest put there.
    pub(crate) fn show(&self, gpa: u64, bytes: &mut [u8]) {
        self.covered(gpa, bytes, |point, byte| *byte = point.byte);
    }

    /// What a debugger writes at `gpa` goes under the break points.
    pub(crate) fn cover(&self, gpa: u64, bytes: &mut [u8]) {
        self.covered(gpa, bytes, |point, byte| point.byte = core::mem::replace(byte, INT1));
    }

    fn covered(&self, gpa: u64, bytes: &mut [u8], mut with: impl FnMut(&mut Planted, &mut u8)) {
        for point in self.planted.lock().iter_mut() {
            let at = point.gpa.checked_sub(gpa).and_then(|at| usize::try_from(at).ok());
            if let Some(byte) = at.and_then(|at| bytes.get_mut(at)) {
                with(point, byte);
            }
        }
    }

    /// Whether one of these conditions of DR6 is a break point of the debugger's.
    pub(crate) fn hit(&self, conditions: u64) -> bool {
        conditions & self.used.load(SeqCst) != 0
    }

    /// Writes the break points to a processor's debug registers, and asks for the exits that those in memory take.
    pub(crate) fn arm(&self, page: &StatePage<'_>) {
        let used = self.used.load(SeqCst);
        let mut dr7 = NOTHING;
        for (index, point) in self.points.iter().enumerate() {
            page.set(field::DR.plus(index), point.load(SeqCst));
            // Global, on execution: the condition and length fields are 0.
            dr7 |= (used >> index & 1) << (2 * index + 1);
        }
        page.set(field::DR7, dr7);
        // To a processor without INT1 it is undefined.
        page.set(field::EXCEPTIONS, if self.on() { EXITS_ON_REQUEST } else { 0 });
    }

    /// The debugger changed groups of a processor's page.
    pub(crate) fn load(&self, cpu: usize, groups: u64) {
        if let Some(loaded) = self.loaded.get(cpu) {
            loaded.fetch_or(groups, SeqCst);
        }
    }

    pub(crate) fn take_loaded(&self, cpu: usize) -> u64 {
        self.loaded.get(cpu).map_or(0, |loaded| loaded.swap(0, SeqCst))
    }

    /// The guest stops here; the first one counts.
    pub(crate) fn stop(&self, cpu: usize, why: Why) {
        self.stop.lock().get_or_insert((cpu, why));
    }

    /// Where it stopped, once.
    pub(crate) fn take_stop(&self) -> Option<(usize, Why)> {
        self.stop.lock().take()
    }
}

/// Whether INT1 stands there.
fn holds(ram: &Ram<'_>, gpa: u64) -> bool {
    let mut byte = [0];
    ram.read(gpa, &mut byte).is_ok() && byte[0] == INT1
}

/// The guest's own byte, unless it was overwritten meanwhile.
fn restore(point: Planted, ram: &Ram<'_>) {
    if holds(ram, point.gpa) {
        let _ = ram.write(point.gpa, &[point.byte]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_four_break_points() {
        let debug = Debug::new();
        assert!((0..4).all(|address| debug.add(address)));
        assert!(!debug.add(9));
        assert!(debug.remove(2) && !debug.remove(2) && debug.add(9));
        assert!(debug.hit(1 << 2) && !debug.hit(BS));
    }

    #[test]
    fn what_stands_in_memory_is_neither_seen_nor_overwritten_by_the_debugger() {
        let words: Vec<AtomicU64> = (0..512).map(|_| AtomicU64::new(0x1111_1111_1111_1111)).collect();
        let (debug, ram) = (Debug::new(), Ram::new(&words, &[]));
        let read = |gpa| {
            let mut byte = [0];
            ram.read(gpa, &mut byte).map(|()| byte[0])
        };
        assert!(debug.plant(0x4000_0102, 0x102, &ram) && debug.plant(0x4000_0102, 0x102, &ram));
        assert!(!debug.plant(0x9000, 0x9000, &ram));
        assert_eq!(read(0x102), Ok(INT1));
        assert!(debug.planted(0x4000_0102) && !debug.planted(0x102));
        let mut bytes = [0; 4];
        assert!(ram.read(0x100, &mut bytes).is_ok());
        debug.show(0x100, &mut bytes);
        assert_eq!(bytes, [0x11; 4]);
        let mut bytes = [0x22; 4];
        debug.cover(0x100, &mut bytes);
        assert_eq!(bytes, [0x22, 0x22, INT1, 0x22]);
        assert!(debug.uproot(0x4000_0102, &ram) && !debug.uproot(0x4000_0102, &ram));
        assert_eq!(read(0x102), Ok(0x22));
        // A guest that loads something else there keeps it.
        assert!(debug.plant(0x105, 0x105, &ram));
        assert!(ram.write(0x105, &[7]).is_ok());
        debug.uproot_all(&ram);
        assert_eq!((read(0x105), debug.planted(0x105)), (Ok(7), false));
    }
}
