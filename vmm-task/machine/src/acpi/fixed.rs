//! The tables with a fixed form: RSDP, RSDT, XSDT, FADT, FACS, MADT, MCFG.

use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes_of};
use crate::layout;
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use alloc::vec::Vec;

/// Size of a revision 2 RSDP.
pub const RSDP_SIZE: usize = 36;

/// FADT `IAPC_BOOT_ARCH`: devices on the LPC or ISA bus.
const LEGACY_DEVICES: u16 = 1 << 0;
/// FADT `IAPC_BOOT_ARCH`: a keyboard controller at 60h and 64h.
const HAS_8042: u16 = 1 << 1;
/// FADT `IAPC_BOOT_ARCH`: do not look for VGA.
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// A C2 or C3 latency above these means the state is not there (ACPI 6.5, 5.2.9).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;

/// MADT flag: the machine also has two 8259s.
const PCAT_COMPAT: u32 = 1;
/// MADT interrupt flags: active high, level triggered.
const ACTIVE_HIGH_LEVEL: u16 = 0b1101;
/// MADT interrupt flags: as the bus has it (edge, active high for ISA).
const CONFORMS: u16 = 0;

/// The root pointer. It names both roots: systems that know of no XSDT exist.
pub fn rsdp(rsdt: u64, xsdt: u64) -> Vec<u8> {
    let mut bytes = bytes_of(&Rsdp::new(OEM_ID, xsdt));
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(field) = bytes.get_mut(16..20) {
        field.copy_from_slice(&(rsdt as u32).to_le_bytes());
    }
    // Checksums of the first 20 bytes, and of all.
    for (at, length) in [(8, 20), (32, RSDP_SIZE)] {
        let total = sum(bytes.get(..length).unwrap_or_default());
        if let Some(byte) = bytes.get_mut(at) {
            *byte = byte.wrapping_sub(total);
        }
    }
    bytes
}

pub fn rsdt(tables: &[u64]) -> Vec<u8> {
    let mut table = Sdt::new(*b"RSDT", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    tables.iter().for_each(|&address| table.append_slice(&(address as u32).to_le_bytes()));
    table.as_slice().to_vec()
}

pub fn xsdt(tables: &[u64]) -> Vec<u8> {
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    tables.iter().for_each(|&address| xsdt.add_entry(address));
    bytes_of(&xsdt)
}

pub fn facs() -> Vec<u8> {
    bytes_of(&FACS::new())
}

pub fn mcfg(config: &AcpiConfig) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(config.ecam_base, 0, 0, 0xFF);
    bytes_of(&mcfg)
}

/// The HPET's description (IA-PC HPET 1.0a, 3.2.4).
pub fn hpet() -> Vec<u8> {
    let mut table = Sdt::new(*b"HPET", 36, 1, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&layout::HPET_ID.to_le_bytes());
    // A 64-bit memory address, then the block's number, the least ticks of a periodic timer, no page protection.
    table.append_slice(&[0, 64, 0, 0]);
    table.append_slice(&layout::HPET_BASE.to_le_bytes());
    table.append_slice(&[0, (layout::HPET_MIN_TICK & 0xFF) as u8, (layout::HPET_MIN_TICK >> 8) as u8, 0]);
    table.as_slice().to_vec()
}

fn port(bits: u8, access: AccessSize, port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port))
}

/// The FADT of a machine with the full fixed hardware and no SMM: with SMI_CMD zero, ACPI mode is always on.
pub fn fadt(config: &AcpiConfig, facs: u64, dsdt: u64) -> Vec<u8> {
    let mut t = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No sleep button; the power button is the fixed one, its flag being clear.
        .flag(Flags::SlpButton)
        // The RTC cannot wake the machine through the fixed registers.
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    t.firmware_ctrl = (facs as u32).into();
    t.dsdt = (dsdt as u32).into();
    t.x_dsdt = dsdt.into();
    t.sci_int = (layout::SCI_GSI as u16).into();
    t.pm1a_evt_blk = u32::from(layout::PM1A_EVENT_PORT).into();
    t.pm1a_cnt_blk = u32::from(layout::PM1A_CONTROL_PORT).into();
    t.pm_tmr_blk = u32::from(layout::PM_TIMER_PORT).into();
    t.pm1_evt_len = 4;
    t.pm1_cnt_len = 2;
    t.pm_tmr_len = 4;
    // The 64-bit fields must agree with the 32-bit ones, or Linux warns.
    t.x_pm1a_evt_blk = port(32, AccessSize::WordAccess, layout::PM1A_EVENT_PORT);
    t.x_pm1a_cnt_blk = port(16, AccessSize::WordAccess, layout::PM1A_CONTROL_PORT);
    t.x_pm_tmr_blk = port(32, AccessSize::DwordAccess, layout::PM_TIMER_PORT);
    t.p_lvl2_lat = NO_C2.into();
    t.p_lvl3_lat = NO_C3.into();
    t.century = layout::CMOS_CENTURY;
    let keyboard = if config.keyboard { HAS_8042 } else { 0 };
    t.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT | keyboard).into();
    t.reset_reg = port(8, AccessSize::ByteAccess, layout::RESET_PORT);
    t.reset_value = layout::RESET_VALUE;
    t.hypervisor_vendor_identity = u64::from_le_bytes(*b"Moira\0\0\0").into();
    bytes_of(&t.finalize())
}

/// The MADT (ACPI 6.5, 5.2.12). Made by hand: the crate's cannot set the flags and lacks the override structures.
pub fn madt(config: &AcpiConfig) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend_from_slice(&(layout::LAPIC_BASE as u32).to_le_bytes());
    body.extend_from_slice(&PCAT_COMPAT.to_le_bytes());
    for (uid, &id) in (0u32..).zip(&config.apic_ids) {
        match u8::try_from(id) {
            // 255 is the broadcast id of an xAPIC.
            Ok(id) if id != 0xFF => {
                body.extend_from_slice(&[0, 8, uid as u8, id, 1, 0, 0, 0]);
            }
            _ => {
                body.extend_from_slice(&[9, 16, 0, 0]);
                [id, 1, uid].iter().for_each(|word| body.extend_from_slice(&word.to_le_bytes()));
            }
        }
    }
    body.extend_from_slice(&[1, 12, config.ioapic_id, 0]);
    body.extend_from_slice(&(layout::IOAPIC_BASE as u32).to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes());
    // The PIT's IRQ 0 arrives at pin 2, and the SCI is level triggered.
    for (irq, gsi, flags) in [(0u8, 2u32, CONFORMS), (layout::SCI_GSI as u8, layout::SCI_GSI, ACTIVE_HIGH_LEVEL)] {
        body.extend_from_slice(&[2, 10, 0, irq]);
        body.extend_from_slice(&gsi.to_le_bytes());
        body.extend_from_slice(&flags.to_le_bytes());
    }
    // NMI at LINT1 of every processor.
    body.extend_from_slice(&[4, 6, 0xFF, 0, 0, 1]);
    if config.apic_ids.iter().any(|&id| id >= 0xFF) {
        body.extend_from_slice(&[0x0A, 12, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0]);
    }
    let mut table = Sdt::new(*b"APIC", 36, 5, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}
