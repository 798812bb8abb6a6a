//! The commands that talk to a running system.

use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use moira_proto::control::{Answer, Command as Order, Request};

use super::client::{self, Client, Ended, UNEXPECTED};
use super::gdb;
use super::top::{self, Report, Sample};
use crate::tty;

/// Which of several running systems.
#[derive(Args, Clone, Debug, Default)]
pub struct Which {
    /// The run, where several are under way: its folder in target/run, or what that begins with
    #[arg(long, value_name = "NAME")]
    run: Option<String>,
}

/// Options of `top`.
#[derive(Args, Clone, Debug)]
pub struct TopOptions {
    #[command(flatten)]
    which: Which,
    /// Print once and end
    #[arg(long)]
    once: bool,
    /// Print as JSON; one line a reading
    #[arg(long)]
    json: bool,
    /// Seconds between two readings
    #[arg(long, default_value_t = 1.0, value_name = "N")]
    seconds: f64,
}

/// Options of `policy`.
#[derive(Args, Clone, Debug)]
pub struct PolicyOptions {
    #[command(flatten)]
    which: Which,
    /// The policy that is wanted; without it, the one in force and all there are are shown
    name: Option<String>,
    /// The CPU whose slack it is about
    #[arg(long, default_value_t = 0)]
    cpu: u32,
}

/// Options of `vm`.
#[derive(Args, Clone, Debug)]
pub struct VmOptions {
    #[command(flatten)]
    which: Which,
    /// What to do
    action: Action,
    /// The machine: the name of its task; may be left out where there is only one
    name: Option<String>,
}

/// What can be done with a virtual machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Show all machines
    List,
    /// Stop its processors
    Pause,
    /// Let them go on
    Resume,
    /// Press its power button
    PowerButton,
    /// Press its NMI button
    Nmi,
    /// End it and take back its memory
    Kill,
    /// Reset it
    Reset,
}

/// Options of `vm-stats`.
#[derive(Args, Clone, Debug)]
pub struct StatsOptions {
    #[command(flatten)]
    which: Which,
    /// Print as JSON
    #[arg(long)]
    json: bool,
    /// The machine; all of them without it
    name: Option<String>,
}

/// Options of `guest-gdb`.
#[derive(Args, Clone, Debug)]
pub struct GdbOptions {
    #[command(flatten)]
    which: Which,
    /// The port of this host that gdb connects to
    #[arg(long, default_value_t = gdb::PORT)]
    port: u16,
    /// Run gdb with the commands of this file instead, and end
    #[arg(long, value_name = "FILE")]
    batch: Option<PathBuf>,
    /// The machine; may be left out where there is only one
    name: Option<String>,
}

/// A command to a running system.
#[derive(Subcommand, Clone, Debug)]
pub enum Control {
    /// Show who gets the time in a running system, like xentop
    Top(TopOptions),
    /// Show or replace the slack policy of a running system
    Policy(PolicyOptions),
    /// Pause, resume, reset or end a virtual machine of a running system, or press its power or NMI button
    Vm(VmOptions),
    /// Show the exits of virtual machines by reason
    VmStats(StatsOptions),
    /// Let gdb debug a guest of a running system
    GuestGdb(GdbOptions),
}

/// A command as a test case writes it.
#[derive(Parser, Debug)]
#[command(no_binary_name = true)]
struct Line {
    #[command(subcommand)]
    command: Control,
}

