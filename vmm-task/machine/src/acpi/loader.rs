//! The tables for firmware, which places them itself: files of the firmware configuration device, one of them a list of
//! what to put where (QEMU's "table loader", which SeaBIOS and OVMF follow).

use super::{AcpiConfig, AcpiError, Table, Tables};
use alloc::vec::Vec;

/// The file with the RSDP.
pub const RSDP_FILE: &str = "etc/acpi/rsdp";
/// The file with all other tables.
pub const TABLES_FILE: &str = "etc/acpi/tables";
/// The file with the list of steps.
pub const LOADER_FILE: &str = "etc/table-loader";

/// Bytes of one step, and of a file's name in it.
const STEP: usize = 128;
const NAME: usize = 56;
const ALLOCATE: u32 = 1;
const ADD_POINTER: u32 = 2;
const ADD_CHECKSUM: u32 = 3;
/// Anywhere, or in the range that old systems search for the RSDP.
const ZONE_HIGH: u8 = 1;
const ZONE_BIOS: u8 = 2;
/// The FACS wants 64.
const TABLE_ALIGN: u32 = 64;
const RSDP_ALIGN: u32 = 16;
/// Where the tables begin in their file. What is before them is not used: it lets addresses be offsets.
const FIRST: u64 = 64;
/// Most bytes of the tables; they need a twentieth of it.
const LIMIT: u64 = 0x2_0000;

/// Offsets of a table's checksum, and of pointers (offset, bytes) in the tables that have some.
const CHECKSUM: u32 = 9;
const FADT_POINTERS: [(usize, u8); 3] = [(36, 4), (40, 4), (140, 8)];
const ROOT_FIRST: usize = 36;
const RSDP_CHECKSUM: u32 = 8;
const RSDP_EXTENDED_CHECKSUM: u32 = 32;
const RSDP_RSDT: u32 = 16;
const RSDP_XSDT: u32 = 24;

/// The three files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareFiles {
    /// [`RSDP_FILE`]
    pub rsdp: Vec<u8>,
    /// [`TABLES_FILE`]
    pub tables: Vec<u8>,
    /// [`LOADER_FILE`]
    pub loader: Vec<u8>,
}

impl FirmwareFiles {
    /// The files for a machine. Their sizes, and the loader's contents, depend on the number of processors only.
    ///
    /// # Errors
    /// [`AcpiError`].
    pub fn build(config: &AcpiConfig) -> Result<Self, AcpiError> {
        // Based at 0, the addresses in the tables are offsets in the file, as the loader wants them.
        let all = Tables::build(config, 0, LIMIT)?;
        let (mut rsdp, mut tables, mut loader) = (Vec::new(), Vec::new(), Loader::default());
        loader.allocate(TABLES_FILE, TABLE_ALIGN, ZONE_HIGH);
        loader.allocate(RSDP_FILE, RSDP_ALIGN, ZONE_BIOS);
        for table in all.parts() {
            if table.name == *b"RSDP" {
                rsdp.clone_from(&table.bytes);
                continue;
            }
            debug_assert!(table.address >= FIRST);
            tables.resize(table.address as usize, 0);
            tables.extend_from_slice(&table.bytes);
        }
        // Checksums come when all pointers stand.
        all.parts().iter().for_each(|table| loader.pointers_of(table));
        for table in all.parts() {
            loader.checksums_of(table, &mut rsdp, &mut tables);
        }
        Ok(Self { rsdp, tables, loader: loader.0 })
    }
}

/// The list of steps.
#[derive(Default)]
struct Loader(Vec<u8>);

impl Loader {
    fn step(&mut self, command: u32, parts: &[&[u8]]) {
        let end = self.0.len() + STEP;
        self.0.extend_from_slice(&command.to_le_bytes());
        parts.iter().for_each(|part| self.0.extend_from_slice(part));
        self.0.resize(end, 0);
    }

    fn allocate(&mut self, file: &str, align: u32, zone: u8) {
        self.step(ALLOCATE, &[&name(file), &align.to_le_bytes(), &[zone]]);
    }

    /// Adds the address of `target` to the `size` bytes at `offset` of `file`.
    fn pointer(&mut self, file: &str, target: &str, offset: u32, size: u8) {
        self.step(ADD_POINTER, &[&name(file), &name(target), &offset.to_le_bytes(), &[size]]);
    }

    /// Makes the byte at `offset` of `file` the checksum of `length` bytes from `start` on.
    fn checksum(&mut self, file: &str, offset: u32, start: u32, length: u32) {
        self.step(ADD_CHECKSUM, &[&name(file), &offset.to_le_bytes(), &start.to_le_bytes(), &length.to_le_bytes()]);
    }

