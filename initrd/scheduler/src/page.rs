//! The status page: what the kernel tells the scheduler ([`moira_abi::time::StatusPage`]).

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use moira_abi::time::{NEWS_LOG, STATUS_CONTEXTS, StatusPage, blocked};

const SEQUENCE: usize = offset_of!(StatusPage, sequence) / 8;
const LOG: usize = offset_of!(StatusPage, log) / 8;
const CONTEXT: usize = offset_of!(StatusPage, context) / 8;
const CONTEXT_WORDS: usize = size_of::<moira_abi::time::ContextStatus>() / 8;
const WORDS: usize = size_of::<StatusPage>().div_ceil(8);

// The log is read four entries a word, context words in halves: the layout must allow it.
const _: () = assert!(offset_of!(StatusPage, log).is_multiple_of(8) && offset_of!(StatusPage, context).is_multiple_of(8));
const _: () = assert!(CONTEXT_WORDS == 3 && offset_of!(moira_abi::time::ContextStatus, blocked) == 0);

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

    /// The context about which there was news number `sequence`, if the log still has it.
    #[must_use]
    pub fn news(&self, sequence: u64) -> u16 {
        let entry = (sequence % NEWS_LOG as u64) as usize;
        (self.word(LOG + entry / 4) >> (entry % 4 * 16)) as u16
    }

    /// Whether the context with this index is gone for good.
    #[must_use]
    pub fn gone(&self, index: u16) -> bool {
        usize::from(index) < STATUS_CONTEXTS
            && self.word(CONTEXT + usize::from(index) * CONTEXT_WORDS) as u32 == blocked::GONE
    }
}
