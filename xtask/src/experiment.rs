//! `experiment`: what the guarantees are worth, as numbers of a deterministic machine.
//!
//! An experiment boots one system several times, each time with another value of one of its options. Its tasks print lines `data: {…}`; all of
//! them go to CSV files, one for each kind of line, and from them come the plots, the findings and a one-page report.

mod chart;
pub mod findings;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bench;
use crate::build;
use crate::cli::Global;
use crate::console::End;
use crate::emulator::{Emulator, Machine};
use crate::paths;
use crate::progress;

/// What to try.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Which one; a name that does not exist lists them
    name: String,
    /// Also with this value of what differs from run to run: a policy of your own, for `weights`
    #[arg(long, value_name = "VALUE")]
    also: Vec<String>,
    /// Run everything twice and compare each value
    #[arg(long)]
    twice: bool,
}

/// An experiment.
struct Experiment {
    name: &'static str,
    title: &'static str,
    /// The option of the system that differs from run to run, and its values.
    option: &'static str,
    values: &'static [&'static str],
    judge: fn(&[Run]) -> findings::Judged,
}

const EXPERIMENTS: &[Experiment] = &[
    Experiment {
        name: "atropos",
        title: "Contracts of greedy tasks on one CPU",
        option: "",
        values: &["contracts"],
        judge: findings::atropos,
    },
    Experiment {
        name: "weights",
        title: "Shares and wake-up latency under slack policies",
        option: "policy",
        values: &["round-robin", "atropos", "bvt"],
        judge: findings::weights,
    },
    Experiment {
        name: "scheduler-death",
        title: "A scheduler that hangs, storms, is hostile, crashes or is killed",
        option: "failure",
        values: &["none", "hang", "storm", "hostile", "crash", "kill"],
        judge: findings::scheduler_death,
    },
    Experiment {
        name: "crosstalk-cpu",
        title: "What an antagonist takes from a victim's time",
        option: "antagonist",
        values: &["nothing", "spinner", "syscalls", "faults", "calls", "objects", "signals"],
        judge: findings::crosstalk,
    },
];

/// Every boot of every experiment: its system and the values of that system's options.
pub fn boots() -> impl Iterator<Item = (String, BTreeMap<String, String>)> {
    EXPERIMENTS.iter().flat_map(|experiment| {
        experiment.values.iter().map(|value| (format!("exp-{}", experiment.name), experiment.options(value)))
    })
}

impl Experiment {
    /// The options of a boot with this value.
    fn options(&self, value: &str) -> BTreeMap<String, String> {
        let named = (!self.option.is_empty()).then(|| (self.option.to_owned(), value.to_owned()));
        named.into_iter().collect()
    }
}

/// One line of data.
pub type Row = BTreeMap<String, Value>;

/// One boot.
pub struct Run {
    /// The option's value.
    pub value: String,
    /// The lines, in the order in which they were printed.
    pub rows: Vec<Row>,
}

impl Run {
    /// The lines of a kind, of a task if one is named.
    pub fn of<'a>(&'a self, kind: &'a str, task: Option<&'a str>) -> impl Iterator<Item = &'a Row> {
        let is = |row: &Row, key: &str, text: &str| row.get(key).and_then(Value::as_str) == Some(text);
        self.rows.iter().filter(move |row| is(row, "kind", kind) && task.is_none_or(|task| is(row, "task", task)))
    }
}

/// A number of a line; 0 if it is not there.
pub fn number(row: &Row, key: &str) -> f64 {
    row.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

/// What all boots of experiments need.
pub struct Laboratory {
    machine: Machine,
    images: build::Images,
}

impl Laboratory {
    /// Builds the tasks, and installs what is missing.
    pub fn open(global: &Global) -> Result<Laboratory> {
        let machine = Machine { icount: true, ..Machine::usual(Emulator::Qemu) };
        let images = build::with_tools(&machine.tools(), global)?;
        Ok(Laboratory { machine, images })
    }

    /// Runs an experiment, writes its report and answers what it found; `also` and `twice` are the command's.
    pub fn run(&self, name: &str, also: &[String], twice: bool) -> Result<Report> {
        let experiment = named(name)?;
        let folder = paths::target().join("experiments").join(experiment.name);
        fs::create_dir_all(&folder)?;
        let mut runs = Vec::new();
        for value in experiment.values.iter().copied().chain(also.iter().map(String::as_str)) {
            let first = boot(experiment, value, &self.images, &self.machine, &folder)?;
            if twice && boot(experiment, value, &self.images, &self.machine, &folder)?.rows != first.rows {
                bail!("{} with {value} did not repeat: two runs differ", experiment.name);
            }
            runs.push(first);
        }
        let mut judged = (experiment.judge)(&runs);
        if twice {
            judged.goal("two runs are alike, value by value", true, "compared".into());
        }
        write(experiment, &runs, &judged, &folder)?;
        Ok(Report { judged, page: folder.join("index.html") })
    }
}

/// What an experiment found, and the page that shows it.
pub struct Report {
    /// Goals, tables and plots.
    pub judged: findings::Judged,
    /// The report for a browser.
    pub page: PathBuf,
}

/// The names of all experiments.
pub fn names() -> Vec<&'static str> {
    EXPERIMENTS.iter().map(|experiment| experiment.name).collect()
}

