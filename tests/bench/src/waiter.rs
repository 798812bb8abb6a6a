//! A task that owns the current window and waits: how long from the cause until it runs.

use crate::SAMPLES;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use moira_rt::{Env, mapped::Shared};
use moira_sys::{Deadline, Interrupt, Notification};

/// Words of the region `marks`.
pub mod word {
    /// TSC just before the signal.
    pub const MARK: usize = 0;
    /// What is measured: see the constants of `phase`.
    pub const PHASE: usize = 1;
    /// Samples taken in this phase.
    pub const COUNT: usize = 2;
    /// The samples.
    pub const FIRST: usize = 16;
}

/// What is measured.
pub mod phase {
    /// Nothing.
    pub const NONE: u64 = 0;
    /// Signals.
    pub const SIGNAL: u64 = 1;
    /// Interrupts of a timer, the CPU idle.
    pub const INTERRUPT: u64 = 2;
}

/// Longer than this, the waiter's window was not the current one: no sample.
const LONGEST: u64 = 20_000;

/// HPET registers (IA-PC HPET 1.0a, 2.3), as indices of 64-bit words.
mod hpet {
    pub const CAPABILITIES: usize = 0;
    pub const CONFIGURATION: usize = 2;
    pub const COUNTER: usize = 0xf0 / 8;
    pub const TIMER0: usize = 0x100 / 8;
    pub const COMPARATOR0: usize = 0x108 / 8;
}

/// Waits, until the last figure is taken.
pub fn run(env: Env) {
    let Some(marks) = env.shared("marks") else {
        log::error!("bench waiter: no region");
        return;
    };
    let words = marks.words64();
    let own = env.notification();
    loop {
        match words[word::PHASE].load(SeqCst) {
            phase::SIGNAL => signalled(own, words),
            phase::INTERRUPT => return interrupted(&env, own, words),
            _ => {
                let _ = own.wait(Deadline::NEVER);
            }
        }
    }
}

fn record(words: &[AtomicU64], ticks: u64) {
    let count = words[word::COUNT].load(SeqCst);
    if ticks < LONGEST && (count as usize) < SAMPLES {
        words[word::FIRST + count as usize].store(ticks, SeqCst);
        words[word::COUNT].store(count + 1, SeqCst);
    }
}

fn signalled(own: Notification, words: &[AtomicU64]) {
    let bits = own.wait(Deadline::NEVER);
    let now = moira_sys::now();
    if bits.is_ok() && words[word::PHASE].load(SeqCst) == phase::SIGNAL {
        record(words, now.saturating_sub(words[word::MARK].load(SeqCst)));
    }
}

/// A comparator of the HPET is set a little ahead; its interrupt is bound to this task's notification.
fn interrupted(env: &Env, own: Notification, words: &[AtomicU64]) {
    let done = env.capability::<Interrupt>("timer").zip(env.shared("hpet")).map(|(line, registers)| {
        timer_rounds(env, line, registers, own, words);
    });
    if done.is_none() {
        log::error!("bench waiter: no timer");
    }
    words[word::PHASE].store(phase::NONE, SeqCst);
    if let Some(bench) = env.capability::<Notification>("bench-signal") {
        let _ = bench.signal();
    }
}

fn timer_rounds(env: &Env, line: Interrupt, registers: Shared, own: Notification, words: &[AtomicU64]) {
    let hpet = registers.words64();
    let period = hpet[hpet::CAPABILITIES].load(SeqCst) >> 32;
    // Femtoseconds per count to TSC ticks per count, in 1/1000.
    let ratio = (u128::from(period) * u128::from(env.info.tsc_hz) / 1_000_000_000_000) as u64;
    let gsi = env.argument("gsi").and_then(|text| text.parse::<u64>().ok()).unwrap_or(20);
    hpet[hpet::CONFIGURATION].store(1, SeqCst);
    // Edge-triggered, interrupt enabled, this line.
    hpet[hpet::TIMER0].store(gsi << 9 | 1 << 2, SeqCst);
    let mut tries = 0;
    while (words[word::COUNT].load(SeqCst) as usize) < SAMPLES && tries < 20 * SAMPLES {
        tries += 1;
        // What came before (a late interrupt, the signal that began this) is not to end the wait.
        let _ = own.poll();
        let _ = line.ack();
        let begin = hpet[hpet::COUNTER].load(SeqCst);
        let tsc = moira_sys::now();
        let ahead = 20_000 * 1000 / ratio.max(1);
        hpet[hpet::COMPARATOR0].store(begin + ahead, SeqCst);
        // A comparator that was passed before it was set does not fire.
        let bits = own.wait(Deadline(tsc + 100 * ahead * ratio / 1000));
        let now = moira_sys::now();
        // An end before the comparator's time had another cause.
        if bits.is_ok()
            && let Some(ticks) = now.checked_sub(tsc + ahead * ratio / 1000)
        {
            record(words, ticks);
        }
        let _ = line.ack();
    }
    hpet[hpet::TIMER0].store(0, SeqCst);
}

/// The same measured by a thread that has no window: its scheduler has to hear of the interrupt and dispatch it.
pub fn slack(env: &Env, report: &mut crate::Report) {
    let parts = env.shared("marks").zip(env.capability::<Interrupt>("timer")).zip(env.shared("hpet"));
    let Some(((marks, line), registers)) = parts else {
        log::error!("bench slack: no timer");
        return;
    };
    timer_rounds(env, line, registers, env.notification(), marks.words64());
    report.samples("interrupt.to_slack", collect(marks.words64()));
}

/// The client's side: lets the waiter be woken a thousand times, then reports what it saw.
pub fn measure(env: &mut Env, report: &mut crate::Report) {
    let Some((marks, waiter)) = env.shared("marks").zip(env.capability::<Notification>("bench-waiter-signal")) else {
        log::error!("bench: no waiter");
        return;
    };
    let words = marks.words64();
    words[word::COUNT].store(0, SeqCst);
    words[word::PHASE].store(phase::SIGNAL, SeqCst);
    let mut rounds = 0u64;
    while (words[word::COUNT].load(SeqCst) as usize) < SAMPLES && rounds < 100_000_000 {
        words[word::MARK].store(moira_sys::now(), SeqCst);
        let _ = waiter.signal();
        rounds += 1;
    }
    report.samples("notification.wake", collect(words));
    words[word::COUNT].store(0, SeqCst);
    words[word::PHASE].store(phase::INTERRUPT, SeqCst);
    let _ = waiter.signal();
    // Idle until the waiter is done.
    let second = Deadline::after(env.ticks(60_000_000_000));
    let _ = env.notification().wait(second);
    report.samples("interrupt.to_user", collect(words));
}

fn collect(words: &[AtomicU64]) -> Vec<u64> {
    let count = (words[word::COUNT].load(SeqCst) as usize).min(SAMPLES);
    words[word::FIRST..word::FIRST + count].iter().map(|word| word.load(SeqCst)).collect()
}
