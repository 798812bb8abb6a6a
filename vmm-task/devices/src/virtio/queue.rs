//! The device's side of a split virtqueue (virtio 1.2, 2.7).
//!
//! The driver is not trusted: it may write anything into the rings at any time. So each value is read once, checked,
//! and used from the copy; indices are kept here; and every loop is bounded by a number of ours.

use super::Chain;
use crate::traits::{GuestMemory, OutOfRange, Segment};
use core::sync::atomic::{Ordering, fence};

const DESC_NEXT: u16 = 1;
const DESC_WRITE: u16 = 2;
const DESC_INDIRECT: u16 = 4;
const AVAIL_NO_INTERRUPT: u16 = 1;
/// Most segments of one chain, indirect tables included.
pub const MAX_SEGMENTS: usize = 512;

/// What the driver did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueError {
    /// A ring or a buffer is not in guest RAM.
    Memory,
    /// The available index is more than a queue ahead.
    AvailableIndex,
    /// A descriptor number is not below the queue's size.
    DescriptorIndex,
    /// A chain is longer than any legal one, or goes in circles.
    ChainTooLong,
    /// A readable descriptor follows a writable one.
    Order,
    /// An indirect table was not negotiated, or is empty, ragged, nested or continued.
    Indirect,
    /// A request has no room for its header or its answer.
    Request,
}

impl QueueError {
    /// For people.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Memory => "a ring or buffer is not in memory",
            Self::AvailableIndex => "the available index is more than a queue ahead",
            Self::DescriptorIndex => "a descriptor number is beyond the table",
            Self::ChainTooLong => "a descriptor chain is too long or circular",
            Self::Order => "a readable descriptor follows a writable one",
            Self::Indirect => "a bad indirect descriptor",
            Self::Request => "a request has no room for its header or answer",
        }
    }
}

impl From<OutOfRange> for QueueError {
    fn from(_: OutOfRange) -> Self {
        Self::Memory
    }
}

/// One queue.
#[derive(Clone, Debug)]
pub struct Queue {
    pub(super) max_size: u16,
    pub(super) size: u16,
    pub(super) ready: bool,
    pub(super) vector: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
    next_available: u16,
    next_used: u16,
    /// `next_used` when the driver was last interrupted, or decided against it.
    signalled: u16,
    pub(super) event_idx: bool,
    pub(super) indirect: bool,
}

impl Queue {
    /// A queue that is not enabled.
    #[must_use]
    pub fn new(max_size: u16) -> Self {
        Self {
            max_size,
            size: max_size,
            ready: false,
            vector: super::transport::NO_VECTOR,
            descriptors: 0,
            available: 0,
            used: 0,
            next_available: 0,
            next_used: 0,
            signalled: 0,
            event_idx: false,
            indirect: false,
        }
    }

    /// Whether the driver has enabled it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Its size.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Enables the queue if its rings are aligned and in memory.
    pub(super) fn enable(&mut self, memory: &dyn GuestMemory) -> Result<(), QueueError> {
        let n = u64::from(self.size);
        let aligned =
            self.descriptors.is_multiple_of(16) && self.available.is_multiple_of(2) && self.used.is_multiple_of(4);
        let event = 2;
        let inside = memory.contains(self.descriptors, 16 * n)
            && memory.contains(self.available, 4 + 2 * n + event)
            && memory.contains(self.used, 4 + 8 * n + event);
        if !aligned || !inside {
            return Err(QueueError::Memory);
        }
        (self.next_available, self.next_used, self.signalled) = (0, 0, 0);
        self.ready = true;
        Ok(())
    }

    fn slot(&self, index: u16) -> u64 {
        // Sizes are powers of two and never 0.
        u64::from(index & self.size.wrapping_sub(1))
    }

    /// How many chains the driver offers that have not been taken.
    fn offered(&self, memory: &dyn GuestMemory) -> Result<u16, QueueError> {
        let index = memory.load_u16(self.available + 2)?;
        // What the index announces must not be read before the index.
        fence(Ordering::Acquire);
        let n = index.wrapping_sub(self.next_available);
        if n > self.size { Err(QueueError::AvailableIndex) } else { Ok(n) }
    }

    /// Takes the next chain; `false` if there is none.
    ///
    /// # Errors
    /// What the driver did wrong; the queue must not be used any more.
    pub fn pop(&mut self, memory: &dyn GuestMemory, chain: &mut Chain) -> Result<bool, QueueError> {
        chain.segments.clear();
        chain.readable = 0;
        if !self.ready || self.offered(memory)? == 0 {
            return Ok(false);
        }
        let head = memory.load_u16(self.available + 4 + 2 * self.slot(self.next_available))?;
        if head >= self.size {
            return Err(QueueError::DescriptorIndex);
        }
        chain.head = head;
        self.walk(memory, head, chain)?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(true)
    }

