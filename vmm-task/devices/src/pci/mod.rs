//! PCI: one root bus with up to 32 functions, reached by CF8h/CFCh and by ECAM (PCI 3.0; PCI Express 7.2.2).

pub mod config;
pub mod host;
pub mod msix;

use crate::traits::{GuestMemory, MsiSink};
use alloc::boxed::Box;
pub use config::{BarKind, ConfigSpace};

/// Slots on the root bus.
pub const SLOTS: usize = 32;
/// BARs of a function.
pub const BARS: usize = 6;

/// What a function may use while it handles an access.
pub struct Context<'a> {
    /// Nanoseconds since the VM was made.
    pub now: u64,
    /// Guest memory, for bus mastering.
    pub memory: &'a dyn GuestMemory,
    /// Where message-signalled interrupts go.
    pub msi: &'a mut dyn MsiSink,
}

/// What a configuration write changed outside the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigEffect {
    /// Nothing.
    None,
    /// BARs or their decoding.
    Decode,
    /// The LPC bridge's interrupt routing: all of it is to be read again.
    Routing,
    /// The position of the ECAM.
    Ecam,
}

/// A range that a function decodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The BAR's index.
    pub bar: u8,
    /// Memory or ports.
    pub kind: BarKind,
    /// First address or port.
    pub base: u64,
    /// Bytes.
    pub size: u64,
}

/// A PCI function, number 0 of its slot.
///
/// Offsets are within 256 bytes of configuration space; accesses have 1, 2 or 4 bytes and are aligned.
pub trait PciFunction: Send {
    /// Its configuration space.
    fn config(&self) -> &ConfigSpace;
    /// Its configuration space, for plain writes.
    fn config_mut(&mut self) -> &mut ConfigSpace;
    /// A configuration read by the guest.
    fn config_read(&mut self, offset: u8, size: u8, _context: &mut Context<'_>) -> u32 {
        self.config().read(offset, size)
    }
    /// A configuration write by the guest.
    fn config_write(&mut self, offset: u8, size: u8, value: u32, _context: &mut Context<'_>) -> ConfigEffect {
        self.config_mut().write(offset, size, value)
    }
    /// A read of 1 to 8 bytes in a BAR.
    fn bar_read(&mut self, _bar: u8, _offset: u64, _size: u8, _context: &mut Context<'_>) -> u64 {
        u64::MAX
    }
    /// A write of 1 to 8 bytes in a BAR.
    fn bar_write(&mut self, _bar: u8, _offset: u64, _size: u8, _value: u64, _context: &mut Context<'_>) {}
    /// Work that needs no access: completions, input, timers.
    fn poll(&mut self, _context: &mut Context<'_>) {}
    /// When `poll` has something to do at the latest.
    fn next_deadline(&self) -> Option<u64> {
        None
    }
    /// Level of INTA.
    fn intx(&self) -> bool {
        false
    }
    /// What the guest's driver did wrong, if the function has given up on it.
    fn fault(&self) -> Option<&'static str> {
        None
    }
    /// As after power-on.
    fn reset(&mut self);
    /// The LPC bridge's routing of PCI pins to ISA interrupts, if this is it.
    fn routing(&self) -> Option<[u8; 8]> {
        None
    }
    /// Where the ECAM is, if this is the host bridge and the ECAM is on: base and size.
    fn ecam(&self) -> Option<(u64, u64)> {
        None
    }
}

/// The root bus.
pub struct PciBus {
    address: u32,
    slots: [Option<Box<dyn PciFunction>>; SLOTS],
    /// Slots that are not empty, as bits.
    plugged: u32,
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PciBus {
    /// An empty bus.
    #[must_use]
    pub fn new() -> Self {
        Self { address: 0, slots: [const { None }; SLOTS], plugged: 0 }
    }

    /// Plugs a function in; what was in the slot is gone. Slots above 31 do not exist.
    pub fn plug(&mut self, slot: u8, function: Box<dyn PciFunction>) {
        if let Some(s) = self.slots.get_mut(usize::from(slot)) {
            *s = Some(function);
            self.plugged |= 1 << (slot & 31);
        }
    }

    /// The function in a slot.
    #[inline]
    pub fn get_mut(&mut self, slot: u8) -> Option<&mut (dyn PciFunction + 'static)> {
        self.slots.get_mut(usize::from(slot))?.as_deref_mut()
    }

    /// Slots that are not empty, as bits.
    #[must_use]
    pub fn plugged(&self) -> u32 {
        self.plugged
    }

    /// All functions with their slots.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u8, &mut Box<dyn PciFunction>)> {
        self.slots.iter_mut().enumerate().filter_map(|(i, s)| Some((i as u8, s.as_mut()?)))
    }

