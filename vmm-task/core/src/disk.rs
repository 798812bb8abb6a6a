//! A disk held in memory: an image that nobody writes, and over it the blocks that the guest wrote.
//!
//! What the guest writes lives as long as its machine. Memory for it is taken at the start; when it is used up, writes fail as on a
//! broken disk.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use vmm_devices::traits::{BlockBackend, BlockOp, BlockStatus, GuestMemory, Segment, Submit};

/// Bytes of a block of the overlay.
const BLOCK: usize = 4096;

/// A disk over an image.
pub struct MemoryDisk<'a> {
    image: &'a [u8],
    /// By block of the image: 0, or 1 and more for a place in `written`.
    places: Vec<u32>,
    /// Never longer than it was made for.
    written: Vec<[u8; BLOCK]>,
    most: usize,
}

impl<'a> MemoryDisk<'a> {
    /// A disk with the contents of `image`, of which at most `most` bytes may change; with 0 it is read-only.
    ///
    /// # Errors
    /// There is no memory for what may change (`most` bytes, or the whole image if it is smaller, and four bytes for each block of it).
    pub fn new(image: &'a [u8], most: usize) -> Result<Self, TryReserveError> {
        let blocks = image.len().div_ceil(BLOCK);
        let most = (most / BLOCK).min(blocks);
        let (mut places, mut written) = (Vec::new(), Vec::new());
        if most > 0 {
            places.try_reserve_exact(blocks)?;
            places.resize(blocks, 0);
            written.try_reserve_exact(most)?;
        }
        Ok(MemoryDisk { image, places, written, most })
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
            let bytes = self.changed(block).map_or_else(|| self.original(block), <[u8; BLOCK]>::as_slice);
            bytes.get(within..within + count).is_some_and(|bytes| memory.write(gpa, bytes).is_ok())
        })
    }

    /// The overlay's block, if there is one.
    fn changed(&self, block: u64) -> Option<&[u8; BLOCK]> {
        let place = *self.places.get(usize::try_from(block).ok()?)?;
        self.written.get((place as usize).checked_sub(1)?)
    }

    /// The overlay's block, made from the image if it is not there; `None` when there is no room.
    fn own(&mut self, block: u64) -> Option<&mut [u8; BLOCK]> {
        let original = self.original(block);
        let place = self.places.get_mut(usize::try_from(block).ok()?)?;
        if *place == 0 {
            if self.written.len() >= self.most {
                return None;
            }
            let mut bytes = [0; BLOCK];
            bytes.get_mut(..original.len())?.copy_from_slice(original);
            self.written.push(bytes);
            *place = self.written.len() as u32;
        }
        self.written.get_mut((*place as usize).checked_sub(1)?)
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

    #[test]
    fn writes_stay_above_the_image_and_are_bounded() {
        let image: Vec<u8> = (0..3 * BLOCK).map(|byte| (byte / 512) as u8).collect();
        let words: Vec<AtomicU64> = (0..2048).map(|_| AtomicU64::new(u64::MAX)).collect();
        let ram = Ram::new(&words, &[]);
        let mut disk = MemoryDisk::new(&image, 2 * BLOCK).unwrap();
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
    #[test]
    fn what_may_change_is_memory_from_the_start() {
        let image = [7; 3 * BLOCK + 512];
        assert!(MemoryDisk::new(&image, 0).unwrap().read_only());
        // No more than the image has.
        let disk = MemoryDisk::new(&image, 1 << 40).unwrap();
        assert_eq!((disk.most, disk.places.len(), disk.written.capacity()), (4, 4, 4));
        assert_eq!(disk.changed(0), None);
        assert_eq!(disk.changed(u64::MAX), None);
    }
}
