//! `run`: boot a system with this terminal as its console.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, IsTerminal, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::cli::{Global, parse_memory};
use crate::console::{End, Watch};
use crate::control::client::Client;
use crate::control::hub::Hub;
use crate::control::{commands, gdb};
use crate::emulator::{Accel, Emulator, Firmware, Machine, Running, describe, qemu};
use crate::hosttools;
use crate::process::printed;
use crate::symbols::Symbols;
use crate::{guest, paths, system, tty};

/// What the help page says below the options.
pub const AFTER_HELP: &str = "Keys: Ctrl-A x leaves, Ctrl-A Ctrl-A sends Ctrl-A; all others go to the system.\n\
    Exit status: 0 the system ended as it should, 1 it did not, 2 it could not be started, 3 you left.";

/// How to boot.
#[derive(clap::Args, Debug)]
pub struct Options {
    /// A file of initrd/systems, without `.toml` [default: linux, or firmware with --firmware]
    #[arg(long)]
    system: Option<String>,
    /// Which emulator: QEMU gives the system AMD SVM, Bochs gives it Intel VT-x
    #[arg(long, default_value = "qemu")]
    emulator: Emulator,
    /// What runs the instructions, with QEMU
    #[arg(long)]
    accel: Option<Accel>,
    /// How Moira itself starts [default: pvh with QEMU, grub with Bochs]
    #[arg(long)]
    boot: Option<Firmware>,
    /// The emulator's name of the CPU model [default: max with QEMU, corei7_haswell_4770 with Bochs]
    #[arg(long, value_name = "MODEL")]
    cpu: Option<String>,
    /// Number of CPUs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory, as 512M or 2G
    #[arg(long, default_value = "1G", value_parser = parse_memory, value_name = "SIZE")]
    memory: u32,
    /// The kernel's command line
    #[arg(long, default_value = "", hide_default_value = true)]
    cmdline: String,
    /// Wait for gdb before the first instruction (QEMU)
    #[arg(long)]
    gdb: bool,
    /// Boot this ELF in place of the kernel
    #[arg(long, value_name = "ELF", hide = true)]
    kernel: Option<PathBuf>,
    #[command(flatten)]
    guest: GuestOptions,
    /// Arguments for QEMU, or lines for Bochs' configuration
    #[arg(last = true, help_heading = "Arguments")]
    extra: Vec<String>,
}

/// What goes into the system's virtual machine.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options for systems with a guest")]
pub struct GuestOptions {
    /// The guest's kernel: a Linux bzImage, an ELF file with a PVH note, a Multiboot kernel, any other 64-bit ELF file; or
    /// guest:NAME for one that xtask fetches (docs/guests.md). Without --guest-initrd it gets no RAM disk
    #[arg(long, value_name = "FILE")]
    guest_kernel: Option<PathBuf>,
    /// The guest's initial RAM disk
    #[arg(long, value_name = "FILE")]
    guest_initrd: Option<PathBuf>,
    /// A module for the guest's kernel, with its command line; may be given several times
    #[arg(long, value_name = "FILE[:TEXT]")]
    guest_module: Vec<String>,
    /// The guest's disk image
    #[arg(long, value_name = "FILE")]
    guest_disk: Option<PathBuf>,
    /// Firmware that starts the guest from its disk: seabios, ovmf, or an image
    #[arg(long, value_name = "FIRMWARE")]
    firmware: Option<String>,
    /// The guest's kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    guest_cmdline: Option<String>,
    /// The guest's processors: how many, all on one CPU, or for each the CPU that it lives on, as 0,1
    #[arg(long, value_name = "NUMBER|CPUS")]
    guest_cpus: Option<String>,
    /// Let gdb debug the guest over this port; without one, 1235. With several guests, the first one
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "1235")]
    guest_gdb: Option<u16>,
    /// The guest's memory, as 512M or 2G
    #[arg(long, value_parser = parse_memory, value_name = "SIZE")]
    guest_memory: Option<u32>,
    /// A value for another entry of the manifest's [options]; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
}

/// Parses `NAME=VALUE`.
pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no `=`"))?;
    Ok((name.to_string(), value.to_string()))
}

impl GuestOptions {
    /// The system that is meant where none is named.
    pub fn default_system(&self) -> String {
        let name = if self.firmware.is_some() { "firmware" } else { "linux" };
        if paths::system_manifest(name).exists() { name } else { "first" }.into()
    }

