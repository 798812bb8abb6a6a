//! The whole machine: every device in its place, behind ports, addresses and MSRs.
//!
//! The monitor feeds exits in and takes from it what a vCPU should do next. A typical turn:
//!
//! 1. an exit comes: [`Board::port_read`], [`Board::mmio_write`], [`Board::msr_read`], …;
//! 2. [`Board::tick`] if [`Board::next_deadline`] has passed, [`Board::poll`] if a back end has news;
//! 3. [`Board::take_kicks`] to wake or interrupt other vCPUs, [`Board::take_event`] for INIT and start-up;
//! 4. [`Board::pending`] and [`Board::accept`] or [`Board::take_nmi`], then back into the guest until the next deadline.

use crate::acpi_pm::{self, AcpiPm};
use crate::apic_bus::ApicBus;
use crate::bus::{MmioMap, PortMap};
use crate::debug::DebugPorts;
use crate::fabric::{Fabric, Interrupt};
use crate::fw_cfg::FwCfg;
use crate::i8042::{self, I8042};
use crate::lapic::{CpuEvent, GpFault, Lapic};
use crate::pci::host::{HostBridge, LpcBridge};
use crate::pci::{BARS, BarKind, ConfigEffect, Context, PciBus, PciFunction, SLOTS, ones};
use crate::pit::Pit;
use crate::platform as p;
use crate::rtc::Rtc;
use crate::time::earlier;
use crate::traits::{ConsoleBackend, GuestMemory};
use crate::uart::Uart;
use alloc::boxed::Box;

/// What the monitor must do after a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Action {
    /// Go on.
    None,
    /// Reset the machine: [`Board::reset`], memory and vCPUs as at the start.
    Reset,
    /// The guest switched itself off.
    PowerOff,
    /// A test payload ended with this value (port F4h).
    DebugExit(u8),
}

/// How to build a board.
pub struct BoardConfig<'a> {
    /// APIC ids, one for each vCPU; the first is the boot processor.
    pub apic_ids: &'a [u32],
    /// Input frequency of the APIC timers in Hz (CPUID leaf 15h's crystal, if the guest sees that leaf).
    pub apic_timer_hz: u64,
    /// Frequency of the guest's TSC in Hz; the TSC is 0 at `now` = 0.
    pub tsc_hz: u64,
    /// Wall clock at `now` = 0: nanoseconds since 1970.
    pub unix_ns: u64,
    /// RAM below 4 GiB in bytes, for CMOS.
    pub memory_below_4g: u64,
    /// RAM above 4 GiB in bytes, for CMOS.
    pub memory_above_4g: u64,
    /// Leave PCI as firmware would (ECAM on, BARs placed, ACPI on): for guests that are loaded without firmware.
    pub without_firmware: bool,
    /// The other end of the serial port.
    pub console: Box<dyn ConsoleBackend>,
}

/// Owners of ports. Values from [`PORT_BAR`] on are I/O BARs, one for each slot.
mod port {
    pub const PIC: u8 = 1;
    pub const PIT: u8 = 2;
    pub const I8042: u8 = 3;
    pub const RTC: u8 = 4;
    pub const UART: u8 = 5;
    pub const PM: u8 = 6;
    pub const PCI_ADDRESS: u8 = 7;
    pub const PCI_DATA: u8 = 8;
    pub const DEBUG: u8 = 9;
    pub const DEBUG_EXIT: u8 = 10;
    pub const PORT_92: u8 = 11;
    pub const APM: u8 = 12;
    pub const RESET: u8 = 13;
    pub const FW_CFG: u8 = 14;
    pub const BAR: u8 = 0x80;
}

/// Owners of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mmio {
    IoApic,
    Ecam,
    Bar { slot: u8, bar: u8 },
}

/// The machine.
pub struct Board {
    fabric: Fabric,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    i8042: I8042,
    pm: AcpiPm,
    debug: DebugPorts,
    fw_cfg: FwCfg,
    pci: PciBus,
    ports: PortMap,
    mmio: MmioMap<Mmio>,
    /// Port 92h and B3h.
    port_92: u8,
    apm_status: u8,
    without_firmware: bool,
    next_mmio: u64,
    next_io: u16,
    /// INTA of each slot, as last carried to the fabric.
    intx: u32,
    deadline: Option<u64>,
    deadline_stale: bool,
}

