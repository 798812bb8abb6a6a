//! Experiments as cases: each goal of each has to be kept.

use std::time::Instant;

use anyhow::Result;

use super::{Count, side_by_side};
use crate::cli::Global;
use crate::experiment::{self, Laboratory, Report};

/// One experiment.
#[derive(Clone, Debug)]
pub struct Case {
    /// `experiment-NAME/qemu`.
    pub name: String,
    experiment: &'static str,
}

/// All experiments.
pub fn cases() -> Vec<Case> {
    let names = experiment::names().into_iter();
    names.map(|experiment| Case { name: format!("experiment-{experiment}/qemu"), experiment }).collect()
}

/// Runs them side by side, reports each and counts.
pub fn run(cases: &[Case], jobs: u32, global: &Global) -> Result<Count> {
    let laboratory = Laboratory::open(global)?;
    Ok(side_by_side(cases, jobs, |case| {
        let begin = Instant::now();
        let found = laboratory.run(case.experiment, &[], false);
        report(case, found, begin.elapsed().as_secs_f64())
    }))
}

fn report(case: &Case, report: Result<Report>, took: f64) -> bool {
    let report = match report {
        Ok(report) => report,
        Err(error) => {
            println!("FAIL  {}: {error:#}", case.name);
            return false;
        }
    };
    let goals = report.judged.goals.len();
    let missed: Vec<_> = report.judged.goals.iter().filter(|goal| !goal.kept).collect();
    if missed.is_empty() {
        println!("ok    {:<44} {took:>6.1} s  {goals} goals", case.name);
        return true;
    }
    println!("FAIL  {:<44} {took:>6.1} s  {} of {goals} goals missed", case.name, missed.len());
    println!("      report: {}", report.page.display());
    for goal in missed {
        println!("      | {}: {}", goal.what, goal.found);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::experiment::findings::Judged;

    #[test]
    fn one_missed_goal_fails() {
        let case = Case { name: "experiment-none/qemu".into(), experiment: "none" };
        let with = |kept: &[bool]| {
            let mut judged = Judged::default();
            for kept in kept {
                judged.goal("it holds", *kept, "it was tried".into());
            }
            Ok(Report { judged, page: "index.html".into() })
        };
        assert!(report(&case, with(&[true, true]), 1.0));
        assert!(!report(&case, with(&[true, false]), 1.0));
        assert!(!report(&case, Err(anyhow::anyhow!("nothing booted")), 1.0));
    }
}
