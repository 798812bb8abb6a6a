//! `bench`: what things cost, in instructions of a deterministic machine.

mod linux;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

mod kernel;

use crate::build;
use crate::cli::Global;
use crate::console::{End, Watch};
use crate::emulator::{Emulator, Machine};
use crate::experiment;
use crate::hosttools;
use crate::paths;
use crate::progress;
use crate::system;
use crate::toolchain::Toolchain;
use crate::trace::Tracer;

mod costs;
mod yields;

/// What the figures are made with: the measures against processor leaks have columns of their own.
const OFF: &str = "mitigations=off";
/// The folder of the logs, below the target folder.
const SYSTEMS: &str = "bench";
/// The figure that comes from the experiments.
const LEDGER_ERROR: &str = "time.ledger_error";
/// Wall time after which a system that says nothing new is given up.
const SILENCE: Duration = Duration::from_secs(300);

/// What to measure.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Only figures whose name contains this
    pattern: Option<String>,
    /// Boot only this one of the systems that measure
    #[arg(long, value_name = "NAME")]
    system: Option<String>,
    /// Print a JSON array in place of a table
    #[arg(long)]
    json: bool,
    /// What each measure against processor leaks adds, in place of the figures
    #[arg(long)]
    mitigations: bool,
    /// Where to measure: QEMU counts instructions as nanoseconds, Bochs by its own clock
    #[arg(long, default_value = "qemu")]
    emulator: Emulator,
    /// Boot this ELF in place of the kernel
    #[arg(long, value_name = "ELF", hide = true)]
    kernel: Option<PathBuf>,
}

/// One figure, as the system prints it after `bench: `.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Figure {
    name: String,
    unit: String,
    minimum: f64,
    median: f64,
    maximum: f64,
    samples: u64,
}

