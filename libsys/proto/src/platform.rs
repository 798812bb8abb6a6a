//! The platform service: what the machine is made of, by its ACPI tables and PCI. `docs/abi/platform-service.md`.
//!
//! | label | request | answer |
//! | --- | --- | --- |
//! | [`INFO`] | W0 offset in bytes | W0 length of the whole; buffer: the part of the postcard bytes of [`PlatformInfo`] from there on |
//! | [`ISA_INTERRUPT`] | W0 ISA interrupt 0–15 | W0 GSI, W1 flags: bit 0 level, bit 1 active low |
//! | [`PCI_DEVICE`] | W0 index from 0 | W0 number of functions; buffer: postcard bytes of [`PciDevice`] |
//! | [`PCI_INTERRUPT`] | W0 [`PciAddress`] | W0 GSI, W1 flags as above: where the function's INTx pin goes |
//! | [`SET_UP_MSI`] | W0 [`PciAddress`], W1 message number; capabilities: fresh `Interrupt`, `Notification` (SIGNAL) | W0 1: MSI-X, 0: MSI |
//! | [`POWER`] | W0 [`power`] | only if it failed |
//!
//! The label of an answer is 0 or the code of an [`Error`].

use alloc::vec::Vec;
use serde::{Deserialize, Serialize};

/// The summary, in parts.
pub const INFO: u32 = 1;
/// Where an ISA interrupt goes.
pub const ISA_INTERRUPT: u32 = 2;
/// One PCI function.
pub const PCI_DEVICE: u32 = 3;
/// Where a PCI function's interrupt pin goes.
pub const PCI_INTERRUPT: u32 = 4;
/// Give a function a message-signalled interrupt. Only for the client that the manifest names as the function's owner.
pub const SET_UP_MSI: u32 = 5;
/// Power off or reset. Only for clients that the manifest names.
pub const POWER: u32 = 6;

/// W0 of [`POWER`].
pub mod power {
    /// Power off (ACPI state S5).
    pub const OFF: u64 = 0;
    /// Reset the machine.
    pub const RESET: u64 = 1;
}

/// Why a request failed; the code is the answer's label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Error {
    /// No such index, interrupt or function.
    NotFound = 1,
    /// The manifest does not give this client that function, or power.
    Refused = 2,
    /// The function has no such interrupt, or the machine no such power state.
    Unsupported = 3,
    /// The capabilities are missing or of the wrong kind.
    BadCapabilities = 4,
    /// The kernel refused; W0 says why ([`moira_abi::Error`]).
    Kernel = 5,
    /// Unknown label or argument.
    BadRequest = 6,
}

impl Error {
    /// The error with this code.
    #[must_use]
    pub const fn from_code(code: u32) -> Option<Error> {
        Some(match code {
            1 => Error::NotFound,
            2 => Error::Refused,
            3 => Error::Unsupported,
            4 => Error::BadCapabilities,
            5 => Error::Kernel,
            6 => Error::BadRequest,
            _ => return None,
        })
    }
}

/// The shared region in which the platform task leaves its [`PlatformInfo`] for those on a higher level, which cannot call it:
/// above all the root task, which starts the processors.
///
/// | offset | what |
/// | --- | --- |
/// | 0 | [`MAGIC`](region::MAGIC), stored last with release; 0 before |
/// | 8 | bytes of the summary |
/// | 16 | postcard bytes of [`PlatformInfo`] |
pub mod region {
    /// Name of the region in the manifest.
    pub const NAME: &str = "platform-info";
    /// The capability, if granted, that is signalled when the region is complete.
    pub const SIGNAL: &str = "platform-ready";
    /// Word 0 of a complete region: `"MOIRAPL1"`, little-endian.
    pub const MAGIC: u64 = u64::from_le_bytes(*b"MOIRAPL1");
    /// Offset of the summary.
    pub const DATA: usize = 16;
}

/// What the tables say of the machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlatformInfo {
    /// The processors, the boot processor first.
    pub cpus: Vec<Processor>,
    /// The I/O APICs.
    pub io_apics: Vec<IoApic>,
    /// ISA interrupts that do not go where their number says.
    pub overrides: Vec<Override>,
    /// Interrupts that must be non-maskable, by GSI.
    pub nmi_sources: Vec<u32>,
    /// Local interrupt pins that carry NMI.
    pub nmi_lines: Vec<NmiLine>,
    /// PCI configuration space in memory.
    pub ecam: Vec<Ecam>,
    /// Physical address of the local APICs.
    pub local_apic: u64,
    /// Whether there are two 8259 to mask.
    pub has_8259: bool,
    /// Fixed hardware.
    pub fixed: Fixed,
}

impl PlatformInfo {
    /// Where an ISA interrupt goes. Without an override ISA interrupts are edge-triggered, active high, with the GSI of their
    /// number (ACPI 6.5, 5.2.12.5).
    #[must_use]
    pub fn isa_interrupt(&self, irq: u8) -> Option<Override> {
        if irq > 15 {
            return None;
        }
        let found = self.overrides.iter().find(|entry| entry.irq == irq).copied();
        Some(found.unwrap_or(Override { irq, gsi: u32::from(irq), level: false, active_low: false }))
    }
}

/// A processor (ACPI 6.5, 5.2.12.2 and 5.2.12.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Processor {
    /// APIC id, which `Platform.start_cpu` takes.
    pub apic_id: u32,
    /// ACPI's name for it.
    pub uid: u32,
    /// Whether it may be started now.
    pub enabled: bool,
}

/// An I/O APIC (ACPI 6.5, 5.2.12.3), as `Platform.add_io_apic` takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IoApic {
    /// Its id.
    pub id: u8,
    /// Physical address.
    pub address: u64,
    /// GSI of its first pin.
    pub first_gsi: u32,
}

