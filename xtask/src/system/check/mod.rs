//! Checks a manifest: everything that can be known to be wrong before the system boots is an error here, with its line.

mod calls;
mod resources;
mod time;

pub use resources::parse_ports;

use super::diagnostic::{Diagnostic, Report, nearest};
use super::manifest::{Manifest, Name, Restart, Role, Task};
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
/// Slots of a task's capability table: what the root task fills itself, and what one table may hold.
const SLOT_RANGE: Range<u32> = 16..65_537;

/// What the manifest may refer to.
#[derive(Debug, Default, Clone)]
pub struct Known {
    /// Binaries that the workspace builds.
    pub images: BTreeSet<String>,
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
        text if text.starts_with("duplicate key") => "each name stands once in its table; give one of them another name",
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

    fn names(&mut self) {
        let manifest = self.manifest;
        if manifest.tasks.is_empty() {
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
        if known.images.contains(image) {
            return;
        }
        let hint = match nearest(image, known.images.iter().map(String::as_str)) {
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
        let level = *task.level.get_ref();
        if level >= LEVELS {
            self.report(task.level.span(), format!("level {level}"), "levels are 0 to 7; 7 calls nobody");
        }
        let (cpu, cpus) = (*task.cpu.get_ref(), *self.manifest.system.cpus.get_ref());
        if cpu >= cpus {
            let hint = format!("CPUs count from 0 and the system has {cpus}: raise `cpus` in [system] or choose another");
            self.report(task.cpu.span(), format!("task `{name}` on CPU {cpu}", name = name.get_ref()), hint);
        }
        let slots = *task.slots.get_ref();
        if !SLOT_RANGE.contains(&slots) {
            let hint = format!("{} to {} are possible", SLOT_RANGE.start, SLOT_RANGE.end - 1);
            self.report(task.slots.span(), format!("{slots} slots"), hint);
        }
        for server in &task.calls {
            if self.lookup(server.get_ref()).is_none() {
                self.no_such_task(server, "calls");
            }
        }
        for other in &task.signals {
            if self.lookup(other.get_ref()).is_none() {
                self.no_such_task(other, "signals");
            }
        }
        self.repeated(&task.calls);
        self.repeated(&task.signals);
        self.repeated(&task.files);
    }

    /// The same name twice in one list.
    fn repeated(&mut self, names: &'a [Name]) {
        let mut seen = BTreeSet::new();
        for name in names {
            if !seen.insert(name.get_ref()) {
                self.report(name.span(), format!("`{}` stands here twice", name.get_ref()), "once is enough");
            }
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
                self.report(role.span(), message, "one planner and one supervisor a system, one scheduler a CPU");
            }
            taken.push((*role.get_ref(), place, name));
            if *role.get_ref() == Role::Supervisor {
                supervisor = Some((name, *task.level.get_ref()));
            }
        }
        let Some((supervisor, above)) = supervisor else { return };
        for (name, task) in &manifest.tasks {
            let task = task.get_ref();
            let Some(restart) = &task.restart else { continue };
            let level = *task.level.get_ref();
            // A level-7 task cannot send its fault as a message: its supervisor is signalled instead.
            let reachable = level < above || level == LEVELS - 1 || name.get_ref() == supervisor;
            if *restart.get_ref() == Restart::Always && !reachable {
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

/// The binary that a task runs.
pub fn image_of<'a>(name: &'a Name, task: &'a Task) -> &'a str {
    task.image.as_ref().map_or(name.get_ref(), |image| image.get_ref())
}

#[cfg(test)]
mod tests;
