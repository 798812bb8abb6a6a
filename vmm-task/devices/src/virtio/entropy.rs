//! The virtio entropy source (virtio 1.2, 5.4).

use super::{Chain, DeviceType, Progress, QueueError, VirtioDevice, Work, chain};
use crate::traits::EntropyBackend;
use alloc::boxed::Box;

/// Most bytes given for one request.
const MOST: u64 = 4096;
/// Most requests served in one call.
const BUDGET: usize = 64;
const RETRY_NS: u64 = 1_000_000;

/// The entropy source.
pub struct Entropy {
    backend: Box<dyn EntropyBackend>,
    chain: Chain,
    held: bool,
}

impl Entropy {
    /// A source in front of a back end.
    #[must_use]
    pub fn new(backend: Box<dyn EntropyBackend>) -> Self {
        Self { backend, chain: Chain::new(), held: false }
    }
}

impl VirtioDevice for Entropy {
    fn device_type(&self) -> DeviceType {
        DeviceType { id: 4, class: 0x00_FF00 }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[16]
    }

    fn read_config(&self, _offset: u64) -> u8 {
        0
    }

    fn notify(&mut self, _queue: u16, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        self.poll(work)
    }

    fn poll(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BUDGET {
            if !self.held {
                if !work.next(0, &mut self.chain)? {
                    return Ok(Progress::Idle);
                }
                self.held = true;
            }
            let room = chain::total(self.chain.writable()).min(MOST);
            let mut done = 0;
            while done < room {
                let mut buffer = [0; 256];
                let want = (room - done).min(buffer.len() as u64) as usize;
                let n = self.backend.fill(buffer.get_mut(..want).unwrap_or(&mut [])).min(want);
                chain::write(self.chain.writable(), done, buffer.get(..n).unwrap_or(&[]), work.memory)?;
                done += n as u64;
                if n < want {
                    break;
                }
            }
            if done == 0 && room > 0 {
                return Ok(Progress::Until(work.now.saturating_add(RETRY_NS)));
            }
            self.held = false;
            work.complete(0, self.chain.head(), done as u32)?;
        }
        Ok(Progress::More)
    }

    fn reset(&mut self) {
        self.held = false;
    }
}
