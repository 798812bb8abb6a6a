//! The kernel's own log: COM1, for boot, the crash record, and tasks that have no console yet.

use crate::arch::{serial, tsc};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use spin::mutex::TicketMutex;

/// Whether a task that drives COM1 itself is in the middle of a line.
static OPEN: AtomicBool = AtomicBool::new(false);
/// Whether its last write to the line control register turned the data register into the divisor (bit 7).
static DIVISOR: AtomicBool = AtomicBool::new(false);

/// A task wrote a register of COM1: the log keeps its lines apart from the task's.
pub fn task_wrote(register: u16, value: u32) {
    match register {
        0 if !DIVISOR.load(Relaxed) => OPEN.store(value as u8 != b'\n', Relaxed),
        3 => DIVISOR.store(value & 0x80 != 0, Relaxed),
        _ => {}
    }
}

/// Whether a thread's text is being printed a piece at a time: a task that drives COM1 itself comes after it.
pub fn is_busy() -> bool {
    let recent = crate::arch::now().wrapping_sub(WRITER.1.load(Relaxed)) < tsc::hz() / PATIENCE;
    recent && WRITER.0.load(Relaxed) != 0
}

/// Whether a line of a task's would be cut in two now, or what is written would go to the divisor.
pub fn is_open() -> bool {
    OPEN.load(Relaxed) || DIVISOR.load(Relaxed)
}

/// Whose text is printed a piece at a time, and since when nothing came of it: a thread's address; 0: nobody's.
static WRITER: (AtomicU64, AtomicU64) = (AtomicU64::new(0), AtomicU64::new(0));
/// Bytes that an empty transmitter takes at once (16550).
const FIFO: usize = 16;
/// How long others leave a line alone that does not go on: this part of a second.
const PATIENCE: u64 = 50;

/// Ends a task's line.
fn close(serial: &mut Serial) {
    if WRITER.0.swap(0, Relaxed) != 0 || OPEN.swap(false, Relaxed) {
        let _ = serial.write_str("\n");
    }
}

static SERIAL: TicketMutex<Serial> = TicketMutex::new(Serial);

struct Serial;

impl Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                serial::put(b'\r');
            }
            serial::put(byte);
        }
        Ok(())
    }
}

/// Writes one line, with the seconds since this processor's reset before it once the TSC's frequency is known.
pub fn line(arguments: fmt::Arguments) {
    let mut serial = SERIAL.lock();
    close(&mut serial);
    let (hz, now) = (tsc::hz(), crate::arch::now());
    if let (Some(seconds), Some(rest)) = (now.checked_div(hz), now.checked_rem(hz)) {
        let _ = write!(serial, "[{seconds:5}.{:06}] ", rest * 1_000_000 / hz);
    }
    let _ = serial.write_fmt(arguments);
    let _ = serial.write_str("\n");
}

/// Writes the next of a thread's bytes, as they are and as many as the transmitter takes at once. Answers how many: none while it is
/// busy, and while another thread is in the middle of a text.
pub fn piece(bytes: &[u8], who: u64) -> usize {
    let Some(_serial) = SERIAL.try_lock() else { return 0 };
    let now = crate::arch::now();
    let (writer, recent) = (WRITER.0.load(Relaxed), now.wrapping_sub(WRITER.1.load(Relaxed)) < tsc::hz() / PATIENCE);
    if writer != who {
        if writer != 0 && recent {
            return 0;
        }
        // A text that somebody left unfinished is ended like a task's line.
        OPEN.fetch_or(writer != 0, Relaxed);
        WRITER.0.store(who, Relaxed);
    } else if recent && !serial::is_ready() {
        return 0;
    }
    WRITER.1.store(now, Relaxed);
    if writer != who && !serial::is_ready() {
        return 0;
    }
    if OPEN.swap(false, Relaxed) {
        serial::send(b'\n');
    }
    let count = bytes.len().min(FIFO - 1);
    for byte in bytes.iter().take(count) {
        serial::send(*byte);
    }
    WRITER.0.store(if count == bytes.len() { 0 } else { who }, Relaxed);
    count
}

/// Writes one line even if this CPU was interrupted while it held the log (crash record).
pub fn emergency(arguments: fmt::Arguments) {
    close(&mut Serial);
    let _ = Serial.write_fmt(arguments);
    let _ = Serial.write_str("\n");
}

/// Writes one line to the kernel's log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::log::line(format_args!($($argument)*)) };
}
