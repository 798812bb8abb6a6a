//! The control task: what the host asks about this system and orders in it, over a serial line (`docs/abi/control.md`).
//!
//! | given | what for |
//! | --- | --- |
//! | capability `serial` | the serial driver |
//! | by the role `control` | file `system` (the compiled manifest), `cpu-N`, `NAME-context` of every task, `root-signal` and region `root-mailbox` |
//! | regions `NAME-mailbox`, capabilities `NAME-signal` | virtual machines that can be controlled: the task NAME is their monitor |
//! | region `policy`, optional | words by CPU: the wanted policy, counted from 1; 64 words further the one in force |
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod world;

use alloc::vec;
use control_core::{MOST_WAITING, Session};
use log::error;
use moira_rt::{
    Env,
    proto::console,
    sys::{self, Deadline, Endpoint, Error, Message, Rights},
};
use world::Live;

moira_rt::entry!(main);

/// Most bytes of one request to the serial driver.
const MOST: usize = 1024;
/// Bit by which the driver tells of input. The manifest counts its bits from 0.
const LINE_BIT: u64 = 1 << 63;
/// How soon orders are looked after, and how soon a driver that does not answer is called again.
const POLL_NS: u64 = 2_000_000;
const RETRY_NS: u64 = 100_000_000;

fn main(env: Env) {
    let Some(serial) = env.capability::<Endpoint>("serial") else {
        error!("the manifest grants no call to `serial`");
        return;
    };
    let (poll, retry) = (env.ticks(POLL_NS), env.ticks(RETRY_NS));
    let mut session = Session::new(env.info.tsc_hz);
    let Some(signal) = signal(&env) else {
        error!("no slot for what the driver signals");
        return;
    };
    let mut line = Line { serial, known: false, signal };
    let mut world = match Live::new(env) {
        Ok(world) => world,
        Err(what) => {
            error!("{what}");
            return;
        }
    };
    loop {
        let wait = match line.exchange(&mut session, &mut world) {
            Ok(()) if session.waits() => Deadline::after(poll),
            // The driver tells when there is input, or room again.
            Ok(()) => Deadline::NEVER,
            // The driver was made anew, or will be.
            Err(_) => {
                line.known = false;
                Deadline::after(retry)
            }
        };
        if let Err(error) = sys::receive(wait) {
            error!("cannot wait: {error:?}");
            return;
        }
        session.poll(&mut world);
        session.pump(&mut world);
    }
}

/// What the driver signals: this task's notification with a bit that nobody else has.
fn signal(env: &Env) -> Option<sys::Slot> {
    let at = env.slots().take(1)?;
    env.table().mint(env.notification(), at, Rights::SIGNAL, LINE_BIT).ok().map(|_| at)
}

/// The serial driver.
struct Line {
    serial: Endpoint,
    /// The driver knows whom to signal.
    known: bool,
    signal: sys::Slot,
}

impl Line {
    /// Reads and writes until neither goes on.
    fn exchange(&mut self, session: &mut Session, world: &mut Live) -> Result<(), Error> {
        if !self.known {
            self.serial.call(&Message::new(console::NOTIFY).capability(self.signal))?;
            self.known = true;
        }
        loop {
            session.pump(world);
            let sent = self.write(session, world)?;
            // Whoever does not take the answers is not listened to.
            let received = if session.outgoing().len() < MOST_WAITING { self.read(session, world)? } else { 0 };
            if sent == 0 && received == 0 {
                return Ok(());
            }
        }
    }

    fn write(&mut self, session: &mut Session, world: &mut Live) -> Result<usize, Error> {
        let out = session.outgoing();
        if out.is_empty() {
            return Ok(0);
        }
        let count = world.buffer.write(out.get(..MOST).unwrap_or(out));
        let answer = self.serial.call(&Message::new(console::WRITE).bytes(count))?;
        let taken = usize::try_from(answer.words[0]).unwrap_or(count).min(count);
        session.sent(taken);
        Ok(taken)
    }

    fn read(&mut self, session: &mut Session, world: &mut Live) -> Result<usize, Error> {
        let answer = self.serial.call(&Message::new(console::READ).words([MOST as u64]))?;
        let mut bytes = vec![0; answer.bytes.min(MOST)];
        let count = world.buffer.read(&mut bytes);
        session.feed(bytes.get(..count).unwrap_or_default(), world);
        Ok(count)
    }
}
