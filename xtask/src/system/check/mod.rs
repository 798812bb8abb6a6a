//! Checks a manifest: everything that can be known to be wrong before the system boots is an error here, with its line.

mod calls;
mod resources;
mod threads;
mod time;

pub use resources::parse_ports;
pub use threads::threads_of;

use super::diagnostic::{Diagnostic, Report, nearest};
use super::manifest::{Manifest, Name, Role, Task};
use moira_scheduler::policy::POLICIES;
use std::collections::BTreeSet;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;

/// Levels of tasks; calls go from a lower to a higher one.
pub const LEVELS: u32 = 8;
/// Longest name of a task, region or file, in bytes.
const NAME_LIMIT: usize = 32;
/// CPUs that the kernel can use at most.
const CPU_LIMIT: u32 = 64;
/// Slots that every task has before those its manifest names.
const FIRST_NAMED: u32 = moira_proto::start::slot::NAMED;
/// Slots of the largest capability table.
const SLOT_LIMIT: u32 = moira_abi::object::cap_table_slots(21);

/// What the manifest may refer to.
#[derive(Debug, Default, Clone)]
pub struct Known {
    /// Binaries that the workspace builds.
    pub images: BTreeSet<String>,
}

/// The binary that hands out slack.
const SCHEDULER: &str = "moira-scheduler";
/// What the names of this project's own binaries start with; manifests may leave it out.
const PREFIX: &str = "moira-";

impl Known {
    /// The binary that a manifest means by `image`.
    pub fn binary(&self, image: &str) -> Option<String> {
        let names = [image.to_owned(), format!("{PREFIX}{image}")];
        names.into_iter().find(|name| self.images.contains(name))
    }
}

/// Findings so far, and the manifest they are about.
struct Checker<'a> {
    manifest: &'a Manifest,
    known: &'a Known,
    found: Vec<Diagnostic>,
}

/// Reads and checks the manifest `source`; `path` is only shown.
pub fn check(path: &Path, source: &str, known: &Known) -> Result<Manifest, Report> {
    let manifest: Manifest =
        toml::from_str(source).map_err(|error| Report::new(path, source, vec![syntax(&error, source)]))?;
    let mut checker = Checker { manifest: &manifest, known, found: Vec::new() };
    checker.names();
    checker.system();
    for (name, task) in &manifest.tasks {
        checker.task(name, task.get_ref());
    }
    checker.policies();
    checker.roles();
    checker.calls();
    checker.time();
    checker.resources();
    let found = checker.found;
    if found.is_empty() { Ok(manifest) } else { Err(Report::new(path, source, found)) }
}

/// Turns an error of the TOML reader into a finding with a hint.
fn syntax(error: &toml::de::Error, source: &str) -> Diagnostic {
    let span = error.span().unwrap_or(0..0);
    let message = error.message();
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (true, [key, known @ ..]) = (message.starts_with("unknown field"), quoted.as_slice()) {
        let hint = match nearest(key, known.iter().copied()) {
            Some(close) => format!("did you mean `{close}`?"),
            None => format!("known here: {}", known.join(", ")),
        };
        // The reader points at the key or at the whole table; the key is what one looks for.
        let at = source.get(span.clone()).and_then(|text| text.find(key));
        let span = at.map_or(span.clone(), |at| span.start + at..span.start + at + key.len());
        return Diagnostic::new(span, format!("unknown key `{key}`"), hint);
    }
    let hint = match message {
        text if text.starts_with("missing field") => "add it to this table",
        text if text.starts_with("bad size") => "write \"64KiB\", \"1MiB\", \"2GiB\" or a number of bytes",
        text if text.starts_with("bad time") => "write \"250ns\", \"100us\", \"2ms\" or \"1s\"",
        text if text.starts_with("duplicate key") => {
            "each name stands once in its table; give one of them another name"
        }
        text if text.starts_with("unknown variant") => "one of the listed words is expected",
        text if text.starts_with("invalid type") => "the value has another type than this key takes",
        _ => "the file is not valid TOML here",
    };
    Diagnostic::new(span, message.replace('\n', "; "), hint)
}

impl<'a> Checker<'a> {
    fn report(&mut self, span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) {
        self.found.push(Diagnostic::new(span, message, hint));
    }

