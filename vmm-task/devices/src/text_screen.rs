//! What can be had of a VGA's text mode without a screen: the cursor's registers, and the text itself as lines of a log.
//!
//! Text memory at B8000h is plain RAM. As long as a guest has said nothing on its serial port or the debug console, this model
//! looks there now and then and gives what is new, line by line. Colours, fonts, modes and graphics do not exist.

use crate::traits::GuestMemory;
use alloc::boxed::Box;
use alloc::vec::Vec;

/// Index and data of the CRT controller.
pub const CRTC: u16 = 0x3D4;
/// Input status: retrace.
pub const STATUS: u16 = 0x3DA;
const MEMORY: u64 = 0xB8000;
/// The window of text memory in bytes.
const WINDOW: usize = 0x8000;
const COLUMNS: usize = 80;
const ROWS: usize = 25;
const REGISTERS: usize = 25;
/// Where the picture begins in text memory, in characters.
const START_HIGH: usize = 0x0C;
const START_LOW: usize = 0x0D;
/// Display not enabled, vertical retrace.
const RETRACE: u8 = 1 | 8;

/// Between two looks, in nanoseconds: while the text changes, at most while it does not, and how long until it is given up that
/// there ever will be some.
const OFTEN: u64 = 250_000_000;
const SELDOM: u64 = 4_000_000_000;
const NEVER: u64 = 64_000_000_000;

type Row = [u8; COLUMNS];
const BLANK: Row = [b' '; COLUMNS];

/// The registers, and what was shown.
#[derive(Clone, Debug)]
pub struct TextScreen {
    index: u8,
    registers: [u8; REGISTERS],
    retrace: bool,
    shown: Option<Box<[Row; ROWS]>>,
    next: Option<u64>,
    period: u64,
}

impl Default for TextScreen {
    fn default() -> Self {
        Self::new()
    }
}

