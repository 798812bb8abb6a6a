//! The ledger against the trace in the systems of the suite. A task that reads the kernel's trace and holds it against the accounts is added to a system
//! while its own case runs (`tests/loads/src/tracer/watch.rs`). Where that cannot be, because the case is over too soon or windows are measured, the
//! system runs once more with one that reads a stretch of it (`tests/loads/src/tracer.rs`).

use std::collections::HashSet;

use super::case::{Case, Reader, Stop};
use anyhow::Result;
use moira_proto::system::{Role, System};

use super::expect::Step;
use super::judge::Word;
use crate::emulator::{Emulator, Machine};
use crate::system::Addition;
use crate::trace::{self, Tracer};

/// The task that is added to a system while its own case runs (`tests/loads/src/tracer/watch.rs`).
const READER: &str = "ledger-reader";
/// What its windows take of CPU 0, and a little for whole grains.
const SHARE: f64 = 0.15;
/// What it says when it has looked a few times.
const AGREES: &str = "ledger: agrees with the trace";
/// What a line of its complaints has.
const DIFFERS: &str = "error: ledger: ";

/// Whether plan and trace of a system are left to others than itself.
pub fn can_be_watched(system: &str) -> bool {
    !OWN.contains(&system)
}

/// A task with a window in each millisecond that holds the ledger against the trace for as long as the system runs.
///
/// # Errors
/// There is no room for its windows.
pub fn addition(system: &System) -> Result<Addition> {
    let squeezed = trace::make_room(system, SHARE)?;
    let console =
        system.tasks.iter().find(|task| task.name == "console" && task.cpu == 0 && task.serves && task.level > 0);
    let calls = if console.is_some() { "calls = [\"console\"]\n" } else { "" };
    let level = console.map_or(1, |console| console.level - 1);
    let accounts = system.tasks.iter().flat_map(|task| {
        let main = task.time.context.then_some(task.cpu);
        let further = task.threads.iter().filter(|thread| thread.time.context).map(|thread| thread.cpu);
        main.into_iter().chain(further).map(|cpu| format!("{}:{cpu}", task.name))
    });
    let watched: Vec<String> = accounts.chain([format!("{READER}:0")]).collect();
    let mut names: Vec<&str> = watched.iter().filter_map(|entry| entry.split(':').next()).collect();
    names.dedup();
    let contexts: Vec<String> = names.iter().map(|name| format!("\"{name}\"")).collect();
    // What nobody else would take.
    let unwanted = system.tasks.iter().all(|task| task.role != Role::Scheduler && !task.time.extra);
    let slack = if unwanted { "slack = true\n" } else { "" };
    let tasks = format!(
        "\n[tasks.{READER}]\nimage = \"moira-loads\"\nlevel = {level}\ntime = {{ slice = \"100us\", period = \"1ms\" }}\n{slack}restart = \"always\"\n{calls}\
         platform = true\nledgers = true\nslots = 254\nmemory = {{ heap = \"256KiB\" }}\ncontexts = [{}]\n\
         args = [\"role=ledger\", \"cpus={}\", \"watch={}\"]\n",
        contexts.join(", "),
        system.cpus,
        watched.join(","),
    );
    Ok(Addition { tasks, squeezed })
}

/// What the reader's words say against a run, if it was there. Where the clock counts instructions it must have compared, unless the system
/// fails, which may be at once; else a busy host may keep it from that until a short run is over.
pub fn complaint(case: &Case, text: &str) -> Option<String> {
    let differs = text.lines().find(|line| line.contains(DIFFERS));
    match (case.ledger, differs) {
        (Reader::None, _) | (Reader::Differs, Some(_)) => None,
        (Reader::Differs, None) => Some(format!("does not say {DIFFERS:?}")),
        (Reader::Agrees, Some(line)) => Some(format!("says {line:?}")),
        (Reader::Agrees, None) => {
            let counted = case.machine.icount || case.machine.emulator == Emulator::Bochs;
            let long_enough = case.outcome == Word::Passed;
            (counted && long_enough && !text.contains(AGREES)).then(|| format!("does not say {AGREES:?}"))
        }
    }
}

/// What the names begin with.
const PREFIX: &str = "ledger-of-";
/// Systems that do it themselves, and those that take plan and trace into their own hands: the reader has no windows there. Both see to it that
/// the ledger adds up.
const OWN: [&str; 3] = ["ledger", "conformance", "fuzz"];
/// What is compared: the first stretch in which everybody is at work.
const STRETCH: Tracer = Tracer { from_ms: 100, ms: 400, attempts: 1, structural: true, port: false };
/// Where a host keeps the reader waiting until events are overwritten, and on Bochs, where a millisecond is a tenth of the instructions: short
/// stretches, until one was read as a whole.
const SHORT: Tracer = Tracer { ms: 20, attempts: 50, ..STRETCH };

/// A case for each system that these boot, on either vendor's emulator.
pub fn cases(all: &[Case]) -> Vec<Case> {
    let mut seen = HashSet::new();
    let usual = |case: &&Case| {
        let machine = &case.machine;
        machine.firmware == Machine::usual(machine.emulator).firmware
            && machine.cpu.is_none()
            && machine.extra.is_empty()
            && case.kernel_feature.is_none()
            && case.outcome == Word::Passed
            && case.ledger == Reader::None
            && !OWN.contains(&case.system.as_str())
    };
    let new = |case: &&Case| {
        let options: Vec<_> = case.options.clone().into_iter().collect();
        seen.insert((case.machine.emulator, case.system.clone(), options))
    };
    all.iter().filter(usual).filter(new).map(of).collect()
}

fn of(case: &Case) -> Case {
    // What is counted is the same every time; more CPUs cannot be counted.
    let qemu = case.machine.emulator == Emulator::Qemu;
    let machine = Machine { icount: case.machine.icount || qemu && case.machine.cpus == 1, ..case.machine.clone() };
    let name = case.name.split('/').next().unwrap_or_default();
    Case {
        name: format!("{PREFIX}{name}/{}", machine.label()),
        tracer: Some(if machine.icount { STRETCH } else { SHORT }),
        machine,
        cmdline: String::new(),
        expect: vec![Step::Contains("tracer: the ledger and the trace agree".into())],
        forbid: vec![Step::Contains("error: tracer".into())],
        apart: Vec::new(),
        long: !qemu && case.machine.cpus > 1,
        stop: Stop::Matched,
        kill_emulator_after: None,
        ledger: Reader::None,
        ..case.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test::case;

    #[test]
    fn what_the_reader_says_counts_whatever_the_case_asks_for() {
        let cases = case::load().unwrap();
        let named = |name: &str| cases.iter().find(|case| case.name == name).unwrap();
        let (passes, fails) = (named("first/bochs-vtx-haswell-1cpu"), named("deep/bochs-vtx-haswell-1cpu"));
        assert_eq!(complaint(passes, "1: ledger: agrees with the trace"), None);
        assert!(complaint(passes, "nothing").unwrap().contains("does not say"));
        assert_eq!(complaint(fails, "nothing"), None);
        for case in [passes, fails] {
            assert!(complaint(case, "error: ledger: CPU 0: 5 ticks passed").unwrap().contains("5 ticks"));
        }
        let watched = named("time-mischarge-reader-help/qemu-svm-pvh-1cpu-icount");
        assert_eq!(complaint(watched, "error: ledger: CPU 0: 5 ticks passed"), None);
        assert!(complaint(watched, "1: ledger: agrees with the trace").is_some());
    }
}
