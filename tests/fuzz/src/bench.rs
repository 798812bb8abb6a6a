//! The supervisor: builds the attacker's world, gives it time, rebuilds, counts, and adds up.

use crate::{
    attack::{self, AIM, ALL, SHARED},
    victim,
};
use alloc::{string::String, vec::Vec};
use core::{fmt::Write, sync::atomic::Ordering::Relaxed};
use moira_abi::{Error, Method, ObjectType};
use moira_lab::{Check, Lab};
use moira_sys::{
    Blocked, CapTable, Capability, Configuration, Cpu, Deadline, Dispatched, Frame, FrameSize, Rights, SchedContext,
    Slot, Space, Thread, Untyped,
};

/// One turn of the attacker, in microseconds.
const TURN: u64 = 20_000;
/// A turn of the victim after so many turns of the attacker.
const VICTIM_EVERY: u64 = 4;
/// The attacker's world is torn down and made anew after so many invocations, whatever its state.
const LIFE: u64 = 20_000;

/// Where the attacker has a guest space and ports.
const GUEST_SPACE: u32 = AIM as u32 - 4;
/// See [`GUEST_SPACE`].
const PORTS: u32 = AIM as u32 - 5;

/// A world for the attacker: all of it is made from the arena.
pub struct World {
    thread: Thread,
    table: CapTable,
    context: SchedContext,
    place: Place,
    /// What it was furnished with, in the laboratory's table.
    made: Vec<Slot>,
}

/// Where an attacker runs.
#[derive(Clone, Copy)]
pub struct Place {
    cpu: Cpu,
    /// Top of its stack.
    stack: u64,
    /// Its number.
    index: usize,
}

/// A place on each processor, for attackers that make so many invocations together.
pub fn places(lab: &mut Lab, seed: u64, count: u64) -> Result<Vec<Place>, Error> {
    let cpus = lab.processors()?;
    let mut places = Vec::new();
    for (index, (cpu, shared)) in cpus.iter().zip(&ALL).enumerate() {
        let (stack, _) = lab.memory(8)?;
        places.push(Place { cpu: *cpu, stack: stack + 8 * 4096, index });
        shared.state.store((seed + index as u64 * 1000).wrapping_mul(0x9e37_79b9_7f4a_7c15).max(1), Relaxed);
        shared.left.store(count / cpus.len().min(attack::MOST) as u64, Relaxed);
        shared.address.store(lab.address(512), Relaxed);
    }
    Ok(places)
}

/// Takes everything back.
pub fn clean(lab: &mut Lab) -> Result<(), Error> {
    bounded(lab).and_then(|()| lab.clean())
}

pub fn first<T: Capability>(made: moira_sys::Caps<T>) -> Result<T, Error> {
    made.get(0).ok_or(Error::NoSlot)
}

/// Where an attacker finds what it can reach of its neighbour's world, on another processor.
const LENT: u32 = 54;

