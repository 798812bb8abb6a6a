//! What a task is given, capability by capability, in the order of the manifest.

use crate::{Doing, Failure, PLATFORM, Root, build::Built, identity::Device, store::Whole};
use alloc::{format, string::String, vec::Vec};
use moira_abi::FrameSize;
use moira_proto::{
    planner,
    start::{Region, START, THREAD_STARTS, THREADS, layout, slot},
    system::{Grant, Role, Task},
};
use moira_rt::sys::{CapTable, Capability, Frame, Interrupt, IoPorts, MapFlags, Rights, SchedContext, Slot};

/// What goes into one slot.
#[derive(Clone, Copy, Debug)]
pub enum Item {
    /// The endpoint of a task, with a badge.
    Call(usize, u64),
    /// The notification of a task, with bits.
    Signal(usize, u64),
    /// A scheduling context.
    Context(SchedContext),
    /// A processor, with rights.
    Cpu(u32, Rights),
    /// The machine.
    Platform,
    /// The root task's notification: an order waits.
    Orders,
    /// The next of the untyped memories that it is lent.
    Untyped,
    /// A source of interrupts.
    Interrupt(Interrupt),
    /// A range of ports.
    Ports(IoPorts),
    /// A frame of device memory.
    Frame(Frame),
    /// The thread of a task.
    Thread(usize),
    /// The space of a task.
    Space(usize),
    /// The capability table of a task.
    Table(usize),
    /// An empty slot, for somebody else to fill.
    Empty,
    /// The notification of one of its own further threads, by its index.
    OwnThread(usize),
    /// The same, to signal that there is something to do.
    StartThread(usize),
}

/// Something that is mapped for a task.
pub struct Mapped {
    /// As the task is told.
    pub region: Region,
    /// Its frames.
    pub whole: Whole,
    /// How.
    pub flags: MapFlags,
}

/// Name of the region that is a CPU's status page.
pub fn status_of(cpu: u32) -> String {
    format!("status of CPU {cpu}")
}

impl Root {
    fn find(&self, name: &str) -> Result<usize, Failure> {
        self.system.tasks.iter().position(|task| task.name == name).ok_or_else(|| format!("there is no task `{name}`"))
    }

    /// The task that is the scheduler of a CPU.
    pub fn scheduler_of(&self, cpu: u32) -> Option<usize> {
        self.system.tasks.iter().position(|task| task.cpu == cpu && task.role == Role::Scheduler)
    }

    /// First of the slots in which a CPU's scheduler is told of newcomers; 0: it has none.
    pub fn newcomers_of(&self, cpu: u32) -> u32 {
        let items = self.scheduler_of(cpu).and_then(|index| self.items(index).ok()).unwrap_or_default();
        let Some(place) = items.iter().position(|(name, _)| name == planner::NEWCOMERS) else {
            return 0;
        };
        let before: usize = items.iter().take(place).map(|(_, items)| items.len()).sum();
        slot::NAMED + before as u32
    }

    /// Contexts that live on the slack of a CPU, in the order of their tasks and threads; the root task's own comes last, so that lists of
    /// weights and slices are the tasks'.
    fn slack_contexts(&self, cpu: u32) -> Vec<Item> {
        let own = (cpu == crate::time::OWN_CPU).then_some(crate::time::OWN);
        self.slack_takers(cpu).map(|one| one.context).chain(own).map(Item::Context).collect()
    }

    /// The scheduling context of a task's main thread.
    fn context(&self, task: usize) -> Result<SchedContext, Failure> {
        let identity = self.identities.get(task).ok_or_else(|| format!("there is no task {task}"))?;
        identity.context.ok_or_else(|| String::from("it has no time of its own"))
    }

    /// The scheduling contexts of a task: the main thread's, then those of further threads.
    fn contexts(&self, task: usize) -> Result<Vec<Item>, Failure> {
        let further = self.identities.get(task).into_iter().flat_map(|identity| &identity.threads);
        let all = core::iter::once(self.context(task)?).chain(further.filter_map(|thread| thread.context));
        Ok(all.map(Item::Context).collect())
    }

