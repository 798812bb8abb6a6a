//! Accesses of the guest: ports and memory.

use super::{Action, Board, Mmio, port};
use crate::acpi_pm;
use crate::i8042;
use crate::pci::{BarKind, Context, ones};
use crate::platform as p;
use crate::test_device;
use crate::traits::GuestMemory;

/// Where progress codes go, which are no text.
const POST: u16 = 0x80;

impl Board {
    /// A port read of 1, 2 or 4 bytes. Nobody's ports read as ones.
    #[inline]
    pub fn port_read(&mut self, number: u16, size: u8, now: u64, memory: &dyn GuestMemory) -> u32 {
        let owner = self.ports.lookup(number);
        match owner {
            port::PM => return self.pm.read(number - p::PM_BASE, size, now),
            port::UART if size == 1 => return u32::from(self.uart_read(number, now)),
            port::FW_CFG => return self.fw_cfg.read(number - p::FW_CFG_PORT, size),
            port::PCI_ADDRESS if size == 4 => return self.pci.address(),
            port::PCI_DATA => {
                let mut c = Context { now, memory, msi: &mut self.fabric };
                return self.pci.data_read(number as u8 & 3, size, &mut c);
            }
            crate::bus::UNCLAIMED => return ones(size),
            o if o >= port::BAR => return self.io_bar_read(o & 0x7F, number, size, now, memory),
            _ => {}
        }
        let mut v = 0;
        for i in 0..u16::from(size.min(4)) {
            v |= u32::from(self.byte_read(number.wrapping_add(i), now)) << (8 * i);
        }
        v
    }

    fn uart_read(&mut self, number: u16, now: u64) -> u8 {
        let v = self.uart.read(number - p::COM1_PORT, now);
        self.fabric.set_isa(p::COM1_IRQ, self.uart.irq());
        v
    }

    fn byte_read(&mut self, number: u16, now: u64) -> u8 {
        match self.ports.lookup(number) {
            port::PIC => self.fabric.pic.read(number),
            port::PIT => self.pit.read(number, now),
            port::RTC => {
                let v = self.rtc.read(number & 1 != 0, now);
                self.sync_rtc();
                self.deadline_stale = true;
                v
            }
            port::I8042 => {
                let v = self.i8042.read(number == 0x64);
                self.fabric.set_isa(p::KBD_IRQ, self.i8042.irq());
                v
            }
            port::UART => self.uart_read(number, now),
            port::DEBUG => self.debug.read(number),
            port::PORT_92 => self.port_92,
            port::APM => {
                if number & 1 != 0 {
                    self.apm_status
                } else {
                    0
                }
            }
            port::RESET => self.pm.read_reset(),
            port::DEBUG_EXIT => 0,
            port::TEST => self.test.read(number),
            port::SCREEN => self.screen.read(number),
            _ => 0xFF,
        }
    }

    /// A port write of 1, 2 or 4 bytes.
    #[inline]
    pub fn port_write(&mut self, number: u16, size: u8, value: u32, now: u64, memory: &dyn GuestMemory) -> Action {
        let owner = self.ports.lookup(number);
        match owner {
            port::PM => {
                let effect = self.pm.write(number - p::PM_BASE, size, value, now);
                self.fabric.set_gsi(p::SCI_GSI, self.pm.sci());
                self.deadline_stale = true;
                return pm_action(effect);
            }
            port::FW_CFG => {
                self.fw_cfg.write(number - p::FW_CFG_PORT, size, value, memory);
                return Action::None;
            }
            port::PCI_ADDRESS if size == 4 => {
                self.pci.set_address(value);
                return Action::None;
            }
            port::PCI_DATA => {
                let mut c = Context { now, memory, msi: &mut self.fabric };
                let (slot, effect) = self.pci.data_write(number as u8 & 3, size, value, &mut c);
                self.config_changed(slot, effect);
                return Action::None;
            }
            // QEMU's isa-debug-exit: the value in whatever width it comes.
            port::DEBUG_EXIT => {
                self.flush(now);
                return Action::DebugExit(value & ones(size));
            }
            port::TEST_LINE => {
                let (line, level) = ((number - test_device::LINES) as u8, value & ones(size) != 0);
                if line < 16 {
                    self.fabric.set_isa(line, level)
                } else {
                    self.fabric.set_gsi(line, level)
                }
                return Action::None;
            }
            o if o >= port::BAR => {
                self.io_bar_write(o & 0x7F, number, size, value, now, memory);
                return Action::None;
            }
            crate::bus::UNCLAIMED => return Action::None,
            _ => {}
        }
        for i in 0..u16::from(size.min(4)) {
            let action = self.byte_write(number.wrapping_add(i), (value >> (8 * i)) as u8, now);
            if action != Action::None {
                return action;
            }
        }
        Action::None
    }

