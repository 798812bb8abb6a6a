//! System calls as they are, without types: the way to say what the typed methods cannot.
#![allow(unsafe_code)]

use moira_abi::{Error, Method, Tag};

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Tag; its low bits are the status.
    pub tag: Tag,
    /// `rdi`: the badge of a receive.
    pub badge: u64,
    /// W0–W7.
    pub words: [u64; 8],
}

impl Answer {
    /// Success, or the error; a status that is no error's number reads as `None`.
    #[must_use]
    pub fn result(self) -> Option<Result<(), Error>> {
        match self.tag.low() {
            0 => Some(Ok(())),
            code => Error::from_code(code).map(Err),
        }
    }

    /// What [`Answer::result`] says, an unknown status as `NoMethod`.
    pub fn check(self) -> Result<[u64; 8], Error> {
        self.result().unwrap_or(Err(Error::NoMethod)).map(|()| self.words)
    }
}

/// One system call: `tag` (its low eight bits are the method) in `rax`, `capability` in `rdi`, all eight words, `deadline` in `r15`.
#[inline(never)]
pub fn invoke(tag: u64, capability: u64, words: [u64; 8], deadline: u64) -> Answer {
    let (rax, rdi): (u64, u64);
    let mut w = words;
    // SAFETY: the kernel changes these registers, the caller's message buffer and what the capabilities say; callers give none
    // that would take this task's own memory away.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") tag => rax,
            inlateout("rdi") capability => rdi,
            inlateout("rsi") w[0], inlateout("rdx") w[1], inlateout("r8") w[2], inlateout("r9") w[3],
            inlateout("r10") w[4], inlateout("r12") w[5], inlateout("r13") w[6], inlateout("r14") w[7],
            inlateout("r15") deadline => _,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    Answer { tag: Tag(rax), badge: rdi, words: w }
}

/// The tag word of a method without message parts.
#[must_use]
pub const fn code_of(method: Method) -> u64 {
    method as u64
}

/// Reads a word of memory that other threads, or the kernel, write.
///
/// The address must be mapped readable: the laboratory only asks for what it mapped itself.
#[must_use]
pub fn stored(address: u64) -> u64 {
    // SAFETY: callers name addresses that the laboratory mapped; a wrong one faults and ends the run as failed.
    unsafe { (address as *const u64).read_volatile() }
}

/// Writes a word of memory that the laboratory mapped for experiments.
pub fn store(address: u64, value: u64) {
    // SAFETY: as for `stored`; the laboratory keeps no Rust object there.
    unsafe { (address as *mut u64).write_volatile(value) }
}
