//! The whole machine: every device in its place, behind ports, addresses and MSRs.
//!
//! The monitor feeds exits in and takes from it what a vCPU should do next. A typical turn:
//!
//! 1. an exit comes: [`Board::port_read`], [`Board::mmio_write`], [`Board::msr_read`], …;
//! 2. [`Board::tick`] if [`Board::next_deadline`] has passed, [`Board::poll`] if a back end has news;
//! 3. [`Board::take_kicks`] to wake or interrupt other vCPUs, [`Board::take_event`] for INIT and start-up;
//! 4. [`Board::pending`] and [`Board::accept`] or [`Board::take_nmi`], then back into the guest until the next deadline.

mod access;
mod events;
#[cfg(test)]
mod tests;

use crate::acpi_pm::AcpiPm;
use crate::apic_bus::ApicBus;
use crate::bus::{MmioMap, PortMap};
use crate::debug::DebugPorts;
use crate::fabric::Fabric;
use crate::fw_cfg::{FwCfg, Refused};
use crate::hpet::Hpet;
use crate::i8042::I8042;
use crate::pci::host::{HostBridge, LpcBridge};
use crate::pci::{BARS, BarKind, ConfigEffect, PciBus, PciFunction, SLOTS};
use crate::pit::Pit;
use crate::platform as p;
use crate::rtc::Rtc;
use crate::test_device::{self, TestDevice};
use crate::text_screen::{self, TextScreen};
use crate::traits::{ConsoleBackend, GuestMemory};
use crate::uart::Uart;
use alloc::boxed::Box;
use alloc::vec::Vec;

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
    DebugExit(u32),
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

/// Makes the files of the firmware configuration device that depend on where firmware has put the ECAM (`None`: nowhere).
pub type EcamFiles = Box<dyn Fn(Option<u64>) -> Vec<(&'static str, Vec<u8>)> + Send>;

/// Owners of ports. Values from [`port::BAR`] on are I/O BARs, one for each slot.
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
    pub const TEST: u8 = 15;
    pub const TEST_LINE: u8 = 16;
    pub const SCREEN: u8 = 17;
    pub const BAR: u8 = 0x80;
}

/// Owners of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mmio {
    IoApic,
    Hpet,
    Ecam,
    Test,
    Bar { slot: u8, bar: u8 },
}

