//! Logging: the `log` facade, one line at a time to a sink.

use crate::mapped;
use core::fmt::{self, Write};
use log::{Level, LevelFilter, Log, Metadata, Record};
use moira_proto::{console, start::StartInfo};
use moira_sys::{Endpoint, Message, MessageBuffer, Platform, Slot};

/// Where lines go. Called by whichever thread logs, with that thread's message buffer, which it may overwrite as far as
/// [`Line::BYTES`] (the runtime keeps what was there).
pub trait Sink: Sync {
    /// Writes bytes, as far as it can. It must not log.
    fn write(&self, buffer: &mut MessageBuffer, bytes: &[u8]);
}

static SINK: spin::Once<&'static dyn Sink> = spin::Once::new();

/// Sets the sink, once: the first call wins. Lines logged before are lost.
pub fn set_sink(sink: &'static dyn Sink, level: LevelFilter) {
    SINK.call_once(|| sink);
    // Set already means that another thread was faster; the level is then its choice too.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

/// Lines to the console task.
#[derive(Debug)]
pub struct ConsoleSink(pub Endpoint);

impl Sink for ConsoleSink {
    fn write(&self, buffer: &mut MessageBuffer, mut bytes: &[u8]) {
        let mut stalls = 0;
        while !bytes.is_empty() && stalls < 4 {
            let count = buffer.write(bytes);
            let Ok(answer) = self.0.call(&Message::new(console::WRITE).bytes(count)) else {
                return;
            };
            let taken = usize::try_from(answer.words[0]).unwrap_or(usize::MAX).min(count);
            stalls += usize::from(taken == 0);
            bytes = bytes.get(taken..).unwrap_or_default();
        }
    }
}

/// Lines to the kernel's log, for the root task.
#[derive(Debug)]
pub struct PlatformSink(pub Platform);

impl Sink for PlatformSink {
    fn write(&self, buffer: &mut MessageBuffer, bytes: &[u8]) {
        // Nobody is left to tell if even this fails.
        let _ = self.0.log(buffer, bytes);
    }
}

/// Sets up what a task's start information says: a console under the name `console`, a level by argument `log=LEVEL`
/// (`off`, `error`, `warn`, `info`, `debug`, `trace`; `info` if nothing is said).
pub(crate) fn init_task(info: &StartInfo) {
    let Some(slot) = info.capability("console") else {
        return;
    };
    static CONSOLE: spin::Once<ConsoleSink> = spin::Once::new();
    let named = info.arguments.iter().find_map(|argument| argument.strip_prefix("log="));
    let level = named.and_then(|name| name.parse().ok()).unwrap_or(LevelFilter::Info);
    set_sink(CONSOLE.call_once(|| ConsoleSink(Endpoint::new(Slot(slot)))), level);
}

/// One line of text of bounded length. What does not fit is cut off, and the line says so.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; Line::BYTES],
    length: usize,
    cut: bool,
}

impl Line {
    /// Most bytes of a line.
    pub const BYTES: usize = 512;
    const MARK: &'static str = "...";

    /// An empty line.
    #[must_use]
    #[allow(clippy::new_without_default, reason = "empty is not a default of text")]
    pub const fn new() -> Line {
        Line { bytes: [0; Line::BYTES], length: 0, cut: false }
    }

    /// Its text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    /// Ends the line; there is always room for that.
    fn end(&mut self) {
        if let Some(byte) = self.bytes.get_mut(self.length) {
            *byte = b'\n';
            self.length += 1;
        }
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.cut {
            return Ok(());
        }
        let room = Line::BYTES - 1 - Line::MARK.len() - self.length;
        let mut count = text.len().min(room);
        while !text.is_char_boundary(count) {
            count -= 1;
        }
        self.cut = count < text.len();
        for part in [text.get(..count).unwrap_or_default(), if self.cut { Line::MARK } else { "" }] {
            if let Some(place) = self.bytes.get_mut(self.length..self.length + part.len()) {
                place.copy_from_slice(part.as_bytes());
                self.length += part.len();
            }
        }
        Ok(())
    }
}

struct Logger;

static LOGGER: Logger = Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record) {
        let Some(sink) = SINK.get() else { return };
        if !self.enabled(record.metadata()) {
            return;
        }
        let mut line = Line::new();
        // `Line` never refuses; a `Display` that fails leaves a shorter line.
        let _ = match record.level() {
            Level::Info => write!(line, "{}", record.args()),
            level => write!(line, "{}: {}", level.as_str().to_ascii_lowercase(), record.args()),
        };
        line.end();
        mapped::with_current_buffer(|buffer| {
            // A message may be waiting in the buffer to be read.
            let mut kept = [0; Line::BYTES];
            buffer.read(&mut kept);
            sink.write(buffer, line.bytes.get(..line.length).unwrap_or_default());
            buffer.write(&kept);
        });
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_a_character_and_say_so() {
        let mut line = Line::new();
        for _ in 0..300 {
            write!(line, "ää").unwrap();
        }
        line.end();
        assert!(line.length <= Line::BYTES);
        assert!(line.as_str().ends_with("...\n"));
        assert!(!line.as_str().contains('\u{fffd}'));
        let mut short = Line::new();
        write!(short, "a:{}", 1).unwrap();
        assert_eq!(short.as_str(), "a:1");
    }
}
