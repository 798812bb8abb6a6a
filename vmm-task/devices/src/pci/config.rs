//! The 256 bytes of a function's configuration space: which bits may be written, BARs, capabilities.

use super::{BARS, ConfigEffect, Decoded};

/// Command register: ports are decoded.
pub const COMMAND_IO: u16 = 1;
/// Command register: memory is decoded.
pub const COMMAND_MEMORY: u16 = 2;
/// Command register: the function may access memory and send messages.
pub const COMMAND_MASTER: u16 = 4;
/// Command register: INTx is off.
pub const COMMAND_INTX_OFF: u16 = 1 << 10;
/// Status register: INTx is asserted, whatever the command register says.
const STATUS_INTX: u8 = 1 << 3;
/// Status register: there is a capability list.
const STATUS_CAPABILITIES: u8 = 1 << 4;

/// What a BAR decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarKind {
    /// 32-bit memory, not prefetchable.
    Memory,
    /// Ports.
    Io,
}

/// Identity of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Class, subclass, programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// Configuration space of a type 0 function.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: [u8; 256],
    /// Bits that the guest may write.
    writable: [u8; 256],
    bars: [Option<(BarKind, u32)>; BARS],
    last_capability: u8,
    next_free: u8,
}

impl ConfigSpace {
    /// A function without BARs and capabilities. The command register, cache line size, latency timer and interrupt
    /// line can be written.
    #[must_use]
    pub fn new(id: Identity) -> Self {
        let mut c =
            Self { bytes: [0; 256], writable: [0; 256], bars: [None; BARS], last_capability: 0, next_free: 0x40 };
        c.set_u16(0x00, id.vendor);
        c.set_u16(0x02, id.device);
        c.set_u32(0x08, id.class << 8 | u32::from(id.revision));
        c.set_u16(0x2C, id.subsystem_vendor);
        c.set_u16(0x2E, id.subsystem);
        c.allow(0x04, &[0x07, 0x04]);
        c.allow(0x0C, &[0xFF, 0xFF]);
        c.allow(0x3C, &[0xFF]);
        c
    }

    /// Lets the guest write the bits of `mask` from `offset` on.
    pub fn allow(&mut self, offset: u8, mask: &[u8]) {
        for (i, m) in mask.iter().enumerate() {
            if let Some(w) = self.writable.get_mut(usize::from(offset) + i) {
                *w = *m;
            }
        }
    }

    /// Sets a byte, whatever the guest may write.
    pub fn set_u8(&mut self, offset: u8, v: u8) {
        self.bytes[usize::from(offset)] = v;
    }

    /// Sets two bytes, whatever the guest may write.
    pub fn set_u16(&mut self, offset: u8, v: u16) {
        for (i, b) in v.to_le_bytes().into_iter().enumerate() {
            self.set_u8(offset.wrapping_add(i as u8), b);
        }
    }

    /// Sets four bytes, whatever the guest may write.
    pub fn set_u32(&mut self, offset: u8, v: u32) {
        for (i, b) in v.to_le_bytes().into_iter().enumerate() {
            self.set_u8(offset.wrapping_add(i as u8), b);
        }
    }

    /// Reads `size` bytes.
    #[must_use]
    pub fn read(&self, offset: u8, size: u8) -> u32 {
        (0..size.min(4)).fold(0, |v, i| v | u32::from(self.bytes[usize::from(offset.wrapping_add(i))]) << (8 * i))
    }

    /// Writes `size` bytes as the guest may.
    pub fn write(&mut self, offset: u8, size: u8, value: u32) -> ConfigEffect {
        for i in 0..size.min(4) {
            let at = usize::from(offset.wrapping_add(i));
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | (value >> (8 * i)) as u8 & mask;
        }
        match offset & 0xFC {
            0x04 | 0x10..=0x24 => ConfigEffect::Decode,
            _ => ConfigEffect::None,
        }
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        self.read(4, 2) as u16
    }

    /// Adds a BAR of `size` bytes, a power of two of at least 16 (memory) or 4 (ports).
    pub fn add_bar(&mut self, bar: u8, kind: BarKind, size: u32) {
        let size = size.next_power_of_two().max(if kind == BarKind::Memory { 16 } else { 4 });
        if let Some(b) = self.bars.get_mut(usize::from(bar)) {
            *b = Some((kind, size));
            let offset = 0x10 + 4 * bar;
            self.set_u32(offset, u32::from(kind == BarKind::Io));
            // All bits of a port's address, too: SeaBIOS takes those that cannot be written for size.
            self.allow(offset, &(!(size - 1)).to_le_bytes());
        }
    }

    /// Size and kind of a BAR.
    #[must_use]
    pub fn bar(&self, bar: u8) -> Option<(BarKind, u32)> {
        self.bars.get(usize::from(bar)).copied().flatten()
    }

