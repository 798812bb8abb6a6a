//! The kernel behind the run loop's traits.

use crate::backend;
use crate::control::Control;
use crate::debugger::Debugger;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};
use moira_rt::sys::{self, Deadline, Error, Event, Notification, Vcpu};
use vmm_core::history::History;
use vmm_core::machine::Threads;
use vmm_core::vm::{Orders, Processor};

/// Bit of the main thread's notification by which it hears of the console. The manifest counts its bits from 0.
pub const INPUT: u64 = 1 << 63;
/// Never signalled by anybody: the kernel refuses to let this task wait, so there is no way on.
const BROKEN: u64 = 1 << 62;
/// Bit by which the machine's threads wake each other.
pub const WAKE: u64 = 1 << 61;

/// How the threads of the machine reach each other.
pub struct Wires {
    /// Signals each thread's notification with [`WAKE`].
    pub wake: Vec<Notification>,
    /// Their vCPUs.
    pub vcpus: Vec<Vcpu>,
    /// Signals the main thread's with [`INPUT`].
    pub input: Notification,
}

impl Threads for Wires {
    fn wake(&self, cpu: usize) {
        if let Some(notification) = self.wake.get(cpu) {
            // All threads live as long as the task.
            let _ = notification.signal();
        }
    }

    fn kick(&self, cpu: usize) {
        if let Some(vcpu) = self.vcpus.get(cpu) {
            // One that is not set up yet looks for news before it enters its guest.
            let _ = vcpu.kick();
        }
    }

    fn wait(&self, cpu: usize) {
        let typed = AtomicBool::new(false);
        // Until it is woken. What else is signalled meanwhile, input or an order, is signalled again as input.
        while let Ok(Event::Notified(bits)) = sys::receive(Deadline::NEVER) {
            typed.fetch_or(bits & !WAKE != 0, Ordering::Relaxed);
            if bits & WAKE != 0 {
                break;
            }
        }
        if typed.into_inner() && cpu == 0 {
            let _ = self.input.signal();
        }
    }
}

/// A vCPU, and what its thread waits on while its guest sleeps.
pub struct Kernel {
    /// The vCPU.
    pub vcpu: Vcpu,
    /// The notification bound to this thread.
    pub notification: Notification,
    /// The console.
    pub console: backend::Shared,
    /// Orders from outside; only the main thread hears of them.
    pub control: &'static Control,
    /// What serves a debugger, for the main thread.
    pub debugger: Option<Debugger>,
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
            // What it was woken for stands in the machine.
            Ok(Event::Notified(bits)) => bits & !WAKE,
            // This task serves no endpoint.
            Ok(Event::Timeout | Event::Call(_)) => 0,
            Err(error) => {
                log::error!("cannot wait: {error:?}");
                BROKEN
            }
        }
    }

    fn poll(&mut self) -> u64 {
        self.notification.poll().unwrap_or(0) & !WAKE
    }

    fn orders(&mut self, bits: u64) -> Orders {
        let poll = bits & INPUT != 0;
        if poll {
            let mut console = self.console.lock();
            console.typed();
            // What is left goes with what is written next.
            let _ = console.flush();
        }
        let mut orders = Orders { poll, kill: bits & BROKEN != 0, ..Orders::default() };
        if bits & !(WAKE | BROKEN) != 0 {
            self.control.follow(&mut orders, self.debugger.as_mut());
            self.debug();
        }
        orders
    }

    fn debug(&mut self) {
        if self.debugger.as_mut().is_some_and(Debugger::serve) {
            self.control.signal();
        }
    }

    fn tell(&mut self, cpu: usize, history: &History) {
        self.control.tell(cpu, history);
    }
}
