//! A heap that only grows: the loader needs a few pages, once.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

const BYTES: usize = 64 << 10;

#[repr(align(4096))]
struct Heap(UnsafeCell<[u8; BYTES]>, AtomicUsize);

// SAFETY: there is one processor and one thread; each byte is handed out once.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new([0; BYTES]), AtomicUsize::new(0));

// SAFETY: blocks lie in the array, are aligned, and never overlap.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let begin = self.1.load(Ordering::Relaxed).next_multiple_of(layout.align());
        match begin.checked_add(layout.size()) {
            Some(end) if end <= BYTES && layout.align() <= 4096 => {
                self.1.store(end, Ordering::Relaxed);
                // SAFETY: `begin` is inside.
                unsafe { self.0.get().cast::<u8>().add(begin) }
            }
            _ => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