/// Runs a command in the system that the user means.
pub fn main(command: &Control) -> Result<ExitCode> {
    let which = match command {
        Control::Top(options) => &options.which,
        Control::Policy(options) => &options.which,
        Control::Vm(options) => &options.which,
        Control::VmStats(options) => &options.which,
        Control::GuestGdb(options) => &options.which,
    };
    let mut client = client::find(which.run.as_deref())?;
    match command {
        Control::Top(options) if !options.once => live(&mut client, options)?,
        command => print!("{}", run(&mut client, command)?),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs a command as a test case writes it in the system behind `socket`; answers what it prints.
pub fn of_case(line: &str, socket: &Path) -> Result<String> {
    let parsed = Line::try_parse_from(line.split_whitespace())?;
    run(&mut Client::connect(socket)?, &parsed.command)
}

fn run(client: &mut Client, command: &Control) -> Result<String> {
    match command {
        Control::Top(options) => {
            let (system, tasks) = (client.system()?, client.tasks()?);
            let before = Sample::take(client)?;
            std::thread::sleep(interval(options));
            let report = Report::new(&system, &tasks, &before, &Sample::take(client)?);
            Ok(if options.json { serde_json::to_string(&report)? + "\n" } else { report.text() })
        }
        Control::Policy(options) => policy(client, options),
        Control::Vm(options) => vm(client, options),
        Control::VmStats(options) => stats(client, options),
        Control::GuestGdb(options) => {
            let script = options.batch.as_deref().map(gdb::script).transpose()?;
            let name = machine(client, options.name.as_ref())?;
            if let Some(script) = &script {
                return gdb::batch(client, &name, script);
            }
            let listener = gdb::listen(options.port, "--port")?;
            eprintln!("waiting for: gdb -ex 'target remote 127.0.0.1:{}'", options.port);
            gdb::serve(&listener, client, &name)?;
            Ok(String::new())
        }
    }
}

fn interval(options: &TopOptions) -> Duration {
    Duration::from_secs_f64(options.seconds.clamp(0.1, 3600.0))
}

/// Shows readings until `q` is typed, or for ever where nothing can be.
fn live(client: &mut Client, options: &TopOptions) -> Result<()> {
    let (system, tasks) = (client.system()?, client.tasks()?);
    let mut before = Sample::take(client)?;
    let raw = tty::raw();
    let screen = raw.is_some() && std::io::stdout().is_terminal() && !options.json;
    let (sender, typed) = channel();
    if screen {
        print!("\x1b[?1049h");
        std::thread::spawn(move || {
            let mut key = [0];
            while let Ok(1) = std::io::stdin().read(&mut key) {
                // Ctrl-C is a key like others here.
                if matches!(key[0], b'q' | b'Q' | 3) && sender.send(()).is_err() {
                    return;
                }
            }
        });
    }
    let result = loop {
        match typed.recv_timeout(interval(options)) {
            Ok(()) => break Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(interval(options)),
        }
        let after = match Sample::take(client) {
            Ok(after) => after,
            Err(error) => break Err(error),
        };
        let report = Report::new(&system, &tasks, &before, &after);
        let text = if options.json { serde_json::to_string(&report)? + "\n" } else { report.text() };
        if screen {
            print!("\x1b[H\x1b[J{text}\nq leaves\n");
        } else {
            println!("{text}");
        }
        crate::process::printed(std::io::stdout().flush())?;
        before = after;
    };
    if screen {
        print!("\x1b[?1049l");
    }
    drop(raw);
    result
}

fn policy(client: &mut Client, options: &PolicyOptions) -> Result<String> {
    /// How soon a scheduler looks at what is wanted: at least ten times a second of its own time.
    const PATIENCE: Duration = Duration::from_secs(20);
    let cpu = options.cpu;
    let cpus = client.system()?.cpus;
    if cpu >= cpus {
        bail!("there is no CPU {cpu}; the system has {cpus}, counted from 0");
    }
    let ask = |client: &mut Client, name: &str| match client.ask(&Request::Policy { cpu, name })? {
        Answer::Policy { name, all } => Ok((name, all)),
        _ => bail!(UNEXPECTED),
    };
    let Some(wanted) = &options.name else {
        let (name, all) = ask(client, "")?;
        let name = if name.is_empty() { "unknown: its scheduler does not say".into() } else { name };
        return Ok(format!("CPU {cpu}: {name}\nthere are: {}\n", all.join(", ")));
    };
    let (was, all) = ask(client, "")?;
    if !all.contains(wanted) {
        bail!("there is no policy {wanted:?}; there are: {}", all.join(", "));
    }
    ask(client, wanted)?;
    let end = Instant::now() + PATIENCE;
    while ask(client, "")?.0 != *wanted {
        if Instant::now() > end {
            bail!("the scheduler of CPU {cpu} did not take the policy up: it hangs, or may not write region `policy`");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(format!("CPU {cpu}: {wanted} (it was {was})\n"))
}

/// The machine that is meant: the one that is named, or the only one.
fn machine(client: &mut Client, name: Option<&String>) -> Result<String> {
    let Answer::Machines(machines) = client.ask(&Request::Machines)? else { bail!(UNEXPECTED) };
    let names: Vec<String> = machines.into_iter().map(|machine| machine.name).collect();
    meant(name, &names)
}

/// The machine that is meant, of all there are.
fn meant(name: Option<&String>, names: &[String]) -> Result<String> {
    match (name, names) {
        (Some(name), names) if names.contains(name) => Ok(name.clone()),
        (_, []) => bail!("this system has no virtual machine that can be controlled"),
        (Some(name), _) => bail!("there is no machine {name:?}; there are: {}", names.join(", ")),
        (None, [only]) => Ok(only.clone()),
        (None, _) => bail!("say which machine: {}", names.join(", ")),
    }
}

/// The machine that a debugger is for: the only one, or the first.
pub fn only_machine(client: &mut Client) -> Result<String> {
    let Answer::Machines(machines) = client.ask(&Request::Machines)? else { bail!(UNEXPECTED) };
    match machines.into_iter().next() {
        Some(machine) => Ok(machine.name),
        None => bail!("this system has no virtual machine that can be controlled"),
    }
}

fn vm(client: &mut Client, options: &VmOptions) -> Result<String> {
    let (command, done) = match options.action {
        Action::List => return list(client),
        Action::Pause => (Order::Pause, "paused"),
        Action::Resume => (Order::Resume, "goes on"),
        Action::PowerButton => (Order::PowerButton, "its power button was pressed"),
        Action::Nmi => (Order::Nmi, "its NMI button was pressed"),
        Action::Kill => (Order::Kill, "was ended, its memory taken back"),
        Action::Reset => (Order::Reset, "resets"),
    };
    let name = machine(client, options.name.as_ref())?;
    outcome(&name, command, done, client.ask(&Request::Machine { name: &name, command }))
}

/// What came of an order to a machine. A system may end with its only machine, before the answer is out.
fn outcome(name: &str, command: Order, done: &str, answer: Result<Answer>) -> Result<String> {
    match answer {
        Ok(Answer::Done) => Ok(format!("{name}: {done}\n")),
        Ok(_) => bail!(UNEXPECTED),
        Err(error) if command == Order::Kill && error.is::<Ended>() => {
            Ok(format!("{name}: was ended, and the system with it\n"))
        }
        Err(error) => Err(error),
    }
}

fn list(client: &mut Client) -> Result<String> {
    let Answer::Machines(machines) = client.ask(&Request::Machines)? else { bail!(UNEXPECTED) };
    if machines.is_empty() {
        return Ok("this system has no virtual machine that can be controlled\n".into());
    }
    let rows = machines.iter().map(|machine| {
        let (name, state, cpus, resets) = (&machine.name, top::state(machine.state), machine.cpus, machine.resets);
        format!("{name}: {state}, {cpus} vCPU, {resets} resets\n")
    });
    Ok(rows.collect())
}

fn stats(client: &mut Client, options: &StatsOptions) -> Result<String> {
    let names = match &options.name {
        Some(name) => vec![machine(client, Some(name))?],
        None => {
            let Answer::Machines(machines) = client.ask(&Request::Machines)? else { bail!(UNEXPECTED) };
            machines.into_iter().map(|machine| machine.name).collect()
        }
    };
    let mut text = String::new();
    let mut json = serde_json::Map::new();
    for name in names {
        let exits = match client.try_ask(&Request::Exits { name: &name })? {
            Ok(Answer::Exits(exits)) => exits,
            Ok(_) => bail!(UNEXPECTED),
            Err(error) if options.name.is_none() => {
                text += &format!("{name}: {}\n", client::in_words(error));
                continue;
            }
            Err(error) => bail!("{name}: {}", client::in_words(error)),
        };
        let sums = top::by_reason(&exits);
        let total: u64 = sums.values().sum();
        text += &format!("{name}: {total} exits, {} vCPU\n", exits.cpus.len());
        let mut sorted: Vec<_> = sums.iter().collect();
        sorted.sort_by_key(|(number, count)| (std::cmp::Reverse(**count), **number));
        for (number, count) in &sorted {
            text += &format!(
                "  {:<16} {count:>12} {:>6.2} %\n",
                top::reason(**number),
                **count as f64 * 100.0 / total.max(1) as f64
            );
        }
        let reasons = sorted.iter().map(|(number, count)| (top::reason(**number), serde_json::json!(count)));
        json.insert(name, serde_json::Value::Object(reasons.collect()));
    }
    Ok(if options.json { serde_json::Value::Object(json).to_string() + "\n" } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_that_is_none_is_quoted_beside_those_there_are() {
        let names = ["linux".to_owned(), "other".to_owned()];
        let refused =
            |name: Option<&str>, names| meant(name.map(str::to_owned).as_ref(), names).unwrap_err().to_string();
        assert_eq!(refused(Some("linx"), &names), "there is no machine \"linx\"; there are: linux, other");
        assert_eq!(refused(None, &names), "say which machine: linux, other");
        assert!(refused(Some("linx"), &[]).contains("no virtual machine"));
        assert_eq!(meant(None, &names[..1]).unwrap(), "linux");
    }

    #[test]
    fn a_system_that_ends_with_its_only_machine_is_no_error() {
        let ended = |command| outcome("linux", command, "done", Err(Ended.into()));
        assert_eq!(ended(Order::Kill).unwrap(), "linux: was ended, and the system with it\n");
        assert_eq!(ended(Order::Pause).unwrap_err().to_string(), "the run has ended");
        assert_eq!(outcome("linux", Order::Kill, "done", Ok(Answer::Done)).unwrap(), "linux: done\n");
    }

    #[test]
    fn cases_write_commands_as_people_do() {
        for line in ["top --once --json", "policy bvt", "vm kill one", "vm-stats", "guest-gdb --batch x one"] {
            assert!(Line::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
        assert!(Line::try_parse_from(["vm", "explode"]).is_err());
    }
}
