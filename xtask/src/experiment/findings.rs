//! What each experiment's data say: goals kept or missed, tables, plots.

use super::chart::{Chart, shown};
use super::{Run, number};

/// A goal, and what was found.
#[derive(Clone, Debug)]
pub struct Goal {
    /// What was to be.
    pub what: String,
    /// Whether it is.
    pub kept: bool,
    /// What is.
    pub found: String,
}

/// All that an experiment found.
#[derive(Clone, Debug, Default)]
pub struct Judged {
    /// The goals.
    pub goals: Vec<Goal>,
    /// Tables: a heading and rows, the first of which names the columns.
    pub tables: Vec<(String, Vec<Vec<String>>)>,
    /// Plots.
    pub charts: Vec<Chart>,
}

/// No window starts later than the longest stretch of the kernel that nothing interrupts, in instructions.
const LONGEST_STRETCH: f64 = 2_000.0;

impl Judged {
    /// Adds a goal.
    pub fn goal(&mut self, what: &str, kept: bool, found: String) {
        self.goals.push(Goal { what: what.into(), kept, found });
    }

    /// Whether all goals are kept.
    pub fn good(&self) -> bool {
        self.goals.iter().all(|goal| goal.kept)
    }

    /// For the terminal.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (heading, rows) in &self.tables {
            let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
            let width =
                |column: usize| rows.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
            let widths: Vec<usize> = (0..columns).map(width).collect();
            text += &format!("{heading}\n");
            for row in rows {
                let cells = row.iter().zip(&widths).enumerate();
                let line: Vec<String> = cells
                    .map(
                        |(index, (cell, width))| {
                            if index == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
                        },
                    )
                    .collect();
                text += &format!("  {}\n", line.join("  "));
            }
        }
        for goal in &self.goals {
            text += &format!("{} {}: {}\n", if goal.kept { "kept  " } else { "MISSED" }, goal.what, goal.found);
        }
        text
    }
}

/// Least and largest; `None` of nothing.
fn range(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values.into_iter().fold(None, |range: Option<(f64, f64)>, value| {
        Some(range.map_or((value, value), |(least, most)| (least.min(value), most.max(value))))
    })
}

/// Shares of one task, interval by interval.
fn shares(run: &Run, task: &str) -> Vec<f64> {
    run.of("account", Some(task))
        .map(|row| (number(row, "own") + number(row, "lost")) / number(row, "length").max(1.0))
        .collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len().max(1) as f64
}

fn percent(share: f64) -> String {
    format!("{:.4} %", share * 100.0)
}

/// The worst relative difference from a contract, as a goal.
fn contract(judged: &mut Judged, run: &Run, task: &str, promised: f64) {
    let shares = shares(run, task);
    let worst = range(shares.iter().map(|share| (share / promised - 1.0).abs()));
    let what = format!("{}: {task} gets {:.0} % within 0.1 % of that in every interval", run.value, promised * 100.0);
    let found = worst.map_or("no data".into(), |(_, worst)| {
        format!("off by at most {:.4} % in {} intervals", worst * 100.0, shares.len())
    });
    judged.goal(&what, worst.is_some_and(|(_, worst)| worst <= 0.001), found);
}

fn lateness(judged: &mut Judged, runs: &[Run]) {
    let starts = || runs.iter().flat_map(|run| run.of("windows", None)).filter(|row| number(row, "places") > 0.0);
    let worst = range(starts().map(|row| number(row, "lateness")));
    let found = worst.map_or("no data".into(), |(_, worst)| {
        format!(
            "{} instructions over {} windows",
            shown(worst),
            shown(starts().map(|row| number(row, "windows")).sum())
        )
    });
    judged.goal(
        "no window starts later than the longest kernel stretch, 2,000 instructions",
        worst.is_some_and(|(_, worst)| worst <= LONGEST_STRETCH),
        found,
    );
}

/// `atropos`.
pub fn atropos(runs: &[Run]) -> Judged {
    let mut judged = Judged::default();
    let tasks = ["ten", "twenty", "forty", "two-thirds", "one-third", "scheduler"];
    for run in runs {
        for (task, promised) in [("ten", 0.1), ("twenty", 0.2), ("forty", 0.4)] {
            contract(&mut judged, run, task, promised);
        }
        let (more, less) = (mean(&shares(run, "two-thirds")), mean(&shares(run, "one-third")));
        judged.goal(
            "slack is divided 2 : 1 within 2 %",
            less > 0.0 && (more / less / 2.0 - 1.0).abs() < 0.02,
            format!("{:.4} : 1", more / less.max(1e-12)),
        );
        let mut rows = vec![vec!["task".to_owned(), "share".into(), "least".into(), "most".into()]];
        for task in tasks {
            let list = shares(run, task);
            let (least, most) = range(list.iter().copied()).unwrap_or_default();
            rows.push(vec![task.into(), percent(mean(&list)), percent(least), percent(most)]);
        }
        judged.tables.push(("Shares over seconds".into(), rows));
        let values = tasks.iter().map(|task| mean(&shares(run, task)) * 100.0).collect();
        judged.charts.push(Chart {
            title: "Shares of the CPU".into(),
            unit: "%".into(),
            labels: tasks.map(str::to_owned).into(),
            series: vec![("delivered".into(), values)],
        });
    }
    lateness(&mut judged, runs);
    judged
}

