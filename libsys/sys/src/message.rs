//! Messages and the server's side of IPC.

use crate::{Slot, raw};
use moira_abi::{Error, MESSAGE_CAPS, MESSAGE_WORDS, Method, NO_DEADLINE, Tag, fault::FAULT_LABEL};

/// A point in time: TSC ticks of this CPU. [`Deadline::NEVER`] does not come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(pub u64);

impl Deadline {
    /// Wait however long it takes.
    pub const NEVER: Deadline = Deadline(NO_DEADLINE);

    /// `ticks` from now.
    #[must_use]
    pub fn after(ticks: u64) -> Deadline {
        Deadline(raw::now().saturating_add(ticks).max(1))
    }
}

/// A message to send: label, eight words, how much of the message buffer goes with it, and up to four capabilities.
///
/// With capabilities, W4 and up carry their slots: set no words there. All eight words are sent; see
/// [`Endpoint::call_short`](crate::Endpoint::call_short) for the faster way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Message {
    tag: Tag,
    words: [u64; MESSAGE_WORDS],
}

impl Message {
    /// A message with a label, words zero.
    #[must_use]
    pub const fn new(label: u32) -> Message {
        Message { tag: Tag::new(label, 0, 0), words: [0; MESSAGE_WORDS] }
    }

    /// With the first words set.
    #[must_use]
    pub const fn words<const N: usize>(mut self, words: [u64; N]) -> Message {
        const { assert!(N <= MESSAGE_WORDS) };
        let mut index = 0;
        while index < N {
            self.words[index] = words[index];
            index += 1;
        }
        self
    }

    /// With `bytes` (at most 4096) of the sender's message buffer.
    #[must_use]
    pub const fn bytes(self, bytes: usize) -> Message {
        let bytes = if bytes > 4096 { 4096 } else { bytes };
        Message { tag: Tag::new(self.tag.label(), bytes, self.tag.caps()), words: self.words }
    }

    /// With one more capability, copied from the sender's slot. A fifth is not sent.
    #[must_use]
    pub const fn capability(mut self, slot: Slot) -> Message {
        let caps = self.tag.caps();
        if caps < MESSAGE_CAPS {
            self.words[MESSAGE_CAPS + caps] = slot.word();
            self.tag = Tag::new(self.tag.label(), self.tag.bytes(), caps + 1);
        }
        self
    }

    /// Tag (low bits zero) and words.
    #[must_use]
    pub(crate) const fn parts(&self) -> (Tag, &[u64; MESSAGE_WORDS]) {
        (self.tag, &self.words)
    }
}

/// A message that came: a call (for a server) or an answer (for a caller, badge without meaning).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Label chosen by the sender.
    pub label: u32,
    /// Badge of the capability that was called: who calls.
    pub badge: u64,
    /// Bytes in the receiver's message buffer.
    pub bytes: usize,
    /// Capabilities received.
    pub caps: usize,
    /// W0–W7. With capabilities, W4 and up are the slots where they arrived.
    pub words: [u64; MESSAGE_WORDS],
}

impl Received {
    #[inline(always)]
    pub(crate) fn from_answer(answer: &raw::Answer) -> Received {
        Received {
            label: answer.tag.label(),
            badge: answer.badge,
            bytes: answer.tag.bytes(),
            caps: answer.tag.caps(),
            words: answer.words,
        }
    }

    /// Slot of received capability `index`.
    #[must_use]
    pub fn capability(&self, index: usize) -> Option<Slot> {
        if index >= self.caps || index >= MESSAGE_CAPS {
            return None;
        }
        u32::try_from(self.words[MESSAGE_CAPS + index]).ok().map(Slot)
    }

    /// The fault that this message reports. Any client can send the same label: believe it only with a badge that was given to
    /// no one but the kernel, as a thread's fault endpoint.
    #[must_use]
    pub fn fault(&self) -> Option<Fault> {
        let [vector, error_code, rip, cr2, rsp, rflags, ..] = self.words;
        (self.label == FAULT_LABEL).then_some(Fault { vector, error_code, rip, cr2, rsp, rflags })
    }
}

