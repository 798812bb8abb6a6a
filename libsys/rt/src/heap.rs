//! The heap: `talc` over the memory the task was given.
//!
//! The lock spins: it is held for one allocation at a time. Threads of one task on one CPU that preempt each other inside it
//! lose at most the rest of a window.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, Ordering};
use spin::mutex::SpinMutex;
use talc::{TalcLock, source::Manual};

#[cfg_attr(target_os = "none", global_allocator)]
static HEAP: TalcLock<SpinMutex<()>, Manual> = TalcLock::new(Manual);

/// Adds memory to the heap. Ranges of a few pages at most are too small to hold the allocator's own data and are ignored.
///
/// # Safety
/// `length` bytes from `address` on are mapped, readable and writable, for the rest of the task's life, and used by nobody else.
pub unsafe fn add(address: u64, length: u64) {
    if address != 0 && length != 0 {
        // SAFETY: by this function's contract.
        unsafe { HEAP.lock().claim(address as *mut u8, length as usize) };
    }
}

/// A heap inside the image, for the root task: nobody can give it one.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct StaticHeap<const BYTES: usize> {
    memory: UnsafeCell<[u8; BYTES]>,
    given: AtomicBool,
}

// SAFETY: `memory` is reached only by `give`, once.
unsafe impl<const BYTES: usize> Sync for StaticHeap<BYTES> {}

impl<const BYTES: usize> StaticHeap<BYTES> {
    /// An empty one.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "for statics")]
    pub const fn new() -> Self {
        StaticHeap { memory: UnsafeCell::new([0; BYTES]), given: AtomicBool::new(false) }
    }

    /// Gives its memory to the heap; a second time does nothing.
    pub fn give(&'static self) {
        if !self.given.swap(true, Ordering::Relaxed) {
            // SAFETY: a static lives forever, and `given` lets only one caller hand out its memory.
            unsafe { add(self.memory.get() as u64, BYTES as u64) };
        }
    }
}