impl Board {
    /// A machine with its fixed devices; PCI devices are added by [`Self::plug`].
    #[must_use]
    pub fn new(config: BoardConfig<'_>) -> Self {
        let mut rtc = Rtc::new(config.unix_ns);
        fill_cmos(&mut rtc, &config);
        let mut pci = PciBus::new();
        pci.plug(0, Box::new(HostBridge::new(config.without_firmware)));
        pci.plug(p::SLOT_LPC, Box::new(LpcBridge::new(config.without_firmware)));
        let mut board = Self {
            fabric: Fabric::new(ApicBus::new(config.apic_ids, config.apic_timer_hz, config.tsc_hz)),
            pit: Pit::new(),
            rtc,
            uart: Uart::new(config.console),
            i8042: I8042::new(),
            pm: AcpiPm::new(),
            debug: DebugPorts::new(),
            fw_cfg: FwCfg::new(config.apic_ids.len() as u16),
            pci,
            ports: PortMap::new(),
            mmio: MmioMap::default(),
            port_92: 2,
            apm_status: 0,
            without_firmware: config.without_firmware,
            next_mmio: p::PCI_MMIO_BASE,
            next_io: p::PCI_IO_BASE,
            intx: 0,
            deadline: None,
            deadline_stale: true,
        };
        board.claim_ports();
        // The map is empty, so this cannot meet another range.
        let _ = board.mmio.claim(p::IOAPIC_BASE, p::IOAPIC_SIZE, Mmio::IoApic);
        board.map_ecam();
        board
    }

    fn claim_ports(&mut self) {
        for (first, count, owner) in [
            (0x20, 2, port::PIC),
            (0xA0, 2, port::PIC),
            (0x4D0, 2, port::PIC),
            (0x40, 4, port::PIT),
            (0x61, 1, port::PIT),
            (0x60, 1, port::I8042),
            (0x64, 1, port::I8042),
            (p::RTC_PORT, 2, port::RTC),
            (0x80, 1, port::DEBUG),
            (0xE9, 1, port::DEBUG),
            (0x402, 1, port::DEBUG),
            (0xF4, 1, port::DEBUG_EXIT),
            (0x92, 1, port::PORT_92),
            (0xB2, 2, port::APM),
            (p::COM1_PORT, 8, port::UART),
            (0xCF8, 1, port::PCI_ADDRESS),
            (p::RESET_PORT, 1, port::RESET),
            (0xCFC, 4, port::PCI_DATA),
            (p::PM_BASE, p::PM_SIZE, port::PM),
            (p::FW_CFG_PORT, 2, port::FW_CFG),
            (p::FW_CFG_PORT + 4, 8, port::FW_CFG),
        ] {
            self.ports.claim(first, count, owner);
        }
    }

    /// Plugs a PCI function into a slot (1 to 30), and without firmware gives its BARs addresses and switches it on.
    pub fn plug(&mut self, slot: u8, mut function: Box<dyn PciFunction>) {
        if self.without_firmware {
            self.place(function.as_mut(), slot);
        }
        self.pci.plug(slot, function);
        self.map_bars(slot);
        self.deadline_stale = true;
    }

    /// What firmware does: addresses for the BARs, decoding on, the interrupt line's number.
    fn place(&mut self, f: &mut dyn PciFunction, slot: u8) {
        for bar in 0..BARS as u8 {
            let Some((kind, size)) = f.config().bar(bar) else { continue };
            match kind {
                BarKind::Memory => {
                    let base = self.next_mmio.next_multiple_of(u64::from(size));
                    if base + u64::from(size) <= p::PCI_MMIO_END {
                        f.config_mut().place_bar(bar, base as u32);
                        self.next_mmio = base + u64::from(size);
                    }
                }
                BarKind::Io => {
                    let base = u32::from(self.next_io).next_multiple_of(size);
                    if let Ok(next) = u16::try_from(base + size) {
                        f.config_mut().place_bar(bar, base);
                        self.next_io = next;
                    }
                }
            }
        }
        f.config_mut().write(4, 2, 7);
        if f.config().read(0x3D, 1) != 0 {
            f.config_mut().write(0x3C, 1, u32::from(p::intx_gsi(slot, 0)));
        }
    }

    fn map_bars(&mut self, slot: u8) {
        self.mmio.release(|h| matches!(h, Mmio::Bar { slot: s, .. } if s == slot));
        self.ports.release_all(port::BAR | slot);
        for d in self.pci.decoded(slot) {
            match d.kind {
                // A BAR on top of another device decodes nothing, until one of them moves.
                BarKind::Memory => {
                    let _ = self.mmio.claim(d.base, d.size, Mmio::Bar { slot, bar: d.bar });
                }
                BarKind::Io => self.ports.claim_free(d.base as u16, d.size as u16, port::BAR | slot),
            }
        }
    }

