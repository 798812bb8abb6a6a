//! The virtio console with one port (virtio 1.2, 5.3): queue 0 carries input to the guest, queue 1 its output.

use super::{Chain, DeviceType, Progress, QueueError, VirtioDevice, Work, chain};
use crate::traits::ConsoleBackend;
use alloc::boxed::Box;

const RX: usize = 0;
const TX: usize = 1;
const F_EMERGENCY_WRITE: u64 = 1 << 2;
const QUEUE_SIZE: u16 = 64;
/// Bytes moved in one call, each way.
const BUDGET: usize = 64 * 1024;
const RETRY_NS: u64 = 1_000_000;

/// The console.
pub struct Console {
    backend: Box<dyn ConsoleBackend>,
    /// A chain that waits for input.
    rx: Chain,
    rx_held: bool,
    /// A chain whose output has gone up to `tx_done`.
    tx: Chain,
    tx_held: bool,
    tx_done: u64,
}

impl Console {
    /// A console in front of a back end.
    #[must_use]
    pub fn new(backend: Box<dyn ConsoleBackend>) -> Self {
        Self { backend, rx: Chain::new(), rx_held: false, tx: Chain::new(), tx_held: false, tx_done: 0 }
    }

    fn transmit(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        let mut budget = BUDGET;
        // An empty chain costs a little too, so that no ring of them runs forever.
        while budget > 0 {
            budget = budget.saturating_sub(64);
            if !self.tx_held {
                if !work.next(TX, &mut self.tx)? {
                    return Ok(Progress::Idle);
                }
                (self.tx_held, self.tx_done) = (true, 0);
            }
            let mut buffer = [0; 512];
            let n = chain::read(self.tx.readable(), self.tx_done, &mut buffer, work.memory)?;
            if n == 0 {
                self.tx_held = false;
                work.complete(TX, self.tx.head(), 0)?;
                continue;
            }
            let taken = self.backend.write(buffer.get(..n).unwrap_or(&[])).min(n);
            self.tx_done += taken as u64;
            budget = budget.saturating_sub(taken);
            if taken == 0 {
                return Ok(Progress::Until(work.now.saturating_add(RETRY_NS)));
            }
        }
        Ok(Progress::More)
    }

    fn receive(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        let mut budget = BUDGET;
        while budget > 0 {
            if !self.rx_held {
                if !work.next(RX, &mut self.rx)? {
                    return Ok(Progress::Idle);
                }
                self.rx_held = true;
            }
            let room = chain::total(self.rx.writable());
            let mut buffer = [0; 512];
            let mut done = 0u64;
            while done < room {
                let want = (room - done).min(buffer.len() as u64) as usize;
                let n = self.backend.read(buffer.get_mut(..want).unwrap_or(&mut [])).min(want);
                chain::write(self.rx.writable(), done, buffer.get(..n).unwrap_or(&[]), work.memory)?;
                done += n as u64;
                if n < want || done >= BUDGET as u64 {
                    break;
                }
            }
            if done == 0 && room > 0 {
                return Ok(Progress::Idle);
            }
            self.rx_held = false;
            work.complete(RX, self.rx.head(), done as u32)?;
            budget = budget.saturating_sub(done as usize + 64);
        }
        Ok(Progress::More)
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType { id: 3, class: 0x07_8000 }
    }

    fn features(&self) -> u64 {
        F_EMERGENCY_WRITE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE; 2]
    }

    fn read_config(&self, offset: u64) -> u8 {
        // cols, rows: 0; max_nr_ports: 1
        u8::from(offset == 4)
    }

    fn write_config(&mut self, offset: u64, value: u8) {
        // emerg_wr: a character for when no queue works. The driver writes 32 bits; the lowest byte counts.
        if offset == 8 {
            self.backend.write(&[value]);
        }
    }

    fn notify(&mut self, queue: u16, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        if usize::from(queue) == TX { self.transmit(work) } else { self.receive(work) }
    }

    fn poll(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        let tx = self.transmit(work)?;
        Ok(tx.and(self.receive(work)?))
    }

    fn reset(&mut self) {
        (self.rx_held, self.tx_held, self.tx_done) = (false, false, 0);
    }
}