/// What the attacker gets: a table with itself, an untyped, a space, threads, contexts, endpoints, notifications, frames, a plan, an
/// interrupt source without a source, and the CPU without any right. Twice with fewer rights.
fn furnish(lab: &mut Lab, table: CapTable, cpu: Cpu) -> Result<Vec<Slot>, Error> {
    let arena = lab.arena;
    let (mut to, mut made) = (2u32, Vec::new());
    let mut hand = |lab: &mut Lab, kind: ObjectType| -> Result<Slot, Error> {
        let slot = lab.slots(1);
        match kind {
            ObjectType::Untyped => drop(arena.retype_untypeds(16, 1, slot)?),
            ObjectType::Frame => drop(arena.retype_frames(FrameSize::Small, 1, slot)?),
            ObjectType::AddressSpace => drop(arena.retype_space(slot)?),
            ObjectType::CapTable => drop(arena.retype_table(10, slot)?),
            ObjectType::Thread => drop(arena.retype_threads(1, slot)?),
            ObjectType::SchedContext => drop(arena.retype_contexts(1, slot)?),
            ObjectType::Endpoint => drop(arena.retype_endpoints(1, slot)?),
            ObjectType::Notification => drop(arena.retype_notifications(1, slot)?),
            ObjectType::Vcpu => drop(arena.retype_vcpus(1, slot)?),
            ObjectType::Interrupt => drop(arena.retype_interrupts(1, slot)?),
            _ => drop(arena.retype_plan(9, slot)?),
        }
        if kind == ObjectType::Frame {
            scribble(lab, Frame::new(slot))?;
        }
        if kind == ObjectType::Untyped {
            table.move_to(Untyped::new(slot), Slot(to))?;
        } else {
            // The handle's type does not matter to a copy.
            table.copy(Frame::new(slot), Slot(to), Rights::ALL)?;
            to += 1;
            table.copy(Frame::new(slot), Slot(to), Rights(1))?;
            made.push(slot);
        }
        to += 1;
        Ok(slot)
    };
    use ObjectType as T;
    for kind in [
        T::Untyped,
        T::Untyped,
        T::Frame,
        T::Frame,
        T::Frame,
        T::AddressSpace,
        T::CapTable,
        T::Thread,
        T::Thread,
        T::SchedContext,
        T::SchedContext,
        T::Endpoint,
        T::Endpoint,
        T::Notification,
        T::Notification,
        T::Interrupt,
        T::Plan,
    ] {
        hand(lab, kind)?;
    }
    let space = hand(lab, T::AddressSpace)?;
    let memory = lab.slots(1);
    moira_sys::AddressSpace::new(space).add_memory(first(arena.retype_untypeds(15, 1, memory)?)?)?;
    if lab.info.virtualization != 0 {
        hand(lab, T::Vcpu)?;
        hand(lab, T::Vcpu)?;
        let guest = lab.slots(2);
        let space = arena.retype_guest_space(guest)?;
        space.add_memory(first(arena.retype_untypeds(15, 1, guest.plus(1))?)?)?;
        table.copy(space, Slot(GUEST_SPACE), Rights::ALL)?;
    }
    // A port that takes anything: where a BIOS shows its progress.
    let ports = lab.slots(1);
    table.copy(Lab::PLATFORM.make_ports(0x80, 0x80, ports)?, Slot(PORTS), Rights::ALL)?;
    let own = lab.slots(1);
    Lab::TABLE.copy(table, own, Rights::ALL)?;
    table.copy(CapTable::new(own), Slot(attack::OWN_TABLE as u32), Rights::ALL)?;
    table.copy(cpu, Slot(to + 1), Rights(0))?;
    Ok(made)
}

/// Fills a frame with what may be a vCPU's state page, or a message: here and there a number.
fn scribble(lab: &mut Lab, frame: Frame) -> Result<(), Error> {
    let address = SHARED.address.load(Relaxed);
    Lab::SPACE.map(frame, address, moira_sys::MapFlags::READ_WRITE)?;
    let dense = attack::random().is_multiple_of(2);
    for word in 0..512 {
        if dense && attack::random().is_multiple_of(4) {
            moira_lab::store(address + word * 8, attack::random() >> (attack::random() % 64));
        }
    }
    let _ = lab;
    Lab::SPACE.unmap_fully(frame)
}

fn build(lab: &mut Lab, place: Place) -> Result<World, Error> {
    let slot = lab.slots(6);
    let arena = lab.arena;
    let table = arena.retype_table(12, slot)?;
    let thread = first(arena.retype_threads(1, slot.plus(1))?)?;
    let context = first(arena.retype_contexts(1, slot.plus(2))?)?;
    let buffer = first(arena.retype_frames(FrameSize::Small, 1, slot.plus(3))?)?;
    thread.configure(&Configuration {
        space: Lab::SPACE,
        table,
        buffer: Some(buffer),
        level: 3,
        fault_endpoint: None,
        fault_notification: Some(lab.faults),
        entry: attack::main as *const () as u64,
        stack: place.stack - 8,
    })?;
    context.bind(thread, place.cpu)?;
    let made = furnish(lab, table, place.cpu)?;
    // It holds itself, too: it can stop itself, and write its own registers as far as the kernel lets it.
    table.copy(thread, Slot(AIM as u32 - 2), Rights::ALL)?;
    table.copy(context, Slot(AIM as u32 - 1), Rights::ALL)?;
    if let Some(shared) = ALL.get(place.index) {
        shared.begun.store(shared.recorded.load(Relaxed), Relaxed);
    }
    Ok(World { thread, table, context, place, made })
}

/// Builds a world for each attacker, lets them have of one another's, and starts them.
pub fn build_all(lab: &mut Lab, places: &[Place]) -> Result<Vec<World>, Error> {
    let mut worlds = Vec::new();
    for place in places {
        worlds.push(build(lab, *place)?);
    }
    for (index, world) in worlds.iter().enumerate() {
        let next = worlds.get((index + 1) % worlds.len()).filter(|next| next.table.slot() != world.table.slot());
        for (from, to) in world.made.iter().zip(LENT..GUEST_SPACE - 1) {
            if let Some(next) = next {
                next.table.copy(Frame::new(*from), Slot(to), Rights::ALL)?;
            }
        }
    }
    for world in &worlds {
        world.thread.activate(world.place.cpu, [world.place.index as u64, 0])?;
        if world.place.index > 0 {
            lab.own_window(world.place.cpu, world.context)?;
        }
    }
    Ok(worlds)
}

