//! The system-call instruction: the only place where this crate leaves Rust.
//!
//! | register | in | out |
//! | --- | --- | --- |
//! | `rax` | tag, method in its low bits | tag, status in its low bits |
//! | `rdi` | capability slot | badge (receive methods) |
//! | `rsi rdx r8 r9 r10 r12 r13 r14` | W0–W7 | W0–W7 |
//! | `r15` | deadline of receive and wait methods | as it was |
//! | `rcx r11` | – | overwritten by the instruction |
//!
//! `rbx`, `rbp` and `rsp` are kept by the kernel; the compiler reserves them, so they carry nothing.
//!
//! A stub that takes `N` words loads only these. The registers of the others go to the kernel, and with `call` and `reply` to
//! the peer, as they happen to be: a task that must not show its registers to a peer sends all eight words.

#[cfg(not(test))]
use core::arch::asm;
use moira_abi::{Error, MESSAGE_WORDS, Method, Tag};

/// What came back, status not looked at yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// Tag with the status in its low bits.
    pub tag: Tag,
    /// Badge, if the method answers one.
    pub badge: u64,
    /// W0–W7.
    pub words: [u64; MESSAGE_WORDS],
}

impl Answer {
    /// The answer, or the error it carries. A status that this version of the interface does not know reads as
    /// `NoMethod`: kernel and library are of different age.
    #[inline(always)]
    pub(crate) fn check(self) -> Result<Answer, Error> {
        match self.tag.low() {
            0 => Ok(self),
            code => Err(Error::from_code(code).unwrap_or(Error::NoMethod)),
        }
    }
}

/// Word `index`, for the arms of [`invoke`] that use it.
#[cfg(not(test))]
#[inline(always)]
fn word<const N: usize>(words: &[u64; N], index: usize) -> u64 {
    if index < N { words[index] } else { 0 }
}

#[cfg(not(test))]
macro_rules! stub {
    ($tag:expr, $slot:expr, [$($reg:tt = $value:expr => $out:tt),*], [$($only:tt => $only_out:tt),*] $(, $deadline:expr)?) => {{
        let (tag, badge): (u64, u64);
        let mut all = [0; MESSAGE_WORDS];
        // SAFETY: the kernel changes the registers named here and, with some methods, this thread's message buffer and
        // memory that the invoked capabilities say; it reads and writes no other memory of the task and no stack. Nothing in
        // Rust's model refers to the message buffer (`MessageBuffer` copies), and the default memory clobber orders the rest.
        unsafe {
            asm!(
                "syscall",
                inlateout("rax") $tag => tag,
                inlateout("rdi") $slot => badge,
                $(inlateout($reg) $value => all[$out],)*
                $(lateout($only) all[$only_out],)*
                $(in("r15") $deadline,)?
                lateout("rcx") _,
                lateout("r11") _,
                options(nostack),
            );
        }
        Answer { tag: Tag(tag), badge, words: all }
    }};
}

#[cfg(not(test))]
macro_rules! by_count {
    ($n:ident, $tag:expr, $slot:expr, $w:expr $(, $deadline:expr)?) => {{
        match $n {
            0 => stub!($tag, $slot, [], ["rsi" => 0, "rdx" => 1, "r8" => 2, "r9" => 3, "r10" => 4, "r12" => 5,
                "r13" => 6, "r14" => 7] $(, $deadline)?),
            1 => stub!($tag, $slot, ["rsi" = word($w, 0) => 0], ["rdx" => 1, "r8" => 2, "r9" => 3, "r10" => 4,
                "r12" => 5, "r13" => 6, "r14" => 7] $(, $deadline)?),
            2 => stub!($tag, $slot, ["rsi" = word($w, 0) => 0, "rdx" = word($w, 1) => 1], ["r8" => 2, "r9" => 3,
                "r10" => 4, "r12" => 5, "r13" => 6, "r14" => 7] $(, $deadline)?),
            3 => stub!($tag, $slot, ["rsi" = word($w, 0) => 0, "rdx" = word($w, 1) => 1, "r8" = word($w, 2) => 2],
                ["r9" => 3, "r10" => 4, "r12" => 5, "r13" => 6, "r14" => 7] $(, $deadline)?),
            4 => stub!($tag, $slot, ["rsi" = word($w, 0) => 0, "rdx" = word($w, 1) => 1, "r8" = word($w, 2) => 2,
                "r9" = word($w, 3) => 3], ["r10" => 4, "r12" => 5, "r13" => 6, "r14" => 7] $(, $deadline)?),
            _ => stub!($tag, $slot, ["rsi" = word($w, 0) => 0, "rdx" = word($w, 1) => 1, "r8" = word($w, 2) => 2,
                "r9" = word($w, 3) => 3, "r10" = word($w, 4) => 4, "r12" = word($w, 5) => 5,
                "r13" = word($w, 6) => 6, "r14" = word($w, 7) => 7], [] $(, $deadline)?),
        }
    }};
}

/// One invocation with the first `N` words. Words from `N` on are unspecified for `N` up to 4, zero above.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn invoke<const N: usize>(method: Method, tag: Tag, slot: u32, words: &[u64; N]) -> Answer {
    const { assert!(N <= MESSAGE_WORDS) };
    by_count!(N, tag.with_low(method as u8).0, u64::from(slot), words)
}

/// Like [`invoke`], for the methods that take a deadline.
#[cfg(not(test))]
#[inline(always)]
pub(crate) fn invoke_until<const N: usize>(
    method: Method,
    tag: Tag,
    slot: u32,
    words: &[u64; N],
    deadline: u64,
) -> Answer {
    const { assert!(N <= MESSAGE_WORDS) };
    by_count!(N, tag.with_low(method as u8).0, u64::from(slot), words, deadline)
}

#[cfg(test)]
pub(crate) use crate::tests::fake::{invoke, invoke_until};

/// An invocation without message parts, checked: what all management methods are.
#[inline(always)]
pub(crate) fn simple<const N: usize>(
    method: Method,
    slot: u32,
    words: &[u64; N],
) -> Result<[u64; MESSAGE_WORDS], Error> {
    invoke(method, Tag::default(), slot, words).check().map(|answer| answer.words)
}

/// The time stamp counter of this CPU, the unit of all times in the interface (SDM 18.17). Not ordered with memory accesses.
#[must_use]
#[inline(always)]
#[allow(unused_unsafe, reason = "safe in newer compilers")]
pub fn now() -> u64 {
    // SAFETY: RDTSC exists on every x86-64 CPU and the kernel leaves CR4.TSD clear.
    unsafe { core::arch::x86_64::_rdtsc() }
}
