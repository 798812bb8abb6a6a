//! Makes one task, all of it from untyped memories of its own and those that it is lent: revoking these ends the task and gives
//! everything back, whatever it did with them. What nobody can write of its program it shares with others: see [`crate::pages`].

use crate::{Doing, Failure, Root, TABLE, grants::Mapped, no_slots, pool::Block};
use alloc::{format, string::String, vec::Vec};
use log::debug;
use moira_abi::{ObjectType, PAGE};
use moira_proto::{
    start::{self, StartInfo, layout, slot},
    system::{Grant, Task},
};
use moira_root::{archive, budget, image};
use moira_rt::sys::{AddressSpace, CapTable, Configuration, Error, Frame, SchedContext, Slot, Thread, Untyped, now};

/// How a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// It lives.
    Running,
    /// Its `main` returned.
    Finished,
    /// It died and stays dead.
    Dead,
    /// It died and is made anew at this tick.
    Resting(u64),
}

/// A task as it was made.
pub struct Built {
    /// Its memory, that of its objects first; none: it was torn down.
    pub blocks: Vec<Block>,
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
    /// The tick at which it began to live.
    born: u64,
}

impl Built {
    /// A task that there is nothing of.
    fn nothing(restarts: u32) -> Built {
        let none = Slot::NONE;
        Built {
            blocks: Vec::new(),
            lent: Vec::new(),
            slots: Vec::new(),
            table: CapTable::new(none),
            space: AddressSpace::new(none),
            threads: Vec::new(),
            buffers: Vec::new(),
            start_bytes: 0,
            restarts,
            life: Life::Running,
            born: now(),
        }
    }

    /// Ticks since it was made.
    pub fn age(&self) -> u64 {
        now().saturating_sub(self.born)
    }

    /// All of it, out of its place.
    pub fn take(&mut self) -> Built {
        let nothing = Built::nothing(self.restarts);
        core::mem::replace(self, nothing)
    }
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
        self.lend(index, spec, built)?;
        let mapped = self.mapped(index)?;
        let start = self.start_info(index, spec, built.restarts, &mapped)?;
        built.start_bytes = start.len() as u64;
        let layout = self.lay_out(spec, &image, &start, &mapped);
        let sizes = layout.budget.sizes();
        for bits in core::iter::once(&sizes.first).chain(&sizes.rest).chain(&sizes.large) {
            let block = self.take_block(*bits)?;
            built.blocks.push(block);
        }
        let memory = built.blocks.first().ok_or("it has no memory")?.untyped;
        for (kind, size) in objects(spec) {
            self.make_object(built, memory, kind, size)?;
        }
        self.make_pages(built, &layout, &sizes)?;
        for one in &mapped {
            self.map_whole(built, one).map_err(|why| format!("{}: {why}", one.region.name))?;
        }
        self.configure(index, spec, built, image.entry)?;
        let bytes = |blocks: &[Block]| blocks.iter().map(|block| (1u64 << block.bits) + budget::CONTROL).sum::<u64>();
        let regions = mapped.iter().filter(|one| one.region.writable).map(|one| one.whole.length).sum::<u64>();
        let (own, lent) = (bytes(&built.blocks), bytes(&built.lent));
        debug!("root: task {}: {own} bytes of its own, {lent} lent, {regions} in regions", spec.name);
        self.grant(index, spec, built)
    }

    /// Makes one of the kernel's objects that a task is.
    fn make_object(&mut self, built: &mut Built, memory: Untyped, kind: ObjectType, size: u8) -> Result<(), Failure> {
        let slot = self.part(built, 1)?;
        match kind {
            ObjectType::CapTable => {
                memory.retype_table(size, slot).doing(|| "its table".into())?;
                built.table = CapTable::new(slot);
            }
            ObjectType::AddressSpace => {
                memory.retype_space(slot).doing(|| "its space".into())?;
                built.space = AddressSpace::new(slot);
            }
            _ => {
                memory.retype_threads(1, slot).doing(|| "a thread".into())?;
                built.threads.push(Thread::new(slot));
            }
        }
        Ok(())
    }

    /// Slots of the root task's for parts of a task.
    pub(crate) fn part(&mut self, built: &mut Built, count: u32) -> Result<Slot, Failure> {
        let first = self.memory.slots.take(count).ok_or_else(no_slots)?;
        built.slots.push((first, count));
        Ok(first)
    }

    /// Takes the memories that the task is lent, and notes what their sizes are.
    fn lend(&mut self, index: usize, spec: &Task, built: &mut Built) -> Result<(), Failure> {
        let mut sizes = Vec::new();
        for (name, grant) in &spec.grants {
            let blocks = match *grant {
                Grant::Untyped { size_bits } => alloc::vec![self.take_block(size_bits)?],
                Grant::Blocks { bytes } => {
                    let taken = self.pool.take_all(bytes, &mut self.memory.slots);
                    taken.map_err(|why| format!("{name}: {} MiB of memory: {why}", bytes >> 20))?
                }
                _ => continue,
            };
            sizes.push((name.clone(), blocks.iter().map(|block| block.bits).collect()));
            built.lent.extend(blocks);
        }
        if let Some(identity) = self.identities.get_mut(index) {
            identity.lent = sizes;
        }
        Ok(())
    }

    fn take_block(&mut self, bits: u8) -> Result<Block, Failure> {
        self.pool.take(bits, &mut self.memory.slots).doing(|| format!("{} KiB of memory", (1u64 << bits) >> 10))
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
        let blocks: Vec<Block> = built.blocks.drain(..).chain(built.lent.drain(..)).collect();
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

/// The kernel's objects that a task is, in the order in which they leave no gaps: that of falling size.
pub fn objects(spec: &Task) -> Vec<(ObjectType, u8)> {
    let mut objects = alloc::vec![(ObjectType::CapTable, spec.table_bits), (ObjectType::AddressSpace, 0)];
    objects.extend((0..=spec.threads.len()).map(|_| (ObjectType::Thread, 0)));
    objects.sort_by_key(|(kind, size)| core::cmp::Reverse(kind.size_bits(*size)));
    objects
}

fn bind(context: SchedContext, thread: Thread, cpu: moira_rt::sys::Cpu) -> Result<(), Error> {
    context.bind(thread, cpu).map(|_| ())
}
