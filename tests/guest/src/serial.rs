//! Text on the first serial port.

use crate::hardware::{in8, out8};
use core::fmt;

const PORT: u16 = 0x3f8;

/// The port.
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            // Bounded, should there be no port at all.
            for _ in 0..10_000 {
                if in8(PORT + 5) & 0x20 != 0 {
                    break;
                }
            }
            out8(PORT, byte);
        }
        Ok(())
    }
}

/// Sets the port up again: eight bits, FIFO, no loop, no interrupts.
pub fn init() {
    for (register, value) in [(3, 3), (1, 0), (2, 7), (4, 3)] {
        out8(PORT + register, value);
    }
}

/// Prints a line.
#[macro_export]
macro_rules! say {
    ($($argument:tt)*) => {{
        use core::fmt::Write;
        // The serial port takes everything.
        let _ = writeln!($crate::serial::Serial, $($argument)*);
    }};
}
