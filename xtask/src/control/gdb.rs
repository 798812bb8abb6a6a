//! A debugger's connection to a guest: a local TCP port on this side, the debug stream of the control channel on the other.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use moira_proto::control::{Answer, Error, Request};
use moira_proto::frame::Kind;

use super::client::{self, Client, UNEXPECTED};
use crate::emulator::describe;

/// Where gdb connects unless another port is asked for.
pub const PORT: u16 = 1235;
/// Bytes of one request: they fit the line's credit in few turns, and the guest's queue at once.
const MOST: usize = 256;

/// Opens the port for gdb; 0: any. `option` is how another one is chosen.
pub fn listen(port: u16, option: &str) -> Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .map_err(|error| anyhow!("cannot listen on port {port}: {error}; choose another with {option} PORT"))
}

/// Serves one gdb after the other, for as long as the system runs.
pub fn serve(listener: &TcpListener, client: &mut Client, machine: &str) -> Result<()> {
    loop {
        let (stream, _) = listener.accept()?;
        session(&stream, client, machine)?;
    }
}

/// Serves one gdb until it goes away. Errors are those of the system.
pub fn session(mut gdb: &TcpStream, client: &mut Client, machine: &str) -> Result<()> {
    gdb.set_nodelay(true)?;
    gdb.set_read_timeout(Some(Duration::from_millis(5)))?;
    let stream = client.send(&Request::Debug { name: machine })?;
    let (mut waiting, mut write, mut under_way) = (Vec::new(), 0, None);
    let mut open = true;
    let mut buffer = [0; 4096];
    loop {
        if open {
            match gdb.read(&mut buffer) {
                Ok(0) => open = false,
                Ok(count) => waiting.extend_from_slice(&buffer[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => open = false,
            }
        }
        if under_way.is_none() && !waiting.is_empty() && open {
            let part = waiting.len().min(MOST);
            write = client.send(&Request::Write { stream, bytes: &waiting[..part] })?;
            under_way = Some(part);
        }
        if !open && under_way.is_none() {
            // The guest goes on; what it had to say last is nobody's any more.
            client.ask(&Request::Close { stream })?;
            return Ok(());
        }
        let Some(frame) = client.receive(Duration::from_millis(5))? else { continue };
        match (Answer::decode(&frame.payload).context("an answer of another version")?, frame.number) {
            (Answer::Bytes(bytes), number) if number == stream => open &= gdb.write_all(&bytes).is_ok(),
            (Answer::Error(error), number) if number == stream => bail!("{machine}: {}", client::in_words(error)),
            (Answer::Done, number) if number == write => {
                waiting.drain(..under_way.take().unwrap_or(0));
            }
            // The stream opens, or its queue is full: again, a little later.
            (Answer::Error(Error::NoStream | Error::Busy), number) if number == write => {
                under_way = None;
                std::thread::sleep(Duration::from_millis(20));
            }
            (Answer::Error(error), _) => bail!("{machine}: {}", client::in_words(error)),
            (_, _) if frame.kind == Kind::Answer => bail!(UNEXPECTED),
            _ => {}
        }
    }
}

/// Runs gdb with the commands of a file on a machine; what it prints.
pub fn batch(client: &mut Client, machine: &str, script: &Path) -> Result<String> {
    let listener = listen(0, "--port")?;
    let port = listener.local_addr()?.port();
    let mut command = Command::new("gdb");
    command.args(["-nx", "-q", "-batch", "-ex", "set remotetimeout 100"]);
    command.args(["-ex", &format!("target remote 127.0.0.1:{port}"), "-x"]).arg(script);
    command.stdin(std::process::Stdio::null());
    let gdb = std::thread::spawn(move || command.output());
    listener.set_nonblocking(true)?;
    while !gdb.is_finished() {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                session(&stream, client, machine)?;
                break;
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
    let output = gdb.join().ok().context("gdb's thread died")?.context("cannot start gdb")?;
    printed(&output)
}

/// The file with gdb's commands: a relative path begins at the repository's root.
pub fn script(file: &Path) -> Result<PathBuf> {
    let path = crate::paths::root().join(file);
    // gdb would only complain, and attach all the same.
    File::open(&path).with_context(|| format!("--batch {}", path.display()))?;
    Ok(path)
}

/// What gdb printed; where it failed, that is the error.
fn printed(output: &Output) -> Result<String> {
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{text}gdb failed: {}", describe(output.status));
    }
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_not_there_is_told_before_gdb_starts() {
        let text = format!("{:#}", script(Path::new("tests/gdb/nosuch.gdb")).unwrap_err());
        assert!(text.ends_with("tests/gdb/nosuch.gdb: No such file or directory (os error 2)"), "{text}");
        assert!(script(Path::new("tests/gdb/tiny.gdb")).unwrap().is_absolute());
    }

    #[test]
    fn a_debugger_that_fails_is_an_error_that_says_what_it_printed() {
        let run = |script: &str| printed(&Command::new("sh").args(["-c", script]).output().unwrap());
        assert_eq!(run("echo fine; echo warned >&2").unwrap(), "fine\nwarned\n");
        assert_eq!(run("echo bad command; exit 1").unwrap_err().to_string(), "bad command\ngdb failed: exit status 1");
    }

    #[test]
    fn who_finds_its_port_taken_is_told_how_to_choose_another() {
        let first = listen(0, "--port").unwrap();
        let port = first.local_addr().unwrap().port();
        let text = listen(port, "--guest-gdb").unwrap_err().to_string();
        assert!(text.starts_with(&format!("cannot listen on port {port}: Address already in use")), "{text}");
        assert!(text.ends_with("; choose another with --guest-gdb PORT"), "{text}");
    }
}
