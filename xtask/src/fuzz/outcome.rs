//! What libFuzzer said of a run.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A run of a target.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Inputs that were run.
    pub runs: u64,
    /// Edges of the program that some input passed, and all there are.
    pub edges: u64,
    /// See `edges`.
    pub all_edges: u64,
    /// Inputs worth keeping.
    pub corpus: u64,
    /// Wall time.
    pub took: Duration,
    /// What went wrong.
    pub crash: Option<Crash>,
}

/// Something that a target did not bear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crash {
    /// The panic, or what libFuzzer calls it: a signal, a timeout, too much memory.
    pub what: String,
    /// The input that led to it.
    pub input: Option<PathBuf>,
    /// All that was said.
    pub log: PathBuf,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [runs, edges, all, corpus] = [self.runs, self.edges, self.all_edges, self.corpus].map(grouped);
        let took = self.took.as_secs_f64();
        write!(f, "{runs} runs in {took:.1} s, {edges} of {all} edges, {corpus} inputs kept")
    }
}

/// A number with commas between thousands.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Reads libFuzzer's output. `ended_well`: its exit status; `log`: where the output is kept.
pub fn read(text: &str, ended_well: bool, log: &Path) -> Outcome {
    let mut outcome = Outcome::default();
    let mut panic: Option<String> = None;
    let mut cause: Option<String> = None;
    let mut input = None;
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with('#') {
            // Such as "#5000	DONE   cov: 137 ft: 219 corp: 77/3508b lim: 64 exec/s: 0 rss: 27Mb".
            outcome.runs = number(line.trim_start_matches('#')).unwrap_or(outcome.runs);
            outcome.edges = after(line, " cov: ").unwrap_or(outcome.edges);
            outcome.corpus = after(line, " corp: ").unwrap_or(outcome.corpus);
        } else if let Some(count) = after(line, "PC tables (") {
            outcome.all_edges = count;
        } else if let Some(count) = after(line, "stat::number_of_executed_units: ") {
            outcome.runs = count;
        } else if let Some((_, place)) = line.split_once("panicked at ") {
            let said = lines.peek().map_or("", |said| said.trim());
            panic.get_or_insert_with(|| format!("panicked at {place} {said}"));
        } else if let Some((_, what)) = line.split_once("ERROR: libFuzzer: ") {
            cause.get_or_insert_with(|| what.to_string());
        } else if let Some((_, path)) = line.split_once("Test unit written to ") {
            input = Some(PathBuf::from(path.trim()));
        }
    }
    if !ended_well || input.is_some() {
        let what = panic.or(cause).unwrap_or_else(|| "it ended without a word".into());
        outcome.crash = Some(Crash { what, input, log: log.to_path_buf() });
    }
    outcome
}

fn number(text: &str) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).map_or(text, |end| &text[..end]);
    digits.parse().ok()
}

fn after(line: &str, word: &str) -> Option<u64> {
    number(line.split_once(word)?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTED: &str = "INFO: Running with entropic power schedule (0xFF, 100).\n\
        INFO: Loaded 1 modules   (6837 inline 8-bit counters): 6837 [0x1, 0x2), \n\
        INFO: Loaded 1 PC tables (6837 PCs): 6837 [0x1,0x2), \n\
        #2\tINITED cov: 11 ft: 11 corp: 1/1b exec/s: 0 rss: 27Mb\n";

    #[test]
    fn a_run_that_ends_well_has_its_numbers() {
        let end = "#20000\tDONE   cov: 1137 ft: 2219 corp: 77/3508b lim: 64 exec/s: 9 rss: 27Mb\n\
            Done 20000 runs in 3 second(s)\nstat::number_of_executed_units: 20000\n";
        let outcome = read(&(STARTED.to_string() + end), true, Path::new("log"));
        assert_eq!((outcome.runs, outcome.edges, outcome.all_edges, outcome.corpus), (20_000, 1137, 6837, 77));
        assert_eq!(outcome.crash, None);
        assert_eq!(outcome.to_string(), "20,000 runs in 0.0 s, 1,137 of 6,837 edges, 77 inputs kept");
    }

    #[test]
    fn a_panic_is_told_with_its_input() {
        let end = "\nthread '<unnamed>' (7) panicked at vmm-task/devices/src/pit.rs:7:9:\n\
            index out of bounds: the len is 3 but the index is 9\nstack backtrace:\n\
            ==7== ERROR: libFuzzer: deadly signal\n\
            artifact_prefix='x/'; Test unit written to x/crash-1\nBase64: TW9pcg==\nstat::number_of_executed_units: 321\n";
        let outcome = read(&(STARTED.to_string() + end), false, Path::new("log"));
        let crash = outcome.crash.unwrap();
        let what = "panicked at vmm-task/devices/src/pit.rs:7:9: index out of bounds: the len is 3 but the index is 9";
        assert_eq!((crash.what.as_str(), crash.input), (what, Some(PathBuf::from("x/crash-1"))));
        assert_eq!(outcome.runs, 321);
    }

    #[test]
    fn timeouts_and_sudden_ends_are_crashes_too() {
        let timeout = "==1== ERROR: libFuzzer: timeout after 30 seconds\nTest unit written to x/timeout-1\n";
        let crash = read(&(STARTED.to_string() + timeout), false, Path::new("log")).crash.unwrap();
        assert_eq!(crash.what, "timeout after 30 seconds");
        let crash = read(STARTED, false, Path::new("log")).crash.unwrap();
        assert_eq!((crash.what.as_str(), crash.input), ("it ended without a word", None));
    }

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
