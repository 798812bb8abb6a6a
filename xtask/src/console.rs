//! What the serial port says: lines, guest time, and how the system ended.

use std::time::Duration;

/// The line with which a system announces that it ended as it should.
const ENDED: &str = "moira: system ended: ";
const REFUSED: &str = "moira: cannot boot: ";
const PANIC: &str = "moira: kernel panic";
const FAULT: &str = "moira: task fault";

/// How a system said that it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// As it should.
    Ok,
    /// Not as it should, with the reason it gave.
    Failed(String),
}

/// Follows the bytes of a serial port.
#[derive(Debug, Default)]
pub struct Watch {
    /// Everything so far as text, without carriage returns.
    text: String,
    /// Bytes that are not yet a whole character.
    rest: Vec<u8>,
    /// Where the first line not yet looked at starts in `text`.
    line: usize,
    /// Whether the last line lacked its end when nothing more came.
    unfinished: bool,
    /// The end that the system announced.
    pub end: Option<End>,
    /// Why the kernel could not boot.
    pub refused: Option<String>,
    /// The first line of a kernel panic.
    pub panic: Option<String>,
    /// The first task fault that nobody handled.
    pub fault: Option<String>,
    /// Guest time between the first timestamp and the last. Timestamps count from the processor's reset, firmware included.
    pub clock: Duration,
    /// The first timestamp.
    started: Option<Duration>,
}

impl Watch {
    /// Everything so far, without carriage returns.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The part of the text that consists of whole lines.
    pub fn whole_lines(&self) -> &str {
        &self.text[..self.line]
    }

    /// Whether the port's last word was a whole line; known after [`Watch::finish`].
    pub fn ends_with_newline(&self) -> bool {
        !self.unfinished
    }

    /// Takes bytes from the port. Returns the lines that were completed by them.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(bytes);
        // A character cut in two waits for its second half; what is no UTF-8 at all does not.
        let keep = match std::str::from_utf8(&self.rest) {
            Err(error) if error.error_len().is_none() => self.rest.len() - error.valid_up_to(),
            _ => 0,
        };
        let tail = self.rest.split_off(self.rest.len() - keep);
        let text = String::from_utf8_lossy(&self.rest).replace('\r', "");
        self.rest = tail;
        self.text.push_str(&text);
        let mut lines = Vec::new();
        while let Some(length) = self.text[self.line..].find('\n') {
            let line = self.text[self.line..self.line + length].to_string();
            self.line += length + 1;
            self.look_at(&line);
            lines.push(line);
        }
        lines
    }

    /// Looks at a last line that was never completed, when nothing more will come: the emulator may end before the
    /// line's own end is out.
    pub fn finish(&mut self) {
        self.unfinished = self.line < self.text.len();
        if self.unfinished {
            let line = self.text[self.line..].to_string();
            self.look_at(&line);
            self.text.push('\n');
            self.line = self.text.len();
        }
    }

    fn look_at(&mut self, line: &str) {
        let (time, message) = without_time(line);
        if let Some(time) = time {
            self.clock = time.saturating_sub(*self.started.get_or_insert(time));
        }
        if let Some(how) = message.strip_prefix(ENDED) {
            let how = how.trim();
            let why = || how.strip_prefix("failed: ").unwrap_or(how).to_string();
            self.end.get_or_insert_with(|| if how == "ok" { End::Ok } else { End::Failed(why()) });
        } else if let Some(why) = message.strip_prefix(REFUSED) {
            self.refused.get_or_insert_with(|| why.to_string());
        } else if message.starts_with(PANIC) {
            self.panic.get_or_insert_with(|| message.to_string());
        } else if message.starts_with(FAULT) {
            self.fault.get_or_insert_with(|| message.to_string());
        }
    }
}

/// Takes a line apart into its timestamp `[   12.345678] `, if it has one, and the message.
fn without_time(line: &str) -> (Option<Duration>, &str) {
    let parsed = line.strip_prefix('[').and_then(|rest| rest.split_once("] ")).and_then(|(time, message)| {
        let seconds: f64 = time.trim().parse().ok()?;
        // From text that may say anything: what is no duration is no timestamp.
        Some((Duration::try_from_secs_f64(seconds).ok()?, message))
    });
    match parsed {
        Some((time, message)) => (Some(time), message),
        None => (None, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(text: &str) -> Watch {
        let mut watch = Watch::default();
        // Byte by byte: nothing may depend on how the emulator cuts its output.
        for byte in text.bytes() {
            watch.feed(&[byte]);
        }
        watch.finish();
        watch
    }

    #[test]
    fn the_end_is_seen_with_and_without_a_timestamp() {
        assert_eq!(watch("moira: system ended: ok\r\n").end, Some(End::Ok));
        assert_eq!(watch("[   12.500000] moira: system ended: ok\r\n").end, Some(End::Ok));
        assert_eq!(watch("x moira: system ended: ok\n").end, None, "a guest that quotes it ends nothing");
    }

    #[test]
    fn an_end_without_a_newline_counts() {
        assert_eq!(watch("moira: system ended: ok").end, Some(End::Ok));
    }

    #[test]
    fn failures_carry_their_reason() {
        let seen = watch("moira: system ended: failed: no module\n").end;
        assert_eq!(seen, Some(End::Failed("no module".into())));
        assert_eq!(watch("moira: system ended: okay?\n").end, Some(End::Failed("okay?".into())));
    }

    #[test]
    fn panics_and_faults_are_seen_at_the_start_of_a_line() {
        let seen = watch("[ 0.5] moira: kernel panic: at x\nmoira: task fault: y\nz\n");
        assert_eq!(seen.panic.as_deref(), Some("moira: kernel panic: at x"));
        assert_eq!(seen.fault.as_deref(), Some("moira: task fault: y"));
        assert!(watch("vm: moira: kernel panic\n").panic.is_none());
    }

    #[test]
    fn the_clock_runs_from_the_first_timestamp_to_the_last() {
        assert_eq!(watch("[    1.000000] a\nb\n[    2.250000] c\n[x] d\n").clock, Duration::from_millis(1250));
        assert_eq!(watch("[-1.0] a\n[inf] b\n[nan] c\n").clock, Duration::ZERO);
    }

    #[test]
    fn split_and_broken_characters_are_text() {
        assert_eq!(watch("gr\u{fc}n\n").text(), "gr\u{fc}n\n");
        let mut watch = Watch::default();
        watch.feed(b"a\xffb\n");
        assert_eq!(watch.text(), "a\u{fffd}b\n");
    }
}
