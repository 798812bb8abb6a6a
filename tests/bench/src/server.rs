//! The other side.

use moira_rt::Env;
use moira_sys::{Capability, Deadline, Error, Event, Message, Received, Slot, reply_receive, reply_receive_short};

/// Answers with no words.
pub const ECHO: u32 = 0;
/// Answers with eight words.
pub const ECHO_WORDS: u32 = 1;
/// Answers with 4096 bytes.
pub const ECHO_PAGE: u32 = 2;
/// Takes one capability and answers with one.
pub const CAPABILITY: u32 = 3;
/// Deletes the capability that came with the last [`CAPABILITY`].
pub const CLEAN: u32 = 4;

/// Serves for ever.
pub fn run(env: Env) {
    let receive = Slot(moira_rt::proto::start::slot::RECEIVE);
    if let Err(error) = env.thread().receive_slots(receive) {
        log::error!("bench server: no receive slots: {error:?}");
        return;
    }
    let own = env.notification().slot();
    let mut event = moira_sys::receive(Deadline::NEVER);
    loop {
        event = match event {
            Ok(Event::Call(call)) => match call.label {
                ECHO => short(),
                ECHO_WORDS => words(call),
                ECHO_PAGE => reply_receive(&Message::new(0).bytes(4096), Deadline::NEVER),
                CAPABILITY => reply_receive(&Message::new(0).capability(own), Deadline::NEVER),
                _ => {
                    let done = env.table().delete_fully(receive);
                    reply_receive_short(u32::from(done.is_err()), &[], Deadline::NEVER)
                }
            },
            Ok(_) => moira_sys::receive(Deadline::NEVER),
            Err(error) => {
                log::error!("bench server: {error:?}");
                return;
            }
        };
    }
}

/// The loop of a server that answers with nothing, until something else is asked.
fn short() -> Result<Event, Error> {
    loop {
        match reply_receive_short(0, &[], Deadline::NEVER) {
            Ok(Event::Call(call)) if call.label == ECHO => {}
            other => return other,
        }
    }
}

/// The loop of a server that answers with the words it got.
fn words(mut call: Received) -> Result<Event, Error> {
    loop {
        match reply_receive_short(0, &call.words, Deadline::NEVER) {
            Ok(Event::Call(next)) if next.label == ECHO_WORDS => call = next,
            other => return other,
        }
    }
}
