//! Physical memory. At boot it is untyped memory that nobody has zeroed, from which only smaller untyped memories can be made; one
//! of these is zeroed by revoking it, on the root task's time. What a task leaves behind is clean and serves the next.

use crate::Failure;
use alloc::{format, vec::Vec};
use moira_abi::boot::{BootInfo, slot, untyped_kind};
use moira_rt::{
    memory::Slots,
    sys::{Error, Slot, Untyped},
};

/// log2 of the bytes of the smallest part of a memory that may be in parts.
const ODD_BITS: u8 = 20;

/// A clean untyped memory.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// The capability.
    pub untyped: Untyped,
    /// log2 of its bytes.
    pub bits: u8,
}

/// All memory that no task has.
pub struct Pool {
    /// Untyped memories of boot, the smallest first.
    dirty: Vec<Block>,
    /// What was given back.
    clean: Vec<Block>,
}

impl Pool {
    /// All that the kernel left.
    pub fn new(info: &BootInfo) -> Pool {
        let count = (info.untyped_count as usize).min(info.untyped.len());
        let blocks = info.untyped.iter().zip(slot::UNTYPED..).take(count);
        let mut dirty: Vec<Block> = blocks
            .filter(|(block, _)| block.kind == untyped_kind::DIRTY)
            .map(|(block, slot)| Block { untyped: Untyped::new(Slot(slot)), bits: block.size_bits as u8 })
            .collect();
        dirty.sort_by_key(|block| block.bits);
        Pool { dirty, clean: Vec::new() }
    }

    /// Bytes that nobody has.
    pub fn free(&self) -> u64 {
        let dirty = self.dirty.iter().filter_map(|block| block.untyped.info().ok()).map(|info| info.free);
        dirty.sum::<u64>() + self.clean.iter().map(|block| 1u64 << block.bits).sum::<u64>()
    }

    /// A clean untyped of `2^bits` bytes, from the smallest memory that has room.
    ///
    /// # Errors
    /// `NoMemory`; `NoSlot` (the root task's table is full).
    pub fn take(&mut self, bits: u8, slots: &mut Slots) -> Result<Block, Error> {
        match self.take_exact(bits, slots) {
            Err(Error::NoMemory) => {}
            other => return other,
        }
        // A larger one that was given back is better than none.
        let larger =
            self.clean.iter().enumerate().filter(|(_, block)| block.bits > bits).min_by_key(|(_, block)| block.bits);
        let index = larger.map(|(index, _)| index).ok_or(Error::NoMemory)?;
        Ok(self.clean.swap_remove(index))
    }

    /// Clean untypeds of `bytes` in all, a whole number of MiB: the largest that there are first, and none below 2 MiB but for an odd
    /// MiB at the end.
    ///
    /// # Errors
    /// What is missing; nothing was taken.
    pub fn take_all(&mut self, bytes: u64, slots: &mut Slots) -> Result<Vec<Block>, Failure> {
        let mut taken = Vec::new();
        let mut left = bytes;
        let mut bits = bytes.max(1).ilog2() as u8;
        while left > 0 && bits >= ODD_BITS {
            let fits = left >> bits != 0 && (bits > ODD_BITS || left < 2 << ODD_BITS);
            match if fits { self.take_exact(bits, slots) } else { Err(Error::NoMemory) } {
                Ok(block) => {
                    taken.push(block);
                    left -= 1 << bits;
                }
                Err(Error::NoMemory) => bits -= 1,
                Err(error) => {
                    taken.drain(..).for_each(|block| self.give(block));
                    return Err(format!("{error:?}"));
                }
            }
        }
        if left > 0 {
            taken.drain(..).for_each(|block| self.give(block));
            return Err(format!("{} MiB are missing in blocks of 2 MiB or more", left.div_ceil(1 << ODD_BITS)));
        }
        Ok(taken)
    }

    /// A clean untyped of `2^bits` bytes and no larger one.
    fn take_exact(&mut self, bits: u8, slots: &mut Slots) -> Result<Block, Error> {
        if let Some(index) = self.clean.iter().position(|block| block.bits == bits) {
            return Ok(self.clean.swap_remove(index));
        }
        let whole = |block: &Block| block.bits == bits && block.untyped.info().is_ok_and(|info| info.free == 1 << bits);
        if let Some(index) = self.dirty.iter().position(whole) {
            let block = self.dirty.remove(index);
            block.untyped.revoke_fully()?;
            return Ok(block);
        }
        let slot = slots.take(1).ok_or(Error::NoSlot)?;
        for block in self.dirty.iter().filter(|block| block.bits > bits) {
            match block.untyped.retype_untypeds(bits, 1, slot) {
                Err(Error::NoMemory) => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    let untyped = Untyped::new(slot);
                    untyped.revoke_fully()?;
                    return Ok(Block { untyped, bits });
                }
            }
        }
        slots.give(slot, 1);
        Err(Error::NoMemory)
    }

    /// Takes a block back; it must be clean.
    pub fn give(&mut self, block: Block) {
        self.clean.push(block);
    }
}
