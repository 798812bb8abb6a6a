//! The test harness: host tests, fuzz targets, experiments, then every case in its emulator, side by side.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use anyhow::{Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::build::{self, Images, System};
use crate::cli::Global;
use crate::emulator::Emulator;
use crate::hosttools::{self, Tool};
use crate::paths;
use crate::system::{self, Addition};
use crate::toolchain::Toolchain;
use crate::trace::Tracer;
use case::{Case, Reader};

mod apart;
mod attempt;
mod case;
mod expect;
mod experiments;
mod fuzzing;
mod host;
mod judge;
mod ledger;

/// The pattern that names the host tests.
const HOST: &str = "host";
/// Lines of a failed case's log that are shown.
const SHOWN: usize = 15;

/// What to test.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// Only cases whose NAME/MACHINE contains one of these; `host` means the host tests, `libfuzzer` the fuzz targets, `experiment` the experiments
    #[arg(value_name = "PATTERN")]
    patterns: Vec<String>,
    /// Only cases of this emulator
    #[arg(long)]
    emulator: Option<Emulator>,
    /// Also the cases that take long
    #[arg(long)]
    long: bool,
    /// Show the cases instead of running them
    #[arg(long)]
    list: bool,
    /// How many cases run side by side [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// Boot this ELF in place of the kernel
    #[arg(long, value_name = "ELF", hide = true)]
    kernel: Option<std::path::PathBuf>,
}

impl Options {
    /// Everything that a contributor's machine must pass.
    pub fn all() -> Self {
        Self { patterns: Vec::new(), emulator: None, long: false, list: false, jobs: None, kernel: None }
    }

    /// Whether a pattern, if there are any, names this case. `host` names the host tests only, not the cases with a hostile task.
    fn names(&self, name: &str) -> bool {
        let named = |pattern: &String| pattern != HOST && name.contains(pattern);
        self.patterns.is_empty() || self.patterns.iter().any(named)
    }

    /// The same with one of the patterns only.
    fn only(&self, pattern: &str) -> Self {
        Self { patterns: vec![pattern.into()], kernel: None, ..*self }
    }

    fn wants(&self, case: &Case) -> bool {
        self.matches(case) && (self.long || !case.long || self.list)
    }

    /// Whether pattern and emulator fit, however long the case takes.
    fn matches(&self, case: &Case) -> bool {
        self.names(&case.name) && self.emulator.is_none_or(|emulator| case.machine.emulator == emulator)
    }

    /// Why there is nothing to run, if none of these cases is wanted.
    fn nothing(&self, cases: &[Case]) -> String {
        match cases.iter().filter(|case| self.matches(case)).count() {
            0 => format!("no case matches {:?}; `cargo xtask test --list` shows all", self.patterns.join(" ")),
            count => format!("{count} of the cases match, and run with --long only"),
        }
    }

    fn jobs(&self) -> u32 {
        let cores = || std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        self.jobs.unwrap_or_else(cores)
    }

    /// Fuzz targets run on this machine, whatever a case's emulator is.
    fn wants_target(&self, name: &str) -> bool {
        self.emulator.is_none() && self.names(name)
    }

    /// Experiments run in QEMU, one instruction a tick.
    fn wants_experiment(&self, name: &str) -> bool {
        self.emulator.is_none_or(|emulator| emulator == Emulator::Qemu) && self.names(name)
    }

    /// Host tests run with everything, or when asked for by name.
    fn wants_host(&self) -> bool {
        if self.patterns.is_empty() { self.emulator.is_none() } else { self.patterns.iter().any(|one| one == HOST) }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    passed: usize,
    failed: usize,
}

impl Count {
    fn add(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
    }

    fn one(&mut self, passed: bool) {
        self.add(Count { passed: passed.into(), failed: (!passed).into() });
    }
}

/// Runs cases that need no emulator of their own on several threads; counts by what `one` answers.
fn side_by_side<C: Sync>(cases: &[C], jobs: u32, one: impl Fn(&C) -> bool + Sync) -> Count {
    let (next, count) = (AtomicUsize::new(0), Mutex::new(Count::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(cases.len() as u32) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let passed = one(case);
                    // A worker that panicked leaves counts that are right as far as they go.
                    count.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).one(passed);
                }
            });
        }
    });
    count.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// What can be run, beside the host tests.
