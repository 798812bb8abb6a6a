//! The ACPI tables of the machine (ACPI 6.5).
//!
//! [`Tables::build`] lays all tables out from one base address, so that the same bytes serve a guest booted without
//! firmware (in the BIOS area, [`crate::layout::BIOS_BASE`]) and, as [`loader::FirmwareFiles`], a firmware that places
//! them itself.

mod dsdt;
mod fixed;
pub mod loader;

use crate::{GuestRam, OutOfRange, layout};
use acpi_tables::Aml;
use alloc::vec::Vec;

pub(crate) const OEM_ID: [u8; 6] = *b"MOIRA ";
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"MOIRAQ35";
pub(crate) const OEM_REVISION: u32 = 1;

/// What the tables describe. The rest is fixed by [`crate::layout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcpiConfig {
    /// Local APIC ids of the processors, the boot processor's first. 1 to [`MAX_CPUS`].
    pub apic_ids: Vec<u32>,
    /// Id of the I/O APIC.
    pub ioapic_id: u8,
    /// First byte of the ECAM.
    pub ecam_base: u64,
    /// 32-bit PCI memory windows: first and last byte.
    pub pci_windows: Vec<(u32, u32)>,
    /// Whether there is a high-precision event timer.
    pub hpet: bool,
    /// 64-bit PCI memory window as (first byte, size), if there is one.
    pub pci64_window: Option<(u64, u64)>,
    /// Whether the DSDT names COM1.
    pub serial: bool,
    /// Whether the DSDT names the keyboard controller and the FADT the 8042.
    pub keyboard: bool,
    /// Whether the DSDT also names a PS/2 mouse (IRQ 12). Linux asks in a line of its log to boot differently if a
    /// keyboard controller has none.
    pub mouse: bool,
}

impl AcpiConfig {
    /// A machine with `cpus` processors (APIC ids 0, 1, …) and every device.
    #[must_use]
    pub fn new(cpus: u32) -> Self {
        Self {
            apic_ids: (0..cpus).collect(),
            ioapic_id: 0,
            ecam_base: layout::ECAM_BASE,
            pci_windows: Vec::from([(layout::PCI_WINDOW_BASE as u32, layout::PCI_WINDOW_LAST as u32)]),
            hpet: false,
            pci64_window: None,
            serial: true,
            keyboard: true,
            mouse: true,
        }
    }

    /// A machine whose firmware has put the ECAM at `ecam` (`None`, or a place where none fits: the usual one), with RAM
    /// up to `low_end`. Firmware may use all addresses between RAM and the I/O APIC but the ECAM's. There are always two
    /// windows, so that the tables' sizes do not depend on what firmware does.
    #[must_use]
    pub fn for_firmware(cpus: u32, low_end: u64, ecam: Option<u64>) -> Self {
        let fits = |base: &u64| *base >= low_end && *base < layout::PCI_WINDOW_LAST - layout::ECAM_SIZE;
        let ecam_base = ecam.filter(fits).unwrap_or(layout::ECAM_BASE);
        let (above, last) = ((ecam_base + layout::ECAM_SIZE) as u32, layout::PCI_WINDOW_LAST as u32);
        let windows = if low_end < ecam_base {
            [(low_end as u32, ecam_base as u32 - 1), (above, last)]
        } else {
            let middle = above + (last - above) / 2 & !0xF_FFFF;
            [(above, middle - 1), (middle, last)]
        };
        Self { ecam_base, pci_windows: windows.into(), hpet: true, ..Self::new(cpus) }
    }
}

/// Most processors the tables describe.
pub const MAX_CPUS: usize = 128;

/// Why no tables can be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcpiError {
    /// No processor, or more than [`MAX_CPUS`].
    CpuCount {
        /// How many were asked for.
        count: usize,
    },
    /// The 64-bit window is empty, wraps, or begins below 4 GiB.
    BadWindow {
        /// Its first byte.
        base: u64,
        /// Its size.
        size: u64,
    },
    /// The tables do not fit between their base and the limit.
    NoRoom {
        /// Bytes they need.
        needed: u64,
    },
    /// The base address is not aligned to 64 bytes (the FACS demands it) or not below 4 GiB.
    BadBase {
        /// The address.
        base: u64,
    },
}