    fn map_ecam(&mut self) {
        self.mmio.release(|h| h == Mmio::Ecam);
        let at = self.pci.get_mut(0).and_then(|f| f.ecam());
        if let Some((base, size)) = at {
            // On top of something else it decodes nothing.
            let _ = self.mmio.claim(base, size, Mmio::Ecam);
        }
    }

    fn config_changed(&mut self, slot: u8, effect: ConfigEffect) {
        match effect {
            ConfigEffect::None => {}
            ConfigEffect::Decode => {
                // A range that was hidden under this one may be free now, so all are laid out anew.
                for s in members(self.pci.plugged()) {
                    self.map_bars(s);
                }
            }
            ConfigEffect::Ecam => self.map_ecam(),
            ConfigEffect::Routing => {
                let routing = self.pci.get_mut(slot).and_then(|f| f.routing()).unwrap_or_default();
                for (pin, irq) in (0..).zip(routing) {
                    self.fabric.route_pirq(pin, irq);
                }
            }
        }
        self.sync_pci();
        self.deadline_stale = true;
    }

    /// Brings the INTx pin of one slot up to date.
    fn sync_slot(&mut self, slot: u8) {
        let level = self.pci.get_mut(slot).is_some_and(|f| f.intx());
        let bit = 1u32 << (slot & 31);
        if (self.intx & bit != 0) == level {
            return;
        }
        self.intx ^= bit;
        // Several slots share a pin: it is asserted while any of them asserts it.
        let gsi = p::intx_gsi(slot, 0);
        let shared = (0..SLOTS as u8).any(|s| p::intx_gsi(s, 0) == gsi && self.intx >> s & 1 != 0);
        self.fabric.set_gsi(gsi, shared);
    }