    fn byte_write(&mut self, number: u16, v: u8, now: u64) -> Action {
        match self.ports.lookup(number) {
            port::PIC => self.fabric.write_pic(number, v),
            port::TEST => self.test.write(number, v),
            port::SCREEN => self.screen.write(number, v),
            port::PIT => {
                self.pit.write(number, v, now);
                self.deadline_stale = true;
            }
            port::RTC => {
                self.rtc.write(number & 1 != 0, v, now);
                self.sync_rtc();
                self.deadline_stale = true;
            }
            port::I8042 => {
                let effect = self.i8042.write(number == 0x64, v);
                self.fabric.set_isa(p::KBD_IRQ, self.i8042.irq());
                if effect == i8042::Effect::Reset {
                    return Action::Reset;
                }
            }
            port::UART => {
                self.uart.write(number - p::COM1_PORT, v, now);
                if self.uart.has_sent() {
                    self.screen.mute();
                }
                if self.uart.take_fall() {
                    self.fabric.set_isa(p::COM1_IRQ, false);
                }
                self.fabric.set_isa(p::COM1_IRQ, self.uart.irq());
                self.deadline_stale = true;
            }
            port::DEBUG => {
                self.debug.write(number, v);
                if number != POST {
                    self.screen.mute();
                }
                if self.debug.wants_drain() {
                    self.flush(now);
                }
            }
            port::PORT_92 => {
                self.port_92 = v & 2;
                if v & 1 != 0 {
                    return Action::Reset;
                }
            }
            port::APM if number & 1 != 0 => {
                self.apm_status = v;
            }
            port::RESET => return pm_action(self.pm.write_reset(v)),
            _ => {}
        }
        Action::None
    }

    fn io_bar(&self, slot: u8, number: u16) -> Option<(u8, u64)> {
        let n = u64::from(number);
        let d = self.pci.decoded(slot).find(|d| d.kind == BarKind::Io && n >= d.base && n - d.base < d.size)?;
        Some((d.bar, n - d.base))
    }

    fn io_bar_read(&mut self, slot: u8, number: u16, size: u8, now: u64, memory: &dyn GuestMemory) -> u32 {
        let Some((bar, offset)) = self.io_bar(slot, number) else { return ones(size) };
        self.bar_read(slot, bar, offset, size, now, memory) as u32
    }

    fn io_bar_write(&mut self, slot: u8, number: u16, size: u8, value: u32, now: u64, memory: &dyn GuestMemory) {
        if let Some((bar, offset)) = self.io_bar(slot, number) {
            self.bar_write(slot, bar, offset, size, u64::from(value), now, memory);
        }
    }

    fn bar_read(&mut self, slot: u8, bar: u8, offset: u64, size: u8, now: u64, memory: &dyn GuestMemory) -> u64 {
        let mut c = Context { now, memory, msi: &mut self.fabric };
        let v = self.pci.get_mut(slot).map_or(u64::MAX, |f| f.bar_read(bar, offset, size, &mut c));
        self.sync_slot(slot);
        v
    }

