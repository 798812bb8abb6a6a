//! The virtio disk (virtio 1.2, 5.2), with requests that may finish later and in any order.

use super::{Chain, DeviceType, Progress, QueueError, VirtioDevice, Work, chain};
use crate::traits::{BlockBackend, BlockOp, BlockStatus, Segment, Submit};
use alloc::boxed::Box;
use alloc::vec::Vec;

const QUEUE_SIZE: u16 = 128;
/// Data segments in one request: a queue's worth without header and status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
const SECTOR: u64 = 512;
/// Requests started in one call.
const BUDGET: usize = QUEUE_SIZE as usize;
const RETRY_NS: u64 = 500_000;
/// Sectors in one discard or zeroing segment.
const MAX_RANGE: u32 = 0x40_0000;
const HEADER: u64 = 16;
const ID_BYTES: usize = 20;

const F_SEG_MAX: u64 = 1 << 2;
const F_RO: u64 = 1 << 5;
const F_BLK_SIZE: u64 = 1 << 6;
const F_FLUSH: u64 = 1 << 9;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;

const S_OK: u8 = 0;
const S_IO_ERROR: u8 = 1;
const S_UNSUPPORTED: u8 = 2;

/// A request that the back end has taken.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    head: u16,
    /// Where the status byte goes.
    status: u64,
    /// Bytes that the driver finds if all goes well, the status byte included.
    written: u32,
}

/// The disk.
pub struct Block {
    backend: Box<dyn BlockBackend>,
    id: [u8; ID_BYTES],
    capacity: u64,
    chain: Chain,
    /// The chain's request found the back end busy.
    held: bool,
    data: Vec<Segment>,
    in_flight: Vec<Option<InFlight>>,
}

/// What a request came to.
enum Outcome {
    Finished(u8, u32),
    Pending,
    Busy,
}

impl Block {
    /// A disk in front of a back end, with a serial number of up to 20 bytes.
    #[must_use]
    pub fn new(backend: Box<dyn BlockBackend>, serial: &[u8]) -> Self {
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(serial) {
            *to = *from;
        }
        let capacity = backend.capacity() / SECTOR;
        Self { backend, id, capacity, chain: Chain::new(), held: false, data: Vec::new(), in_flight: Vec::new() }
    }

    fn status(outcome: BlockStatus) -> u8 {
        match outcome {
            BlockStatus::Ok => S_OK,
            BlockStatus::IoError => S_IO_ERROR,
            BlockStatus::Unsupported => S_UNSUPPORTED,
        }
    }

    /// The byte range of a request, if it lies on the disk.
    fn range(&self, sector: u64, bytes: u64) -> Option<u64> {
        let inside =
            bytes.is_multiple_of(SECTOR) && sector.checked_add(bytes / SECTOR).is_some_and(|end| end <= self.capacity);
        inside.then(|| sector * SECTOR)
    }

    fn free_tag(&mut self) -> Option<u16> {
        if let Some(free) = self.in_flight.iter().position(Option::is_none) {
            return u16::try_from(free).ok();
        }
        if self.in_flight.len() >= usize::from(QUEUE_SIZE) {
            return None;
        }
        self.in_flight.push(None);
        u16::try_from(self.in_flight.len() - 1).ok()
    }