impl TextScreen {
    /// Nothing written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { index: 0, registers: [0; REGISTERS], retrace: false, shown: None, next: Some(0), period: OFTEN }
    }

    /// Reads a port. The retrace comes and goes with each look at it, so that nobody waits for it long.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            STATUS => {
                self.retrace = !self.retrace;
                if self.retrace { RETRACE } else { 0 }
            }
            CRTC => self.index,
            _ => self.registers.get(usize::from(self.index)).copied().unwrap_or(0),
        }
    }

    /// Writes a port.
    pub fn write(&mut self, port: u16, value: u8) {
        match port {
            CRTC => self.index = value,
            STATUS => {}
            _ => {
                if let Some(register) = self.registers.get_mut(usize::from(self.index)) {
                    *register = value;
                }
            }
        }
    }

    /// When [`Self::poll`] wants to look, in nanoseconds.
    #[must_use]
    pub const fn next_deadline(&self) -> Option<u64> {
        self.next
    }

    /// The guest talks elsewhere: never looks again.
    pub fn mute(&mut self) {
        self.next = None;
    }

    /// Looks if it is time: the lines that are new.
    pub fn poll(&mut self, now: u64, memory: &dyn GuestMemory) -> Vec<u8> {
        if self.next.is_none_or(|next| now < next) {
            return Vec::new();
        }
        let had_text = self.shown.is_some();
        let lines = self.look(memory);
        self.period = match (lines.is_empty(), had_text) {
            (false, _) => OFTEN,
            (true, true) => (2 * self.period).min(SELDOM),
            (true, false) => 2 * self.period,
        };
        self.next = (self.period < NEVER).then(|| now.saturating_add(self.period));
        lines
    }

    /// Looks now, for the last time; nothing if it was muted.
    pub fn last(&mut self, memory: &dyn GuestMemory) -> Vec<u8> {
        if self.next.take().is_none() && self.shown.is_none() {
            return Vec::new();
        }
        self.look(memory)
    }

    /// The lines that were not there at the last look. Text that has only moved up is not new.
    fn look(&mut self, memory: &dyn GuestMemory) -> Vec<u8> {
        let rows = self.rows(memory);
        let blank = Box::new([BLANK; ROWS]);
        let before = self.shown.as_ref().unwrap_or(&blank);
        let same = |by: usize| {
            let pairs = rows.iter().zip(before.iter().skip(by));
            pairs.filter(|(new, old)| **new != BLANK && new == old).count()
        };
        // The least scrolling that explains most.
        let scrolled = (1..ROWS).fold((0, same(0)), |best, by| if same(by) > best.1 { (by, same(by)) } else { best }).0;
        let mut lines = Vec::new();
        for (row, new) in rows.iter().enumerate() {
            if *new == BLANK || before.get(row + scrolled) == Some(new) {
                continue;
            }
            lines.extend_from_slice(b"screen: ");
            let end = new.iter().rposition(|byte| *byte != b' ').map_or(0, |last| last + 1);
            lines.extend_from_slice(new.get(..end).unwrap_or_default());
            lines.extend_from_slice(b"\r\n");
        }
        if self.shown.is_some() || !lines.is_empty() {
            self.shown = Some(rows);
        }
        lines
    }

    fn rows(&self, memory: &dyn GuestMemory) -> Box<[Row; ROWS]> {
        let [high, low] = [START_HIGH, START_LOW].map(|at| self.registers.get(at).copied().unwrap_or(0));
        let start = 2 * usize::from(u16::from_be_bytes([high, low])) % WINDOW;
        let mut rows = Box::new([BLANK; ROWS]);
        for (row, to) in rows.iter_mut().enumerate() {
            let mut cells = [0; 2 * COLUMNS];
            let at = MEMORY + ((start + row * cells.len()) % WINDOW) as u64;
            if memory.read(at, &mut cells).is_err() {
                continue;
            }
            for (to, [character, _]) in to.iter_mut().zip(cells.as_chunks::<2>().0) {
                *to = match character {
                    0 | 0xFF => b' ',
                    b' '..=b'~' => *character,
                    // Of code page 437: lines and blocks.
                    0xB3 | 0xBA => b'|',
                    0xC4 | 0xCD => b'-',
                    0xB0..=0xDF => b'+',
                    _ => b'.',
                };
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::Ram;
    use std::string::String;

    fn put(memory: &Ram, row: usize, text: &str) {
        for (column, byte) in (0..80).zip(text.bytes().chain(core::iter::repeat(b' '))) {
            memory.write(MEMORY + (2 * (row * COLUMNS + column)) as u64, &[byte, 7]).unwrap();
        }
    }

    fn text(lines: Vec<u8>) -> String {
        String::from_utf8(lines).unwrap()
    }

    #[test]
    fn the_cursor_is_where_it_was_put() {
        let mut screen = TextScreen::new();
        for (register, value) in [(14, 3), (15, 0x7F)] {
            screen.write(CRTC, register);
            screen.write(CRTC + 1, value);
        }
        screen.write(CRTC, 14);
        assert_eq!((screen.read(CRTC), screen.read(CRTC + 1)), (14, 3));
        screen.write(CRTC, 200);
        screen.write(CRTC + 1, 9);
        assert_eq!(screen.read(CRTC + 1), 0);
        assert_ne!(screen.read(STATUS), screen.read(STATUS));
    }

    #[test]
    fn new_lines_are_shown_once_also_when_they_scroll() {
        let memory = Ram::new(1 << 20);
        let mut screen = TextScreen::new();
        assert_eq!(text(screen.poll(0, &memory)), "");
        put(&memory, 0, "Hello, world");
        put(&memory, 2, "\u{1}ok");
        assert_eq!(screen.poll(OFTEN, &memory), b"", "it is not time");
        assert_eq!(text(screen.poll(2 * OFTEN, &memory)), "screen: Hello, world\r\nscreen: .ok\r\n");
        assert_eq!(text(screen.poll(9 * OFTEN, &memory)), "");
        for row in 0..ROWS {
            put(&memory, row, &std::format!("line {row}"));
        }
        assert_eq!(text(screen.poll(20 * OFTEN, &memory)).lines().count(), ROWS);
        for row in 0..ROWS {
            put(&memory, row, &std::format!("line {}", row + 3));
        }
        let new = text(screen.poll(40 * OFTEN, &memory));
        assert_eq!(new, "screen: line 25\r\nscreen: line 26\r\nscreen: line 27\r\n");
        // The picture begins elsewhere: three rows on.
        for (register, value) in [(12, 0), (13, 240)] {
            screen.write(CRTC, register);
            screen.write(CRTC + 1, value);
        }
        assert_eq!(text(screen.last(&memory)), "");
    }

    #[test]
    fn it_gives_up_and_keeps_quiet_when_it_is_told() {
        let memory = Ram::new(1 << 20);
        let mut screen = TextScreen::new();
        let mut looks = 0;
        while let Some(next) = screen.next_deadline() {
            assert!(screen.poll(next, &memory).is_empty());
            looks += 1;
        }
        assert!(looks < 10);
        let mut screen = TextScreen::new();
        put(&memory, 0, "Hello");
        screen.mute();
        assert_eq!((screen.poll(0, &memory), screen.last(&memory)), (Vec::new(), Vec::new()));
        // Without memory there it is blank.
        assert!(TextScreen::new().poll(0, &Ram::new(4096)).is_empty());
    }
}
