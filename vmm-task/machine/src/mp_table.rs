//! The tables by which systems older than ACPI find processors and interrupts (MultiProcessor Specification 1.4).
//!
//! They lie in the extended BIOS data area, whose first KiB such systems search first. A system with ACPI does not look.

use crate::{GuestRam, OutOfRange, layout};
use alloc::vec::Vec;

/// The floating pointer, where the search begins; the first bytes of the area are its own.
const POINTER: u64 = layout::EBDA_BASE + 0x10;
const TABLE: u64 = layout::EBDA_BASE + 0x20;
const END: u64 = layout::EBDA_BASE + 0x400;

/// Both structures: 4.1, 4.2.
const REVISION: u8 = 4;
const HEADER: usize = 44;

/// Version of a local and of an I/O APIC, as their registers have it.
const LAPIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x20;
/// Entry 0: the processor is usable; it is the first one.
const ENABLED: u8 = 1;
const BOOT: u8 = 2;

const ISA: u8 = 1;
const PCI: u8 = 0;
/// Interrupt types: a vector, NMI, the 8259's.
const VECTORED: u8 = 0;
const NMI: u8 = 1;
const EXT_INT: u8 = 3;
/// Interrupt flags: as the bus has it; active high and level-triggered.
const CONFORMS: u16 = 0;
const HIGH_LEVEL: u16 = 0b1101;
const ALL_APICS: u8 = 0xFF;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct MpConfig {
    /// Processors, with APIC ids from 0.
    pub cpus: u32,
    /// CPUID leaf 1: EAX and EDX of the first one.
    pub signature: (u32, u32),
    /// Id of the I/O APIC.
    pub ioapic_id: u8,
}

/// The table with its entries.
struct Table {
    bytes: Vec<u8>,
    entries: u16,
}

impl Table {
    fn entry(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.entries += 1;
    }

    fn processor(&mut self, id: u8, (signature, features): (u32, u32)) {
        let flags = ENABLED | if id == 0 { BOOT } else { 0 };
        let mut entry = [0; 20];
        entry[..4].copy_from_slice(&[0, id, LAPIC_VERSION, flags]);
        entry[4..8].copy_from_slice(&signature.to_le_bytes());
        entry[8..12].copy_from_slice(&features.to_le_bytes());
        self.entry(&entry);
    }

    fn bus(&mut self, id: u8, name: &[u8; 6]) {
        let mut entry = [1, id, 0, 0, 0, 0, 0, 0];
        entry[2..].copy_from_slice(name);
        self.entry(&entry);
    }

    /// An interrupt of a bus to a pin of the I/O APIC (entry 3), or to one of all local APICs (entry 4).
    fn interrupt(&mut self, entry: u8, kind: u8, flags: u16, (bus, source): (u8, u8), (apic, pin): (u8, u8)) {
        let [low, high] = flags.to_le_bytes();
        self.entry(&[entry, kind, low, high, bus, source, apic, pin]);
    }

    /// Fills in the header (4.2).
    fn finish(mut self) -> Vec<u8> {
        let length = self.bytes.len() as u16;
        let header = self.bytes.get_mut(..HEADER).unwrap_or_default();
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = header.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, b"PCMP");
        put(4, &length.to_le_bytes());
        put(6, &[REVISION]);
        put(8, b"MOIRA   VIRTUAL Q35 ");
        put(34, &self.entries.to_le_bytes());
        put(36, &(layout::LAPIC_BASE as u32).to_le_bytes());
        add_checksum(&mut self.bytes, 7);
        self.bytes
    }
}

fn add_checksum(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(byte) = bytes.get_mut(at) {
        *byte = byte.wrapping_sub(sum);
    }
}

fn table(config: &MpConfig) -> Vec<u8> {
    let mut table = Table { bytes: [0; HEADER].into(), entries: 0 };
    for id in 0..config.cpus.min(u32::from(ALL_APICS)) {
        table.processor(id as u8, config.signature);
    }
    table.bus(PCI, b"PCI   ");
    table.bus(ISA, b"ISA   ");
    let [a, b, c, d] = (layout::IOAPIC_BASE as u32).to_le_bytes();
    table.entry(&[2, config.ioapic_id, IOAPIC_VERSION, 1, a, b, c, d]);
    let io = |pin| (config.ioapic_id, pin);
    for irq in (0..16u8).filter(|irq| *irq != 2) {
        // The PIT's interrupt arrives at pin 2, and ACPI's is level-triggered.
        let pin = if irq == 0 { 2 } else { irq };
        let flags = if u32::from(irq) == layout::SCI_GSI { HIGH_LEVEL } else { CONFORMS };
        table.interrupt(3, VECTORED, flags, (ISA, irq), io(pin));
    }
    for slot in 1..8u8 {
        // Bits 6:2 are the slot, bits 1:0 the pin.
        table.interrupt(3, VECTORED, HIGH_LEVEL, (PCI, slot << 2), io(layout::pci_gsi(slot, 0) as u8));
    }
    table.interrupt(4, EXT_INT, CONFORMS, (ISA, 0), (ALL_APICS, 0));
    table.interrupt(4, NMI, CONFORMS, (ISA, 0), (ALL_APICS, 1));
    table.finish()
}

