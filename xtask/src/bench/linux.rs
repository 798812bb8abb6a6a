//! A whole Linux in a virtual machine, compared with the same one booted directly in the same emulator: by the same entry, with
//! the same memory, command line and initial RAM disk, whose one program (`tests/linux-init`) tells ticks of the TSC.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Figure, follow};
use crate::build::{self, Images, System};
use crate::cpio::Archive;
use crate::emulator::{Firmware, Machine};
use crate::{guest, paths, progress};

/// The system with the virtual machine.
const SYSTEM: &str = "linux";
/// Memory of the guest, and of the machine that is booted directly.
const MEMORY_MIB: u32 = 128;
/// How to boot, and the figure.
const BOOTS: [(&str, &str); 2] =
    [("vm.boot.quiet", "console=ttyS0 quiet"), ("vm.boot.serial_log", "console=ttyS0 -- boot")];
/// The same for what is measured up to the program and no further.
const QUIET: &str = "console=ttyS0 quiet -- boot";
/// Two processors on one CPU, compared with one.
const SMP: &str = "vm.boot.smp2";
/// How long SeaBIOS, GRUB and Linux take from the reset vector to the program, from a disk.
pub const FIRMWARE: &str = "vm.boot.firmware";
/// The system that is booted for it.
pub const FIRMWARE_SYSTEM: &str = "firmware";
/// What the program measures, in the first of the boots.
const CALLS: [&str; 4] = ["getppid", "fork_wait", "page_fault", "pipe"];
/// What the machine takes beyond its guest's memory, told by the root task in the first of the boots.
const OVERHEAD: &str = "vm.memory_overhead";
/// What is counted inside of the guest.
const PREFIX: &str = "vm.guest.";

/// What one side said.
struct Side {
    /// When the kernel was entered.
    entered: f64,
    /// Ticks a round, by name.
    ticks: BTreeMap<String, f64>,
    /// Its devices and how long it was idle.
    about: Vec<String>,
    /// Bytes of untyped memory that went into the machine and its monitor.
    memory: Option<f64>,
}

impl Side {
    /// Ticks from the entry to the first instruction of the program.
    fn first(&self) -> Option<f64> {
        self.ticks.get("first").map(|first| first - self.entered)
    }
}

/// Names of all of them.
pub fn names() -> Vec<String> {
    let calls = CALLS.iter().map(|name| format!("{PREFIX}{name}"));
    BOOTS.iter().map(|(name, _)| *name).chain([SMP, FIRMWARE, OVERHEAD]).map(str::to_owned).chain(calls).collect()
}

/// Measures what is wanted, one boot or pair of boots after the other, and hands over what each of them gave.
pub fn measure(
    wanted: impl Fn(&[&str]) -> bool,
    images: &Images,
    machine: &Machine,
    mut take: impl FnMut(&str, Result<Vec<Figure>>),
) {
    for (index, (name, cmdline)) in BOOTS.into_iter().enumerate() {
        // The first of them also gives what is counted inside of the guest, and the machine's memory.
        let calls = if index == 0 { CALLS.map(|call| format!("{PREFIX}{call}")).to_vec() } else { Vec::new() };
        let mut names = vec![name];
        names.extend(calls.iter().map(String::as_str));
        names.extend((index == 0).then_some(OVERHEAD));
        if wanted(&names) {
            let sides = both(name, cmdline, images, machine);
            take(name, sides.and_then(|(direct, virtual_)| compared(&names, &direct, &virtual_)));
        }
    }
    if wanted(&[SMP]) {
        take(SMP, smp(images, machine).map(|figure| vec![figure]));
    }
    if wanted(&[FIRMWARE]) {
        take(FIRMWARE, firmware(images, machine).map(|figure| vec![figure]));
    }
}

/// What two boots say about these figures.
fn compared(names: &[&str], direct: &Side, virtual_: &Side) -> Result<Vec<Figure>> {
    let one = |name: &&str| match (*name, name.strip_prefix(PREFIX)) {
        (OVERHEAD, _) => {
            let all = virtual_.memory.context("the root task does not tell the machine's memory")?;
            Ok(figure(OVERHEAD, "bytes", all - f64::from(MEMORY_MIB) * f64::from(1 << 20)))
        }
        (name, Some(call)) => ratio(name, virtual_.ticks.get(call).copied(), direct.ticks.get(call).copied()),
        (name, None) => ratio(name, virtual_.first(), direct.first()),
    };
    names.iter().map(one).collect()
}

/// Two processors on one CPU, divided by one.
fn smp(images: &Images, machine: &Machine) -> Result<Figure> {
    let first = |cpus: u32| -> Result<Option<f64>> {
        let folder = folder(SMP, machine)?;
        let initrd = program(&folder, images)?;
        let side = in_vm(&format!("{SMP}, {cpus} vCPUs"), QUIET, cpus, &initrd, images, machine, &folder)?;
        eprintln!("{SMP}, {cpus} vCPUs: {}", side.about.join("; "));
        Ok(side.first())
    };
    Ok(Figure { unit: "of one".into(), ..ratio(SMP, first(2)?, first(1)?)? })
}

