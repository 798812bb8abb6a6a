//! The status page: what the kernel tells the scheduler ([`moira_abi::time::StatusPage`]).

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use moira_abi::time::{ContextStatus, NEWS_LOG, STATUS_CONTEXTS, StatusPage};

const SEQUENCE: usize = offset_of!(StatusPage, sequence) / 8;
const LOG: usize = offset_of!(StatusPage, log) / 8;
const CONTEXT: usize = offset_of!(StatusPage, context) / 8;
const CONTEXT_WORDS: usize = size_of::<ContextStatus>() / 8;
const WORDS: usize = size_of::<StatusPage>().div_ceil(8);

// The log is read two entries a word, the thread of a context word as the upper half of its first word.
const _: () =
    assert!(offset_of!(StatusPage, log).is_multiple_of(8) && offset_of!(StatusPage, context).is_multiple_of(8));
const _: () = assert!(size_of::<ContextStatus>().is_multiple_of(8) && offset_of!(ContextStatus, thread) == 4);

/// The page as words that the kernel may change at any instruction.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a>(&'a [AtomicU64]);

impl<'a> Page<'a> {
    /// The page in these words; `None` if they are too few.
    #[must_use]
    pub fn new(words: &'a [AtomicU64]) -> Option<Page<'a>> {
        words.get(..WORDS).map(Page)
    }

    fn word(&self, index: usize) -> u64 {
        self.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The sequence: read first, it is the token. Acquire: what the kernel wrote before it raised the sequence is seen after.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.0.get(SEQUENCE).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// The number of the thread about which there was news number `sequence`, if the log still has it.
    #[must_use]
    pub fn news(&self, sequence: u64) -> u32 {
        let entry = (sequence % NEWS_LOG as u64) as usize;
        (self.word(LOG + entry / 2) >> (entry % 2 * 32)) as u32
    }

    /// The number of the thread at which the context with this index was last found blocked; 0 beyond the page.
    #[must_use]
    pub fn blocked_at(&self, index: u32) -> u32 {
        let index = index as usize;
        if index < STATUS_CONTEXTS { (self.word(CONTEXT + index * CONTEXT_WORDS) >> 32) as u32 } else { 0 }
    }
}
