//! The kernel behind the run loop's trait.

use crate::control::Control;
use alloc::rc::Rc;
use core::cell::Cell;
use moira_rt::sys::{self, Deadline, Error, Event, Notification, Vcpu};
use vmm_core::history::History;
use vmm_core::vm::{Orders, Processor};

/// Bit of this task's notification by which the console tells of input. The manifest counts its bits from 0.
pub const INPUT: u64 = 1 << 63;
/// Never signalled by anybody: the kernel refuses to let this task wait, so there is no way on.
const BROKEN: u64 = 1 << 62;

/// The vCPU, and what this task waits on while its guest sleeps.
pub struct Kernel {
    /// The vCPU.
    pub vcpu: Vcpu,
    /// The notification bound to this task's thread.
    pub notification: Notification,
    /// Something was typed.
    pub input: Rc<Cell<bool>>,
    /// Orders.
    pub control: Control,
}

impl Processor for Kernel {
    #[inline(always)]
    fn run(&mut self, masks: u64, until: u64) -> Result<(u64, u64), Error> {
        self.vcpu.run_raw(masks, Deadline(until))
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        sys::now()
    }

    fn sleep(&mut self, until: u64) -> u64 {
        match sys::receive(Deadline(until)) {
            Ok(Event::Notified(bits)) => bits,
            // This task serves no endpoint.
            Ok(Event::Timeout | Event::Call(_)) => 0,
            Err(error) => {
                log::error!("cannot wait: {error:?}");
                BROKEN
            }
        }
    }

    fn poll(&mut self) -> u64 {
        self.notification.poll().unwrap_or(0)
    }

    fn orders(&mut self, bits: u64) -> Orders {
        self.input.set(true);
        let mut orders = Orders { poll: true, kill: bits & BROKEN != 0, ..Orders::default() };
        self.control.follow(&mut orders);
        orders
    }

    fn tell(&mut self, history: &History) {
        self.control.tell(history);
    }
}
