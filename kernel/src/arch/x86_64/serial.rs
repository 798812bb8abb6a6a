//! COM1, polled: the kernel's log.

use super::{port_read, port_write};

/// First port.
pub const COM1: u16 = 0x3f8;
/// Line status: the transmitter can take bytes, and has sent all (16550, LSR bits 5 and 6).
pub const EMPTY: u32 = 0x60;

/// 115200 baud, 8N1, FIFO on.
pub fn init() {
    for (register, value) in [(1, 0), (3, 0x80), (0, 1), (1, 0), (3, 3), (2, 7), (4, 3)] {
        port_write(COM1 + register, 1, value);
    }
}

/// Whether the transmitter is empty. Also true where there is no such port.
pub fn is_ready() -> bool {
    port_read(COM1 + 5, 1) & 0x20 != 0
}

/// Sends a byte without a look.
pub fn send(byte: u8) {
    port_write(COM1, 1, byte as u32);
}

/// Sends a byte; gives up after a while where there is no such port.
pub fn put(byte: u8) {
    for _ in 0..100_000 {
        if is_ready() {
            break;
        }
    }
    send(byte);
}

/// Waits until everything is sent.
pub fn flush() {
    for _ in 0..100_000 {
        if port_read(COM1 + 5, 1) & 0x40 != 0 {
            return;
        }
    }
}
