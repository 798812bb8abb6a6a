//! `prepush`: exactly what continuous integration does.

use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result};

use crate::cli::Global;
use crate::toolchain::{self, Toolchain};
use crate::{build, fuzz, hosttools, paths, test};

/// Checks format and lints, then tests. Goes on after a failed check, so that one call tells everything.
pub fn main(global: &Global) -> Result<ExitCode> {
    let install = global.install();
    for component in ["rustfmt", "clippy"] {
        toolchain::rustup_component(component, install)?;
    }
    let mut failed = Vec::new();
    let mut check = |name: &'static str, command: &mut Command| -> Result<()> {
        eprintln!("== {name}");
        command.stdin(Stdio::null()).current_dir(paths::root());
        if !command.status().with_context(|| format!("cannot start {name}"))?.success() {
            failed.push(name);
        }
        Ok(())
    };

    check("format", toolchain::rustup_cargo().args(["fmt", "--all", "--check", "--", "-l"]))?;
    check("lints of host crates", toolchain::rustup_cargo().args(["clippy", "--all-targets", "--", "-D", "warnings"]))?;
    hosttools::require(&[hosttools::CXX], install)?;
    let targets = ["clippy", "-p", fuzz::PACKAGE, "--", "-D", "warnings"];
    check("lints of fuzz targets", toolchain::rustup_cargo().args(targets))?;
    let toolchain = Toolchain::find(global.toolchain, install)?;
    eprintln!("compiler: {}", toolchain.origin);
    toolchain.prepare_clippy(install)?;
    let mut clippy = toolchain.cargo("clippy");
    clippy.arg("--release");
    for package in build::image_packages()? {
        clippy.args(["-p", &package]);
    }
    check("lints of bare-metal crates", clippy.args(["--", "-D", "warnings"]))?;

    eprintln!("== tests");
    // Everything the cases need is asked for at once, not in the middle.
    let tools =
        [hosttools::QEMU, hosttools::OVMF, hosttools::BOCHS, hosttools::GRUB, hosttools::BINUTILS, hosttools::ACPICA];
    hosttools::require(&tools, install)?;
    let tests = test::main(&test::Options::all(), global)?;
    if failed.is_empty() {
        return Ok(tests);
    }
    eprintln!("failed: {}", failed.join(", "));
    Ok(ExitCode::FAILURE)
}
