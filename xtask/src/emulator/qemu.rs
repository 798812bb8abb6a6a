//! QEMU: TCG with SVM by default, KVM where the host can nest.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use super::{Accel, Firmware, Machine, iso};
use crate::build::System;
use crate::process::Guarded;

const LOG: &str = "qemu.log";
/// The port that ends the run, and where gdb connects.
const EXIT_DEVICE: &str = "isa-debug-exit,iobase=0xf4,iosize=0x04";
/// The device of KVM.
pub const KVM: &str = "/dev/kvm";
/// Where `--gdb` waits.
pub const GDB_PORT: u16 = 1234;

/// Starts QEMU; its serial ports connect to these ports of this host.
pub fn start(machine: &Machine, system: &System, cmdline: &str, folder: &Path, ports: &[u16]) -> Result<Guarded> {
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-reboot", "-display", "none"])
        .args(["-m", &format!("{}M", machine.memory), "-smp", &machine.cpus.to_string()])
        .args(["-device", EXIT_DEVICE]);
    for (number, port) in ports.iter().enumerate() {
        command
            .args(["-chardev", &format!("socket,id=com{number},host=127.0.0.1,port={port},server=off,nodelay=on")])
            .args(["-serial", &format!("chardev:com{number}")]);
    }
    accelerate(&mut command, machine);
    // Resets are logged: one without an announced end is a triple fault.
    command.args(["-d", "cpu_reset", "-D"]).arg(folder.join(LOG));
    boot(&mut command, machine, system, cmdline, folder)?;
    if machine.gdb {
        command.args(["-gdb", &format!("tcp:127.0.0.1:{GDB_PORT}"), "-S"]);
    }
    command.args(&machine.extra);
    fs::write(folder.join("command.txt"), format!("{command:?}\n"))?;
    let (stdout, stderr) = super::own_output(folder)?;
    command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    Guarded::spawn(&mut command)
}

fn accelerate(command: &mut Command, machine: &Machine) {
    let kvm = match machine.accel {
        Accel::Kvm => true,
        Accel::Tcg => false,
        Accel::Auto => kvm_can_nest(),
    };
    if kvm {
        command.args(["-M", "q35,accel=kvm", "-cpu", machine.cpu.as_deref().unwrap_or("host")]);
        return;
    }
    let cpu = machine.cpu.as_deref().unwrap_or("max");
    command.args(["-M", "q35", "-accel", "tcg", "-cpu", &with_svm(cpu)]);
    if machine.icount && machine.interactive {
        // As below, but idle time passes as it does for whoever sits there, and the date is theirs.
        command.args(["-icount", "shift=0,sleep=on"]);
    } else if machine.icount {
        // One TSC tick is one instruction is one nanosecond, and the date is always the same.
        command.args(["-icount", "shift=0,sleep=off", "-seed", "1"]);
        command.args(["-rtc", "base=2026-01-01T00:00:00,clock=vm"]);
    }
}

/// `cpu` with SVM, unless it says itself whether it has it.
fn with_svm(cpu: &str) -> String {
    if cpu.split(',').any(|feature| matches!(feature, "+svm" | "-svm")) { cpu.into() } else { format!("{cpu},+svm") }
}

fn boot(command: &mut Command, machine: &Machine, system: &System, cmdline: &str, folder: &Path) -> Result<()> {
    if machine.firmware == Firmware::Pvh {
        command.arg("-kernel").arg(&system.kernel).args(["-append", cmdline]);
        if let Some(module) = machine.module.of(&system.initrd, folder)? {
            command.arg("-initrd").arg(module);
        }
        return Ok(());
    }
    if machine.firmware == Firmware::Disk {
        let disk = format!("if=none,id=disk,format=raw,snapshot=on,file={}", system.kernel.display());
        // Without graphics SeaBIOS shows its screen on the serial port, as in a virtual machine of ours.
        command.args(["-machine", "graphics=off", "-drive", &disk]);
        command.args(["-device", "virtio-blk-pci,drive=disk,disable-legacy=on"]);
        return Ok(());
    }
    if machine.firmware == Firmware::Ovmf {
        let variables = folder.join("uefi-variables.fd");
        fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables).context("cannot copy UEFI's variables")?;
        command
            .args(["-drive", "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd"])
            .arg("-drive")
            .arg(format!("if=pflash,format=raw,file={}", variables.display()));
    }
    // A VGA adapter: firmware and GRUB write their own messages there, away from the serial port.
    command.args(["-vga", "std"]);
    let image = iso::make(system, cmdline, machine, folder)?;
    match machine.firmware {
        Firmware::Grub => command.args(["-drive", &format!("if=ide,media=cdrom,readonly=on,file={}", image.display())]),
        _ => command.args(["-drive", &format!("if=ide,format=raw,snapshot=on,file={}", image.display())]),
    };
    Ok(())
}

/// Whether this host's KVM can be used and gives its guests VT-x or SVM.
pub fn kvm_can_nest() -> bool {
    let usable = fs::OpenOptions::new().read(true).write(true).open(KVM).is_ok();
    let nested = |module: &str| {
        fs::read_to_string(format!("/sys/module/{module}/parameters/nested"))
            .is_ok_and(|value| matches!(value.trim(), "Y" | "1"))
    };
    usable && (nested("kvm_intel") || nested("kvm_amd"))
}

/// Why KVM cannot be used where it cannot; `kvm` is the device.
pub fn why_no_kvm(kvm: &Path) -> &'static str {
    if kvm.exists() {
        "/dev/kvm is there, but cannot be opened or gives no nested VT-x or SVM"
    } else {
        "no /dev/kvm; TCG and Bochs need none"
    }
}

/// What QEMU said itself.
pub fn complaint(folder: &Path) -> String {
    let text = fs::read(folder.join(super::STDERR)).unwrap_or_default();
    if text.is_empty() { String::new() } else { crate::process::complaint(&text) }
}

/// Whether QEMU logged a triple fault.
pub fn triple_fault(folder: &Path) -> bool {
    fs::read(folder.join(LOG)).is_ok_and(|log| String::from_utf8_lossy(&log).contains("Triple fault"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::Emulator;

    #[test]
    fn what_is_missing_of_kvm_is_told() {
        assert!(why_no_kvm(Path::new("/nosuch")).starts_with("no /dev/kvm"));
        assert!(why_no_kvm(Path::new("/dev/null")).starts_with("/dev/kvm is there, but"));
    }

    #[test]
    fn who_sits_at_a_counted_machine_has_its_own_time() {
        let arguments = |interactive: bool, icount: bool| {
            let machine = Machine { interactive, icount, ..Machine::usual(Emulator::Qemu) };
            let mut command = Command::new("qemu");
            accelerate(&mut command, &machine);
            command.get_args().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
        };
        assert!(arguments(true, true).contains("-icount shift=0,sleep=on"));
        assert!(!arguments(true, true).contains("-rtc"));
        assert!(arguments(false, true).contains("-icount shift=0,sleep=off -seed 1 -rtc base=2026"));
        assert!(!arguments(true, false).contains("-icount"));
    }
}
