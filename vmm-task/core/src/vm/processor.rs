//! What the run loop asks of the outside: the kernel, and whoever gives orders.

use crate::history::History;

/// The kernel as the run loop sees it.
pub trait Processor {
    /// Enters the guest: groups changed (bits 0–31) and wanted (bits 32–63) of the state page, and when to come back at the
    /// latest (TSC; 0: whenever). Answers why it came back ([`Exit`](moira_abi::vcpu::Exit) as a number) and which groups are current.
    ///
    /// # Errors
    /// Those of the kernel's `run`: the vCPU is gone or was never set up.
    fn run(&mut self, masks: u64, until: u64) -> Result<(u64, u64), moira_abi::Error>;
    /// The TSC.
    fn now(&self) -> u64;
    /// Waits for bits of the monitor's own notification, at most until then (TSC; 0: however long). Answers the bits.
    fn sleep(&mut self, until: u64) -> u64;
    /// Bits of the notification that are there now.
    fn poll(&mut self) -> u64;
    /// What the bits say: somebody wants the machine to do something.
    fn orders(&mut self, bits: u64) -> Orders;
    /// Somebody wants to know of the exits so far; these are those of processor `cpu`.
    fn tell(&mut self, _cpu: usize, _history: &History) {}
    /// The first processor is out of the guest: time to hear a debugger.
    fn debug(&mut self) {}
}

/// What the outside wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// A back end has news: input, a finished request.
    pub poll: bool,
    /// Press the power button.
    pub power_button: bool,
    /// Press the NMI button.
    pub nmi: bool,
    /// Reset the machine.
    pub reset: bool,
    /// Every processor shall [`Processor::tell`] of its exits.
    pub look: bool,
    /// All processors of the guest shall stand still, or go on. Its clock runs on, as where a processor is stopped from outside.
    pub hold: Option<bool>,
    /// End the machine at once.
    pub kill: bool,
}
