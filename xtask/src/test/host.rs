//! The host tests: `cargo test` of every crate that also builds for the host.

use std::fs;
use std::process::Stdio;

use anyhow::{Context, Result};

use super::Count;
use crate::hosttools::{self, Install, Tool};
use crate::{paths, progress, toolchain};

/// What some of them judge by.
const TOOLS: &[&[Tool]] = &[hosttools::ACPICA, hosttools::QEMU];

/// Runs them and counts. What they print is kept, and shown when something failed.
pub fn run(install: Install) -> Result<Count> {
    hosttools::require(TOOLS, install)?;
    let step = progress::step("host tests");
    let mut command = toolchain::rustup_cargo();
    command.args(["test", "--no-fail-fast", "--color=never"]).current_dir(paths::root()).stdin(Stdio::null());
    let output = command.output().context("cannot start cargo test")?;
    step.finish();
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut count = count(&text);
    let log = paths::test_logs().join("host/cargo-test.log");
    if let Some(folder) = log.parent() {
        fs::create_dir_all(folder)?;
    }
    text += &String::from_utf8_lossy(&output.stderr);
    fs::write(&log, &text)?;
    if output.status.success() {
        println!("ok    {:<44} {} tests", "host", count.passed);
        return Ok(count);
    }
    // A crate that does not build, or a test that ends its process, is in no summary line.
    count.failed = count.failed.max(1);
    println!("FAIL  {:<44} {} of {} tests", "host", count.failed, count.passed + count.failed);
    println!("      log: {}", log.display());
    for line in failures(&text) {
        println!("      | {line}");
    }
    Ok(count)
}

/// Adds up the summary lines of all test programs.
fn count(text: &str) -> Count {
    let mut count = Count::default();
    for line in text.lines().filter(|line| line.starts_with("test result: ")) {
        let number = |word: &str| {
            let before = line.split_once(word)?.0;
            before.rsplit([' ', '.']).find(|part| !part.is_empty())?.parse::<usize>().ok()
        };
        count.passed += number(" passed").unwrap_or(0);
        count.failed += number(" failed").unwrap_or(0);
    }
    count
}

/// The lines that say what went wrong, a screenful at most.
fn failures(text: &str) -> Vec<&str> {
    let tells = |line: &&str| {
        line.ends_with("... FAILED")
            || line.starts_with("error")
            || line.contains("panicked at")
            || line.contains("signal:")
    };
    text.lines().filter(tells).take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_add_up() {
        let text = "test a ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n\
            test result: FAILED. 3 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let count = count(text);
        assert_eq!((count.passed, count.failed), (15, 2));
    }

    #[test]
    fn failures_are_named() {
        let text = "test a ... ok\ntest b ... FAILED\nerror: test failed\n";
        assert_eq!(failures(text), ["test b ... FAILED", "error: test failed"]);
    }
}
