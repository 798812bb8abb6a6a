//! The timer of a local APIC: one-shot, periodic, and by TSC deadline (SDM 3A, 11.5.4).

use super::{Lapic, Lvt};
use crate::time::Rate;

/// A guest that sets a shorter period than it can live with still gets some time to run.
const MIN_PERIOD_NS: u64 = 10_000;

/// Frequencies that a local APIC knows.
#[derive(Clone, Copy, Debug)]
pub struct ApicClocks {
    /// The timer's input, before the divider.
    pub timer: Rate,
    /// The guest's TSC, which is 0 at `now` = 0.
    pub tsc: Rate,
}

impl Lapic {
    pub(super) fn timer_mode(&self) -> u32 {
        self.lvt[0] >> 17 & 3
    }

    /// Ticks of the timer's input for `count` counts.
    fn input_ticks(&self, count: u32) -> u64 {
        // Bits 3, 1, 0: 0 is 2, …, 6 is 128, 7 is 1.
        let code = ((self.divide & 3 | self.divide >> 1 & 4) + 1) & 7;
        u64::from(count) << code
    }

    pub(super) fn arm(&mut self, now: u64, clocks: &ApicClocks) {
        self.deadline = match self.timer_mode() {
            0 | 1 if self.initial != 0 => {
                self.started = now;
                let ns = clocks.timer.ns_at(self.input_ticks(self.initial));
                Some(now.saturating_add(if self.timer_mode() == 1 { ns.max(MIN_PERIOD_NS) } else { ns }))
            }
            2 if self.tsc_deadline != 0 => {
                // The guest's TSC and its deadline are compared as they are, without a sign, wherever the guest has set them.
                let tick = clocks.tsc.ticks(now);
                let left = self.tsc_deadline.saturating_sub(tick.wrapping_add(self.tsc_offset));
                Some(if left == 0 { now } else { clocks.tsc.ns_at(tick.saturating_add(left)) })
            }
            _ => None,
        };
    }

    pub(super) fn current_count(&self, now: u64, clocks: &ApicClocks) -> u32 {
        if self.timer_mode() > 1 || self.deadline.is_none() {
            return 0;
        }
        let total = self.input_ticks(self.initial);
        let mut passed = clocks.timer.ticks(now.saturating_sub(self.started));
        if self.timer_mode() == 1 && total != 0 {
            passed %= total;
        }
        let shift = self.input_ticks(1).trailing_zeros();
        (total.saturating_sub(passed) >> shift) as u32
    }

    /// When the timer fires next.
    #[must_use]
    #[inline]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Lets the timer fire if its time has come; says whether it did.
    pub fn poll(&mut self, now: u64, clocks: &ApicClocks) -> bool {
        let Some(at) = self.deadline.filter(|&at| now >= at) else { return false };
        self.deadline = None;
        match self.timer_mode() {
            1 => {
                // Missed periods count as one; the phase is kept.
                let period = clocks.timer.ns(self.input_ticks(self.initial)).max(MIN_PERIOD_NS);
                let late = (now - at) / period;
                self.started = at.saturating_add(late * period);
                self.deadline = Some(self.started.saturating_add(period).max(now + 1));
            }
            2 => self.tsc_deadline = 0,
            _ => {}
        }
        self.assert_lvt(Lvt::Timer);
        true
    }

    /// Reads IA32_TSC_DEADLINE.
    #[must_use]
    pub fn tsc_deadline(&self) -> u64 {
        if self.timer_mode() == 2 { self.tsc_deadline } else { 0 }
    }

    /// Writes IA32_TSC_DEADLINE; ignored unless the timer is in that mode.
    pub fn set_tsc_deadline(&mut self, value: u64, now: u64, clocks: &ApicClocks) {
        if self.timer_mode() == 2 {
            self.tsc_deadline = value;
            self.arm(now, clocks);
        }
    }

    /// The guest has moved its TSC (by IA32_TSC or IA32_TSC_ADJUST): from now on it is `offset` (modulo 2^64) more
    /// than the clock says. An armed deadline moves with it.
    pub fn set_tsc_offset(&mut self, offset: u64, now: u64, clocks: &ApicClocks) {
        self.tsc_offset = offset;
        if self.timer_mode() == 2 {
            self.arm(now, clocks);
        }
    }
}