/// A thread that is not the attacker's: its own table is the laboratory's, and nothing of it is in the attacker's.
fn victim(lab: &mut Lab, stack: u64) -> Result<SchedContext, Error> {
    let slot = lab.slots(2);
    let home = lab.home;
    let thread = first(home.retype_threads(1, slot)?)?;
    let context = first(home.retype_contexts(1, slot.plus(1))?)?;
    thread.configure(&Configuration {
        space: Lab::SPACE,
        table: Lab::TABLE,
        buffer: None,
        level: 1,
        fault_endpoint: None,
        fault_notification: Some(lab.faults),
        entry: victim::main as *const () as u64,
        stack: stack - 8,
    })?;
    context.bind(thread, Lab::CPU)?;
    thread.activate(Lab::CPU, [0, 0])?;
    Ok(context)
}

/// What became of a turn.
#[derive(Debug, PartialEq, Eq)]
enum Turn {
    /// It goes on.
    On,
    /// It waits or is stopped or is gone, and will not come back by itself.
    Stuck,
}

fn turn(lab: &mut Lab, world: &World) -> Result<Turn, Error> {
    match lab.run(world.context, TURN) {
        Ok(Dispatched::Blocked { deadline, kind: Blocked::Waiting, .. })
            if deadline != 0 && deadline < Deadline::after(lab.micros(TURN)).0 =>
        {
            while moira_sys::now() < deadline {
                core::hint::spin_loop();
            }
            Ok(Turn::On)
        }
        Ok(Dispatched::Blocked { .. }) => Ok(Turn::Stuck),
        Ok(_) => Ok(Turn::On),
        Err(error) => Err(error),
    }
}

/// The experiment.
pub fn run(lab: &mut Lab, seed: u64, count: u64) -> Result<(), Error> {
    let places = places(lab, seed, count)?;
    let many = places.len() as u64;
    let count = count / many * many;
    let (victim_stack, _) = lab.memory(4)?;
    let victim_context = victim(lab, victim_stack + 4 * 4096)?;
    let (home_free, dirty_free) = (lab.home.info()?.free, lab.dirty.info()?.free);
    lab.keep();
    log::info!("fuzz: seed {seed}, {count} invocations, {many} processors");
    let (mut worlds, mut stuck, mut shown) = (0u64, 0u64, 0u64);
    lab.experiment_of_its_own("fuzz", |lab, check| {
        while attack::made() < count {
            worlds += 1;
            let cleaned = clean(lab);
            if check.good("cleaning up", cleaned).is_none() {
                return;
            }
            check.equal("the arena is whole", lab.arena.info().map(|info| info.free), Ok(1 << moira_lab::ARENA_BITS));
            let built = build_all(lab, &places);
            let Some(built) = check.good("a new world", built) else { return };
            lab.begin_audit(&[victim_context], check);
            stuck += u64::from(live(lab, check, &built, victim_context));
            lab.end_audit(false, check);
            let made = attack::made();
            if made >= shown + count / 10 {
                shown = made;
                log::info!("fuzz: {made} invocations, {worlds} worlds so far");
            }
            let before = victim::SHOWN.rounds.load(Relaxed);
            // A busy host may eat a whole turn, but not all of these.
            for _ in 0..200 {
                check.good("the victim's turn", lab.run(victim_context, TURN / 8));
                if victim::SHOWN.rounds.load(Relaxed) > before {
                    break;
                }
            }
            check.holds("the victim goes on", victim::SHOWN.rounds.load(Relaxed) > before);
        }
        check.equal("invocations", attack::made(), count);
        check.equal("the victim's memory is its own", victim::SHOWN.wrong.load(Relaxed), 0);
        check.holds("the victim made progress", victim::SHOWN.rounds.load(Relaxed) > 10);
        check.equal("what the laboratory keeps", lab.home.info().map(|info| info.free), Ok(home_free));
        check.equal("what it never touched", lab.dirty.info().map(|info| info.free), Ok(dirty_free));
        ledger(lab, check);
    });
    report(count, worlds, stuck);
    Ok(())
}