    /// The options that were given, as they are typed, with the manifest's option that each is for.
    fn typed(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            (self.guest_kernel.is_some(), "--guest-kernel", "guest-kernel"),
            (self.guest_initrd.is_some(), "--guest-initrd", "guest-initrd"),
            (!self.guest_module.is_empty(), "--guest-module", "guest-modules"),
            (self.guest_cmdline.is_some(), "--guest-cmdline", "guest-cmdline"),
            (self.firmware.is_some(), "--firmware", "guest-firmware"),
            (self.guest_disk.is_some(), "--guest-disk", "guest-disk"),
            (self.guest_cpus.is_some(), "--guest-cpus", "guest-cpus"),
            (self.guest_memory.is_some(), "--guest-memory", "guest-memory"),
        ];
        all.into_iter().filter(|(given, ..)| *given).map(|(_, flag, option)| (flag, option)).collect()
    }

    /// Refuses options that contradict each other, or that the system `name` has no use for.
    pub fn check(&self, name: &str) -> Result<()> {
        const KERNELS: [&str; 4] = ["guest-kernel", "guest-initrd", "guest-modules", "guest-cmdline"];
        let typed = self.typed();
        if self.firmware.is_some()
            && let Some((flag, _)) = typed.iter().find(|(_, option)| KERNELS.contains(option))
        {
            bail!("{flag} does not go with --firmware: what boots is on the disk");
        }
        let has = system::settings(&paths::root(), name, &BTreeMap::new())?;
        let Some((flag, option)) = typed.into_iter().find(|(_, option)| !has.contains_key(*option)) else {
            return Ok(());
        };
        if option == "guest-firmware" {
            bail!("--firmware chooses the system `firmware` and cannot be combined with --system {name}");
        }
        if !has.keys().any(|option| option.starts_with("guest-")) {
            bail!("system {name} has no guest that {flag} could be for");
        }
        bail!("{flag} does not go with system {name}, whose manifest has no option {option}")
    }

    /// Whether the firmware may be UEFI: OVMF, or one of the user's own.
    fn may_be_uefi(&self) -> bool {
        self.firmware.as_deref().is_some_and(|firmware| firmware != "seabios")
    }

    /// CPUs that the machine needs for the guest's processors to live on.
    fn host_cpus(&self) -> u32 {
        let list = self.guest_cpus.as_deref().filter(|text| text.contains(','));
        let highest = list.and_then(|list| list.split(',').filter_map(|cpu| cpu.trim().parse::<u32>().ok()).max());
        highest.map_or(1, |cpu| cpu.saturating_add(1))
    }

    /// The values by the names that manifests give them.
    pub fn values(&self) -> Result<BTreeMap<String, String>> {
        let mut values: BTreeMap<String, String> = self.set.iter().cloned().collect();
        let files = [
            ("guest-kernel", &self.guest_kernel),
            ("guest-initrd", &self.guest_initrd),
            ("guest-disk", &self.guest_disk),
        ];
        for (name, file) in files {
            let Some(file) = file else { continue };
            values.insert(name.into(), located(name, &file.to_string_lossy())?);
        }
        if self.guest_kernel.is_some() {
            // The RAM disk that a manifest names belongs to the kernel that it names.
            values.entry("guest-initrd".into()).or_default();
        }
        if !self.guest_module.is_empty() {
            values.insert("guest-modules".into(), modules(&self.guest_module)?);
        }
        if let Some(firmware) = &self.firmware {
            let value = match guest::firmware(firmware) {
                Some(_) => format!("guest:{firmware}"),
                None => {
                    let path = fs::canonicalize(firmware)
                        .with_context(|| format!("--firmware {firmware}: neither seabios, ovmf nor a file"))?;
                    path.to_string_lossy().into_owned()
                }
            };
            values.insert("guest-firmware".into(), value);
        }
        if let Some(text) = &self.guest_cmdline {
            values.insert("guest-cmdline".into(), text.clone());
        }
        if let Some(cpus) = &self.guest_cpus {
            values.insert("guest-cpus".into(), cpus.clone());
        }
        if let Some(memory) = self.guest_memory {
            values.insert("guest-memory".into(), format!("{memory}MiB"));
        }
        Ok(values)
    }
}

/// A file's absolute path; names that xtask resolves itself stay as they are.
fn located(option: &str, file: &str) -> Result<String> {
    if let Some(part) = file.strip_prefix("guest:") {
        guest::is_known(part).with_context(|| format!("--{option}"))?;
        return Ok(file.to_owned());
    }
    if file.starts_with("image:") {
        return Ok(file.to_owned());
    }
    let path = fs::canonicalize(file).with_context(|| format!("--{option} {file}"))?;
    Ok(path.to_string_lossy().into_owned())
}

