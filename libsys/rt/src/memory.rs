//! Memory that a task makes for itself: slots, virtual ranges, frames.

use crate::mapped::Shared;
use alloc::vec::Vec;
use moira_abi::{USER_END, object::FrameSize};
use moira_proto::start::layout;
use moira_sys::{AddressSpace, CapTable, Capability, Caps, Error, Frame, MapFlags, Slot, Space, Untyped};

/// Why memory could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemoryError {
    /// The kernel refused.
    Kernel(Error),
    /// The capability table has no such run of empty slots.
    NoSlots,
    /// No such range of virtual addresses is free.
    NoAddresses,
    /// Zero bytes were asked for.
    Nothing,
}

impl From<Error> for MemoryError {
    fn from(error: Error) -> MemoryError {
        MemoryError::Kernel(error)
    }
}

/// Free ranges of numbers, first fit; neighbours are joined.
#[derive(Clone, Debug, Default)]
struct Ranges {
    /// (start, length), sorted, never touching.
    free: Vec<(u64, u64)>,
}

impl Ranges {
    fn new(start: u64, end: u64) -> Ranges {
        Ranges { free: if start < end { alloc::vec![(start, end - start)] } else { Vec::new() } }
    }

    /// Takes `length` numbers from a multiple of `align` on. Both must not be 0.
    fn take(&mut self, length: u64, align: u64) -> Option<u64> {
        for index in 0..self.free.len() {
            let Some(&(start, size)) = self.free.get(index) else {
                break;
            };
            let Some(from) = start.checked_next_multiple_of(align) else {
                continue;
            };
            let Some(end) = from.checked_add(length) else {
                continue;
            };
            if end > start + size {
                continue;
            }
            let before = (start, from - start);
            let after = (end, start + size - end);
            self.free.splice(index..=index, [before, after].into_iter().filter(|range| range.1 > 0));
            return Some(from);
        }
        None
    }

    /// Gives a range back. What is free already stays free.
    fn give(&mut self, start: u64, length: u64) {
        let mut from = start;
        let mut to = start.saturating_add(length);
        if from == to {
            return;
        }
        let first = self.free.partition_point(|range| range.0 + range.1 < from);
        let last = self.free.partition_point(|range| range.0 <= to);
        for range in self.free.get(first..last).unwrap_or_default() {
            from = from.min(range.0);
            to = to.max(range.0 + range.1);
        }
        self.free.splice(first..last.max(first), [(from, to - from)]);
    }
}

/// The empty slots of a capability table.
#[derive(Clone, Debug)]
pub struct Slots(Ranges);

impl Slots {
    /// Slots from `first` up to a table of `count` slots. Indices 0 and 1 name nothing, so the last index is `count + 1`.
    #[must_use]
    pub fn new(first: Slot, count: u32) -> Slots {
        Slots(Ranges::new(u64::from(first.0), u64::from(count) + 2))
    }

    /// Takes `count` consecutive slots.
    pub fn take(&mut self, count: u32) -> Option<Slot> {
        let first = self.0.take(u64::from(count.max(1)), 1)?;
        u32::try_from(first).ok().map(Slot)
    }

    /// Gives back `count` slots, which must be empty again.
    pub fn give(&mut self, first: Slot, count: u32) {
        self.0.give(u64::from(first.0), u64::from(count));
    }
}

/// Virtual addresses of a task.
#[derive(Clone, Debug)]
pub struct Addresses(Ranges);

impl Addresses {
    /// All that a task may map as it likes: from [`layout::FREE`] up.
    #[must_use]
    pub fn new() -> Addresses {
        Addresses(Ranges::new(layout::FREE, USER_END))
    }

    /// Takes `bytes` from a multiple of `align` on.
    pub fn take(&mut self, bytes: u64, align: u64) -> Option<u64> {
        if bytes == 0 || align == 0 { None } else { self.0.take(bytes, align) }
    }

    /// Gives back a range where nothing is mapped any more.
    pub fn give(&mut self, address: u64, bytes: u64) {
        self.0.give(address, bytes);
    }
}

impl Default for Addresses {
    fn default() -> Addresses {
        Addresses::new()
    }
}

/// Memory that was made and mapped.
#[derive(Debug)]
pub struct Mapping {
    address: u64,
    bytes: u64,
    frames: Vec<(Caps<Frame>, FrameSize)>,
}

