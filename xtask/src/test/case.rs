//! The test cases: `tests/cases/*.toml`, each giving one case for each machine it names.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::apart::Apart;
use super::expect::Step;
use super::judge::Word;
use crate::emulator::{Accel, Emulator, Firmware, Machine, Module};
use crate::paths;
use crate::trace::Tracer;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Entry>,
}

/// A case as it stands in its file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    system: String,
    machines: Vec<MachineEntry>,
    #[serde(default)]
    options: BTreeMap<String, String>,
    kernel_feature: Option<String>,
    #[serde(default)]
    cmdline: String,
    #[serde(default)]
    expect: Vec<Step>,
    #[serde(default)]
    forbid: Vec<Step>,
    #[serde(default)]
    apart: Vec<Apart>,
    guest_seconds: u32,
    #[serde(default)]
    long: bool,
    #[serde(default)]
    stop: Stop,
    #[serde(default = "passed")]
    outcome: Word,
    kill_emulator_after: Option<String>,
    ledger: Option<Reader>,
}

/// What a task that holds the ledger against the trace while the case runs must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reader {
    /// There is none.
    None,
    /// They agree.
    Agrees,
    /// They differ: the kernel charges the wrong account on purpose.
    Differs,
}

fn passed() -> Word {
    Word::Passed
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineEntry {
    emulator: Emulator,
    firmware: Option<Firmware>,
    cpu: Option<String>,
    #[serde(default = "one")]
    cpus: u32,
    memory: Option<u32>,
    #[serde(default)]
    icount: bool,
    #[serde(default)]
    module: Module,
    #[serde(default)]
    extra: Vec<String>,
    long: Option<bool>,
    ledger: Option<Reader>,
}

fn one() -> u32 {
    1
}

/// When a run is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stop {
    /// When the system announces its end.
    #[default]
    End,
    /// When everything expected has been said; for systems that run until they are told to stop.
    Matched,
}

/// One case on one machine.
#[derive(Clone, Debug)]
pub struct Case {
    /// `NAME/MACHINE`.
    pub name: String,
    /// The system it boots.
    pub system: String,
    /// Values for the system's options.
    pub options: BTreeMap<String, String>,
    /// What it boots on.
    pub machine: Machine,
    /// The feature that its kernel is built with; none: the one that is shipped.
    pub kernel_feature: Option<String>,
    /// What reads the trace meanwhile, if anything does.
    pub tracer: Option<Tracer>,
    /// Whether a task holds the ledger against the trace while it runs.
    pub ledger: Reader,
    /// The kernel's command line.
    pub cmdline: String,
    /// What must be said, in order.
    pub expect: Vec<Step>,
    /// What must not be said.
    pub forbid: Vec<Step>,
    /// How long after each other lines must come.
    pub apart: Vec<Apart>,
    /// Limit in seconds of guest time.
    pub guest_seconds: u32,
    /// Whether it runs only with `--long`.
    pub long: bool,
    /// When the run is over.
    pub stop: Stop,
    /// The word it must end with.
    pub outcome: Word,
    /// The emulator is killed when this was said: a test of the harness itself.
    pub kill_emulator_after: Option<String>,
}

/// Reads all cases, in the order of file names and of their places in the files.
pub fn load() -> Result<Vec<Case>> {
    let folder = paths::cases();
    let mut files: Vec<_> = match fs::read_dir(&folder) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
        Err(_) => Vec::new(),
    };
    files.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    files.sort();
    let mut cases = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        cases.extend(parse(&text, &file)?);
    }
    cases.extend(super::ledger::cases(&cases));
    let mut names = HashSet::new();
    if let Some(double) = cases.iter().find(|case| !names.insert(&case.name)) {
        bail!("two cases are called {}", double.name);
    }
    Ok(cases)
}

