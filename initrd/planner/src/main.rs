//! The planner task: contracts of time in a running system (protocol: `moira_proto::planner`, `docs/abi/planner.md`).
//!
//! | given | what for |
//! | --- | --- |
//! | capabilities `cpus` | the CPUs, with PLAN |
//! | capabilities `contexts` | the contexts of the manifest's contracts, in the order of the book |
//! | capabilities `schedulers` | the tables of the slack schedulers, with USE, in the order of their CPUs: contexts that take slack are put there |
//! | region `book` | what was promised when the system started |
//! | untyped `plans` | memory for two plans a CPU |
//!
//! The plan that is in force stays so until another one replaces it at the end of a cycle: what was promised holds if this task never runs
//! again. It is trusted with time, and with nothing else.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod server;

use alloc::{string::String, vec::Vec};
use log::{error, info};
use moira_planner::{Admission, Contract, Terms};
use moira_rt::{
    Env,
    proto::planner::{BOOK, Book, SCHEDULERS},
    sys::{CapTable, Cpu, Plan, Rights, SchedContext, Slot, Untyped, serve},
};
use server::{Holder, Planner, Processor, Scheduler};

moira_rt::entry!(main);

fn main(env: Env) {
    match start(env) {
        Ok(mut planner) => {
            let error = serve(planner.deadline(), |event| planner.handle(event));
            error!("planner: cannot serve: {error:?}");
        }
        Err(why) => error!("planner: {why}"),
    }
}

/// The book as it stands in its region: the length first.
fn book(env: &Env) -> Option<Book> {
    let region = env.shared(BOOK)?;
    let mut length = [0; 8];
    region.read(0, &mut length);
    let length = usize::try_from(u64::from_le_bytes(length)).ok()?;
    let mut bytes = alloc::vec![0; length.min(moira_rt::proto::planner::BOOK_BYTES as usize)];
    region.read(8, &mut bytes);
    postcard::from_bytes(&bytes).ok()
}

fn start(env: Env) -> Result<Planner, String> {
    let book = book(&env).ok_or("it has no book: its role in the manifest is not `planner`")?;
    let untyped: Untyped = env.capability("plans").ok_or("the manifest grants no untyped `plans`")?;
    let cpus = env.capabilities::<Cpu>("cpus").ok_or("it has no CPUs")?;
    let contexts = env.capabilities::<SchedContext>("contexts").ok_or("it has no contexts")?;
    let mut slots = env.slots();
    let mut slot = || slots.take(1).ok_or_else(|| String::from("its capability table is full"));
    let refused = |what: &str, error| alloc::format!("{what}: {error:?}");

    // Two plans for each CPU: one in force, one to write.
    let share = untyped.info().map_err(|error| refused("plans", error))?.free / (2 * u64::from(cpus.len().max(1)));
    let bits = share.checked_ilog2().unwrap_or(0).min(20) as u8;
    let windows = (1_usize << bits).saturating_sub(64) / 32;
    let mut processors = Vec::new();
    let mut tables = env.capabilities::<CapTable>(SCHEDULERS).into_iter().flat_map(|tables| tables.iter());
    for (index, cpu) in cpus.iter().enumerate() {
        let mut plan = || -> Result<Plan, String> {
            untyped.retype_plan(bits, slot()?).map_err(|error| refused("a plan from the untyped `plans`", error))
        };
        let plans = [plan()?, plan()?];
        let bare = env.table().copy(cpu, slot()?, Rights(0)).map_err(|error| refused("a CPU", error))?;
        let first = book.newcomers.get(index).copied().filter(|first| *first > 0);
        let scheduler = first.and_then(|first| Some(Scheduler { table: tables.next()?, first: Slot(first) }));
        processors.push(Processor { cpu, bare, plans, stale: false, scheduler });
    }
    let quanta: Vec<Option<u64>> = book.quanta.iter().map(|quantum| (*quantum > 0).then_some(*quantum)).collect();
    let mut admission = Admission::new(&quanta, Terms::new(env.info.tsc_hz, windows));
    let mut holders = Vec::new();
    for (booked, context) in book.contracts.iter().zip(contexts.iter()) {
        let placed = admission.enter(Contract::from(booked), Some(booked.cpu as usize)).map_err(|refused| {
            alloc::format!("{}: cannot keep what the root task promised: {}", booked.name, refused.first().1.reason)
        })?;
        // Nobody's to release: no client has this badge.
        holders.push(Holder { id: placed.id, badge: None, context: Some(context), place: None });
    }
    let room: u64 = (0..admission.cpus()).map(|cpu| admission.room_ppm(cpu)).sum();
    info!(
        "{} contracts on {} CPUs, {windows} windows each, {}.{:02} % of a CPU left",
        holders.len(),
        processors.len(),
        room / 10_000,
        room % 10_000 / 100
    );
    let retry = env.ticks(1_000_000);
    let look = env.ticks(100_000_000);
    Ok(Planner { admission, processors, holders, table: env.table(), slots, buffer: env.buffer, retry, look })
}