    /// The named capabilities of a task; slots follow each other from [`slot::NAMED`] on.
    pub fn items(&self, index: usize) -> Result<Vec<(String, Vec<Item>)>, Failure> {
        let (Some(spec), Some(identity)) = (self.system.tasks.get(index), self.identities.get(index)) else {
            return Err(format!("there is no task {index}"));
        };
        let mut items: Vec<(String, Vec<Item>)> = Vec::new();
        match spec.role {
            Role::None => {}
            Role::Scheduler => {
                items.push(("cpu".into(), alloc::vec![Item::Cpu(spec.cpu, Rights::DISPATCH)]));
                items.push(("contexts".into(), self.slack_contexts(spec.cpu)));
                if self.system.tasks.iter().any(|task| task.role == Role::Planner) {
                    let places = planner::MOST_NEWCOMERS as usize;
                    items.push((planner::NEWCOMERS.into(), alloc::vec![Item::Empty; places]));
                }
            }
            Role::Planner => {
                let cpus = 0..self.machine.cpus.len() as u32;
                items.push(("cpus".into(), cpus.map(|cpu| Item::Cpu(cpu, Rights::PLAN)).collect()));
                // In the order of the book, the root task's own first.
                let own = core::iter::once(crate::time::OWN);
                let all = own.chain(self.accounts().map(|one| one.context));
                items.push(("contexts".into(), all.map(Item::Context).collect()));
                let schedulers = (0..self.machine.cpus.len() as u32).filter_map(|cpu| self.scheduler_of(cpu));
                items.push((planner::SCHEDULERS.into(), schedulers.map(Item::Table).collect()));
            }
        }
        for (name, grant) in &spec.grants {
            if items.iter().any(|(taken, _)| taken == name) {
                continue;
            }
            let device = identity.devices.iter().find(|(device, _)| device == name).map(|(_, device)| device);
            let list = match (grant, device) {
                (Grant::Call { task, badge }, _) => {
                    alloc::vec![Item::Call(self.find(task)?, *badge)]
                }
                (Grant::Signal { task, bits }, _) => {
                    alloc::vec![Item::Signal(self.find(task)?, *bits)]
                }
                (Grant::Context { task }, _) => self.contexts(self.find(task)?)?,
                (Grant::Control { task }, _) => {
                    alloc::vec![Item::Thread(self.find(task)?), Item::Space(self.find(task)?)]
                }
                (Grant::Cpu { cpu, rights }, _) => alloc::vec![Item::Cpu(*cpu, Rights(*rights))],
                (Grant::Platform, _) => alloc::vec![Item::Platform],
                (Grant::Supervisor, _) => alloc::vec![Item::Orders],
                (Grant::Untyped { .. } | Grant::Blocks { .. }, _) => {
                    let lent = identity.lent.iter().find(|(lent, _)| lent == name).map(|(_, sizes)| sizes);
                    lent.into_iter().flatten().map(|_| Item::Untyped).collect()
                }
                (_, Some(Device::Interrupt(interrupt))) => alloc::vec![Item::Interrupt(*interrupt)],
                (_, Some(Device::Ports(ports))) => alloc::vec![Item::Ports(*ports)],
                (_, Some(Device::Frames(frames))) => frames.iter().map(|frame| Item::Frame(*frame)).collect(),
                _ => continue,
            };
            items.push((name.clone(), list));
        }
        if !identity.threads.is_empty() {
            items.push((THREADS.into(), (0..identity.threads.len()).map(Item::OwnThread).collect()));
            items.push((THREAD_STARTS.into(), (0..identity.threads.len()).map(Item::StartThread).collect()));
        }
        Ok(items)
    }

