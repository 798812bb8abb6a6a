//! The guest's initramfs: BusyBox with its applet links, an `/init` script, the virtio modules and the test scripts.

use super::debian::{Packages, run};
use super::modules::{self, Module};
use crate::cpio::Archive;
use anyhow::{Context, Result};
use std::fs;
use std::process::Command;

/// The first program.
pub const INIT: &str = include_str!("init.sh");

/// Scripts of `/tests`, run by `moira.script=NAME` on the kernel's command line.
pub const SCRIPTS: &[(&str, &str)] = &[
    ("all", include_str!("tests/all.sh")),
    ("allowed", include_str!("tests/allowed")),
    ("block", include_str!("tests/block.sh")),
    ("entropy", include_str!("tests/entropy.sh")),
    ("forks", include_str!("tests/forks.sh")),
    ("messages", include_str!("tests/messages.sh")),
    ("mount", include_str!("tests/mount.sh")),
    ("sleep", include_str!("tests/sleep.sh")),
];

/// Empty folders.
const FOLDERS: &[&str] =
    &["bin", "dev", "etc", "lib", "lib/modules", "mnt", "proc", "root", "run", "sys", "tests", "tmp"];

/// Links that make BusyBox answer to other names; used if it cannot be asked.
const APPLETS: &[&str] = &["sh", "mount", "insmod", "cat", "setsid", "cttyhack", "poweroff", "reboot"];

/// The archive's bytes.
pub fn build(packages: &Packages, wanted: &[&str]) -> Result<Vec<u8>> {
    let busybox = fs::read(&packages.busybox).with_context(|| format!("cannot read {}", packages.busybox.display()))?;
    let modules = modules::load_order(&packages.modules, wanted)?;
    let applets = run(Command::new(&packages.busybox).arg("--list"))
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_else(|_| APPLETS.join("\n"));
    Ok(assemble(&busybox, &applets, &modules)?)
}

fn assemble(busybox: &[u8], applets: &str, modules: &[Module]) -> Result<Vec<u8>, crate::cpio::TooLarge> {
    let mut archive = Archive::new();
    for folder in FOLDERS {
        archive.folder(folder);
    }
    // Standard input and output of /init, before it has mounted anything.
    archive.character_device("dev/console", 5, 1);
    archive.program("init", INIT.as_bytes())?;
    archive.program("bin/busybox", busybox)?;
    for applet in applets.lines().filter(|applet| !applet.is_empty() && *applet != "busybox") {
        archive.link(&format!("bin/{applet}"), "busybox");
    }
    let mut order = String::new();
    for module in modules {
        archive.program(&format!("lib/modules/{}.ko", module.name), &module.data)?;
        order.push_str(&format!("{}\n", module.name));
    }
    archive.program("lib/modules/order", order.as_bytes())?;
    for (name, script) in SCRIPTS {
        archive.program(&format!("tests/{name}"), script.as_bytes())?;
    }
    Ok(archive.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_init_needs() {
        let module = Module { name: "virtio".to_owned(), data: b"ko".to_vec() };
        let archive = assemble(b"ELF", "sh\nmount\nbusybox\n", &[module]).unwrap();
        let names: Vec<&str> = cpio_reader::iter_files(&archive).map(|entry| entry.name()).collect();
        for name in
            ["init", "dev/console", "bin/sh", "bin/mount", "lib/modules/virtio.ko", "lib/modules/order", "tests/all"]
        {
            assert!(names.contains(&name), "{name} is missing: {names:?}");
        }
        assert_eq!(names.iter().filter(|name| **name == "bin/busybox").count(), 1);
    }

    #[test]
    fn scripts_are_valid_shell() {
        for (name, script) in SCRIPTS.iter().filter(|(name, _)| *name != "allowed").chain(&[("init", INIT)]) {
            let file = tempfile::NamedTempFile::new().unwrap();
            fs::write(file.path(), script).unwrap();
            let status = Command::new("sh").arg("-n").arg(file.path()).status().unwrap();
            assert!(status.success(), "{name}");
        }
    }
}
