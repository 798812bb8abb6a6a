//! Several clients on one line: whose output stands where, and who gets what is typed.
//!
//! The foreground client's bytes go out at once, so that prompts show. The others' go out in whole lines (or when their
//! buffer is full), so that lines of different clients never mix. A line begins with its client's name.
//!
//! What others write while somebody's line is under way is held until that line ends, but not for long: the line may be a prompt.

use alloc::{collections::VecDeque, format, string::String, vec::Vec};

/// Most clients. Further ones get nothing.
pub const MOST_CLIENTS: usize = 64;
/// Bytes of an unfinished line that are kept.
const LINE: usize = 256;
/// Bytes of others' lines that are held; with more, nothing is.
const HELD: usize = 4096;
/// Typed bytes that are kept for a client that does not read.
const TYPED: usize = 1024;
/// Ctrl-]: what is typed goes to the next client.
pub const ESCAPE: u8 = 0x1d;

/// One client.
#[derive(Debug)]
struct Client {
    number: u16,
    name: String,
    /// Its lines have no name before them.
    raw: bool,
    /// Its lines begin with the time.
    stamped: bool,
    /// Unfinished line of a client in the background.
    line: Vec<u8>,
    typed: VecDeque<u8>,
    /// It asked for input at least once.
    listens: bool,
}

/// All clients.
#[derive(Debug, Default)]
pub struct Consoles {
    clients: Vec<Client>,
    /// Number of the client that gets what is typed.
    foreground: Option<u16>,
    /// Whose line the terminal's cursor stands in; `None`: at the start of a line.
    open: Option<u16>,
    clock: Option<Clock>,
    held: Held,
}

/// Lines that wait for the end of another one.
#[derive(Debug, Default)]
struct Held {
    /// In the order in which they came, with whose they are.
    lines: Vec<(u16, Vec<u8>)>,
    /// Bytes of them all.
    bytes: usize,
    /// How long they wait at most; 0: not at all.
    patience: u64,
    /// When the first of them is to be put out.
    until: u64,
    now: u64,
}

/// What lines are stamped with: a counter, and its ticks a second.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Reads the counter.
    pub now: fn() -> u64,
    /// Ticks a second.
    pub hz: u64,
}

impl Clock {
    /// The time as a line begins with it.
    fn stamp(&self) -> String {
        let microseconds = u128::from((self.now)()) * 1_000_000 / u128::from(self.hz.max(1));
        format!("[{:5}.{:06}] ", microseconds / 1_000_000, microseconds % 1_000_000)
    }
}

impl Consoles {
    /// None yet.
    #[must_use]
    pub fn new() -> Consoles {
        Consoles::default()
    }

    /// Makes a client known before it writes, with its name; `raw`: no name before its lines. Answers whether there is room.
    pub fn add(&mut self, number: u16, name: &str, raw: bool) -> bool {
        if self.index(number).is_none() && self.clients.len() < MOST_CLIENTS {
            let line = Vec::new();
            self.clients.push(Client {
                number,
                name: name.into(),
                raw,
                stamped: false,
                line,
                typed: VecDeque::new(),
                listens: false,
            });
        }
        self.index(number).is_some()
    }

    /// Lets the lines of a client that is known begin with the time.
    pub fn stamp(&mut self, number: u16, clock: Clock) {
        self.clock = Some(clock);
        if let Some(client) = self.index(number).and_then(|index| self.clients.get_mut(index)) {
            client.stamped = true;
        }
    }

    /// Lets lines wait for the end of another one for at most so many ticks. Whoever calls [`Consoles::tick`] in time must have time of his own.
    pub fn hold(&mut self, patience: u64) {
        self.held.patience = patience;
    }

