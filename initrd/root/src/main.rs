//! The root task: the first program, with a capability to everything.
//!
//! It reads what the system is (file `system` of the archive), makes each task from memory of its own and gives it exactly what
//! the manifest says, makes a plan for each CPU, and then waits for tasks to end: a task that died is torn down and, if the
//! manifest wants it, made anew.
//!
//! | module | what it does |
//! | --- | --- |
//! | `machine` | processors, the I/O APIC |
//! | `pool` | physical memory: untyped memories of the right size, cleaned |
//! | `store` | frames that hold the archive's files, shared regions |
//! | `identity` | what outlives a task's restart: endpoint, notification, scheduling context, interrupts |
//! | `build` | one task: space, table, thread, image, start information |
//! | `pages` | what lies in its address space |
//! | `grants` | what the manifest gives it |
//! | `time` | plans and schedulers |
//! | `orders` | what the control task orders |
//! | `supervise` | faults, restarts, the end |
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod build;
mod grants;
mod identity;
mod machine;
mod orders;
mod pages;
mod pool;
mod store;
mod supervise;
mod time;

use alloc::{format, string::String, vec::Vec};
use build::Built;
use core::fmt::Display;
use identity::Identity;
use log::{LevelFilter, debug, info};
use machine::Machine;
use moira_abi::boot::{BootInfo, slot};
use moira_proto::{mailbox::Mailbox, system::System};
use moira_root::archive::{self, File};
use moira_rt::{
    logging::{self, Sink},
    memory::{Addresses, Memory, Slots},
    sys::{
        AddressSpace, CapTable, Deadline, Error, MessageBuffer, Notification, Outcome, Platform, Rights, Slot, now,
        receive,
    },
};
use pool::Pool;
use store::Store;

/// Bytes of the root task's own heap: names, records of slots and windows.
const HEAP_BYTES: usize = 2 << 20;

moira_rt::root_entry!(main, HEAP_BYTES);

static SINK: Log = Log;
const PLATFORM: Platform = Platform::new(Slot(slot::PLATFORM));
/// The root task's own capability table.
const TABLE: CapTable = CapTable::new(Slot(slot::TABLE));
const SPACE: AddressSpace = AddressSpace::new(Slot(slot::SPACE));
/// log2 of the bytes of the untyped that the root task's own objects are made from.
const OWN_BITS: u8 = 18;

/// The kernel's log. The console drives the same serial line: lines of the root task wait a little for the end of the console's.
struct Log;

/// How often a line waits, and for how many ticks at least.
const PATIENCE: (u32, u64) = (8, 1_000_000);

impl Sink for Log {
    fn write(&self, buffer: &mut MessageBuffer, bytes: &[u8]) {
        for _ in 0..PATIENCE.0 {
            if PLATFORM.log_between(buffer, bytes) != Err(Error::Again) {
                return;
            }
            // Nobody calls the root task: this sleeps. If it cannot, the line is not held up.
            let _ = receive(Deadline::after(PATIENCE.1));
        }
        // Nobody is left to tell if even this fails.
        let _ = PLATFORM.log(buffer, bytes);
    }
}

/// What went wrong, in words for a person.
type Failure = String;

/// Says what was being done when something was refused.
trait Doing<T> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: core::fmt::Debug> Doing<T> for Result<T, E> {
    fn doing(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| format!("{}: {error:?}", what()))
    }
}

fn failure(what: impl Display) -> Failure {
    format!("{what}")
}

/// All that the root task knows.
struct Root {
    info: &'static BootInfo,
    system: System,
    files: Vec<File<'static>>,
    machine: Machine,
    pool: Pool,
    /// Its own objects, slots and addresses.
    memory: Memory,
    store: Store,
    /// Signalled when a task stops: bit `index % TASK_BITS`, and when an order waits: bit [`orders::BIT`].
    stopped: Notification,
    /// Where orders wait, if somebody may give any.
    orders: Option<Mailbox<'static>>,
    identities: Vec<Identity>,
    tasks: Vec<Built>,
}

