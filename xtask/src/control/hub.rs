//! Lets several commands share the control channel of one system: a Unix socket that takes the same requests.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use moira_proto::control::{Answer, Error, Request};
use moira_proto::frame::{self, Decoder, Kind, MOST_REQUEST};

use super::link::Link;

/// The file in a run's folder that holds the path of its socket. The socket itself lies elsewhere: its path must be short.
pub const FILE: &str = "control";

/// The socket of a running system. Dropping it takes the socket away.
pub struct Hub {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    file: PathBuf,
}

impl Hub {
    /// Shares `line`, and says so in `folder`.
    pub fn open(line: TcpStream, folder: &Path) -> Result<Hub> {
        let own = tempfile::Builder::new().prefix("moira-").tempdir().context("no folder for the control socket")?;
        let socket = own.path().join("control");
        let listener = UnixListener::bind(&socket).with_context(|| format!("no socket at {}", socket.display()))?;
        let link = Link::new(line)?;
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let link = link.clone();
                // A client that goes away in the middle is no matter.
                std::thread::spawn(move || serve(&client, &link));
            }
        });
        let file = folder.join(FILE);
        fs::write(&file, socket.as_os_str().as_encoded_bytes())
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(Hub { _folder: own, socket, file })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.file);
    }
}

/// Serves one client until it goes away, then closes the streams that it opened.
fn serve(client: &UnixStream, link: &Link) -> Result<()> {
    let mut reading = client.try_clone()?;
    let writing = Arc::new(Mutex::new(client.try_clone()?));
    // The client's numbers of requests that may be under way, and the line's.
    let numbers = Arc::new(Mutex::new(HashMap::<u16, u16>::new()));
    let mut decoder = Decoder::new(MOST_REQUEST);
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = reading.read(&mut buffer) {
        for byte in &buffer[..count] {
            let Some(frame) = decoder.feed(*byte).filter(|frame| frame.kind == Kind::Request) else { continue };
            let payload = with_stream(frame.payload, |stream| {
                numbers.lock().ok().and_then(|numbers| numbers.get(&stream).copied()).unwrap_or(0)
            })?;
            forward(link, frame.number, &payload, &writing, &numbers)?;
        }
    }
    for number in numbers.lock().map(|numbers| numbers.values().copied().collect::<Vec<_>>()).unwrap_or_default() {
        link.forget(number);
        let (answers, _) = channel();
        link.ask(&Request::Close { stream: number }.encode()?, answers);
    }
    Ok(())
}

/// Streams are named by the number of the request that opened them, which the line knows under another one.
fn with_stream(payload: Vec<u8>, translate: impl Fn(u16) -> u16) -> Result<Vec<u8>> {
    Ok(match Request::decode(&payload) {
        Ok(Request::Write { stream, bytes }) => Request::Write { stream: translate(stream), bytes }.encode()?,
        Ok(Request::Close { stream }) => Request::Close { stream: translate(stream) }.encode()?,
        _ => payload,
    })
}

type Numbers = Arc<Mutex<HashMap<u16, u16>>>;

/// Sends one request on, and its answers back.
fn forward(link: &Link, own: u16, payload: &[u8], writing: &Arc<Mutex<UnixStream>>, numbers: &Numbers) -> Result<()> {
    let (sender, answers) = channel();
    let number = link.ask(payload, sender);
    if let (Some(number), Ok(mut numbers)) = (number, numbers.lock()) {
        numbers.insert(own, number);
    }
    let (link, writing, numbers) = (link.clone(), writing.clone(), numbers.clone());
    std::thread::spawn(move || {
        let mut last = false;
        let send = |kind, payload: &[u8]| {
            let mut bytes = Vec::new();
            frame::encode(kind, own, payload, &mut bytes);
            writing.lock().map(|mut stream| stream.write_all(&bytes))
        };
        while let Ok(frame) = answers.recv() {
            last = frame.kind == Kind::Answer;
            if !matches!(send(frame.kind, &frame.payload), Ok(Ok(()))) {
                return;
            }
        }
        if !last && link.is_closed() {
            // The system has ended. That its socket closes tells the client so.
            let _ = writing.lock().map(|stream| stream.shutdown(Shutdown::Both));
        } else if !last {
            // The line, or the control task, has begun anew.
            let _ = Answer::Error(Error::NoAnswer).encode().map(|payload| send(Kind::Answer, &payload));
        }
        if let Ok(mut numbers) = numbers.lock() {
            numbers.remove(&own);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Duration;

    use super::*;
    use crate::control::client::{Client, Ended};

    #[test]
    fn a_client_that_waits_is_told_when_the_system_ends() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let system = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let hub = Hub::open(listener.accept().unwrap().0, folder.path()).unwrap();
        let mut client = Client::connect(hub.socket()).unwrap();
        std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            drop(system);
        });
        assert!(client.ask(&Request::System).unwrap_err().is::<Ended>());
        // And so is who asks afterwards.
        let mut late = Client::connect(hub.socket()).unwrap();
        assert!(late.ask(&Request::System).unwrap_err().is::<Ended>());
    }
}
