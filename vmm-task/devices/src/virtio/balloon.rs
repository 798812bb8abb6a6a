//! The virtio memory balloon (virtio 1.2, 5.5): the guest gives pages up and takes them back.

use super::{Chain, DeviceType, Progress, QueueError, VirtioDevice, Work, chain};
use crate::traits::BalloonBackend;
use alloc::boxed::Box;

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const F_MUST_TELL_HOST: u64 = 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// Page numbers taken in one call.
const BUDGET: usize = 4096;

/// The balloon.
pub struct Balloon {
    backend: Box<dyn BalloonBackend>,
    target: u32,
    actual: u32,
    chain: Chain,
    /// The chain of this queue has been worked on up to `done` bytes.
    held: Option<usize>,
    done: u64,
}

impl Balloon {
    /// A balloon in front of a back end.
    #[must_use]
    pub fn new(backend: Box<dyn BalloonBackend>) -> Self {
        let target = backend.target();
        Self { backend, target, actual: 0, chain: Chain::new(), held: None, done: 0 }
    }

    fn drain(&mut self, queue: usize, work: &mut Work<'_>, budget: &mut usize) -> Result<Progress, QueueError> {
        while *budget > 0 {
            if self.held.is_some_and(|q| q != queue) {
                return Ok(Progress::More);
            }
            if self.held.is_none() {
                if !work.next(queue, &mut self.chain)? {
                    return Ok(Progress::Idle);
                }
                (self.held, self.done) = (Some(queue), 0);
            }
            let mut numbers = [0; 256];
            let n = chain::read(self.chain.readable(), self.done, &mut numbers, work.memory)?;
            for number in numbers.get(..n).unwrap_or(&[]).chunks_exact(4) {
                let [a, b, c, d] = number else { continue };
                let gpa = u64::from(u32::from_le_bytes([*a, *b, *c, *d])) << 12;
                // A page that is not RAM is nobody's to give.
                if work.memory.contains(gpa, 4096) {
                    if queue == INFLATE { self.backend.give(gpa) } else { self.backend.take_back(gpa) }
                }
            }
            self.done += n as u64;
            *budget = budget.saturating_sub(n / 4 + 1);
            if n < numbers.len() {
                self.held = None;
                work.complete(queue, self.chain.head(), 0)?;
            }
        }
        Ok(Progress::More)
    }
}

impl VirtioDevice for Balloon {
    fn device_type(&self) -> DeviceType {
        DeviceType { id: 5, class: 0x00_FF00 }
    }

    fn features(&self) -> u64 {
        F_MUST_TELL_HOST | F_DEFLATE_ON_OOM
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64; 2]
    }

    fn read_config(&self, offset: u64) -> u8 {
        let of = |v: u32, first: u64| (v >> (8 * (offset - first))) as u8;
        match offset {
            0..4 => of(self.target, 0),
            4..8 => of(self.actual, 4),
            _ => 0,
        }
    }

    fn write_config(&mut self, offset: u64, value: u8) {
        if (4..8).contains(&offset) {
            let shift = 8 * (offset - 4);
            self.actual = self.actual & !(0xFF << shift) | u32::from(value) << shift;
            if offset == 7 {
                self.backend.reached(self.actual);
            }
        }
    }

    fn notify(&mut self, _queue: u16, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        self.poll(work)
    }

    fn poll(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        let mut budget = BUDGET;
        // The queue whose chain is half done goes first.
        let first = self.held.unwrap_or(INFLATE);
        let a = self.drain(first, work, &mut budget)?;
        Ok(a.and(self.drain(INFLATE + DEFLATE - first, work, &mut budget)?))
    }

    fn config_changed(&mut self) -> bool {
        core::mem::replace(&mut self.target, self.backend.target()) != self.target
    }

    fn reset(&mut self) {
        self.held = None;
        self.actual = 0;
        self.backend.reset();
    }
}
