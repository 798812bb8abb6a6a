//! Books time to the wrong account on purpose, if the kernel is built with the feature of that name: the ledger and the trace must then differ,
//! and the test `time-mischarge` must find it out. Without the feature nothing of this is in the image.

/// An interrupt's time goes to whoever was interrupted.
pub const INTERRUPT: u8 = 1;
/// Time lost by helping is told as the helper's own.
pub const HELP: u8 = 2;
/// Structural work goes to the scheduler.
pub const STRUCTURAL: u8 = 3;

#[cfg(feature = "mischarge")]
static WHAT: core::sync::atomic::AtomicU8 = core::sync::atomic::AtomicU8::new(0);

/// Whether this is to be done wrong.
#[inline(always)]
#[cfg(not(feature = "mischarge"))]
pub const fn is(_: u8) -> bool {
    false
}

/// Whether this is to be done wrong.
#[cfg(feature = "mischarge")]
pub fn is(what: u8) -> bool {
    WHAT.load(core::sync::atomic::Ordering::Relaxed) == what
}

/// The boot option.
#[cfg(feature = "mischarge")]
pub fn boot(option: Option<&str>) {
    let what = match option {
        Some("interrupt") => INTERRUPT,
        Some("help") => HELP,
        Some("structural") => STRUCTURAL,
        _ => 0,
    };
    WHAT.store(what, core::sync::atomic::Ordering::Relaxed);
}