    /// Starts the request in `self.chain`.
    fn start(&mut self, work: &mut Work<'_>) -> Result<Outcome, QueueError> {
        let mut header = [0; HEADER as usize];
        if chain::read(self.chain.readable(), 0, &mut header, work.memory)? < header.len() {
            return Err(QueueError::Request);
        }
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let (kind, sector) = (u32::from_le_bytes([t0, t1, t2, t3]), u64::from_le_bytes(sector));
        let out_len = chain::total(self.chain.readable()) - HEADER;
        let in_len = chain::total(self.chain.writable()).checked_sub(1).ok_or(QueueError::Request)?;
        let refuse = |s: u8| Ok(Outcome::Finished(s, 1));
        let Some(tag) = self.free_tag() else { return Ok(Outcome::Busy) };
        let writes = matches!(kind, T_OUT | T_DISCARD | T_WRITE_ZEROES);
        if writes && self.backend.read_only() {
            return refuse(S_IO_ERROR);
        }
        let mut written = 1;
        let submitted = match kind {
            T_IN => {
                let Some(offset) = self.range(sector, in_len) else { return refuse(S_IO_ERROR) };
                chain::slice(self.chain.writable(), 0, in_len, &mut self.data);
                written = in_len as u32 + 1;
                self.backend.submit(tag, BlockOp::Read { offset, segments: &self.data }, work.memory)
            }
            T_OUT => {
                let Some(offset) = self.range(sector, out_len) else { return refuse(S_IO_ERROR) };
                chain::slice(self.chain.readable(), HEADER, out_len, &mut self.data);
                self.backend.submit(tag, BlockOp::Write { offset, segments: &self.data }, work.memory)
            }
            T_FLUSH => self.backend.submit(tag, BlockOp::Flush, work.memory),
            T_GET_ID => {
                let n = in_len.min(ID_BYTES as u64) as usize;
                chain::write(self.chain.writable(), 0, self.id.get(..n).unwrap_or(&[]), work.memory)?;
                return Ok(Outcome::Finished(S_OK, n as u32 + 1));
            }
            T_DISCARD | T_WRITE_ZEROES if self.backend.can_discard() => {
                let mut range = [0; 16];
                if out_len != 16 || chain::read(self.chain.readable(), HEADER, &mut range, work.memory)? < 16 {
                    return refuse(S_UNSUPPORTED);
                }
                let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags, ..] = range;
                let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
                let count = u32::from_le_bytes([n0, n1, n2, n3]);
                let len = u64::from(count) * SECTOR;
                // Only zeroing knows a flag, and only "unmap".
                if flags & !u8::from(kind == T_WRITE_ZEROES) != 0 {
                    return refuse(S_UNSUPPORTED);
                }
                let Some(offset) = self.range(sector, len).filter(|_| count <= MAX_RANGE) else {
                    return refuse(S_IO_ERROR);
                };
                let op = if kind == T_DISCARD {
                    BlockOp::Discard { offset, len }
                } else {
                    BlockOp::WriteZeroes { offset, len }
                };
                self.backend.submit(tag, op, work.memory)
            }
            _ => return refuse(S_UNSUPPORTED),
        };
        match submitted {
            Submit::Done(status) => {
                let written = if status == BlockStatus::Ok { written } else { 1 };
                Ok(Outcome::Finished(Self::status(status), written))
            }
            Submit::Busy => Ok(Outcome::Busy),
            Submit::Pending => {
                let status = self.status_address().ok_or(QueueError::Request)?;
                if let Some(slot) = self.in_flight.get_mut(usize::from(tag)) {
                    *slot = Some(InFlight { head: self.chain.head(), status, written });
                }
                Ok(Outcome::Pending)
            }
        }
    }

    /// The address of the last writable byte.
    fn status_address(&self) -> Option<u64> {
        self.chain.writable().last().map(|s| s.gpa + u64::from(s.len) - 1)
    }

    fn drain(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        for _ in 0..BUDGET {
            if !self.held && !work.next(0, &mut self.chain)? {
                return Ok(Progress::Idle);
            }
            self.held = false;
            match self.start(work)? {
                Outcome::Finished(status, written) => {
                    let at = self.status_address().ok_or(QueueError::Request)?;
                    work.memory.write(at, &[status])?;
                    work.complete(0, self.chain.head(), written)?;
                }
                Outcome::Pending => {}
                Outcome::Busy => {
                    self.held = true;
                    return Ok(Progress::Until(work.now.saturating_add(RETRY_NS)));
                }
            }
        }
        Ok(Progress::More)
    }

    fn reap(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        for _ in 0..2 * BUDGET {
            let Some((tag, status)) = self.backend.completion(work.memory) else { return Ok(Progress::Idle) };
            // A tag that was not pending is the back end's mistake, and no business of the driver.
            let Some(done) = self.in_flight.get_mut(usize::from(tag)).and_then(Option::take) else { continue };
            work.memory.write(done.status, &[Self::status(status)])?;
            work.complete(0, done.head, if status == BlockStatus::Ok { done.written } else { 1 })?;
        }
        Ok(Progress::More)
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> DeviceType {
        DeviceType { id: 2, class: 0x01_0000 }
    }

    fn features(&self) -> u64 {
        let ro = if self.backend.read_only() { F_RO } else { 0 };
        let discard = if self.backend.can_discard() && ro == 0 { F_DISCARD | F_WRITE_ZEROES } else { 0 };
        F_SEG_MAX | F_BLK_SIZE | F_FLUSH | ro | discard
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64) -> u8 {
        let of = |v: u64, first: u64| (v >> (8 * (offset - first))) as u8;
        let range = u64::from(MAX_RANGE);
        match offset {
            0..8 => of(self.capacity, 0),
            12..16 => of(u64::from(SEG_MAX), 12),
            20..24 => of(SECTOR, 20),
            34 => 1,
            // Discard: sectors, segments, alignment; zeroing: sectors, segments, may unmap.
            36..40 => of(range, 36),
            40 | 44 => 1,
            48..52 => of(range, 48),
            52 | 56 => 1,
            _ => 0,
        }
    }

    fn notify(&mut self, _queue: u16, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        self.poll(work)
    }

    fn poll(&mut self, work: &mut Work<'_>) -> Result<Progress, QueueError> {
        let reaped = self.reap(work)?;
        Ok(reaped.and(self.drain(work)?))
    }

    fn config_changed(&mut self) -> bool {
        let capacity = self.backend.capacity() / SECTOR;
        let changed = capacity != self.capacity;
        self.capacity = capacity;
        changed
    }

    fn reset(&mut self) {
        self.backend.cancel_all();
        self.in_flight.clear();
        self.held = false;
    }
}