/// The value for `guest-modules`.
fn modules(list: &[String]) -> Result<String> {
    let mut value = String::from(system::MODULES);
    for module in list {
        if module.contains(system::NEXT_MODULE) {
            bail!("--guest-module {module}: `{}` cannot be in a module's command line", system::NEXT_MODULE);
        }
        let (file, cmdline) = system::split_module(module);
        value += &located("guest-module", file)?;
        if let Some(cmdline) = cmdline {
            value.push(':');
            value += cmdline;
        }
        value.push(system::NEXT_MODULE);
    }
    Ok(value)
}

impl Options {
    /// Refuses a system that `needs` so many bytes where the machine has less. What it has is told by the root task, too, which knows
    /// what the kernel left of it.
    fn check_memory(&self, needs: u64) -> Result<()> {
        const KERNEL: u64 = 16 << 20;
        const STEP: u64 = 64 << 20;
        let has = self.memory;
        if needs <= u64::from(has) << 20 {
            return Ok(());
        }
        let what = match self.guest.guest_memory {
            Some(guest) => format!("--guest-memory {} does not fit", system::Size(u64::from(guest) << 20)),
            None => format!("the system needs {} MiB, which do not fit", needs.div_ceil(1 << 20)),
        };
        let enough = (needs + KERNEL).next_multiple_of(STEP) >> 20;
        bail!("{what} into the machine's {has} MiB: give it more with --memory {enough}M")
    }

    /// The emulator's machine for a system that needs so many CPUs.
    fn machine(&self, needs: u32) -> Machine {
        let usual = Machine::usual(self.emulator);
        let accel = match (self.emulator, self.accel) {
            (Emulator::Bochs, accel) => accel.filter(|accel| *accel != Accel::Auto).unwrap_or(Accel::Tcg),
            (Emulator::Qemu, accel) => match accel.unwrap_or(Accel::Auto) {
                Accel::Auto if qemu::kvm_can_nest() => Accel::Kvm,
                Accel::Auto => Accel::Tcg,
                accel => accel,
            },
        };
        let firmware = self.boot.unwrap_or(usual.firmware);
        let cpus = self.cpus.max(self.guest.host_cpus()).max(needs);
        // QEMU loses an interrupt of its host now and then where its timers do not run in the processor's thread (`docs/caveats.md`).
        // UEFI, which waits by reading clocks, takes for ever where each read is but a few instructions.
        let icount = self.emulator == Emulator::Qemu
            && accel == Accel::Tcg
            && cpus == 1
            && firmware != Firmware::Ovmf
            && !self.guest.may_be_uefi()
            && !self.extra.iter().any(|argument| argument == "-icount");
        Machine {
            firmware,
            cpu: self.cpu.clone(),
            cpus,
            memory: self.memory,
            accel,
            icount,
            gdb: self.gdb,
            interactive: true,
            extra: self.extra.clone(),
            ..usual
        }
    }
}

/// Runs the command.
pub fn main(options: &Options, global: &Global) -> Result<ExitCode> {
    let name = options.system.clone().unwrap_or_else(|| options.guest.default_system());
    options.guest.check(&name)?;
    let values = options.guest.values()?;
    let described = system::describe(&paths::root(), &name, &values)?;
    let machine = options.machine(described.cpus);
    machine.check()?;
    let files = guest::check::check(&system::settings(&paths::root(), &name, &values)?)?;
    options.check_memory(described.memory + files)?;
    if machine.gdb {
        gdb_port_is_free(qemu::GDB_PORT)?;
    }
    let debugger = options.guest.guest_gdb.map(|port| gdb::listen(port, "--guest-gdb")).transpose()?;
    if debugger.is_some() && !system::has_control(&paths::root(), &name, &values)? {
        bail!("system {name} has no control channel, so --guest-gdb cannot reach a guest of it");
    }
    let mut tools = machine.tools();
    tools.extend(hosttools::of_system(&name));
    let images = build::with_tools(&tools, global)?;
    let mut system = build::system(&name, &images, &values)?;
    if let Some(kernel) = &options.kernel {
        system.kernel.clone_from(kernel);
        system.kernel_symbols.clone_from(kernel);
    }
    eprintln!(
        "booting {name} in {}, {} MiB{}",
        machine.label(),
        machine.memory,
        if std::io::stdin().is_terminal() { "; Ctrl-A x leaves" } else { "" }
    );
    if machine.gdb {
        let symbols = system.kernel_symbols.display();
        eprintln!("waiting for: gdb {symbols} -ex 'target remote 127.0.0.1:{}'", qemu::GDB_PORT);
    }
    let (folder, _lock) = folder(&name, &machine)?;
    let mut running = machine.start(&system, &options.cmdline, &folder)?;
    let hub = running.control.take().map(|line| Hub::open(line, &folder)).transpose()?;
    if let Some(listener) = debugger {
        debug_guest(hub.as_ref().context("this system has no control channel")?, listener)?;
    }
    console(running, machine.gdb, &mut Symbols::of(&system.kernel_symbols))
}

