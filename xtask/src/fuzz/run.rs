//! One run of one target.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::outcome::{self, Outcome};
use crate::{process, progress};

/// How much of the machine one input may take: seconds, and MiB.
const PATIENCE: u32 = 60;
const MEMORY: u32 = 1024;
/// Bytes of the longest input. An image with code, a long row of exits: longer ones show nothing new.
const LONGEST: u32 = 16384;

/// How long a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// So many inputs; with a seed and without a corpus the same ones each time.
    Runs(u64),
    /// So many seconds.
    Seconds(u64),
}

/// A run of a target.
#[derive(Clone, Debug)]
pub struct Run<'a> {
    /// The target's program.
    pub program: &'a Path,
    /// Where corpus, crashes and log are kept.
    pub folder: PathBuf,
    /// How long.
    pub budget: Budget,
    /// Where the numbers begin.
    pub seed: Option<u32>,
}

impl Run<'_> {
    /// Runs it. What inputs of earlier runs found is kept in the corpus and gone on from.
    pub fn run(&self, name: &str) -> Result<Outcome> {
        let [corpus, crashes] = ["corpus", "crashes"].map(|name| self.folder.join(name));
        for folder in [&corpus, &crashes] {
            fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        // The name is libFuzzer's convention with ours: see `tests/libfuzzer/src/lib.rs`.
        process::output(Command::new(self.program).env("MOIRA_FUZZ_SEEDS", &corpus)).context("the target's seeds")?;
        let log = self.folder.join("fuzz.log");
        let file = fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = Command::new(self.program);
        command.args([
            format!("-timeout={PATIENCE}"),
            format!("-rss_limit_mb={MEMORY}"),
            format!("-max_len={LONGEST}"),
            format!("-artifact_prefix={}/", crashes.display()),
            "-print_final_stats=1".into(),
        ]);
        let (limit, message) = match self.budget {
            Budget::Runs(runs) => (format!("-runs={runs}"), format!("fuzzing {name}, {} runs", outcome::grouped(runs))),
            Budget::Seconds(seconds) => (format!("-max_total_time={seconds}"), format!("fuzzing {name}, {seconds} s")),
        };
        command.arg(limit);
        if let Some(seed) = self.seed {
            command.arg(format!("-seed={seed}"));
        }
        command.arg(&corpus).stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let (step, begin) = (progress::step(message), Instant::now());
        let status = wait(process::Guarded::spawn(&mut command)?)?;
        drop(step);
        let text = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
        let outcome = outcome::read(&String::from_utf8_lossy(&text), status.success(), &log);
        Ok(Outcome { took: begin.elapsed(), ..outcome })
    }
}

fn wait(mut child: process::Guarded) -> Result<std::process::ExitStatus> {
    loop {
        if let Some(status) = child.wait(Duration::from_secs(3600))? {
            return Ok(status);
        }
    }
}

/// Runs one input, with everything that is said about it shown. Whether the target bears it.
pub fn replay(program: &Path, input: &Path) -> Result<bool> {
    if !input.is_file() {
        bail!("there is no file {}", input.display());
    }
    let mut command = Command::new(program);
    command.env("RUST_BACKTRACE", "1");
    alone(&mut command, input)
}

/// The same with nothing shown.
pub fn quiet_replay(program: &Path, input: &Path) -> Result<bool> {
    alone(Command::new(program).stdout(Stdio::null()).stderr(Stdio::null()), input)
}

fn alone(command: &mut Command, input: &Path) -> Result<bool> {
    command.arg(format!("-timeout={PATIENCE}")).arg(input).stdin(Stdio::null());
    Ok(wait(process::Guarded::spawn(command)?)?.success())
}
