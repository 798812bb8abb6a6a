//! Memory that several tasks may map: files of the archive and shared regions. The root task keeps its frames; tasks map copies.

use crate::{Doing, Failure, Root, failure, no_slots};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use moira_abi::{
    FrameSize, PAGE,
    boot::{slot, untyped_kind},
};
use moira_proto::system::Grant;
use moira_root::archive;
use moira_rt::sys::{CapTable, Frame, Slot, Untyped};

/// One frame of something that is mapped, and where in it.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The frame.
    pub frame: Frame,
    /// Its size.
    pub size: FrameSize,
    /// Bytes from the start of the whole.
    pub offset: u64,
}

/// Something that is mapped as a whole.
#[derive(Clone, Debug, Default)]
pub struct Whole {
    /// Its frames.
    pub parts: Vec<Part>,
    /// Physical address of its first byte: a virtual address that is the same modulo 2 MiB takes large frames.
    pub physical: u64,
    /// Its bytes.
    pub length: u64,
}

/// All of them by name.
#[derive(Default)]
pub struct Store {
    /// Files.
    pub files: BTreeMap<String, Whole>,
    /// Regions.
    pub regions: BTreeMap<String, Whole>,
}

/// A range of pages of a file that some task maps.
struct Wanted {
    name: String,
    start: u64,
    end: u64,
    length: u64,
}

impl Root {
    /// Makes frames of the files that tasks map.
    pub fn store_files(&mut self) -> Result<(), Failure> {
        let grants = self.system.tasks.iter().flat_map(|task| task.grants.iter());
        let mut wanted: Vec<Wanted> = Vec::new();
        for grant in grants {
            let (_, Grant::File { file: name }) = grant else {
                continue;
            };
            if wanted.iter().any(|file| file.name == *name) {
                continue;
            }
            let file =
                archive::find(&self.files, name).ok_or_else(|| format!("the system image has no file `{name}`"))?;
            let start = self.info.initrd_physical + file.offset;
            if !file.offset.is_multiple_of(PAGE) {
                return Err(format!("the file `{name}` does not begin on a page of the system image"));
            }
            let length = file.bytes.len() as u64;
            wanted.push(Wanted { name: name.clone(), start, end: (start + length).next_multiple_of(PAGE), length });
        }
        for file in &wanted {
            let whole = Whole { parts: Vec::new(), physical: file.start, length: file.length };
            self.store.files.insert(file.name.clone(), whole);
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let count = (self.info.untyped_count as usize).min(self.info.untyped.len());
        for (number, block) in self.info.untyped.iter().take(count).enumerate() {
            if block.kind == untyped_kind::CONTENT {
                let untyped = Untyped::new(Slot(slot::UNTYPED + number as u32));
                self.cut(untyped, block.address, block.address + (1 << block.size_bits), &wanted)?;
            }
        }
        for whole in self.store.files.values_mut() {
            whole.parts.sort_by_key(|part| part.offset);
        }
        Ok(())
    }

    /// Makes frames of one block of the archive, from its upper end down as the kernel does; keeps what is wanted.
    fn cut(&mut self, untyped: Untyped, start: u64, end: u64, wanted: &[Wanted]) -> Result<(), Failure> {
        let mut at = end;
        while at > start {
            let overlaps = |from: u64| wanted.iter().find(|file| file.start < at && file.end > from);
            let large = at
                .checked_sub(FrameSize::Large.bytes())
                .filter(|from| *from >= start && at.is_multiple_of(FrameSize::Large.bytes()));
            let size = match large {
                Some(from) if overlaps(from).is_none_or(|file| file.start <= from && file.end >= at) => {
                    FrameSize::Large
                }
                _ => FrameSize::Small,
            };
            let from = at - size.bytes();
            let slot = self.slot()?;
            untyped.retype_frames(size, 1, slot).doing(|| failure("frames of the system image"))?;
            match overlaps(from) {
                Some(file) => {
                    let part = Part { frame: Frame::new(slot), size, offset: from.saturating_sub(file.start) };
                    self.store.files.entry(file.name.clone()).or_default().parts.push(part);
                }
                None => {
                    let table: CapTable = crate::TABLE;
                    table.delete_fully(slot).doing(|| failure("frames of the system image"))?;
                    self.memory.slots.give(slot, 1);
                }
            }
            at = from;
        }
        Ok(())
    }

    /// Makes the shared regions.
    pub fn store_regions(&mut self) -> Result<(), Failure> {
        for (name, bytes) in self.system.regions.clone() {
            let whole = self.make_region(bytes).map_err(|why| format!("region `{name}`: {why}"))?;
            self.store.regions.insert(name, whole);
        }
        Ok(())
    }

    /// Fresh memory of the root task's that tasks will share; contiguous, so that devices can be told where it lies.
    pub fn make_region(&mut self, bytes: u64) -> Result<Whole, Failure> {
        let bytes = bytes.max(PAGE).next_multiple_of(PAGE);
        let bits = bytes.next_power_of_two().trailing_zeros() as u8;
        let block = self.pool.take(bits, &mut self.memory.slots).doing(|| failure("its memory"))?;
        let info = block.untyped.info().doing(|| failure("its memory"))?;
        let size = if bytes.is_multiple_of(FrameSize::Large.bytes()) { FrameSize::Large } else { FrameSize::Small };
        let mut parts = Vec::new();
        // From the upper end of the untyped down.
        let mut at = info.address + (1 << info.size_bits);
        let physical = at - bytes;
        while at > physical {
            let batch = ((at - physical) / size.bytes()).min(16) as u32;
            let first = self.memory.slots.take(batch).ok_or_else(no_slots)?;
            let frames = block.untyped.retype_frames(size, batch, first).doing(|| failure("its frames"))?;
            at -= u64::from(batch) * size.bytes();
            let offset = at - physical;
            parts.extend(frames.iter().zip(0u64..).map(|(frame, index)| Part {
                frame,
                size,
                offset: offset + index * size.bytes(),
            }));
        }
        parts.sort_by_key(|part| part.offset);
        Ok(Whole { parts, physical, length: bytes })
    }
}
