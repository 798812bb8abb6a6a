//! What a debugger and the processors' threads share: who is held, where the guest stops, who takes a single step.
//!
//! Break points are debug registers, so that the guest's memory is not changed and all of its processors have them; there are four. While
//! a debugger is there, the registers are its own: what the guest writes to them has no effect.

use crate::machine::MOST_CPUS;
use crate::state::{StatePage, field};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use spin::mutex::SpinMutex;

/// Break points.
pub const POINTS: usize = 4;
/// RFLAGS.TF: a trap after the next instruction.
pub(crate) const TF: u64 = 1 << 8;
/// DR6.BS: it was a single step.
pub(crate) const BS: u64 = 1 << 14;
/// DR7 without break points: its bit 10 is always set (SDM 17.2.4).
const NOTHING: u64 = 1 << 10;

/// Why the guest stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// A single step was taken.
    Step,
    /// A break point was reached.
    Break,
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

    /// Whether one of these conditions of DR6 is a break point of the debugger's.
    pub(crate) fn hit(&self, conditions: u64) -> bool {
        conditions & self.used.load(SeqCst) != 0
    }

    /// Writes the break points to a processor's debug registers.
    pub(crate) fn arm(&self, page: &StatePage<'_>) {
        let used = self.used.load(SeqCst);
        let mut dr7 = NOTHING;
        for (index, point) in self.points.iter().enumerate() {
            page.set(field::DR.plus(index), point.load(SeqCst));
            // Global, on execution: the condition and length fields are 0.
            dr7 |= (used >> index & 1) << (2 * index + 1);
        }
        page.set(field::DR7, dr7);
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
}
