//! Bytes in both directions, driven by interrupts. Both queues are bounded; what does not fit stays with whoever sends it.

use crate::uart::{DEPTH, Registers, Uart};
use alloc::{collections::VecDeque, vec::Vec};

/// Most bytes in each queue.
pub const QUEUE: usize = 4096;
/// How often the hardware is served in one go. A line whose other side sends without end must not keep the driver.
const ROUNDS: u32 = 8;

/// What one go of [`Line::serve`] brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Bytes came in.
    pub received: bool,
    /// Bytes went out: there is room again.
    pub sent: bool,
    /// The hardware was not quiet when the last round ended: serve it again soon.
    pub more: bool,
}

/// A serial line.
#[derive(Debug)]
pub struct Line<R> {
    uart: Uart<R>,
    incoming: VecDeque<u8>,
    outgoing: VecDeque<u8>,
    /// The hardware tells when its transmit FIFO is empty.
    tells: bool,
}

impl<R: Registers> Line<R> {
    /// The line behind these registers, set up for 115,200 baud and interrupts.
    ///
    /// # Errors
    /// Of the register access.
    pub fn new(registers: R) -> Result<Line<R>, R::Error> {
        let mut uart = Uart(registers);
        uart.init(true)?;
        Ok(Line { uart, incoming: VecDeque::new(), outgoing: VecDeque::new(), tells: false })
    }

    /// Serves the hardware until it is quiet, or for a bounded time.
    ///
    /// # Errors
    /// Of the register access.
    pub fn serve(&mut self) -> Result<News, R::Error> {
        let mut news = News::default();
        for _ in 0..ROUNDS {
            let took = self.take()?;
            let gave = self.give()?;
            news.received |= took;
            news.sent |= gave;
            // With a full queue the rest stays in the hardware until somebody reads.
            if !took && (!self.uart.pending()? || self.incoming.len() >= QUEUE) {
                return Ok(news);
            }
        }
        news.more = true;
        Ok(news)
    }

    /// Takes what was received, a FIFO at most and as far as there is room.
    fn take(&mut self) -> Result<bool, R::Error> {
        let mut any = false;
        for _ in 0..DEPTH {
            if self.incoming.len() >= QUEUE {
                break;
            }
            let Some(byte) = self.uart.receive()? else { break };
            self.incoming.push_back(byte);
            any = true;
        }
        Ok(any)
    }

    /// Fills the transmit FIFO if it is empty; lets the hardware tell when it is empty again if there is more to send.
    fn give(&mut self) -> Result<bool, R::Error> {
        let mut any = false;
        if !self.outgoing.is_empty() && self.uart.idle()? {
            for _ in 0..DEPTH {
                let Some(byte) = self.outgoing.pop_front() else { break };
                self.uart.put(byte)?;
                any = true;
            }
        }
        let tell = !self.outgoing.is_empty();
        if tell != self.tells {
            self.uart.set_interrupts(true, tell)?;
            self.tells = tell;
        }
        Ok(any)
    }

