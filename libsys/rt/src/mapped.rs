//! Memory that others write too, or that the root task mapped for good.
//!
//! Shared memory is reached as atomics or by copies; a plain reference into it would promise the compiler that nobody else
//! writes it.
#![allow(unsafe_code)]

use core::marker::PhantomData;
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use moira_abi::PAGE;
use moira_sys::MessageBuffer;

static MAIN_BUFFER: AtomicU64 = AtomicU64::new(0);

/// A thread beside the main one: where its stack begins and ends, and its buffer. Written once, the beginning last.
struct Known {
    start: AtomicU64,
    end: AtomicU64,
    buffer: AtomicU64,
}

impl Known {
    const fn none() -> Known {
        Known { start: AtomicU64::new(0), end: AtomicU64::new(0), buffer: AtomicU64::new(0) }
    }

    /// `start` while the entry is being written.
    const TAKEN: u64 = u64::MAX;
}

/// Threads beside the main one: no register tells a task which thread it is, but its stack does.
static THREADS: [Known; 16] = [const { Known::none() }; 16];

pub(crate) fn set_main_buffer(address: u64) {
    MAIN_BUFFER.store(address, Ordering::Relaxed);
}

/// Tells the runtime of a further thread of this task, whose stack is `stack` and whose message buffer is at `buffer`, so that
/// it can log and panic. Answers whether there was room (sixteen threads).
///
/// # Safety
/// A page is mapped at `buffer` for as long as the thread runs, it is that thread's message buffer, and the stack is that
/// thread's alone.
pub unsafe fn register_thread(stack: core::ops::Range<u64>, buffer: u64) -> bool {
    for known in &THREADS {
        let again = known.start.load(Ordering::Acquire) == stack.start;
        if again || known.start.compare_exchange(0, Known::TAKEN, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            known.end.store(stack.end, Ordering::Relaxed);
            known.buffer.store(buffer, Ordering::Relaxed);
            known.start.store(stack.start, Ordering::Release);
            return true;
        }
    }
    false
}

/// The calling thread's message buffer; 0 if it is not known.
fn current_buffer() -> u64 {
    let mark = 0u8;
    let here = &raw const mark as u64;
    let own = THREADS.iter().find(|known| {
        let start = known.start.load(Ordering::Acquire);
        start != 0 && here >= start && here < known.end.load(Ordering::Relaxed)
    });
    own.map_or_else(|| MAIN_BUFFER.load(Ordering::Relaxed), |known| known.buffer.load(Ordering::Relaxed))
}

/// Runs `use_it` on the calling thread's message buffer; `None` if it is not known. `use_it` must not come here again.
pub fn with_current_buffer<R>(use_it: impl FnOnce(&mut MessageBuffer) -> R) -> Option<R> {
    let address = current_buffer();
    if address == 0 {
        return None;
    }
    // SAFETY: `set_main_buffer` and `register_thread` were given this thread's buffer, and it is used here by this thread only.
    // Other values for the same page belong to the same thread and are between two of their copies.
    let mut buffer = unsafe { MessageBuffer::new(address) };
    Some(use_it(&mut buffer))
}

/// The main thread's own buffer value, for [`Env`](crate::Env).
pub(crate) fn main_buffer() -> MessageBuffer {
    let address = MAIN_BUFFER.load(Ordering::Relaxed);
    // SAFETY: set by the entry code before any `Env` exists, and nonzero for a task; see `with_current_buffer`.
    unsafe { MessageBuffer::new(if address == 0 { PAGE } else { address }) }
}

/// A range of shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Shared<'a> {
    base: u64,
    length: usize,
    writable: bool,
    life: PhantomData<&'a [AtomicU8]>,
}

impl<'a> Shared<'a> {
    /// Shared memory at `base`.
    ///
    /// # Safety
    /// For all of `'a`, `length` bytes from `base` (a multiple of 8, not 0) are mapped readable, and writable if `writable`; nobody in
    /// this task has a plain reference into them.
    #[must_use]
    pub const unsafe fn new(base: u64, length: usize, writable: bool) -> Shared<'a> {
        Shared { base, length, writable, life: PhantomData }
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Virtual address.
    #[must_use]
    pub const fn address(&self) -> u64 {
        self.base
    }

    /// Whether it may be written. Storing to words of read-only memory is a fault.
    #[must_use]
    pub const fn writable(&self) -> bool {
        self.writable
    }

    /// A part of it; `None` beyond its end or if `offset` is not a multiple of 8.
    #[must_use]
    pub fn part(&self, offset: usize, length: usize) -> Option<Shared<'a>> {
        let end = offset.checked_add(length)?;
        if end > self.length || !offset.is_multiple_of(8) {
            return None;
        }
        Some(Shared { base: self.base + offset as u64, length, ..*self })
    }

    /// As 64-bit words.
    #[must_use]
    pub fn words64(&self) -> &'a [AtomicU64] {
        // SAFETY: mapped for 'a by `new`'s contract, aligned to 8, and never referred to but as atomics.
        unsafe { core::slice::from_raw_parts(self.base as *const AtomicU64, self.length / 8) }
    }

    /// As 32-bit words.
    #[must_use]
    pub fn words32(&self) -> &'a [AtomicU32] {
        // SAFETY: as for `words64`.
        unsafe { core::slice::from_raw_parts(self.base as *const AtomicU32, self.length / 4) }
    }

    /// Copies from `offset` to `bytes`; answers how many. What a peer writes meanwhile may be torn.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(self.length.saturating_sub(offset));
        if count > 0 {
            // SAFETY: within the range and mapped; no reference to it is made.
            unsafe { core::ptr::copy_nonoverlapping((self.base as *const u8).add(offset), bytes.as_mut_ptr(), count) };
        }
        count
    }

    /// Copies `bytes` to `offset`; answers how many, 0 if it may not be written.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> usize {
        let count = if self.writable { bytes.len().min(self.length.saturating_sub(offset)) } else { 0 };
        if count > 0 {
            // SAFETY: within the range, mapped writable; no reference to it is made.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), (self.base as *mut u8).add(offset), count) };
        }
        count
    }
}

/// Contents of a file that the root task mapped for good.
///
/// # Safety
/// `length` bytes from `base` are mapped readable for the task's life, and no task can write them.
pub(crate) const unsafe fn file(base: u64, length: usize) -> &'static [u8] {
    if length == 0 {
        return &[];
    }
    // SAFETY: by this function's contract.
    unsafe { core::slice::from_raw_parts(base as *const u8, length) }
}
