//! Makes one task, all of it from one untyped memory and those that it is lent: revoking these ends the task and gives everything
//! back, whatever it did with them.

use crate::{
    Doing, Failure, Root, TABLE,
    grants::{Item, Mapped},
    no_slots,
    pool::Block,
};
use alloc::{format, string::String, vec::Vec};
use log::debug;
use moira_abi::{FrameSize, ObjectType, PAGE};
use moira_proto::{
    start::{self, StartInfo, layout, slot},
    system::{Grant, Task},
};
use moira_root::{
    archive,
    budget::{self, Budget},
    image::{self, Access, Image},
};
use moira_rt::sys::{
    AddressSpace, CapTable, Capability, Configuration, Error, Frame, MapFlags, SchedContext, Slot, Space, Thread,
    Untyped,
};

/// How a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It lives.
    Running,
    /// Its `main` returned.
    Finished,
    /// It died and stays dead.
    Dead,
}

/// A task as it was made.
pub struct Built {
    /// Its memory; none: it was torn down.
    pub block: Option<Block>,
    /// Memories that it is lent, in the order of its grants.
    pub lent: Vec<Block>,
    /// Slots of the root task's table that name its parts.
    slots: Vec<(Slot, u32)>,
    /// Its capability table.
    pub table: CapTable,
    /// Its space.
    pub space: AddressSpace,
    /// Its threads, the main one first.
    pub threads: Vec<Thread>,
    /// Their message buffers.
    pub buffers: Vec<Frame>,
    /// Bytes of its start information.
    start_bytes: u64,
    /// How often it was made before.
    pub restarts: u32,
    /// How it is.
    pub life: Life,
}

impl Built {
    /// A task that there is nothing of.
    fn nothing(restarts: u32) -> Built {
        let none = Slot::NONE;
        Built {
            block: None,
            lent: Vec::new(),
            slots: Vec::new(),
            table: CapTable::new(none),
            space: AddressSpace::new(none),
            threads: Vec::new(),
            buffers: Vec::new(),
            start_bytes: 0,
            restarts,
            life: Life::Running,
        }
    }

    /// All of it, out of its place.
    pub fn take(&mut self) -> Built {
        let nothing = Built::nothing(self.restarts);
        core::mem::replace(self, nothing)
    }
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

impl Root {
    /// Makes task number `index`; it does not run yet. If that fails nothing is left behind.
    pub fn build(&mut self, index: usize, restarts: u32) -> Result<Built, Failure> {
        let mut built = Built::nothing(restarts);
        let Some(spec) = self.system.tasks.get(index).cloned() else {
            return Err(format!("there is no task {index}"));
        };
        match self.build_all(index, &spec, &mut built) {
            Ok(()) => Ok(built),
            Err(why) => {
                self.tear_down(&mut built)?;
                Err(format!("task {}: {why}", spec.name))
            }
        }
    }

