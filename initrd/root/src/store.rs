//! Memory that several tasks may map: files of the archive and shared regions. The root task keeps its frames; tasks map copies.

use crate::{Doing, Failure, Root, failure, no_slots};
use alloc::{collections::BTreeMap, format, string::String, vec::Vec};
use moira_abi::{
    FrameSize, PAGE,
    boot::{slot, untyped_kind},
};
use moira_proto::{start::layout, system::Grant};
use moira_root::{
    archive,
    image::{self, Segment},
};
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
    /// By the file of a program: its segments that tasks share, and where each is mapped.
    segments: BTreeMap<String, Vec<(u64, Whole)>>,
}

impl Store {
    /// The pages of the system image that hold a program's segment, if its tasks share them.
    pub fn segment(&self, image: &str, segment: &Segment) -> Option<&Whole> {
        self.segments.get(image)?.iter().find(|(address, _)| *address == segment.address).map(|(_, whole)| whole)
    }
}

/// A range of pages of the system image that tasks map.
struct Wanted {
    what: What,
    /// Physical addresses.
    start: u64,
    end: u64,
    length: u64,
    parts: Vec<Part>,
}

/// What a range is.
enum What {
    /// A whole file.
    File(String),
    /// What a program, by its file, has at an address.
    Segment(String, u64),
}

impl Root {
    /// Makes frames of what tasks map of the system image: files, and what they cannot write of their programs.
    pub fn store_files(&mut self) -> Result<(), Failure> {
        let mut wanted = self.wanted_files()?;
        self.add_wanted_segments(&mut wanted);
        if wanted.is_empty() {
            return Ok(());
        }
        let count = (self.info.untyped_count as usize).min(self.info.untyped.len());
        for (number, block) in self.info.untyped.iter().take(count).enumerate() {
            if block.kind == untyped_kind::CONTENT {
                let untyped = Untyped::new(Slot(slot::UNTYPED + number as u32));
                self.cut(untyped, block.address, block.address + (1 << block.size_bits), &mut wanted)?;
            }
        }
        for mut one in wanted {
            one.parts.sort_by_key(|part| part.offset);
            let whole = Whole { parts: one.parts, physical: one.start, length: one.length };
            match one.what {
                What::File(name) => drop(self.store.files.insert(name, whole)),
                What::Segment(image, address) => {
                    self.store.segments.entry(image).or_default().push((address, whole));
                }
            }
        }
        Ok(())
    }

    fn wanted_files(&self) -> Result<Vec<Wanted>, Failure> {
        let mut wanted: Vec<Wanted> = Vec::new();
        for grant in self.system.tasks.iter().flat_map(|task| task.grants.iter()) {
            let (_, Grant::File { file: name }) = grant else {
                continue;
            };
            if wanted.iter().any(|file| matches!(&file.what, What::File(known) if known == name)) {
                continue;
            }
            let file =
                archive::find(&self.files, name).ok_or_else(|| format!("the system image has no file `{name}`"))?;
            let start = self.info.initrd_physical + file.offset;
            if !file.offset.is_multiple_of(PAGE) {
                return Err(format!("the file `{name}` does not begin on a page of the system image"));
            }
            let length = file.bytes.len() as u64;
            let (what, end) = (What::File(name.clone()), (start + length).next_multiple_of(PAGE));
            wanted.push(Wanted { what, start, end, length, parts: Vec::new() });
        }
        Ok(wanted)
    }

    /// What cannot be shared is copied for each task: nothing fails here.
    fn add_wanted_segments(&self, wanted: &mut Vec<Wanted>) {
        let mut images: Vec<&str> = self.system.tasks.iter().map(|task| task.image.as_str()).collect();
        images.sort_unstable();
        images.dedup();
        for name in images {
            let Some(file) = archive::find(&self.files, name).filter(|file| file.offset.is_multiple_of(PAGE)) else {
                continue;
            };
            let Ok(image) = image::read(file.bytes, layout::STACK_TOP) else { continue };
            for segment in &image.segments {
                let Some(range) = segment.shareable(file.bytes.len() as u64) else { continue };
                let start = self.info.initrd_physical + file.offset + range.start;
                let (end, length) = (start + segment.length, segment.length);
                if wanted.iter().any(|other| other.start < end && other.end > start) {
                    // A task maps the program as a file, too: each page has one frame.
                    continue;
                }
                let what = What::Segment(name.into(), segment.address);
                wanted.push(Wanted { what, start, end, length, parts: Vec::new() });
            }
        }
    }

    /// Makes frames of one block of the archive, from its upper end down as the kernel does; keeps what is wanted.
    fn cut(&mut self, untyped: Untyped, start: u64, end: u64, wanted: &mut [Wanted]) -> Result<(), Failure> {
        let doing = || failure("frames of the system image");
        let mut at = end;
        while at > start {
            let large = at
                .checked_sub(FrameSize::Large.bytes())
                .filter(|from| *from >= start && at.is_multiple_of(FrameSize::Large.bytes()));
            let size = match large {
                Some(from) if is_large(wanted, from, at) => FrameSize::Large,
                _ => FrameSize::Small,
            };
            let from = at - size.bytes();
            let slot = self.slot()?;
            untyped.retype_frames(size, 1, slot).doing(doing)?;
            match overlapping(wanted, from, at).next() {
                Some(one) => {
                    one.parts.push(Part { frame: Frame::new(slot), size, offset: from.saturating_sub(one.start) });
                }
                None => {
                    let table: CapTable = crate::TABLE;
                    table.delete_fully(slot).doing(doing)?;
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

/// What overlaps a range of addresses.
fn overlapping(wanted: &mut [Wanted], from: u64, to: u64) -> impl Iterator<Item = &mut Wanted> {
    wanted.iter_mut().filter(move |one| one.start < to && one.end > from)
}

/// Whether a range is one large frame: of a file that fills it, or of nothing that is wanted.
fn is_large(wanted: &mut [Wanted], from: u64, to: u64) -> bool {
    overlapping(wanted, from, to).all(|one| matches!(one.what, What::File(_)) && one.start <= from && one.end >= to)
}