/// Where an ISA interrupt goes (ACPI 6.5, 5.2.12.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Override {
    /// ISA interrupt.
    pub irq: u8,
    /// Global system interrupt.
    pub gsi: u32,
    /// Level rather than edge.
    pub level: bool,
    /// Active low rather than high.
    pub active_low: bool,
}

/// A local interrupt pin that carries NMI (ACPI 6.5, 5.2.12.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NmiLine {
    /// The processor by its uid; `None`: all.
    pub uid: Option<u32>,
    /// LINT0 or LINT1.
    pub pin: u8,
}

/// PCI configuration space in memory (PCI Firmware 3.3, 4.1.2): a function's 4 KiB are at `address` + (bus << 20 | device << 15 |
/// function << 12), counted from bus 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ecam {
    /// Physical address of bus 0.
    pub address: u64,
    /// PCI segment.
    pub segment: u16,
    /// First bus that is there.
    pub first_bus: u8,
    /// Last bus.
    pub last_bus: u8,
}

/// A hardware register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Register {
    /// An I/O port.
    Port(u16),
    /// A physical address.
    Memory(u64),
    /// Configuration space of bus 0: device, function, offset.
    Config(u8, u8, u16),
}

/// ACPI's fixed hardware (ACPI 6.5, 5.2.9).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fixed {
    /// GSI of ACPI's own interrupt.
    pub sci: u16,
    /// The PM timer, 3.579545 MHz.
    pub pm_timer: Option<Register>,
    /// Whether it has 32 bits rather than 24.
    pub pm_timer_32: bool,
    /// PM1a control.
    pub pm1a_control: Option<Register>,
    /// PM1b control.
    pub pm1b_control: Option<Register>,
    /// Port that takes commands to the firmware; 0: none.
    pub smi_command: u16,
    /// The command that switches ACPI mode on.
    pub acpi_enable: u8,
    /// Register that resets the machine, and the value to write.
    pub reset: Option<(Register, u8)>,
}

/// A PCI function of segment 0: bus << 8 | device << 3 | function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PciAddress(pub u16);

impl PciAddress {
    /// The function's address; device and function are cut to 5 and 3 bits.
    #[must_use]
    pub const fn new(bus: u8, device: u8, function: u8) -> PciAddress {
        PciAddress((bus as u16) << 8 | (device as u16 & 31) << 3 | function as u16 & 7)
    }

    /// Its bus.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Its device, 0–31.
    #[must_use]
    pub const fn device(self) -> u8 {
        (self.0 >> 3) as u8 & 31
    }

    /// Its function, 0–7.
    #[must_use]
    pub const fn function(self) -> u8 {
        self.0 as u8 & 7
    }

    /// Reads `BUS:DEVICE.FUNCTION`, all hexadecimal, as in `00:1f.2`.
    #[must_use]
    pub fn parse(text: &str) -> Option<PciAddress> {
        let (bus, rest) = text.split_once(':')?;
        let (device, function) = rest.split_once('.')?;
        let number = |text, most| u8::from_str_radix(text, 16).ok().filter(|value| *value <= most);
        Some(PciAddress::new(number(bus, 255)?, number(device, 31)?, number(function, 7)?))
    }
}

impl core::fmt::Display for PciAddress {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.device(), self.function())
    }
}

/// A PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDevice {
    /// Where it is.
    pub address: PciAddress,
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Class << 16 | subclass << 8 | programming interface.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem: vendor, device (0 for bridges).
    pub subsystem: (u16, u16),
    /// Its base address registers.
    pub bars: Vec<Bar>,
    /// Interrupt pin: 0 none, 1–4 INTA–INTD.
    pub pin: u8,
    /// Message-signalled interrupts: offset of the capability and messages it can send.
    pub msi: Option<(u8, u16)>,
    /// The same with a table of their own.
    pub msix: Option<MsiX>,
    /// For bridges: the bus behind it.
    pub secondary_bus: Option<u8>,
}

/// A base address register (PCI 3.0, 6.2.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bar {
    /// Number of the first register.
    pub index: u8,
    /// I/O ports rather than memory.
    pub ports: bool,
    /// Memory without side effects on reads.
    pub prefetchable: bool,
    /// First port or physical address; 0 if the firmware gave it none.
    pub address: u64,
    /// Its size.
    pub size: u64,
}

/// An MSI-X capability (PCI 3.0, 6.8.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsiX {
    /// Offset of the capability in configuration space.
    pub capability: u8,
    /// Entries of the table.
    pub entries: u16,
    /// Number of the base address register that holds the table.
    pub bar: u8,
    /// Offset of the table there.
    pub offset: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for text in ["00:00.0", "00:1f.2", "ff:1f.7"] {
            let address = PciAddress::parse(text).unwrap();
            assert_eq!(alloc::format!("{address}"), text);
        }
        for text in ["", "00:20.0", "00:00.8", "100:00.0", "0000", "00:0"] {
            assert_eq!(PciAddress::parse(text), None, "{text}");
        }
    }

    #[test]
    fn an_override_replaces_the_plain_rule() {
        let timer = Override { irq: 0, gsi: 2, level: false, active_low: false };
        let info = PlatformInfo { overrides: alloc::vec![timer], ..PlatformInfo::default() };
        assert_eq!(info.isa_interrupt(0), Some(timer));
        assert_eq!(info.isa_interrupt(4).map(|entry| entry.gsi), Some(4));
        assert_eq!(info.isa_interrupt(16), None);
    }

    #[test]
    fn error_codes_round_trip() {
        for code in 0..10 {
            if let Some(error) = Error::from_code(code) {
                assert_eq!(error as u32, code);
            }
        }
    }
}
