//! What lies in a task's address space: its program, stacks, heap and start information. What the program cannot write is mapped
//! from the system image itself, for all tasks made from it; the rest is the task's own.

use crate::{Doing, Failure, Root, TABLE, build::Built, build::objects, grants::Mapped, store::Whole};
use alloc::{format, vec::Vec};
use moira_abi::{FrameSize, PAGE, Rights};
use moira_proto::{start::layout, system::Task};
use moira_root::{
    budget::{self, Budget, Sizes},
    image::{Access, Image, Segment},
};
use moira_rt::{
    memory::MemoryError,
    sys::{Error, Frame, MapFlags, Space, Untyped},
};

/// Pages that a task may map from [`layout::FREE`] on before it has to feed its page tables.
const FREE_ROOM: u64 = PAGE;

/// All that is made and mapped for a task, but for what others map too.
pub struct Layout<'a> {
    /// In small pages of its own.
    areas: Vec<Area<'a>>,
    /// Parts of its program that it shares: where, and how.
    shared: Vec<(u64, Whole, Access)>,
    /// What all of it takes.
    pub budget: Budget,
}

/// A part of the address space in small pages of the task's own.
struct Area<'a> {
    address: u64,
    length: u64,
    flags: MapFlags,
    /// What it holds from an offset on.
    contents: Option<(u64, &'a [u8])>,
    /// Whether it is the next thread's message buffer.
    buffer: bool,
}

fn area(address: u64, length: u64, flags: MapFlags) -> Area<'static> {
    Area { address, length: length.next_multiple_of(PAGE), flags, contents: None, buffer: false }
}

fn of_segment<'a>(segment: &Segment<'a>) -> Area<'a> {
    let contents = Some((segment.offset, segment.bytes));
    Area { contents, ..area(segment.address, segment.length, flags(segment.access)) }
}

fn flags(access: Access) -> MapFlags {
    match access {
        Access::Read => MapFlags::READ,
        Access::Write => MapFlags::READ_WRITE,
        Access::Execute => MapFlags::READ_EXECUTE,
    }
}

/// Bytes of the heap in large pages.
fn large_heap(spec: &Task) -> u64 {
    spec.heap / FrameSize::Large.bytes() * FrameSize::Large.bytes()
}

/// Untyped memories with room for small pages, and how many each has room for.
struct Room(Vec<(Untyped, u64)>);

impl Room {
    /// A memory with room, and for how many pages of so many.
    fn next(&mut self, most: u64) -> Option<(Untyped, u64)> {
        let (untyped, room) = self.0.iter_mut().find(|(_, room)| *room > 0)?;
        let count = most.min(*room);
        *room -= count;
        Some((*untyped, count))
    }
}

impl Root {
    /// What has to be made and mapped for a task.
    pub fn lay_out<'a>(&self, spec: &Task, image: &Image<'a>, start: &'a [u8], mapped: &[Mapped]) -> Layout<'a> {
        let (mut areas, mut shared) = (Vec::new(), Vec::new());
        for segment in &image.segments {
            match self.store.segment(&spec.image, segment) {
                Some(whole) => shared.push((segment.address, whole.clone(), segment.access)),
                None => areas.push(of_segment(segment)),
            }
        }
        for number in 0..=spec.threads.len() {
            let stack = layout::stack_top(number) - spec.stack.next_multiple_of(PAGE);
            areas.push(area(stack, spec.stack, MapFlags::READ_WRITE));
            areas.push(Area { buffer: true, ..area(layout::buffer(number), PAGE, MapFlags::READ_WRITE) });
        }
        areas.push(Area { contents: Some((0, start)), ..area(layout::START, start.len() as u64, MapFlags::READ) });
        let large = large_heap(spec);
        areas.push(area(layout::HEAP + large, spec.heap - large, MapFlags::READ_WRITE));

        let mut small: Vec<_> = areas.iter().map(|area| area.address..area.address + area.length).collect();
        let mut large = alloc::vec![layout::HEAP..layout::HEAP + large];
        small.extend(shared.iter().map(|(address, whole, _)| *address..address + whole.length));
        small.push(layout::FREE..layout::FREE + FREE_ROOM);
        for one in mapped {
            for part in &one.whole.parts {
                let from = one.region.address + part.offset;
                let list = if part.size == FrameSize::Small { &mut small } else { &mut large };
                list.push(from..from + part.size.bytes());
            }
        }
        let budget = Budget {
            objects: 0,
            tables: budget::table_pages(&small, &large),
            small: areas.iter().map(|area| area.length / PAGE).sum(),
            large: large_heap(spec) / FrameSize::Large.bytes(),
        };
        let budget = objects(spec).into_iter().fold(budget, |budget, (kind, size)| budget.object(kind, size));
        Layout { areas, shared, budget }
    }

