//! `doctor`: what this machine has for building and testing Moira, and whether it could run it.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;

use crate::emulator::qemu;
use crate::hosttools::{self, Tool};
use crate::{paths, process, toolchain};

/// Prints the report. Missing tools are no failure: `run` and `test` install them.
pub fn main() -> Result<ExitCode> {
    compilers();
    tools();
    emulators();
    bare_metal();
    Ok(ExitCode::SUCCESS)
}

fn line(good: bool, name: &str, text: &str) {
    println!("  {} {name:<18} {text}", if good { "yes" } else { "no " });
}

/// The first line that a program prints about its version, with or without success.
fn version(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).stdin(std::process::Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().map(str::trim).find(|line| line.chars().any(|c| c.is_ascii_digit())).unwrap_or("").to_string()
}

fn compilers() {
    println!("compilers for bare metal (the first that is there is taken)");
    let rustup = toolchain::rustup_has_target();
    let own = process::output(Command::new("rustc").arg("-V"));
    let own = own.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string()).unwrap_or_default();
    line(rustup, "rustup", &format!("{own}, target {}", toolchain::TARGET));
    let debian = hosttools::missing(&[hosttools::DEBIAN_RUST]).is_empty();
    let version = if debian { version("/usr/bin/rustc", "-V") } else { "rustc-web cargo-web rust-web-src".into() };
    line(debian, "Debian", &version);
    if let Ok(cache) = paths::cache() {
        let cores = fs::read_dir(&cache).map(|entries| entries.flatten().count()).unwrap_or(0);
        line(cores > 0, "cache", &format!("{} ({cores} entries)", cache.display()));
    }
}

fn tools() {
    println!("\nhost tools (`run` and `test` install what they miss)");
    let groups: [(&str, &[&[Tool]]); 10] = [
        ("QEMU", &[hosttools::QEMU]),
        ("UEFI firmware", &[hosttools::OVMF]),
        ("Bochs", &[hosttools::BOCHS]),
        ("GRUB", &[hosttools::GRUB]),
        ("objcopy", &[hosttools::BINUTILS]),
        ("ACPI compiler", &[hosttools::ACPICA]),
        ("lld", &[hosttools::LLD]),
        ("C++ compiler", &[hosttools::CXX]),
        ("Debian's clippy", &[hosttools::DEBIAN_CLIPPY]),
        ("gdb", &[hosttools::GDB]),
    ];
    for (name, group) in groups {
        let missing = hosttools::missing(group);
        let wanted = group.iter().flat_map(|tools| tools.iter()).next();
        let text = match missing.first() {
            None => wanted.map(|tool| tool.purpose.to_string()).unwrap_or_default(),
            Some(_) => {
                let list = missing.iter().map(|tool| format!("{} (package {})", tool.name, tool.package));
                format!("missing: {}", list.collect::<Vec<_>>().join(", "))
            }
        };
        line(missing.is_empty(), name, &text);
    }
}

fn emulators() {
    println!("\nvirtualization that a system under test finds");
    let qemu = paths::which("qemu-system-x86_64").is_some();
    let shown = if qemu { version("qemu-system-x86_64", "--version") } else { "not installed".into() };
    line(qemu, "AMD SVM, NPT", &format!("QEMU with TCG: {shown}"));
    let bochs = hosttools::missing(&[hosttools::BOCHS]).is_empty();
    let shown = if bochs { version("bochs", "--help") } else { "not installed".into() };
    line(bochs, "Intel VT-x, EPT", &format!("Bochs, corei7_haswell_4770 and corei7_skylake_x: {shown}"));
    line(bochs, "AMD SVM", "Bochs, ryzen");
    let nest = qemu::kvm_can_nest();
    let why = if nest {
        "/dev/kvm with nesting: `run` uses it unless --accel tcg is given (untested by the project)"
    } else {
        qemu::why_no_kvm(Path::new(qemu::KVM))
    };
    line(nest, "KVM", why);
}

