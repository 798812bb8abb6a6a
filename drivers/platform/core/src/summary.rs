//! Reads the tables of fixed layout: MADT, FADT, MCFG (ACPI 6.5, 5.2.9 and 5.2.12; PCI Firmware 3.3, 4.1.2).
//!
//! They are read here, by checked offsets, because the crate `acpi` believes their lengths and panics on a MADT without
//! processors; [`interpreter::agrees`](crate::interpreter::agrees) compares its reading with this one.

use crate::tables::{Table, Tables};
use moira_proto::platform::{Ecam, Fixed, IoApic, NmiLine, Override, PlatformInfo, Processor, Register};

/// Bytes before the MADT's entries.
const MADT_ENTRIES: usize = 44;

/// Reads what there is. `boot_apic_id` is the processor that runs this.
#[must_use]
pub fn read(tables: &Tables, boot_apic_id: u32) -> PlatformInfo {
    let mut info = PlatformInfo::default();
    if let Some(madt) = tables.find(b"APIC") {
        read_madt(madt, &mut info);
    }
    // The boot processor first: the tables promise it, but not all firmware keeps to that.
    info.cpus.sort_by_key(|cpu| cpu.apic_id != boot_apic_id);
    if let Some(fadt) = tables.find(b"FACP") {
        info.fixed = read_fadt(fadt);
    }
    if let Some(mcfg) = tables.find(b"MCFG") {
        info.ecam = read_mcfg(mcfg);
    }
    info
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    let bytes = bytes.get(offset..offset.checked_add(2)?)?;
    bytes.try_into().ok().map(u16::from_le_bytes)
}

fn long(bytes: &[u8], offset: usize) -> Option<u32> {
    let bytes = bytes.get(offset..offset.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn quad(bytes: &[u8], offset: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(8)?)?;
    bytes.try_into().ok().map(u64::from_le_bytes)
}

fn byte(bytes: &[u8], offset: usize) -> Option<u8> {
    bytes.get(offset).copied()
}

fn read_madt(madt: &Table, info: &mut PlatformInfo) {
    let bytes = madt.bytes();
    info.local_apic = long(bytes, 36).unwrap_or(0).into();
    info.has_8259 = long(bytes, 40).unwrap_or(0) & 1 != 0;
    let mut rest = bytes.get(MADT_ENTRIES..).unwrap_or_default();
    // An entry is at least its own header, so this ends.
    while let Some(length) = byte(rest, 1).map(usize::from)
        && length >= 2
        && let Some(entry) = rest.get(..length)
    {
        // An entry too short for its type is skipped.
        let _ = read_madt_entry(entry, info);
        rest = rest.get(length..).unwrap_or_default();
    }
}

fn read_madt_entry(entry: &[u8], info: &mut PlatformInfo) -> Option<()> {
    match byte(entry, 0)? {
        0 => {
            let (uid, apic_id) = (byte(entry, 2)?.into(), byte(entry, 3)?.into());
            add_cpu(info, apic_id, uid, long(entry, 4)?);
        }
        1 => info.io_apics.push(IoApic {
            id: byte(entry, 2)?,
            address: long(entry, 4)?.into(),
            first_gsi: long(entry, 8)?,
        }),
        2 => {
            let (bus, irq, gsi, flags) = (byte(entry, 2)?, byte(entry, 3)?, long(entry, 4)?, half(entry, 8)?);
            // Bus 0 is ISA, and no other is defined. "As the bus": ISA is active high, edge.
            if bus == 0 && irq < 16 {
                info.overrides.push(Override { irq, gsi, level: flags >> 2 & 3 == 3, active_low: flags & 3 == 3 });
            }
        }
        3 => info.nmi_sources.push(long(entry, 4)?),
        4 => {
            let uid = byte(entry, 2)?;
            let pin = byte(entry, 5)?;
            let uid = (uid != 0xff).then_some(uid.into());
            info.nmi_lines.push(NmiLine { uid, pin });
        }
        5 => info.local_apic = quad(entry, 4)?,
        9 => {
            let (apic_id, flags, uid) = (long(entry, 4)?, long(entry, 8)?, long(entry, 12)?);
            add_cpu(info, apic_id, uid, flags);
        }
        10 => {
            let uid = long(entry, 4)?;
            let pin = byte(entry, 8)?;
            let uid = (uid != u32::MAX).then_some(uid);
            info.nmi_lines.push(NmiLine { uid, pin });
        }
        // Other entries are of other architectures, or of nothing that is used here.
        _ => {}
    }
    Some(())
}

/// Firmware may list a processor with an id below 255 in both forms; it is one.
fn add_cpu(info: &mut PlatformInfo, apic_id: u32, uid: u32, flags: u32) {
    let enabled = flags & 1 != 0;
    match info.cpus.iter_mut().find(|cpu| cpu.apic_id == apic_id) {
        Some(known) if enabled && !known.enabled => (known.uid, known.enabled) = (uid, true),
        Some(_) => {}
        None => info.cpus.push(Processor { apic_id, uid, enabled }),
    }
}

/// A generic address (ACPI 6.5, 5.2.3.2). Other spaces are not used for fixed hardware.
fn generic_address(bytes: &[u8], offset: usize) -> Option<Register> {
    let address = quad(bytes, offset.checked_add(4)?)?;
    if address == 0 {
        return None;
    }
    match byte(bytes, offset)? {
        0 => Some(Register::Memory(address)),
        1 => u16::try_from(address).ok().map(Register::Port),
        2 => {
            let (device, function) = ((address >> 32) as u8, (address >> 16) as u8);
            (address >> 40 == 0).then_some(Register::Config(device, function, address as u16))
        }
        _ => None,
    }
}

/// FADT flags: the PM timer has 32 bits.
const TIMER_32: u32 = 1 << 8;
/// FADT flags: there is a reset register.
const RESET: u32 = 1 << 10;

fn read_fadt(fadt: &Table) -> Fixed {
    let bytes = fadt.bytes();
    // The wide field if it is there and says something, else the port of version 1.
    let register = |wide: usize, narrow: usize| {
        generic_address(bytes, wide).or_else(|| {
            let port = long(bytes, narrow)?;
            u16::try_from(port).ok().filter(|port| *port != 0).map(Register::Port)
        })
    };
    let flags = long(bytes, 112).unwrap_or(0);
    let reset = (flags & RESET != 0).then(|| generic_address(bytes, 116).zip(byte(bytes, 128))).flatten();
    Fixed {
        sci: half(bytes, 46).unwrap_or(0),
        pm_timer: (byte(bytes, 91) == Some(4)).then(|| register(208, 76)).flatten(),
        pm_timer_32: flags & TIMER_32 != 0,
        pm1a_control: register(172, 64),
        pm1b_control: register(184, 68),
        smi_command: long(bytes, 48).and_then(|port| u16::try_from(port).ok()).unwrap_or(0),
        acpi_enable: byte(bytes, 52).unwrap_or(0),
        reset,
    }
}

fn read_mcfg(mcfg: &Table) -> alloc::vec::Vec<Ecam> {
    let entries = mcfg.bytes().get(44..).unwrap_or_default().chunks_exact(16);
    entries
        .filter_map(|entry| {
            Some(Ecam {
                address: quad(entry, 0)?,
                segment: half(entry, 8)?,
                first_bus: byte(entry, 10)?,
                last_bus: byte(entry, 11)?,
            })
        })
        .collect()
}
