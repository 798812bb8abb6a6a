//! `fuzz`: targets guided by coverage. What each target calls is in `vmm-task/fuzz` and `kernel/core/fuzz`, its binary in `tests/libfuzzer`.
//!
//! Coverage needs no nightly compiler: the instrumentation is LLVM's and has flags that a stable one takes, and libFuzzer is compiled by
//! the crate `libfuzzer-sys`. There is no address sanitizer; what is fuzzed has no unsafe code to speak of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::cli::Global;
use crate::hosttools::{self, Install};
use crate::{build, paths, toolchain};

mod outcome;
mod run;

pub use outcome::{Crash, Outcome, grouped};
pub use run::{Budget, Run, quiet_replay, replay};

/// The target that is broken on purpose, for the test that mistakes are found.
pub const BROKEN: &str = "broken";
/// The package of all targets.
pub const PACKAGE: &str = "moira-libfuzzer";
/// What tells libFuzzer of edges, and of what is compared with what.
const FLAGS: [&str; 6] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// What to fuzz, and for how long.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// The target, or `all`, one after another; without it the targets are listed
    target: Option<String>,
    /// How long each target runs [default: 60]
    #[arg(long, value_name = "N", conflicts_with = "runs")]
    seconds: Option<u64>,
    /// How many inputs each target runs
    #[arg(long, value_name = "N")]
    runs: Option<u64>,
    /// Begin with these numbers [default: others each time]
    #[arg(long, value_name = "N")]
    seed: Option<u32>,
    /// Run only this input, and show what it leads to
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seconds", "runs", "seed"])]
    replay: Option<PathBuf>,
}

/// The targets by name, with the line that each says of itself.
pub fn targets() -> Result<BTreeMap<String, String>> {
    let folder = paths::root().join("tests/libfuzzer/src/bin");
    let mut targets = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|_| path.extension().is_some()) else {
            continue;
        };
        let text = fs::read_to_string(&path)?;
        let about = text.lines().next().and_then(|line| line.strip_prefix("//! ")).unwrap_or_default();
        targets.insert(name.to_string(), about.to_string());
    }
    Ok(targets)
}

/// Builds all targets; their programs by name.
pub fn build(install: Install) -> Result<BTreeMap<String, PathBuf>> {
    hosttools::require(&[hosttools::CXX], install)?;
    let step = crate::progress::step("building the fuzz targets");
    let mut command = toolchain::rustup_cargo();
    command
        .args(["build", "--profile", "fuzz", "-p", PACKAGE, "--message-format=json-render-diagnostics"])
        // Named, so that the flags reach the targets only, not build scripts and macros, which no libFuzzer is linked to.
        .args(["--target", &toolchain::host()?, "--target-dir"])
        .arg(folder().join("build"))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"))
        .current_dir(paths::root());
    let built = build::run_cargo(&mut command)?;
    step.finish();
    Ok(built.into_iter().collect())
}

/// Where everything of fuzzing is kept.
pub fn folder() -> PathBuf {
    paths::target().join("fuzz")
}

/// Runs the command.
pub fn main(options: &Options, global: &Global) -> Result<ExitCode> {
    let targets = targets()?;
    let Some(wanted) = &options.target else {
        for (name, about) in &targets {
            println!("{name:<12} {about}");
        }
        return Ok(ExitCode::SUCCESS);
    };
    let chosen: Vec<&String> =
        targets.keys().filter(|name| *name == wanted || wanted == "all" && *name != BROKEN).collect();
    if chosen.is_empty() {
        bail!("there is no target {wanted:?}; `cargo xtask fuzz` lists them");
    }
    let programs = build(global.install())?;
    let program = |name: &String| programs.get(name).with_context(|| format!("the build made no {name}"));
    if let Some(input) = &options.replay {
        let [name] = chosen.as_slice() else { bail!("an input is replayed on one target, not on all") };
        let bears = replay(program(name)?, input)?;
        println!("{name} {} {}", if bears { "bears" } else { "does not bear" }, input.display());
        return Ok(if bears { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let budget = match (options.runs, options.seconds) {
        (Some(runs), _) => Budget::Runs(runs),
        (None, seconds) => Budget::Seconds(seconds.unwrap_or(60)),
    };
    let mut crashed = 0;
    for name in chosen {
        let run = Run { program: program(name)?, folder: folder().join(name), budget, seed: options.seed };
        let outcome = run.run(name)?;
        println!("{}  {name:<12} {outcome}", if outcome.crash.is_none() { "ok   " } else { "CRASH" });
        if let Some(crash) = &outcome.crash {
            crashed += 1;
            print!("{}", describe(name, crash));
        }
    }
    Ok(if crashed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What a crash was, where its input is, and how to see it again.
pub fn describe(name: &str, crash: &Crash) -> String {
    let mut text = format!("      {}\n", crash.what);
    match &crash.input {
        Some(input) => {
            let input = relative(input);
            text += &format!("      input: {}\n", input.display());
            text += &format!("      again: cargo xtask fuzz {name} --replay {}\n", input.display());
        }
        None => text += "      it left no input\n",
    }
    text + &format!("      log:   {}\n", relative(&crash.log).display())
}

/// As seen from the workspace's root, where the command is usually given.
fn relative(path: &Path) -> &Path {
    path.strip_prefix(paths::root()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_says_what_it_is() {
        let targets = targets().unwrap();
        assert!(targets.len() > 8 && targets.contains_key(BROKEN), "{targets:?}");
        assert!(targets.values().all(|about| about.ends_with('.')), "{targets:?}");
    }

    #[test]
    fn a_crash_is_told_with_the_command_that_shows_it_again() {
        let place = folder().join("devices");
        let crash = Crash {
            what: "panicked at vmm-task/devices/src/pit.rs:7:9: index out of bounds".into(),
            input: Some(place.join("crashes/crash-12")),
            log: place.join("fuzz.log"),
        };
        let text = describe("devices", &crash);
        assert!(text.contains("pit.rs:7:9: index out of bounds"), "{text}");
        let again = "cargo xtask fuzz devices --replay target/fuzz/devices/crashes/crash-12";
        assert!(text.contains(again), "{text}");
        assert!(text.contains("log:   target/fuzz/devices/fuzz.log"), "{text}");
    }
}