fn parse(text: &str, file: &Path) -> Result<Vec<Case>> {
    let file_name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let parsed: File = toml::from_str(text).with_context(|| format!("tests/cases/{file_name}"))?;
    let mut cases = Vec::new();
    for entry in parsed.case {
        let context = || format!("tests/cases/{file_name}: case {}", entry.name);
        if entry.machines.is_empty() {
            bail!("{}: no machines", context());
        }
        if entry.name.is_empty() || !entry.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-') {
            bail!("{}: a name is made of letters, digits and dashes", context());
        }
        for machine in &entry.machines {
            cases.push(entry.on(machine).with_context(context)?);
        }
    }
    Ok(cases)
}

impl Entry {
    /// This case on one of its machines.
    fn on(&self, entry: &MachineEntry) -> Result<Case> {
        let usual = Machine::usual(entry.emulator);
        let machine = Machine {
            firmware: entry.firmware.unwrap_or(usual.firmware),
            cpu: entry.cpu.clone(),
            cpus: entry.cpus,
            memory: entry.memory.unwrap_or(usual.memory),
            accel: Accel::Tcg,
            icount: entry.icount,
            module: entry.module,
            extra: entry.extra.clone(),
            ..usual
        };
        machine.check()?;
        let ledger = entry.ledger.or(self.ledger).unwrap_or_else(|| {
            let ends = matches!(self.outcome, Word::Passed | Word::Failed);
            let usual = ends && self.kernel_feature.is_none() && entry.module == Module::default();
            if usual && super::ledger::can_be_watched(&self.system) { Reader::Agrees } else { Reader::None }
        });
        Ok(Case {
            name: format!("{}/{}", self.name, machine.label()),
            system: self.system.clone(),
            options: self.options.clone(),
            machine,
            kernel_feature: self.kernel_feature.clone(),
            tracer: None,
            ledger,
            cmdline: self.cmdline.clone(),
            expect: self.expect.clone(),
            forbid: self.forbid.clone(),
            apart: self.apart.clone(),
            guest_seconds: self.guest_seconds,
            long: entry.long.unwrap_or(self.long),
            stop: self.stop,
            outcome: self.outcome,
            kill_emulator_after: self.kill_emulator_after.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASE: &str = r#"
        [[case]]
        name = "first"
        system = "first"
        guest_seconds = 5
        expect = ["hello"]
        machines = [{ emulator = "qemu", cpus = 4 }, { emulator = "bochs", cpu = "ryzen", long = true, ledger = "none" }]
    "#;

    #[test]
    fn a_case_becomes_one_for_each_machine() {
        let cases = parse(CASE, Path::new("x.toml")).unwrap();
        let names: Vec<&str> = cases.iter().map(|case| case.name.as_str()).collect();
        assert_eq!(names, ["first/qemu-svm-pvh-4cpu", "first/bochs-svm-ryzen-1cpu"]);
        assert_eq!((cases[0].long, cases[1].long), (false, true));
        assert_eq!(cases[0].outcome, Word::Passed);
        assert_eq!((cases[0].ledger, cases[1].ledger), (Reader::Agrees, Reader::None));
        let failing = parse(&CASE.replace("machines", "outcome = \"failed\"\nmachines"), Path::new("x.toml")).unwrap();
        assert_eq!(failing[0].ledger, Reader::Agrees);
        let panicking = CASE.replace("machines", "outcome = \"kernel panic\"\nmachines");
        assert_eq!(parse(&panicking, Path::new("x.toml")).unwrap()[0].ledger, Reader::None);
    }

    #[test]
    fn mistakes_are_told_with_their_place() {
        for (mistake, word) in [
            (CASE.replace("guest_seconds", "gest_seconds"), "gest_seconds"),
            (CASE.replace("cpus = 4", "cpus = 0"), "case first"),
            (CASE.replace("\"qemu\"", "\"qmeu\""), "qmeu"),
            (CASE.replace("name = \"first\"", "name = \"../x\""), "letters"),
        ] {
            let error = format!("{:#}", parse(&mistake, Path::new("x.toml")).unwrap_err());
            assert!(error.contains("x.toml") && error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_cases_of_this_tree_can_be_read() {
        load().unwrap();
    }
}