/// `weights`.
pub fn weights(runs: &[Run]) -> Judged {
    let mut judged = Judged::default();
    let tasks = ["greedy-1", "greedy-2", "greedy-4", "io", "interactive", "scheduler"];
    let labels: Vec<String> = tasks.map(str::to_owned).into();
    let mut chart = Chart { title: "Shares of the CPU".into(), unit: "%".into(), labels, series: Vec::new() };
    let labels = ["io", "interactive"].map(str::to_owned);
    let mut latencies = Chart {
        title: "Longest wake-up latency".into(),
        unit: "instructions".into(),
        labels: labels.clone().into(),
        series: Vec::new(),
    };
    let mut answers = Chart {
        title: "Longest time from the wake-up that was wanted until the work was done".into(),
        unit: "instructions".into(),
        labels: labels.into(),
        series: Vec::new(),
    };
    let mut rows = vec![vec![
        "policy".to_owned(),
        "greedy-1".into(),
        "greedy-2".into(),
        "greedy-4".into(),
        "io".into(),
        "interactive".into(),
        "scheduler".into(),
    ]];
    let mut waits = vec![vec![
        "policy".to_owned(),
        "io mean".into(),
        "io worst".into(),
        "interactive mean".into(),
        "interactive worst".into(),
        "io done".into(),
        "interactive done".into(),
    ]];
    for run in runs {
        let list: Vec<f64> = tasks.iter().map(|task| mean(&shares(run, task))).collect();
        let expected = if run.value == "round-robin" { [1.0, 1.0, 1.0] } else { [1.0, 2.0, 4.0] };
        let unit = (list[0] + list[1] + list[2]) / expected.iter().sum::<f64>();
        let off = range(list.iter().zip(expected).map(|(share, weight)| (share / (unit * weight) - 1.0).abs()))
            .map_or(1.0, |range| range.1);
        judged.goal(
            &format!(
                "{}: greedy tasks share {} : {} : {} within 2 %",
                run.value, expected[0], expected[1], expected[2]
            ),
            unit > 0.0 && off < 0.02,
            format!("off by {:.3} %", off * 100.0),
        );
        chart.series.push((run.value.clone(), list.iter().map(|share| share * 100.0).collect()));
        rows.push(core::iter::once(run.value.clone()).chain(list.iter().map(|share| percent(*share))).collect());
        let of = |task, key| run.of("latency", Some(task)).map(|row| number(row, key)).sum::<f64>();
        latencies.series.push((run.value.clone(), vec![of("io", "worst"), of("interactive", "worst")]));
        answers.series.push((run.value.clone(), vec![of("io", "slowest"), of("interactive", "slowest")]));
        waits.push(vec![
            run.value.clone(),
            shown(of("io", "mean")),
            shown(of("io", "worst")),
            shown(of("interactive", "mean")),
            shown(of("interactive", "worst")),
            shown(of("io", "slowest")),
            shown(of("interactive", "slowest")),
        ]);
    }
    let slowest = |policy: &str| {
        runs.iter()
            .find(|run| run.value == policy)
            .and_then(|run| run.of("latency", Some("interactive")).next())
            .map(|row| number(row, "slowest"))
    };
    if let (Some(warped), Some(plain)) = (slowest("bvt"), slowest("round-robin")) {
        judged.goal(
            "the interactive task has its work done sooner under BVT with warp than under round robin",
            warped < plain,
            format!("{} against {}", shown(warped), shown(plain)),
        );
    } else {
        judged.goal("latencies were measured", false, "no data".into());
    }
    judged.tables.push(("Shares".into(), rows));
    judged
        .tables
        .push(("Wake-up latency, and the longest time until the work was done, in instructions".into(), waits));
    judged.charts.extend([chart, latencies, answers]);
    judged
}