/// The experiment of that name.
fn named(name: &str) -> Result<&'static Experiment> {
    EXPERIMENTS
        .iter()
        .find(|experiment| experiment.name == name)
        .with_context(|| format!("no experiment {name:?}; there are {}", names().join(", ")))
}

/// Runs the command.
pub fn main(options: &Options, global: &Global) -> Result<ExitCode> {
    // Before the build, which takes minutes.
    named(&options.name)?;
    let report = Laboratory::open(global)?.run(&options.name, &options.also, options.twice)?;
    print!("{}", report.judged.text());
    println!("report: {}", report.page.display());
    Ok(if report.judged.good() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn boot(experiment: &Experiment, value: &str, images: &build::Images, machine: &Machine, folder: &Path) -> Result<Run> {
    let values = experiment.options(value);
    let system = build::system(&format!("exp-{}", experiment.name), images, &values)?;
    let folder = folder.join(value);
    let step = progress::step(format!("{} with {value}", experiment.name));
    let watch = bench::follow(machine, &system, "", &folder)?;
    step.finish();
    let log = folder.join("serial.log");
    fs::write(&log, watch.text())?;
    match &watch.end {
        Some(End::Ok) => {}
        Some(End::Failed(why)) => bail!("{value}: the system ended: failed: {why}; the log is {}", log.display()),
        None => bail!("{value}: the system did not end as it should; the log is {}", log.display()),
    }
    if let Some(line) = watch.text().lines().find(|line| line.contains("error: ")) {
        bail!("{value}: {line}; the log is {}", log.display());
    }
    Ok(Run { value: value.to_owned(), rows: rows(watch.text())? })
}

/// The lines of data in a log.
pub fn rows(log: &str) -> Result<Vec<Row>> {
    let lines = log.lines().filter_map(|line| line.split_once("data: {").map(|(_, rest)| format!("{{{rest}")));
    lines
        .map(|json| serde_json::from_str(json.trim_end()).with_context(|| format!("not a line of data: {json}")))
        .collect()
}

fn write(experiment: &Experiment, runs: &[Run], judged: &findings::Judged, folder: &Path) -> Result<()> {
    let kinds: BTreeSet<&str> =
        runs.iter().flat_map(|run| &run.rows).filter_map(|row| row.get("kind")?.as_str()).collect();
    let mut files = Vec::new();
    for kind in kinds {
        let name = format!("{kind}.csv");
        fs::write(folder.join(&name), csv(runs, kind, experiment.option))?;
        files.push(name);
    }
    for (index, chart) in judged.charts.iter().enumerate() {
        fs::write(folder.join(format!("plot-{}.svg", index + 1)), chart.svg())?;
    }
    fs::write(folder.join("index.html"), report::html(experiment.name, experiment.title, judged, &files))?;
    Ok(())
}

/// All lines of a kind as CSV: first the option's value, then the columns in alphabetical order.
fn csv(runs: &[Run], kind: &str, option: &str) -> String {
    let columns: BTreeSet<&String> =
        runs.iter().flat_map(|run| run.of(kind, None)).flat_map(Row::keys).filter(|key| *key != "kind").collect();
    let option = if option.is_empty() { "run" } else { option };
    let mut text = format!("{option},{}\n", columns.iter().map(|column| column.as_str()).collect::<Vec<_>>().join(","));
    for run in runs {
        for row in run.of(kind, None) {
            let cell = |column: &&String| match row.get(*column) {
                None => String::new(),
                Some(Value::String(text)) => text.clone(),
                Some(value) => value.to_string(),
            };
            text += &format!("{},{}\n", run.value, columns.iter().map(cell).collect::<Vec<_>>().join(","));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "[    4.1] victim: data: {\"kind\":\"account\",\"task\":\"victim\",\"own\":300}\nnoise\n[    4.2] data: {\"kind\":\"account\",\"task\":\"other\",\"own\":5,\"lost\":1}\n";

    #[test]
    fn lines_become_a_table() {
        let run = Run { value: "spinner".into(), rows: rows(LOG).unwrap() };
        assert_eq!(run.of("account", Some("victim")).map(|row| number(row, "own")).sum::<f64>(), 300.0);
        assert_eq!(
            csv(&[run], "account", "antagonist"),
            "antagonist,lost,own,task\nspinner,,300,victim\nspinner,1,5,other\n"
        );
        assert!(rows("data: {broken").is_err());
    }

    #[test]
    fn a_name_that_is_none_lists_them() {
        let text = named("nosuch").err().unwrap().to_string();
        assert_eq!(text, "no experiment \"nosuch\"; there are atropos, weights, scheduler-death, crosstalk-cpu");
        assert_eq!(named("weights").unwrap().name, "weights");
    }

    #[test]
    fn every_experiment_fails_without_data() {
        for experiment in EXPERIMENTS {
            let runs: Vec<Run> =
                experiment.values.iter().map(|value| Run { value: (*value).into(), rows: Vec::new() }).collect();
            assert!(!(experiment.judge)(&runs).good(), "{}", experiment.name);
        }
    }
}