    /// What is mapped for a task, and where.
    pub fn mapped(&mut self, index: usize) -> Result<Vec<Mapped>, Failure> {
        let Some(spec) = self.system.tasks.get(index).cloned() else {
            return Err(format!("there is no task {index}"));
        };
        let mut mapped = Vec::new();
        let mut next = layout::SHARED;
        if spec.role == Role::Scheduler {
            let name = status_of(spec.cpu);
            if !self.store.regions.contains_key(&name) {
                let page = self.make_region(4096)?;
                self.store.regions.insert(name.clone(), page);
            }
            let whole = self.region(&name)?;
            mapped.push(place("status", whole, MapFlags::READ, false, 0, &mut next));
        }
        if spec.role == Role::Planner {
            let whole = self.book_page()?;
            mapped.push(place(planner::BOOK, whole, MapFlags::READ, false, 0, &mut next));
        }
        for (name, grant) in &spec.grants {
            let one = match grant {
                Grant::File { file } => {
                    let whole =
                        self.store.files.get(file).cloned().ok_or_else(|| format!("there is no file `{file}`"))?;
                    place(name, whole, MapFlags::READ, false, 0, &mut next)
                }
                Grant::Region { region, writable } => {
                    let whole = self.region(region)?;
                    let (flags, physical) =
                        (if *writable { MapFlags::READ_WRITE } else { MapFlags::READ }, whole.physical);
                    place(name, whole, flags, *writable, physical, &mut next)
                }
                Grant::Device { physical, length } => {
                    let devices = self.identities.get(index).into_iter().flat_map(|identity| &identity.devices);
                    let frames = devices.filter(|device| device.0 == *name).find_map(|(_, device)| match device {
                        Device::Frames(frames) => Some(frames),
                        _ => None,
                    });
                    let parts = frames.into_iter().flatten().zip(0u64..).map(|(frame, number)| crate::store::Part {
                        frame: *frame,
                        size: FrameSize::Small,
                        offset: number * FrameSize::Small.bytes(),
                    });
                    let whole = Whole { parts: parts.collect(), physical: *physical, length: *length };
                    place(name, whole, MapFlags::READ_WRITE.uncached(), true, *physical, &mut next)
                }
                _ => continue,
            };
            mapped.push(one);
        }
        Ok(mapped)
    }

    /// The book of contracts, for the planner.
    fn book_page(&mut self) -> Result<Whole, Failure> {
        if let Ok(whole) = self.region(planner::BOOK) {
            return Ok(whole);
        }
        let doing = || String::from("the planner's book");
        let bytes = postcard::to_allocvec(&self.book()).doing(doing)?;
        let length = bytes.len() as u64;
        if length + 8 > planner::BOOK_BYTES {
            return Err(format!("{}: too many contracts", doing()));
        }
        let whole = self.make_region(length + 8)?;
        let bytes = [&length.to_le_bytes()[..], &bytes].concat();
        for part in &whole.parts {
            let from = part.offset as usize;
            let view = self.memory.view(part.frame, part.size).doing(doing)?;
            view.shared().write(0, bytes.get(from..(from + 4096).min(bytes.len())).unwrap_or_default());
            self.memory.release(view).doing(doing)?;
        }
        self.store.regions.insert(planner::BOOK.into(), whole.clone());
        Ok(whole)
    }

    fn region(&self, name: &str) -> Result<Whole, Failure> {
        self.store.regions.get(name).cloned().ok_or_else(|| format!("there is no region `{name}`"))
    }

    /// Fills a task's capability table.
    pub fn grant(&mut self, index: usize, spec: &Task, built: &Built) -> Result<(), Failure> {
        let (table, own) = (built.table, |what: &str| format!("{what} of task {}", spec.name));
        let doing = || own("a capability");
        let Some(identity) = self.identities.get(index) else {
            return Err(doing());
        };
        table.copy(table, Slot(slot::TABLE), Rights::ALL).doing(doing)?;
        table.copy(built.space, Slot(slot::SPACE), Rights::ALL).doing(doing)?;
        let main = built.threads.first().ok_or_else(doing)?;
        table.copy(*main, Slot(slot::THREAD), Rights::ALL).doing(doing)?;
        table.copy(identity.notification, Slot(slot::NOTIFICATION), Rights::ALL).doing(doing)?;
        let mut lent = built.lent.iter();
        let mut at = Slot(slot::NAMED);
        for (name, items) in self.items(index)? {
            for item in items {
                let doing = || own(&name);
                if let Item::Untyped = item {
                    let Some(memory) = lent.next() else {
                        return Err(doing());
                    };
                    table.copy(memory.untyped, at, Rights::ALL).doing(doing)?;
                } else {
                    self.put(index, table, at, item).map_err(|why| format!("{}: {why}", own(&name)))?;
                }
                at = at.plus(1);
            }
        }
        Ok(())
    }

