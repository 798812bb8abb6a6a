//! What goes into the guest next: events chosen, armed, held back, and the devices' work that brings them.

use super::{Ending, Next, Shadow, Vm};
use crate::event::{Both, Event, combine};
use crate::state::field;
use core::sync::atomic::Ordering::Relaxed;
use moira_abi::vcpu::{event, group, interruptibility, request};
use vmm_devices::board::Board;
use vmm_devices::fabric::Interrupt;
use vmm_devices::lapic::CpuEvent;
use vmm_machine::boot::InitialState;

pub(super) const IF: u64 = 1 << 9;
pub(super) const RF: u64 = 1 << 16;

impl Vm<'_> {
    /// An event whose delivery the exit interrupted goes in again; answers whether there is one.
    #[inline(always)]
    pub(super) fn take_delivering(&mut self) -> bool {
        let delivering = Event::from_page(self.page.get(field::DELIVERING));
        if delivering.is_none() {
            return false;
        }
        self.event = delivering;
        self.attention = true;
        true
    }

    /// After an exit that was none of the guest's doing, the kernel still holds what it did not get to inject.
    pub(super) fn take_armed(&mut self) {
        let armed = Event::from_page(self.page.get(field::INJECT));
        if self.groups & group::INJECT == 0 || armed.is_none() {
            return;
        }
        self.event = armed;
        if armed.is_nmi() {
            // The kernel counts it as delivered; it has to be let in once more.
            let blocked = self.page.get(field::INTERRUPTIBILITY);
            self.page.set(field::INTERRUPTIBILITY, blocked & !interruptibility::NMI_BLOCKED);
            self.changed |= group::INTERRUPTIBILITY;
        }
    }

    pub(super) fn window(&mut self, request: u64) {
        self.no_exit_of_the_guest();
        self.requested &= !request;
        self.shadow = Shadow::Page;
        self.attention = true;
    }

    /// Lets the guest execute its instruction again without asking for a window for what waits.
    #[cold]
    pub(crate) fn hold_back(&mut self) -> Next {
        self.page.set(field::INJECT, 0);
        self.page.set(field::REQUEST, 0);
        self.changed |= group::INJECT;
        self.requested = 0;
        self.held_back = true;
        Next::Again
    }

    /// Lets devices work and finds out what to inject.
    #[inline(never)]
    pub(super) fn attend(&mut self, now: u64) {
        self.seat.take_news();
        self.attention = false;
        let ticks = self.until != 0 && now >= self.until;
        let mut board = self.board();
        if ticks {
            board.tick(self.ns(now), &self.ram);
        }
        while let Some(event) = board.take_event(self.index) {
            self.take_event(event);
        }
        self.latch_nmis(&mut board);
        self.choose_event(&mut board);
        // This processor has just looked.
        board.forget_kick(self.index);
        drop(board);
        let deadline = self.seat.deadline.load(Relaxed);
        if ticks || deadline != self.deadline {
            self.set_deadline(deadline);
        }
        if ticks && self.until != 0 {
            // Whatever period the guest gave a timer, it is left some time of its own.
            self.until = self.until.max(now.saturating_add(self.least_run));
        }
    }

    /// INIT or a start-up message.
    #[cold]
    fn take_event(&mut self, event: CpuEvent) {
        match event {
            // The boot processor would start at the reset vector, as after a reset of the machine.
            CpuEvent::Init if self.index == 0 => self.machine.end(Ending::Reset, self.index),
            CpuEvent::Init => self.parked = true,
            CpuEvent::Startup(vector) => {
                self.start(&InitialState::startup(vector, self.signature()));
            }
        }
    }

    /// Injects an NMI at the next entry. Until its handler is over, exits tell.
    pub(crate) fn inject_nmi(&mut self) {
        self.event = Event::nmi();
        self.least |= group::INTERRUPTIBILITY;
        self.wanted |= self.least;
    }

    /// While a handler of an NMI runs, the processor latches one more, and no others.
    fn latch_nmis(&mut self, board: &mut Board) {
        let fresh =
            self.groups & group::INTERRUPTIBILITY != 0 && self.event.is_none() && self.changed & group::INJECT == 0;
        if self.least & group::INTERRUPTIBILITY == 0 || !fresh {
            return;
        }
        if self.page.get(field::INTERRUPTIBILITY) & interruptibility::NMI_BLOCKED != 0 {
            if let Some(apic) = board.lapic(self.index) {
                apic.latch_nmis();
            }
        } else if self.least != group::ALL {
            self.least &= !group::INTERRUPTIBILITY;
        }
    }

    /// Whether a maskable interrupt can be delivered at the next entry.
    fn interruptible(&self) -> bool {
        let shadowed = match self.shadow {
            Shadow::None => false,
            Shadow::Page => {
                self.page.get(field::INTERRUPTIBILITY) & (interruptibility::STI | interruptibility::MOV_SS) != 0
            }
            Shadow::Unknown => true,
        };
        self.page.get(field::RFLAGS) & IF != 0 && !shadowed
    }

    /// What waits and cannot go in now asks for a window.
    fn choose_event(&mut self, board: &mut Board) {
        if self.changed & group::INJECT != 0 && self.event.is_none() {
            // News came after an event was chosen and before the entry: it is in service already, and must not be dropped.
            self.event = Event::from_page(self.page.get(field::INJECT));
        }
        if self.event.is_none() && !self.later.is_none() {
            let is_interrupt = self.later.0 & event::TYPE == event::INTERRUPT;
            if !is_interrupt || self.interruptible() {
                self.event = core::mem::take(&mut self.later);
            }
        }
        if self.event.is_none() && self.interruptible() {
            self.event = board.accept(self.index).map_or(Event::NONE, Event::interrupt);
        }
        let mut request = 0;
        if board.maskable_pending(self.index) || !self.later.is_none() {
            request |= request::INTERRUPT_WINDOW;
        }
        if board.pending(self.index) == Some(Interrupt::Nmi) {
            request |= request::NMI_WINDOW;
        }
        if !self.event.is_none() || request != self.requested {
            self.page.set(field::INJECT, self.event.0);
            self.page.set(field::INJECT_LENGTH, 0);
            self.page.set(field::REQUEST, request);
            self.changed |= group::INJECT;
            self.requested = request;
            self.event = Event::NONE;
        }
    }

    /// Injects an exception at the next entry.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, code: Option<u32>) -> Next {
        self.wanted = self.least;
        // What a fault pushes says that its instruction begins anew (SDM 18.3.1.1); #DB, #BP, #OF, #DF and #MC are none, or not always.
        if !matches!(vector, 1 | 3 | 4 | 8 | 18) {
            self.page.set(field::RFLAGS, self.page.get(field::RFLAGS) | RF);
            self.changed |= group::RIP;
        }
        match combine(self.event, Event::exception(vector, code)) {
            Both::First(first, later) => {
                self.event = first;
                if !later.is_none() {
                    self.later = later;
                }
                self.attention = true;
                Next::Enter
            }
            Both::TripleFault => self.end(Ending::TripleFault),
        }
    }
}
