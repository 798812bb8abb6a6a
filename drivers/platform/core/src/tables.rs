//! Finds the ACPI tables and copies them, so that what is read later was checked and cannot change.

use crate::machine::Machine;
use alloc::{vec, vec::Vec};

/// Bytes of a table's header (ACPI 6.5, 5.2.6).
pub const HEADER: usize = 36;
/// Longest table that is read.
const MOST_BYTES: usize = 1 << 20;
/// Most tables that are read.
const MOST_TABLES: usize = 128;
/// Zeroes behind each copy, so that a structure of a later version than the table can be laid over it.
const PADDING: usize = 512;

/// Where the tables begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// The RSDT: addresses of 32 bits.
    Rsdt(u64),
    /// The XSDT: addresses of 64 bits.
    Xsdt(u64),
}

/// Why there are no tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableError {
    /// No root pointer was found.
    NoRoot,
    /// The root table is missing, too short or wrong.
    BadRoot,
}

/// A table's copy.
#[derive(Clone, Debug)]
pub struct Table {
    /// Physical address of the original.
    pub address: u64,
    /// The copy and its padding, in words for alignment.
    words: Vec<u64>,
    bytes: Vec<u8>,
}

impl Table {
    /// Checks length and checksum (all bytes add up to 0).
    fn new(address: u64, bytes: Vec<u8>) -> Option<Table> {
        let length = field::<4>(&bytes, 4).map(u32::from_le_bytes)?;
        if length as usize != bytes.len() || bytes.len() < HEADER || sum(&bytes) != 0 {
            return None;
        }
        let mut padded = bytes.clone();
        padded.resize((bytes.len() + PADDING).next_multiple_of(8), 0);
        let words = padded.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok().map(u64::from_le_bytes)).collect();
        Some(Table { address, words, bytes })
    }

    /// Its four letters.
    #[must_use]
    pub fn signature(&self) -> &[u8] {
        self.bytes.get(..4).unwrap_or_default()
    }

    /// All of it.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What follows the header: in DSDT and SSDT the AML.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// Its revision.
    #[must_use]
    pub fn revision(&self) -> u8 {
        self.bytes.get(8).copied().unwrap_or(0)
    }

    /// A little-endian field; `None` if the table is too short to have it.
    #[must_use]
    pub fn field<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        field(&self.bytes, offset)
    }

    /// The copy with zeroes behind it, aligned to eight bytes.
    #[must_use]
    pub(crate) fn padded(&self) -> &[u64] {
        &self.words
    }
}

fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// Reads a root pointer (ACPI 6.5, 5.2.5.3), at least 20 bytes, 36 from version 2 on. The XSDT is preferred.
#[must_use]
pub fn read_root_pointer(bytes: &[u8]) -> Option<Root> {
    if bytes.get(..8)? != b"RSD PTR " || sum(bytes.get(..20)?) != 0 {
        return None;
    }
    if *bytes.get(15)? >= 2 && bytes.get(..36).is_some_and(|all| sum(all) == 0) {
        let xsdt = u64::from_le_bytes(field(bytes, 24)?);
        if xsdt != 0 {
            return Some(Root::Xsdt(xsdt));
        }
    }
    let rsdt = u32::from_le_bytes(field(bytes, 16)?);
    (rsdt != 0).then_some(Root::Rsdt(u64::from(rsdt)))
}

/// Where a BIOS leaves the root pointer, on a multiple of 16 (ACPI 6.5, 5.2.5.1). The other place, the extended BIOS data area, is
/// ordinary memory, which this task may not read.
const BIOS: core::ops::Range<u64> = 0xe_0000..0x10_0000;

/// Reads the root pointer at `address`, or searches the BIOS area for one.
pub fn find_root(machine: &mut impl Machine, address: Option<u64>) -> Option<Root> {
    let mut read = |address| {
        let mut bytes = [0; 36];
        machine.copy(address, &mut bytes);
        read_root_pointer(&bytes)
    };
    address.and_then(&mut read).or_else(|| BIOS.step_by(16).find_map(read))
}

/// The checked copies of all tables.
#[derive(Clone, Debug)]
pub struct Tables {
    /// What the root was.
    pub root: Root,
    all: Vec<Table>,
    /// Addresses whose tables were wrong, and left out.
    pub rejected: Vec<u64>,
}

impl Tables {
    /// Copies all tables that the root names, and the DSDT. Wrong ones are left out.
    ///
    /// # Errors
    /// [`TableError::BadRoot`]; what else is missing shows later.
    pub fn collect(machine: &mut impl Machine, root: Root) -> Result<Tables, TableError> {
        let (address, size) = match root {
            Root::Rsdt(address) => (address, 4),
            Root::Xsdt(address) => (address, 8),
        };
        let first = copy(machine, address).ok_or(TableError::BadRoot)?;
        let expected: &[u8] = if size == 4 { b"RSDT" } else { b"XSDT" };
        if first.signature() != expected {
            return Err(TableError::BadRoot);
        }
        let entries: Vec<u64> = first
            .body()
            .chunks_exact(size)
            .take(MOST_TABLES)
            .map(|entry| entry.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            .collect();
        let mut tables = Tables { root, all: vec![first], rejected: Vec::new() };
        for entry in entries {
            tables.add(machine, entry);
        }
        if let Some(dsdt) = tables.find(b"FACP").and_then(dsdt_address) {
            tables.add(machine, dsdt);
        }
        Ok(tables)
    }

    fn add(&mut self, machine: &mut impl Machine, address: u64) {
        if address == 0 || self.all.iter().any(|table| table.address == address) {
            return;
        }
        match copy(machine, address) {
            Some(table) => self.all.push(table),
            None => self.rejected.push(address),
        }
    }

    /// The first table with this signature.
    #[must_use]
    pub fn find(&self, signature: &[u8; 4]) -> Option<&Table> {
        self.iter().find(|table| table.signature() == signature)
    }

    /// All tables, the root table first.
    pub fn iter(&self) -> impl Iterator<Item = &Table> {
        self.all.iter()
    }

    /// The tables with AML: the DSDT, then the SSDTs in their order.
    pub fn with_aml(&self) -> impl Iterator<Item = &Table> {
        let secondary = self.iter().filter(|table| table.signature() == b"SSDT");
        self.find(b"DSDT").into_iter().chain(secondary)
    }
}

fn copy(machine: &mut impl Machine, address: u64) -> Option<Table> {
    let mut header = [0; 8];
    machine.copy(address, &mut header);
    let length = u32::from_le_bytes(field(&header, 4)?) as usize;
    if !(HEADER..=MOST_BYTES).contains(&length) {
        return None;
    }
    let mut bytes = vec![0; length];
    machine.copy(address, &mut bytes);
    Table::new(address, bytes)
}

/// Address of the DSDT: the 64-bit field if it is there and not 0 (ACPI 6.5, 5.2.9).
fn dsdt_address(fadt: &Table) -> Option<u64> {
    let wide = fadt.field(140).map_or(0, u64::from_le_bytes);
    if wide != 0 {
        return Some(wide);
    }
    fadt.field(40).map(|bytes| u64::from(u32::from_le_bytes(bytes)))
}
