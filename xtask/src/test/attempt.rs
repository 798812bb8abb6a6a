//! One case, once: boot, watch, stop in time, judge.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::case::{Case, Stop};
use super::expect::Matcher;
use super::judge::{Evidence, Verdict, Word, judge};
use crate::build::System;
use crate::console::Watch;
use crate::control::{commands, hub::Hub};
use crate::emulator::{Emulator, Firmware, Running, describe};
use crate::{paths, process};

/// How long the rest of a crash record may take after its first line, and the emulator to end after the system did.
const AFTERMATH: Duration = Duration::from_millis(1500);

/// What came out of a case.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub verdict: Verdict,
    /// Whether that is what the case asks for, and if not, why.
    pub complaint: Option<String>,
    /// Where its logs are.
    pub folder: PathBuf,
    /// Wall time.
    pub took: Duration,
}

/// Runs `case` on `system`. Errors are those of the host; whatever the system does is an outcome.
pub fn run(case: &Case, system: &System) -> Result<Outcome> {
    let start = Instant::now();
    let folder = paths::test_logs().join(&case.name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    // An emulator that does not start must not be judged by the last run's words.
    let _ = fs::remove_file(folder.join("serial.log"));
    let mut watch = Watch::default();
    let verdict = match case.machine.start(system, &case.cmdline, &folder) {
        Ok(running) => {
            let evidence = follow(case, running, &mut watch, &folder)?;
            let verdict = judge(&watch, &evidence, &case.expect, &case.forbid);
            let late = || case.apart.iter().find_map(|apart| apart.complaint(watch.text()));
            let differs = || super::ledger::complaint(case, watch.text());
            let wrong = match verdict.word {
                Word::Passed => late().or_else(differs),
                Word::Failed => differs(),
                _ => None,
            };
            match wrong {
                Some(why) => Verdict { word: Word::WrongOutput, why },
                None => verdict,
            }
        }
        Err(error) => Verdict { word: Word::EmulatorDied, why: format!("{error:#}") },
    };
    let complaint = complaint(case, &verdict, &watch);
    Ok(Outcome { verdict, complaint, folder, took: start.elapsed() })
}

/// What is wrong with `verdict` in the eyes of `case`.
fn complaint(case: &Case, verdict: &Verdict, watch: &Watch) -> Option<String> {
    let Verdict { word, why } = verdict;
    if *word != case.outcome {
        let wanted = if case.outcome == Word::Passed { String::new() } else { format!(" (wanted: {})", case.outcome) };
        return Some(if why.is_empty() { format!("{word}{wanted}") } else { format!("{word}{wanted}: {why}") });
    }
    // A case that asks for a failure may still ask for what was said before it. One that asks for wrong output
    // has said with its lists what must not be fulfilled.
    if matches!(word, Word::Passed | Word::WrongOutput) {
        return None;
    }
    super::judge::complaint(watch.text(), &case.expect, &case.forbid)
        .map(|why| format!("{word} as wanted, but it {why}"))
}

/// Follows the system until it ends, or its limit does.
fn follow(case: &Case, mut running: Running, watch: &mut Watch, folder: &Path) -> Result<Evidence> {
    let mut log = File::create(folder.join("serial.log"))?;
    running.serial.set_read_timeout(Some(Duration::from_millis(50)))?;
    let limit = Limit::of(case);
    let mut control = Control::new(&mut running, folder)?;
    let mut evidence = Evidence::default();
    let mut matcher = Matcher::new(&case.expect);
    // The moment after which the run is stopped because its end is known.
    let mut known: Option<Instant> = None;
    let mut buffer = [0; 16384];
    loop {
        let open = match running.serial.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                log.write_all(&buffer[..count])?;
                watch.feed(&buffer[..count]);
                true
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => true,
            Err(error) if error.kind() == ErrorKind::Interrupted => true,
            // Bochs does not close its end properly when it exits.
            Err(_) => false,
        };
        let said = control.said(watch.whole_lines().len() == watch.text().len());
        log.write_all(said.as_bytes())?;
        watch.feed(said.as_bytes());
        let typed = matcher.advance(watch.text(), watch.whole_lines());
        for command in matcher.take_commands() {
            control.run(command);
        }
        // A system that went away meanwhile is found by the next read.
        let _ = running.serial.write_all(typed.as_bytes());
        if let Some(said) = &case.kill_emulator_after
            && watch.text().contains(said)
        {
            running.process.kill();
        }
        if !open {
            break;
        }
        let all = matcher.waiting_for().is_none() && control.idle();
        if case.stop == Stop::Matched && all && watch.end.is_none() {
            evidence.all_said = true;
            break;
        }
        if watch.end.is_some() || watch.refused.is_some() || watch.panic.is_some() || watch.fault.is_some() {
            known.get_or_insert_with(Instant::now);
        }
        if known.is_some_and(|since| since.elapsed() > AFTERMATH) {
            break;
        }
        if known.is_none() {
            evidence.too_long = limit.exceeded(watch.clock, running.process.cpu_time());
            if evidence.too_long.is_some() {
                break;
            }
        }
    }
    watch.finish();
    // The port closes a moment before the emulator is gone and its log complete.
    if evidence.too_long.is_none() && !evidence.all_said && known.is_none() {
        let status = running.process.wait(Duration::from_secs(5))?;
        let status = status.map_or_else(|| "it closed its serial port".into(), describe);
        let said = running.complaint();
        evidence.emulator = Some(if said.is_empty() { status } else { format!("{status}; it said: {said}") });
        evidence.triple_fault = running.triple_fault();
    }
    Ok(evidence)
}