    /// When [`Consoles::tick`] has something to do.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        (!self.held.lines.is_empty()).then_some(self.held.until)
    }

    /// It is `now`: what has waited long enough goes to `out`.
    pub fn tick(&mut self, now: u64, out: &mut Vec<u8>) {
        self.held.now = now;
        if self.due().is_some_and(|due| due <= now) {
            self.release(out);
        }
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        self.held.bytes = 0;
        for (number, line) in core::mem::take(&mut self.held.lines) {
            self.put(number, &line, out);
        }
    }

    fn index(&self, number: u16) -> Option<usize> {
        self.clients.iter().position(|client| client.number == number)
    }

    /// The client with this number; one that nobody named is called by its number.
    fn client(&mut self, number: u16) -> Option<&mut Client> {
        if self.index(number).is_none() {
            self.add(number, &format!("{number}"), false);
        }
        self.index(number).and_then(|index| self.clients.get_mut(index))
    }

    /// A client writes `bytes`; what goes to the terminal is appended to `out`. Answers how many bytes were taken.
    pub fn write(&mut self, number: u16, bytes: &[u8], out: &mut Vec<u8>) -> usize {
        let foreground = self.foreground == Some(number);
        let Some(client) = self.client(number) else {
            return 0;
        };
        let mut line = core::mem::take(&mut client.line);
        for byte in bytes {
            line.push(*byte);
            if *byte == b'\n' || line.len() >= LINE {
                self.emit(number, &line, out);
                line.clear();
            }
        }
        if foreground && !line.is_empty() {
            self.emit(number, &line, out);
            line.clear();
        }
        if let Some(client) = self.client(number) {
            client.line = line;
        }
        bytes.len()
    }

    /// A part of a line (a newline only at its end) goes to the terminal, now or when the line that is under way there has ended.
    fn emit(&mut self, number: u16, part: &[u8], out: &mut Vec<u8>) {
        let elsewhere = self.open.is_some_and(|open| open != number);
        if elsewhere && self.held.patience > 0 && self.held.bytes + part.len() <= HELD {
            if self.held.lines.is_empty() {
                self.held.until = self.held.now.saturating_add(self.held.patience);
            }
            self.held.bytes += part.len();
            self.held.lines.push((number, part.to_vec()));
            return;
        }
        if elsewhere {
            self.release(out);
        }
        self.put(number, part, out);
        if self.open.is_none() {
            self.release(out);
        }
    }

    /// Puts a part of a line on the terminal.
    fn put(&mut self, number: u16, part: &[u8], out: &mut Vec<u8>) {
        if self.open != Some(number) {
            if self.open.is_some() {
                out.extend_from_slice(b"\r\n");
            }
            let clock = self.clock;
            if let Some(client) = self.client(number) {
                if let Some(clock) = clock.filter(|_| client.stamped) {
                    out.extend_from_slice(clock.stamp().as_bytes());
                }
                if !client.raw {
                    out.extend_from_slice(format!("{}: ", client.name).as_bytes());
                }
            }
        }
        match part.split_last() {
            Some((b'\n', text)) => {
                out.extend_from_slice(text);
                out.extend_from_slice(if text.ends_with(b"\r") { b"\n" } else { b"\r\n" });
                self.open = None;
            }
            _ => {
                out.extend_from_slice(part);
                self.open = Some(number);
            }
        }
    }

    /// A client asks for input: from now on it takes part in [`ESCAPE`]'s round, and the first one is in the foreground.
    pub fn listen(&mut self, number: u16, out: &mut Vec<u8>) {
        if let Some(client) = self.client(number) {
            client.listens = true;
            if self.foreground.is_none() {
                self.bring_forward(number, out);
            }
        }
    }

    fn bring_forward(&mut self, number: u16, out: &mut Vec<u8>) {
        self.release(out);
        self.foreground = Some(number);
        // Its unfinished line may be a prompt.
        let line = self.client(number).map(|client| core::mem::take(&mut client.line)).unwrap_or_default();
        if !line.is_empty() {
            self.emit(number, &line, out);
        }
    }

    /// A byte was typed. Answers the client that has it now and wants to know; notices of a switch go to `out`.
    pub fn typed(&mut self, byte: u8, out: &mut Vec<u8>) -> Option<u16> {
        if byte == ESCAPE {
            self.switch(out);
            return None;
        }
        let client = self.foreground.and_then(|number| self.client(number))?;
        if client.typed.len() >= TYPED {
            return None;
        }
        client.typed.push_back(byte);
        Some(client.number)
    }

    /// The next client that listens comes to the foreground.
    fn switch(&mut self, out: &mut Vec<u8>) {
        let now = self.foreground.and_then(|number| self.index(number)).map_or(0, |index| index + 1);
        let next = self.clients.iter().cycle().skip(now).take(self.clients.len()).find(|client| client.listens);
        let Some((number, name)) = next.map(|client| (client.number, client.name.clone())) else {
            return;
        };
        self.release(out);
        if self.open.take().is_some() {
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(format!("-- input goes to {name} --\r\n").as_bytes());
        self.bring_forward(number, out);
    }

    /// Takes at most `most` bytes of what was typed for a client.
    pub fn read(&mut self, number: u16, most: usize) -> Vec<u8> {
        self.client(number).map_or_else(Vec::new, |client| {
            let count = client.typed.len().min(most);
            client.typed.drain(..count).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::string::ToString;

    fn text(out: &[u8]) -> String {
        String::from_utf8_lossy(out).to_string()
    }

    #[test]
    fn stamps_stand_before_the_name() {
        let mut consoles = Consoles::new();
        consoles.add(1, "one", false);
        consoles.add(2, "two", false);
        consoles.stamp(2, Clock { now: || 1_500_000, hz: 1_000_000 });
        let mut out = Vec::new();
        consoles.write(1, b"a\n", &mut out);
        consoles.write(2, b"b\n", &mut out);
        assert_eq!(out, b"one: a\r\n[    1.500000] two: b\r\n");
    }

    #[test]
    fn lines_of_clients_do_not_mix() {
        let mut consoles = Consoles::new();
        consoles.add(1, "one", false);
        consoles.add(2, "two", true);
        let mut out = Vec::new();
        consoles.write(1, b"be", &mut out);
        consoles.write(2, b"raw\n", &mut out);
        consoles.write(1, b"gin\nnext\nrest", &mut out);
        consoles.write(7, b"unnamed\r\n", &mut out);
        assert_eq!(text(&out), "raw\r\none: begin\r\none: next\r\n7: unnamed\r\n");
    }

    #[test]
    fn the_foreground_shows_prompts_and_gets_the_keys() {
        let mut consoles = Consoles::new();
        consoles.add(1, "one", false);
        consoles.add(2, "two", false);
        let mut out = Vec::new();
        assert_eq!(consoles.typed(b'x', &mut out), None);
        consoles.write(1, b"login: ", &mut out);
        assert_eq!(text(&out), "");
        consoles.listen(1, &mut out);
        consoles.listen(2, &mut out);
        assert_eq!(text(&out), "one: login: ");
        consoles.write(2, b"hi\n", &mut out);
        consoles.write(1, b"> ", &mut out);
        assert_eq!(text(&out), "one: login: \r\ntwo: hi\r\none: > ");
        assert_eq!(consoles.typed(b'a', &mut out), Some(1));
        out.clear();
        assert_eq!(consoles.typed(ESCAPE, &mut out), None);
        assert_eq!(text(&out), "\r\n-- input goes to two --\r\n");
        assert_eq!(consoles.typed(b'b', &mut out), Some(2));
        assert_eq!(
            (consoles.read(1, 10), consoles.read(2, 10), consoles.read(2, 10)),
            (b"a".to_vec(), b"b".to_vec(), Vec::new())
        );
        consoles.typed(ESCAPE, &mut out);
        assert_eq!(consoles.typed(b'c', &mut out), Some(1));
    }

    #[test]
    fn who_writes_into_a_line_waits_for_its_end_but_not_for_long() {
        let mut consoles = Consoles::new();
        consoles.add(1, "one", true);
        consoles.add(2, "two", false);
        consoles.hold(20);
        let mut out = Vec::new();
        consoles.listen(1, &mut out);
        consoles.tick(100, &mut out);
        consoles.write(1, b"the sum ", &mut out);
        consoles.write(2, b"hello\nagain\n", &mut out);
        assert_eq!((text(&out).as_str(), consoles.due()), ("the sum ", Some(120)));
        consoles.tick(110, &mut out);
        consoles.write(1, b"is 42\n# ", &mut out);
        assert_eq!(text(&out), "the sum is 42\r\ntwo: hello\r\ntwo: again\r\n# ");
        // A prompt: nobody knows when its line ends.
        out.clear();
        consoles.write(2, b"late\n", &mut out);
        consoles.tick(129, &mut out);
        assert_eq!((text(&out).as_str(), consoles.due()), ("", Some(130)));
        consoles.tick(130, &mut out);
        assert_eq!((text(&out).as_str(), consoles.due()), ("\r\ntwo: late\r\n", None));
        // More than is held goes out at once, behind what was held before.
        out.clear();
        consoles.write(1, b"# ", &mut out);
        let many: Vec<u8> = (0..HELD / 8 + 1).flat_map(|number| format!("{number:07}\n").into_bytes()).collect();
        consoles.write(2, &many, &mut out);
        assert!(text(&out).starts_with("# \r\ntwo: 0000000\r\ntwo: 0000001\r\n"));
        assert_eq!(text(&out).matches("two: ").count(), HELD / 8 + 1);
    }

    #[test]
    fn clients_beyond_the_bound_get_nothing() {
        let mut consoles = Consoles::new();
        let mut out = Vec::new();
        for number in 0..100 {
            let taken = consoles.write(number, b"x\n", &mut out);
            assert_eq!(taken > 0, usize::from(number) < MOST_CLIENTS);
        }
        assert_eq!(consoles.clients.len(), MOST_CLIENTS);
        assert!(consoles.read(99, 1).is_empty());
    }

    proptest! {
        /// Whatever clients write: each one's bytes come out in order, and memory stays bounded.
        #[test]
        fn bounded_and_complete(steps in prop::collection::vec((0u16..4, prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'a'), any::<u8>()], 0..300)), 0..12)) {
            let mut consoles = Consoles::new();
            consoles.hold(2);
            let mut out = Vec::new();
            let mut given = 0;
            for ((number, bytes), now) in steps.iter().zip(1..) {
                consoles.tick(now, &mut out);
                given += consoles.write(*number, bytes, &mut out);
                for byte in bytes {
                    consoles.typed(*byte, &mut out);
                }
                consoles.listen(*number, &mut out);
            }
            prop_assert!(consoles.held.bytes <= HELD);
            consoles.tick(u64::MAX, &mut out);
            prop_assert!(consoles.due().is_none());
            let kept: usize = consoles.clients.iter().map(|client| client.line.len()).sum();
            prop_assert!(consoles.clients.iter().all(|client| client.line.len() <= LINE && client.typed.len() <= TYPED));
            prop_assert!(out.len() + kept >= given);
        }
    }
}
