//! The virtio network card (virtio 1.2, 5.1), without offloads: queue 0 receives, queue 1 sends.

use super::{Chain, DeviceType, Progress, QueueError, VirtioDevice, Work, chain};
use crate::traits::{NetBackend, Segment};
use alloc::boxed::Box;
use alloc::vec::Vec;

const RX: usize = 0;
const TX: usize = 1;
const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_STATUS: u64 = 1 << 16;
/// The header before each frame (with VERSION_1 always 12 bytes).
const HEADER: u64 = 12;
const MTU: u16 = 1500;
/// The longest frame that the card sends: MTU, Ethernet header, one VLAN tag.
const FRAME_MAX: u64 = MTU as u64 + 18;
/// Frames in one call, each way.
const BUDGET: usize = 64;
const RETRY_NS: u64 = 200_000;

/// The card.
pub struct Net {
    backend: Box<dyn NetBackend>,
    mac: [u8; 6],
    link: bool,
    rx: Chain,
    rx_held: bool,
    tx: Chain,
    tx_held: bool,
    frame: Vec<Segment>,
    dropped: u64,
}

impl Net {
    /// A card with this address in front of a back end.
    #[must_use]
    pub fn new(backend: Box<dyn NetBackend>, mac: [u8; 6]) -> Self {
        let link = backend.link();
        Self {
            backend,
            mac,
            link,
            rx: Chain::new(),
            rx_held: false,
            tx: Chain::new(),
            tx_held: false,
            frame: Vec::new(),
            dropped: 0,
        }
    }

    /// Frames of the guest that were too long or too short to be sent.
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
            let len = chain::total(self.tx.readable()).checked_sub(HEADER).ok_or(QueueError::Request)?;
            if (14..=FRAME_MAX).contains(&len) {
                chain::slice(self.tx.readable(), HEADER, len, &mut self.frame);
                if !self.backend.send(&self.frame, work.memory) {
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
            chain::slice(self.rx.writable(), HEADER, room, &mut self.frame);
            let Some(len) = self.backend.receive(&self.frame, work.memory) else { return Ok(Progress::Idle) };
            // No offloads, one buffer.
            let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
            chain::write(self.rx.writable(), 0, &header, work.memory)?;
            self.rx_held = false;
            work.complete(RX, self.rx.head(), (u64::from(len).min(room) + HEADER) as u32)?;
        }
        Ok(Progress::More)
    }
}

impl VirtioDevice for Net {
    fn device_type(&self) -> DeviceType {
        DeviceType { id: 1, class: 0x02_0000 }
    }

    fn features(&self) -> u64 {
        F_MAC | F_STATUS | F_MTU
    }

    fn queue_sizes(&self) -> &[u16] {
        &[256; 2]
    }

    fn read_config(&self, offset: u64) -> u8 {
        match offset {
            0..6 => self.mac.get(offset as usize).copied().unwrap_or(0),
            6 => u8::from(self.link),
            10 => MTU as u8,
            11 => (MTU >> 8) as u8,
            _ => 0,
        }
    }

    fn notify(&mut self, queue: u16, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        if usize::from(queue) == TX { self.transmit(work) } else { self.receive(work) }
    }

    fn poll(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        let tx = self.transmit(work)?;
        Ok(tx.and(self.receive(work)?))
    }

    fn config_changed(&mut self) -> bool {
        core::mem::replace(&mut self.link, self.backend.link()) != self.link
    }

    fn reset(&mut self) {
        (self.rx_held, self.tx_held) = (false, false);
    }
}
