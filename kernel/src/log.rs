//! The kernel's own log: COM1, for boot, the crash record, and tasks that have no console yet.

use crate::arch::{serial, tsc};
use core::fmt::{self, Write};
use spin::mutex::TicketMutex;

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
    let hz = tsc::hz();
    if hz != 0 {
        let now = crate::arch::now();
        let _ = write!(serial, "[{:5}.{:06}] ", now / hz, now % hz * 1_000_000 / hz);
    }
    let _ = serial.write_fmt(arguments);
    let _ = serial.write_str("\n");
}

/// Writes bytes as they are.
pub fn bytes(bytes: &[u8]) {
    let _serial = SERIAL.lock();
    for byte in bytes {
        serial::put(*byte);
    }
}

/// Writes one line even if this CPU was interrupted while it held the log (crash record).
pub fn emergency(arguments: fmt::Arguments) {
    let _ = Serial.write_fmt(arguments);
    let _ = Serial.write_str("\n");
}

/// Writes one line to the kernel's log.
#[macro_export]
macro_rules! log {
    ($($argument:tt)*) => { $crate::log::line(format_args!($($argument)*)) };
}
