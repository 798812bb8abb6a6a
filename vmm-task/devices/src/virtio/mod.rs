//! Virtio 1.2 devices: queues, the PCI transport, and the devices themselves.

pub mod balloon;
pub mod block;
pub mod chain;
pub mod console;
pub mod entropy;
pub mod net;
pub mod queue;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod vsock;

use crate::traits::GuestMemory;
pub use chain::Chain;
pub use queue::{Queue, QueueError};
pub use transport::VirtioPci;

/// Feature bits that belong to the transport and the queues (virtio 1.2, 6).
pub mod feature {
    /// Indirect descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// `used_event` and `avail_event`.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Not a legacy device.
    pub const VERSION_1: u64 = 1 << 32;
    /// What every device here offers.
    pub const TRANSPORT: u64 = INDIRECT_DESC | EVENT_IDX | VERSION_1;
}

/// A device's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceType {
    /// Virtio device id (virtio 1.2, 5).
    pub id: u16,
    /// PCI class, subclass, programming interface.
    pub class: u32,
}

/// What a device works with while it handles an event.
pub struct Work<'a> {
    /// All queues of the device; those that the driver has not enabled give no chains.
    pub queues: &'a mut [Queue],
    /// Guest memory.
    pub memory: &'a dyn GuestMemory,
    /// Nanoseconds since the VM was made.
    pub now: u64,
}

impl Work<'_> {
    /// The next chain of a queue. If there is none, the driver will notify when the next one comes.
    ///
    /// # Errors
    /// What the driver did wrong.
    pub fn next(&mut self, queue: usize, chain: &mut Chain) -> Result<bool, QueueError> {
        match self.queues.get_mut(queue) {
            // Looking once more after asking for notifications closes the gap in which nobody would be told.
            Some(q) => Ok(q.pop(self.memory, chain)? || q.rearm(self.memory)? && q.pop(self.memory, chain)?),
            None => Ok(false),
        }
    }

    /// Gives a chain back with `written` bytes in it.
    ///
    /// # Errors
    /// The used ring is not in memory any more.
    pub fn complete(&mut self, queue: usize, head: u16, written: u32) -> Result<(), QueueError> {
        match self.queues.get_mut(queue) {
            Some(q) => q.complete(self.memory, head, written),
            None => Ok(()),
        }
    }
}

/// Whether a device has come to the end of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing left until the driver or the back end acts.
    Idle,
    /// The bound of one call was reached: call `poll` again soon.
    More,
    /// The back end is busy: call `poll` again at this time.
    Until(u64),
}

impl Progress {
    /// What two pieces of work together need.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::More, _) | (_, Self::More) => Self::More,
            (Self::Until(a), Self::Until(b)) => Self::Until(a.min(b)),
            (Self::Idle, x) | (x, Self::Idle) => x,
        }
    }
}

/// A virtio device without its transport.
///
/// An error from `notify` or `poll` means that the driver broke the rules; the transport then sets DEVICE_NEEDS_RESET
/// and leaves the device alone until the driver resets it.
pub trait VirtioDevice: Send {
    /// What it is.
    fn device_type(&self) -> DeviceType;
    /// Its own feature bits (0 to 23 and 50 up).
    fn features(&self) -> u64;
    /// The largest size of each queue: powers of two.
    fn queue_sizes(&self) -> &[u16];
    /// A byte of its configuration; 0 beyond the end.
    fn read_config(&self, offset: u64) -> u8;
    /// A byte of its configuration is written.
    fn write_config(&mut self, _offset: u64, _value: u8) {}
    /// The driver is ready, with these of the offered features.
    fn activate(&mut self, _features: u64) {}
    /// The driver has put chains into a queue.
    ///
    /// # Errors
    /// What the driver did wrong.
    fn notify(&mut self, queue: u16, work: &mut Work<'_>) -> Result<Progress, QueueError>;
    /// The back end may have news, or earlier work was not finished.
    ///
    /// # Errors
    /// What the driver did wrong.
    fn poll(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError>;
    /// Whether the configuration has changed since the last call.
    fn config_changed(&mut self) -> bool {
        false
    }
    /// Forgets all chains and what the driver negotiated.
    fn reset(&mut self);
}
