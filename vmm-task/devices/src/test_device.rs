//! What test payloads for virtual machines expect of QEMU's `pc-testdev`: a register, interrupt lines, memory that is a device.
//!
//! | where | what |
//! | --- | --- |
//! | ports E0h to E3h | a register of four bytes that keeps what is written |
//! | ports E4h to E7h | writes are heard and do nothing (there, a page of the host's is dropped) |
//! | ports 2000h to 2017h | a write of anything but 0 raises that interrupt line (ISA below 16, else the I/O APIC's), 0 lowers it |
//! | FF000000h, 64 KiB | a device's memory: each access is an exit, and reads give what was written |

use alloc::vec::Vec;

/// First port of the register and of the page port.
pub const PORTS: u16 = 0xE0;
/// How many there are.
pub const PORT_COUNT: u16 = 8;
/// First port of the interrupt lines: one for each.
pub const LINES: u16 = 0x2000;
/// How many lines there are.
pub const LINE_COUNT: u16 = 24;
/// Where its memory is.
pub const MEMORY: u64 = 0xFF00_0000;
/// Bytes of its memory.
pub const MEMORY_SIZE: u64 = 0x1_0000;

/// The device.
#[derive(Clone, Debug, Default)]
pub struct TestDevice {
    register: [u8; 4],
    /// Nothing before the first write: no other guest pays for it.
    memory: Vec<u8>,
}

impl TestDevice {
    /// After reset.
    #[must_use]
    pub const fn new() -> Self {
        Self { register: [0; 4], memory: Vec::new() }
    }

    /// A byte of the register; the page port reads as 0.
    #[must_use]
    pub fn read(&self, port: u16) -> u8 {
        self.register.get(usize::from(port.wrapping_sub(PORTS))).copied().unwrap_or(0)
    }

    /// Changes a byte of the register.
    pub fn write(&mut self, port: u16, value: u8) {
        if let Some(byte) = self.register.get_mut(usize::from(port.wrapping_sub(PORTS))) {
            *byte = value;
        }
    }

    /// Up to eight bytes of its memory, little-endian; zeros behind its end.
    #[must_use]
    pub fn memory_read(&self, offset: u64, size: u8) -> u64 {
        let byte = |i: u8| self.memory.get(offset as usize + usize::from(i)).copied().unwrap_or(0);
        (0..size.min(8)).fold(0, |value, i| value | u64::from(byte(i)) << (8 * i))
    }

    /// Changes up to eight bytes of its memory.
    pub fn memory_write(&mut self, offset: u64, size: u8, value: u64) {
        if self.memory.is_empty() {
            self.memory.resize(MEMORY_SIZE as usize, 0);
        }
        for i in 0..size.min(8) {
            if let Some(byte) = self.memory.get_mut(offset as usize + usize::from(i)) {
                *byte = (value >> (8 * i)) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_register_keeps_bytes() {
        let mut device = TestDevice::new();
        device.write(0xE2, 0x5A);
        device.write(0xE4, 0xFF);
        assert_eq!((device.read(0xE2), device.read(0xE1), device.read(0xE4)), (0x5A, 0, 0));
    }

    #[test]
    fn memory_is_there_from_the_first_write() {
        let mut device = TestDevice::new();
        assert_eq!(device.memory_read(8, 8), 0);
        device.memory_write(MEMORY_SIZE - 2, 8, 0x1122_3344_5566_7788);
        assert_eq!(device.memory_read(MEMORY_SIZE - 2, 8), 0x7788);
        device.memory_write(9, 2, 0xABCD);
        assert_eq!(device.memory_read(8, 4), 0x00AB_CD00);
    }

    proptest! {
        #[test]
        fn any_access_is_harmless(accesses: Vec<(u64, u8, u64)>) {
            let mut device = TestDevice::new();
            for (offset, size, value) in accesses {
                device.memory_write(offset % MEMORY_SIZE, size, value);
                let _ = device.memory_read(offset % MEMORY_SIZE, size);
                device.write(offset as u16, value as u8);
                let _ = device.read(offset as u16);
            }
        }
    }
}