/// Refuses a port that QEMU would find taken.
fn gdb_port_is_free(port: u16) -> Result<()> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("port {port} of --gdb is taken, as by another system that runs with it: end that one first")
        }
        // Whatever else is wrong QEMU tells.
        _ => Ok(()),
    }
}

/// Lets gdb reach the guest, in a thread that ends with the process.
fn debug_guest(hub: &Hub, listener: TcpListener) -> Result<()> {
    let port = listener.local_addr()?.port();
    let mut client = Client::connect(hub.socket())?;
    eprintln!("for the guest: gdb -ex 'target remote 127.0.0.1:{port}'");
    std::thread::spawn(move || {
        let served =
            commands::only_machine(&mut client).and_then(|machine| gdb::serve(&listener, &mut client, &machine));
        if let Err(error) = served {
            eprintln!("no more debugging of the guest: {error:#}\r");
        }
    });
    Ok(())
}

/// A folder for this run's files, and the lock that keeps a second run out of it.
fn folder(name: &str, machine: &Machine) -> Result<(PathBuf, File)> {
    for number in 0..64 {
        let folder = paths::target().join("run").join(format!("{name}-{}-{number}", machine.label()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join("lock"))?;
        if lock.try_lock().is_ok() {
            return Ok((folder, lock));
        }
    }
    bail!("64 runs of {name} are under way")
}

/// Passes bytes between the terminal and the system until one of them ends.
fn console(mut running: Running, stay: bool, symbols: &mut Symbols) -> Result<ExitCode> {
    // Longer than any last message, shorter than patience.
    const AFTERMATH: Duration = Duration::from_secs(3);
    let raw = tty::raw();
    let leave = Arc::new(AtomicBool::new(false));
    keyboard(running.serial.try_clone()?, raw.is_some(), leave.clone());
    running.serial.set_read_timeout(Some(Duration::from_millis(50)))?;
    let mut watch = Watch::default();
    let mut stdout = std::io::stdout();
    let mut ended: Option<Instant> = None;
    let mut buffer = [0; 4096];
    while !leave.load(Ordering::SeqCst) && ended.is_none_or(|since| since.elapsed() < AFTERMATH) {
        match running.serial.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                printed(stdout.write_all(&buffer[..count]))?;
                for line in watch.feed(&buffer[..count]) {
                    if let Some(symbol) = symbols.of_line(&line) {
                        printed(stdout.write_all(format!("       {symbol}\n").as_bytes()))?;
                    }
                }
                printed(stdout.flush())?;
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {}
            Err(_) => break,
        }
        // A kernel that panicked under gdb stays for a look at it.
        if watch.end.is_some() || watch.refused.is_some() || (watch.panic.is_some() && !stay) {
            ended.get_or_insert_with(Instant::now);
        }
    }
    watch.finish();
    if raw.is_some() && !watch.ends_with_newline() {
        println!();
    }
    drop(raw);
    if leave.load(Ordering::SeqCst) {
        eprintln!("left");
        return Ok(ExitCode::from(3));
    }
    verdict(&watch, &mut running)
}

/// Says how the system ended, in words and in the exit status.
fn verdict(watch: &Watch, running: &mut Running) -> Result<ExitCode> {
    match &watch.end {
        Some(End::Ok) => return Ok(ExitCode::SUCCESS),
        // The system itself said so already.
        Some(End::Failed(_)) => return Ok(ExitCode::FAILURE),
        None => {}
    }
    if watch.refused.is_some() {
        // The kernel said why.
        return Ok(ExitCode::FAILURE);
    }
    if let Some(panic) = &watch.panic {
        eprintln!("the kernel panicked: {panic}");
        return Ok(ExitCode::FAILURE);
    }
    let status = running.process.wait(Duration::from_secs(5))?;
    if running.triple_fault() {
        eprintln!("triple fault: the machine reset itself; the emulator's log is in {}", running.folder.display());
    } else {
        let status = status.map_or_else(|| "it closed the serial port".into(), describe);
        eprintln!("the emulator ended before the system did ({status}) {}", running.complaint());
    }
    Ok(ExitCode::FAILURE)
}

