//! The command line.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};

use crate::control::commands::{self as control, Control};
use crate::hosttools::Install;
use crate::toolchain::Choice;
use crate::{bench, doctor, experiment, fuzz, media, paths, prepush, process, run, test, trace};

/// Builds, boots and tests Moira.
///
/// A fresh machine needs nothing but cargo: what else is missing is announced and installed, unless --no-install is
/// given.
#[derive(Parser, Debug)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Args, Clone, Debug)]
pub struct Global {
    /// Install nothing; name what is missing and stop
    #[arg(long, global = true)]
    no_install: bool,
    /// Which compiler builds for bare metal
    #[arg(long, global = true, value_enum, default_value_t = Choice::Auto, value_name = "WHICH")]
    pub toolchain: Choice,
}

impl Global {
    /// Whether packages may be installed.
    pub fn install(&self) -> Install {
        if self.no_install { Install::Forbidden } else { Install::Allowed }
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Build the kernel and all tasks
    Build,
    /// Build and boot a system; this terminal is its console, Ctrl-A x leaves
    #[command(after_help = run::AFTER_HELP)]
    Run(Box<run::Options>),
    #[command(flatten)]
    Control(Control),
    /// Run the host tests, then every test case in its emulator
    #[command(after_help = "The last line is `N passed, N failed`; the exit status is 0 when nothing failed.\n\
        Cases are in tests/cases, their logs in target/test-logs.")]
    Test(test::Options),
    /// Run what takes untrusted input on inputs that coverage leads to
    #[command(after_help = "Corpus and crashes are in target/fuzz/TARGET; the exit status is 0 when nothing crashed.")]
    Fuzz(fuzz::Options),
    /// Measure, in instructions of a deterministic machine
    Bench(bench::Options),
    /// Try what the guarantees are worth: data as CSV, plots and a one-page report
    Experiment(experiment::Options),
    /// Record what a system does with its time, for ui.perfetto.dev
    Trace(trace::Options),
    /// Check the description of a system, or draw it
    System(media::SystemOptions),
    /// Make an image that boots from BIOS and UEFI, as a disk, a USB stick or a CD
    Image(Box<media::ImageOptions>),
    /// Write an image to a device, with care: shows it, asks, and reads back what it wrote
    Flash(Box<media::FlashOptions>),
    /// Show what this machine has, what is missing, and whether it could run Moira on bare metal
    Doctor,
    /// Check what a commit must pass: format, lints, host tests, emulator tests
    Prepush,
    /// Remove what xtask keeps outside this checkout
    CleanCache,
}

/// Reads the command line and does what it says.
pub fn main() -> Result<ExitCode> {
    let cli = Cli::parse();
    process::catch_signals()?;
    let global = &cli.global;
    match &cli.command {
        Command::Build => {
            let toolchain = crate::toolchain::Toolchain::find(global.toolchain, global.install())?;
            eprintln!("compiler: {}", toolchain.origin);
            let images = crate::build::images(&toolchain, global.install())?;
            println!("kernel: {}", images.kernel.display());
            let mut tasks: Vec<_> = images.tasks.iter().collect();
            tasks.sort();
            for (name, path) in tasks {
                println!("task {name}: {}", path.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(options) => run::main(options, global),
        Command::Control(command) => control::main(command),
        Command::Test(options) => test::main(options, global),
        Command::Fuzz(options) => fuzz::main(options, global),
        Command::Bench(options) => bench::main(options, global),
        Command::Experiment(options) => experiment::main(options, global),
        Command::Trace(options) => trace::main(options, global),
        Command::System(options) => media::system(options),
        Command::Image(options) => media::image(options, global),
        Command::Flash(options) => media::flash(options, global),
        Command::Doctor => doctor::main(),
        Command::Prepush => prepush::main(global),
        Command::CleanCache => clean_cache(),
    }
}

fn clean_cache() -> Result<ExitCode> {
    let cache = paths::cache()?;
    if !cache.exists() {
        println!("nothing is cached in {}", cache.display());
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::remove_dir_all(&cache).with_context(|| format!("cannot remove {}", cache.display()))?;
    println!("removed {}", cache.display());
    Ok(ExitCode::SUCCESS)
}

/// Parses a size such as `512M`, `2G` or `1024` (MiB) into MiB.
pub fn parse_memory(text: &str) -> Result<u32, String> {
    let (number, scale) = match text.trim().trim_end_matches(['B', 'b', 'i']) {
        text if text.ends_with(['G', 'g']) => (&text[..text.len() - 1], 1024),
        text if text.ends_with(['M', 'm']) => (&text[..text.len() - 1], 1),
        text => (text, 1),
    };
    let number: u32 = number.parse().map_err(|_| format!("{text:?} is no size; 512M and 2G are"))?;
    number.checked_mul(scale).ok_or_else(|| format!("{text} is too much"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_are_mebibytes() {
        assert_eq!(parse_memory("512M"), Ok(512));
        assert_eq!(parse_memory("2G"), Ok(2048));
        assert_eq!(parse_memory("2GiB"), Ok(2048));
        assert_eq!(parse_memory("96"), Ok(96));
        assert!(parse_memory("").is_err());
        assert!(parse_memory("M").is_err());
        assert!(parse_memory("-1G").is_err());
        assert!(parse_memory("9999999G").is_err());
    }
}