/// The life of these worlds. Answers whether it ended because nobody could go on.
fn live(lab: &mut Lab, check: &mut Check, worlds: &[World], victim: SchedContext) -> bool {
    let begun = attack::made();
    let Some(first) = worlds.first() else { return false };
    let (mut turns, mut seen, mut still) = (0, begun, 0);
    while ALL.iter().any(|one| one.left.load(Relaxed) > 0) && attack::made() - begun < LIFE {
        turns += 1;
        if turns % VICTIM_EVERY == 0 {
            check.good("the victim's turn", lab.run(victim, TURN / 8));
        }
        let outcome = turn(lab, first);
        lab.go_on_with_audit();
        if worlds.len() == 1 {
            match outcome {
                Ok(Turn::On) => continue,
                Ok(Turn::Stuck) => return true,
                // It ended its own account.
                Err(_) => return false,
            }
        }
        // Whoever is stuck here may be the only one: the others have some time to show something.
        if outcome != Ok(Turn::On) {
            let until = Deadline::after(lab.micros(TURN / 8)).0;
            while moira_sys::now() < until {
                core::hint::spin_loop();
            }
        }
        let made = attack::made();
        still = if made == seen { still + 1 } else { 0 };
        seen = made;
        if still == 3 {
            return true;
        }
    }
    false
}

/// Takes everything back, within a bound that no honest revoke needs; else says what the attacker did.
fn bounded(lab: &mut Lab) -> Result<(), Error> {
    // Steps are counted, and waiting is timed: other processors may be kept from their part for long, where a host has more to do than
    // they, and what comes after that is steps again.
    let until = Deadline::after(lab.micros(20_000_000)).0;
    let (mut steps, mut waits) = (0u32, 0u64);
    while steps < 100_000 && (waits < 100_000 || moira_sys::now() < until) {
        match lab.arena.revoke() {
            Err(Error::Again) => steps += 1,
            Err(Error::Retiring) => waits += 1,
            other => return other,
        }
    }
    log::info!("fuzz: {steps} steps of a revoke and {waits} looks at what others have to do first");
    for (index, shared) in ALL.iter().enumerate() {
        let (recorded, most) = (shared.recorded.load(Relaxed), shared.history.len() as u64);
        for number in recorded.saturating_sub(most).max(shared.begun.load(Relaxed))..recorded {
            let Some(entry) = shared.history.get(number as usize % shared.history.len()) else { continue };
            let [tag, capability, words @ .., status] = entry.each_ref().map(|cell| cell.load(Relaxed));
            log::info!(
                "fuzz: {index}: {:?} {tag:x} on {capability}: {words:x?} -> {status}",
                Method::from_code(tag as u8)
            );
        }
        let current = shared.current.each_ref().map(|cell| cell.load(Relaxed));
        log::info!("fuzz: {index}: under way {}: {current:x?}", shared.under_way.load(Relaxed));
    }
    Err(Error::TooDeep)
}

pub fn ledger(lab: &mut Lab, check: &mut Check) {
    if let Some(ledger) = check.good("ledger", Lab::CPU.ledger(&mut lab.buffer)) {
        check.equal("the ledger adds up", ledger.contexts + ledger.idle + ledger.interrupts, ledger.elapsed);
    }
}

fn report(count: u64, worlds: u64, stuck: u64) {
    let mut line = String::new();
    for method in Method::ALL {
        let made = ALL
            .iter()
            .filter_map(|one| one.methods.get(*method as usize))
            .map(|count| count.load(Relaxed))
            .sum::<u64>();
        let _ = write!(line, " {method:?} {made}");
        if line.len() > 400 {
            log::info!("fuzz: methods:{line}");
            line.clear();
        }
    }
    let valid: u64 = Method::ALL
        .iter()
        .flat_map(|method| ALL.iter().filter_map(|one| one.methods.get(*method as usize)))
        .map(|count| count.load(Relaxed))
        .sum();
    log::info!("fuzz: methods:{line} none {}", count - valid);
    line.clear();
    let mut back = 0;
    for code in 0..256 {
        let made: u64 = ALL.iter().filter_map(|one| one.statuses.get(code)).map(|made| made.load(Relaxed)).sum();
        back += made;
        if made > 0 {
            let name = Error::from_code(code as u8).map_or(String::from("Ok"), |error| alloc::format!("{error:?}"));
            let _ = write!(line, " {name} {made}");
        }
    }
    log::info!("fuzz: answers:{line}, none {}", count - back);
    let rounds = victim::SHOWN.rounds.load(Relaxed);
    log::info!("fuzz: {count} invocations, {worlds} worlds, {stuck} ended by itself, victim {rounds} rounds");
}
