//! Child processes: none outlives xtask, and none inherits what cargo set for xtask itself.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

static STOPPING: AtomicBool = AtomicBool::new(false);
/// Process ids of running emulators, to be ended when xtask is told to stop.
static RUNNING: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Catches SIGINT, SIGTERM and SIGHUP: emulators end, the terminal is restored, xtask exits with 130.
pub fn catch_signals() -> Result<()> {
    ctrlc::set_handler(|| {
        STOPPING.store(true, Ordering::SeqCst);
        if let Ok(running) = RUNNING.lock() {
            for pid in running.iter() {
                kill(*pid);
            }
        }
        crate::tty::restore();
        std::process::exit(130);
    })
    .context("cannot catch signals")
}

/// What the standard library's macros say in their panic when their output was closed; and the exit status of who is ended for that (128 and SIGPIPE).
const CANNOT_PRINT: &str = "failed printing to std";
const CLOSED: i32 = 141;

/// Whoever reads what xtask prints may have seen enough (`| head`): that ends it, without a word. Children end with it.
pub fn end_on_closed_output() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<String>().is_some_and(|text| is_closed_output(text)) {
            end_quietly();
        }
        usual(panic);
    }));
}

/// The same for what is written without the macros: `result` is what writing to the standard output came to.
pub fn printed(result: std::io::Result<()>) -> std::io::Result<()> {
    if result.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
        end_quietly();
    }
    result
}

fn end_quietly() -> ! {
    crate::tty::restore();
    std::process::exit(CLOSED);
}

fn is_closed_output(text: &str) -> bool {
    text.starts_with(CANNOT_PRINT) && text.contains("Broken pipe")
}

fn kill(pid: u32) {
    // SAFETY: kill takes no pointers. The id is of a child that was not reaped yet, so it names no other process.
    unsafe { libc::kill(pid as libc::pid_t, libc::SIGKILL) };
}

/// A child that is killed and reaped when dropped, and when xtask dies.
pub struct Guarded {
    child: Child,
}

impl Guarded {
    /// Starts `command` so that it ends no later than xtask.
    pub fn spawn(command: &mut Command) -> Result<Self> {
        // SAFETY: prctl is async-signal-safe, and the closure touches no memory of the parent.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let child =
            command.spawn().with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        if let Ok(mut running) = RUNNING.lock() {
            running.push(child.id());
        }
        Ok(Self { child })
    }

    /// The exit status, when it has ended.
    pub fn ended(&mut self) -> Result<Option<std::process::ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits up to `limit` for it to end by itself.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<std::process::ExitStatus>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(status) = self.ended()? {
                return Ok(Some(status));
            }
            if Instant::now() >= end {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Ends it at once, the hard way.
    pub fn kill(&mut self) {
        // It may have ended already; that is as good.
        let _ = self.child.kill();
    }

    /// CPU time it has used, all threads together. Zero when the kernel does not tell.
    pub fn cpu_time(&self) -> Duration {
        cpu_time(self.child.id()).unwrap_or_default()
    }
}

/// Reads fields 14 and 15 (utime, stime) of `/proc/PID/stat`; the command name before them may hold spaces.
fn cpu_time(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    // Linux has reported these in hundredths of a second on x86 for as long as it runs there.
    Some(Duration::from_millis(ticks * 10))
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Off the list before it is reaped: afterwards the id may name another process.
        if let Ok(mut running) = RUNNING.lock() {
            running.retain(|pid| *pid != self.child.id());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Removes what `cargo run` set for xtask, so that an inner cargo starts as if from the user's shell.
/// `keep_toolchain` leaves rustup's choice of toolchain in place.
pub fn clean_cargo_environment(command: &mut Command, keep_toolchain: bool) {
    const KEEP: [&str; 3] = ["CARGO_HOME", "CARGO_NET_", "CARGO_HTTP_"];
    for (key, _) in std::env::vars_os() {
        let name = key.to_string_lossy();
        let ours = name == "CARGO"
            || name.starts_with("CARGO_") && !KEEP.iter().any(|keep| name.starts_with(keep))
            || name.starts_with("RUST") && name != "RUSTUP_HOME" && name != "RUSTUP_DIST_SERVER";
        if ours && !(keep_toolchain && name == "RUSTUP_TOOLCHAIN") {
            command.env_remove(&key);
        }
    }
    // cargo prepends its own library folders; Debian's compiler must not load rustup's libraries.
    command.env_remove("LD_LIBRARY_PATH");
}

/// Runs `command` with no input and takes its output; its last lines of complaint become the error.
pub fn output(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        bail!("{name} failed ({}): {}", output.status, complaint(&output.stderr));
    }
    Ok(output)
}

/// The last few lines of a program's error output, on one line.
pub fn complaint(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if lines.is_empty() {
        return "it said nothing".into();
    }
    lines[lines.len().saturating_sub(4)..].join("; ")
}

/// Whether the user asked xtask to stop.
pub fn stopping() -> bool {
    STOPPING.load(Ordering::SeqCst)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_child_ends_with_its_guard() {
        let child = Guarded::spawn(Command::new("sleep").arg("100")).unwrap();
        let path = format!("/proc/{}", child.child.id());
        assert!(std::path::Path::new(&path).exists());
        drop(child);
        assert!(!std::path::Path::new(&path).exists());
    }

    #[test]
    fn output_tells_what_the_program_said() {
        let error = output(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("broken"), "{error}");
    }

    /// The text is the standard library's: another one would be a crash with a core dump again.
    #[test]
    fn a_closed_output_is_told_from_other_panics() {
        let text = "failed printing to stdout: Broken pipe (os error 32)";
        assert!(is_closed_output(text));
        assert!(!is_closed_output("failed printing to stdout: No space left on device (os error 28)"));
        assert!(!is_closed_output("Broken pipe"));
    }

    #[test]
    fn own_cpu_time_is_readable() {
        assert!(cpu_time(std::process::id()).is_some());
    }
}
