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
mod limits;
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

/// What has been measured so far, and what did not end as it should.
#[derive(Default)]
struct Results {
    figures: Vec<Figure>,
    failed: Vec<String>,
}

impl Results {
    /// Takes what was measured; what failed is told, and loses nothing else.
    fn take(&mut self, what: &str, measured: Result<Vec<Figure>>) {
        match measured {
            Ok(figures) => self.figures.extend(figures),
            Err(error) => {
                eprintln!("error: {what}: {error:#}");
                self.failed.push(what.to_owned());
            }
        }
    }

    /// Prints what matches, and answers whether all is well.
    fn print(mut self, options: &Options) -> Result<ExitCode> {
        self.figures.retain(|figure| options.wants(&[&figure.name]));
        if options.json {
            println!("{}", serde_json::to_string_pretty(&self.figures)?);
        } else {
            print!("{}", table(&self.figures));
        }
        let above: Vec<&str> =
            self.figures.iter().filter(|figure| !limits::is_kept(figure)).map(|figure| figure.name.as_str()).collect();
        if !above.is_empty() {
            eprintln!("above the limit: {}", above.join(", "));
        }
        if !self.failed.is_empty() {
            bail!("without a figure, because it did not end as it should: {}", self.failed.join(", "));
        }
        if self.figures.is_empty() {
            bail!("no figure matches; docs/performance.md names all");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Options {
    /// Whether one of these figures is asked for.
    fn wants(&self, names: &[&str]) -> bool {
        self.pattern.as_ref().is_none_or(|pattern| names.iter().any(|name| name.contains(pattern.as_str())))
    }

    /// The same for what is measured in QEMU only, and by no system that could be named.
    fn wants_further(&self, names: &[&str]) -> bool {
        self.emulator == Emulator::Qemu && self.system.is_none() && self.wants(names)
    }

    /// The systems to boot, of those that measure by themselves.
    fn systems(&self) -> Result<Vec<&str>> {
        match &self.system {
            Some(only) if yields::is_one(only) => Ok(vec![only]),
            Some(other) => bail!(
                "{other} is no system that measures; there are: {}",
                yields::systems(None).collect::<Vec<_>>().join(", ")
            ),
            None => Ok(yields::systems(self.pattern.as_deref()).collect()),
        }
    }
}

/// Runs the command.
pub fn main(options: &Options, global: &Global) -> Result<ExitCode> {
    if let Some(pattern) = &options.pattern {
        yields::check_pattern(pattern)?;
    }
    let systems = options.systems()?;
    let machine = Machine { icount: options.emulator == Emulator::Qemu, ..Machine::usual(options.emulator) };
    let mut tools = machine.tools();
    if options.wants_further(&[linux::FIRMWARE]) && !options.mitigations {
        tools.extend(hosttools::of_system(linux::FIRMWARE_SYSTEM));
    }
    tools.push(hosttools::BINUTILS);
    hosttools::require(&tools, global.install())?;
    let toolchain = Toolchain::find(global.toolchain, global.install())?;
    eprintln!("compiler: {}", toolchain.origin);
    let looks = options.wants_further(&kernel::CHECKED.map(|(_, name)| name));
    // Before the others: what is built last is what cargo leaves under the kernel's name.
    let checking = if looks { Some(build::kernel_with("checks", &toolchain, global.install())?) } else { None };
    let images = build::images(&toolchain, global.install())?;
    if options.mitigations {
        print!("{}", costs::table(options, &images, &machine)?);
        return Ok(ExitCode::SUCCESS);
    }
    let mut results = Results::default();
    for name in systems {
        let measured = measure(name, options, OFF, &images, &machine);
        results.take(name, measured.and_then(|figures| yields::check(name, &figures).map(|()| figures)));
    }
    if options.wants_further(&[LEDGER_ERROR]) {
        results.take(LEDGER_ERROR, ledger_error(&images, &machine).map(|figure| vec![figure]));
    }
    linux::measure(
        |names| options.wants_further(names),
        &images,
        &machine,
        |what, measured| {
            results.take(what, measured);
        },
    );
    if options.wants_further(&kernel::SIZES) {
        results.take("the kernel's size", kernel::sizes(&images));
    }
    if let Some(checking) = checking {
        results.take("the checking kernel", kernel::checked(&images, &checking, &machine));
    }
    results.print(options)
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
        "{:<width$} {:>9} {:>9} {:>9} {:>9}  {:<12} {:>8}\n",
        "FIGURE", "MINIMUM", "MEDIAN", "AT MOST", "MAXIMUM", "UNIT", "SAMPLES"
    );
    for figure in figures {
        let Figure { name, unit, minimum, median, maximum, samples } = figure;
        let limit = limits::of(name).map_or("-".to_owned(), |limit| limit.to_string());
        text += &format!("{name:<width$} {minimum:>9} {median:>9} {limit:>9} {maximum:>9}  {unit:<12} {samples:>8}\n");
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
    fn what_failed_loses_nothing_else() {
        let mut results = Results::default();
        results.take("first", figures(LINE));
        results.take("second", Err(anyhow::anyhow!("no tools")));
        results.take("third", figures(LINE));
        assert_eq!((results.figures.len(), results.failed.as_slice()), (2, &["second".to_owned()][..]));
    }

    #[test]
    fn a_broken_figure_is_an_error() {
        assert!(figures("bench: {\"name\":1}\n").is_err());
    }
}
