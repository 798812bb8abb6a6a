//! Host tools: which program comes from which Debian package, and installing what is missing.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::paths::which;

/// Something the host must have: a program in `PATH`, or a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tool {
    /// The program's name, or the file's absolute path.
    pub name: &'static str,
    /// The Debian and Ubuntu package that has it.
    pub package: &'static str,
    /// What it is needed for, in a few words.
    pub purpose: &'static str,
}

const fn tool(name: &'static str, package: &'static str, purpose: &'static str) -> Tool {
    Tool { name, package, purpose }
}

/// QEMU, with the firmware files it brings.
pub const QEMU: &[Tool] = &[tool("qemu-system-x86_64", "qemu-system-x86", "the emulator with AMD SVM")];
/// UEFI firmware for QEMU.
pub const OVMF: &[Tool] = &[tool("/usr/share/OVMF/OVMF_CODE_4M.fd", "ovmf", "UEFI firmware for QEMU")];
/// The same in one image, whose variables last as long as the machine; for guests.
pub const OVMF_WHOLE: &[Tool] = &[tool("/usr/share/ovmf/OVMF.fd", "ovmf", "UEFI firmware for guests")];
/// A BIOS for guests.
pub const SEABIOS: &[Tool] = &[tool("/usr/share/seabios/bios-256k.bin", "seabios", "BIOS for guests")];
/// What a system's own files are made from, beyond what its machine needs.
pub fn of_system(name: &str) -> &'static [&'static [Tool]] {
    if name == "firmware" { &[SEABIOS, OVMF_WHOLE, GRUB] } else { &[] }
}

/// Bochs and the two ROM images it starts with.
pub const BOCHS: &[Tool] = &[
    tool("bochs", "bochs", "the emulator with Intel VT-x"),
    tool("/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_rfb_gui.so", "bochs", "Bochs without a screen"),
    tool("/usr/share/bochs/BIOS-bochs-latest", "bochsbios", "BIOS for Bochs"),
    tool("/usr/share/vgabios/vgabios.bin", "vgabios", "VGA BIOS for Bochs"),
];
/// GRUB and what it makes bootable images with.
pub const GRUB: &[Tool] = &[
    tool("grub-mkrescue", "grub-common", "bootable images"),
    tool("/usr/lib/grub/i386-pc/multiboot2.mod", "grub-pc-bin", "GRUB for BIOS"),
    tool("/usr/lib/grub/x86_64-efi/multiboot2.mod", "grub-efi-amd64-bin", "GRUB for UEFI"),
    tool("xorriso", "xorriso", "bootable images"),
    tool("mformat", "mtools", "FAT file systems in images"),
];
/// Debian's Rust with sources, for machines where rustup can add no target.
pub const DEBIAN_RUST: &[Tool] = &[
    tool("/usr/bin/rustc", "rustc-web", "compiler for bare metal"),
    tool("/usr/bin/cargo", "cargo-web", "builds core for bare metal"),
    tool("/usr/lib/rustlib/src/rust/library/core/Cargo.toml", "rust-web-src", "sources of core and alloc"),
];
/// A linker, for when rustup's own copy is not there.
pub const LLD: &[Tool] = &[tool("ld.lld", "lld", "linker for bare metal")];
/// Debian's clippy, which can check bare-metal crates where rustup has no such target.
pub const DEBIAN_CLIPPY: &[Tool] = &[tool("/usr/bin/cargo-clippy", "rust-web-clippy", "lints of bare-metal crates")];
/// Tools that take symbols apart.
pub const BINUTILS: &[Tool] = &[tool("objcopy", "binutils", "leaves debug information out of boot images")];
/// ACPICA, whose compiler judges the virtual machines' tables.
pub const ACPICA: &[Tool] = &[tool("iasl", "acpica-tools", "tests of ACPI tables")];
/// A C++ compiler, for the fuzzer.
pub const CXX: &[Tool] = &[tool("c++", "g++", "compiles libFuzzer")];
/// A debugger; only for people.
pub const GDB: &[Tool] = &[tool("gdb", "gdb", "debugging with --gdb")];

impl Tool {
    /// Whether it is on this machine.
    pub fn is_there(&self) -> bool {
        if self.name.starts_with('/') { Path::new(self.name).exists() } else { which(self.name).is_some() }
    }
}

/// Whether xtask may install packages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Install {
    /// Announce and install what is missing.
    Allowed,
    /// Only name it.
    Forbidden,
}

