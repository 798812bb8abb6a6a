//! The emulators: one description of a machine, started in QEMU or in Bochs, with its serial port as a stream.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Deserialize;

use crate::build::System;
use crate::hosttools::{self, Tool};
use crate::process::Guarded;

pub mod bochs;
pub mod iso;
pub mod qemu;

/// Which emulator runs the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Emulator {
    /// QEMU: AMD SVM without any hardware support
    Qemu,
    /// Bochs: Intel VT-x without any hardware support
    Bochs,
}

impl Emulator {
    /// `cmdline` with the way in which the kernel ends a run here, unless it names one already. On real hardware the
    /// kernel touches none of these ports.
    fn with_exit(self, cmdline: &str) -> String {
        let exit = match self {
            Emulator::Qemu => "exit=debug",
            Emulator::Bochs => "exit=bochs",
        };
        if cmdline.split_whitespace().any(|word| word.starts_with("exit=")) {
            return cmdline.into();
        }
        format!("{exit} {cmdline}").trim_end().into()
    }

    /// What the emulator that ran in `folder` said itself.
    fn complaint(self, folder: &Path) -> String {
        match self {
            Emulator::Qemu => qemu::complaint(folder),
            Emulator::Bochs => bochs::complaint(folder),
        }
    }
}

/// How the machine finds its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// QEMU starts the kernel itself by its PVH note
    Pvh,
    /// BIOS starts GRUB from the disk image (QEMU: SeaBIOS)
    Seabios,
    /// UEFI starts GRUB from the disk image
    Ovmf,
    /// BIOS starts GRUB from a CD image
    Grub,
    /// BIOS starts whatever is on the disk image that stands in the kernel's place, a virtio disk (QEMU); for comparisons
    #[value(skip)]
    #[serde(skip)]
    Disk,
}

/// What makes the guest's instructions run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Accel {
    /// KVM where the host has it with nested VT-x or SVM, else TCG
    Auto,
    /// the host's own VT-x or SVM (written, but not tested by the project)
    Kvm,
    /// QEMU's translator: slow, and the same everywhere
    Tcg,
}

/// A machine to boot.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The emulator that plays it.
    pub emulator: Emulator,
    /// How it starts.
    pub firmware: Firmware,
    /// The emulator's name of the CPU model; its default when `None`.
    pub cpu: Option<String>,
    /// Number of CPUs.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory: u32,
    /// KVM or TCG; QEMU only.
    pub accel: Accel,
    /// Whether one instruction, of whichever CPU, takes one nanosecond of guest time, deterministically; the CPUs take turns in one thread
    /// of the host. QEMU only.
    pub icount: bool,
    /// Whether it waits for gdb; QEMU only.
    pub gdb: bool,
    /// Whether someone sits at its console.
    pub interactive: bool,
    /// What becomes of the module on its way.
    pub module: Module,
    /// Further arguments of QEMU, or lines of Bochs' configuration.
    pub extra: Vec<String>,
}

/// What a boot loader hands over for the module; for tests of what the kernel makes of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Module {
    /// All of it.
    #[default]
    Whole,
    /// All but its last quarter.
    Cut,
    /// Its first page.
    Page,
    /// Nothing.
    None,
}

impl Module {
    /// The file to hand over in place of `whole`, in `folder` if it had to be made.
    fn of(self, whole: &Path, folder: &Path) -> Result<Option<PathBuf>> {
        let part = match self {
            Module::Whole => return Ok(Some(whole.into())),
            Module::None => return Ok(None),
            Module::Cut | Module::Page => folder.join("part-of-module"),
        };
        let mut bytes = std::fs::read(whole).with_context(|| format!("cannot read {}", whole.display()))?;
        bytes.truncate(if self == Module::Cut { bytes.len() / 4 * 3 } else { 4096 });
        std::fs::write(&part, bytes).with_context(|| format!("cannot write {}", part.display()))?;
        Ok(Some(part))
    }
}

impl Machine {
    /// What is usual on `emulator`: one CPU, 1 GiB, the quickest way to boot.
    pub fn usual(emulator: Emulator) -> Self {
        Self {
            emulator,
            firmware: if emulator == Emulator::Qemu { Firmware::Pvh } else { Firmware::Grub },
            cpu: None,
            cpus: 1,
            memory: 1024,
            accel: Accel::Tcg,
            icount: false,
            gdb: false,
            interactive: false,
            module: Module::Whole,
            extra: Vec::new(),
        }
    }