    #[allow(clippy::too_many_arguments)]
    fn bar_write(&mut self, slot: u8, bar: u8, offset: u64, size: u8, value: u64, now: u64, memory: &dyn GuestMemory) {
        let mut c = Context { now, memory, msi: &mut self.fabric };
        if let Some(f) = self.pci.get_mut(slot) {
            f.bar_write(bar, offset, size, value, &mut c);
        }
        self.sync_slot(slot);
        self.deadline_stale = true;
    }

    /// A read of 1, 2, 4 or 8 bytes by `vcpu`. Nobody's addresses read as ones.
    #[inline]
    pub fn mmio_read(&mut self, vcpu: usize, gpa: u64, size: u8, now: u64, memory: &dyn GuestMemory) -> u64 {
        if gpa & !0xFFF == p::LAPIC_BASE {
            return narrow(self.fabric.apics.mmio_read(vcpu, gpa as u32 & 0xFFC, now), gpa, size);
        }
        match self.mmio.lookup(gpa) {
            Some((Mmio::IoApic, offset)) => narrow(self.fabric.ioapic.read(offset & !3), gpa, size),
            Some((Mmio::Bar { slot, bar }, offset)) => self.bar_read(slot, bar, offset, size, now, memory),
            Some((Mmio::Hpet, offset)) => {
                let value = self.hpet.read(offset, size, now);
                self.sync_hpet();
                value
            }
            Some((Mmio::Ecam, offset)) => {
                let mut c = Context { now, memory, msi: &mut self.fabric };
                u64::from(self.pci.ecam_read(offset, size.min(4), &mut c))
            }
            Some((Mmio::Test, offset)) => self.test.memory_read(offset, size),
            None => u64::MAX,
        }
    }

    /// A write of 1, 2, 4 or 8 bytes by `vcpu`.
    #[inline]
    pub fn mmio_write(&mut self, vcpu: usize, gpa: u64, size: u8, value: u64, now: u64, memory: &dyn GuestMemory) {
        if gpa & !0xFFF == p::LAPIC_BASE {
            // Registers are 32 bits wide; narrower writes have no defined meaning and are ignored.
            if size >= 4 {
                let before = self.apic_deadline(vcpu);
                let eoi = self.fabric.apics.mmio_write(vcpu, gpa as u32 & 0xFFF, value as u32, now);
                self.fabric.broadcast(eoi);
                self.deadline_stale |= self.apic_deadline(vcpu) != before;
            }
            return;
        }
        match self.mmio.lookup(gpa) {
            Some((Mmio::IoApic, offset)) => self.fabric.ioapic.write(offset, value as u32, &mut self.fabric.apics),
            Some((Mmio::Bar { slot, bar }, offset)) => self.bar_write(slot, bar, offset, size, value, now, memory),
            Some((Mmio::Hpet, offset)) => {
                self.hpet.write(offset, size, value, now);
                self.sync_hpet();
                self.sync_rtc();
                self.deadline_stale = true;
            }
            Some((Mmio::Ecam, offset)) => {
                let mut c = Context { now, memory, msi: &mut self.fabric };
                let (slot, effect) = self.pci.ecam_write(offset, size.min(4), value as u32, &mut c);
                self.config_changed(slot, effect);
            }
            Some((Mmio::Test, offset)) => self.test.memory_write(offset, size, value),
            None => {}
        }
    }
}

/// The bytes of a 32-bit register that a narrower access at its address sees; wider ones see zeros above.
#[inline]
fn narrow(register: u32, gpa: u64, size: u8) -> u64 {
    let v = u64::from(register) >> (8 * (gpa & 3));
    if size >= 4 { v } else { v & ((1 << (8 * u32::from(size))) - 1) }
}

fn pm_action(effect: acpi_pm::Effect) -> Action {
    match effect {
        acpi_pm::Effect::None => Action::None,
        acpi_pm::Effect::PowerOff => Action::PowerOff,
        acpi_pm::Effect::Reset => Action::Reset,
    }
}
