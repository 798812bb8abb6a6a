//! Fuzz targets as cases: the same inputs in every run, from each target's seeds on, and the target that is broken on purpose, whose mistake
//! has to be found.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Count, side_by_side};
use crate::cli::Global;
use crate::fuzz::{self, Budget, Outcome, Run};
use crate::paths;

/// Inputs in a usual run and in a long one, and at most until the planted mistake is found: some hundred thousand by coverage, and by
/// chance once in 2^32.
const USUAL: u64 = 5_000;
const LONG: u64 = 200_000;
const BROKEN: u64 = 10_000_000;
/// Edges that the least of the targets has passed after a usual run: without coverage it would be none.
const LEAST_EDGES: u64 = 50;

/// One target.
#[derive(Clone, Debug)]
pub struct Case {
    /// `libfuzzer-TARGET/host`.
    pub name: String,
    target: String,
}

/// All targets.
pub fn cases() -> Result<Vec<Case>> {
    let targets = fuzz::targets()?.into_keys();
    Ok(targets.map(|target| Case { name: format!("libfuzzer-{target}/host"), target }).collect())
}

/// Runs them side by side, reports each and counts.
pub fn run(cases: &[Case], long: bool, jobs: u32, global: &Global) -> Result<Count> {
    let programs = fuzz::build(global.install())?;
    Ok(side_by_side(cases, jobs, |case| {
        let program = programs.get(&case.target).context("the build made no such target");
        report(case, program.and_then(|program| one(case, program, long)))
    }))
}

/// What a target came to: a line for people, and a complaint if it failed.
struct Verdict {
    outcome: Outcome,
    complaint: Option<String>,
}

fn report(case: &Case, verdict: Result<Verdict>) -> bool {
    let verdict = match verdict {
        Ok(verdict) => verdict,
        Err(error) => {
            println!("FAIL  {}: {error:#}", case.name);
            return false;
        }
    };
    let took = verdict.outcome.took.as_secs_f64();
    let Some(complaint) = verdict.complaint else {
        let (runs, edges) = (fuzz::grouped(verdict.outcome.runs), fuzz::grouped(verdict.outcome.edges));
        println!("ok    {:<44} {took:>6.1} s  {runs} inputs, {edges} edges", case.name);
        return true;
    };
    println!("FAIL  {:<44} {took:>6.1} s  {complaint}", case.name);
    if let Some(crash) = &verdict.outcome.crash {
        print!("{}", fuzz::describe(&case.target, crash));
    }
    false
}

fn one(case: &Case, program: &Path, long: bool) -> Result<Verdict> {
    // From its seeds alone, so that the run is the same whatever was found before.
    let folder = folder(&case.target);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("cannot empty {}", folder.display()));
        }
        _ => {}
    }
    let broken = case.target == fuzz::BROKEN;
    let runs = if broken {
        BROKEN
    } else if long {
        LONG
    } else {
        USUAL
    };
    let run = Run { program, folder, budget: Budget::Runs(runs), seed: Some(1) };
    let outcome = run.run(&case.target)?;
    let complaint = if broken { broken_complaint(program, &outcome)? } else { complaint(&outcome) };
    Ok(Verdict { outcome, complaint })
}

fn folder(target: &str) -> PathBuf {
    paths::test_logs().join("libfuzzer").join(target)
}

fn complaint(outcome: &Outcome) -> Option<String> {
    if outcome.crash.is_some() {
        return Some("an input that it does not bear".into());
    }
    (outcome.edges < LEAST_EDGES).then(|| format!("{} edges: there is no coverage to go by", outcome.edges))
}

/// The planted mistake has to be found, told as what it is, and shown again by its input, and by no other.
fn broken_complaint(program: &Path, outcome: &Outcome) -> Result<Option<String>> {
    let Some(crash) = &outcome.crash else { return Ok(Some("the planted mistake was not found".into())) };
    if !crash.what.contains("index out of bounds") {
        return Ok(Some(format!("the planted mistake was told as {:?}", crash.what)));
    }
    let Some(input) = &crash.input else { return Ok(Some("the crash left no input".into())) };
    if fuzz::quiet_replay(program, input)? {
        return Ok(Some("its input does not lead to it again".into()));
    }
    let other = input.with_file_name("no-crash");
    fs::write(&other, b"Moi")?;
    Ok((!fuzz::quiet_replay(program, &other)?).then(|| "another input led to it, too".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::Crash;

    #[test]
    fn a_run_without_coverage_fails() {
        let outcome = |edges| Outcome { runs: USUAL, edges, all_edges: 900, ..Outcome::default() };
        assert_eq!(complaint(&outcome(100)), None);
        assert!(complaint(&outcome(0)).unwrap().contains("no coverage"));
    }

    #[test]
    fn a_crash_fails_and_a_mistake_that_is_not_found_too() {
        let crash = |what: &str| Some(Crash { what: what.into(), input: None, log: "log".into() });
        let with = |crash| Outcome { edges: 100, crash, ..Outcome::default() };
        assert!(complaint(&with(crash("a panic"))).is_some());
        let nothing = Path::new("/no/such/program");
        assert!(broken_complaint(nothing, &with(None)).unwrap().unwrap().contains("not found"));
        assert!(broken_complaint(nothing, &with(crash("timeout"))).unwrap().unwrap().contains("told as"));
        assert!(broken_complaint(nothing, &with(crash("index out of bounds"))).unwrap().unwrap().contains("no input"));
    }
}
