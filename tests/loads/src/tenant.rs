//! Asks the planner for contracts, on all CPUs, until it refuses; sees that what was promised is given; releases, moves, dies, asks again.

use alloc::{boxed::Box, vec, vec::Vec};
use moira_rt::{
    Env,
    memory::Slots,
    proto::{
        planner::{ASK, BOUND, DONE, INSTALL, MOVE, NO, RELEASE, ROOM, UNKNOWN, YES},
        start::slot,
    },
    sys::{self, Capability, Configuration, Cpu, Endpoint, Message, Received, SchedContext, Slot, Thread, Untyped},
};

macro_rules! must {
    ($good:expr, $($text:tt)*) => {
        if !$good {
            return Err(alloc::format!($($text)*));
        }
    };
}

mod slack;

/// A contract and the thread that has its time.
struct Tenant {
    id: u64,
    cpu: u64,
    memory: Untyped,
    context: SchedContext,
}

/// How often it looks again for what must come to pass, on machines whose clock is not counted.
const PATIENCE: u32 = 200;

struct Agent<'a> {
    env: &'a mut Env,
    planner: Endpoint,
    memory: Untyped,
    slots: Slots,
    slice: u64,
    period: u64,
}

/// Why the test failed, in words.
type Failure = alloc::string::String;

/// Runs the test and says how it went.
pub fn run(env: &mut Env) {
    let (Some(planner), Some(memory)) = (env.capability("planner"), env.capability("objects")) else {
        log::error!("tenant: not given what it needs");
        return;
    };
    let (slice, period) = (env.ticks(2_000_000), env.ticks(10_000_000));
    let slots = env.slots();
    let exact = env.number("exact", 0) != 0;
    let lives_on_slack = env.number("slack", 0) != 0;
    let mut agent = Agent { env, planner, memory, slots, slice, period };
    match if lives_on_slack { agent.slack(exact) } else { agent.test(exact) } {
        Ok(()) => log::info!("tenant: all contracts kept"),
        Err(why) => log::error!("tenant: {why}"),
    }
}