fn main(info: &'static BootInfo, mut buffer: MessageBuffer, archive: &'static [u8]) {
    let line =
        core::str::from_utf8(&info.command_line[..(info.command_line_length as usize).min(info.command_line.len())]);
    let level = line.unwrap_or_default().split_whitespace().find_map(|word| word.strip_prefix("log=")?.parse().ok());
    logging::set_sink(&SINK, level.unwrap_or(LevelFilter::Info));
    info!("root: up after {} us", microseconds(info, now() - info.boot_tsc));
    let why = match Root::new(info, archive) {
        Err(why) => why,
        Ok(mut root) => match root.start() {
            Err(why) => why,
            Ok(()) => root.supervise(&mut buffer),
        },
    };
    let _ = PLATFORM.end(&mut buffer, Outcome::Failure, why.as_bytes());
}

fn microseconds(info: &BootInfo, ticks: u64) -> u64 {
    let microseconds = u128::from(ticks) * 1_000_000 / u128::from(info.tsc_hz.max(1));
    u64::try_from(microseconds).unwrap_or(u64::MAX)
}

impl Root {
    fn new(info: &'static BootInfo, archive: &'static [u8]) -> Result<Root, Failure> {
        let files = archive::files(archive);
        let system = archive::find(&files, "system").ok_or_else(|| failure("the system image has no file `system`"))?;
        let system: System = postcard::from_bytes(system.bytes)
            .map_err(|_| failure("the file `system` of the system image cannot be read: packed by another version?"))?;
        let mut slots = Slots::new(Slot(info.free_slot), info.slot_count);
        let mut pool = Pool::new(info);
        debug!("root: {} KiB of memory, {} files", pool.free() >> 10, files.len());
        let own = pool.take(OWN_BITS, &mut slots).doing(|| failure("too little memory for the root task"))?.untyped;
        let mut memory = Memory { untyped: own, space: SPACE, table: TABLE, slots, addresses: Addresses::new() };
        // The tables for what is mapped for a while later come from the root task's own memory, now.
        let first = memory.make(1, moira_abi::FrameSize::Small).doing(|| failure("the root task's own pages"))?;
        memory.unmake(first);
        let stopped = own
            .retype_notifications(1, memory.slots.take(1).ok_or_else(no_slots)?)
            .doing(|| failure("the root task's notification"))?;
        let stopped = stopped.get(0).ok_or_else(no_slots)?;
        let machine = Machine::new(info, &mut memory);
        let store = Store::default();
        let (identities, tasks) = (Vec::new(), Vec::new());
        Ok(Root { info, system, files, machine, pool, memory, store, stopped, orders: None, identities, tasks })
    }

    /// Makes the whole system; nothing of it has run when this returns, as the boot window is the root task's own.
    fn start(&mut self) -> Result<(), Failure> {
        let begun = now();
        info!("root: system `{}`: {} tasks, {} CPUs", self.system.name, self.system.tasks.len(), self.system.cpus);
        if self.pool.free() < self.system.memory {
            let (has, needs) = (self.pool.free() >> 20, self.system.memory.div_ceil(1 << 20));
            return Err(format!("the system needs {needs} MiB of memory, the machine has {has} MiB left"));
        }
        self.start_cpus()?;
        self.store_files()?;
        self.store_regions()?;
        self.open_orders()?;
        for index in 0..self.system.tasks.len() {
            self.make_identity(index)?;
        }
        for index in 0..self.system.tasks.len() {
            let built = self.build(index, 0)?;
            self.tasks.push(built);
        }
        for index in 0..self.system.tasks.len() {
            self.grant_controls(index)?;
            self.activate(index)?;
        }
        self.register_schedulers()?;
        info!("root: {} tasks made in {} us", self.tasks.len(), microseconds(self.info, now() - begun));
        self.install_plans()
    }

    /// A copy of a capability of the root task's, in a fresh slot of its own.
    fn copy<T: moira_rt::sys::Capability>(&mut self, source: T, rights: Rights) -> Result<T, Failure> {
        let slot = self.memory.slots.take(1).ok_or_else(no_slots)?;
        TABLE.copy(source, slot, rights).doing(|| failure("copying a capability"))
    }
}

fn no_slots() -> Failure {
    failure("the root task's capability table is full")
}