    fn sync_pci(&mut self) {
        for slot in members(self.pci.plugged()) {
            self.sync_slot(slot);
        }
    }

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
                self.fabric.set_isa(p::RTC_IRQ, self.rtc.irq());
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
            port::PIT => {
                self.pit.write(number, v, now);
                self.deadline_stale = true;
            }
            port::RTC => {
                self.rtc.write(number & 1 != 0, v, now);
                self.fabric.set_isa(p::RTC_IRQ, self.rtc.irq());
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
                self.fabric.set_isa(p::COM1_IRQ, self.uart.irq());
                self.deadline_stale = true;
            }
            port::DEBUG => self.debug.write(number, v),
            port::DEBUG_EXIT => return Action::DebugExit(v),
            port::PORT_92 => {
                self.port_92 = v & 2;
                if v & 1 != 0 {
                    return Action::Reset;
                }
            }
            port::APM
                if number & 1 != 0 => {
                    self.apm_status = v;
                }
            port::RESET => return pm_action(self.pm.write_reset(v)),
            _ => {}
        }
        Action::None
    }

    fn io_bar(&self, slot: u8, number: u16) -> Option<(u8, u64)> {
        let n = u64::from(number);
        let d = self.pci.decoded(slot).into_iter().find(|d| d.kind == BarKind::Io && n >= d.base && n - d.base < d.size)?;
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

    /// Whether a guest-physical address belongs to a device (the local APICs included).
    #[must_use]
    pub fn is_mmio(&self, gpa: u64) -> bool {
        gpa & !0xFFF == p::LAPIC_BASE || self.mmio.lookup(gpa).is_some()
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
            Some((Mmio::Ecam, offset)) => {
                let mut c = Context { now, memory, msi: &mut self.fabric };
                u64::from(self.pci.ecam_read(offset, size.min(4), &mut c))
            }
            None => u64::MAX,
        }
    }

    /// A write of 1, 2, 4 or 8 bytes by `vcpu`.
    #[inline]
    pub fn mmio_write(&mut self, vcpu: usize, gpa: u64, size: u8, value: u64, now: u64, memory: &dyn GuestMemory) {
        if gpa & !0xFFF == p::LAPIC_BASE {
            // Registers are 32 bits wide; narrower writes have no defined meaning and are ignored.
            if size >= 4 {
                let eoi = self.fabric.apics.mmio_write(vcpu, gpa as u32 & 0xFFF, value as u32, now);
                self.fabric.broadcast(eoi);
                self.deadline_stale = true;
            }
            return;
        }
        match self.mmio.lookup(gpa) {
            Some((Mmio::IoApic, offset)) => self.fabric.ioapic.write(offset, value as u32, &mut self.fabric.apics),
            Some((Mmio::Bar { slot, bar }, offset)) => self.bar_write(slot, bar, offset, size, value, now, memory),
            Some((Mmio::Ecam, offset)) => {
                let mut c = Context { now, memory, msi: &mut self.fabric };
                let (slot, effect) = self.pci.ecam_write(offset, size.min(4), value as u32, &mut c);
                self.config_changed(slot, effect);
            }
            None => {}
        }
    }

    /// `vcpu`'s guest has moved its TSC: from now on it is `offset` ticks (modulo 2^64) more than `now` says.
    pub fn set_tsc_offset(&mut self, vcpu: usize, offset: u64, now: u64) {
        let clocks = *self.fabric.apics.clocks();
        if let Some(l) = self.fabric.apics.get_mut(vcpu) {
            l.set_tsc_offset(offset, now, &clocks);
        }
        self.deadline_stale = true;
    }

    /// Whether an MSR is one of the local APIC's: 1Bh, 6E0h, 800h to 8FFh.
    #[must_use]
    pub const fn is_apic_msr(msr: u32) -> bool {
        matches!(msr, 0x1B | 0x6E0 | 0x800..=0x8FF)
    }

    /// Reads an APIC MSR of `vcpu`.
    ///
    /// # Errors
    /// [`GpFault`]: inject #GP(0).
    pub fn msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Result<u64, GpFault> {
        self.fabric.apics.msr_read(vcpu, msr, now)
    }

    /// Writes an APIC MSR of `vcpu`.
    ///
    /// # Errors
    /// [`GpFault`]: inject #GP(0).
    pub fn msr_write(&mut self, vcpu: usize, msr: u32, value: u64, now: u64) -> Result<(), GpFault> {
        let eoi = self.fabric.apics.msr_write(vcpu, msr, value, now)?;
        self.fabric.broadcast(eoi);
        self.deadline_stale = true;
        Ok(())
    }

    /// Lets everything happen that is due at `now`. Call it when [`Self::next_deadline`] has passed.
    pub fn tick(&mut self, now: u64, memory: &dyn GuestMemory) {
        if self.next_deadline().is_none_or(|at| now < at) {
            return;
        }
        self.timers(now);
        for slot in members(self.pci.plugged()) {
            let mut c = Context { now, memory, msi: &mut self.fabric };
            let Some(f) = self.pci.get_mut(slot) else { continue };
            if f.next_deadline().is_some_and(|at| now >= at) {
                f.poll(&mut c);
                self.sync_slot(slot);
            }
        }
    }

    /// [`Self::tick`], and all devices look at their back ends. Call it when a back end has news: input on a console,
    /// a finished request of a disk.
    pub fn poll(&mut self, now: u64, memory: &dyn GuestMemory) {
        self.timers(now);
        for slot in members(self.pci.plugged()) {
            let mut c = Context { now, memory, msi: &mut self.fabric };
            if let Some(f) = self.pci.get_mut(slot) {
                f.poll(&mut c);
            }
            self.sync_slot(slot);
        }
    }

    fn timers(&mut self, now: u64) {
        self.deadline_stale = true;
        self.fabric.apics.poll(now);
        if self.pit.poll(now) {
            self.fabric.timer_edge();
        }
        self.rtc.poll(now);
        self.fabric.set_isa(p::RTC_IRQ, self.rtc.irq());
        self.uart.poll(now);
        self.fabric.set_isa(p::COM1_IRQ, self.uart.irq());
        self.pm.poll(now);
        self.fabric.set_gsi(p::SCI_GSI, self.pm.sci());
    }

    /// When [`Self::poll`] has something to do at the latest, in nanoseconds.
    #[inline]
    pub fn next_deadline(&mut self) -> Option<u64> {
        if self.deadline_stale {
            self.recompute_deadline();
        }
        self.deadline
    }

    fn recompute_deadline(&mut self) {
        let mut at = earlier(self.fabric.apics.next_deadline(), self.pit.next_deadline());
        at = earlier(at, self.rtc.next_deadline());
        at = earlier(at, self.uart.next_deadline());
        at = earlier(at, self.pm.next_deadline());
        for slot in members(self.pci.plugged()) {
            if let Some(f) = self.pci.get_mut(slot) {
                at = earlier(at, f.next_deadline());
            }
        }
        self.deadline = at;
        self.deadline_stale = false;
    }

    /// vCPUs, as bits, that got something new since the last call: make them leave the guest or wake up.
    #[inline]
    pub fn take_kicks(&mut self) -> u64 {
        self.fabric.apics.take_kicks()
    }

    /// The next INIT or start-up for a vCPU, in order.
    pub fn take_event(&mut self, vcpu: usize) -> Option<CpuEvent> {
        self.fabric.apics.take_event(vcpu)
    }

    /// What waits for a vCPU, most urgent first.
    #[must_use]
    #[inline]
    pub fn pending(&self, vcpu: usize) -> Option<Interrupt> {
        self.fabric.pending(vcpu)
    }

    /// Whether a maskable interrupt waits for a vCPU, whatever NMIs do.
    #[must_use]
    #[inline]
    pub fn maskable_pending(&self, vcpu: usize) -> bool {
        self.fabric.maskable_pending(vcpu)
    }

    /// The vCPU takes its maskable interrupt now: the vector, which must then be injected.
    pub fn accept(&mut self, vcpu: usize) -> Option<u8> {
        self.fabric.accept(vcpu)
    }

    /// The vCPU takes its NMI now, which must then be injected.
    pub fn take_nmi(&mut self, vcpu: usize) -> bool {
        self.fabric.take_nmi(vcpu)
    }

    /// The local APIC of a vCPU (for CR8, TPR threshold, state dumps).
    pub fn lapic(&mut self, vcpu: usize) -> Option<&mut Lapic> {
        self.fabric.apics.get_mut(vcpu)
    }

    /// Presses the power button: the guest's ACPI driver hears of it.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.fabric.set_gsi(p::SCI_GSI, self.pm.sci());
    }

    /// Presses the NMI button.
    pub fn press_nmi_button(&mut self) {
        self.fabric.apics.nmi_button();
    }

    /// The debug ports, to take their log.
    pub fn debug(&mut self) -> &mut DebugPorts {
        &mut self.debug
    }

    /// The firmware configuration device, to add files.
    pub fn fw_cfg(&mut self) -> &mut FwCfg {
        &mut self.fw_cfg
    }

    /// The interrupt controllers, for state dumps and tests.
    #[must_use]
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// How many ranges are registered: ports and memory.
    #[must_use]
    pub fn ranges(&self) -> (usize, usize) {
        (self.ports.ranges(), self.mmio.ranges())
    }

    /// The machine as after power-on. Wall clock, CMOS memory and time go on.
    pub fn reset(&mut self) {
        self.fabric.reset();
        self.pit = Pit::new();
        self.uart.reset();
        self.i8042 = I8042::new();
        self.pm = AcpiPm::new();
        self.rtc.reset();
        self.fw_cfg.reset();
        (self.port_92, self.apm_status, self.intx) = (2, 0, 0);
        self.pci.reset();
        (self.next_mmio, self.next_io) = (p::PCI_MMIO_BASE, p::PCI_IO_BASE);
        for slot in 0..SLOTS as u8 {
            self.map_bars(slot);
        }
        if self.without_firmware {
            self.place_again();
        }
        self.map_ecam();
        self.sync_pci();
        self.deadline_stale = true;
    }

    fn place_again(&mut self) {
        let mut pci = core::mem::take(&mut self.pci);
        for (slot, f) in pci.iter_mut() {
            self.place(f.as_mut(), slot);
        }
        self.pci = pci;
        for slot in 0..SLOTS as u8 {
            self.map_bars(slot);
        }
    }
}

