//! The MSI-X table and pending bits of a function (PCI 3.0, 6.8.2).

use crate::traits::{MsiMessage, MsiSink};
use alloc::vec::Vec;

/// The message control register: MSI-X is on.
const ENABLE: u16 = 1 << 15;
/// The message control register: all vectors are masked.
const MASK_ALL: u16 = 1 << 14;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    message: MsiMessage,
    masked: bool,
}

/// An MSI-X table of up to 64 vectors.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: Vec<Entry>,
    pending: u64,
    control: u16,
}

impl Msix {
    /// A table of `vectors` (1 to 64), all masked, MSI-X off.
    #[must_use]
    pub fn new(vectors: u8) -> Self {
        let n = usize::from(vectors.clamp(1, 64));
        Self { entries: alloc::vec![Entry { masked: true, ..Entry::default() }; n], pending: 0, control: 0 }
    }

    /// How many vectors there are.
    #[must_use]
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Everything masked and off.
    pub fn reset(&mut self) {
        *self = Self::new(self.entries.len() as u8);
    }

    /// Body of the capability: table and pending bits in BAR `bar` at the given offsets, multiples of 8.
    #[must_use]
    pub fn capability(&self, bar: u8, table: u32, pba: u32) -> [u8; 10] {
        let mut c = [0; 10];
        c[..2].copy_from_slice(&(self.vectors() - 1).to_le_bytes());
        c[2..6].copy_from_slice(&(table | u32::from(bar)).to_le_bytes());
        c[6..].copy_from_slice(&(pba | u32::from(bar)).to_le_bytes());
        c
    }

    /// Whether MSI-X is on; INTx is then silent.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// The message control register was written: its two writable bits.
    pub fn set_control(&mut self, v: u16, sink: &mut dyn MsiSink) {
        self.control = v & (ENABLE | MASK_ALL);
        self.flush(sink);
    }

    fn live(&self) -> bool {
        self.control & (ENABLE | MASK_ALL) == ENABLE
    }

    fn flush(&mut self, sink: &mut dyn MsiSink) {
        if self.pending == 0 || !self.live() {
            return;
        }
        for (i, e) in self.entries.iter().enumerate() {
            if self.pending >> i & 1 != 0 && !e.masked {
                self.pending &= !(1 << i);
                sink.send(e.message);
            }
        }
    }

    /// Signals a vector: sent now, or pending until it is unmasked. A vector that is not there is nothing, and so is
    /// any while MSI-X is off.
    pub fn signal(&mut self, vector: u16, sink: &mut dyn MsiSink) {
        let Some(e) = self.entries.get(usize::from(vector)) else { return };
        if !self.enabled() {
            return;
        }
        if self.live() && !e.masked {
            sink.send(e.message);
        } else {
            self.pending |= 1 << vector;
        }
    }

    /// Reads 4 bytes of the table at `offset`, a multiple of 4.
    #[must_use]
    pub fn table_read(&self, offset: u64) -> u32 {
        let Some(e) = self.entries.get((offset / 16) as usize) else { return 0 };
        match offset & 0xC {
            0 => e.message.address as u32,
            4 => (e.message.address >> 32) as u32,
            8 => e.message.data,
            _ => u32::from(e.masked),
        }
    }

    /// Writes 4 bytes of the table at `offset`, a multiple of 4.
    pub fn table_write(&mut self, offset: u64, v: u32, sink: &mut dyn MsiSink) {
        let Some(e) = self.entries.get_mut((offset / 16) as usize) else { return };
        let a = e.message.address;
        match offset & 0xC {
            0 => e.message.address = a & !0xFFFF_FFFF | u64::from(v & !3),
            4 => e.message.address = a & 0xFFFF_FFFF | u64::from(v) << 32,
            8 => e.message.data = v,
            _ => {
                e.masked = v & 1 != 0;
                self.flush(sink);
            }
        }
    }

    /// Reads 4 bytes of the pending bits at `offset`, a multiple of 4.
    #[must_use]
    pub fn pba_read(&self, offset: u64) -> u32 {
        match offset {
            0 => self.pending as u32,
            4 => (self.pending >> 32) as u32,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sink(Vec<MsiMessage>);
    impl MsiSink for Sink {
        fn send(&mut self, m: MsiMessage) {
            self.0.push(m);
        }
    }

    #[test]
    fn masked_vectors_pend_and_come_once() {
        let mut s = Sink::default();
        let mut m = Msix::new(3);
        m.table_write(16, 0xFEE0_1000, &mut s);
        m.table_write(24, 0x41, &mut s);
        m.signal(1, &mut s);
        assert_eq!(m.pba_read(0), 0, "off: nothing is even pending");
        m.set_control(0xC000, &mut s);
        m.signal(1, &mut s);
        m.signal(1, &mut s);
        m.signal(9, &mut s);
        assert_eq!(m.pba_read(0), 2);
        m.table_write(28, 0, &mut s);
        assert!(s.0.is_empty());
        m.set_control(0x8000, &mut s);
        assert_eq!(s.0, [MsiMessage { address: 0xFEE0_1000, data: 0x41 }]);
        assert_eq!(m.pba_read(0), 0);
        m.signal(1, &mut s);
        assert_eq!(s.0.len(), 2);
        assert_eq!(m.table_read(28), 0);
        assert_eq!(m.table_read(12), 1);
    }
}
