//! Builds, boots and tests Moira: `cargo xtask --help` lists what it can do.

use std::process::ExitCode;

mod bench;
mod build;
mod cli;
mod console;
mod control;
mod cpio;
mod doctor;
mod emulator;
mod experiment;
mod flash;
mod fuzz;
mod guest;
mod hosttools;
mod image;
mod media;
mod paths;
mod prepush;
mod process;
mod progress;
mod run;
mod symbols;
mod system;
mod test;
mod toolchain;
mod trace;
mod tty;

fn main() -> ExitCode {
    process::end_on_closed_output();
    match cli::main() {
        Ok(code) => code,
        Err(error) => {
            // One line per cause and nothing else: what a person needs to act, never a stack trace.
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
