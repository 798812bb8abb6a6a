//! `trace`: what a system did with its time, as a file for ui.perfetto.dev.
//!
//! A task is added to the system that reads the kernel's trace from a window of its own and, at the end, sends all of it to the machine's third serial port.

mod model;
mod perfetto;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use moira_abi::trace::kind;
use moira_proto::system::System;

use crate::cli::Global;
use crate::console::End;
use crate::emulator::{Emulator, Machine};
use crate::system::Addition;
use crate::{bench, build, paths, progress, system};

/// The task that is added.
const TRACER: &str = "trace-reader";

/// What its windows take of CPU 0, and a little for whole grains.
const SHARE: f64 = 0.15;

/// What to trace.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// A file of initrd/systems, without `.toml`
    #[arg(long)]
    system: String,
    /// How long, in seconds of the system's own time
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// When it begins, in milliseconds since the machine started
    #[arg(long, default_value_t = 300)]
    from_ms: u64,
    /// Where the file goes [default: target/trace/SYSTEM.json]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Structural operations too: makes, maps, revokes
    #[arg(long)]
    structural: bool,
    /// Ticks that others may take of a window before its deadline counts as missed
    #[arg(long, default_value_t = 2_000)]
    late: u64,
    /// A value for an entry of the manifest's [options]; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = crate::guest::options::parse_pair)]
    set: Vec<(String, String)>,
}

/// Runs the command.
pub fn main(options: &Options, global: &Global) -> Result<ExitCode> {
    let values: BTreeMap<String, String> = options.set.iter().cloned().collect();
    let compiled = system::describe(&paths::root(), &options.system, &values)?;
    let file = options
        .output
        .clone()
        .unwrap_or_else(|| paths::target().join("trace").join(format!("{}.json", options.system)));
    let folder = paths::target().join("trace").join(&options.system);
    fs::create_dir_all(&folder)?;
    let bytes = folder.join("trace.bin");
    let _ = fs::remove_file(&bytes);
    let port = [
        "-chardev".into(),
        format!("file,id=trace,path={}", bytes.display()),
        "-device".into(),
        "isa-serial,chardev=trace,index=2".into(),
    ];
    let machine = Machine {
        // What is counted is the same every time. Several CPUs would wait for each other's turns, which looks like missed deadlines.
        icount: compiled.cpus == 1,
        cpus: compiled.cpus,
        extra: port.into(),
        ..Machine::usual(Emulator::Qemu)
    };
    let images = build::with_tools(&machine.tools(), global)?;
    let tracer = Tracer {
        from_ms: options.from_ms,
        ms: (options.seconds * 1000.0).max(1.0) as u64,
        attempts: 1,
        structural: options.structural,
        port: true,
    };
    let addition = tracer.addition(&compiled)?;
    if let Some((task, thousandths)) = &addition.squeezed {
        let lost = 100.0 - *thousandths as f64 / 10.0;
        eprintln!(
            "CPU 0 is promised away: the contract of {task} gives up {lost:.1} % of itself to the task that reads the trace"
        );
    }
    let booted = build::system_with(&options.system, &images, &values, &addition)?;
    let step = progress::step(format!("tracing {}", options.system));
    let watch = bench::follow(&machine, &booted, "", &folder)?;
    step.finish();
    let log = folder.join("serial.log");
    fs::write(&log, watch.text())?;
    // A task that died leaves a trace of the others, which is not what was asked for.
    for line in watch.text().lines().filter(|line| line.contains("error: ")) {
        eprintln!("{}", line.trim_end());
    }
    if watch.end != Some(End::Ok) {
        bail!("the system did not end as it should; the log is {}", log.display());
    }
    let recorded = stream::read(&fs::read(&bytes).context("no trace came")?, &watched(&compiled))
        .with_context(|| format!("no trace; the log is {}", log.display()))?;
    let text = perfetto::write(&model::build(&recorded, options.late), recorded.tsc_hz);
    let counted = perfetto::check(&text).context("the trace makes no sense")?;
    write(&file, &text)?;
    let perfetto::Counted { tracks, slices, flows, missed } = counted;
    println!("{}: {tracks} tracks, {slices} slices, {flows} donations, {missed} missed deadlines", file.display());
    println!("open it at https://ui.perfetto.dev");
    Ok(ExitCode::SUCCESS)
}

fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// What a task is promised of CPU 0, all its threads together.
fn share_of_first_cpu(task: &moira_proto::system::Task) -> f64 {
    let main = std::iter::once((task.cpu, &task.time));
    let all = main.chain(task.threads.iter().map(|thread| (thread.cpu, &thread.time)));
    all.filter(|(cpu, _)| *cpu == 0).map(|(_, time)| time.slice_ns as f64 / time.period_ns.max(1) as f64).sum()
}

/// Room for so much of CPU 0. Where it is promised away, the task with the largest share gives some of it: its name, and how many thousandths of its
/// slice it keeps.
///
/// # Errors
/// No task has so much.
pub fn make_room(system: &System, wanted: f64) -> Result<Option<(String, u64)>> {
    let shares = system.tasks.iter().map(|task| (share_of_first_cpu(task), task));
    // The root task's own 5 %.
    let free = 0.95 - shares.clone().map(|(share, _)| share).sum::<f64>();
    if free > wanted {
        return Ok(None);
    }
    let largest = shares.max_by(|left, right| left.0.total_cmp(&right.0));
    let (share, task) = largest.filter(|(share, _)| *share > 2.0 * wanted).with_context(|| {
        format!("CPU 0 of {} has no {:.0} % left for the task that reads the trace", system.name, wanted * 100.0)
    })?;
    Ok(Some((task.name.clone(), ((1.0 - (wanted - free) / share) * 1000.0) as u64)))
}

/// The tasks with time of their own, the tracer last.
fn watched(system: &System) -> Vec<String> {
    let own = system.tasks.iter().filter(|task| task.time.context).map(|task| task.name.clone());
    own.chain(std::iter::once(TRACER.to_owned())).collect()
}

/// The task that reads the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tracer {
    /// When it begins.
    pub from_ms: u64,
    /// How long it reads.
    pub ms: u64,
    /// How often it begins anew, if events were overwritten before it had read them.
    pub attempts: u64,
    /// Whether structural work is recorded.
    pub structural: bool,
    /// Whether it sends what it read.
    pub port: bool,
}

impl Tracer {
    /// What it adds to the manifest: a task with a window in each millisecond. Where CPU 0 is promised away, the task with the largest share makes room.
    ///
    /// # Errors
    /// No task has so much.
    pub fn addition(&self, system: &System) -> Result<Addition> {
        let here = system.tasks.iter().filter(|task| task.cpu == 0);
        let squeezed = make_room(system, SHARE)?;
        // Results are told on the console, if it can be called.
        let console = here.clone().find(|task| task.name == "console" && task.serves && task.level > 0);
        let calls = if console.is_some() { "calls = [\"console\"]" } else { "" };
        let level = console.map_or(1, |console| console.level - 1);
        let watched = watched(system);
        let far: Vec<&str> = system.tasks.iter().filter(|task| task.cpu != 0).map(|task| task.name.as_str()).collect();
        let quoted: Vec<String> = watched.iter().map(|name| format!("\"{name}\"")).collect();
        let mut kinds = kind::ACCOUNTS;
        if !self.structural {
            kinds &= !(1 << kind::STRUCTURAL | 1 << kind::STRUCTURAL_END);
        }
        let (mut ports, mut heap) = ("", "256KiB");
        if self.port {
            kinds |= 1 << kind::SWITCH;
            (ports, heap) = ("ports = { trace-port = \"0x3e8-0x3ef\" }", "128MiB");
        }
        let tasks = format!(
            "\n[tasks.{TRACER}]\nimage = \"moira-loads\"\nlevel = {level}\ntime = {{ slice = \"100us\", period = \"1ms\" }}\n{calls}\n{ports}\n\
             platform = true\ncpu-rights = [\"dispatch\"]\nslots = 254\nmemory = {{ heap = \"{heap}\" }}\ncontexts = [{}]\n\
             args = [\"role=tracer\", \"from_ms={}\", \"ms={}\", \"attempts={}\", \"every_us=500\", \"kinds={kinds}\", \"cpus={}\", \"watch={}\", \"far={}\", \"end=1\"]\n",
            quoted.join(", "),
            self.from_ms,
            self.ms,
            self.attempts,
            system.cpus,
            watched.join(","),
            far.join(","),
        );
        Ok(Addition { tasks, squeezed })
    }
}