/// `scheduler-death`.
pub fn scheduler_death(runs: &[Run]) -> Judged {
    let mut judged = Judged::default();
    let mut rows = vec![vec![
        "scheduler".to_owned(),
        "twenty".into(),
        "thirty".into(),
        "slack before".into(),
        "least".into(),
        "after".into(),
        "intervals without".into(),
    ]];
    for run in runs {
        contract(&mut judged, run, "twenty", 0.2);
        contract(&mut judged, run, "thirty", 0.3);
        let slack = shares(run, "canary");
        let (before, after) = (slack.first().copied().unwrap_or(0.0), slack.last().copied().unwrap_or(0.0));
        let least = range(slack.iter().copied()).map_or(0.0, |range| range.0);
        let without = slack.iter().filter(|share| **share < before / 2.0).count();
        judged.goal(
            &format!("{}: slack is handed out again at the end", run.value),
            before > 0.0 && after > before * 0.9,
            format!("{} before, {} after", percent(before), percent(after)),
        );
        if run.value != "none" {
            let anew = run.of("policy", None).find(|row| number(row, "restarts") > 0.0);
            let policy = anew.and_then(|row| row.get("name")).and_then(|name| name.as_str()).unwrap_or("none");
            judged.goal(
                &format!("{}: the scheduler was made anew, with another policy", run.value),
                policy == "bvt",
                format!("its policy is {policy}"),
            );
            // A crash costs less than an interval: the scheduler is made anew at once.
            let failed = least < before * 0.999;
            judged.goal(
                &format!("{}: the failure happened", run.value),
                failed,
                format!(
                    "{} of the CPU in the worst 100 ms, {without} intervals with less than half the slack",
                    percent(least)
                ),
            );
        }
        rows.push(vec![
            run.value.clone(),
            percent(mean(&shares(run, "twenty"))),
            percent(mean(&shares(run, "thirty"))),
            percent(before),
            percent(least),
            percent(after),
            without.to_string(),
        ]);
        let labels = (0..slack.len()).map(|index| format!("{}", 300 + index * 100)).collect();
        let series = ["twenty", "thirty", "canary"]
            .map(|task| (task.to_owned(), shares(run, task).iter().map(|share| share * 100.0).collect()));
        judged.charts.push(Chart {
            title: format!("Scheduler: {} (ms since start)", run.value),
            unit: "% of 100 ms".into(),
            labels,
            series: series.into(),
        });
    }
    judged.tables.push(("Shares".into(), rows));
    lateness(&mut judged, runs);
    judged
}

/// `crosstalk-cpu`.
pub fn crosstalk(runs: &[Run]) -> Judged {
    let mut judged = Judged::default();
    let delivered = |run: &Run| -> Vec<f64> {
        run.of("account", Some("victim")).map(|row| number(row, "own") + number(row, "lost")).collect()
    };
    let complete =
        runs.iter().all(|run| !delivered(run).is_empty() && run.of("windows", Some("victim")).next().is_some());
    judged.goal("every run gave data", complete, format!("{} runs", runs.len()));
    let idle: Vec<&str> = runs
        .iter()
        .filter(|run| run.value != "nothing" && mean(&shares(run, "antagonist")) < 0.05)
        .map(|run| run.value.as_str())
        .collect();
    judged.goal(
        "every antagonist but `nothing` got time to do harm in",
        idle.is_empty(),
        if idle.is_empty() { "5 % and more".into() } else { idle.join(", ") },
    );
    let lost: f64 = runs
        .iter()
        .filter(|run| run.value == "calls")
        .flat_map(|run| run.of("account", Some("victim")))
        .map(|row| number(row, "lost"))
        .sum();
    judged.goal(
        "time lost by helping is told where there is some",
        lost > 0.0,
        format!("{} beside `calls`", shown(lost)),
    );
    let spread = range(runs.iter().flat_map(delivered));
    let off = spread.map_or(1.0, |(least, most)| (most - least) / least.max(1.0));
    judged.goal(
        "delivered time over one second differs by no more than 0.02 % between any two antagonists",
        spread.is_some() && off <= 0.000_2,
        format!("{:.5} %", off * 100.0),
    );
    lateness(&mut judged, runs);
    let gaps =
        range(runs.iter().flat_map(|run| run.of("windows", Some("victim"))).map(|row| number(row, "longest_gap")));
    judged.goal(
        "the longest gap changes by no more than 2,000 instructions",
        gaps.is_some_and(|(least, most)| most - least <= LONGEST_STRETCH),
        gaps.map_or("no data".into(), |(least, most)| format!("{} to {}", shown(least), shown(most))),
    );
    let head = [
        "antagonist",
        "delivered in 1 s, least",
        "most",
        "lost by helping",
        "lateness",
        "longest gap",
        "interruptions",
        "antagonist's share",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for run in runs {
        let (least, most) = range(delivered(run)).unwrap_or_default();
        let lost: f64 = run.of("account", Some("victim")).map(|row| number(row, "lost")).sum();
        let seen = |key| run.of("windows", Some("victim")).map(|row| number(row, key)).sum::<f64>();
        let antagonist = percent(mean(&shares(run, "antagonist")));
        rows.push(vec![
            run.value.clone(),
            shown(least),
            shown(most),
            shown(lost),
            shown(seen("lateness")),
            shown(seen("longest_gap")),
            shown(seen("interruptions")),
            antagonist,
        ]);
    }
    judged.tables.push(("Victim, in instructions".into(), rows));
    let labels: Vec<String> = runs.iter().map(|run| run.value.clone()).collect();
    let base = spread.map_or(0.0, |range| range.0);
    let differences = runs.iter().map(|run| range(delivered(run)).map_or(0.0, |(_, most)| most - base)).collect();
    judged.charts.push(Chart {
        title: "Delivered time over the least of all runs".into(),
        unit: "instructions in 1 s".into(),
        labels: labels.clone(),
        series: vec![("difference".into(), differences)],
    });
    let late =
        runs.iter().map(|run| run.of("windows", Some("victim")).map(|row| number(row, "lateness")).sum()).collect();
    judged.charts.push(Chart {
        title: "Worst lateness of a window start".into(),
        unit: "instructions".into(),
        labels,
        series: vec![("lateness".into(), late)],
    });
    judged
}