impl Mapping {
    /// Virtual address.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.address
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The frames in the order of their addresses, to be mapped elsewhere too or granted to others.
    pub fn frames(&self) -> impl Iterator<Item = Frame> + '_ {
        self.frames.iter().flat_map(|(frames, _)| frames.iter())
    }

    /// The same with the size of each.
    pub fn sized_frames(&self) -> impl Iterator<Item = (Frame, FrameSize)> + '_ {
        self.frames.iter().flat_map(|(frames, size)| frames.iter().map(|frame| (frame, *size)))
    }

    /// Its contents. They stay mapped as long as the mapping is borrowed.
    #[must_use]
    #[allow(unsafe_code)]
    pub fn shared(&self) -> Shared<'_> {
        // SAFETY: `Memory::make` or `view` mapped these bytes readable and writable, page-aligned, at addresses that were free,
        // and only `Memory::unmake` or `release`, which consume the mapping, end that.
        unsafe { Shared::new(self.address, self.bytes() as usize, true) }
    }
}

/// Most frames of one `retype`.
const BATCH: u32 = 16;
/// Page tables are fed with untypeds of this size (log2): memory for sixteen tables.
const TABLE_BITS: u8 = 16;

/// Makes memory from an untyped of the task's own and maps it into the task's own space.
#[derive(Debug)]
pub struct Memory {
    /// What it is made from. Frames that are given back become memory again when this is revoked, not before.
    pub untyped: Untyped,
    /// The task's space.
    pub space: AddressSpace,
    /// The task's table.
    pub table: CapTable,
    /// Its empty slots.
    pub slots: Slots,
    /// Its free addresses.
    pub addresses: Addresses,
}

impl Memory {
    /// Memory from `untyped` for this task.
    #[must_use]
    pub fn new(env: &crate::Env, untyped: Untyped) -> Memory {
        Memory { untyped, space: env.space(), table: env.table(), slots: env.slots(), addresses: Addresses::new() }
    }

    /// Makes at least `bytes` of memory in frames of one size, readable and writable, zero. The untyped must be clean.
    ///
    /// # Errors
    /// Nothing is left behind but memory taken from the untyped.
    pub fn make(&mut self, bytes: u64, size: FrameSize) -> Result<Mapping, MemoryError> {
        let count = bytes.div_ceil(size.bytes());
        if count == 0 {
            return Err(MemoryError::Nothing);
        }
        let count = u32::try_from(count).map_err(|_| MemoryError::NoSlots)?;
        let address =
            self.addresses.take(u64::from(count) * size.bytes(), size.bytes()).ok_or(MemoryError::NoAddresses)?;
        let mut mapping = Mapping { address, bytes: 0, frames: Vec::new() };
        let made = self.fill(&mut mapping, self.untyped, size, count);
        self.made(made, mapping, u64::from(count) * size.bytes())
    }

    /// Makes all of several untyped memories into frames, one mapping: large frames, and small ones of memories that are smaller. The
    /// memories must be clean and whole, the larger ones first. Page tables come from this memory's own untyped.
    ///
    /// # Errors
    /// As [`Memory::make`].
    pub fn make_whole(&mut self, memories: &[(Untyped, u64)]) -> Result<Mapping, MemoryError> {
        let large = FrameSize::Large;
        let bytes = memories.iter().map(|(_, bytes)| *bytes).sum();
        if bytes == 0 {
            return Err(MemoryError::Nothing);
        }
        let address = self.addresses.take(bytes, large.bytes()).ok_or(MemoryError::NoAddresses)?;
        let mut mapping = Mapping { address, bytes: 0, frames: Vec::new() };
        let made = memories.iter().try_for_each(|(untyped, bytes)| {
            let size = if *bytes < large.bytes() { FrameSize::Small } else { large };
            let count = u32::try_from(bytes / size.bytes()).map_err(|_| MemoryError::NoSlots)?;
            self.fill(&mut mapping, *untyped, size, count)
        });
        self.made(made, mapping, bytes)
    }

    /// The mapping of `bytes`, or nothing left of it.
    fn made(&mut self, made: Result<(), MemoryError>, mapping: Mapping, bytes: u64) -> Result<Mapping, MemoryError> {
        if let Err(error) = made {
            // `unmake` gives back what was mapped; the addresses above that were never used.
            let used = mapping.bytes();
            self.addresses.give(mapping.address + used, bytes - used);
            self.unmake(mapping);
            return Err(error);
        }
        Ok(mapping)
    }

    /// Makes `count` frames and maps them behind what is mapped already.
    fn fill(
        &mut self,
        mapping: &mut Mapping,
        untyped: Untyped,
        size: FrameSize,
        count: u32,
    ) -> Result<(), MemoryError> {
        let mut left = count;
        while left > 0 {
            let batch = BATCH.min(left);
            let first = self.slots.take(batch).ok_or(MemoryError::NoSlots)?;
            let frames = match untyped.retype_frames(size, batch, first) {
                Ok(frames) => frames,
                Err(error) => {
                    self.slots.give(first, batch);
                    return Err(error.into());
                }
            };
            mapping.frames.push((frames, size));
            for frame in frames.iter() {
                self.map(frame, mapping.address + mapping.bytes, MapFlags::READ_WRITE)?;
                mapping.bytes += size.bytes();
            }
            left -= batch;
        }
        Ok(())
    }