fn folder(name: &str, machine: &Machine) -> Result<PathBuf> {
    let folder = paths::target().join("bench").join(machine.label()).join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// The initial RAM disk with the one program, in a file.
fn program(folder: &Path, images: &Images) -> Result<PathBuf> {
    let initrd = folder.join("init.cpio");
    fs::write(&initrd, initramfs(image(images, "moira-linux-init")?)?)?;
    Ok(initrd)
}

/// Boots in a virtual machine with so many processors on one CPU.
fn in_vm(
    what: &str,
    cmdline: &str,
    cpus: u32,
    initrd: &Path,
    images: &Images,
    machine: &Machine,
    folder: &Path,
) -> Result<Side> {
    let path = initrd.to_str().context("the target folder's name is not Unicode")?;
    let options = [
        ("guest-initrd", path.to_owned()),
        ("guest-cmdline", cmdline.to_owned()),
        ("guest-memory", format!("{MEMORY_MIB}MiB")),
        ("guest-cpus", cpus.to_string()),
    ];
    let options = options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let system = build::system(SYSTEM, images, &options)?;
    boot(what, machine, &system, &folder.join(format!("vm-{cpus}")), None)
}

/// The same disk image in a virtual machine with firmware, and directly in the emulator with its own SeaBIOS. The emulator's disk is a file of this
/// host, whose answers come when they come: the second one does not repeat to the tick.
fn firmware(images: &Images, machine: &Machine) -> Result<Figure> {
    let folder = folder(FIRMWARE, machine)?;
    let initrd = program(&folder, images)?;
    let disk = folder.join("disk.img");
    crate::image::build_linux(&guest::linux(&paths::cache()?)?.kernel, &initrd, QUIET, &disk)?;
    let path = disk.to_str().context("the target folder's name is not Unicode")?;
    let options = [("guest-disk", path.to_owned()), ("guest-memory", format!("{MEMORY_MIB}MiB"))];
    let options = options.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let system = build::system(FIRMWARE_SYSTEM, images, &options)?;
    let virtual_ = boot(&format!("{FIRMWARE}, in a VM"), machine, &system, &folder.join("vm"), None)?;
    let direct = System { kernel: disk.clone(), kernel_symbols: disk, initrd, control: false };
    let direct_machine = Machine { memory: MEMORY_MIB, firmware: Firmware::Disk, ..machine.clone() };
    // The TSC is zero at the reset vector.
    let direct = boot(&format!("{FIRMWARE}, direct"), &direct_machine, &direct, &folder.join("direct"), Some(0.0))?;
    for (what, side) in [("direct", &direct), ("in a VM", &virtual_)] {
        eprintln!("{FIRMWARE}, {what}: {}", side.about.join("; "));
    }
    ratio(FIRMWARE, virtual_.first(), direct.first())
}

/// Boots once directly and once in a virtual machine.
fn both(name: &str, cmdline: &str, images: &Images, machine: &Machine) -> Result<(Side, Side)> {
    let folder = folder(name, machine)?;
    let kernel = guest::linux(&paths::cache()?)?.kernel;
    let initrd = program(&folder, images)?;
    let module = folder.join("direct.module");
    fs::write(&module, pack(cmdline, &fs::read(&kernel)?, &fs::read(&initrd)?))?;
    let loader = image(images, "moira-bench-loader")?.to_path_buf();
    let direct = System { kernel: loader.clone(), kernel_symbols: loader, initrd: module, control: false };
    let direct_machine = Machine { memory: MEMORY_MIB, ..machine.clone() };
    let direct = boot(&format!("{name}, direct"), &direct_machine, &direct, &folder.join("direct"), None)?;
    let virtual_ = in_vm(&format!("{name}, in a VM"), cmdline, 1, &initrd, images, machine, &folder)?;
    for (what, side) in [("direct", &direct), ("in a VM", &virtual_)] {
        eprintln!("{name}, {what}: {}", side.about.join("; "));
    }
    Ok((direct, virtual_))
}

fn image<'a>(images: &'a Images, name: &str) -> Result<&'a Path> {
    images.tasks.get(name).map(PathBuf::as_path).with_context(|| format!("the build made no {name}"))
}

/// The program as `/init`, with a console to speak on.
fn initramfs(init: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::new();
    for folder in ["dev", "proc"] {
        archive.folder(folder);
    }
    archive.character_device("dev/console", 5, 1);
    let program = fs::read(init)?;
    archive.program("init", &program).map_err(|_| anyhow::anyhow!("the program is too large"))?;
    Ok(archive.finish())
}

