//! What the processors of one machine share: devices behind a lock, and how one reaches another.
//!
//! Each processor is run by a thread of its own ([`crate::vm::Vm`]), on the same CPU of the host as others or on another. The
//! devices are behind one lock. A thread that finds it taken tries a bounded number of times and then sleeps until it is woken,
//! so whatever a guest does, nobody spins for long; where the threads share a CPU, the holder runs meanwhile.
//!
//! ```text
//! who brings news for processor n        processor n goes to sleep
//! news = true                            asleep = true
//! fence                                  fence
//! asleep? wake it : make it leave        news? stay awake : sleep
//! ```
//! Either the one who brings news sees that it sleeps, or it sees the news. The lock's waiters are told in the same way.

use crate::clock::TscClock;
use crate::debug::{Debug, Why};
use crate::history::History;
use crate::ram::Ram;
use crate::vm::Ending;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*, fence};
use spin::mutex::{SpinMutex, SpinMutexGuard};
use vmm_devices::board::Board;
use vmm_machine::memory_map::MemoryMap;

/// Most processors of one machine.
pub const MOST_CPUS: usize = 8;
/// How often a taken lock is tried before its thread sleeps.
const PATIENCE: u32 = 64;
/// A deadline that never comes.
pub(crate) const NEVER: u64 = u64::MAX;

/// What the threads of one machine can do to each other; the kernel's side of it. None of these may touch the [`Machine`].
pub trait Threads: Send + Sync {
    /// Ends the sleep of processor `cpu`'s thread, or keeps the next one from lasting.
    fn wake(&self, cpu: usize);
    /// Makes processor `cpu` leave its guest, or come back at once from the next entry.
    fn kick(&self, cpu: usize);
    /// Processor `cpu`'s own thread sleeps until it is woken, or for something else.
    fn wait(&self, cpu: usize);
}

/// For a machine with one processor: there is nobody to reach.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Threads for Alone {
    fn wake(&self, _cpu: usize) {}
    fn kick(&self, _cpu: usize) {}
    fn wait(&self, _cpu: usize) {}
}

/// What others know of one processor, and tell it.
#[derive(Debug)]
pub(crate) struct Seat {
    /// Something may be pending for it.
    pub(crate) news: AtomicBool,
    /// Its thread sleeps, or is about to.
    asleep: AtomicBool,
    /// When it has to look at the devices, in nanoseconds; all ones: never.
    pub(crate) deadline: AtomicU64,
    /// Its thread has come to the end of the machine.
    left: AtomicBool,
    /// Its last exits.
    pub(crate) history: History,
}

impl Seat {
    const fn new() -> Seat {
        Seat {
            news: AtomicBool::new(true),
            asleep: AtomicBool::new(false),
            deadline: AtomicU64::new(NEVER),
            left: AtomicBool::new(false),
            history: History::new(),
        }
    }

    /// Takes the mark away, before looking.
    pub(crate) fn take_news(&self) {
        self.news.swap(false, SeqCst);
    }

    /// `sleep` runs, unless there is something for this processor.
    pub(crate) fn while_asleep(&self, sleep: impl FnOnce() -> u64) -> u64 {
        self.asleep.store(true, SeqCst);
        fence(SeqCst);
        let bits = if self.news.load(SeqCst) { 0 } else { sleep() };
        self.asleep.store(false, SeqCst);
        bits
    }
}

/// What the processors of one machine share.
pub struct Machine<'a> {
    pub(crate) ram: Ram<'a>,
    pub(crate) map: MemoryMap,
    pub(crate) clock: TscClock,
    board: SpinMutex<Board>,
    /// Processors whose threads wait for the board, as bits.
    waiters: AtomicU64,
    seats: [Seat; MOST_CPUS],
    cpus: usize,
    /// When the devices but for the local APICs want to be looked at, in nanoseconds, and whose thread does that. Both are
    /// written by whoever holds the board.
    devices_deadline: AtomicU64,
    on_duty: AtomicUsize,
    threads: &'a dyn Threads,
    /// How the machine ended, and which processor ended it.
    ending: SpinMutex<Option<(Ending, usize)>>,
    /// There is an ending.
    over: AtomicBool,
    /// Its processors stay out of the guest: there is an ending, or somebody ordered it ([`Machine::hold`]).
    stands: AtomicBool,
    /// Somebody ordered it to stand still.
    held: AtomicBool,
    /// How often somebody wanted to know of the exits.
    looks: AtomicU64,
    debug: Debug,
    /// What the processor that ended it has to say.
    report: SpinMutex<Vec<String>>,
}

