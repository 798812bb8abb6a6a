//! The q35's own functions: host bridge (Intel 82G33 MCH) and LPC bridge (ICH9).

use super::config::{ConfigSpace, Identity};
use super::{ConfigEffect, Context, PciFunction};
use crate::platform::{ECAM_BASE, PM_BASE};

const PCIEXBAR: u8 = 0x60;

/// The host bridge, 00:00.0: 8086:29C0.
///
/// The attribute maps of C0000h to FFFFFh (PAM, 90h to 96h) are remembered and do nothing: all of it is RAM.
#[derive(Clone, Debug)]
pub struct HostBridge {
    config: ConfigSpace,
    preset: bool,
}

impl HostBridge {
    /// `preset`: as firmware leaves it, with the ECAM on at its platform address; else as after power-on.
    #[must_use]
    pub fn new(preset: bool) -> Self {
        let id = Identity {
            vendor: 0x8086,
            device: 0x29C0,
            class: 0x06_0000,
            revision: 0,
            subsystem_vendor: 0x1AF4,
            subsystem: 0x1100,
        };
        let mut config = ConfigSpace::new(id);
        // Enable, length, and bits 28 to 35 of the base.
        config.allow(PCIEXBAR, &[0x07, 0, 0, 0xFC, 0x0F]);
        config.allow(0x90, &[0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33]);
        // System management RAM: closed, and its caching controls as after power-on.
        config.set_u8(0x9D, 0x02);
        config.set_u8(0x9E, 0x38);
        let mut bridge = Self { config, preset };
        bridge.reset();
        bridge
    }
}

impl PciFunction for HostBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn config_write(&mut self, offset: u8, size: u8, value: u32, _context: &mut Context<'_>) -> ConfigEffect {
        self.config.write(offset, size, value);
        if offset & 0xF8 == PCIEXBAR { ConfigEffect::Ecam } else { ConfigEffect::None }
    }
    fn reset(&mut self) {
        self.config.reset();
        if self.preset {
            self.config.set_u32(PCIEXBAR, ECAM_BASE as u32 | 1);
            for r in 0x91..=0x96 {
                self.config.set_u8(r, 0x33);
            }
            self.config.set_u8(0x90, 0x30);
        }
    }
    fn ecam(&self) -> Option<(u64, u64)> {
        let low = self.config.read(PCIEXBAR, 4);
        let raw = u64::from(self.config.read(PCIEXBAR + 4, 4)) << 32 | u64::from(low);
        let size = match low >> 1 & 3 {
            0 => 0x1000_0000,
            1 => 0x0800_0000,
            2 => 0x0400_0000,
            _ => return None,
        };
        (low & 1 != 0).then_some((raw & 0xF_FC00_0000 & !(size - 1), size))
    }
}

/// The LPC bridge, 00:1f.0: 8086:2918.
#[derive(Clone, Debug)]
pub struct LpcBridge {
    config: ConfigSpace,
    preset: bool,
}

impl LpcBridge {
    /// `preset`: as firmware leaves it, with the ACPI ports on; else as after power-on.
    #[must_use]
    pub fn new(preset: bool) -> Self {
        let id = Identity {
            vendor: 0x8086,
            device: 0x2918,
            class: 0x06_0100,
            revision: 2,
            subsystem_vendor: 0x1AF4,
            subsystem: 0x1100,
        };
        let mut config = ConfigSpace::new(id);
        // PMBASE, ACPI_CNTL
        config.allow(0x40, &[0x80, 0xFF]);
        config.allow(0x44, &[0x87]);
        // Interrupt routing A to D, serial interrupts, E to H
        config.allow(0x60, &[0x8F; 4]);
        config.allow(0x64, &[0xD3]);
        config.allow(0x68, &[0x8F; 4]);
        // Decode ranges and enables
        config.allow(0x80, &[0x77, 0x13, 0x0F, 0x3F]);
        // RCBA is not there, but can be read back.
        config.allow(0xF0, &[0x01, 0xC0, 0xFF, 0xFF]);
        let mut bridge = Self { config, preset };
        bridge.reset();
        bridge
    }
}

impl PciFunction for LpcBridge {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }
    fn config_write(&mut self, offset: u8, size: u8, value: u32, _context: &mut Context<'_>) -> ConfigEffect {
        self.config.write(offset, size, value);
        if matches!(offset & 0xFC, 0x60 | 0x68) { ConfigEffect::Routing } else { ConfigEffect::None }
    }
    fn reset(&mut self) {
        self.config.reset();
        self.config.set_u32(0x40, 1);
        for r in (0x60..=0x63).chain(0x68..=0x6B) {
            self.config.set_u8(r, 0x80);
        }
        self.config.set_u8(0x64, 0x10);
        if self.preset {
            self.config.set_u16(0x40, PM_BASE | 1);
            self.config.set_u8(0x44, 0x80);
            self.config.set_u8(0x64, 0xD0);
        }
        // The bridge's own decoding and mastering cannot be switched off.
        self.config.set_u16(0x04, 0x0007);
        self.config.allow(0x04, &[0, 0]);
    }
    fn routing(&self) -> Option<[u8; 8]> {
        let mut r = [0; 8];
        for (i, r) in r.iter_mut().enumerate() {
            let register = if i < 4 { 0x60 + i as u8 } else { 0x64 + i as u8 };
            let v = self.config.read(register, 1) as u8;
            // Inputs 0, 1, 2, 8 and 13 are reserved.
            *r = if v & 0x80 != 0 || matches!(v & 15, 0 | 1 | 2 | 8 | 13) { 0 } else { v & 15 };
        }
        Some(r)
    }
}
