//! The line: frames, credit, and whose answer is whose.

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use moira_proto::frame::{self, Decoder, Frame, Kind, MOST_ANSWER, VERSION};

/// How long the system may owe credit before the line is begun anew: bytes were lost, or the other side was.
const PATIENCE: Duration = Duration::from_secs(30);

/// The line to a system. Clones are the same line.
#[derive(Clone)]
pub struct Link(Arc<Shared>);

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Bytes that may be sent; none before the system has greeted.
    credit: usize,
    greeted: bool,
    /// Number of the last reset, for its greeting.
    resets: u16,
    /// What was sent last, and when: without credit for so long, something was lost.
    since: Option<Instant>,
    queue: VecDeque<u8>,
    last: u16,
    /// Who waits for answers to a number.
    waiting: HashMap<u16, Sender<Frame>>,
    closed: bool,
}

impl Link {
    /// Takes the line. Two threads serve it until it ends.
    pub fn new(stream: TcpStream) -> Result<Link> {
        let link = Link(Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() }));
        let (mut reading, reader, writer) = (stream.try_clone()?, link.clone(), link.clone());
        reading.set_read_timeout(None)?;
        std::thread::spawn(move || {
            reader.read(&mut reading);
            reader.close();
        });
        std::thread::spawn(move || {
            // A line that is gone is found by the reader, too.
            let _ = writer.write(stream);
            writer.close();
        });
        Ok(link)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        state.waiting.clear();
        self.0.changed.notify_all();
    }

    /// Sends a request; its answers go to `answers` until the last one. Answers the number under which it was sent, none if the line is
    /// gone.
    pub fn ask(&self, payload: &[u8], answers: Sender<Frame>) -> Option<u16> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        let number = (1..=u16::MAX).map(|step| state.last.wrapping_add(step)).find(|number| {
            // 0 is the system's own.
            *number != 0 && !state.waiting.contains_key(number)
        })?;
        state.last = number;
        state.waiting.insert(number, answers);
        let mut bytes = Vec::new();
        frame::encode(Kind::Request, number, payload, &mut bytes);
        state.queue.extend(bytes);
        self.0.changed.notify_all();
        Some(number)
    }

    /// Whether the line is gone, and the system with it.
    pub fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Nobody waits for answers to this number any more.
    pub fn forget(&self, number: u16) {
        self.state().waiting.remove(&number);
    }

    fn read(&self, stream: &mut TcpStream) {
        let mut decoder = Decoder::new(MOST_ANSWER);
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            for byte in &buffer[..count] {
                if let Some(frame) = decoder.feed(*byte) {
                    self.take(frame);
                }
            }
        }
    }

    fn take(&self, frame: Frame) {
        let mut state = self.state();
        match (frame.kind, frame.payload.as_slice()) {
            (Kind::Hello, [VERSION, low, high]) if frame.number == 0 || frame.number == state.resets => {
                if frame.number == 0 && state.greeted {
                    // The control task was made anew and knows of nothing. Dropping the senders tells who waits.
                    state.waiting.clear();
                    state.queue.clear();
                }
                state.greeted = true;
                state.credit = u16::from_le_bytes([*low, *high]).into();
                state.since = None;
            }
            (Kind::Credit, [low, high]) => {
                state.credit += usize::from(u16::from_le_bytes([*low, *high]));
                state.since = None;
            }
            (Kind::Part, _) => {
                // Who went away is forgotten with the last answer.
                let _ = state.waiting.get(&frame.number).map(|answers| answers.send(frame));
            }
            (Kind::Answer, _) => {
                let _ = state.waiting.remove(&frame.number).map(|answers| answers.send(frame));
            }
            // What is no frame of this version is none for us.
            _ => {}
        }
        self.0.changed.notify_all();
    }

    fn write(&self, mut stream: TcpStream) -> std::io::Result<()> {
        loop {
            let bytes = self.next();
            if bytes.is_empty() {
                return Ok(());
            }
            stream.write_all(&bytes)?;
        }
    }

    /// Waits for what may be sent now; nothing at the line's end.
    fn next(&self) -> Vec<u8> {
        let mut state = self.state();
        loop {
            if state.closed {
                return Vec::new();
            }
            if state.greeted && !state.queue.is_empty() && state.credit > 0 {
                let count = state.credit.min(state.queue.len());
                state.credit -= count;
                state.since.get_or_insert_with(Instant::now);
                return state.queue.drain(..count).collect();
            }
            if state.since.is_some_and(|since| since.elapsed() > PATIENCE) {
                state.resets = state.resets.wrapping_add(1).max(1);
                state.since = Some(Instant::now());
                // The bytes of a request that was cut in two are no request.
                state.waiting.clear();
                state.queue.clear();
                let mut bytes = Vec::new();
                frame::encode(Kind::Reset, state.resets, &[], &mut bytes);
                return bytes;
            }
            let wait = self.0.changed.wait_timeout(state, Duration::from_secs(1));
            state = wait.unwrap_or_else(|poisoned| poisoned.into_inner()).0;
        }
    }
}