impl<'a> Machine<'a> {
    /// A machine of these parts with so many processors ([`MOST_CPUS`] at most).
    #[must_use]
    pub fn new(
        ram: Ram<'a>,
        map: MemoryMap,
        board: Board,
        tsc_hz: u64,
        cpus: usize,
        threads: &'a dyn Threads,
    ) -> Machine<'a> {
        Machine {
            ram,
            map,
            clock: TscClock::new(tsc_hz),
            board: SpinMutex::new(board),
            waiters: AtomicU64::new(0),
            seats: [const { Seat::new() }; MOST_CPUS],
            cpus: cpus.clamp(1, MOST_CPUS),
            devices_deadline: AtomicU64::new(NEVER),
            on_duty: AtomicUsize::new(0),
            threads,
            ending: SpinMutex::new(None),
            over: AtomicBool::new(false),
            stands: AtomicBool::new(false),
            held: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            debug: Debug::new(),
            report: SpinMutex::new(Vec::new()),
        }
    }

    /// How many processors it has.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.cpus
    }

    fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter().take(self.cpus)
    }

    /// The last exits of processor `cpu`.
    #[must_use]
    pub fn history(&self, cpu: usize) -> &History {
        &self.seat(cpu).history
    }

    pub(crate) fn seat(&self, cpu: usize) -> &Seat {
        &self.seats[cpu % MOST_CPUS]
    }

    /// The devices, for the thread of processor `cpu`. When the answer is dropped, others hear of what they have to know.
    #[inline(always)]
    pub fn board(&self, cpu: usize) -> Devices<'_> {
        let guard = match self.board.try_lock() {
            Some(guard) => guard,
            None => self.wait_for_board(cpu),
        };
        Devices { guard, after: After { machine: self, me: cpu, to_tell: 0 } }
    }

    #[cold]
    fn wait_for_board(&self, cpu: usize) -> SpinMutexGuard<'_, Board> {
        loop {
            for _ in 0..PATIENCE {
                core::hint::spin_loop();
                if let Some(guard) = self.board.try_lock() {
                    return guard;
                }
            }
            self.waiters.fetch_or(1 << (cpu % MOST_CPUS), SeqCst);
            // Whoever holds it now and lets go sees the bit.
            if let Some(guard) = self.board.try_lock() {
                return guard;
            }
            self.threads.wait(cpu);
        }
    }

    #[cold]
    fn wake_waiters(&self, me: usize) {
        let waiters = self.waiters.swap(0, SeqCst);
        for cpu in (0..self.cpus).filter(|&cpu| cpu != me && waiters >> cpu & 1 != 0) {
            self.threads.wake(cpu);
        }
    }

    /// Says what changed on the board; answers the processors that have to hear of it, as bits.
    #[inline(never)]
    fn publish(&self, board: &mut Board, me: usize) -> u64 {
        let mut to_tell = board.take_kicks();
        if board.take_deadlines_changed() {
            // Whoever moved the devices' deadline keeps it: nobody else has to be told.
            let devices = board.device_deadline().unwrap_or(NEVER);
            if devices != self.devices_deadline.load(Relaxed) {
                self.devices_deadline.store(devices, Relaxed);
                self.on_duty.store(me, Relaxed);
            }
            let on_duty = self.on_duty.load(Relaxed);
            for (cpu, seat) in self.seats().enumerate() {
                let own = board.apic_deadline(cpu).unwrap_or(NEVER);
                let deadline = if cpu == on_duty { own.min(devices) } else { own };
                if deadline < seat.deadline.load(Relaxed) && cpu != me {
                    to_tell |= 1 << cpu;
                }
                seat.deadline.store(deadline, Relaxed);
            }
        }
        to_tell
    }

    /// Tells processors that there is something for them. `me` tells itself by the mark alone.
    pub(crate) fn tell(&self, cpus: u64, me: usize) {
        let mut left = cpus & ((1 << self.cpus) - 1);
        while left != 0 {
            let cpu = left.trailing_zeros() as usize;
            left &= left - 1;
            let seat = self.seat(cpu);
            seat.news.store(true, SeqCst);
            fence(SeqCst);
            if cpu == me {
                continue;
            }
            if seat.asleep.load(SeqCst) {
                self.threads.wake(cpu);
            } else {
                self.threads.kick(cpu);
            }
        }
    }

    /// Ends the machine for all its processors; the first ending counts.
    pub fn end(&self, ending: Ending, me: usize) {
        {
            let mut place = self.ending.lock();
            if place.is_some() {
                return;
            }
            *place = Some((ending, me));
        }
        self.over.store(true, SeqCst);
        self.stands.store(true, SeqCst);
        self.tell(!0, me);
    }

    /// Makes all processors stay out of the guest, or lets them go on.
    pub fn hold(&self, held: bool, me: usize) {
        self.held.store(held, SeqCst);
        self.settle(me);
    }

    /// Says whether anybody has to stay out, and lets all look.
    fn settle(&self, me: usize) {
        let held = self.held.load(SeqCst) || self.debug.held() != 0;
        self.stands.store(held || self.over.load(SeqCst), SeqCst);
        self.tell(!0, me);
    }

    /// Whether processor `cpu` has to stay out of the guest although the machine has not ended.
    pub(crate) fn holds(&self, cpu: usize) -> bool {
        self.held.load(SeqCst) || self.debug.held() >> (cpu % MOST_CPUS) & 1 != 0
    }

    /// What a debugger and the processors share.
    pub fn debug(&self) -> &Debug {
        &self.debug
    }

    /// A debugger comes, and the guest stands still, or it goes, and the guest goes on.
    pub fn attach(&self, on: bool, me: usize) {
        if !on {
            self.debug.uproot_all(&self.ram);
        }
        self.debug.set_on(on);
        self.debug_hold(if on { !0 } else { 0 }, me);
    }

    /// The debugger keeps these processors (bits) out of the guest, and lets the others go on.
    pub fn debug_hold(&self, cpus: u64, me: usize) {
        self.debug.set_held(cpus);
        self.settle(me);
    }

    /// Processor `me` has reached what the debugger waits for: all stop.
    pub(crate) fn debug_stop(&self, me: usize, why: Why) {
        self.debug.stop(me, why);
        self.debug_hold(!0, me);
    }

    /// Processor `me` is out of the guest, or goes back. The first one's thread, which serves the debugger, hears of it.
    pub(crate) fn debug_out(&self, me: usize, out: bool) {
        if self.debug.set_out(me, out) && out && me != 0 {
            self.tell(1, me);
        }
    }

    /// All processors shall tell of their exits.
    pub fn look(&self, me: usize) {
        self.looks.fetch_add(1, SeqCst);
        self.tell(!0, me);
    }

    /// How often somebody wanted to know of the exits.
    #[inline(always)]
    pub(crate) fn looks(&self) -> u64 {
        self.looks.load(Relaxed)
    }

    /// Whether its processors stay out of the guest.
    #[inline(always)]
    pub(crate) fn stands(&self) -> bool {
        self.stands.load(Relaxed)
    }

    /// How it ended, once it has.
    #[must_use]
    pub fn ending(&self) -> Option<(Ending, usize)> {
        if self.over.load(SeqCst) { *self.ending.lock() } else { None }
    }

    /// Adds a line to what the processor that ended it has to say.
    pub fn report_line(&self, line: String) {
        const MOST: usize = 96;
        let mut report = self.report.lock();
        if report.len() < MOST {
            report.push(line);
        }
    }

    /// Takes the lines.
    pub fn take_report(&self) -> Vec<String> {
        core::mem::take(&mut self.report.lock())
    }

    /// Processor `cpu`'s thread runs no more guest until the machine is started again.
    pub fn leave(&self, cpu: usize) {
        self.seat(cpu).left.store(true, SeqCst);
        self.tell(1, cpu);
    }

    /// Whether all processors but the first have left.
    #[must_use]
    pub fn all_left(&self) -> bool {
        self.seats().skip(1).all(|seat| seat.left.load(SeqCst))
    }

    /// Everything as before the first start, when all have left. The first processor's thread does this.
    pub fn begin_again(&self) {
        self.board(0).reset();
        for seat in &self.seats {
            seat.left.store(false, SeqCst);
        }
        self.go_on();
    }

    /// Forgets how it ended.
    pub fn go_on(&self) {
        self.report.lock().clear();
        *self.ending.lock() = None;
        for seat in &self.seats {
            seat.news.store(true, SeqCst);
        }
        self.held.store(false, SeqCst);
        self.over.store(false, SeqCst);
        self.stands.store(self.debug.held() != 0, SeqCst);
        for cpu in 1..self.cpus {
            self.threads.wake(cpu);
        }
    }
}

/// The devices of a machine, held by one thread.
pub struct Devices<'m> {
    // Dropped in this order: first the lock is let go, then others are told.
    guard: SpinMutexGuard<'m, Board>,
    after: After<'m>,
}

/// What has to be done when the lock is free again.
struct After<'m> {
    machine: &'m Machine<'m>,
    me: usize,
    to_tell: u64,
}

impl Drop for Devices<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        if self.guard.has_news() {
            self.after.to_tell = match self.guard.may_have_moved_deadlines() {
                true => self.after.machine.publish(&mut self.guard, self.after.me),
                false => self.guard.take_kicks(),
            };
        }
    }
}

impl Drop for After<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        fence(SeqCst);
        if self.machine.waiters.load(Relaxed) != 0 {
            self.machine.wake_waiters(self.me);
        }
        if self.to_tell != 0 {
            self.machine.tell(self.to_tell, self.me);
        }
    }
}

impl Deref for Devices<'_> {
    type Target = Board;
    #[inline(always)]
    fn deref(&self) -> &Board {
        &self.guard
    }
}

impl DerefMut for Devices<'_> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Board {
        &mut self.guard
    }
}

#[cfg(test)]
mod tests;