fn bare_metal() {
    println!("\ncould this machine run Moira on bare metal?");
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = Cpu::of(&info);
    println!("  {}", cpu.model);
    if cpu.hypervisor {
        println!("  this is a virtual machine: what follows is what it is given");
    }
    line(cpu.vmx || cpu.svm, "VT-x or SVM", cpu.virtualization());
    line(
        cpu.ept || cpu.npt,
        "EPT or NPT",
        if cpu.ept {
            "ept"
        } else if cpu.npt {
            "npt"
        } else {
            ""
        },
    );
    line(cpu.x2apic, "x2APIC", if cpu.x2apic { "" } else { "xAPIC is used instead" });
    line(cpu.tsc, "steady TSC", if cpu.tsc { "constant and nonstop" } else { "it may change its pace" });
    let iommu = Iommu::of(Path::new("/sys"));
    line(iommu != Iommu::None, "IOMMU", iommu.text());
    let needs = (cpu.vmx && cpu.ept) || (cpu.svm && cpu.npt);
    println!(
        "  {}",
        match (needs && cpu.tsc, iommu) {
            (true, Iommu::None) => "yes, but without an IOMMU drivers must be trusted",
            (true, _) => "yes",
            (false, _) => "no, as far as this kernel tells",
        }
    );
}

/// What Linux tells about the CPU.
#[derive(Debug, Default)]
struct Cpu {
    model: String,
    vmx: bool,
    svm: bool,
    ept: bool,
    npt: bool,
    x2apic: bool,
    tsc: bool,
    hypervisor: bool,
}

impl Cpu {
    fn of(info: &str) -> Self {
        let field = |name: &str| {
            let line = info.lines().find(|line| line.split(':').next().is_some_and(|key| key.trim() == name));
            line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim()).unwrap_or_default()
        };
        let flags: Vec<&str> = field("flags").split_whitespace().chain(field("vmx flags").split_whitespace()).collect();
        let has = |flag: &str| flags.contains(&flag);
        Self {
            model: field("model name").to_string(),
            vmx: has("vmx"),
            svm: has("svm"),
            ept: has("ept"),
            npt: has("npt"),
            x2apic: has("x2apic"),
            tsc: has("constant_tsc") && has("nonstop_tsc"),
            hypervisor: has("hypervisor"),
        }
    }

    fn virtualization(&self) -> &'static str {
        match (self.vmx, self.svm) {
            (true, _) => "VT-x",
            (_, true) => "SVM",
            _ => "none, or switched off in the firmware",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Iommu {
    InUse,
    Described,
    None,
}

impl Iommu {
    fn of(sys: &Path) -> Self {
        let in_use = fs::read_dir(sys.join("class/iommu")).is_ok_and(|mut entries| entries.next().is_some());
        let described = ["DMAR", "IVRS"].iter().any(|table| sys.join("firmware/acpi/tables").join(table).exists());
        match (in_use, described) {
            (true, _) => Self::InUse,
            (_, true) => Self::Described,
            _ => Self::None,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::InUse => "in use by Linux",
            Self::Described => "described by ACPI, not in use by Linux",
            Self::None => "none described by ACPI, or switched off in the firmware",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intel_and_amd_are_told_apart() {
        let intel = "processor\t: 0\nmodel name\t: Core\nflags\t\t: fpu vmx x2apic constant_tsc nonstop_tsc\n\
            vmx flags\t: vnmi ept vpid\n";
        let cpu = Cpu::of(intel);
        assert!(cpu.vmx && cpu.ept && cpu.tsc && cpu.x2apic && !cpu.svm && !cpu.hypervisor);
        let cpu = Cpu::of("flags : svm npt hypervisor constant_tsc\n");
        assert!(cpu.svm && cpu.npt && cpu.hypervisor && !cpu.tsc);
        assert!(!Cpu::of("").vmx);
    }
}
