//! A 16550 UART: registers as in its data sheet (National Semiconductor PC16550D, section 8).

/// Register access, by offset from the first port.
pub trait Registers {
    /// Why an access failed.
    type Error;
    /// Reads a register.
    ///
    /// # Errors
    /// The access was refused.
    fn read(&mut self, offset: u16) -> Result<u8, Self::Error>;
    /// Writes a register.
    ///
    /// # Errors
    /// The access was refused.
    fn write(&mut self, offset: u16, value: u8) -> Result<(), Self::Error>;
}

/// Receive and transmit data; divisor low while DLAB is set.
const DATA: u16 = 0;
/// Interrupt enable; divisor high while DLAB is set.
const INTERRUPTS: u16 = 1;
/// Identification (read), FIFO control (write).
const FIFO: u16 = 2;
/// Line control.
const LINE: u16 = 3;
/// Modem control.
const MODEM: u16 = 4;
/// Line status.
const STATUS: u16 = 5;

/// LCR: the divisor is visible.
const DLAB: u8 = 0x80;
/// LCR: eight bits, no parity, one stop bit.
const EIGHT_N_ONE: u8 = 3;
/// FCR: FIFOs on and cleared, trigger at one byte.
const FIFO_ON: u8 = 7;
/// MCR: DTR, RTS, and OUT2, which lets the interrupt out on a PC.
const DTR_RTS_OUT2: u8 = 0x0b;
/// IER: data received.
const RECEIVED: u8 = 1;
/// LSR: a byte can be read.
const READY: u8 = 1;
/// LSR: the transmit FIFO is empty.
const EMPTY: u8 = 0x20;
/// IER: the transmit FIFO is empty.
const SEND: u8 = 2;
/// IIR: no interrupt is pending.
const QUIET: u8 = 1;
/// Bytes of each FIFO.
pub const DEPTH: usize = 16;

/// Looks at the status this often before the hardware is given up. A full FIFO is sent in 1.4 ms, and a line of the kernel's log,
/// which is printed a piece at a time, may take some windows of the root task; one look takes a microsecond on hardware.
const PATIENCE: u32 = 500_000;

/// The UART.
#[derive(Debug)]
pub struct Uart<R>(pub R);

impl<R: Registers> Uart<R> {
    /// Sets 115,200 baud, 8N1, FIFOs on; interrupts for input if asked for.
    ///
    /// # Errors
    /// Of the register access.
    pub fn init(&mut self, interrupts: bool) -> Result<(), R::Error> {
        self.0.write(INTERRUPTS, 0)?;
        self.0.write(LINE, DLAB | EIGHT_N_ONE)?;
        self.0.write(DATA, 1)?;
        self.0.write(INTERRUPTS, 0)?;
        self.0.write(LINE, EIGHT_N_ONE)?;
        self.0.write(FIFO, FIFO_ON)?;
        self.0.write(MODEM, DTR_RTS_OUT2)?;
        self.0.write(INTERRUPTS, if interrupts { RECEIVED } else { 0 })
    }

    /// Takes over a line that the kernel's log has set up and goes on writing to. What the log writes while the divisor is visible, or while
    /// the FIFOs are cleared, would be lost: both stay as they are.
    ///
    /// # Errors
    /// Of the register access.
    pub fn share(&mut self, interrupts: bool) -> Result<(), R::Error> {
        self.0.write(MODEM, DTR_RTS_OUT2)?;
        self.set_interrupts(interrupts, false)
    }