    /// The ranges that a slot's function decodes now.
    pub fn decoded(&self, slot: u8) -> impl Iterator<Item = Decoded> {
        let f = self.slots.get(usize::from(slot)).and_then(Option::as_deref);
        (0..BARS as u8).filter_map(move |bar| f?.config().decoded(bar))
    }

    /// All functions as after power-on.
    pub fn reset(&mut self) {
        self.address = 0;
        for (_, f) in self.iter_mut() {
            f.reset();
        }
    }

    /// The register at CF8h.
    #[must_use]
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Writes the register at CF8h, which only 32-bit accesses reach.
    pub fn set_address(&mut self, v: u32) {
        self.address = v & 0x80FF_FFFC;
    }

    /// Slot and register that CFCh + `lane` names now.
    fn selected(&self, lane: u8) -> Option<(u8, u8)> {
        // Enabled, bus 0, function 0.
        (self.address & 0x80FF_0700 == 0x8000_0000)
            .then_some(((self.address >> 11 & 31) as u8, self.address as u8 | lane & 3))
    }

    /// Reads at CFCh + `lane`.
    pub fn data_read(&mut self, lane: u8, size: u8, context: &mut Context<'_>) -> u32 {
        match self.selected(lane) {
            Some((slot, register)) => self.config_read(slot, u16::from(register), size, context),
            None => ones(size),
        }
    }

    /// Writes at CFCh + `lane`; the slot written to, and what changed.
    pub fn data_write(&mut self, lane: u8, size: u8, value: u32, context: &mut Context<'_>) -> (u8, ConfigEffect) {
        match self.selected(lane) {
            Some((slot, register)) => (slot, self.config_write(slot, u16::from(register), size, value, context)),
            None => (0, ConfigEffect::None),
        }
    }

    /// Reads at an offset of the ECAM.
    pub fn ecam_read(&mut self, offset: u64, size: u8, context: &mut Context<'_>) -> u32 {
        match ecam_target(offset) {
            Some((slot, register)) => self.config_read(slot, register, size, context),
            None => ones(size),
        }
    }

    /// Writes at an offset of the ECAM; the slot written to, and what changed.
    pub fn ecam_write(&mut self, offset: u64, size: u8, value: u32, context: &mut Context<'_>) -> (u8, ConfigEffect) {
        match ecam_target(offset) {
            Some((slot, register)) => (slot, self.config_write(slot, register, size, value, context)),
            None => (0, ConfigEffect::None),
        }
    }

    fn config_read(&mut self, slot: u8, register: u16, size: u8, context: &mut Context<'_>) -> u32 {
        match (self.get_mut(slot), u8::try_from(register)) {
            (Some(f), Ok(register)) if aligned(register, size) => f.config_read(register, size, context),
            _ => ones(size),
        }
    }

    fn config_write(
        &mut self,
        slot: u8,
        register: u16,
        size: u8,
        value: u32,
        context: &mut Context<'_>,
    ) -> ConfigEffect {
        match (self.get_mut(slot), u8::try_from(register)) {
            (Some(f), Ok(register)) if aligned(register, size) => f.config_write(register, size, value, context),
            _ => ConfigEffect::None,
        }
    }
}

fn aligned(register: u8, size: u8) -> bool {
    matches!(size, 1 | 2 | 4) && register & (size - 1) == 0
}

/// All ones in `size` bytes: what nobody's register reads as.
#[must_use]
#[inline]
pub const fn ones(size: u8) -> u32 {
    match size {
        1 => 0xFF,
        2 => 0xFFFF,
        _ => u32::MAX,
    }
}

/// Slot and register of an ECAM offset, if it is bus 0 and function 0.
fn ecam_target(offset: u64) -> Option<(u8, u16)> {
    let function = offset >> 12;
    (function & 0xFF07 == 0).then_some(((function >> 3) as u8, (offset & 0xFFF) as u16))
}