    fn build_all(&mut self, index: usize, spec: &Task, built: &mut Built) -> Result<(), Failure> {
        let limit = layout::STACK_TOP - spec.stack - 2 * PAGE;
        let file = archive::find(&self.files, &spec.image)
            .ok_or_else(|| format!("the system image has no file `{}`", spec.image))?;
        let image = image::read(file.bytes, limit).map_err(|why| format!("file `{}`: {why}", spec.image))?;
        let mapped = self.mapped(index)?;
        let start = self.start_info(index, spec, built.restarts, &mapped)?;
        built.start_bytes = start.len() as u64;
        let mut areas = areas(spec, &image, &start);
        let large = if spec.heap >= FrameSize::Large.bytes() { spec.heap / FrameSize::Large.bytes() } else { 0 };
        let rest = spec.heap - large * FrameSize::Large.bytes();
        areas.push(area(layout::HEAP + large * FrameSize::Large.bytes(), rest, MapFlags::READ_WRITE));

        let granted: Vec<u8> = self
            .items(index)?
            .into_iter()
            .flat_map(|(_, items)| items)
            .filter_map(|item| match item {
                Item::Untyped(bits) => Some(bits),
                _ => None,
            })
            .collect();
        let small: u64 = areas.iter().map(|area| area.length).sum();
        let shared = mapped.iter().flat_map(|one| &one.whole.parts).filter(|part| part.size == FrameSize::Small).count()
            as u64
            * PAGE;
        let table_bits = budget::table_bits((areas.len() + mapped.len() + 1) as u64, small + shared);
        let budget = Budget::default()
            .frames(FrameSize::Large, large)
            .frames(FrameSize::Small, small / PAGE)
            .untyped(table_bits)
            .object(ObjectType::AddressSpace, 0)
            .object(ObjectType::CapTable, spec.table_bits);
        let budget = (0..=spec.threads.len()).fold(budget, |budget, _| budget.object(ObjectType::Thread, 0));
        let block = self.take_block(budget.size_bits())?;
        built.block = Some(block);
        for bits in granted {
            let block = self.take_block(bits)?;
            built.lent.push(block);
        }

        let memory = block.untyped;
        built.space = AddressSpace::new(self.part(built, 1)?);
        built.table = CapTable::new(self.part(built, 1)?);
        memory.retype_space(built.space.slot()).doing(|| "its space".into())?;
        memory.retype_table(spec.table_bits, built.table.slot()).doing(|| "its table".into())?;
        for _ in 0..=spec.threads.len() {
            let slot = self.part(built, 1)?;
            memory.retype_threads(1, slot).doing(|| "a thread".into())?;
            built.threads.push(Thread::new(slot));
        }
        self.cut_upper(built, memory, large, table_bits)?;
        for area in &areas {
            self.make_area(built, memory, area)?;
        }
        for one in &mapped {
            self.map_whole(built, one).map_err(|why| format!("{}: {why}", one.region.name))?;
        }
        self.configure(index, spec, built, image.entry)?;
        let lent: u64 = built.lent.iter().map(|block| 1u64 << block.bits).sum();
        debug!("root: task {}: {} bytes of its own, {lent} lent", spec.name, 1u64 << block.bits);
        self.grant(index, spec, built)
    }

    /// Slots of the root task's for parts of a task.
    fn part(&mut self, built: &mut Built, count: u32) -> Result<Slot, Failure> {
        let first = self.memory.slots.take(count).ok_or_else(no_slots)?;
        built.slots.push((first, count));
        Ok(first)
    }

    fn take_block(&mut self, bits: u8) -> Result<Block, Failure> {
        self.pool.take(bits, &mut self.memory.slots).doing(|| format!("{} KiB of memory", (1u64 << bits) >> 10))
    }

    /// Makes the page tables and the large pages of the heap, the larger ones first.
    fn cut_upper(&mut self, built: &mut Built, memory: Untyped, large: u64, table_bits: u8) -> Result<(), Failure> {
        let tables_first = table_bits > FrameSize::Large.bits();
        if tables_first {
            self.make_tables(built, memory, table_bits)?;
        }
        let mut heap = Vec::new();
        for _ in 0..large {
            let slot = self.part(built, 1)?;
            memory.retype_frames(FrameSize::Large, 1, slot).doing(|| "its heap".into())?;
            heap.push(Frame::new(slot));
        }
        if !tables_first {
            self.make_tables(built, memory, table_bits)?;
        }
        for (frame, number) in heap.into_iter().zip(0u64..) {
            let address = layout::HEAP + number * FrameSize::Large.bytes();
            built.space.map(frame, address, MapFlags::READ_WRITE).doing(|| "its heap".into())?;
        }
        Ok(())
    }

    fn make_tables(&mut self, built: &mut Built, memory: Untyped, bits: u8) -> Result<(), Failure> {
        let slot = self.part(built, 1)?;
        memory.retype_untypeds(bits, 1, slot).doing(|| "its page tables".into())?;
        built.space.add_memory(Untyped::new(slot)).doing(|| "its page tables".into())
    }

