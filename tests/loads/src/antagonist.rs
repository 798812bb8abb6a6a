//! Tasks that try to take what is not theirs: each makes as much work of one kind as it can, for ever.

use crate::stretch;
use alloc::{boxed::Box, vec};
use moira_rt::{
    Env, end,
    sys::{
        self, Caps, Configuration, Cpu, Deadline, Endpoint, Event, FrameSize, MapFlags, Notification, Slot, Space,
        Thread, Untyped, reply_receive_short,
    },
};

/// Runs until the end of the experiment.
pub fn run(env: &Env, role: &str) {
    let (_, to) = stretch(env);
    let end = to + env.ticks(1_000_000_000);
    let done = match role {
        "nothing" => {
            crate::sleep_until(env, end);
            Some(())
        }
        "spinner" => {
            crate::work_until(end);
            Some(())
        }
        "syscalls" => syscalls(env, end),
        "calls" => calls(env, end),
        "objects" => objects(env, end),
        "signals" => signals(env, end),
        "faults" => faults(env),
        other => panic!("there is no role `{other}`; tests/loads/src names all"),
    };
    assert!(done.is_some(), "{role}: not given what it needs");
}

/// The cheapest call that fails, a poll, a table look-up.
fn syscalls(env: &Env, end: u64) -> Option<()> {
    let nothing = Notification::new(Slot(u32::MAX));
    while sys::now() < end {
        for _ in 0..16 {
            let _ = nothing.signal();
            let _ = env.notification().poll();
            let _ = env.table().inspect(Slot(2));
        }
    }
    Some(())
}

/// Calls the server that the victim calls too.
fn calls(env: &Env, end: u64) -> Option<()> {
    let server: Endpoint = env.capability("server")?;
    while sys::now() < end {
        let _ = server.call_short(0, &[]);
    }
    Some(())
}

/// Makes objects, maps pages, and ends them all.
fn objects(env: &Env, end: u64) -> Option<()> {
    let untyped: Untyped = env.capability("objects")?;
    let mut slots = env.slots();
    let first = slots.take(32)?;
    let address = moira_rt::proto::start::layout::FREE;
    let pause = crate::time(env, "pause_us", 0);
    while sys::now() < end {
        if let Ok(frames) = untyped.retype_frames(FrameSize::Small, 8, first)
            && let Some(frame) = frames.get(0)
            && env.space().map(frame, address, MapFlags::READ_WRITE).is_ok()
        {
            let _ = env.space().unmap_fully(frame);
        }
        if pause > 0 {
            crate::sleep_until(env, sys::now() + pause);
        }
        let _ = untyped.retype_threads(8, first.plus(8));
        let _ = untyped.retype_contexts(8, first.plus(16));
        let _ = untyped.revoke_fully();
    }
    Some(())
}

/// Signals the victim, and sleeps and wakes all the time.
fn signals(env: &Env, end: u64) -> Option<()> {
    let victim: Notification = env.capability("victim-signal")?;
    let own = env.notification();
    let pause = env.ticks(2_000);
    while sys::now() < end {
        for _ in 0..16 {
            let _ = victim.signal();
        }
        // A short sleep: its wake-up is news for the scheduler.
        let _ = own.wait(Deadline::after(pause));
    }
    Some(())
}

/// Calls a server that faults; the handler lets it go on, and it faults again: for ever, and all of it on the caller's time.
fn faults(env: &Env) -> Option<()> {
    let untyped: Untyped = env.capability("objects")?;
    let cpu: Cpu = env.capability("cpu")?;
    let mut slots = env.slots();
    let first = slots.take(8)?;
    let threads = untyped.retype_threads(2, first).ok()?;
    let endpoints: Caps<Endpoint> = untyped.retype_endpoints(2, first.plus(2)).ok()?;
    let (faulting, handling) = (threads.get(0)?, threads.get(1)?);
    let (door, faults) = (endpoints.get(0)?, endpoints.get(1)?);
    door.bind(faulting).ok()?;
    faults.bind(handling).ok()?;
    start(env, cpu, handling, handler as *const () as u64, 3, None)?;
    start(env, cpu, faulting, faulter as *const () as u64, 2, Some(faults))?;
    // Both are passive: they run for the first time when somebody calls.
    let _ = door.call_short(0, &[]);
    Some(())
}

fn start(env: &Env, cpu: Cpu, thread: Thread, entry: u64, level: u8, fault_endpoint: Option<Endpoint>) -> Option<()> {
    let stack = Box::leak(vec![0_u64; 512].into_boxed_slice());
    // As a call leaves it: aligned to 16 bytes before the return address.
    let top = (stack.as_ptr_range().end as u64 & !15) - 8;
    let configuration = Configuration {
        space: env.space(),
        table: env.table(),
        buffer: None,
        level,
        fault_endpoint,
        fault_notification: None,
        entry,
        stack: top,
    };
    thread.configure(&configuration).ok()?;
    thread.activate(cpu, [0, 0]).ok()
}

extern "C" fn faulter(_: u64, _: u64) -> ! {
    loop {
        if let Ok(Event::Call(_)) = sys::receive(Deadline::NEVER) {
            end::write_to_null();
        }
    }
}

extern "C" fn handler(_: u64, _: u64) -> ! {
    let _ = sys::receive(Deadline::NEVER);
    loop {
        let _ = reply_receive_short(0, &[], Deadline::NEVER);
    }
}
