//! A disk held in memory: an image that nobody writes, and over it the blocks that the guest wrote.
//!
//! What the guest writes lives as long as its machine. Memory for it is bounded; when it is used up, writes fail as on a
//! broken disk.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use vmm_devices::traits::{BlockBackend, BlockOp, BlockStatus, GuestMemory, Segment, Submit};

/// Bytes of a block of the overlay.
const BLOCK: usize = 4096;

/// A disk over an image.
pub struct MemoryDisk<'a> {
    image: &'a [u8],
    written: BTreeMap<u64, Box<[u8; BLOCK]>>,
    most: usize,
}

impl<'a> MemoryDisk<'a> {
    /// A disk with the contents of `image`, of which at most `most` bytes may change; with 0 it is read-only.
    #[must_use]
    pub fn new(image: &'a [u8], most: usize) -> Self {
        MemoryDisk { image, written: BTreeMap::new(), most: most / BLOCK }
    }

    /// Calls `step` for each piece of a request that lies in one block and one segment: block, offset in it, guest address,
    /// bytes. Answers whether all steps did.
    fn pieces(offset: u64, segments: &[Segment], mut step: impl FnMut(u64, usize, u64, usize) -> bool) -> bool {
        let mut at = offset;
        for segment in segments {
            let (mut gpa, mut left) = (segment.gpa, u64::from(segment.len));
            while left > 0 {
                let within = at as usize % BLOCK;
                let count = left.min((BLOCK - within) as u64);
                if !step(at / BLOCK as u64, within, gpa, count as usize) {
                    return false;
                }
                (at, gpa, left) = (at + count, gpa + count, left - count);
            }
        }
        true
    }

    /// The image's bytes of a block; short at its end.
    fn original(&self, block: u64) -> &'a [u8] {
        let start = usize::try_from(block).ok().and_then(|block| block.checked_mul(BLOCK)).unwrap_or(usize::MAX);
        let end = start.saturating_add(BLOCK).min(self.image.len());
        self.image.get(start..end).unwrap_or_default()
    }

    fn read(&self, offset: u64, segments: &[Segment], memory: &dyn GuestMemory) -> bool {
        Self::pieces(offset, segments, |block, within, gpa, count| {
            let bytes = match self.written.get(&block) {
                Some(bytes) => bytes.as_slice(),
                None => self.original(block),
            };
            bytes.get(within..within + count).is_some_and(|bytes| memory.write(gpa, bytes).is_ok())
        })
    }

    /// The overlay's block, made from the image if it is not there; `None` when there is no room.
    fn own(&mut self, block: u64) -> Option<&mut [u8; BLOCK]> {
        if !self.written.contains_key(&block) {
            if self.written.len() >= self.most {
                return None;
            }
            let mut bytes = Box::new([0; BLOCK]);
            let original = self.original(block);
            bytes.get_mut(..original.len())?.copy_from_slice(original);
            self.written.insert(block, bytes);
        }
        self.written.get_mut(&block).map(Box::as_mut)
    }

    fn write(&mut self, offset: u64, segments: &[Segment], memory: &dyn GuestMemory) -> bool {
        Self::pieces(offset, segments, |block, within, gpa, count| {
            let place = self.own(block).and_then(|bytes| bytes.get_mut(within..within + count));
            place.is_some_and(|place| memory.read(gpa, place).is_ok())
        })
    }

    fn zero(&mut self, offset: u64, len: u64) -> bool {
        let (mut at, end) = (offset, offset.saturating_add(len).min(self.image.len() as u64));
        while at < end {
            let within = at as usize % BLOCK;
            let count = (end - at).min((BLOCK - within) as u64);
            let Some(bytes) = self.own(at / BLOCK as u64) else { return false };
            if let Some(place) = bytes.get_mut(within..within + count as usize) {
                place.fill(0);
            }
            at += count;
        }
        true
    }
}

impl BlockBackend for MemoryDisk<'_> {
    fn capacity(&self) -> u64 {
        self.image.len() as u64
    }

    fn read_only(&self) -> bool {
        self.most == 0
    }

    fn can_discard(&self) -> bool {
        !self.read_only()
    }

    fn submit(&mut self, _tag: u16, op: BlockOp<'_>, memory: &dyn GuestMemory) -> Submit {
        let good = match op {
            BlockOp::Read { offset, segments } => self.read(offset, segments, memory),
            BlockOp::Write { offset, segments } => self.write(offset, segments, memory),
            BlockOp::WriteZeroes { offset, len } => self.zero(offset, len),
            // What is discarded may keep its contents.
            BlockOp::Flush | BlockOp::Discard { .. } => true,
        };
        Submit::Done(if good { BlockStatus::Ok } else { BlockStatus::IoError })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::Ram;
    use core::sync::atomic::AtomicU64;
    use std::vec::Vec;

    #[test]
    fn writes_stay_above_the_image_and_are_bounded() {
        let image: Vec<u8> = (0..3 * BLOCK).map(|byte| (byte / 512) as u8).collect();
        let words: Vec<AtomicU64> = (0..2048).map(|_| AtomicU64::new(u64::MAX)).collect();
        let ram = Ram::new(&words, &[]);
        let mut disk = MemoryDisk::new(&image, 2 * BLOCK);
        let segments = [Segment { gpa: 8, len: 512, writable: true }, Segment { gpa: 4096, len: 4096, writable: true }];
        let span = |disk: &mut MemoryDisk<'_>, write: bool| {
            let offset = 3584;
            let op = match write {
                true => BlockOp::Write { offset, segments: &segments },
                false => BlockOp::Read { offset, segments: &segments },
            };
            disk.submit(0, op, &ram)
        };
        assert_eq!(span(&mut disk, true), Submit::Done(BlockStatus::Ok));
        ram.write(0, &[0; 8192]).unwrap();
        assert_eq!(span(&mut disk, false), Submit::Done(BlockStatus::Ok));
        let mut back = [0; 4096];
        ram.read(4096, &mut back).unwrap();
        assert_eq!(back, [0xff; 4096]);
        // A third block does not fit.
        let third = [Segment { gpa: 0, len: 512, writable: false }];
        let op = BlockOp::Write { offset: 8192, segments: &third };
        assert_eq!(disk.submit(0, op, &ram), Submit::Done(BlockStatus::IoError));
        let op = BlockOp::Read { offset: 8192, segments: &third };
        assert_eq!(disk.submit(0, op, &ram), Submit::Done(BlockStatus::Ok));
        assert_eq!(ram.load_u16(0), Ok(0x1010));
    }
}
