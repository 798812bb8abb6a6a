//! The hostile VMM: enters its guest with states, masks and events from a seed, again and again.

use super::guest;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_abi::vcpu::{Exit, VcpuState, group};
use moira_lab::{store, stored};
use moira_sys::{Deadline, Frame, GuestSpace, IoPorts, MapFlags, Slot, Space, Vcpu};

/// Slots of its own table.
pub mod slot {
    /// The vCPU.
    pub const VCPU: u32 = 2;
    /// Its guest space, and another one with less in it.
    pub const SPACES: [u32; 2] = [3, 4];
    /// A port of the machine's that takes anything.
    pub const PORTS: u32 = 5;
    /// A page that is mapped for the guest, and not, and again.
    pub const FRAME: u32 = 6;
}

/// Where that page is mapped.
const HERE_AND_THERE: u64 = 0x2_0000;

/// What it shares with its supervisor.
pub struct Shared {
    /// State of the random numbers.
    pub state: AtomicU64,
    /// Entries still to try.
    pub left: AtomicU64,
    /// Tried.
    pub made: AtomicU64,
    /// By exit.
    pub exits: [AtomicU64; 26],
    /// Calls that the kernel answered with an error.
    pub errors: AtomicU64,
    /// Where the state page and the guest's memory are mapped here.
    pub page: AtomicU64,
    /// See `page`.
    pub memory: AtomicU64,
    /// Ticks that a guest may take at most.
    pub patience: AtomicU64,
    /// Whether this is SVM.
    pub svm: AtomicU64,
    /// Whether the victim's share is held to what was promised.
    pub counted: AtomicU64,
    /// Digest of all that the exits said: the same seed gives the same one where time is counted.
    pub digest: AtomicU64,
}

/// Shared.
pub static SHARED: Shared = Shared {
    state: AtomicU64::new(1),
    left: AtomicU64::new(0),
    made: AtomicU64::new(0),
    exits: [const { AtomicU64::new(0) }; 26],
    errors: AtomicU64::new(0),
    page: AtomicU64::new(0),
    memory: AtomicU64::new(0),
    patience: AtomicU64::new(0),
    svm: AtomicU64::new(0),
    counted: AtomicU64::new(0),
    digest: AtomicU64::new(0),
};

/// xorshift64*; the state is kept where a rebuilt attacker finds it.
pub struct Random;

impl Random {
    /// The next number.
    pub fn next(&self) -> u64 {
        let mut x = SHARED.state.load(Relaxed).max(1);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        SHARED.state.store(x, Relaxed);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below the limit.
    pub fn below(&self, limit: u64) -> u64 {
        (self.next() >> 16) % limit.max(1)
    }

    /// True once in so many times.
    pub fn one_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    /// One of these.
    pub fn of(&self, list: &[u64]) -> u64 {
        list.get(self.below(list.len() as u64) as usize).copied().unwrap_or(0)
    }
}

/// Prepares the page for an entry and answers the mask of groups.
fn prepare(random: &Random, page: u64, memory: u64, last: Exit) -> u64 {
    let svm = SHARED.svm.load(Relaxed) != 0;
    let rip = guest::piece(random, memory);
    guest::registers(random, page);
    let mut mask = group::ALL;
    match random.below(10) {
        // A state that is right, or nearly.
        0..5 => {
            guest::good(random, page, rip);
            for _ in 0..random.of(&[0, 0, 0, 1, 1, 2, 4]) {
                guest::mutate(random, page);
            }
        }
        // The guest goes on where it is, or behind the instruction that exited, or somewhere else.
        5..8 if last != Exit::InvalidState => {
            mask = random.of(&[0, group::RIP, group::RIP | group::INTERRUPTIBILITY]);
            let at = page + core::mem::offset_of!(VcpuState, rip) as u64;
            let length = stored(page + core::mem::offset_of!(VcpuState, length) as u64);
            store(at, if random.one_in(2) { rip } else { stored(at).wrapping_add(length) });
            if random.one_in(4) {
                mask |= guest::mutate(random, page);
            }
        }
        // Whatever stands there, with a few changes.
        8 => {
            mask = random.next() & random.next() & group::ALL;
            for _ in 0..random.below(4) {
                mask |= guest::mutate(random, page);
            }
        }
        _ => {
            guest::good(random, page, rip);
            for _ in 0..random.below(40) {
                guest::mutate(random, page);
            }
            mask = random.next();
        }
    }
    if random.one_in(3) {
        guest::inject(random, page);
        mask |= group::INJECT;
    }
    if !svm && SHARED.counted.load(Relaxed) != 0 {
        guest::interruptible(page);
        mask |= group::RIP;
    }
    mask & 0xffff_ffff
}

/// What else a VMM can do to its guest.
fn meddle(random: &Random, vcpu: Vcpu) {
    let space = GuestSpace::new(Slot(slot::SPACES[random.below(2) as usize]));
    let frame = Frame::new(Slot(slot::FRAME));
    let done = match random.below(8) {
        0 | 1 => vcpu.kick(),
        2 => vcpu.set_space(space),
        3 => vcpu.allow_msr(
            random.of(&[0x10, 0x174, 0x277, 0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0102, 0xc000_0103]) as u32,
            random.one_in(2),
            random.one_in(2),
        ),
        4 if random.one_in(16) => vcpu.allow_ports(IoPorts::new(Slot(slot::PORTS))),
        5 => space.map(frame, HERE_AND_THERE, MapFlags::GUEST_ALL),
        6 => space.protect(frame, MapFlags::READ),
        _ => space.unmap(frame),
    };
    if done.is_err() {
        SHARED.errors.fetch_add(1, Relaxed);
    }
}

/// The attacker's thread.
pub extern "C" fn main() -> ! {
    let (random, vcpu) = (Random, Vcpu::new(Slot(slot::VCPU)));
    let (page, memory) = (SHARED.page.load(Relaxed), SHARED.memory.load(Relaxed));
    let (mut last, mut until) = (Exit::InvalidState, 0);
    while SHARED.left.load(Relaxed) > 0 {
        if random.one_in(64) {
            meddle(&random, vcpu);
        }
        let mask = prepare(&random, page, memory, last);
        let wanted = if random.one_in(4) { random.next() & 0x3ff } else { 0 };
        // One deadline for many entries: setting the timer for each would cost more than all the rest.
        if last == Exit::Until || moira_sys::now() >= until {
            until = moira_sys::now() + 1 + random.below(SHARED.patience.load(Relaxed));
        }
        match vcpu.run(mask | wanted << 32, Deadline(until)) {
            Ok(exit) => {
                last = exit.reason;
                if let Some(count) = SHARED.exits.get(exit.reason as usize) {
                    count.fetch_add(1, Relaxed);
                }
                let said = (exit.reason as u64) << 32 ^ exit.groups ^ stored(page);
                let digest = SHARED.digest.load(Relaxed);
                SHARED.digest.store((digest ^ said).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23), Relaxed);
            }
            Err(_) => {
                SHARED.errors.fetch_add(1, Relaxed);
            }
        }
        SHARED.made.fetch_add(1, Relaxed);
        SHARED.left.fetch_sub(1, Relaxed);
    }
    loop {
        core::hint::spin_loop();
    }
}