/// Runs the command.
pub fn main(options: &Options, global: &Global) -> Result<ExitCode> {
    let machine = Machine { icount: options.emulator == Emulator::Qemu, ..Machine::usual(options.emulator) };
    let mut tools = machine.tools();
    tools.push(hosttools::BINUTILS);
    hosttools::require(&tools, global.install())?;
    let toolchain = Toolchain::find(global.toolchain, global.install())?;
    eprintln!("compiler: {}", toolchain.origin);
    let wanted = |names: &[&str]| {
        options.emulator == Emulator::Qemu
            && options.pattern.as_ref().is_none_or(|pattern| names.iter().any(|name| name.contains(pattern.as_str())))
    };
    let looks = options.system.is_none() && wanted(&kernel::CHECKED.map(|(_, name)| name));
    // Before the others: what is built last is what cargo leaves under the kernel's name.
    let checking = if looks { Some(build::kernel_with("checks", &toolchain, global.install())?) } else { None };
    let images = build::images(&toolchain, global.install())?;
    if options.mitigations {
        print!("{}", costs::table(options, &images, &machine)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut all = Vec::new();
    let mut failed = None;
    let systems: Vec<&str> = match &options.system {
        Some(only) if yields::is_one(only) => vec![only],
        Some(other) => bail!(
            "{other} is no system that measures; there are: {}",
            yields::systems(None).collect::<Vec<_>>().join(", ")
        ),
        None => yields::systems(options.pattern.as_deref()).collect(),
    };
    for name in systems {
        let measured = measure(name, options, OFF, &images, &machine);
        match measured.and_then(|figures| yields::check(name, &figures).map(|()| figures)) {
            Ok(figures) => all.extend(figures),
            Err(error) => {
                eprintln!("error: {name}: {error:#}");
                failed = Some(name.to_owned());
            }
        }
    }
    if options.system.is_none() && wanted(&[LEDGER_ERROR]) {
        match ledger_error(&images, &machine) {
            Ok(figure) => all.push(figure),
            Err(error) => {
                eprintln!("error: {LEDGER_ERROR}: {error:#}");
                failed = Some(LEDGER_ERROR.into());
            }
        }
    }
    if options.emulator == Emulator::Qemu && options.system.is_none() {
        match linux::measure(options.pattern.as_deref(), &images, &machine) {
            Ok(figures) => all.extend(figures),
            Err(error) => {
                eprintln!("error: linux: {error:#}");
                failed = Some("linux".to_owned());
            }
        }
    }
    if options.system.is_none() && wanted(&kernel::SIZES) {
        all.extend(kernel::sizes(&images)?);
    }
    if let Some(checking) = checking {
        match kernel::checked(&images, &checking, &machine) {
            Ok(figures) => all.extend(figures),
            Err(error) => {
                eprintln!("error: {error:#}");
                failed = Some("the checking kernel".into());
            }
        }
    }
    all.retain(|figure| options.pattern.as_ref().is_none_or(|pattern| figure.name.contains(pattern)));
    if options.json {
        println!("{}", serde_json::to_string_pretty(&all)?);
    } else {
        print!("{}", table(&all));
    }
    match failed {
        Some(name) => bail!("{name} did not end as it should"),
        None if all.is_empty() => bail!("no figure matches"),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// In each boot of each experiment: by how much the ledger and the trace differ about a context, at most, in percent of that context's time.
fn ledger_error(images: &build::Images, machine: &Machine) -> Result<Figure> {
    let mut errors = Vec::new();
    for (name, values) in experiment::boots() {
        let label = format!("{name} {}", values.values().cloned().collect::<Vec<_>>().join(" "));
        let compiled = system::describe(&paths::root(), &name, &values)?;
        let tracer = Tracer { from_ms: 400, ms: 600, attempts: 1, structural: false, port: false };
        let booted = build::system_with(&name, images, &values, &tracer.addition(&compiled)?)?;
        let folder = paths::target().join(SYSTEMS).join("ledger").join(label.trim().replace(' ', "-"));
        let step = progress::step(format!("{LEDGER_ERROR} in {label}"));
        let watch = follow(machine, &booted, OFF, &folder)?;
        step.finish();
        let log = folder.join("serial.log");
        std::fs::write(&log, watch.text())?;
        let rows = experiment::rows(watch.text())?;
        let found = rows.iter().find(|row| row.get("kind").and_then(|kind| kind.as_str()) == Some("ledger-error"));
        let ppm = found.and_then(|row| row.get("ppm")?.as_f64());
        errors.push(ppm.with_context(|| format!("{label}: nothing was compared; the log is {}", log.display()))? / 1e4);
    }
    errors.sort_by(f64::total_cmp);
    let (Some(minimum), Some(maximum)) = (errors.first().copied(), errors.last().copied()) else {
        bail!("there are no experiments");
    };
    let (median, samples) = (errors[errors.len() / 2], errors.len() as u64);
    Ok(Figure { name: LEDGER_ERROR.into(), unit: "%".into(), minimum, median, maximum, samples })
}

/// Boots one system and reads its figures.
fn measure(
    name: &str,
    options: &Options,
    cmdline: &str,
    images: &build::Images,
    machine: &Machine,
) -> Result<Vec<Figure>> {
    let mut system = build::system(name, images, &BTreeMap::new())?;
    if let Some(kernel) = &options.kernel {
        system.kernel.clone_from(kernel);
    }
    let folder = paths::target().join(SYSTEMS).join(machine.label()).join(name);
    let step = progress::step(format!("{name} in {}", machine.label()));
    let watch = follow(machine, &system, cmdline, &folder)?;
    step.finish();
    let log = folder.join("serial.log");
    std::fs::write(&log, watch.text())?;
    match &watch.end {
        Some(End::Ok) => figures(watch.text()),
        Some(End::Failed(why)) => bail!("the system ended: failed: {why}; the log is {}", log.display()),
        None => bail!("the system did not end as it should; the log is {}", log.display()),
    }
}

/// Runs the system until it ends or falls silent.
pub fn follow(machine: &Machine, system: &build::System, cmdline: &str, folder: &std::path::Path) -> Result<Watch> {
    let mut running = machine.start(system, cmdline, folder)?;
    running.serial.set_read_timeout(Some(Duration::from_millis(100)))?;
    let mut watch = Watch::default();
    let mut heard = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        match running.serial.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                watch.feed(&buffer[..count]);
                heard = Instant::now();
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
        let patience = if watch.end.is_some() || watch.panic.is_some() { Duration::from_secs(2) } else { SILENCE };
        if heard.elapsed() > patience {
            break;
        }
    }
    watch.finish();
    Ok(watch)
}

/// The figures in a log, in the order in which they were printed.
fn figures(log: &str) -> Result<Vec<Figure>> {
    log.lines()
        .filter_map(|line| line.split_once("bench: {").map(|(_, rest)| format!("{{{rest}")))
        .map(|json| serde_json::from_str(json.trim_end()).with_context(|| format!("not a figure: {json}")))
        .collect()
}

fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.name.len()).max().unwrap_or(0).max(6);
    let mut text = format!(
        "{:<width$}  {:>12} {:>12} {:>12}  {:<14} {:>8}\n",
        "FIGURE", "MINIMUM", "MEDIAN", "MAXIMUM", "UNIT", "SAMPLES"
    );
    for figure in figures {
        let Figure { name, unit, minimum, median, maximum, samples } = figure;
        text += &format!("{name:<width$}  {minimum:>12} {median:>12} {maximum:>12}  {unit:<14} {samples:>8}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"[    1.5] bench: {"name":"ipc","unit":"instructions","minimum":310,"median":312.5,"maximum":400,"samples":1000}"#;

    #[test]
    fn figures_are_read_and_shown() {
        let read = figures(&format!("hello\n{LINE}\nbye\n")).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].name.as_str(), read[0].median, read[0].samples), ("ipc", 312.5, 1000));
        let table = table(&read);
        assert!(table.lines().nth(1).unwrap().contains("312.5"), "{table}");
    }

    #[test]
    fn a_broken_figure_is_an_error() {
        assert!(figures("bench: {\"name\":1}\n").is_err());
    }
}
