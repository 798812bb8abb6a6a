//! The virtio socket device (virtio 1.2, 5.10): queue 0 receives, queue 1 sends, queue 2 tells events, of which this
//! device has none.

use super::{Chain, DeviceType, Progress, QueueError, VirtioDevice, Work, chain};
use crate::traits::{Segment, VSOCK_HEADER, VsockBackend};
use alloc::boxed::Box;
use alloc::vec::Vec;

const RX: usize = 0;
const TX: usize = 1;
const HEADER: u64 = VSOCK_HEADER as u64;
/// The longest payload of one packet; Linux sends no longer ones.
const PAYLOAD_MAX: u64 = 64 * 1024;
/// Packets in one call, each way.
const BUDGET: usize = 64;
const RETRY_NS: u64 = 500_000;
const SOURCE: usize = 0;
const DESTINATION: usize = 8;
const LENGTH: usize = 24;

/// The device.
pub struct Vsock {
    backend: Box<dyn VsockBackend>,
    cid: u64,
    rx: Chain,
    rx_held: bool,
    tx: Chain,
    tx_held: bool,
    payload: Vec<Segment>,
    dropped: u64,
}

fn put(header: &mut [u8; VSOCK_HEADER], at: usize, bytes: &[u8]) {
    for (to, from) in header.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn get(header: &[u8; VSOCK_HEADER], at: usize, bytes: usize) -> u64 {
    header.iter().skip(at).take(bytes).rev().fold(0, |v, b| v << 8 | u64::from(*b))
}

impl Vsock {
    /// A device whose guest has the context id `cid` (3 or more; 2 is the host).
    #[must_use]
    pub fn new(backend: Box<dyn VsockBackend>, cid: u32) -> Self {
        Self {
            backend,
            cid: u64::from(cid),
            rx: Chain::new(),
            rx_held: false,
            tx: Chain::new(),
            tx_held: false,
            payload: Vec::new(),
            dropped: 0,
        }
    }

    /// Packets of the guest that were not well formed.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn transmit(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BUDGET {
            if !self.tx_held && !work.next(TX, &mut self.tx)? {
                return Ok(Progress::Idle);
            }
            self.tx_held = false;
            let mut header = [0; VSOCK_HEADER];
            if chain::read(self.tx.readable(), 0, &mut header, work.memory)? < VSOCK_HEADER {
                return Err(QueueError::Request);
            }
            let len = get(&header, LENGTH, 4);
            let there = chain::total(self.tx.readable()) - HEADER;
            if len <= there && len <= PAYLOAD_MAX && get(&header, SOURCE, 8) == self.cid {
                chain::slice(self.tx.readable(), HEADER, len, &mut self.payload);
                if !self.backend.send(&header, &self.payload, work.memory) {
                    self.tx_held = true;
                    return Ok(Progress::Until(work.now.saturating_add(RETRY_NS)));
                }
            } else {
                self.dropped += 1;
            }
            work.complete(TX, self.tx.head(), 0)?;
        }
        Ok(Progress::More)
    }

    fn receive(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BUDGET {
            if !self.rx_held && !work.next(RX, &mut self.rx)? {
                return Ok(Progress::Idle);
            }
            self.rx_held = true;
            let room = chain::total(self.rx.writable()).checked_sub(HEADER).ok_or(QueueError::Request)?;
            chain::slice(self.rx.writable(), HEADER, room.min(PAYLOAD_MAX), &mut self.payload);
            let mut header = [0; VSOCK_HEADER];
            let Some(len) = self.backend.receive(&mut header, &self.payload, work.memory) else {
                return Ok(Progress::Idle);
            };
            let len = u64::from(len).min(room) as u32;
            put(&mut header, DESTINATION, &self.cid.to_le_bytes());
            put(&mut header, LENGTH, &len.to_le_bytes());
            chain::write(self.rx.writable(), 0, &header, work.memory)?;
            self.rx_held = false;
            work.complete(RX, self.rx.head(), len + VSOCK_HEADER as u32)?;
        }
        Ok(Progress::More)
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> DeviceType {
        DeviceType { id: 19, class: 0x07_8000 }
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[128, 128, 16]
    }

    fn read_config(&self, offset: u64) -> u8 {
        if offset < 8 { (self.cid >> (8 * offset)) as u8 } else { 0 }
    }

    fn notify(&mut self, queue: u16, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        match usize::from(queue) {
            RX => self.receive(work),
            TX => self.transmit(work),
            _ => Ok(Progress::Idle),
        }
    }

    fn poll(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        let tx = self.transmit(work)?;
        Ok(tx.and(self.receive(work)?))
    }

    fn reset(&mut self) {
        (self.rx_held, self.tx_held) = (false, false);
        self.backend.reset();
    }
}
