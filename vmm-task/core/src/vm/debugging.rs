//! A debugger's stops and steps, as one processor sees them.

use super::Vm;
use crate::debug::{BS, TF, Why};
use crate::state::field;
use moira_abi::vcpu::{group, seg};

impl Vm<'_> {
    /// A debugger has come, and the page does not show all of the processor: enters the guest once more, only to leave it at once.
    #[cold]
    pub(super) fn shows_too_little(&mut self) -> bool {
        let too_little =
            self.machine.debug().on() && self.least != group::ALL && !self.parked && self.machine.ending().is_none();
        if too_little {
            self.least = group::ALL;
            self.wanted = group::ALL;
            self.until = 1;
        }
        too_little
    }

    /// Takes over what a debugger changed while the processor was out.
    pub(super) fn arm(&mut self) {
        let debug = self.machine.debug();
        let on = debug.on();
        if !on && !self.armed {
            return;
        }
        self.changed |= debug.take_loaded(self.index) | group::DEBUG;
        debug.arm(&self.page);
        if debug.steps(self.index) {
            self.set_trap(true);
        }
        self.armed = on;
        self.least = if on { group::ALL } else { 0 };
        self.wanted |= self.least;
    }

    pub(super) fn set_trap(&mut self, on: bool) {
        let flags = self.page.get(field::RFLAGS);
        self.page.set(field::RFLAGS, if on { flags | TF } else { flags & !TF });
        self.changed |= group::RIP;
    }

    /// INT1 (or #UD, where it does not exist): whether it is a debugger's break point.
    #[cold]
    pub(crate) fn planted(&mut self) -> bool {
        const LMA: u64 = 1 << 10;
        let debug = self.machine.debug();
        if !debug.on() {
            return false;
        }
        let code = self.page.segment(seg::CS);
        let wide = self.page.get(field::EFER) & LMA != 0 && code.rights & 1 << 13 != 0;
        let base = if wide { 0 } else { code.base };
        if !debug.planted(base.wrapping_add(self.page.get(field::RIP))) {
            return false;
        }
        // A step that was to be taken is over: the guest stops here.
        if debug.take_step(self.index) {
            self.set_trap(false);
        }
        self.machine.debug_stop(self.index, Why::Planted);
        self.attention = true;
        true
    }

    /// A debug exception with these conditions (DR6): whether it is a debugger's business.
    #[cold]
    pub(crate) fn trapped(&mut self, conditions: u64) -> bool {
        let debug = self.machine.debug();
        if !debug.on() {
            return false;
        }
        let why = if conditions & BS != 0 && debug.take_step(self.index) {
            self.set_trap(false);
            Why::Step
        } else if debug.hit(conditions) {
            Why::Break
        } else {
            return false;
        };
        self.machine.debug_stop(self.index, why);
        self.attention = true;
        true
    }
}