struct Known {
    cases: Vec<Case>,
    targets: Vec<fuzzing::Case>,
    experiments: Vec<experiments::Case>,
}

impl Known {
    fn wanted(&self, options: &Options) -> Self {
        Self {
            cases: self.cases.iter().filter(|case| options.wants(case)).cloned().collect(),
            targets: self.targets.iter().filter(|case| options.wants_target(&case.name)).cloned().collect(),
            experiments: self.experiments.iter().filter(|case| options.wants_experiment(&case.name)).cloned().collect(),
        }
    }

    /// What is wrong with the options, if one of the patterns names nothing that is run.
    fn missing(&self, options: &Options) -> Option<String> {
        let parts: Vec<Options> = options.patterns.iter().map(|pattern| options.only(pattern)).collect();
        parts.iter().find(|part| !self.has(part)).map(|part| part.nothing(&self.cases))
    }

    /// Whether there is anything to run.
    fn has(&self, options: &Options) -> bool {
        let Self { cases, targets, experiments } = self.wanted(options);
        options.wants_host() || !(cases.is_empty() && targets.is_empty() && experiments.is_empty())
    }
}

/// Runs the command. The exit status says whether all passed.
pub fn main(options: &Options, global: &Global) -> Result<ExitCode> {
    let all = Known { cases: case::load()?, targets: fuzzing::cases()?, experiments: experiments::cases() };
    let Known { mut cases, targets, experiments } = all.wanted(options);
    if options.list {
        let others = targets.iter().map(|case| &case.name).chain(experiments.iter().map(|case| &case.name));
        list(&cases, options.wants_host(), others);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(why) = all.missing(options) {
        bail!(why);
    }
    let mut count = Count::default();
    if options.wants_host() {
        count.add(host::run(global.install())?);
    }
    if !targets.is_empty() {
        count.add(fuzzing::run(&targets, options.long, options.jobs(), global)?);
    }
    if !experiments.is_empty() {
        count.add(experiments::run(&experiments, options.jobs(), global)?);
    }
    if !cases.is_empty() {
        // Whoever waits for several slots keeps the others waiting: last, so that they are free by then.
        cases.sort_by_key(|case| case.machine.threads());
        count.add(emulated(&cases, options, global)?);
    }
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(if count.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn list<'a>(cases: &[Case], host: bool, others: impl Iterator<Item = &'a String>) {
    println!("{:<48} {:<9} {:<7} {:<9} {:>4}  OUTCOME", "CASE", "EMULATOR", "VENDOR", "FIRMWARE", "CPUS");
    if host {
        println!("{:<48} {:<9} {:<7} {:<9} {:>4}  passed", "host", "-", "-", "-", "-");
    }
    for name in others {
        println!("{name:<48} {:<9} {:<7} {:<9} {:>4}  passed", "-", "-", "-", "-");
    }
    for case in cases {
        let machine = &case.machine;
        println!(
            "{:<48} {:<9} {:<7} {:<9} {:>4}  {}{}",
            case.name,
            format!("{:?}", machine.emulator).to_lowercase(),
            machine.vendor(),
            format!("{:?}", machine.firmware).to_lowercase(),
            machine.cpus,
            case.outcome,
            if case.long { " (long)" } else { "" }
        );
    }
}

fn emulated(cases: &[Case], options: &Options, global: &Global) -> Result<Count> {
    let mut tools: Vec<&[Tool]> = cases.iter().flat_map(|case| case.machine.tools()).collect();
    tools.push(hosttools::BINUTILS);
    tools.extend(cases.iter().flat_map(|case| hosttools::of_system(&case.system)));
    tools.sort_by_key(|group| group.as_ptr());
    tools.dedup();
    hosttools::require(&tools, global.install())?;
    let toolchain = Toolchain::find(global.toolchain, global.install())?;
    eprintln!("compiler: {}", toolchain.origin);
    // Before the others: both are built to the same place, and the kernel that is shipped stays there.
    let mut kernels = BTreeMap::new();
    for feature in cases.iter().filter_map(|case| case.kernel_feature.as_ref()) {
        if !kernels.contains_key(feature) {
            kernels.insert(feature.clone(), build::kernel_with(feature, &toolchain, global.install())?);
        }
    }
    let mut images = build::images(&toolchain, global.install())?;
    if let Some(kernel) = &options.kernel {
        images.kernel.clone_from(kernel);
        images.kernel_symbols.clone_from(kernel);
    }
    let systems = systems(cases, &images, &kernels);
    Ok(Runner::new(cases, &systems, options.jobs()).run())
}

/// Packs each system once. A system that cannot be packed fails its own cases, not the others'.
fn systems(cases: &[Case], images: &Images, kernels: &BTreeMap<String, PathBuf>) -> Systems {
    let mut systems = HashMap::new();
    for case in cases {
        systems.entry(key(case)).or_insert_with(|| {
            let described = || system::describe(&paths::root(), &case.system, &case.options);
            let addition = match &case.tracer {
                None if case.ledger != Reader::None => ledger::addition(&described()?)?,
                None => Addition::default(),
                Some(tracer) => tracer.addition(&described()?)?,
            };
            let mut system = build::system_with(&case.system, images, &case.options, &addition)?;
            if let Some(kernel) = case.kernel_feature.as_ref().and_then(|feature| kernels.get(feature)) {
                system.kernel.clone_from(kernel);
                system.kernel_symbols.clone_from(kernel);
            }
            Ok(system)
        });
    }
    systems
}

/// What a system is told apart by: name, options, the kernel's feature, what reads the trace.
type Key = (String, BTreeMap<String, String>, Option<String>, Option<Tracer>, bool);

fn key(case: &Case) -> Key {
    (case.system.clone(), case.options.clone(), case.kernel_feature.clone(), case.tracer, case.ledger != Reader::None)
}

/// Packed systems.
type Systems = HashMap<Key, Result<System>>;

/// Runs cases side by side.
struct Runner<'a> {
    cases: &'a [Case],
    systems: &'a Systems,
    slots: u32,
    state: Mutex<State>,
    freed: Condvar,
    bar: ProgressBar,
}

struct State {
    /// The next case to start.
    next: usize,
    /// Slots not taken by running cases.
    free: u32,
    running: Vec<String>,
    count: Count,
    done: usize,
}

impl<'a> Runner<'a> {
    fn new(cases: &'a [Case], systems: &'a Systems, slots: u32) -> Self {
        let bar =
            if crate::tty::stderr_is_terminal() { ProgressBar::new(cases.len() as u64) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {pos}/{len} ({elapsed}) {wide_msg}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(120));
        let state = State { next: 0, free: slots, running: Vec::new(), count: Count::default(), done: 0 };
        Self { cases, systems, slots, state: Mutex::new(state), freed: Condvar::new(), bar }
    }

    fn run(self) -> Count {
        std::thread::scope(|scope| {
            if self.bar.is_hidden() {
                scope.spawn(|| self.remind());
            }
            for _ in 0..self.slots.min(self.cases.len() as u32) {
                scope.spawn(|| self.work());
            }
        });
        self.bar.finish_and_clear();
        self.lock().count
    }

    /// Without a terminal, says now and then what is still at work.
    fn remind(&self) {
        const REMIND: Duration = Duration::from_secs(30);
        loop {
            let state = self.lock();
            let wait = self.freed.wait_timeout_while(state, REMIND, |state| state.done < self.cases.len());
            let (state, timeout) = wait.unwrap_or_else(|poisoned| poisoned.into_inner());
            if state.done >= self.cases.len() || (state.running.is_empty() && attempt::stopping()) {
                return;
            }
            if timeout.timed_out() {
                eprintln!("{} of {} done, running: {}", state.done, self.cases.len(), state.running.join(", "));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // A worker that panicked leaves counts that are right as far as they go.
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// How many slots a case takes.
    fn weight(&self, case: &Case) -> u32 {
        case.machine.threads().min(self.slots)
    }

    fn work(&self) {
        loop {
            let mut state = self.lock();
            let Some(case) = self.cases.get(state.next) else {
                return;
            };
            let weight = self.weight(case);
            if state.free < weight {
                // Woken by the end of another case; the time limit only covers a worker that panicked.
                drop(self.freed.wait_timeout(state, Duration::from_secs(1)));
                continue;
            }
            if attempt::stopping() {
                return;
            }
            state.next += 1;
            state.free -= weight;
            state.running.push(case.name.clone());
            self.bar.set_message(state.running.join(", "));
            drop(state);
            let passed = self.one(case);
            let mut state = self.lock();
            state.free += weight;
            state.running.retain(|name| *name != case.name);
            state.done += 1;
            state.count.one(passed);
            self.bar.set_position(state.done as u64);
            self.bar.set_message(state.running.join(", "));
            drop(state);
            self.freed.notify_all();
        }
    }

    /// Runs one case and reports it. Whether it passed.
    fn one(&self, case: &Case) -> bool {
        let fail = |text: String| {
            self.say(&format!("FAIL  {text}"));
            false
        };
        let system = match self.systems.get(&key(case)) {
            Some(Ok(system)) => system,
            Some(Err(error)) => {
                return fail(format!("{}: no system to boot: {error:#}", case.name));
            }
            None => return fail(format!("{}: no system to boot", case.name)),
        };
        match attempt::run(case, system) {
            Err(error) => fail(format!("{}: {error:#}", case.name)),
            Ok(outcome) => {
                let took = outcome.took.as_secs_f64();
                let Some(complaint) = outcome.complaint else {
                    let word = outcome.verdict.word;
                    let note =
                        if word == judge::Word::Passed { String::new() } else { format!("  ({word}, as wanted)") };
                    self.say(&format!("ok    {:<44} {took:>6.1} s{note}", case.name));
                    return true;
                };
                let mut text = format!("{:<44} {took:>6.1} s  {complaint}", case.name);
                text += &format!("\n      log: {}", outcome.folder.join("serial.log").display());
                for line in attempt::last_lines(&outcome.folder, system, SHOWN) {
                    text += &format!("\n      | {line}");
                }
                fail(text)
            }
        }
    }

    fn say(&self, text: &str) {
        self.bar.suspend(|| println!("{text}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_a_long_case_is_told_how_to_run_it() {
        let cases = case::load().unwrap();
        let told = |pattern: &str| Options::all().only(pattern).nothing(&cases);
        assert!(told("fuzz-long").contains("--long only"));
        assert!(told("no-such-case").starts_with("no case matches"));
    }

    #[test]
    fn each_of_several_patterns_must_name_something() {
        let all = Known { cases: case::load().unwrap(), targets: Vec::new(), experiments: Vec::new() };
        let told = |patterns: &[&str]| {
            let patterns = patterns.iter().map(ToString::to_string).collect();
            all.missing(&Options { patterns, ..Options::all() })
        };
        assert_eq!(told(&[]), None);
        assert_eq!(told(&["first/", "host", "slack"]), None);
        assert!(told(&["first/", "no-such-case"]).is_some_and(|why| why.contains("no-such-case")));
        assert!(told(&["fuzz-long", "first/"]).is_some_and(|why| why.contains("--long only")));
    }

    #[test]
    fn host_names_the_host_tests_and_nothing_else() {
        let of = |pattern: &str| Options::all().only(pattern);
        assert!(of("host").wants_host() && !of("hostile").wants_host());
        assert!(
            !of("host").names("guest-hostile/qemu-svm-pvh-1cpu") && !of("host").wants_target("libfuzzer-plan/host")
        );
        assert!(
            of("hostile").names("guest-hostile/qemu-svm-pvh-1cpu")
                && of("libfuzzer").wants_target("libfuzzer-plan/host")
        );
    }
}