    fn walk(&self, memory: &dyn GuestMemory, head: u16, chain: &mut Chain) -> Result<(), QueueError> {
        let (mut table, mut entries, mut index) = (self.descriptors, u32::from(self.size), u32::from(head));
        let mut in_table = false;
        let mut bytes = 0u64;
        // A chain visits each descriptor of the table at most once, and one indirect table after that.
        for _ in 0..usize::from(self.size) + MAX_SEGMENTS {
            if index >= entries {
                return Err(QueueError::DescriptorIndex);
            }
            let mut raw = [0; 16];
            memory.read(table + 16 * u64::from(index), &mut raw)?;
            let (gpa, len, flags, next) = decode(&raw);
            if flags & DESC_INDIRECT != 0 {
                let n = len / 16;
                if in_table
                    || !self.indirect
                    || flags & DESC_NEXT != 0
                    || len % 16 != 0
                    || n == 0
                    || n as usize > MAX_SEGMENTS
                {
                    return Err(QueueError::Indirect);
                }
                if !memory.contains(gpa, u64::from(len)) {
                    return Err(QueueError::Memory);
                }
                (table, entries, index, in_table) = (gpa, n, 0, true);
                continue;
            }
            let writable = flags & DESC_WRITE != 0;
            if !memory.contains(gpa, u64::from(len)) {
                return Err(QueueError::Memory);
            }
            if !writable && chain.segments.len() > chain.readable {
                return Err(QueueError::Order);
            }
            bytes += u64::from(len);
            if chain.segments.len() >= MAX_SEGMENTS || bytes > u64::from(u32::MAX) {
                return Err(QueueError::ChainTooLong);
            }
            if len != 0 {
                chain.segments.push(Segment { gpa, len, writable });
                chain.readable += usize::from(!writable);
            }
            if flags & DESC_NEXT == 0 {
                return Ok(());
            }
            index = u32::from(next);
        }
        Err(QueueError::ChainTooLong)
    }

    /// Gives a chain back with `written` bytes in it. The transport tells the driver.
    ///
    /// # Errors
    /// The used ring is not in memory any more.
    pub fn complete(&mut self, memory: &dyn GuestMemory, head: u16, written: u32) -> Result<(), QueueError> {
        if !self.ready {
            return Ok(());
        }
        let at = self.used + 4 + 8 * self.slot(self.next_used);
        memory.write(at, &(u64::from(written) << 32 | u64::from(head)).to_le_bytes())?;
        self.next_used = self.next_used.wrapping_add(1);
        // The entry, and the data in the chain, must be there before the index that announces them.
        fence(Ordering::Release);
        memory.store_u16(self.used + 2, self.next_used)?;
        Ok(())
    }

    /// Asks for a notification when the next chain comes; `true` if one has come meanwhile, which will not be notified.
    ///
    /// # Errors
    /// The rings are not in memory, or the available index is impossible.
    pub fn rearm(&mut self, memory: &dyn GuestMemory) -> Result<bool, QueueError> {
        if !self.ready {
            return Ok(false);
        }
        if self.event_idx {
            memory.store_u16(self.used + 4 + 8 * u64::from(self.size), self.next_available)?;
            // Store our wish, then look: the driver stores its index, then looks at our wish.
            fence(Ordering::SeqCst);
        }
        Ok(self.offered(memory)? != 0)
    }

    /// Whether the driver wants an interrupt for what was completed since the last call.
    ///
    /// # Errors
    /// The rings are not in memory any more.
    pub(super) fn take_interrupt(&mut self, memory: &dyn GuestMemory) -> Result<bool, QueueError> {
        if !self.ready || self.next_used == self.signalled {
            return Ok(false);
        }
        let old = core::mem::replace(&mut self.signalled, self.next_used);
        // Our index is stored; now look at the driver's wish (it does it the other way round).
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = memory.load_u16(self.available + 4 + 2 * u64::from(self.size))?;
            // Whether the index has passed the event (virtio 1.2, 2.7.7.2).
            let passed = self.next_used.wrapping_sub(event).wrapping_sub(1);
            Ok(passed < self.next_used.wrapping_sub(old))
        } else {
            Ok(memory.load_u16(self.available)? & AVAIL_NO_INTERRUPT == 0)
        }
    }
}

fn decode(raw: &[u8; 16]) -> (u64, u32, u16, u16) {
    let [a0, a1, a2, a3, a4, a5, a6, a7, l0, l1, l2, l3, f0, f1, n0, n1] = *raw;
    (
        u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
        u32::from_le_bytes([l0, l1, l2, l3]),
        u16::from_le_bytes([f0, f1]),
        u16::from_le_bytes([n0, n1]),
    )
}