    fn make_area(&mut self, built: &mut Built, memory: Untyped, area: &Area) -> Result<(), Failure> {
        let doing = || format!("memory at {:#x}", area.address);
        let mut offset = 0;
        while offset < area.length {
            let batch = ((area.length - offset) / PAGE).clamp(1, 16) as u32;
            let first = self.part(built, batch)?;
            let frames = memory.retype_frames(FrameSize::Small, batch, first).doing(doing)?;
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
    fn fill(
        &mut self,
        frame: Frame,
        offset: u64,
        start: u64,
        bytes: &[u8],
    ) -> Result<(), moira_rt::memory::MemoryError> {
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

    fn map_whole(&mut self, built: &mut Built, one: &Mapped) -> Result<(), Failure> {
        for part in &one.whole.parts {
            let slot = self.part(built, 1)?;
            let copy = TABLE.copy(part.frame, slot, moira_abi::Rights::ALL).doing(|| "copying a frame".into())?;
            built
                .space
                .map(copy, one.region.address + part.offset, one.flags)
                .doing(|| format!("mapping at {:#x}", part.offset))?;
        }
        Ok(())
    }

    fn configure(&mut self, index: usize, spec: &Task, built: &Built, entry: u64) -> Result<(), Failure> {
        let cpu = self.machine.cpu(spec.cpu)?;
        let Some(identity) = self.identities.get(index) else {
            return Err("it is not known".into());
        };
        let main = (cpu, identity.notification, identity.context);
        let mut known = alloc::vec![main];
        for (thread, identity) in spec.threads.iter().zip(&identity.threads) {
            known.push((self.machine.cpu(thread.cpu)?, identity.notification, identity.context));
        }
        let parts = built.threads.iter().zip(&built.buffers).zip(known).enumerate();
        for (number, ((thread, buffer), (cpu, notification, context))) in parts {
            let with = Configuration {
                space: built.space,
                table: built.table,
                buffer: Some(*buffer),
                level: spec.level,
                fault_endpoint: None,
                fault_notification: Some(identity.stopped),
                entry,
                stack: layout::stack_top(number),
            };
            thread.configure(&with).doing(|| format!("configuring thread {number}"))?;
            thread.bind_notification(notification).doing(|| format!("binding the notification of thread {number}"))?;
            if let Some(context) = context {
                bind(context, *thread, cpu).doing(|| format!("binding the scheduling context of thread {number}"))?;
            }
        }
        let Some(main) = built.threads.first() else { return Err("it has no thread".into()) };
        main.receive_slots(Slot(slot::RECEIVE)).doing(|| "its receive slots".into())?;
        if let Some(endpoint) = identity.endpoint {
            endpoint.bind(*main).doing(|| "binding its endpoint".into())?;
        }
        Ok(())
    }

    /// Lets a task run when its time comes.
    pub fn activate(&mut self, index: usize) -> Result<(), Failure> {
        let (Some(spec), Some(built)) = (self.system.tasks.get(index), self.tasks.get(index)) else {
            return Ok(());
        };
        let cpus = core::iter::once(spec.cpu).chain(spec.threads.iter().map(|thread| thread.cpu));
        for (number, (thread, cpu)) in built.threads.iter().zip(cpus).enumerate() {
            let second = start::second::pack(built.start_bytes, number);
            let cpu = self.machine.cpu(cpu)?;
            thread.activate(cpu, [layout::START, second]).doing(|| format!("starting task {}", spec.name))?;
        }
        Ok(())
    }

    /// Ends a task: whatever it has, and whatever was made from its memory, is gone when this returns, and the memory is clean.
    pub fn tear_down(&mut self, built: &mut Built) -> Result<(), Failure> {
        // Its own memory first: a thread that runs on could go on making things from what it is lent.
        let blocks: Vec<Block> = built.block.take().into_iter().chain(built.lent.drain(..)).collect();
        for block in &blocks {
            block.untyped.revoke_fully().doing(|| "ending a task".into())?;
        }
        for (first, count) in built.slots.drain(..) {
            for number in 0..count {
                let slot = first.plus(number);
                // Copies of frames that are not the task's own; all else vanished with its memory.
                match TABLE.delete_fully(slot) {
                    Ok(()) | Err(Error::Empty) => self.memory.slots.give(slot, 1),
                    Err(error) => return Err(format!("ending a task: slot {}: {error:?}", slot.0)),
                }
            }
        }
        for block in blocks {
            // What is made anew from it takes as much as before: not a byte may stay behind.
            let free = block.untyped.info().doing(|| "memory of an ended task".into())?.free;
            if free != 1 << block.bits {
                return Err(format!("ending a task: {} bytes are missing", (1u64 << block.bits) - free));
            }
            self.pool.give(block);
        }
        debug!("root: {} KiB of memory free", self.pool.free() >> 10);
        Ok(())
    }

    fn start_info(&self, index: usize, spec: &Task, restarts: u32, mapped: &[Mapped]) -> Result<Vec<u8>, Failure> {
        let slot_count = moira_abi::object::cap_table_slots(spec.table_bits);
        let mut next = slot::NAMED;
        let mut capabilities: Vec<(String, u32, u32)> = Vec::new();
        for (name, items) in self.items(index)? {
            capabilities.push((name, next, items.len() as u32));
            next += items.len() as u32;
        }
        if next > slot_count + 2 {
            return Err(format!("its capability table has {slot_count} slots, it needs {}", next - 2));
        }
        let mut arguments = spec.arguments.clone();
        if spec.grants.iter().any(|(_, grant)| matches!(grant, Grant::Platform)) {
            // Where UEFI booted, only the loader knows where the tables are.
            arguments.extend(self.machine.tables_argument());
        }
        let info = StartInfo {
            name: spec.name.clone(),
            heap_address: layout::HEAP,
            heap_length: spec.heap,
            tsc_hz: self.info.tsc_hz,
            virtualization: self.info.virtualization,
            guest_xcr0: self.info.guest_xcr0,
            restarts,
            slot_count,
            free_slot: next,
            capabilities,
            regions: mapped.iter().map(|one| one.region.clone()).collect(),
            arguments,
        };
        let bytes = postcard::to_allocvec(&info).doing(|| "its start information".into())?;
        if bytes.len() as u64 > layout::BUFFER - layout::START - PAGE {
            return Err("its start information is too long".into());
        }
        Ok(bytes)
    }
}

fn bind(context: SchedContext, thread: Thread, cpu: moira_rt::sys::Cpu) -> Result<(), Error> {
    context.bind(thread, cpu).map(|_| ())
}

/// The parts of the address space in small pages, but for the heap.
fn areas<'a>(spec: &Task, image: &Image<'a>, start: &'a [u8]) -> Vec<Area<'a>> {
    let mut areas: Vec<Area<'a>> = image
        .segments
        .iter()
        .map(|segment| {
            let flags = match segment.access {
                Access::Read => MapFlags::READ,
                Access::Write => MapFlags::READ_WRITE,
                Access::Execute => MapFlags::READ_EXECUTE,
            };
            Area {
                address: segment.address,
                length: segment.length,
                flags,
                contents: Some((segment.offset, segment.bytes)),
                buffer: false,
            }
        })
        .collect();
    for number in 0..=spec.threads.len() {
        let stack = layout::stack_top(number) - spec.stack.next_multiple_of(PAGE);
        areas.push(area(stack, spec.stack, MapFlags::READ_WRITE));
        areas.push(Area { buffer: true, ..area(layout::buffer(number), PAGE, MapFlags::READ_WRITE) });
    }
    areas.push(Area { contents: Some((0, start)), ..area(layout::START, start.len() as u64, MapFlags::READ) });
    areas
}
