//! A 16550A serial port (National Semiconductor PC16550D data sheet).
//!
//! Transmission takes no time: what the guest writes is in a buffer from which batches go to the back end, so that the
//! guest's bytes cost the monitor few calls. Reception has the 16-byte FIFO.

#[cfg(test)]
pub(crate) mod tests;

use crate::traits::ConsoleBackend;
use alloc::boxed::Box;

const IER_RDA: u8 = 1;
const IER_THRE: u8 = 2;
const IER_LINE: u8 = 4;
const IER_MODEM: u8 = 8;
const LSR_READY: u8 = 0x01;
const LSR_OVERRUN: u8 = 0x02;
const LSR_THRE: u8 = 0x20;
const LSR_IDLE: u8 = 0x40;
const MCR_LOOP: u8 = 0x10;
/// Carrier, data set ready, clear to send: somebody is at the other end.
const MSR_CONNECTED: u8 = 0xB0;
/// Bytes kept before the guest sees a full transmitter.
const TX_CAPACITY: usize = 256;
/// Room that "transmit holding register empty" promises: one FIFO of bytes.
const TX_PROMISE: usize = 16;
/// How long a byte may wait for company.
const TX_DELAY_NS: u64 = 2_000_000;
/// How soon to try a full back end again.
const TX_RETRY_NS: u64 = 1_000_000;
const RX_CAPACITY: usize = 16;

/// A 16550A with its back end.
pub struct Uart {
    backend: Box<dyn ConsoleBackend>,
    tx: [u8; TX_CAPACITY],
    tx_len: usize,
    /// When the transmit buffer goes to the back end.
    tx_at: Option<u64>,
    rx: [u8; RX_CAPACITY],
    rx_head: usize,
    rx_len: usize,
    ier: u8,
    fcr: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: u16,
    overrun: bool,
    msr_delta: u8,
    msr_seen: u8,
    thre_pending: bool,
    /// The line has fallen and may have risen again since the last [`Uart::take_fall`].
    fell: bool,
    /// A byte went out, ever.
    sent: bool,
}

impl Uart {
    /// A port after reset, 9600 baud in its divisor.
    #[must_use]
    pub fn new(backend: Box<dyn ConsoleBackend>) -> Self {
        Self {
            backend,
            tx: [0; TX_CAPACITY],
            tx_len: 0,
            tx_at: None,
            rx: [0; RX_CAPACITY],
            rx_head: 0,
            rx_len: 0,
            ier: 0,
            fcr: 0,
            lcr: 0,
            mcr: 0,
            scratch: 0,
            divisor: 12,
            overrun: false,
            msr_delta: 0,
            msr_seen: MSR_CONNECTED,
            thre_pending: false,
            fell: false,
            sent: false,
        }
    }

    /// Registers as after a reset; output that has not gone yet stays.
    pub fn reset(&mut self) {
        (self.ier, self.fcr, self.lcr, self.mcr, self.scratch, self.divisor) = (0, 0, 0, 0, 0, 12);
        (self.rx_len, self.overrun, self.msr_delta, self.thre_pending) = (0, false, 0, false);
        self.msr_seen = MSR_CONNECTED;
    }

    fn fifo_size(&self) -> usize {
        if self.fcr & 1 != 0 { RX_CAPACITY } else { 1 }
    }

    fn rx_trigger(&self) -> usize {
        match (self.fcr & 1, self.fcr >> 6) {
            (0, _) | (_, 0) => 1,
            (_, 1) => 4,
            (_, 2) => 8,
            _ => 14,
        }
    }

    fn push_rx(&mut self, byte: u8) {
        if self.rx_len >= self.fifo_size() {
            self.overrun = true;
            if self.fcr & 1 != 0 {
                return;
            }
            self.rx_len = 0;
        }
        self.rx[(self.rx_head + self.rx_len) % RX_CAPACITY] = byte;
        self.rx_len += 1;
    }

    fn pop_rx(&mut self) -> u8 {
        if self.rx_len == 0 {
            return 0;
        }
        let byte = self.rx[self.rx_head % RX_CAPACITY];
        self.rx_head = (self.rx_head + 1) % RX_CAPACITY;
        self.rx_len -= 1;
        byte
    }

    /// Takes as much input from the back end as there is room for.
    fn receive(&mut self) {
        if self.mcr & MCR_LOOP != 0 {
            return;
        }
        let room = self.fifo_size().saturating_sub(self.rx_len);
        if room == 0 {
            return;
        }
        let mut buffer = [0; RX_CAPACITY];
        let n = self.backend.read(buffer.get_mut(..room).unwrap_or(&mut [])).min(room);
        for &b in buffer.iter().take(n) {
            self.push_rx(b);
        }
    }

    /// Gives the back end what waits, and then these bytes of another device. What it does not take is lost.
    pub fn print(&mut self, bytes: &[u8], now: u64) {
        if self.tx_len > 0 {
            self.flush(now);
        }
        if !bytes.is_empty() {
            let _ = self.backend.write(bytes);
        }
    }

    /// Whether the guest has sent anything; what it loops back does not count.
    #[must_use]
    pub const fn has_sent(&self) -> bool {
        self.sent
    }

    fn tx_ready(&self) -> bool {
        self.tx_len + TX_PROMISE <= TX_CAPACITY
    }