/// One table with its address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Signature; `RSD PTR ` shortened to `RSDP`.
    pub name: [u8; 4],
    /// Guest-physical address.
    pub address: u64,
    /// The table's bytes.
    pub bytes: Vec<u8>,
}

/// All tables, the RSDP first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tables {
    parts: Vec<Table>,
}

/// Gives out consecutive aligned addresses.
struct Placer {
    next: u64,
}

impl Placer {
    fn place(&mut self, len: usize) -> u64 {
        let at = self.next.next_multiple_of(64);
        self.next = at + len as u64;
        at
    }
}

fn bytes_of(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

impl Tables {
    /// Makes the tables, the RSDP at `base` and the others above it, none reaching `limit`.
    ///
    /// # Errors
    /// [`AcpiError`].
    pub fn build(config: &AcpiConfig, base: u64, limit: u64) -> Result<Self, AcpiError> {
        if config.apic_ids.is_empty() || config.apic_ids.len() > MAX_CPUS {
            return Err(AcpiError::CpuCount { count: config.apic_ids.len() });
        }
        if let Some((base, size)) = config.pci64_window
            && (size == 0 || base < layout::HIGH_RAM_BASE || base.checked_add(size).is_none())
        {
            return Err(AcpiError::BadWindow { base, size });
        }
        if !base.is_multiple_of(64) || base >= 1 << 32 {
            return Err(AcpiError::BadBase { base });
        }
        let mut placer = Placer { next: base };
        let mut parts = Vec::with_capacity(9);
        let rsdp = placer.place(fixed::RSDP_SIZE);
        let mut add = |name: [u8; 4], bytes: Vec<u8>| {
            let address = placer.place(bytes.len());
            parts.push(Table { name, address, bytes });
            address
        };
        let facs = add(*b"FACS", fixed::facs());
        let dsdt = add(*b"DSDT", dsdt::build(config));
        let fadt = add(*b"FACP", fixed::fadt(config, facs, dsdt));
        let madt = add(*b"APIC", fixed::madt(config));
        let mcfg = add(*b"MCFG", fixed::mcfg(config));
        let mut listed = Vec::from([fadt, madt, mcfg]);
        if config.hpet {
            listed.push(add(*b"HPET", fixed::hpet()));
        }
        let rsdt = add(*b"RSDT", fixed::rsdt(&listed));
        let xsdt = add(*b"XSDT", fixed::xsdt(&listed));
        let needed = placer.next - base;
        if placer.next > limit {
            return Err(AcpiError::NoRoom { needed });
        }
        parts.insert(0, Table { name: *b"RSDP", address: rsdp, bytes: fixed::rsdp(rsdt, xsdt) });
        Ok(Self { parts })
    }

    /// The tables for a guest without firmware: in the BIOS area, the RSDP where old systems search for it.
    ///
    /// # Errors
    /// [`AcpiError`].
    pub fn build_in_bios_area(config: &AcpiConfig) -> Result<Self, AcpiError> {
        Self::build(config, layout::BIOS_BASE, layout::HEADERS_BASE)
    }

    /// Guest-physical address of the RSDP.
    #[must_use]
    pub fn rsdp(&self) -> u64 {
        self.parts.first().map_or(0, |t| t.address)
    }

    /// Bytes of the RSDP.
    #[must_use]
    pub fn rsdp_bytes(&self) -> &[u8] {
        self.parts.first().map_or(&[], |t| &t.bytes)
    }

    /// The tables one by one, the RSDP first.
    #[must_use]
    pub fn parts(&self) -> &[Table] {
        &self.parts
    }

    /// Writes the tables to their addresses.
    ///
    /// # Errors
    /// [`OutOfRange`] if RAM ends before them.
    pub fn write(&self, ram: &mut dyn GuestRam) -> Result<(), OutOfRange> {
        self.parts.iter().try_for_each(|table| ram.write(table.address, &table.bytes))
    }
}

#[cfg(test)]
mod tests;
