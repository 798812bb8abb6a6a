//! A UART's registers behind a capability for its ports.

use crate::uart::Registers;
use moira_sys::{Error, IoPorts};

/// Eight ports, of which the capability may name more.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    ports: IoPorts,
    first: u16,
}

impl Ports {
    /// The eight ports from the one that a manifest names: `0x3f8`, hexadecimal. `None` if it is no such number.
    #[must_use]
    pub fn named(ports: IoPorts, first: &str) -> Option<Ports> {
        let first = u16::from_str_radix(first.trim_start_matches("0x"), 16).ok()?;
        Some(Ports { ports, first })
    }
}

impl Registers for Ports {
    type Error = Error;

    fn read(&mut self, offset: u16) -> Result<u8, Error> {
        self.ports.in8(self.first.wrapping_add(offset))
    }

    fn write(&mut self, offset: u16, value: u8) -> Result<(), Error> {
        self.ports.out8(self.first.wrapping_add(offset), value)
    }
}