/// What `tests/loader` takes: a page with a magic word and three lengths, then the parts, each on a page.
fn pack(cmdline: &str, kernel: &[u8], initrd: &[u8]) -> Vec<u8> {
    const PAGE: usize = 4096;
    let parts = [cmdline.as_bytes(), kernel, initrd];
    let mut bytes = b"MOIRALDR".to_vec();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_le_bytes());
    }
    for part in parts {
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        bytes.extend_from_slice(part);
    }
    bytes
}

/// `entered`: when the guest was entered, if it cannot say so itself.
fn boot(what: &str, machine: &Machine, system: &System, folder: &Path, entered: Option<f64>) -> Result<Side> {
    fs::create_dir_all(folder)?;
    let step = progress::step(what.to_owned());
    let watch = follow(machine, system, &format!("{} log=debug", super::OFF), folder)?;
    step.finish();
    let log = folder.join("serial.log");
    fs::write(&log, watch.text())?;
    read(watch.text(), entered).with_context(|| format!("{what}: the log is {}", log.display()))
}

/// Reads what one side said, wherever in its lines.
fn read(log: &str, entered: Option<f64>) -> Result<Side> {
    let after =
        |key: &'static str| log.lines().filter_map(move |line| line.split_once(key).map(|(_, rest)| rest.trim()));
    let entered = match entered {
        Some(entered) => entered,
        None => after("starts at tick ").next().context("it does not say when the guest was entered")?.parse()?,
    };
    let mut ticks = BTreeMap::new();
    for line in after("ticks: ") {
        let mut words = line.split_whitespace();
        let mut number = |name: &str| words.next().with_context(|| format!("`{line}` has no {name}"));
        let (name, all, rounds) = (number("name")?, number("ticks")?, number("rounds")?);
        ticks.insert(name.to_owned(), all.parse::<f64>()? / rounds.parse::<f64>()?);
    }
    let devices: Vec<&str> = after("device: ").collect();
    let idle = after("up and idle: ").next().unwrap_or("?");
    let about = vec![format!("PCI devices {}", devices.join(", ")), format!("seconds up and idle {idle}")];
    let memory = after("root: task linux: ").next().and_then(|rest| {
        let (own, rest) = rest.split_once(" bytes of its own, ")?;
        let (lent, regions) = rest.split_once(" lent, ")?;
        let parts = [own, lent, regions.strip_suffix(" in regions")?].map(|part| part.parse::<f64>());
        parts.into_iter().sum::<Result<f64, _>>().ok()
    });
    Ok(Side { entered, ticks, about, memory })
}

fn ratio(name: &str, virtual_: Option<f64>, direct: Option<f64>) -> Result<Figure> {
    let (virtual_, direct) = virtual_.zip(direct).with_context(|| format!("{name}: one side did not measure it"))?;
    eprintln!("{name}: {virtual_:.0} ticks, {direct:.0} in what it is compared with");
    Ok(figure(name, "of direct", (virtual_ / direct * 10_000.0).round() / 10_000.0))
}

fn figure(name: &str, unit: &str, value: f64) -> Figure {
    Figure { name: name.into(), unit: unit.into(), minimum: value, median: value, maximum: value, samples: 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_read_wherever_its_words_stand() {
        let log = "linux: the guest starts at tick 100\nlinux: ticks: first 1100 1\r\nlinux: ticks: pipe 5000 50\ndevice: 0008\nroot: task linux: 4096 bytes of its own, 8192 lent, 4096 in regions\n";
        let side = read(log, None).unwrap();
        assert_eq!((side.entered, side.ticks["first"], side.ticks["pipe"]), (100.0, 1100.0, 100.0));
        assert_eq!(side.memory, Some(16384.0));
        assert!(read("ticks: first 1 1\n", None).is_err(), "no entry");
        assert!(read("starts at tick 1\nticks: first\n", None).is_err(), "no number");
    }

    #[test]
    fn two_sides_give_the_figures_that_both_measured() {
        let side = |ticks: &str| read(&format!("starts at tick 100\n{ticks}"), None).unwrap();
        let direct = side("ticks: first 1100 1\nticks: pipe 5000 50\n");
        let virtual_ = side("ticks: first 1200 1\nticks: pipe 5050 50\n");
        let values = |names: &[&str]| -> Vec<f64> {
            compared(names, &direct, &virtual_).unwrap().iter().map(|figure| figure.median).collect()
        };
        assert_eq!(values(&[BOOTS[0].0, "vm.guest.pipe"]), [1.1, 1.01]);
        assert!(compared(&["vm.guest.getppid"], &direct, &virtual_).is_err(), "neither measured it");
        assert!(compared(&[OVERHEAD], &direct, &virtual_).is_err(), "nobody told the memory");
    }

    #[test]
    fn the_loader_finds_the_parts_on_pages() {
        let module = pack("quiet", &[1; 5000], &[2; 10]);
        assert_eq!(&module[..8], b"MOIRALDR");
        assert_eq!(&module[16..24], 5000u64.to_le_bytes());
        assert_eq!((&module[4096..4101], module[8192], module[16384], module.len()), (&b"quiet"[..], 1, 2, 16394));
    }
}
