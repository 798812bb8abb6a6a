//! Endpoints and notifications.

use crate::slot::capability;
use crate::*;
use moira_abi::{Method, Tag};

capability! {
    /// Where one server thread takes calls, on its CPU.
    Endpoint, Endpoint
}

capability! {
    /// A word of bits, signalled from any CPU.
    Notification, Notification
}

impl Endpoint {
    /// Sends a message to the server and waits for its answer (CALL). The server runs on the caller's time.
    ///
    /// # Errors
    /// `PeerGone` (no server, or it died meanwhile), `WrongLevel`, `WrongCpu` (the server lives elsewhere), `PeerSlots` (the receiver
    /// has no empty slots for the capabilities), `NotMapped` (bytes, but one side has no buffer), `BadArgument` (more than 4096 bytes).
    /// Those of an answer that could not be delivered come as the call's error too.
    #[inline(always)]
    pub fn call(self, message: &Message) -> Result<Received, Error> {
        let (tag, words) = message.parts();
        raw::invoke(Method::Call, tag, self.slot().0, words).check().map(|answer| Received::from_answer(&answer))
    }

    /// [`Endpoint::call`] with a label and `N` words only: the other words reach the server as their registers happen to be, so
    /// use it with servers that may see them.
    ///
    /// # Errors
    /// As [`Endpoint::call`].
    #[inline(always)]
    pub fn call_short<const N: usize>(self, label: u32, words: &[u64; N]) -> Result<Received, Error> {
        let tag = Tag::new(label, 0, 0);
        raw::invoke(Method::Call, tag, self.slot().0, words).check().map(|answer| Received::from_answer(&answer))
    }

    /// Makes a thread its one server (SERVE); another one takes over.
    ///
    /// # Errors
    /// Those of every invocation.
    pub fn bind(self, server: Thread) -> Result<(), Error> {
        raw::simple(Method::EndpointBind, self.slot().0, &[server.slot().word()]).map(|_| ())
    }
}

impl Notification {
    /// Sets the bits of this capability's badge (SIGNAL). Never waits.
    ///
    /// # Errors
    /// Those of every invocation.
    #[inline(always)]
    pub fn signal(self) -> Result<(), Error> {
        raw::simple(Method::Signal, self.slot().0, &[]).map(|_| ())
    }

    /// Waits for bits and takes them all (WAIT).
    ///
    /// # Errors
    /// `Timeout`; `InUse` (another thread waits, or it is bound to one).
    #[inline(always)]
    pub fn wait(self, deadline: Deadline) -> Result<u64, Error> {
        raw::invoke_until(Method::Wait, Tag::default(), self.slot().0, &[], deadline.0)
            .check()
            .map(|answer| answer.words[0])
    }

    /// Takes the bits there are, perhaps none (WAIT).
    ///
    /// # Errors
    /// Those of every invocation.
    #[inline(always)]
    pub fn poll(self) -> Result<u64, Error> {
        raw::simple(Method::Poll, self.slot().0, &[]).map(|answer| answer[0])
    }
}
