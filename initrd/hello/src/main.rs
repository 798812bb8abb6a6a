//! Small tasks for first systems and for the supervisor's tests; the argument `role=` chooses which.
//!
//! | role | capabilities | what it does |
//! | --- | --- | --- |
//! | `ping` | `pong`, `console` | calls `pong` (or `server=`) `rounds=` times (100), checks each answer, prints the mean time, finishes |
//! | `pong` | `console`; serves | answers each call with its words plus one |
//! | `crasher` | `console` | works `rounds=` times (10), then writes to address 0; started again for the `deaths=`th time (1), it says so and finishes |
//! | `maker` | `memory` (an untyped), `console` | makes pages from it, checks that they are zero, writes them, begins to revoke them and dies in the middle; started again, does the same but finishes |
//! | `killer` | controls `victim`, `console` | makes its victim fault after a random time, `rounds=` times, from `seed=` |
//! | `panicker` | `console` | panics; started again, it says so and finishes |
//! | `deep` | `console` | calls itself until its stack ends |
//! | none | `console` | prints its arguments |
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use log::{error, info};
use moira_rt::{
    Env, end,
    memory::Memory,
    sys::{self, Deadline, Endpoint, Error, Event, FrameSize, Message, Next, Thread, Untyped},
};

moira_rt::entry!(main);

fn main(env: Env) {
    match env.argument("role") {
        Some("ping") => ping(&env),
        Some("pong") => pong(),
        Some("crasher") => crasher(&env),
        Some("maker") => maker(env),
        Some("panicker") => panicker(&env),
        Some("killer") => killer(env),
        Some("deep") => info!("{} calls deep", deep(0)),
        Some(other) => panic!("there is no role `{other}`"),
        None => info!("{}", env.info.arguments.join(" ")),
    }
}

/// Half a KiB of stack for each call.
fn deep(calls: u64) -> u64 {
    let place = core::hint::black_box([calls; 64]);
    if calls == u64::MAX { calls } else { deep(calls + 1) + core::hint::black_box(place).iter().sum::<u64>() }
}

/// Label of a ping.
const PING: u32 = 1;

fn ping(env: &Env) {
    let server = env.argument("server").unwrap_or("pong");
    let Some(pong) = env.capability::<Endpoint>(server) else {
        error!("there is no {server} to call");
        return;
    };
    let rounds = env.number("rounds", 100);
    let start = sys::now();
    for round in 0..rounds {
        match pong.call(&Message::new(PING).words([round])) {
            Ok(answer) if answer.label == PING && answer.words[0] == round + 1 => {}
            Ok(answer) => {
                error!("round {round}: pong answered {} instead of {}", answer.words[0], round + 1);
                return;
            }
            Err(error) => {
                error!("round {round}: {error:?}");
                return;
            }
        }
    }
    let ticks = (sys::now() - start) / rounds.max(1);
    info!("{rounds} calls answered, {ticks} ticks each");
}

fn pong() {
    info!("serving");
    let error = sys::serve(Deadline::NEVER, |event| match event {
        Event::Call(call) => {
            let words = call.words.map(|word| word.wrapping_add(1));
            Next::Reply(Message::new(call.label).words(words), Deadline::NEVER)
        }
        Event::Notified(_) | Event::Timeout => Next::Receive(Deadline::NEVER),
    });
    error!("cannot serve: {error:?}");
}

/// Something to do that the compiler cannot leave out: the sum of a freshly allocated list.
fn work(round: u64) -> u64 {
    let list: alloc::vec::Vec<u64> = (0..1000 + round).collect();
    core::hint::black_box(list).iter().sum()
}

fn crasher(env: &Env) {
    let rounds = env.number("rounds", 10);
    for round in 0..rounds {
        info!("round {round}: {}", work(round));
    }
    if u64::from(env.info.restarts) < env.number("deaths", 1) {
        info!("writing to address 0");
        end::write_to_null();
    }
    info!("finished after {} restarts", env.info.restarts);
}

/// Bytes that a maker makes pages of.
const MADE: u64 = 256 << 10;

fn maker(env: Env) {
    let Some(untyped) = env.capability::<Untyped>("memory") else {
        error!("there is no memory");
        return;
    };
    let mut memory = Memory::new(&env, untyped);
    let mapping = match memory.make(MADE, FrameSize::Small) {
        Ok(mapping) => mapping,
        Err(error) => panic!("cannot make memory: {error:?}"),
    };
    let mut first = [0; 4096];
    for offset in (0..MADE as usize).step_by(first.len()) {
        mapping.shared().read(offset, &mut first);
        assert!(first.iter().all(|byte| *byte == 0), "the page at {offset} is not zero");
        mapping.shared().write(offset, &[0xa5; 4096]);
    }
    info!("{} KiB made and written", MADE >> 10);
    if env.info.restarts == 0 {
        let step = untyped.revoke();
        info!("dying in the middle of a revoke: {step:?}");
        end::write_to_null();
    }
    info!("finished after {} restarts", env.info.restarts);
}

/// A killed task runs, and faults, within this time.
const SETTLE_NS: u64 = 2_000_000;

/// Kills another task at random moments: it is stopped wherever it is, in its guest too, and goes on at address 0.
fn killer(mut env: Env) {
    let Some(victim) = env.capability::<Thread>("victim-control") else {
        error!("there is nobody to kill");
        return;
    };
    let rounds = env.number("rounds", 10);
    let most = env.ticks(env.number("most-us", 2000) * 1000);
    let mut random = env.number("seed", 1) << 1 | 1;
    let mut killed = 0;
    while killed < rounds {
        // xorshift64*
        random ^= random >> 12;
        random ^= random << 25;
        random ^= random >> 27;
        let pause = random.wrapping_mul(0x2545_f491_4f6c_dd1d) % most.max(1);
        let _ = sys::receive(Deadline::after(pause));
        // Not before the last one's fault was seen, and it was made anew: meanwhile there is none, or one that has a fault.
        if victim.read_registers(&mut env.buffer) != Err(Error::Active) {
            continue;
        }
        let hit = victim.stop().and_then(|()| {
            let mut registers = victim.read_registers(&mut env.buffer)?.registers;
            registers.rip = 0;
            victim.write_registers(&mut env.buffer, &registers)?;
            victim.resume()
        });
        if hit.is_ok() {
            killed += 1;
            let _ = sys::receive(Deadline::after(env.ticks(SETTLE_NS)));
        }
    }
    info!("killed {killed} times");
}

fn panicker(env: &Env) {
    assert!(env.info.restarts > 0, "a panic on purpose");
    info!("finished after {} restarts", env.info.restarts);
}