/// Writes the tables. A machine with more processors than fit gets none: there is no such system for it.
///
/// # Errors
/// [`OutOfRange`] if RAM ends before them.
pub fn write(config: &MpConfig, ram: &mut dyn GuestRam) -> Result<(), OutOfRange> {
    let table = table(config);
    if TABLE + table.len() as u64 > END {
        return Ok(());
    }
    // The area's first byte is its size in KiB.
    ram.write(layout::EBDA_BASE, &[1])?;
    ram.write(TABLE, &table)?;
    let mut pointer = [0; 16];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(TABLE as u32).to_le_bytes());
    pointer[8..10].copy_from_slice(&[1, REVISION]);
    add_checksum(&mut pointer, 10);
    ram.write(POINTER, &pointer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_ram::TestRam;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    /// Reads the tables as such a system does: finds the pointer by its search, then entry after entry.
    fn find(ram: &TestRam) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
        let area = u64::from(ram.u32(0x40E) & 0xFFFF) << 4;
        let pointer = (area..area + 0x400).step_by(16).find(|at| ram.bytes(*at, 4) == b"_MP_")?;
        assert_eq!(sum(&ram.bytes(pointer, 16)), 0);
        let at = u64::from(ram.u32(pointer + 4));
        let all = ram.bytes(at, (ram.u32(at + 4) & 0xFFFF) as usize);
        assert_eq!((sum(&all), &all[..4]), (0, &b"PCMP"[..]));
        let (mut entries, mut rest) = (Vec::new(), &all[HEADER..]);
        while let Some(kind) = rest.first() {
            let (entry, after) = rest.split_at(if *kind == 0 { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = after;
        }
        assert_eq!(entries.len(), usize::from(all[34]));
        Some((all, entries))
    }

    fn written(cpus: u32) -> TestRam {
        let mut ram = TestRam::new(1 << 20);
        crate::memory_map::MemoryMap::new(4 << 20).unwrap().write_bda(&mut ram).unwrap();
        write(&MpConfig { cpus, signature: (0x0080_0F12, 0x0783_FBFF), ioapic_id: 0 }, &mut ram).unwrap();
        ram
    }

    #[test]
    fn a_system_without_acpi_finds_processors_and_interrupts() {
        let (header, entries) = find(&written(4)).unwrap();
        assert_eq!(header[36..40], 0xFEE0_0000u32.to_le_bytes());
        let of = |kind: u8| entries.iter().filter(move |entry| entry[0] == kind);
        let processors: Vec<_> = of(0).map(|entry| (entry[1], entry[3])).collect();
        assert_eq!(processors, [(0, 3), (1, 1), (2, 1), (3, 1)]);
        assert!(of(0).all(|entry| entry[4..12] == [0x12, 0x0F, 0x80, 0, 0xFF, 0xFB, 0x83, 0x07]));
        assert_eq!(of(2).collect::<Vec<_>>(), [&[2, 0, 0x20, 1, 0, 0, 0xC0, 0xFE]]);
        let pin = |bus: u8, source: u8| of(3).find(|e| (e[4], e[5]) == (bus, source)).map(|e| (e[7], e[2]));
        assert_eq!((pin(1, 0), pin(1, 4), pin(1, 9)), (Some((2, 0)), Some((4, 0)), Some((9, 13))));
        // INTA of slot 3.
        assert_eq!(pin(0, 3 << 2), Some((layout::pci_gsi(3, 0) as u8, 13)));
        assert_eq!(of(4).count(), 2);
        // Kinds come in ascending order.
        assert!(entries.is_sorted_by_key(|entry| entry[0]));
    }

    #[test]
    fn too_many_processors_get_none() {
        assert!(find(&written(16)).is_some() && find(&written(100)).is_none());
    }
}