/// Commands of a case over the control channel, one after the other, beside the run.
struct Control {
    /// Of systems that have one.
    hub: Option<Hub>,
    commands: Option<Sender<(String, PathBuf)>>,
    outputs: Receiver<String>,
    /// Commands that have not ended.
    under_way: usize,
    /// What ended commands printed and waits for the end of a line.
    waiting: String,
    since: Instant,
}

impl Control {
    fn new(running: &mut Running, folder: &Path) -> Result<Control> {
        let hub = running.control.take().map(|line| Hub::open(line, folder)).transpose()?;
        let (commands, receiver) = channel::<(String, PathBuf)>();
        let (sender, outputs) = channel();
        std::thread::spawn(move || {
            for (command, socket) in receiver {
                let printed = commands::of_case(&command, &socket).unwrap_or_else(|error| format!("error: {error:#}"));
                let lines = [format!("$ {command}")].into_iter().chain(printed.lines().map(str::to_owned));
                let text: String = lines.map(|line| format!("control: {line}\n")).collect();
                // The case may be over.
                if sender.send(text).is_err() {
                    return;
                }
            }
        });
        let waiting = String::new();
        Ok(Control { hub, commands: Some(commands), outputs, under_way: 0, waiting, since: Instant::now() })
    }

    fn run(&mut self, command: &str) {
        let Some(hub) = &self.hub else {
            self.waiting += "control: error: this system has no control channel\n";
            return;
        };
        let order = (command.to_owned(), hub.socket().to_path_buf());
        if self.commands.as_ref().is_some_and(|commands| commands.send(order).is_ok()) {
            self.under_way += 1;
        }
    }

    /// What commands printed; at the start of a line of the system's, or after a moment in the middle of one.
    fn said(&mut self, at_line_start: bool) -> String {
        while let Ok(text) = self.outputs.try_recv() {
            if self.waiting.is_empty() {
                self.since = Instant::now();
            }
            self.under_way = self.under_way.saturating_sub(1);
            self.waiting += &text;
        }
        let late = self.since.elapsed() > Duration::from_secs(10);
        match (self.waiting.is_empty(), at_line_start) {
            (false, true) => std::mem::take(&mut self.waiting),
            (false, false) if late => format!("\n{}", std::mem::take(&mut self.waiting)),
            _ => String::new(),
        }
    }

    fn idle(&self) -> bool {
        self.under_way == 0 && self.waiting.is_empty()
    }
}