/// Makes sure that all of `tools` are there: installs what is missing where that is possible and allowed.
/// The error is one message naming each missing tool and its package.
pub fn require(tools: &[&[Tool]], install: Install) -> Result<()> {
    let missing = missing(tools);
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages(&missing);
    if install == Install::Forbidden {
        bail!(describe(&missing, "--no-install was given"));
    }
    let Some(apt) = which("apt-get") else {
        bail!(describe(&missing, "this system has no apt-get; its own packages may be called differently"));
    };
    let Some(mut prefix) = rights() else {
        bail!(describe(&missing, "installing needs root, or sudo that asks for no password here"));
    };
    eprintln!("installing with apt-get: {}", packages.join(" "));
    prefix.push(apt.to_string_lossy().into_owned());
    let first = apt_get(&prefix, &packages);
    if first.is_err() {
        // A fresh machine or container often has no package lists yet.
        let step = crate::progress::step("apt-get update");
        let (program, rest) = prefix.split_first().context("no command")?;
        crate::process::output(Command::new(program).args(rest).args(["-qq", "update"]))?;
        step.finish();
        apt_get(&prefix, &packages).with_context(|| describe(&missing, "apt-get could not install them"))?;
    }
    let still: Vec<Tool> = missing.into_iter().filter(|tool| !tool.is_there()).collect();
    if !still.is_empty() {
        bail!(describe(&still, "apt-get installed the packages, but these are still not there"));
    }
    Ok(())
}

/// Those of `tools` that are not there.
pub fn missing(tools: &[&[Tool]]) -> Vec<Tool> {
    tools.iter().flat_map(|group| group.iter()).filter(|tool| !tool.is_there()).copied().collect()
}

fn packages(missing: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt_get(prefix: &[String], packages: &[&str]) -> Result<()> {
    let step = crate::progress::step(format!("apt-get install {}", packages.join(" ")));
    let (program, rest) = prefix.split_first().context("no command")?;
    crate::process::output(
        Command::new(program)
            .args(rest)
            .args(["-qq", "-y", "--no-install-recommends", "-o", "Dpkg::Use-Pty=0", "install"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    step.finish();
    Ok(())
}

/// The command prefix with which packages may be installed: nothing as root, sudo where it works.
/// On a terminal sudo may ask for the password; elsewhere it must not need one.
fn rights() -> Option<Vec<String>> {
    // SAFETY: geteuid has no arguments, no failure and no effect.
    if unsafe { libc::geteuid() } == 0 {
        return Some(vec!["env".into(), "DEBIAN_FRONTEND=noninteractive".into()]);
    }
    let sudo = which("sudo")?.to_string_lossy().into_owned();
    let asks = std::io::IsTerminal::is_terminal(&std::io::stdin());
    let flag = if asks { "--validate" } else { "--non-interactive" };
    let mut check = Command::new(&sudo);
    check.arg(flag);
    if !asks {
        check.arg("true").stderr(Stdio::null());
    }
    if !check.status().is_ok_and(|status| status.success()) {
        return None;
    }
    Some(vec![sudo, "--non-interactive".into(), "env".into(), "DEBIAN_FRONTEND=noninteractive".into()])
}

fn describe(missing: &[Tool], why: &str) -> String {
    let mut text = format!("tools are missing and were not installed ({why}):");
    for tool in missing {
        text += &format!("\n  {:<44} package {:<20} {}", tool.name, tool.package, tool.purpose);
    }
    text + &format!("\n  on Debian and Ubuntu: apt-get install {}", packages(missing).join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: &[Tool] = &[
        tool("no-such-program-1", "package-b", "x"),
        tool("/no/such/file", "package-a", "y"),
        tool("no-such-program-2", "package-a", "z"),
    ];

    #[test]
    fn one_message_names_each_missing_tool_and_its_package() {
        let shell: &[Tool] = &[tool("sh", "dash", "")];
        let error = require(&[NONE, shell], Install::Forbidden).unwrap_err().to_string();
        for word in ["no-such-program-1", "package-b", "/no/such/file", "no-such-program-2"] {
            assert!(error.contains(word), "{error}");
        }
        assert!(!error.contains("dash"), "what is there is not named: {error}");
        assert!(error.ends_with("apt-get install package-a package-b"), "{error}");
    }

    #[test]
    fn nothing_missing_is_no_error() {
        assert!(require(&[&[tool("sh", "dash", "")]], Install::Forbidden).is_ok());
    }
}
