//! A command's end of the control channel.

use std::fmt;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use moira_proto::control::{Account, Answer, CpuAccount, Error, Request, SystemInfo, TaskInfo};
use moira_proto::frame::{self, Decoder, Frame, Kind, MOST_ANSWER};

use super::hub;
use crate::paths;

/// How long the system may take to answer. Bochs is slow, and a system may still be booting.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is said when the system ended, and its socket with it.
#[derive(Debug, PartialEq, Eq)]
pub struct Ended;

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("the run has ended")
    }
}

impl std::error::Error for Ended {}

/// A connection.
pub struct Client {
    stream: UnixStream,
    decoder: Decoder,
    /// Bytes that came and were not looked at.
    rest: Vec<u8>,
    last: u16,
}

/// Every running system that can be controlled: the name of its run's folder and its socket.
pub fn running() -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(paths::target().join("run")).into_iter().flatten().flatten();
    let mut found: Vec<(String, PathBuf)> = entries
        .filter_map(|entry| {
            let socket = PathBuf::from(fs::read_to_string(entry.path().join(hub::FILE)).ok()?);
            // What a run that was killed left behind answers nothing.
            UnixStream::connect(&socket).ok()?;
            Some((entry.file_name().to_string_lossy().into_owned(), socket))
        })
        .collect();
    found.sort();
    found
}

/// The one system that is meant: the only one that runs, or the one whose run's name begins with `name`.
pub fn find(name: Option<&str>) -> Result<Client> {
    let all = running();
    let meant: Vec<_> = all.iter().filter(|(run, _)| name.is_none_or(|name| run.starts_with(name))).collect();
    let list = || all.iter().map(|(run, _)| run.as_str()).collect::<Vec<_>>().join(", ");
    match meant.as_slice() {
        [(_, socket)] => Client::connect(socket),
        [] if all.is_empty() => {
            bail!("no system with a control channel runs: start one in another terminal with `cargo xtask run`")
        }
        [] => bail!("no run called {} is under way; there are {}", name.unwrap_or_default(), list()),
        _ => bail!("several systems run: choose one with --run: {}", list()),
    }
}

impl Client {
    /// Connects to the system behind this socket.
    pub fn connect(socket: &Path) -> Result<Client> {
        let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
        Ok(Client { stream, decoder: Decoder::new(MOST_ANSWER), rest: Vec::new(), last: 0 })
    }

    /// Sends a request; its number.
    pub fn send(&mut self, request: &Request) -> Result<u16> {
        self.last = self.last.wrapping_add(1);
        let mut bytes = Vec::new();
        frame::encode(Kind::Request, self.last, &request.encode()?, &mut bytes);
        self.stream.write_all(&bytes).map_err(|_| Ended)?;
        Ok(self.last)
    }

    /// The next frame; none if nothing came for so long.
    pub fn receive(&mut self, patience: Duration) -> Result<Option<Frame>> {
        let end = Instant::now() + patience;
        loop {
            for (index, byte) in self.rest.iter().enumerate() {
                if let Some(frame) = self.decoder.feed(*byte) {
                    self.rest.drain(..=index);
                    return Ok(Some(frame));
                }
            }
            self.rest.clear();
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => bail!(Ended),
                Ok(count) => self.rest.extend(&buffer[..count]),
                Err(error) if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
                }
                Err(_) => bail!(Ended),
            }
        }
    }

    /// Asks and waits for the answer, which may be an error of the system's.
    pub fn try_ask(&mut self, request: &Request) -> Result<Result<Answer, Error>> {
        let number = self.send(request)?;
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let Some(frame) = self.receive(left)? else {
                bail!("the system did not answer within {} s: does it still start, or hang?", PATIENCE.as_secs());
            };
            if frame.number == number && frame.kind == Kind::Answer {
                let answer = Answer::decode(&frame.payload).context("an answer of another version")?;
                return Ok(match answer {
                    Answer::Error(error) => Err(error),
                    answer => Ok(answer),
                });
            }
        }
    }

    /// Asks; an error of the system's is one here, in words.
    pub fn ask(&mut self, request: &Request) -> Result<Answer> {
        match self.try_ask(request)? {
            Ok(answer) => Ok(answer),
            Err(error) => bail!("{}", in_words(error)),
        }
    }

    /// What system it is.
    pub fn system(&mut self) -> Result<SystemInfo> {
        match self.ask(&Request::System)? {
            Answer::System(system) => Ok(system),
            _ => bail!(UNEXPECTED),
        }
    }

    /// All tasks.
    pub fn tasks(&mut self) -> Result<Vec<TaskInfo>> {
        let mut all = Vec::new();
        let mut from = Some(0);
        while let Some(first) = from {
            let Answer::Tasks { tasks, next } = self.ask(&Request::Tasks { from: first })? else { bail!(UNEXPECTED) };
            all.extend(tasks);
            // A system that answers in a circle is not followed.
            from = next.filter(|next| *next > first);
        }
        Ok(all)
    }

    /// All accounts, and when the first of them was read.
    pub fn ledger(&mut self) -> Result<(u64, Vec<CpuAccount>, Vec<Account>)> {
        let (mut at, mut all_cpus, mut all) = (0, Vec::new(), Vec::new());
        let mut from = Some(0);
        while let Some(first) = from {
            let Answer::Ledger { now, cpus, tasks, next } = self.ask(&Request::Ledger { from: first })? else {
                bail!(UNEXPECTED)
            };
            if first == 0 {
                at = now;
            }
            all_cpus.extend(cpus);
            all.extend(tasks);
            from = next.filter(|next| *next > first);
        }
        Ok((at, all_cpus, all))
    }
}

/// What is said of an answer that does not fit its request.
pub const UNEXPECTED: &str = "the system answered something else than what was asked";

/// An error of the system's.
pub fn in_words(error: Error) -> String {
    match error {
        Error::BadRequest => "the system does not know this request: was it built from another version?".into(),
        Error::Busy => "the system is busy with another order to the same one: try again".into(),
        Error::NoSuchNumber => "there is no such CPU or task".into(),
        Error::NoSuchMachine => "there is no virtual machine of this name that can be controlled".into(),
        Error::NoSuchPolicy => "there is no policy of this name".into(),
        Error::NotGranted => "this system's description does not let its control task do this".into(),
        Error::NoAnswer => "no answer in time: it gets no CPU time, hangs, or was made anew meanwhile".into(),
        Error::Ended => "the virtual machine has ended".into(),
        Error::Refused => "refused: it is not in the state for it".into(),
        Error::Kernel(number) => format!("the kernel refused (error {number} of docs/abi/errors.md)"),
        Error::NoStream => "there is no such stream".into(),
    }
}
