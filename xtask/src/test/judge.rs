//! Judging a run: one word for each way in which a system can end.

use std::fmt;

use serde::Deserialize;

use super::expect::{Matcher, Step};
use crate::console::{End, Watch};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Word {
    /// It ended as it should and said what it should.
    #[serde(rename = "passed")]
    Passed,
    /// It ended as failed, and said why.
    #[serde(rename = "failed")]
    Failed,
    /// It ended, but did not say what it should.
    #[serde(rename = "wrong output")]
    WrongOutput,
    /// The kernel said why it cannot run on this machine.
    #[serde(rename = "cannot boot")]
    CannotBoot,
    /// The kernel found itself wrong and stopped.
    #[serde(rename = "kernel panic")]
    KernelPanic,
    /// A task faulted and nobody handled it.
    #[serde(rename = "task fault")]
    TaskFault,
    /// The machine reset itself because a fault could not be delivered.
    #[serde(rename = "triple fault")]
    TripleFault,
    /// It did not end within its limit.
    #[serde(rename = "hang")]
    Hang,
    /// The emulator ended while the system had not.
    #[serde(rename = "emulator died")]
    EmulatorDied,
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Word::Passed => "passed",
            Word::Failed => "failed",
            Word::WrongOutput => "wrong output",
            Word::CannotBoot => "cannot boot",
            Word::KernelPanic => "kernel panic",
            Word::TaskFault => "task fault",
            Word::TripleFault => "triple fault",
            Word::Hang => "hang",
            Word::EmulatorDied => "emulator died",
        })
    }
}

/// What is known about a run besides its serial log.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// Why it was stopped for taking too long, if it was.
    pub too_long: Option<String>,
    /// How the emulator ended and what it said, if it ended by itself without the system's announcement.
    pub emulator: Option<String>,
    /// Whether the emulator logged a triple fault.
    pub triple_fault: bool,
    /// Whether the run was stopped because everything expected had been said, as its case asks.
    pub all_said: bool,
}

/// A word and the reason for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The word.
    pub word: Word,
    /// Details on one line; empty for a pass.
    pub why: String,
}

/// Judges a finished run. `expect` must appear in this order, nothing of `forbid` may appear.
pub fn judge(watch: &Watch, evidence: &Evidence, expect: &[Step], forbid: &[Step]) -> Verdict {
    let verdict = |word, why: &str| Verdict { word, why: why.to_string() };
    // What ended the machine comes first; a hang or an early exit is often only its consequence.
    if evidence.triple_fault {
        return verdict(Word::TripleFault, "the machine reset itself");
    }
    if let Some(why) = &watch.refused {
        return verdict(Word::CannotBoot, why);
    }
    if let Some(panic) = &watch.panic {
        return verdict(Word::KernelPanic, panic);
    }
    if let Some(fault) = &watch.fault {
        return verdict(Word::TaskFault, fault);
    }
    if let Some(why) = &evidence.too_long {
        return verdict(Word::Hang, why);
    }
    if !evidence.all_said {
        match &watch.end {
            None => {
                return verdict(Word::EmulatorDied, evidence.emulator.as_deref().unwrap_or("it ended"));
            }
            Some(End::Failed(why)) => {
                return verdict(Word::Failed, why);
            }
            Some(End::Ok) => {}
        }
    }
    match complaint(watch.text(), expect, forbid) {
        Some(why) => verdict(Word::WrongOutput, &why),
        None => verdict(Word::Passed, ""),
    }
}

/// What `text` lacks of `expect`, or has of `forbid`.
pub fn complaint(text: &str, expect: &[Step], forbid: &[Step]) -> Option<String> {
    let mut matcher = Matcher::new(expect);
    matcher.advance(text, text);
    if let Some(missing) = matcher.waiting_for() {
        return Some(format!("does not say {missing}"));
    }
    let said = forbid.iter().find(|step| step.find(text).is_some())?;
    Some(format!("says {said}, which is forbidden"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Judges a recorded serial log.
    fn word(log: &str, evidence: Evidence) -> Word {
        let mut watch = Watch::default();
        watch.feed(log.as_bytes());
        watch.finish();
        let step = |text: &str| Step::Contains(text.into());
        judge(&watch, &evidence, &[step("first"), step("second")], &[step("forbidden")]).word
    }

    const GOOD: &str = "[    0.1] first\n[    0.2] second\nmoira: system ended: ok\n";

    #[test]
    fn what_ends_as_it_should_passes() {
        assert_eq!(word(GOOD, Evidence::default()), Word::Passed);
    }

    #[test]
    fn what_lacks_or_reorders_or_adds_lines_is_wrong_output() {
        let none = Evidence::default;
        assert_eq!(word("first\nmoira: system ended: ok\n", none()), Word::WrongOutput);
        assert_eq!(word("second\nfirst\nmoira: system ended: ok\n", none()), Word::WrongOutput);
        assert_eq!(word(&format!("forbidden\n{GOOD}"), none()), Word::WrongOutput);
        let failed = "first\nsecond\nmoira: system ended: failed: two were one\n";
        assert_eq!(word(failed, none()), Word::Failed);
    }

    #[test]
    fn a_kernel_panic_is_one_even_when_the_run_timed_out() {
        let evidence = Evidence { too_long: Some("10 s".into()), ..Default::default() };
        assert_eq!(word("first\nmoira: kernel panic: at x\n", evidence), Word::KernelPanic);
    }

    #[test]
    fn an_unhandled_task_fault_is_one_even_when_the_end_is_ok() {
        assert_eq!(word(&format!("moira: task fault: t\n{GOOD}"), Evidence::default()), Word::TaskFault);
    }

    #[test]
    fn a_triple_fault_is_one_whatever_was_said() {
        let evidence = Evidence { triple_fault: true, emulator: Some("exit status 0".into()), ..Default::default() };
        assert_eq!(word("first\n", evidence), Word::TripleFault);
    }

    #[test]
    fn a_hang_is_one_even_when_everything_was_said() {
        let evidence = Evidence { too_long: Some("10 s".into()), ..Default::default() };
        assert_eq!(word("first\nsecond\n", evidence), Word::Hang);
    }

    #[test]
    fn an_emulator_that_ends_alone_died() {
        let evidence = Evidence { emulator: Some("signal 9".into()), ..Default::default() };
        assert_eq!(word("first\nsecond\n", evidence), Word::EmulatorDied);
    }

    #[test]
    fn a_case_may_end_when_all_was_said() {
        let evidence = Evidence { all_said: true, ..Default::default() };
        assert_eq!(word("first\nsecond\n", evidence.clone()), Word::Passed);
        assert_eq!(word("first\n", evidence), Word::WrongOutput);
    }
}