    /// Queues bytes to be sent, and sends what the hardware takes now. Answers how many were taken.
    ///
    /// # Errors
    /// Of the register access.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, R::Error> {
        let count = bytes.len().min(QUEUE - self.outgoing.len().min(QUEUE));
        self.outgoing.extend(bytes.get(..count).unwrap_or_default());
        self.give()?;
        Ok(count)
    }

    /// Takes at most `most` bytes of what came in.
    pub fn read(&mut self, most: usize) -> Vec<u8> {
        let count = self.incoming.len().min(most);
        self.incoming.drain(..count).collect()
    }

    /// Whether bytes wait to be sent.
    #[must_use]
    pub fn sending(&self) -> bool {
        !self.outgoing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A UART with FIFOs. Losing a byte on overrun, and interrupts that are told once, are what makes drivers wrong.
    #[derive(Debug, Default)]
    struct Fake {
        sent: Vec<u8>,
        transmit: usize,
        received: VecDeque<u8>,
        enabled: u8,
        overrun: bool,
    }

    impl Registers for Fake {
        type Error = ();

        fn read(&mut self, offset: u16) -> Result<u8, ()> {
            Ok(match offset {
                0 => self.received.pop_front().unwrap_or(0),
                2 => {
                    let pending = self.enabled & 1 != 0 && !self.received.is_empty()
                        || self.enabled & 2 != 0 && self.transmit == 0;
                    u8::from(!pending)
                }
                5 => u8::from(!self.received.is_empty()) | if self.transmit == 0 { 0x20 } else { 0 },
                _ => 0,
            })
        }

        fn write(&mut self, offset: u16, value: u8) -> Result<(), ()> {
            match offset {
                0 => {
                    self.transmit += 1;
                    self.overrun |= self.transmit > DEPTH;
                    self.sent.push(value);
                }
                1 => self.enabled = value,
                _ => {}
            }
            Ok(())
        }
    }

    impl Line<Fake> {
        /// The wire: the transmit FIFO empties, bytes arrive as long as the receive FIFO has room.
        fn wire(&mut self, arriving: &mut VecDeque<u8>) {
            let fake = &mut self.uart.0;
            fake.transmit = 0;
            while fake.received.len() < DEPTH
                && let Some(byte) = arriving.pop_front()
            {
                fake.received.push_back(byte);
            }
        }
    }

    fn line() -> Line<Fake> {
        let mut line = Line::new(Fake::default()).unwrap();
        // What `init` wrote to the divisor.
        line.uart.0.sent.clear();
        line.uart.0.transmit = 0;
        line
    }

    #[test]
    fn an_idle_line_asks_for_no_interrupt_of_its_transmitter() {
        let mut line = line();
        assert_eq!(line.serve(), Ok(News::default()));
        assert_eq!(line.write(&[7; 40]), Ok(40));
        assert_eq!((line.uart.0.sent.len(), line.uart.0.enabled, line.sending()), (DEPTH, 3, true));
        for _ in 0..2 {
            line.wire(&mut VecDeque::new());
            line.serve().unwrap();
        }
        assert_eq!((line.uart.0.sent.len(), line.uart.0.enabled, line.sending()), (40, 1, false));
    }

    #[test]
    fn a_full_queue_takes_no_more_and_loses_nothing() {
        let mut line = line();
        let mut arriving: VecDeque<u8> = (0..QUEUE + 100).map(|n| n as u8).collect();
        for _ in 0..QUEUE {
            line.wire(&mut arriving);
            line.serve().unwrap();
        }
        assert_eq!(line.incoming.len(), QUEUE);
        let mut all = line.read(QUEUE);
        for _ in 0..10 {
            line.wire(&mut arriving);
            line.serve().unwrap();
        }
        all.extend(line.read(QUEUE));
        assert_eq!(all, (0..QUEUE + 100).map(|n| n as u8).collect::<Vec<_>>());
        assert_eq!(line.write(&[0; QUEUE * 2]), Ok(QUEUE));
    }

    proptest! {
        /// Whatever comes and goes in whatever order: bytes keep their order, none is lost, the FIFO is never overrun.
        #[test]
        fn nothing_is_lost(steps in prop::collection::vec((0u8..4, prop::collection::vec(any::<u8>(), 0..60)), 0..60)) {
            let mut line = line();
            let (mut arriving, mut came, mut got, mut given) = (VecDeque::new(), Vec::new(), Vec::new(), Vec::new());
            for (step, bytes) in steps {
                match step {
                    0 => {
                        arriving.extend(&bytes);
                        came.extend(bytes);
                    }
                    1 => {
                        let taken = line.write(&bytes).unwrap();
                        given.extend(&bytes[..taken]);
                    }
                    2 => got.extend(line.read(20)),
                    _ => {
                        line.wire(&mut arriving);
                        line.serve().unwrap();
                    }
                }
            }
            for _ in 0..1000 {
                line.wire(&mut arriving);
                line.serve().unwrap();
                got.extend(line.read(QUEUE));
            }
            prop_assert_eq!(got, came);
            prop_assert_eq!(&line.uart.0.sent, &given);
            prop_assert!(!line.uart.0.overrun && !line.sending());
        }
    }
}