impl Agent<'_> {
    fn call(&mut self, message: &Message) -> Result<Received, Failure> {
        self.planner.call(message).map_err(|error| alloc::format!("the planner cannot be called: {error:?}"))
    }

    fn test(&mut self, exact: bool) -> Result<(), Failure> {
        let rooms = self.rooms()?;
        let expected: u64 = rooms.iter().map(|room| room / 200_000).sum();
        log::info!("tenant: {rooms:?} ppm are left, {expected} contracts of 20 % should fit");
        let mut tenants = self.fill()?;
        must!(tenants.len() as u64 == expected, "{} contracts were let in, {expected} should", tenants.len());
        self.refusals()?;
        self.given(&tenants, exact)?;
        self.release(&mut tenants)?;
        must!(self.fill()?.is_empty(), "more was let in than fits");
        self.shift(&mut tenants)?;
        // One dies without a word: its windows are nobody's, its contract stays until it is released.
        let dead = tenants.pop().ok_or("nobody is left")?;
        dead.memory.revoke_fully().map_err(|error| alloc::format!("{error:?}"))?;
        must!(self.fill()?.is_empty(), "the contract of a dead context was given away");
        must!(self.call(&Message::new(RELEASE).words([dead.id]))?.label == DONE, "it cannot be released");
        let again = self.fill()?;
        must!(again.len() == 1, "{} contracts instead of one after a death", again.len());
        tenants.extend(again);
        self.given(&tenants, exact)
    }

    /// What each CPU has left.
    fn rooms(&mut self) -> Result<Vec<u64>, Failure> {
        let answer = self.call(&Message::new(ROOM))?;
        let rooms: Vec<u64> = (0..answer.words[1] as usize).map(|cpu| self.env.buffer.word(cpu)).collect();
        must!(answer.label == DONE && rooms.iter().sum::<u64>() == answer.words[0], "ROOM: {answer:?}");
        Ok(rooms)
    }

    /// Asks until the planner says no, and sees that it says so for a good reason.
    fn fill(&mut self) -> Result<Vec<Tenant>, Failure> {
        let mut tenants = Vec::new();
        loop {
            let answer = self.call(&Message::new(ASK).words([self.slice, self.period, 0, 0, 0]))?;
            match answer.label {
                YES => {
                    must!(answer.words[2] >= 199_998, "promised {} ppm", answer.words[2]);
                    tenants.push(self.settle(&answer)?);
                }
                NO => {
                    let rooms = self.rooms()?;
                    must!(answer.words[0] == rooms.len() as u64, "{} CPUs were asked", answer.words[0]);
                    must!(answer.words[2] == 2, "refused for reason {}", answer.words[2]);
                    must!(rooms.iter().all(|room| *room < 200_000), "refused, and there is room: {rooms:?}");
                    must!(answer.words[5] == rooms.iter().sum(), "{} ppm over all CPUs", answer.words[5]);
                    return Ok(tenants);
                }
                other => return Err(alloc::format!("ASK: {other}")),
            }
        }
    }

    /// Makes a thread on the CPU of a contract and gives its context the windows.
    fn settle(&mut self, answer: &Received) -> Result<Tenant, Failure> {
        let received = answer.capability(0).ok_or("no CPU came with the answer")?;
        let tenant = self.thread(answer.words[0], answer.words[1], Cpu::at(received));
        let _ = self.env.table().delete_fully(received);
        let tenant = tenant.map_err(|error| alloc::format!("a thread on CPU {}: {error:?}", answer.words[1]))?;
        let install = Message::new(INSTALL).words([tenant.id]).capability(tenant.context.slot());
        must!(self.call(&install)?.label == DONE, "INSTALL was refused");
        Ok(tenant)
    }

    fn thread(&mut self, id: u64, cpu: u64, home: Cpu) -> Result<Tenant, sys::Error> {
        let mut slot = || self.slots.take(1).ok_or(sys::Error::NoSlot);
        let memory = self.memory.retype_untypeds(12, 1, slot()?)?.get(0).ok_or(sys::Error::NoSlot)?;
        let thread: Thread = memory.retype_threads(1, slot()?)?.get(0).ok_or(sys::Error::NoSlot)?;
        let context = memory.retype_contexts(1, slot()?)?.get(0).ok_or(sys::Error::NoSlot)?;
        let stack = Box::leak(vec![0_u64; 64].into_boxed_slice());
        thread.configure(&Configuration {
            space: self.env.space(),
            table: self.env.table(),
            buffer: None,
            level: 1,
            fault_endpoint: None,
            fault_notification: None,
            entry: spin as *const () as u64,
            stack: (stack.as_ptr_range().end as u64 & !15) - 8,
        })?;
        context.bind(thread, home)?;
        thread.activate(home, [0, 0])?;
        Ok(Tenant { id, cpu, memory, context })
    }

    /// What must be refused, and why.
    fn refusals(&mut self) -> Result<(), Failure> {
        let (slice, period) = (self.slice, self.period);
        for (words, reason) in [
            ([period + 1, period, 0, 0, 0], 1),
            ([slice, 0, 0, 0, 0], 1),
            ([slice, u64::MAX, 0, 0, 0], 6),
            // A wait of nearly nothing, for a share that there is.
            ([period / 1_000, period, 2_000, 0, 0], 3),
        ] {
            let answer = self.call(&Message::new(ASK).words(words))?;
            must!(answer.label == NO && answer.words[2] == reason, "{words:?}: {} {:?}", answer.label, answer.words);
        }
        let nowhere = self.call(&Message::new(ASK).words([slice, period, 0, BOUND, 99]))?;
        must!(nowhere.label == NO && nowhere.words[0] == 0, "a CPU that is not there: {:?}", nowhere.words);
        // The manifest's contracts are nobody's to release, and what is no context gets no windows.
        must!(self.call(&Message::new(RELEASE).words([1]))?.label == UNKNOWN, "released what is another's");
        let wrong = Message::new(INSTALL).words([1]).capability(Slot(slot::NOTIFICATION));
        must!(self.call(&wrong)?.label == UNKNOWN, "a notification got windows");
        Ok(())
    }

    fn consumed(&self, tenants: &[Tenant]) -> Vec<u64> {
        tenants.iter().map(|tenant| tenant.context.consumed().map_or(0, |consumed| consumed.own)).collect()
    }

    /// Everybody gets time; where the clock is counted, exactly what was promised.
    fn given(&mut self, tenants: &[Tenant], exact: bool) -> Result<(), Failure> {
        // The plan is in force after the current cycle, and a cycle may be some periods.
        crate::sleep_until(self.env, sys::now() + 4 * self.period);
        let (before, begin) = (self.consumed(tenants), sys::now());
        crate::sleep_until(self.env, begin + 10 * self.period);
        let mut after = self.consumed(tenants);
        // A CPU of an emulator may itself be kept waiting.
        for _ in 0..PATIENCE {
            if exact || before.iter().zip(&after).all(|(before, after)| before < after) {
                break;
            }
            crate::sleep_until(self.env, sys::now() + self.period);
            after = self.consumed(tenants);
        }
        for (tenant, (before, after)) in tenants.iter().zip(before.iter().zip(&after)) {
            must!(after > before, "a tenant on CPU {} got nothing", tenant.cpu);
            // Ten slices, or nine and a part at either end.
            let promised = 10 * self.slice;
            must!(
                !exact || (after - before).abs_diff(promised) <= self.slice / 50,
                "{} ticks instead of {promised}",
                after - before
            );
        }
        Ok(())
    }

    /// Ends every second contract: its context gets no more, and as many fit anew.
    fn release(&mut self, tenants: &mut Vec<Tenant>) -> Result<(), Failure> {
        let (mut kept, mut released) = (Vec::new(), Vec::new());
        for (index, tenant) in tenants.drain(..).enumerate() {
            if index % 2 == 0 { kept.push(tenant) } else { released.push(tenant) }
        }
        for tenant in &released {
            must!(self.call(&Message::new(RELEASE).words([tenant.id]))?.label == DONE, "RELEASE was refused");
            must!(self.call(&Message::new(RELEASE).words([tenant.id]))?.label == UNKNOWN, "released twice");
        }
        let stopped = (0..PATIENCE).any(|_| {
            crate::sleep_until(self.env, sys::now() + 4 * self.period);
            let before = self.consumed(&released);
            crate::sleep_until(self.env, sys::now() + 4 * self.period);
            self.consumed(&released) == before
        });
        must!(stopped, "who has no contract any more still gets time");
        let again = self.fill()?;
        must!(again.len() == released.len(), "{} were released, {} fit again", released.len(), again.len());
        for tenant in &released {
            tenant.memory.revoke_fully().map_err(|error| alloc::format!("{error:?}"))?;
        }
        kept.extend(again);
        *tenants = kept;
        Ok(())
    }

    /// Moves a contract to a CPU that has room, with a new context, and to one that has none, which changes nothing.
    fn shift(&mut self, tenants: &mut [Tenant]) -> Result<(), Failure> {
        let (Some(first), Some(other)) =
            (tenants.first().map(|one| one.cpu), tenants.iter().find(|one| one.cpu != tenants[0].cpu))
        else {
            return Ok(());
        };
        let (other, to) = (other.id, other.cpu);
        let full = self.call(&Message::new(MOVE).words([tenants[0].id, to]))?;
        must!(full.label == NO && full.words[1] == to, "moved to a full CPU: {full:?}");
        must!(self.call(&Message::new(RELEASE).words([other]))?.label == DONE, "RELEASE was refused");
        let moved = self.call(&Message::new(MOVE).words([tenants[0].id, to]))?;
        must!(moved.label == YES && moved.words[1] == to, "not moved: {moved:?}");
        let old = tenants[0].memory;
        tenants[0] = self.settle(&moved)?;
        old.revoke_fully().map_err(|error| alloc::format!("{error:?}"))?;
        let answer = self.call(&Message::new(ASK).words([self.slice, self.period, 0, BOUND, first]))?;
        must!(answer.label == YES, "no room where it came from");
        let Some(place) = tenants.iter_mut().find(|one| one.id == other) else { return Ok(()) };
        let old = place.memory;
        *place = self.settle(&answer)?;
        old.revoke_fully().map_err(|error| alloc::format!("{error:?}"))
    }
}

extern "C" fn spin(_: u64, _: u64) -> ! {
    loop {
        core::hint::black_box(());
    }
}