    /// Places a BAR, as firmware would.
    pub fn place_bar(&mut self, bar: u8, base: u32) {
        if self.bar(bar).is_some() {
            self.write(0x10 + 4 * bar, 4, base);
        }
    }

    /// What a BAR decodes with the command register as it is. A BAR at 0 is not placed yet and decodes nothing.
    #[must_use]
    pub fn decoded(&self, bar: u8) -> Option<Decoded> {
        let (kind, size) = self.bar(bar)?;
        let raw = self.read(0x10 + 4 * bar, 4);
        let (gate, base) = match kind {
            BarKind::Memory => (COMMAND_MEMORY, raw & !0xF),
            BarKind::Io => (COMMAND_IO, raw & !3),
        };
        if kind == BarKind::Io && u64::from(base) + u64::from(size) > 0x1_0000 {
            return None;
        }
        (self.command() & gate != 0 && base != 0).then_some(Decoded {
            bar,
            kind,
            base: u64::from(base),
            size: u64::from(size),
        })
    }

    /// Appends a capability (its id, then `body` after the link byte) and gives its offset; 0 if there is no room.
    pub fn add_capability(&mut self, id: u8, body: &[u8]) -> u8 {
        let offset = self.next_free;
        let Some(end) = usize::from(offset).checked_add(2 + body.len()).filter(|&e| e <= 256 && offset != 0) else {
            return 0;
        };
        self.set_u8(offset, id);
        for (i, b) in body.iter().enumerate() {
            self.set_u8(offset.wrapping_add(2 + i as u8), *b);
        }
        let link = if self.last_capability == 0 { 0x34 } else { self.last_capability.wrapping_add(1) };
        self.set_u8(link, offset);
        self.bytes[0x06] |= STATUS_CAPABILITIES;
        self.last_capability = offset;
        self.next_free = u8::try_from(end.next_multiple_of(4)).unwrap_or(0);
        offset
    }

    /// Gives the function an INTA pin.
    pub fn add_interrupt_pin(&mut self) {
        self.set_u8(0x3D, 1);
    }

    /// Shows INTx' state in the status register and says what the pin does: asserted unless the command forbids it.
    pub fn drive_intx(&mut self, asserted: bool) -> bool {
        self.bytes[6] = self.bytes[6] & !STATUS_INTX | if asserted { STATUS_INTX } else { 0 };
        asserted && self.command() & COMMAND_INTX_OFF == 0
    }

    /// Every bit that the guest can write becomes 0.
    pub fn reset(&mut self) {
        for (b, w) in self.bytes.iter_mut().zip(&self.writable) {
            *b &= !w;
        }
        self.bytes[6] &= !STATUS_INTX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(Identity {
            vendor: 0x1AF4,
            device: 0x1042,
            class: 0x01_0000,
            revision: 1,
            subsystem_vendor: 1,
            subsystem: 2,
        })
    }

    #[test]
    fn bars_are_sized_the_usual_way() {
        let mut c = space();
        c.add_bar(0, BarKind::Memory, 0x4000);
        c.add_bar(2, BarKind::Io, 64);
        c.write(0x10, 4, u32::MAX);
        assert_eq!(c.read(0x10, 4), 0xFFFF_C000);
        c.write(0x18, 4, u32::MAX);
        assert_eq!(c.read(0x18, 4), 0xFFFF_FFC1);
        c.write(0x14, 4, u32::MAX);
        assert_eq!(c.read(0x14, 4), 0);
        assert_eq!(c.decoded(0), None);
        assert_eq!(c.write(4, 2, 3), ConfigEffect::Decode);
        c.place_bar(0, 0xC000_4000);
        assert_eq!(c.decoded(0).map(|d| (d.base, d.size)), Some((0xC000_4000, 0x4000)));
        c.reset();
        assert_eq!((c.decoded(0), c.command(), c.read(0, 2)), (None, 0, 0x1AF4));
    }

    #[test]
    fn capabilities_form_a_list_and_stop_when_full() {
        let mut c = space();
        assert_eq!(c.read(6, 2) & 0x10, 0);
        let a = c.add_capability(9, &[1, 2, 3]);
        let b = c.add_capability(0x11, &[0; 10]);
        assert_eq!((a, b), (0x40, 0x48));
        assert_eq!((c.read(0x34, 1), c.read(0x41, 1), c.read(0x49, 1)), (0x40, 0x48, 0));
        assert_eq!(c.read(6, 2) & 0x10, 0x10);
        assert_eq!(c.add_capability(9, &[0; 200]), 0);
        while c.add_capability(9, &[0; 14]) != 0 {}
        assert_eq!(c.read(0, 2), 0x1AF4);
    }
}