    /// Makes and maps it, from memories of these sizes.
    pub fn make_pages(&mut self, built: &mut Built, all: &Layout, sizes: &Sizes) -> Result<(), Failure> {
        let mut blocks = built.blocks.clone().into_iter();
        let first = blocks.next().ok_or("it has no memory")?.untyped;
        for bits in budget::powers(all.budget.tables * PAGE) {
            let slot = self.part(built, 1)?;
            first.retype_untypeds(bits, 1, slot).doing(|| "its page tables".into())?;
            built.space.add_memory(Untyped::new(slot)).doing(|| "its page tables".into())?;
        }
        let mut room = Room(alloc::vec![(first, all.budget.small_in_first(sizes))]);
        room.0.extend(blocks.by_ref().take(sizes.rest.len()).map(|block| (block.untyped, (1 << block.bits) / PAGE)));
        let mut address = layout::HEAP;
        // A block may be larger than it has to be.
        for (block, bits) in blocks.zip(&sizes.large) {
            for _ in 0..1u64 << bits.saturating_sub(FrameSize::Large.bits()) {
                let slot = self.part(built, 1)?;
                block.untyped.retype_frames(FrameSize::Large, 1, slot).doing(|| "its heap".into())?;
                built.space.map(Frame::new(slot), address, MapFlags::READ_WRITE).doing(|| "its heap".into())?;
                address += FrameSize::Large.bytes();
            }
        }
        for (address, whole, access) in &all.shared {
            let rights = match access {
                Access::Execute => Rights::READ.or(Rights::EXECUTE),
                _ => Rights::READ,
            };
            self.map_parts(built, whole, *address, rights, flags(*access))
                .map_err(|why| format!("its program: {why}"))?;
        }
        all.areas.iter().try_for_each(|area| self.make_area(built, &mut room, area))
    }

    fn make_area(&mut self, built: &mut Built, room: &mut Room, area: &Area) -> Result<(), Failure> {
        let doing = || format!("memory at {:#x}", area.address);
        let mut offset = 0;
        while offset < area.length {
            let (memory, batch) = room.next(((area.length - offset) / PAGE).clamp(1, 16)).ok_or_else(doing)?;
            let first = self.part(built, batch as u32)?;
            let frames = memory.retype_frames(FrameSize::Small, batch as u32, first).doing(doing)?;
            for frame in frames.iter() {
                if area.buffer {
                    built.buffers.push(frame);
                }
                if let Some((start, bytes)) = area.contents {
                    self.fill(frame, offset, start, bytes).doing(doing)?;
                }
                built.space.map(frame, area.address + offset, area.flags).doing(doing)?;
                offset += PAGE;
            }
        }
        Ok(())
    }

    /// Writes what lies in the page at `offset` of an area whose contents begin at `start`.
    fn fill(&mut self, frame: Frame, offset: u64, start: u64, bytes: &[u8]) -> Result<(), MemoryError> {
        let from = offset.max(start);
        let to = (offset + PAGE).min(start + bytes.len() as u64);
        let Some(bytes) = bytes.get(from.wrapping_sub(start) as usize..to.saturating_sub(start) as usize) else {
            return Ok(());
        };
        if bytes.is_empty() {
            return Ok(());
        }
        let view = self.memory.view(frame, FrameSize::Small)?;
        view.shared().write((from - offset) as usize, bytes);
        self.memory.release(view)
    }

    /// Maps what others map, too.
    pub fn map_whole(&mut self, built: &mut Built, one: &Mapped) -> Result<(), Failure> {
        self.map_parts(built, &one.whole, one.region.address, Rights::ALL, one.flags)
    }

    fn map_parts(
        &mut self,
        built: &mut Built,
        whole: &Whole,
        address: u64,
        rights: Rights,
        flags: MapFlags,
    ) -> Result<(), Failure> {
        for part in &whole.parts {
            let slot = self.part(built, 1)?;
            let copied: Result<Frame, Error> = TABLE.copy(part.frame, slot, rights);
            let copy = copied.doing(|| "copying a frame".into())?;
            built.space.map(copy, address + part.offset, flags).doing(|| format!("mapping at {:#x}", part.offset))?;
        }
        Ok(())
    }
}
