//! The I/O APIC (Intel 82093AA data sheet; version 20h with the EOI register).

use crate::apic_bus::{ApicBus, Delivery, Message};
use crate::platform::{IOAPIC_ID, IOAPIC_PINS};

const PINS: usize = IOAPIC_PINS as usize;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const LOGICAL: u64 = 1 << 11;
/// What software may write: neither delivery status nor remote IRR.
const WRITABLE: u64 = 0xFF00_0000_0001_AFFF;

/// The I/O APIC with its 24 pins.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u8,
    entries: [u64; PINS],
    /// Asserted pins, whatever their polarity says: sources drive "asserted", wires have no sense of their own here.
    lines: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// After power-on: all pins masked.
    #[must_use]
    pub const fn new() -> Self {
        Self { select: 0, id: IOAPIC_ID, entries: [MASKED; PINS], lines: 0 }
    }

    /// Drives a pin. Polarity bits have no effect: `true` is "asserted", whichever way the guest says the wire works.
    pub fn set_line(&mut self, pin: u8, asserted: bool, bus: &mut ApicBus) {
        let bit = 1u32.checked_shl(u32::from(pin)).unwrap_or(0);
        let was = self.lines & bit != 0;
        if asserted {
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
        if asserted && !was {
            self.service(pin, bus);
        }
    }

    /// Sends the pin's message if the pin is asserted and the entry allows it. An edge that meets a masked entry is
    /// lost; a level is not, because whoever unmasks comes here again.
    fn service(&mut self, pin: u8, bus: &mut ApicBus) {
        let Some(e) = self.entries.get_mut(usize::from(pin)) else { return };
        if *e & MASKED != 0 || *e & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
            return;
        }
        let level = *e & LEVEL != 0;
        let message = Message {
            dest: (*e >> 56) as u32,
            wide: false,
            logical: *e & LOGICAL != 0,
            level,
            delivery: Delivery::from_bits((*e >> 8) as u32),
            vector: *e as u8,
        };
        if bus.deliver(&message) && level && matches!(message.delivery, Delivery::Fixed | Delivery::Lowest) {
            *e |= REMOTE_IRR;
        }
    }

    fn asserted(&self, pin: usize) -> bool {
        self.lines >> pin & 1 != 0
    }

    /// A local APIC has finished a level-triggered interrupt: pins with this vector that are still asserted send again.
    pub fn end_of_interrupt(&mut self, vector: u8, bus: &mut ApicBus) {
        for pin in 0..PINS {
            let e = &mut self.entries[pin];
            if *e as u8 == vector && *e & (LEVEL | REMOTE_IRR) == LEVEL | REMOTE_IRR {
                *e &= !REMOTE_IRR;
                if self.asserted(pin) {
                    self.service(pin as u8, bus);
                }
            }
        }
    }

    /// Whether a pin is set up to pass the PIC's interrupts on ("virtual wire" through the I/O APIC, pin 0) to the
    /// processor with this APIC.
    #[must_use]
    pub fn passes_pic_to(&self, lapic: &crate::lapic::Lapic) -> bool {
        let e = self.entries[0];
        e & MASKED == 0
            && Delivery::from_bits((e >> 8) as u32) == Delivery::ExtInt
            && lapic.hardware_enabled()
            && lapic.matches((e >> 56) as u32, e & LOGICAL != 0, false)
    }

    /// Reads 32 bits at `offset` of the page.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset {
            0x00 => u32::from(self.select),
            0x10 => match self.select {
                0 | 2 => u32::from(self.id) << 24,
                1 => (u32::from(IOAPIC_PINS) - 1) << 16 | 0x20,
                r @ 0x10..=0x3F => {
                    let e = self.entries.get(usize::from(r - 0x10) / 2).copied().unwrap_or(0);
                    if r & 1 == 0 { e as u32 } else { (e >> 32) as u32 }
                }
                _ => 0,
            },
            _ => 0,
        }
    }

    /// Writes 32 bits at `offset` of the page.
    pub fn write(&mut self, offset: u64, v: u32, bus: &mut ApicBus) {
        match offset {
            0x00 => self.select = v as u8,
            0x10 => match self.select {
                0 => self.id = (v >> 24) as u8 & 15,
                r @ 0x10..=0x3F => self.write_entry(r - 0x10, v, bus),
                _ => {}
            },
            0x40 => self.end_of_interrupt(v as u8, bus),
            _ => {}
        }
    }

    fn write_entry(&mut self, half: u8, v: u32, bus: &mut ApicBus) {
        let pin = half / 2;
        let Some(e) = self.entries.get_mut(usize::from(pin)) else { return };
        let shift = 32 * u32::from(half & 1);
        let new = *e & !(0xFFFF_FFFF << shift) | u64::from(v) << shift;
        *e = new & WRITABLE | *e & REMOTE_IRR;
        // An entry made edge-triggered forgets that it waits; guests use this to clear a stuck remote IRR.
        if *e & LEVEL == 0 {
            *e &= !REMOTE_IRR;
        }
        let level = *e & LEVEL != 0;
        if self.asserted(usize::from(pin)) && level {
            self.service(pin, bus);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn setup() -> (IoApic, ApicBus) {
        let mut b = ApicBus::new(&[0, 1], 1_000_000_000, 1_000_000_000);
        for i in 0..2 {
            let _ = b.mmio_write(i, 0xF0, 0x1FF, 0);
        }
        (IoApic::new(), b)
    }

    fn route(io: &mut IoApic, b: &mut ApicBus, pin: u32, low: u32, dest: u32) {
        io.write(0, 0x11 + 2 * pin, b);
        io.write(0x10, dest << 24, b);
        io.write(0, 0x10 + 2 * pin, b);
        io.write(0x10, low, b);
    }

    fn serve(b: &mut ApicBus, cpu: usize) -> Option<u8> {
        let l = b.get_mut(cpu)?;
        let v = l.highest_pending()?;
        l.accept(v);
        Some(v)
    }

    #[test]
    fn edge_goes_once_and_is_lost_while_masked() {
        let (mut io, mut b) = setup();
        io.set_line(4, true, &mut b);
        route(&mut io, &mut b, 4, 0x31, 1);
        assert_eq!(serve(&mut b, 1), None);
        io.set_line(4, false, &mut b);
        io.set_line(4, true, &mut b);
        assert_eq!(serve(&mut b, 1), Some(0x31));
        assert_eq!(b.mmio_write(1, 0xB0, 0, 0).0, None);
        assert_eq!(serve(&mut b, 1), None);
    }

    #[test]
    fn level_comes_again_until_it_falls_and_remote_irr_holds_it() {
        let (mut io, mut b) = setup();
        route(&mut io, &mut b, 9, 0x8041, 0);
        io.set_line(9, true, &mut b);
        for _ in 0..3 {
            assert_eq!(serve(&mut b, 0), Some(0x41));
            io.write(0, 0x10 + 18, &mut b);
            assert_eq!(io.read(0x10) & 0x4000, 0x4000);
            io.set_line(9, true, &mut b);
            assert_eq!(serve(&mut b, 0), None);
            let eoi = b.mmio_write(0, 0xB0, 0, 0).0.unwrap();
            io.end_of_interrupt(eoi, &mut b);
        }
        assert_eq!(serve(&mut b, 0), Some(0x41));
        io.set_line(9, false, &mut b);
        let eoi = b.mmio_write(0, 0xB0, 0, 0).0.unwrap();
        io.end_of_interrupt(eoi, &mut b);
        assert_eq!(serve(&mut b, 0), None);
    }

    #[test]
    fn a_level_that_was_masked_comes_with_the_unmasking() {
        let (mut io, mut b) = setup();
        io.set_line(16, true, &mut b);
        route(&mut io, &mut b, 16, 0x1_A042, 0);
        assert_eq!(serve(&mut b, 0), None);
        route(&mut io, &mut b, 16, 0xA042, 0);
        assert_eq!(serve(&mut b, 0), Some(0x42));
    }

    #[test]
    fn registers() {
        let (mut io, mut b) = setup();
        io.write(0, 1, &mut b);
        assert_eq!(io.read(0x10), 0x0017_0020);
        io.write(0, 0x3F, &mut b);
        io.write(0x10, 0xAB00_0000, &mut b);
        assert_eq!(io.read(0x10), 0xAB00_0000);
        io.write(0, 0x40, &mut b);
        assert_eq!(io.read(0x10), 0);
    }

    proptest! {
        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((0u8..4, any::<u8>(), any::<u32>()), 0..300)) {
            let (mut io, mut b) = setup();
            for (op, r, v) in ops {
                match op {
                    0 => { let _ = io.read(u64::from(r)); }
                    1 => { io.write(0, u32::from(r), &mut b); io.write(0x10, v, &mut b); }
                    2 => io.set_line(r, v & 1 != 0, &mut b),
                    _ => io.end_of_interrupt(r, &mut b),
                }
            }
        }
    }
}