    /// The virtualization that the system finds in it: `svm` or `vt-x`; `host` under KVM.
    pub fn vendor(&self) -> &'static str {
        match self.emulator {
            Emulator::Qemu if self.accel == Accel::Kvm => "host",
            Emulator::Qemu => "svm",
            Emulator::Bochs if self.bochs_model() == "ryzen" => "svm",
            Emulator::Bochs => "vt-x",
        }
    }

    /// The CPU model of a Bochs machine.
    pub fn bochs_model(&self) -> &str {
        self.cpu.as_deref().unwrap_or(bochs::DEFAULT_CPU)
    }

    /// A short name that tells emulator, virtualization, firmware or CPU model, and CPUs: `qemu-svm-pvh-1cpu`.
    pub fn label(&self) -> String {
        let cpus = format!("{}cpu", self.cpus);
        match self.emulator {
            Emulator::Qemu => {
                let firmware = format!("{:?}", self.firmware).to_lowercase();
                let model = self.cpu.as_ref().map(|cpu| format!("{}-", cpu.replace(',', "-"))).unwrap_or_default();
                let icount = if self.icount { "-icount" } else { "" };
                format!("qemu-{}-{firmware}-{model}{cpus}{icount}", self.vendor())
            }
            Emulator::Bochs => {
                let model = self.bochs_model().trim_start_matches("corei7_");
                let model = model.split_once("_4770").map_or(model, |(name, _)| name);
                format!("bochs-{}-{}-{cpus}", self.vendor().replace('-', ""), model.replace('_', "-"))
            }
        }
    }

    /// How many threads of the host its processors run in.
    pub fn threads(&self) -> u32 {
        if self.emulator == Emulator::Bochs || self.icount { 1 } else { self.cpus }
    }

    /// The groups of host tools it needs.
    pub fn tools(&self) -> Vec<&'static [Tool]> {
        let mut tools = vec![match self.emulator {
            Emulator::Qemu => hosttools::QEMU,
            Emulator::Bochs => hosttools::BOCHS,
        }];
        if self.firmware != Firmware::Pvh {
            tools.push(hosttools::GRUB);
        }
        if self.firmware == Firmware::Ovmf {
            tools.push(hosttools::OVMF);
        }
        tools
    }

    /// Says what cannot be had in this combination.
    pub fn check(&self) -> Result<()> {
        match (self.emulator, self.firmware) {
            (Emulator::Bochs, Firmware::Pvh | Firmware::Ovmf) => {
                bail!("Bochs starts systems by GRUB from a BIOS only (firmware = \"grub\" or \"seabios\")")
            }
            (Emulator::Bochs, _) if self.gdb => {
                bail!("--gdb works with QEMU; Debian's Bochs has no gdb stub")
            }
            (Emulator::Bochs, _) if self.accel == Accel::Kvm => {
                bail!("Bochs knows no KVM; leave --accel away")
            }
            (Emulator::Qemu, _) if self.accel == Accel::Kvm && !qemu::kvm_can_nest() => {
                bail!("--accel kvm cannot be had here: {}", qemu::why_no_kvm(Path::new(qemu::KVM)))
            }
            (Emulator::Bochs, _) if self.icount => {
                bail!("Bochs counts instructions as it is; icount is QEMU's")
            }
            (_, Firmware::Seabios | Firmware::Ovmf) if self.module != Module::Whole => {
                bail!("the disk image holds whole modules only; take pvh or grub")
            }
            _ if self.cpus == 0 => bail!("a machine needs a CPU"),
            _ if self.memory < 4 => bail!("{} MiB of memory is too little for an emulator", self.memory),
            _ => Ok(()),
        }
    }

    /// Starts `system` with the kernel command line `cmdline`. Logs and temporary files go to `folder`.
    pub fn start(&self, system: &System, cmdline: &str, folder: &Path) -> Result<Running> {
        self.check()?;
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // The emulator connects to xtask, not the other way round: nothing the system says is lost.
        let listener = listen()?;
        let second = if system.control { Some(listen()?) } else { None };
        let mut ports = vec![listener.local_addr()?.port()];
        if let Some(listener) = &second {
            ports.push(listener.local_addr()?.port());
        }
        let cmdline = self.emulator.with_exit(cmdline);
        let mut process = match self.emulator {
            Emulator::Qemu => qemu::start(self, system, &cmdline, folder, &ports)?,
            Emulator::Bochs => bochs::start(self, system, &cmdline, folder, &ports)?,
        };
        let mut accept = |listener: &TcpListener| accept(listener, &mut process, || self.emulator.complaint(folder));
        let serial = accept(&listener)?;
        let control = second.as_ref().map(accept).transpose()?;
        Ok(Running { process, serial, control, folder: folder.to_path_buf(), emulator: self.emulator })
    }
}

