//! Bochs: VT-x without hardware support, and other CPU models of both vendors.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Machine, iso};
use crate::build::System;
use crate::process::Guarded;

/// The model used unless another is asked for: its CPUID leaves agree with what it does.
pub const DEFAULT_CPU: &str = "corei7_haswell_4770";
/// Instructions in one second of guest time. Bochs does less than half of that in a second of CPU time.
pub const INSTRUCTIONS_PER_SECOND: u64 = 100_000_000;

const LOG: &str = "bochs.log";

/// Starts Bochs; its serial ports connect to these ports of this host.
pub fn start(machine: &Machine, system: &System, cmdline: &str, folder: &Path, ports: &[u16]) -> Result<Guarded> {
    let image = iso::make(system, cmdline, machine, folder)?;
    let settings = folder.join("bochsrc.txt");
    fs::write(&settings, configuration(machine, &image, folder, ports)?)?;
    // Debian's Bochs starts in its debugger, which is told to continue.
    let commands = folder.join("bochs-commands.txt");
    fs::write(&commands, "c\n")?;
    let _ = fs::remove_file(folder.join(LOG));
    let (stdout, stderr) = super::own_output(folder)?;
    let mut command = Command::new("bochs");
    command.arg("-q").arg("-f").arg(&settings).arg("-rc").arg(&commands);
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    // Without a locale of its own Bochs may read numbers differently.
    command.env("LC_ALL", "C");
    Guarded::spawn(&mut command)
}

fn configuration(machine: &Machine, image: &Path, folder: &Path, ports: &[u16]) -> Result<String> {
    let mut text = String::new();
    let media = if machine.firmware == super::Firmware::Grub {
        format!("ata0-master: type=cdrom, path=\"{}\", status=inserted\nboot: cdrom", image.display())
    } else {
        format!("ata0-master: type=disk, mode=volatile, path=\"{}\"\nboot: disk", image.display())
    };
    write!(
        text,
        "display_library: rfb, options=\"timeout=0\"\n\
         cpu: model={model}, count={cpus}, ips={INSTRUCTIONS_PER_SECOND}, reset_on_triple_fault=0, ignore_bad_msrs=1\n\
         megs: {memory}\n\
         romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
         vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
         sound: driver=dummy\n\
         speaker: enabled=0\n\
         plugin_ctrl: speaker=0, unmapped=1, biosdev=1, parallel=0\n\
         {media}\n\
         log: {log}\n\
         panic: action=fatal\n\
         clock: sync={clock}\n",
        model = machine.bochs_model(),
        cpus = machine.cpus,
        // Idle time passes at once in tests, and as people expect at a console.
        clock = if machine.interactive { "slowdown" } else { "none" },
        memory = machine.memory,
        log = folder.join(LOG).display(),
    )
    .context("cannot write Bochs' configuration")?;
    for (number, port) in ports.iter().enumerate() {
        let com = number + 1;
        writeln!(text, "com{com}: enabled=1, mode=socket-client, dev=127.0.0.1:{port}")
            .context("cannot write Bochs' configuration")?;
    }
    for line in &machine.extra {
        text += line;
        text.push('\n');
    }
    Ok(text)
}

/// What Bochs said when it ended, other than that it was asked to.
pub fn complaint(folder: &Path) -> String {
    let text = fs::read(folder.join(super::STDERR)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut last = text.lines().skip_while(|line| !line.contains("exiting with the following message"));
    // Before it has read its configuration it says so in another way.
    let early = || text.lines().find_map(|line| line.split_once(">>PANIC<<")).map(|(_, message)| message);
    last.nth(1).or_else(early).map(str::trim).unwrap_or_default().to_string()
}

/// Whether Bochs ended because of a triple fault.
pub fn triple_fault(folder: &Path) -> bool {
    complaint(folder).contains("3rd (")
}