    fn put(&self, index: usize, table: CapTable, at: Slot, item: Item) -> Result<(), Failure> {
        let all = Rights::ALL;
        fn done<T: Capability, E: core::fmt::Debug>(result: Result<T, E>) -> Result<(), Failure> {
            result.map(|_| ()).doing(|| String::from("copying"))
        }
        let identity = |task: usize| self.identities.get(task).ok_or_else(|| format!("there is no task {task}"));
        match item {
            Item::Call(task, badge) => {
                let endpoint = identity(task)?.endpoint.ok_or_else(|| String::from("it serves nothing"))?;
                done(table.mint(endpoint, at, Rights::CALL, badge))
            }
            Item::Signal(task, bits) => done(table.mint(identity(task)?.notification, at, Rights::SIGNAL, bits)),
            Item::Context(context) => done(table.copy(context, at, all)),
            Item::OwnThread(number) | Item::StartThread(number) => {
                let thread = identity(index)?.threads.get(number).ok_or_else(|| String::from("no such thread"))?;
                match item {
                    Item::StartThread(_) => done(table.mint(thread.notification, at, Rights::SIGNAL, START)),
                    _ => done(table.copy(thread.notification, at, all)),
                }
            }
            Item::Cpu(cpu, rights) => done(table.copy(self.machine.cpu(cpu)?, at, rights)),
            Item::Platform => done(table.copy(PLATFORM, at, all)),
            Item::Orders => done(table.mint(self.stopped, at, Rights::SIGNAL, crate::orders::BIT)),
            Item::Interrupt(interrupt) => done(table.copy(interrupt, at, all)),
            Item::Ports(ports) => done(table.copy(ports, at, all)),
            Item::Frame(frame) => done(table.copy(frame, at, all)),
            // Those of another task may not be there yet: `grant_controls` gives them.
            Item::Thread(_) | Item::Space(_) | Item::Table(_) | Item::Untyped | Item::Empty => Ok(()),
        }
    }

    /// Gives task number `index` its capabilities to the threads, spaces and tables of others, as far as the slots are empty.
    pub fn grant_controls(&mut self, index: usize) -> Result<(), Failure> {
        let Some(table) = self.tasks.get(index).filter(|built| !built.blocks.is_empty()).map(|built| built.table)
        else {
            return Ok(());
        };
        let items = self.items(index)?.into_iter().flat_map(|(_, items)| items);
        for (item, number) in items.zip(slot::NAMED..) {
            let at = Slot(number);
            let (Item::Thread(task) | Item::Space(task) | Item::Table(task)) = item else {
                continue;
            };
            let Some(other) = self.tasks.get(task).filter(|other| !other.blocks.is_empty()) else {
                continue;
            };
            let result = match item {
                Item::Thread(_) => match other.threads.first() {
                    Some(main) => table.copy(*main, at, Rights::ALL).map(|_| ()),
                    None => continue,
                },
                // To put something into it, or to take it out again; nobody can take anything from there for himself.
                Item::Table(_) => table.copy(other.table, at, Rights::USE).map(|_| ()),
                _ => table.copy(other.space, at, Rights::ALL).map(|_| ()),
            };
            // A holder may have put something else there, or the capability is still good.
            match result {
                Ok(()) | Err(moira_rt::sys::Error::SlotInUse) => {}
                Err(error) => return Err(format!("a capability to task {task}: {error:?}")),
            }
        }
        Ok(())
    }
}

/// Finds room for something that is mapped: a page is left free between any two, and large frames lie where they can be mapped.
fn place(name: &str, whole: Whole, flags: MapFlags, writable: bool, physical: u64, next: &mut u64) -> Mapped {
    let large = FrameSize::Large.bytes();
    let address = if whole.parts.iter().any(|part| part.size == FrameSize::Large) {
        next.next_multiple_of(large) + whole.physical % large
    } else {
        *next
    };
    *next = (address + whole.length + 4096).next_multiple_of(4096);
    let region = Region { name: name.into(), address, length: whole.length, writable, physical };
    Mapped { region, whole, flags }
}
