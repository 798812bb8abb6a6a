//! The stream that the traced system sends: 32-byte events, first what was traced and who.

use anyhow::{Result, bail};
use moira_abi::trace::{Event, kind};

/// A context that is known by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Its name in the trace.
    pub context: u64,
    /// Its thread's.
    pub thread: u64,
    /// The task's.
    pub name: String,
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    /// TSC ticks in a second.
    pub tsc_hz: u64,
    /// The stretch that was traced.
    pub from: u64,
    /// Its end.
    pub to: u64,
    /// Who is known.
    pub names: Vec<Named>,
    /// The kernel's events; those of each CPU in their order.
    pub events: Vec<Event>,
}

/// Reads the stream; `watched` are the names that its numbers stand for.
pub fn read(bytes: &[u8], watched: &[String]) -> Result<Recorded> {
    let mut recorded = Recorded::default();
    if !bytes.len().is_multiple_of(32) {
        bail!("the stream ends in the middle of an event: {} bytes", bytes.len());
    }
    for chunk in bytes.chunks_exact(32) {
        let word = |index: usize| {
            chunk[index * 8..index * 8 + 8].iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte))
        };
        let event = Event { time: word(0), what: word(1), a: word(2), b: word(3) };
        match event.kind() {
            kind::STRETCH => (recorded.tsc_hz, recorded.from, recorded.to) = (event.time, event.a, event.b),
            kind::NAME => {
                let Some(name) = usize::try_from(event.time).ok().and_then(|number| watched.get(number)) else {
                    bail!("the stream names task number {}, {} are watched", event.time, watched.len());
                };
                recorded.names.push(Named { context: event.a, thread: event.b, name: name.clone() });
            }
            _ => recorded.events.push(event),
        }
    }
    if recorded.tsc_hz == 0 || recorded.from >= recorded.to {
        bail!("the stream does not say what was traced; {} events came", recorded.events.len());
    }
    Ok(recorded)
}