/// The machine.
pub struct Board {
    fabric: Fabric,
    pit: Pit,
    hpet: Hpet,
    rtc: Rtc,
    uart: Uart,
    i8042: I8042,
    pm: AcpiPm,
    debug: DebugPorts,
    fw_cfg: FwCfg,
    test: TestDevice,
    screen: TextScreen,
    pci: PciBus,
    ports: PortMap,
    mmio: MmioMap<Mmio>,
    /// Port 92h and B3h.
    port_92: u8,
    apm_status: u8,
    without_firmware: bool,
    ecam_files: Option<EcamFiles>,
    next_mmio: u64,
    next_io: u16,
    /// INTA of each slot, as last carried to the fabric.
    intx: u32,
    deadline: Option<u64>,
    /// The same without the local APICs.
    device_deadline: Option<u64>,
    /// Deadlines were computed anew and nobody has asked since.
    deadlines_changed: bool,
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
            hpet: Hpet::new(),
            rtc,
            uart: Uart::new(config.console),
            i8042: I8042::new(),
            pm: AcpiPm::new(),
            debug: DebugPorts::new(),
            fw_cfg: FwCfg::new(config.apic_ids.len() as u16),
            test: TestDevice::new(),
            screen: TextScreen::new(),
            pci,
            ports: PortMap::new(),
            mmio: MmioMap::default(),
            port_92: 2,
            apm_status: 0,
            without_firmware: config.without_firmware,
            ecam_files: None,
            next_mmio: p::PCI_MMIO_BASE,
            next_io: p::PCI_IO_BASE,
            intx: 0,
            deadline: None,
            device_deadline: None,
            deadlines_changed: true,
            deadline_stale: true,
        };
        board.claim_ports();
        // The map is empty, so these cannot meet other ranges.
        let _ = board.mmio.claim(p::IOAPIC_BASE, p::IOAPIC_SIZE, Mmio::IoApic);
        // Without firmware no table names it, so that Linux keeps to its other clocks; systems that know where it is find it.
        let _ = board.mmio.claim(p::HPET_BASE, p::HPET_SIZE, Mmio::Hpet);
        if board.without_firmware {
            // Test payloads come without firmware, which has its own use for these addresses.
            board.ports.claim(test_device::PORTS, test_device::PORT_COUNT, port::TEST);
            board.ports.claim(test_device::LINES, test_device::LINE_COUNT, port::TEST_LINE);
            let _ = board.mmio.claim(test_device::MEMORY, test_device::MEMORY_SIZE, Mmio::Test);
        }
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
            (text_screen::CRTC, 2, port::SCREEN),
            (text_screen::STATUS, 1, port::SCREEN),
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
                    let base = self.next_mmio.next_multiple_of(u64::from(size.max(1)));
                    if base + u64::from(size) <= p::PCI_MMIO_END {
                        f.config_mut().place_bar(bar, base as u32);
                        self.next_mmio = base + u64::from(size);
                    }
                }
                BarKind::Io => {
                    let base = u32::from(self.next_io).next_multiple_of(size.max(1));
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
        if let Some(files) = &self.ecam_files {
            for (name, data) in files(at.map(|(base, _)| base)) {
                // Of another size it would not be the file that the directory names; the old one stays.
                let _ = self.fw_cfg.replace(name, data);
            }
        }
    }

    /// Adds the files that `files` makes to the firmware configuration device, and makes them anew whenever the ECAM moves:
    /// ACPI tables say where it is, and it is firmware that decides.
    ///
    /// # Errors
    /// [`Refused`]: a name or a size is not possible.
    pub fn add_ecam_files(&mut self, files: EcamFiles) -> Result<(), Refused> {
        let at = self.pci.get_mut(0).and_then(|f| f.ecam());
        for (name, data) in files(at.map(|(base, _)| base)) {
            self.fw_cfg.add(name, data)?;
        }
        self.ecam_files = Some(files);
        Ok(())
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

    /// Shows what was written to the debug consoles and the serial port so far: when a line is complete, and at the end.
    pub fn flush(&mut self, now: u64) {
        self.uart.print(self.debug.drain(), now);
        self.fabric.set_isa(p::COM1_IRQ, self.uart.irq());
        self.deadline_stale = true;
    }

    /// Shows what text memory holds and was not shown, when the machine ends.
    pub fn show_text(&mut self, now: u64, memory: &dyn GuestMemory) {
        let lines = self.screen.last(memory);
        self.uart.print(&lines, now);
        self.fabric.set_isa(p::COM1_IRQ, self.uart.irq());
        self.deadline_stale = true;
    }

    /// The machine as after power-on. Wall clock, CMOS memory and time go on.
    pub fn reset(&mut self) {
        self.fabric.reset();
        self.pit = Pit::new();
        self.hpet = Hpet::new();
        self.uart.reset();
        self.i8042 = I8042::new();
        self.pm = AcpiPm::new();
        self.rtc.reset();
        self.fw_cfg.reset();
        self.test = TestDevice::new();
        self.screen = TextScreen::new();
        if self.uart.has_sent() {
            self.screen.mute();
        }
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

/// The memory sizes and processor count that firmware looks for in CMOS.
fn fill_cmos(rtc: &mut Rtc, c: &BoardConfig<'_>) {
    const MIB: u64 = 1 << 20;
    let (low, ext) = (640u16, (c.memory_below_4g.saturating_sub(MIB) / 1024).min(0xFFFF) as u16);
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

/// The numbers of the bits that are set.
fn members(mut set: u32) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let n = set.trailing_zeros();
        set &= set.wrapping_sub(1);
        (n < 32).then_some(n as u8)
    })
}