/// A machine that runs. Dropping it ends it.
pub struct Running {
    /// The emulator.
    pub process: Guarded,
    /// The first serial port.
    pub serial: TcpStream,
    /// The second one, of a system with a control channel.
    pub control: Option<TcpStream>,
    /// Where the emulator's logs are.
    pub folder: PathBuf,
    emulator: Emulator,
}

impl Running {
    /// What the emulator itself wrote to its standard error or log, when it had something to say.
    pub fn complaint(&self) -> String {
        self.emulator.complaint(&self.folder)
    }

    /// Whether the emulator's log tells of a triple fault of the machine.
    pub fn triple_fault(&self) -> bool {
        match self.emulator {
            Emulator::Qemu => qemu::triple_fault(&self.folder),
            Emulator::Bochs => bochs::triple_fault(&self.folder),
        }
    }
}

/// Where the emulator shall connect a serial port to.
fn listen() -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no local port for a serial port")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Waits for the emulator to open its serial port, or to die trying.
fn accept(listener: &TcpListener, process: &mut Guarded, complaint: impl Fn() -> String) -> Result<TcpStream> {
    const LIMIT: Duration = Duration::from_secs(60);
    let start = Instant::now();
    loop {
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            stream.set_nodelay(true)?;
            return Ok(stream);
        }
        if let Some(status) = process.ended()? {
            bail!("the emulator did not start ({}): {}", describe(status), complaint());
        }
        if start.elapsed() > LIMIT {
            bail!("the emulator opened no serial port within {} s", LIMIT.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An exit status in words.
pub fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (_, Some(signal)) => format!("ended by signal {signal}"),
        _ => "ended".into(),
    }
}

/// The file in the log folder that takes the emulator's standard output and error.
pub const STDERR: &str = "emulator.txt";

/// Opens the file for the emulator's own output, for standard output and standard error.
fn own_output(folder: &Path) -> Result<(std::fs::File, std::fs::File)> {
    let file = std::fs::File::create(folder.join(STDERR))?;
    Ok((file.try_clone()?, file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_tell_emulator_vendor_firmware_and_cpus() {
        let mut machine = Machine::usual(Emulator::Qemu);
        assert_eq!(machine.label(), "qemu-svm-pvh-1cpu");
        machine.firmware = Firmware::Ovmf;
        machine.cpus = 4;
        assert_eq!(machine.label(), "qemu-svm-ovmf-4cpu");
        let mut machine = Machine::usual(Emulator::Bochs);
        assert_eq!(machine.label(), "bochs-vtx-haswell-1cpu");
        machine.cpu = Some("corei7_skylake_x".into());
        assert_eq!(machine.label(), "bochs-vtx-skylake-x-1cpu");
        machine.cpu = Some("ryzen".into());
        machine.cpus = 2;
        assert_eq!(machine.label(), "bochs-svm-ryzen-2cpu");
    }

    #[test]
    fn the_kernel_is_told_how_to_end_a_run() {
        assert_eq!(Emulator::Qemu.with_exit(""), "exit=debug");
        assert_eq!(Emulator::Bochs.with_exit("selftest=hang"), "exit=bochs selftest=hang");
        assert_eq!(Emulator::Bochs.with_exit("a exit=none"), "a exit=none");
    }

    #[test]
    fn impossible_machines_are_refused() {
        let mut machine = Machine::usual(Emulator::Bochs);
        assert!(machine.check().is_ok());
        machine.firmware = Firmware::Pvh;
        assert!(machine.check().is_err());
        assert!(Machine { icount: true, ..Machine::usual(Emulator::Bochs) }.check().is_err());
        let machine = Machine { accel: Accel::Kvm, ..Machine::usual(Emulator::Qemu) };
        assert_eq!(machine.check().is_ok(), qemu::kvm_can_nest());
    }
}