/// When a run has taken too long. The case gives guest time, which its log's timestamps show. A system that says
/// nothing is measured by the CPU time of its emulator, and one that sleeps by wall time, both generously.
struct Limit {
    guest: Duration,
    cpu: Duration,
    wall: Duration,
    start: Instant,
}

impl Limit {
    fn of(case: &Case) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let machine = &case.machine;
        let guest = Duration::from_secs(case.guest_seconds.into());
        // Firmware and boot loader come before the kernel's clock starts.
        let before = match (machine.emulator, machine.firmware) {
            (Emulator::Bochs, _) => 20,
            (_, Firmware::Pvh) => 10,
            (_, _) => 40,
        };
        // CPU seconds in a guest second, with room for a slow host. Bochs does 40 to 50 of its 100 million
        // instructions a second; QEMU's clock is the host's own, slowed by as much as its CPUs lack cores.
        let cost = match machine.emulator {
            Emulator::Bochs => 6,
            Emulator::Qemu => 2,
        };
        let together = machine.threads().min(cores);
        let shortage = machine.cpus.div_ceil(cores);
        let one = Duration::from_secs(before) + guest * cost * shortage;
        Self { guest, cpu: one * together, wall: one * 2, start: Instant::now() }
    }

    /// Why it is over, if it is.
    fn exceeded(&self, clock: Duration, cpu: Duration) -> Option<String> {
        let limit = self.guest.as_secs();
        if clock > self.guest {
            return Some(format!(
                "still running at {:.1} s of guest time; its limit is {limit} s",
                clock.as_secs_f64()
            ));
        }
        let wall = self.start.elapsed();
        if cpu > self.cpu || wall > self.wall.mul_f64(busyness()) {
            return Some(format!(
                "no end after {:.0} s of wall and {:.0} s of CPU time; its limit is {limit} s of guest time, \
                 its last timestamp {:.1} s",
                wall.as_secs_f64(),
                cpu.as_secs_f64(),
                clock.as_secs_f64()
            ));
        }
        None
    }
}

/// How many times as many threads want to run on this host as it has cores, at least one.
fn busyness() -> f64 {
    let load = fs::read_to_string("/proc/loadavg").ok();
    let load = load.and_then(|text| text.split_whitespace().next()?.parse::<f64>().ok()).unwrap_or(1.0);
    let cores = std::thread::available_parallelism().map_or(1, |count| count.get());
    (load / cores as f64).clamp(1.0, 20.0)
}

/// The last lines of a case's serial log, crash records with their symbols.
pub fn last_lines(folder: &Path, system: &System, count: usize) -> Vec<String> {
    let bytes = fs::read(folder.join("serial.log")).unwrap_or_default();
    let text = printable(&String::from_utf8_lossy(&bytes));
    let lines: Vec<&str> = text.lines().collect();
    let mut symbols = crate::symbols::Symbols::of(&system.kernel_symbols);
    let mut shown = Vec::new();
    for line in &lines[lines.len().saturating_sub(count)..] {
        shown.push(line.to_string());
        shown.extend(symbols.of_line(line).map(|symbol| format!("       {symbol}")));
    }
    shown
}

/// `text` without control characters and terminal escapes: firmware clears screens and moves cursors.
fn printable(text: &str) -> String {
    let mut plain = String::new();
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                // `ESC [ parameters letter`, or ESC and one character.
                if characters.next() == Some('[') {
                    let _ = characters.find(|c| ('@'..='~').contains(c));
                }
            }
            '\n' | '\t' => plain.push(character),
            _ if character.is_control() => {}
            _ => plain.push(character),
        }
    }
    plain
}

/// Whether the user wants no further case started.
pub fn stopping() -> bool {
    process::stopping()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_lines_cannot_move_the_cursor() {
        let screen = "\u{1b}[2J\u{1b}[01;01Hmoira\r\nsecond\u{7}\u{1b}c line\n\u{1b}[";
        assert_eq!(printable(screen), "moira\nsecond line\n");
    }
}
