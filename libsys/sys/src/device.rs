//! What drivers hold: interrupts and I/O ports.

use crate::slot::capability;
use crate::*;
use moira_abi::Method;

capability! {
    /// One interrupt source. It fires once for each acknowledgement.
    Interrupt, Interrupt
}

capability! {
    /// A range of I/O ports.
    IoPorts, IoPorts
}

impl Interrupt {
    /// Signals the notification (its badge: the bits) whenever the source fires.
    ///
    /// # Errors
    /// `NoRight` (SIGNAL on the notification).
    pub fn bind(self, notification: Notification) -> Result<(), Error> {
        raw::simple(Method::InterruptBind, self.slot().0, &[notification.slot().word()]).map(|_| ())
    }

    /// Lets the source fire again.
    ///
    /// # Errors
    /// Those of every invocation.
    pub fn ack(self) -> Result<(), Error> {
        raw::simple(Method::InterruptAck, self.slot().0, &[]).map(|_| ())
    }

    /// Address and data that a device must write to raise this interrupt (MSI only).
    ///
    /// # Errors
    /// `BadArgument` (a line of an I/O APIC).
    pub fn message(self) -> Result<(u64, u32), Error> {
        let [address, data, ..] = raw::simple(Method::InterruptMessage, self.slot().0, &[])?;
        Ok((address, data as u32))
    }
}

impl IoPorts {
    fn input(self, port: u16, size: u64) -> Result<u64, Error> {
        raw::simple(Method::PortIn, self.slot().0, &[u64::from(port), size]).map(|answer| answer[0])
    }

    fn output(self, port: u16, size: u64, value: u64) -> Result<(), Error> {
        raw::simple(Method::PortOut, self.slot().0, &[u64::from(port), size, value]).map(|_| ())
    }

    /// Reads one byte.
    ///
    /// # Errors
    /// All port methods: `BadArgument` (outside the range).
    pub fn in8(self, port: u16) -> Result<u8, Error> {
        self.input(port, 1).map(|value| value as u8)
    }

    /// Reads two bytes.
    ///
    /// # Errors
    /// As [`IoPorts::in8`].
    pub fn in16(self, port: u16) -> Result<u16, Error> {
        self.input(port, 2).map(|value| value as u16)
    }

    /// Reads four bytes.
    ///
    /// # Errors
    /// As [`IoPorts::in8`].
    pub fn in32(self, port: u16) -> Result<u32, Error> {
        self.input(port, 4).map(|value| value as u32)
    }

    /// Writes one byte.
    ///
    /// # Errors
    /// As [`IoPorts::in8`].
    pub fn out8(self, port: u16, value: u8) -> Result<(), Error> {
        self.output(port, 1, u64::from(value))
    }

    /// Writes two bytes.
    ///
    /// # Errors
    /// As [`IoPorts::in8`].
    pub fn out16(self, port: u16, value: u16) -> Result<(), Error> {
        self.output(port, 2, u64::from(value))
    }

    /// Writes four bytes.
    ///
    /// # Errors
    /// As [`IoPorts::in8`].
    pub fn out32(self, port: u16, value: u32) -> Result<(), Error> {
        self.output(port, 4, u64::from(value))
    }
}
