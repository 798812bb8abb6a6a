//! The ledger against the trace in every system of the suite: each system that a case boots on QEMU, with the options that it has there, once more, with
//! a task that reads the kernel's trace meanwhile, adds it up, and holds it against the accounts (`tests/loads/src/tracer.rs`).

use std::collections::HashSet;

use super::case::{Case, Stop};
use super::expect::Step;
use super::judge::Word;
use crate::emulator::{Emulator, Firmware, Machine};
use crate::trace::Tracer;

/// What the names begin with.
const PREFIX: &str = "ledger-of-";
/// Systems that do it themselves, and those that take plan and trace into their own hands: the reader has no windows there. Both see to it that
/// the ledger adds up.
const OWN: [&str; 3] = ["ledger", "conformance", "fuzz"];
/// What is compared: the first stretch in which everybody is at work.
const STRETCH: Tracer = Tracer { from_ms: 100, ms: 400, attempts: 1, structural: true, port: false };
/// Where the clock is not counted a host keeps the reader waiting until events are overwritten: short stretches, until one was read as a whole.
const UNCOUNTED: Tracer = Tracer { ms: 20, attempts: 50, ..STRETCH };

/// A case for each system that these boot.
pub fn cases(all: &[Case]) -> Vec<Case> {
    let mut seen = HashSet::new();
    let usual = |case: &&Case| {
        let machine = &case.machine;
        machine.emulator == Emulator::Qemu
            && machine.firmware == Firmware::Pvh
            && machine.cpu.is_none()
            && machine.extra.is_empty()
            && case.kernel_feature.is_none()
            && case.outcome == Word::Passed
            && !OWN.contains(&case.system.as_str())
    };
    let new = |case: &&Case| {
        let options: Vec<_> = case.options.clone().into_iter().collect();
        seen.insert((case.system.clone(), options))
    };
    all.iter().filter(usual).filter(new).map(of).collect()
}

fn of(case: &Case) -> Case {
    // What is counted is the same every time; more CPUs cannot be counted.
    let machine = Machine { icount: case.machine.cpus == 1, ..case.machine.clone() };
    let name = case.name.split('/').next().unwrap_or_default();
    Case {
        name: format!("{PREFIX}{name}/{}", machine.label()),
        tracer: Some(if machine.icount { STRETCH } else { UNCOUNTED }),
        machine,
        cmdline: String::new(),
        expect: vec![Step::Contains("tracer: the ledger and the trace agree".into())],
        forbid: vec![Step::Contains("error: tracer".into())],
        apart: Vec::new(),
        long: true,
        stop: Stop::Matched,
        kill_emulator_after: None,
        ..case.clone()
    }
}
