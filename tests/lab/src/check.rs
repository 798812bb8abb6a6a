//! What one experiment found.

use alloc::{format, string::String, vec::Vec};
use core::fmt::Debug;

/// Collects what was not as it should be.
#[derive(Debug, Default)]
pub struct Check {
    /// One line for each finding.
    pub found: Vec<String>,
    /// Comparisons made.
    pub made: u32,
}

impl Check {
    /// Notes it if the two differ.
    #[track_caller]
    pub fn equal<T: PartialEq + Debug>(&mut self, what: &str, is: T, should: T) -> bool {
        self.made += 1;
        let good = is == should;
        if !good {
            self.note(format!("{what}: {is:x?}, should be {should:x?}"));
        }
        good
    }

    /// Notes it if this does not hold.
    #[track_caller]
    pub fn holds(&mut self, what: &str, good: bool) -> bool {
        self.made += 1;
        if !good {
            self.note(format!("not so: {what}"));
        }
        good
    }

    /// Notes it and answers `None` if this is an error.
    #[track_caller]
    pub fn good<T, E: Debug>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        self.made += 1;
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.note(format!("{what}: {error:?}"));
                None
            }
        }
    }

    #[track_caller]
    fn note(&mut self, what: String) {
        let place = core::panic::Location::caller();
        let file = place.file().rsplit('/').next().unwrap_or_default();
        self.found.push(format!("{what} ({file}:{})", place.line()));
    }
}
