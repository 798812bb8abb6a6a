//! How a task ends: a deliberate `ud2`, which reaches the supervisor as a fault of vector 6 with a marker in `rax`.
//!
//! | register | value |
//! | --- | --- |
//! | `rax` | [`PANICKED`] or [`FINISHED`] |
//! | `rdi` | bytes of text at the start of the thread's message buffer |
//!
//! The supervisor reads the registers through the thread's capability and the text in its own mapping of the buffer's frame.
#![allow(unsafe_code)]

use crate::mapped;
use core::sync::atomic::{AtomicPtr, Ordering};

/// `rax` of a panic: `"PANICKED"`, little-endian.
pub const PANICKED: u64 = u64::from_le_bytes(*b"PANICKED");
/// `rax` when `main` returned: `"FINISHED"`.
pub const FINISHED: u64 = u64::from_le_bytes(*b"FINISHED");

/// Vector of the fault: invalid opcode (SDM 6.15).
pub const VECTOR: u64 = 6;

/// Ends the task as finished: it has nothing more to do.
pub fn finish() -> ! {
    with_marker(FINISHED, b"")
}

/// Ends the task as failed: the supervisor is given the reason, as for a panic, and does what the manifest wants of a death.
pub fn fail(reason: core::fmt::Arguments) -> ! {
    use core::fmt::Write;
    let mut text = crate::logging::Line::new();
    // What does not fit is cut off.
    let _ = text.write_fmt(reason);
    with_marker(PANICKED, text.as_str().as_bytes())
}

/// Writes to address 0, where no task has memory: the plainest of faults (vector 14), for tests of supervisors.
pub fn write_to_null() -> ! {
    #[cfg(target_os = "none")]
    loop {
        // SAFETY: the first page is never mapped by the root task; the store faults and changes nothing.
        unsafe { core::arch::asm!("mov qword ptr [0], 0", options(nostack)) };
    }
    #[cfg(not(target_os = "none"))]
    unreachable!("tasks only")
}

/// Leaves `text` in the message buffer and faults with `marker`.
pub(crate) fn with_marker(marker: u64, text: &[u8]) -> ! {
    let length = mapped::with_current_buffer(|buffer| buffer.write(text)).unwrap_or(0);
    #[cfg(target_os = "none")]
    loop {
        // SAFETY: a fault by intention. If the supervisor resumes the thread, it faults again.
        unsafe { core::arch::asm!("ud2", in("rax") marker, in("rdi") length, options(nomem, nostack)) };
    }
    #[cfg(not(target_os = "none"))]
    unreachable!("{marker:x} {length}")
}

/// What [`on_panic`] was given.
static LAST_WORDS: AtomicPtr<()> = AtomicPtr::new(core::ptr::null_mut());

/// A panic of this task calls `last_words`, after its line was logged and before the task ends. A panic in there ends it at once.
pub fn on_panic(last_words: fn()) {
    LAST_WORDS.store(last_words as *mut (), Ordering::Relaxed);
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    use core::fmt::Write;
    use core::sync::atomic::AtomicBool;

    static PANICKING: AtomicBool = AtomicBool::new(false);
    if PANICKING.swap(true, Ordering::Relaxed) {
        with_marker(PANICKED, b"panicked while panicking");
    }
    let mut text = crate::logging::Line::new();
    let _ = match info.location() {
        Some(place) => write!(text, "panicked at {}:{}: {}", place.file(), place.line(), info.message()),
        None => write!(text, "panicked: {}", info.message()),
    };
    log::error!("{}", text.as_str());
    let last_words = LAST_WORDS.load(Ordering::Relaxed);
    if !last_words.is_null() {
        // SAFETY: only `on_panic` stores there, and what it stores is a function of this type.
        unsafe { core::mem::transmute::<*mut (), fn()>(last_words)() };
    }
    with_marker(PANICKED, text.as_str().as_bytes())
}