    /// Sends bytes, a FIFO at a time. If the hardware stops taking them, the rest is dropped.
    ///
    /// # Errors
    /// Of the register access.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), R::Error> {
        for batch in bytes.chunks(DEPTH) {
            if !self.wait_for(EMPTY)? {
                return Ok(());
            }
            for byte in batch {
                self.0.write(DATA, *byte)?;
            }
        }
        Ok(())
    }

    /// Waits for a bit of the status; answers whether it came.
    fn wait_for(&mut self, bit: u8) -> Result<bool, R::Error> {
        for _ in 0..PATIENCE {
            if self.0.read(STATUS)? & bit != 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Which interrupts come: for input, and for an empty transmit FIFO.
    ///
    /// # Errors
    /// Of the register access.
    pub fn set_interrupts(&mut self, received: bool, sent: bool) -> Result<(), R::Error> {
        self.0.write(INTERRUPTS, if received { RECEIVED } else { 0 } | if sent { SEND } else { 0 })
    }

    /// Whether an interrupt is pending. Looking acknowledges that of an empty transmit FIFO.
    ///
    /// # Errors
    /// Of the register access.
    pub fn pending(&mut self) -> Result<bool, R::Error> {
        Ok(self.0.read(FIFO)? & QUIET == 0)
    }

    /// Whether the transmit FIFO takes [`DEPTH`] bytes now.
    ///
    /// # Errors
    /// Of the register access.
    pub fn idle(&mut self) -> Result<bool, R::Error> {
        Ok(self.0.read(STATUS)? & EMPTY != 0)
    }

    /// Puts a byte into the transmit FIFO; at most [`DEPTH`] after [`Uart::idle`].
    ///
    /// # Errors
    /// Of the register access.
    pub fn put(&mut self, byte: u8) -> Result<(), R::Error> {
        self.0.write(DATA, byte)
    }

    /// One received byte, if there is one.
    ///
    /// # Errors
    /// Of the register access.
    pub fn receive(&mut self) -> Result<Option<u8>, R::Error> {
        if self.0.read(STATUS)? & READY == 0 { Ok(None) } else { self.0.read(DATA).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    /// Hardware whose transmit FIFO needs some looks to empty; overrunning it is a failure.
    #[derive(Default)]
    struct Fake {
        sent: Vec<u8>,
        in_fifo: usize,
        looks: u32,
        stuck: bool,
    }

    impl Registers for Fake {
        type Error = ();

        fn read(&mut self, offset: u16) -> Result<u8, ()> {
            assert_eq!(offset, STATUS);
            self.looks += 1;
            if self.looks.is_multiple_of(3) && !self.stuck {
                self.in_fifo = 0;
            }
            Ok(if self.in_fifo == 0 { EMPTY } else { 0 })
        }

        fn write(&mut self, offset: u16, value: u8) -> Result<(), ()> {
            assert_eq!(offset, DATA);
            self.in_fifo += 1;
            assert!(self.in_fifo <= DEPTH, "overrun");
            self.sent.push(value);
            Ok(())
        }
    }

    #[test]
    fn sends_all_without_overrun_and_gives_up_on_dead_hardware() {
        let bytes: Vec<u8> = (0..200).collect();
        let mut uart = Uart(Fake::default());
        uart.send(&bytes).unwrap();
        assert_eq!(uart.0.sent, bytes);
        let mut uart = Uart(Fake { stuck: true, ..Fake::default() });
        uart.send(&bytes).unwrap();
        assert_eq!(uart.0.sent.len(), DEPTH);
    }

    /// Hardware that keeps what was written to it.
    struct Written(Vec<(u16, u8)>);

    impl Registers for Written {
        type Error = ();

        fn read(&mut self, _: u16) -> Result<u8, ()> {
            Ok(EMPTY)
        }

        fn write(&mut self, offset: u16, value: u8) -> Result<(), ()> {
            self.0.push((offset, value));
            Ok(())
        }
    }

    #[test]
    fn a_shared_line_never_swallows_what_another_one_writes() {
        let mut uart = Uart(Written(Vec::new()));
        uart.share(true).unwrap();
        assert!(uart.0.0.iter().all(|(offset, _)| ![DATA, FIFO, LINE].contains(offset)), "{:?}", uart.0.0);
        assert_eq!(uart.0.0.last(), Some(&(INTERRUPTS, RECEIVED)));
        // While the divisor is visible nobody else can write.
        let mut uart = Uart(Written(Vec::new()));
        uart.init(false).unwrap();
        assert!(uart.0.0.contains(&(LINE, DLAB | EIGHT_N_ONE)));
        assert_eq!(uart.0.0.last(), Some(&(INTERRUPTS, 0)));
    }
}