    fn pointers_of(&mut self, table: &Table) {
        let at = table.address as u32;
        match &table.name {
            b"RSDP" => {
                self.pointer(RSDP_FILE, TABLES_FILE, RSDP_RSDT, 4);
                self.pointer(RSDP_FILE, TABLES_FILE, RSDP_XSDT, 8);
            }
            b"FACP" => {
                for (offset, size) in FADT_POINTERS {
                    self.pointer(TABLES_FILE, TABLES_FILE, at + offset as u32, size);
                }
            }
            b"RSDT" | b"XSDT" => {
                let size = if table.name == *b"RSDT" { 4 } else { 8 };
                for offset in (ROOT_FIRST..table.bytes.len()).step_by(size.into()) {
                    self.pointer(TABLES_FILE, TABLES_FILE, at + offset as u32, size);
                }
            }
            _ => {}
        }
    }

    /// The sums are made over the final bytes, so those that stand there now have to go: firmware disagrees about
    /// whether they count.
    fn checksums_of(&mut self, table: &Table, rsdp: &mut [u8], tables: &mut [u8]) {
        let (at, length) = (table.address as u32, table.bytes.len() as u32);
        match &table.name {
            b"FACS" => {}
            b"RSDP" => {
                for (offset, length) in [(RSDP_CHECKSUM, 20), (RSDP_EXTENDED_CHECKSUM, length)] {
                    clear(rsdp, offset);
                    self.checksum(RSDP_FILE, offset, 0, length);
                }
            }
            _ => {
                clear(tables, at + CHECKSUM);
                self.checksum(TABLES_FILE, at + CHECKSUM, at, length);
            }
        }
    }
}

fn clear(bytes: &mut [u8], at: u32) {
    if let Some(byte) = bytes.get_mut(at as usize) {
        *byte = 0;
    }
}

fn name(file: &str) -> [u8; NAME] {
    let mut name = [0; NAME];
    for (to, from) in name.iter_mut().zip(file.bytes()) {
        *to = from;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> usize {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
    }

    /// Firmware, as far as tables go: `base` is where each file ends up.
    fn follow(files: &FirmwareFiles, bases: [u64; 2]) -> [Vec<u8>; 2] {
        let mut memory = [files.rsdp.clone(), files.tables.clone()];
        let index = |name: &[u8]| {
            let end = name.iter().position(|&byte| byte == 0).unwrap();
            [RSDP_FILE, TABLES_FILE].iter().position(|file| file.as_bytes() == &name[..end]).unwrap()
        };
        for step in files.loader.chunks(STEP) {
            let file = index(&step[4..60]);
            match step[0] {
                1 => assert!(u32_at(step, 60) <= 64),
                2 => {
                    let target = bases[index(&step[60..116])];
                    let (offset, size) = (u32_at(step, 116), usize::from(step[120]));
                    let field = &mut memory[file][offset..offset + size];
                    let mut value = [0; 8];
                    value[..size].copy_from_slice(field);
                    let value = u64::from_le_bytes(value) + target;
                    field.copy_from_slice(&value.to_le_bytes()[..size]);
                }
                3 => {
                    let (at, start, length) = (u32_at(step, 60), u32_at(step, 64), u32_at(step, 68));
                    let sum = memory[file][start..start + length].iter().fold(0u8, |sum, b| sum.wrapping_add(*b));
                    memory[file][at] = sum.wrapping_neg();
                }
                other => panic!("step {other}"),
            }
        }
        memory
    }

    #[test]
    fn firmware_ends_up_with_the_tables_that_stand_there_without_it() {
        let config = AcpiConfig::for_firmware(2, 256 << 20, None);
        let files = FirmwareFiles::build(&config).unwrap();
        let (rsdp_base, base) = (0xF_5000, 0x0FFE_0000);
        let [rsdp, tables] = follow(&files, [rsdp_base, base]);
        let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
        // The same tables as if they had been built there.
        let there = Tables::build(&config, base, base + LIMIT).unwrap();
        for table in there.parts().iter().filter(|table| table.name != *b"RSDP") {
            let at = (table.address - base) as usize;
            assert_eq!(tables[at..at + table.bytes.len()], table.bytes, "{:?}", core::str::from_utf8(&table.name));
        }
        let xsdt = there.parts().iter().find(|table| table.name == *b"XSDT").unwrap();
        assert_eq!(rsdp[24..32], xsdt.address.to_le_bytes());
        let rsdt = there.parts().iter().find(|table| table.name == *b"RSDT").unwrap();
        assert_eq!(rsdp[16..20], (rsdt.address as u32).to_le_bytes());
    }

    #[test]
    fn sizes_do_not_depend_on_where_firmware_puts_the_ecam() {
        let build = |ecam| FirmwareFiles::build(&AcpiConfig::for_firmware(1, 0xB000_0000, ecam)).unwrap();
        let first = build(None);
        for ecam in [0, 0x8000_0000, 0xB000_0000, 0xC000_0000, 0xE000_0000, 0xF000_0000, !0xFFF_FFFF] {
            let other = build(Some(ecam));
            assert_eq!((other.rsdp.len(), other.tables.len()), (first.rsdp.len(), first.tables.len()), "{ecam:x}");
            assert_eq!(other.loader, first.loader, "{ecam:x}");
        }
        assert_ne!(build(Some(0xE000_0000)).tables, first.tables);
    }
}
