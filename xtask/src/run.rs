//! `run`: boot a system with this terminal as its console.

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
    guest: guest::options::GuestOptions,
    /// Arguments for QEMU, or lines for Bochs' configuration
    #[arg(last = true, help_heading = "Arguments")]
    extra: Vec<String>,
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

    /// The emulator's machine for a system that needs so many CPUs, and may have `guests`.
    fn machine(&self, needs: u32, guests: bool) -> Machine {
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
        // With guests QEMU loses an interrupt of its host now and then where its timers do not run in the processor's thread, and goes wrong
        // in other ways where each processor has a thread of its own (`docs/caveats.md`). Without guests such threads do no harm, and are
        // faster.
        // UEFI, which waits by reading clocks, takes for ever where each read is but a few instructions.
        let icount = self.emulator == Emulator::Qemu
            && accel == Accel::Tcg
            && (cpus == 1 || guests)
            && firmware != Firmware::Ovmf
            && !self.guest.may_be_uefi()
            && !self.extra.iter().any(|argument| argument == "-icount" || argument == "-accel");
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
    let machine = options.machine(described.cpus, described.tasks.iter().any(system::is_monitor));
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
    fn machines_with_guests_count_instructions() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            options: Options,
        }
        let counted = |line: &str, needs: u32, guests: bool| {
            <Line as clap::Parser>::parse_from(line.split(' ')).options.machine(needs, guests).icount
        };
        assert!(counted("run --accel tcg", 1, false) && counted("run --accel tcg", 1, true));
        assert!(counted("run --accel tcg", 2, true) && counted("run --accel tcg --cpus 4", 1, true));
        assert!(!counted("run --accel tcg", 2, false), "several CPUs are faster with a thread each");
        assert!(!counted("run --accel tcg --firmware ovmf", 1, true), "UEFI reads clocks");
        assert!(!counted("run --accel tcg -- -accel tcg,thread=multi", 2, true), "who says how, has it so");
        assert!(!counted("run --emulator bochs", 1, true));
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
    fn other_keys_go_through() {
        let mut escape = Escape::default();
        assert_eq!(escape.filter(b"a\x01\x01b\x03"), (b"a\x01b\x03".to_vec(), false));
        assert_eq!(escape.filter(b"x"), (b"x".to_vec(), false));
    }
}