    fn lookup(&self, name: &str) -> Option<&'a Task> {
        self.manifest.tasks.get(name).map(Spanned::get_ref)
    }

    /// A reference to a task that is not there.
    fn no_such_task(&mut self, reference: &Name, verb: &str) {
        let name = reference.get_ref();
        let hint = match nearest(name, self.manifest.tasks.keys().map(|key| key.get_ref().as_str())) {
            Some(close) => format!("did you mean `{close}`?"),
            None => format!("add a table [tasks.{name}], or remove the name here"),
        };
        self.report(reference.span(), format!("{verb} `{name}`, and there is no such task"), hint);
    }

    /// Slack policies are named by an argument of the scheduler.
    fn policies(&mut self) {
        let schedulers = self.manifest.tasks.iter().filter(|(name, task)| {
            let image = task.get_ref().image.as_ref().unwrap_or(name);
            self.known.binary(image.get_ref()).as_deref() == Some(SCHEDULER)
        });
        let known: Vec<&str> = POLICIES.iter().map(|policy| policy.0).collect();
        for (_, task) in schedulers {
            for key in ["policy=", "policy_again="] {
                let named = task.get_ref().args.iter().find_map(|argument| argument.strip_prefix(key));
                if let Some(name) = named.filter(|name| !known.contains(name)) {
                    let hint = format!("there are: {}", known.join(", "));
                    self.report(task.span(), format!("`{key}{name}`, and there is no such policy"), hint);
                }
            }
        }
    }

    fn names(&mut self) {
        let manifest = self.manifest;
        // A root task of its own kind may do everything itself.
        if manifest.tasks.is_empty() && manifest.system.root.get_ref() == "root" {
            self.report(0..0, "a system without tasks", "add a table [tasks.NAME]");
        }
        let names = manifest.tasks.keys().chain(manifest.regions.keys()).chain(manifest.files.keys());
        for name in names {
            let text = name.get_ref();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if text.is_empty() || text.len() > NAME_LIMIT || !text.chars().all(plain) {
                let hint = format!("use 1 to {NAME_LIMIT} of a-z, 0-9 and -");
                self.report(name.span(), format!("bad name `{text}`"), hint);
            }
        }
        for reserved in ["root", "system"] {
            for name in manifest.tasks.keys().chain(manifest.files.keys()) {
                if name.get_ref() == reserved {
                    let hint = "the archive keeps `root` and `system` for the root task and the manifest";
                    self.report(name.span(), format!("the name `{reserved}` is taken"), hint);
                }
            }
        }
        for file in manifest.files.keys() {
            let images = manifest.tasks.iter().map(|(name, task)| image_of(name, task.get_ref()));
            if images.into_iter().any(|image| image == file.get_ref()) {
                let hint = "files and images share the archive's names; rename the file";
                self.report(file.span(), format!("the file `{}` has the name of an image", file.get_ref()), hint);
            }
        }
    }

    fn system(&mut self) {
        let system = &self.manifest.system;
        let cpus = *system.cpus.get_ref();
        if cpus == 0 || cpus > CPU_LIMIT {
            self.report(system.cpus.span(), format!("{cpus} CPUs"), format!("1 to {CPU_LIMIT} are possible"));
        }
        self.image(system.root.get_ref(), system.root.span());
    }

    fn image(&mut self, image: &str, span: Range<usize>) {
        let known = self.known;
        if known.binary(image).is_some() {
            return;
        }
        let names = known.images.iter().map(String::as_str);
        let names = names.flat_map(|name| [name, name.strip_prefix(PREFIX).unwrap_or(name)]);
        let hint = match nearest(image, names) {
            Some(close) => format!("did you mean `{close}`?"),
            None => "name a binary of this workspace with `image = \"…\"`".to_owned(),
        };
        self.report(span, format!("no image `{image}`"), hint);
    }

    fn task(&mut self, name: &'a Name, task: &'a Task) {
        match &task.image {
            Some(image) => self.image(image.get_ref(), image.span()),
            None => self.image(name.get_ref(), name.span()),
        }
        if image_of(name, task) == "root" && self.manifest.system.root.get_ref() != "root" {
            let hint = "the archive's `root` is the root task of this system, which is another binary";
            self.report(name.span(), format!("`{}` runs `root`", name.get_ref()), hint);
        }
        let level = *task.level.get_ref();
        if level >= LEVELS {
            self.report(task.level.span(), format!("level {level}"), "levels are 0 to 7; 7 calls nobody");
        }
        self.on_cpu(*task.cpu.get_ref(), task.cpu.span(), &format!("task `{}`", name.get_ref()));
        self.threads(name, task);
        let lists =
            [("calls", &task.calls), ("signals", &task.signals), ("holds", &task.contexts), ("holds", &task.controls)];
        for (verb, names) in lists {
            for other in names {
                if self.lookup(other.get_ref()).is_none() {
                    self.no_such_task(other, verb);
                }
            }
        }
        self.capabilities(name, task);
    }

    /// Something lives on a CPU that the system has.
    fn on_cpu(&mut self, cpu: u32, span: Range<usize>, what: &str) {
        let cpus = *self.manifest.system.cpus.get_ref();
        if cpu >= cpus {
            let hint =
                format!("CPUs count from 0 and the system has {cpus}: raise `cpus` in [system] or choose another");
            self.report(span, format!("{what} on CPU {cpu}"), hint);
        }
    }

    /// Capabilities are found by name, so each has one of its own; and the table has room for all.
    fn capabilities(&mut self, task_name: &'a Name, task: &'a Task) {
        let named = capability_names(task);
        let mut seen = BTreeSet::new();
        for (name, span) in &named {
            if !seen.insert(name.as_str()) {
                let message = format!("`{}` has two capabilities named `{name}`", task_name.get_ref());
                let hint = "tasks find their capabilities by name: remove one, or rename it where the name is yours";
                self.report(span.clone(), message, hint);
            }
        }
        let least = FIRST_NAMED + u32::try_from(named.len()).unwrap_or(u32::MAX - FIRST_NAMED);
        if let Some(slots) = &task.slots
            && !(least..=SLOT_LIMIT).contains(slots.get_ref())
        {
            let hint = format!("this task can have {least} to {SLOT_LIMIT} slots");
            self.report(slots.span(), format!("{} slots", slots.get_ref()), hint);
        }
    }

    /// One planner and one supervisor a system, one scheduler a CPU; whoever is restarted has a supervisor above.
    fn roles(&mut self) {
        let manifest = self.manifest;
        let mut taken: Vec<(Role, u32, &str)> = Vec::new();
        let mut supervisor = None;
        for (name, task) in &manifest.tasks {
            let (name, task) = (name.get_ref(), task.get_ref());
            let Some(role) = &task.role else { continue };
            // A planner and a supervisor serve all CPUs, so they collide wherever they live.
            let place = if *role.get_ref() == Role::Scheduler { *task.cpu.get_ref() } else { 0 };
            if let Some((_, _, other)) = taken.iter().find(|(r, p, _)| r == role.get_ref() && *p == place) {
                let message = format!("`{name}` has the same role as `{other}`");
                self.report(
                    role.span(),
                    message,
                    "one planner, supervisor and control task a system, one scheduler a CPU",
                );
            }
            taken.push((*role.get_ref(), place, name));
            if *role.get_ref() == Role::Supervisor {
                supervisor = Some((name, *task.level.get_ref()));
            }
        }
        for task in manifest.tasks.values().map(Spanned::get_ref) {
            let anew = task.restart.as_ref().is_some_and(|restart| restart.get_ref().makes_anew());
            let spans = task.restart_limit.as_ref().map(Spanned::span);
            for span in spans.into_iter().chain(task.restart_delay.as_ref().map(Spanned::span)).filter(|_| !anew) {
                let hint = "add `restart = \"always\"` or `restart = \"on-failure\"`";
                self.report(span, "this task is not made anew when it dies", hint);
            }
        }
        let Some((supervisor, above)) = supervisor else {
            return;
        };
        for (name, task) in &manifest.tasks {
            let task = task.get_ref();
            let Some(restart) = &task.restart else {
                continue;
            };
            let level = *task.level.get_ref();
            // A level-7 task cannot send its fault as a message: its supervisor is signalled instead.
            let reachable = level < above || level == LEVELS - 1 || name.get_ref() == supervisor;
            if restart.get_ref().makes_anew() && !reachable {
                let message = format!(
                    "`{}` on level {level} cannot send its faults to the supervisor on level {above}",
                    name.get_ref()
                );
                let hint = format!("put `{supervisor}` above it, or the task below level {above}");
                self.report(restart.span(), message, hint);
            }
        }
    }
}

/// Every capability that a task's table asks for, by the name the task finds it under, with where it stands.
fn capability_names(task: &Task) -> Vec<(String, Range<usize>)> {
    let mut names = Vec::new();
    let mut add = |name: &Name, suffix: &str| names.push((format!("{}{suffix}", name.get_ref()), name.span()));
    let plain = task.calls.iter().chain(&task.files).chain(task.maps.keys());
    let devices = task.ports.keys().chain(task.interrupts.keys()).chain(task.device_memory.keys());
    for name in plain.chain(devices).chain(task.untyped.keys()).chain(task.blocks.keys()) {
        add(name, "");
    }
    for (list, suffix) in [(&task.signals, "-signal"), (&task.contexts, "-context"), (&task.controls, "-control")] {
        for name in list {
            add(name, suffix);
        }
    }
    names
}

/// The binary that a task runs.
pub fn image_of<'a>(name: &'a Name, task: &'a Task) -> &'a str {
    task.image.as_ref().map_or(name.get_ref(), |image| image.get_ref())
}

#[cfg(test)]
mod tests;