/// Sends what is typed to the system, in a thread that ends with the process.
fn keyboard(mut serial: TcpStream, terminal: bool, leave: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 256];
        let mut escape = Escape::default();
        // At the end of a pipe the system runs on; only its input has ended.
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            let (bytes, left) =
                if terminal { escape.filter(&buffer[..count]) } else { (buffer[..count].to_vec(), false) };
            if serial.write_all(&bytes).is_err() {
                return;
            }
            if left {
                leave.store(true, Ordering::SeqCst);
                return;
            }
        }
    });
}

/// Finds Ctrl-A x among the keys.
#[derive(Default)]
struct Escape {
    armed: bool,
}

impl Escape {
    /// The bytes to send, and whether the user wants to leave.
    fn filter(&mut self, typed: &[u8]) -> (Vec<u8>, bool) {
        const CTRL_A: u8 = 1;
        let mut bytes = Vec::new();
        for &key in typed {
            match (self.armed, key) {
                (false, CTRL_A) => self.armed = true,
                (false, key) => bytes.push(key),
                (true, b'x' | b'X') => return (bytes, true),
                (true, key) => {
                    self.armed = false;
                    bytes.push(key);
                }
            }
        }
        (bytes, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ctrl_a_x_leaves_even_when_typed_slowly() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"ls\x01"), (b"ls".to_vec(), false));
        assert_eq!(escape.filter(b"x more"), (vec![], true));
    }

    #[test]
    fn options_that_do_not_fit_are_named_as_they_were_typed() {
        let refused = |system: &str, options: GuestOptions| options.check(system).unwrap_err().to_string();
        let firmware = GuestOptions { firmware: Some("seabios".into()), ..GuestOptions::default() };
        let kernel = GuestOptions { guest_kernel: Some("guest:kernel".into()), ..GuestOptions::default() };
        let memory = GuestOptions { guest_memory: Some(128), ..GuestOptions::default() };
        let both = GuestOptions { guest_kernel: kernel.guest_kernel.clone(), ..firmware.clone() };
        assert_eq!(refused("firmware", both), "--guest-kernel does not go with --firmware: what boots is on the disk");
        assert_eq!(
            refused("linux", firmware.clone()),
            "--firmware chooses the system `firmware` and cannot be combined with --system linux"
        );
        assert_eq!(refused("first", memory.clone()), "system first has no guest that --guest-memory could be for");
        assert_eq!(
            refused("firmware", kernel.clone()),
            "--guest-kernel does not go with system firmware, whose manifest has no option guest-kernel"
        );
        firmware.check("firmware").unwrap();
        kernel.check("linux").unwrap();
        memory.check("linux").unwrap();
        assert!(refused("nosuch", GuestOptions::default()).contains("no system `nosuch`"));
    }

    #[test]
    fn what_does_not_fit_into_the_machine_is_refused() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let refused = |line: &str, mebibytes: u64| {
            let line = <Line as clap::Parser>::parse_from(line.split(' '));
            line.options.check_memory(mebibytes << 20).map_err(|error| error.to_string())
        };
        refused("run", 1024).unwrap();
        assert_eq!(
            refused("run --guest-memory 2G", 2066).unwrap_err(),
            "--guest-memory 2 GiB does not fit into the machine's 1024 MiB: give it more with --memory 2112M"
        );
        assert_eq!(
            refused("run --memory 200M", 274).unwrap_err(),
            "the system needs 274 MiB, which do not fit into the machine's 200 MiB: give it more with --memory 320M"
        );
    }

    #[test]
    fn a_port_that_another_system_holds_is_refused() {
        let other = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = other.local_addr().unwrap().port();
        let text = gdb_port_is_free(port).unwrap_err().to_string();
        assert_eq!(
            text,
            format!("port {port} of --gdb is taken, as by another system that runs with it: end that one first")
        );
        drop(other);
        gdb_port_is_free(port).unwrap();
    }

    #[test]
    fn a_misspelt_guest_is_refused_before_anything_is_built() {
        let options = GuestOptions { guest_kernel: Some("guest:genric".into()), ..GuestOptions::default() };
        let text = format!("{:#}", options.values().unwrap_err());
        assert_eq!(text, "--guest-kernel: `guest:genric` is unknown; did you mean `guest:generic`?");
    }

    #[test]
    fn other_keys_go_through() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"a\x01\x01b\x03"), (b"a\x01b\x03".to_vec(), false));
        assert_eq!(escape.filter(b"x"), (b"x".to_vec(), false));
    }
}