    /// Maps a frame into the task's space and feeds its page tables if they are short.
    ///
    /// # Errors
    /// Those of [`Space::map`].
    pub fn map(&mut self, frame: Frame, address: u64, flags: MapFlags) -> Result<(), MemoryError> {
        match self.space.map(frame, address, flags) {
            Err(Error::NoMemory) => {
                self.feed_tables()?;
                Ok(self.space.map(frame, address, flags)?)
            }
            other => Ok(other?),
        }
    }

    /// Donates memory for page tables.
    ///
    /// # Errors
    /// Of `retype` and `add_memory`.
    pub fn feed_tables(&mut self) -> Result<(), MemoryError> {
        self.feed_tables_with(TABLE_BITS)
    }

    /// Donates `2^bits` bytes for page tables.
    ///
    /// # Errors
    /// Of `retype` and `add_memory`.
    pub fn feed_tables_with(&mut self, bits: u8) -> Result<(), MemoryError> {
        let slot = self.slots.take(1).ok_or(MemoryError::NoSlots)?;
        let donated = self
            .untyped
            .retype_untypeds(bits, 1, slot)
            .and_then(|made| made.get(0).map_or(Err(Error::NoSlot), |untyped| self.space.add_memory(untyped)));
        if donated.is_err() {
            // The slot may hold an untyped that was made in vain, or nothing.
            let _ = self.table.delete_fully(slot);
            self.slots.give(slot, 1);
        }
        Ok(donated?)
    }

    /// Maps a frame that exists already, for a while: [`Memory::release`] ends that.
    ///
    /// # Errors
    /// Those of [`Space::map`], `InUse` among them: this capability is mapped, copy it; `NoAddresses`.
    pub fn view(&mut self, frame: Frame, size: FrameSize) -> Result<Mapping, MemoryError> {
        let address = self.addresses.take(size.bytes(), size.bytes()).ok_or(MemoryError::NoAddresses)?;
        if let Err(error) = self.map(frame, address, MapFlags::READ_WRITE) {
            self.addresses.give(address, size.bytes());
            return Err(error);
        }
        Ok(Mapping { address, bytes: size.bytes(), frames: alloc::vec![(Caps::new(frame.slot(), 1), size)] })
    }

    /// Unmaps the frames, which live on; addresses are free again.
    ///
    /// # Errors
    /// Those of `unmap`; the addresses are then not used again.
    pub fn release(&mut self, mapping: Mapping) -> Result<(), MemoryError> {
        for frame in mapping.frames() {
            self.space.unmap_fully(frame)?;
        }
        self.addresses.give(mapping.address, mapping.bytes());
        Ok(())
    }

    /// Unmaps and deletes the frames; slots and addresses are free again.
    pub fn unmake(&mut self, mapping: Mapping) {
        for (frames, _) in &mapping.frames {
            for frame in frames.iter() {
                // Unmapped first, so that no CPU sees the old page when the address is used again. Not mapped: `make` failed half-way.
                let _ = self.space.unmap_fully(frame);
                // A slot that cannot be emptied is not used again.
                if self.table.delete_fully(frame.slot()).is_ok() {
                    self.slots.give(frame.slot(), 1);
                }
            }
        }
        self.addresses.give(mapping.address, mapping.bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn ranges_hand_out_each_number_once(steps in prop::collection::vec((any::<bool>(), 1u64..9, 0u32..3), 0..80)) {
            let mut ranges = Ranges::new(3, 100);
            let mut taken: Vec<(u64, u64)> = Vec::new();
            let mut used = BTreeSet::new();
            for (take, length, align) in steps {
                if take {
                    if let Some(start) = ranges.take(length, 1 << align) {
                        prop_assert_eq!(start % (1 << align), 0);
                        for number in start..start + length {
                            prop_assert!((3..100).contains(&number) && used.insert(number));
                        }
                        taken.push((start, length));
                    }
                } else if !taken.is_empty() {
                    let (start, length) = taken.remove(length as usize % taken.len());
                    ranges.give(start, length);
                    used.retain(|number| !(start..start + length).contains(number));
                }
                let free: u64 = ranges.free.iter().map(|range| range.1).sum();
                prop_assert_eq!(free + used.len() as u64, 97);
                prop_assert!(ranges.free.windows(2).all(|pair| pair[0].0 + pair[0].1 < pair[1].0));
            }
        }
    }

    #[test]
    fn slots_end_with_the_table() {
        let mut slots = Slots::new(Slot(4), 4);
        assert_eq!(slots.take(2), Some(Slot(4)));
        assert_eq!(slots.take(1), None);
        slots.give(Slot(4), 1);
        assert_eq!(slots.take(1), Some(Slot(4)));
    }
}