/// A thread's fault, as its fault endpoint is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Exception vector (SDM 6.3.1).
    pub vector: u64,
    /// Error code, 0 where the vector has none.
    pub error_code: u64,
    /// Where it happened.
    pub rip: u64,
    /// Address of a page fault.
    pub cr2: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// Flags.
    pub rflags: u64,
}

/// How a receive ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A call. It wants a reply.
    Call(Received),
    /// Bits of the bound notification, taken.
    Notified(u64),
    /// The deadline passed.
    Timeout,
}

#[inline(always)]
fn event(answer: raw::Answer) -> Result<Event, Error> {
    match answer.check() {
        Ok(answer) => Ok(Event::Call(Received::from_answer(&answer))),
        Err(Error::Notified) => Ok(Event::Notified(answer.words[0])),
        Err(Error::Timeout) => Ok(Event::Timeout),
        Err(error) => Err(error),
    }
}

/// Waits for a call on any endpoint bound to this thread, or for bits of its notification. The deadline and the bits are events,
/// not errors.
///
/// # Errors
/// `InUse`: there is a caller without an answer ([`reply`], [`park`]).
#[inline(always)]
pub fn receive(deadline: Deadline) -> Result<Event, Error> {
    event(raw::invoke_until(Method::Receive, Tag::default(), 0, &[], deadline.0))
}

/// Answers the current caller, then receives. If the caller died, or there is none, it only receives. A caller that has no
/// buffer or slots for the answer gets that error as its answer.
///
/// # Errors
/// None that a server need expect.
#[inline(always)]
pub fn reply_receive(reply: &Message, deadline: Deadline) -> Result<Event, Error> {
    let (tag, words) = reply.parts();
    event(raw::invoke_until(Method::ReplyReceive, tag, 0, words, deadline.0))
}

/// [`reply_receive`] with label and `N` words only; the other words go out as their registers happen to be.
///
/// # Errors
/// As [`reply_receive`].
#[inline(always)]
pub fn reply_receive_short<const N: usize>(label: u32, words: &[u64; N], deadline: Deadline) -> Result<Event, Error> {
    event(raw::invoke_until(Method::ReplyReceive, Tag::new(label, 0, 0), 0, words, deadline.0))
}

/// Answers the current caller without receiving.
///
/// # Errors
/// `CallerGone`, `NoCaller`.
#[inline(always)]
pub fn reply(reply: &Message) -> Result<(), Error> {
    let (tag, words) = reply.parts();
    raw::invoke(Method::Reply, tag, 0, words).check().map(|_| ())
}

/// Lets go of the current caller without an answer: a faulting thread stays stopped until it is resumed.
///
/// # Errors
/// `NoCaller`; `BadArgument`: the caller did not fault, and wants an answer.
pub fn park() -> Result<(), Error> {
    raw::simple(Method::Park, 0, &[]).map(|_| ())
}

/// What a server's handler decides about a call or an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Answer the caller (ignored where there is none), then receive until the deadline.
    Reply(Message, Deadline),
    /// Receive until the deadline without an answer: after events, and after [`park`] or [`reply`].
    Receive(Deadline),
}

/// A server's life: receives and hands each event to `handle`, forever. A caller that died meanwhile, or has no slots for what it
/// asked, is its own trouble: the server goes on.
///
/// # Errors
/// Returns only with an error of `receive` itself: `InUse` if a handler left a caller without an answer.
pub fn serve(deadline: Deadline, mut handle: impl FnMut(Event) -> Next) -> Error {
    let mut next = Next::Receive(deadline);
    let mut owes = false;
    loop {
        let outcome = match &next {
            Next::Reply(message, deadline) if owes => match reply_receive(message, *deadline) {
                Err(Error::CallerGone | Error::NoCaller | Error::PeerSlots) => receive(*deadline),
                other => other,
            },
            Next::Reply(_, deadline) | Next::Receive(deadline) => receive(*deadline),
        };
        match outcome {
            Ok(event) => {
                owes = matches!(event, Event::Call(_));
                next = handle(event);
            }
            Err(error) => return error,
        }
    }
}
