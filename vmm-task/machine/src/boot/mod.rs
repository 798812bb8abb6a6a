//! Boot protocols: putting a guest image into RAM, and the processor state it starts with.
//!
//! A loader takes the image as a slice and writes it to guest RAM once. Everything in an image is untrusted: a loader
//! answers with an error that names the field, and never does more work than RAM has bytes.

mod any;
mod elf_image;
pub mod firmware;
pub mod flat;
mod image;
pub mod linux;
pub mod multiboot;
pub mod multiboot2;
mod paging;
pub mod pvh;
mod refusal;
mod state;

pub use any::{BootError, Guest, load};
pub use elf_image::ElfError;
pub use image::Found;
pub use state::{InitialState, Segment, TableRegister};

use crate::memory_map::MemoryMap;

/// A module: a file that a kernel is given beside itself.
#[derive(Clone, Copy, Debug)]
pub struct Module<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// Its command line, without a terminating zero.
    pub cmdline: &'a [u8],
}

/// A range of guest-physical addresses, first byte and first byte after.
pub(crate) type Range = core::ops::Range<u64>;

/// The highest place for `size` bytes, aligned to pages, inside low RAM above 1 MiB, below `limit` (exclusive), clear
/// of `taken`. Used for initrds and modules, which want to be out of a kernel's way.
pub(crate) fn place_high(map: &MemoryMap, size: u64, limit: u64, taken: &Range) -> Option<u64> {
    let top = map.low_end().min(limit);
    let fit = |top: u64| {
        let base = top.checked_sub(size)? & !0xFFF;
        (base >= crate::layout::ONE_MIB).then_some(base)
    };
    let base = fit(top)?;
    if base >= taken.end || base + size <= taken.start {
        return Some(base);
    }
    fit(top.min(taken.start))
}