    /// Gives the transmit buffer to the back end.
    fn flush(&mut self, now: u64) {
        let was_ready = self.tx_ready();
        let waiting = self.tx.get(..self.tx_len).unwrap_or(&[]);
        let taken = self.backend.write(waiting).min(self.tx_len);
        for i in taken..self.tx_len {
            self.tx[(i - taken) % TX_CAPACITY] = self.tx[i % TX_CAPACITY];
        }
        self.tx_len -= taken;
        self.tx_at = (self.tx_len > 0).then_some(now.saturating_add(TX_RETRY_NS));
        if !was_ready && self.tx_ready() {
            self.thre_pending = true;
        }
    }

    fn transmit(&mut self, byte: u8, now: u64) {
        // The byte takes the request back and, gone at once, makes a new one: an edge-triggered controller must see both.
        let was = self.irq();
        self.thre_pending = false;
        self.fell |= was && !self.irq();
        if self.mcr & MCR_LOOP != 0 {
            self.push_rx(byte);
            self.thre_pending = true;
            return;
        }
        self.sent = true;
        if let Some(cell) = self.tx.get_mut(self.tx_len) {
            *cell = byte;
            self.tx_len += 1;
        }
        self.tx_at.get_or_insert(now.saturating_add(TX_DELAY_NS));
        if byte == b'\n' || !self.tx_ready() {
            self.flush(now);
        }
        self.thre_pending = self.tx_ready();
    }

    /// The interrupt of highest priority, as IIR shows it.
    fn interrupt_id(&self) -> u8 {
        if self.ier & IER_LINE != 0 && self.overrun {
            6
        } else if self.ier & IER_RDA != 0 && self.rx_len > 0 {
            // Below the trigger level the character timeout speaks, here at once.
            if self.rx_len >= self.rx_trigger() { 4 } else { 0xC }
        } else if self.ier & IER_THRE != 0 && self.thre_pending {
            2
        } else if self.ier & IER_MODEM != 0 && self.msr_delta != 0 {
            0
        } else {
            1
        }
    }

    /// Whether the line was low for a moment since the last call, although it may be high again.
    pub fn take_fall(&mut self) -> bool {
        core::mem::take(&mut self.fell)
    }

    /// The interrupt line's level. On a PC's card OUT2 gates it; emulators have no such gate, and kernels that were only ever run
    /// on those leave OUT2 alone.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.mcr & MCR_LOOP == 0 && self.interrupt_id() != 1
    }

    fn modem_status(&self) -> u8 {
        if self.mcr & MCR_LOOP != 0 {
            // RTS to CTS, DTR to DSR, OUT1 to RI, OUT2 to DCD.
            (self.mcr & 2) << 3 | (self.mcr & 1) << 5 | (self.mcr & 4) << 4 | (self.mcr & 8) << 4
        } else {
            MSR_CONNECTED
        }
    }

    fn update_modem(&mut self) {
        let now = self.modem_status();
        let changed = now ^ self.msr_seen;
        self.msr_delta |= (changed >> 4) & 0x0B | (self.msr_seen & !now & 0x40) >> 4;
        self.msr_seen = now;
    }

    /// Reads register `offset` (0 to 7).
    pub fn read(&mut self, offset: u16, now: u64) -> u8 {
        let dlab = self.lcr & 0x80 != 0;
        match offset & 7 {
            0 if dlab => self.divisor as u8,
            0 => {
                let b = self.pop_rx();
                self.receive();
                b
            }
            1 if dlab => (self.divisor >> 8) as u8,
            1 => self.ier,
            2 => {
                let id = self.interrupt_id();
                if id == 2 {
                    self.thre_pending = false;
                }
                id | if self.fcr & 1 != 0 { 0xC0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                if !self.tx_ready() && self.tx_at.is_none_or(|at| now >= at) {
                    self.flush(now);
                }
                let mut lsr = if self.tx_ready() { LSR_THRE | LSR_IDLE } else { 0 };
                if self.rx_len > 0 {
                    lsr |= LSR_READY;
                }
                if self.overrun {
                    lsr |= LSR_OVERRUN;
                    self.overrun = false;
                }
                lsr
            }
            6 => {
                let v = self.modem_status() | self.msr_delta;
                self.msr_delta = 0;
                v
            }
            _ => self.scratch,
        }
    }

    /// Writes register `offset` (0 to 7).
    pub fn write(&mut self, offset: u16, v: u8, now: u64) {
        let dlab = self.lcr & 0x80 != 0;
        match offset & 7 {
            0 if dlab => self.divisor = self.divisor & 0xFF00 | u16::from(v),
            0 => self.transmit(v, now),
            1 if dlab => self.divisor = self.divisor & 0xFF | u16::from(v) << 8,
            1 => {
                let newly = v & !self.ier & IER_THRE != 0;
                self.ier = v & 0x0F;
                if newly && self.tx_ready() {
                    self.thre_pending = true;
                }
                if v & IER_RDA != 0 {
                    self.receive();
                }
            }
            2 => {
                let v = if (v ^ self.fcr) & 1 != 0 { v | 6 } else { v };
                if v & 2 != 0 {
                    self.rx_len = 0;
                }
                if v & 4 != 0 && self.tx_ready() {
                    self.thre_pending = true;
                }
                self.fcr = v & 0xC9;
            }
            3 => self.lcr = v,
            4 => {
                self.mcr = v & 0x1F;
                self.update_modem();
            }
            7 => self.scratch = v,
            _ => {}
        }
    }

    /// Moves bytes both ways. Call it at [`Self::next_deadline`] and whenever the back end may have input.
    pub fn poll(&mut self, now: u64) {
        if self.tx_at.is_some_and(|at| now >= at) {
            self.flush(now);
        }
        if self.rx_len == 0 {
            self.receive();
        }
    }

    /// When waiting output wants to go.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.tx_at
    }
}