/// The numbers of the bits that are set.
fn members(mut set: u32) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let n = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (n < 32).then_some(n as u8)
    })
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

/// The memory sizes and processor count that firmware looks for in CMOS.
fn fill_cmos(rtc: &mut Rtc, c: &BoardConfig<'_>) {
    const MIB: u64 = 1 << 20;
    let kib = |from: u64, to: u64| ((c.memory_below_4g.min(to).saturating_sub(from)) / 1024) as u16;
    let (low, ext) = (640u16, kib(MIB, 64 * MIB));
    let above_16m = (c.memory_below_4g.saturating_sub(16 * MIB) / 0x1_0000).min(0xFFFF) as u16;
    let above_4g = (c.memory_above_4g / 0x1_0000) as u32;
    let (l, e, a, h) = (low.to_le_bytes(), ext.to_le_bytes(), above_16m.to_le_bytes(), above_4g.to_le_bytes());
    let cpus = c.apic_ids.len().saturating_sub(1) as u8;
    for (i, v) in [
        (0x15, l[0]),
        (0x16, l[1]),
        (0x17, e[0]),
        (0x18, e[1]),
        (0x30, e[0]),
        (0x31, e[1]),
        (0x34, a[0]),
        (0x35, a[1]),
        (0x5B, h[0]),
        (0x5C, h[1]),
        (0x5D, h[2]),
        (0x5F, cpus),
        // A floating-point unit, no floppy; boot from disk first.
        (0x14, 0x02),
        (0x3D, 0x02),
    ] {
        rtc.set_cmos(i, v);
    }
}
