//! Out of the guest: halted, held or parked, and what the outside wants meanwhile.

use super::events::IF;
use super::{Ending, Processor, Vm};
use crate::machine::NEVER;
use crate::state::field;
use core::sync::atomic::Ordering::Relaxed;
use moira_abi::vcpu::{event, group, request};

impl Vm<'_> {
    /// The guest executed HLT: sleeps until it can go on.
    #[inline(never)]
    pub(super) fn halt(&mut self, cpu: &mut impl Processor) -> Option<Ending> {
        let starts = self.starts;
        let mut look = false;
        loop {
            // Usually nothing came since the last look: then the first one is spared.
            if look || self.attention || core::mem::take(&mut self.held_back) || self.seat.news.load(Relaxed) {
                self.attend(cpu.now());
            }
            look = true;
            if self.machine.looks() != self.looked {
                self.show(cpu);
            }
            if self.parked || self.machine.stands() {
                let parked = self.parked;
                let ending = self.stay_out(cpu);
                if parked || ending.is_some() {
                    return ending;
                }
                // It was only held, or another one still is: this one waits for its interrupt.
            }
            if self.starts != starts {
                return None;
            }
            let interrupts = self.page.get(field::RFLAGS) & IF != 0;
            let wakes = self.changed & group::INJECT != 0 && self.page.get(field::INJECT) & event::VALID != 0
                || self.requested & request::NMI_WINDOW != 0
                || interrupts && self.requested != 0;
            if wakes {
                return None;
            }
            if let Some(ending) = self.sleep(cpu) {
                return Some(ending);
            }
        }
    }

    /// Sleeps while the processor waits for a start-up message, or is held. Answers if the machine ends.
    #[cold]
    pub(super) fn stay_out(&mut self, cpu: &mut impl Processor) -> Option<Ending> {
        loop {
            if let Some((ending, _)) = self.machine.ending() {
                self.machine.debug_out(self.index, false);
                return Some(ending);
            }
            self.show(cpu);
            if self.machine.holds(self.index) && self.machine.debug().take_step(self.index) {
                // Another one stopped first.
                self.set_trap(false);
            }
            self.machine.debug_out(self.index, true);
            if self.index == 0 {
                cpu.debug();
            }
            if !self.parked && !self.machine.holds(self.index) {
                self.machine.debug_out(self.index, false);
                self.arm();
                return None;
            }
            if let Some(ending) = self.sleep(cpu) {
                return Some(ending);
            }
            self.attend(cpu.now());
        }
    }

    /// Sleeps until there may be something to do, and does what the outside wants.
    pub(super) fn sleep(&mut self, cpu: &mut impl Processor) -> Option<Ending> {
        let deadline = self.seat.deadline.load(Relaxed);
        if deadline != self.deadline {
            self.set_deadline(deadline);
        }
        let bits = self.seat.while_asleep(|| cpu.sleep(self.until));
        if bits == 0 { None } else { self.news(cpu, bits) }
    }

    #[inline(never)]
    pub(super) fn set_deadline(&mut self, deadline: u64) {
        self.deadline = deadline;
        self.until = if deadline == NEVER { 0 } else { self.clock.tsc_at(deadline).max(1) };
    }

    /// Follows the bits of the notification.
    pub(super) fn news(&mut self, cpu: &mut impl Processor, bits: u64) -> Option<Ending> {
        if bits == 0 {
            return None;
        }
        let mut board = self.board();
        let orders = cpu.orders(bits);
        if orders.kill {
            return Some(Ending::Killed);
        }
        if orders.power_button {
            board.press_power_button();
        }
        if orders.nmi {
            board.press_nmi_button();
        }
        if orders.poll {
            board.poll(self.ns(cpu.now()), &self.ram);
        }
        drop(board);
        if orders.reset {
            return Some(Ending::Reset);
        }
        if let Some(hold) = orders.hold {
            self.machine.hold(hold, self.index);
        }
        if orders.look {
            self.machine.look(self.index);
        }
        self.attention = true;
        None
    }

    /// Tells of the exits if somebody has asked since.
    #[cold]
    pub(super) fn show(&mut self, cpu: &mut impl Processor) {
        let looks = self.machine.looks();
        if looks != self.looked {
            self.looked = looks;
            cpu.tell(self.index, &self.seat.history);
        }
    }
}
