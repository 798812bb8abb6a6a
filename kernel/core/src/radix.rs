//! Page tables as a radix tree of 512-entry tables, for tasks (SDM 4.5, APM 5.3), NPT (the same format) and EPT (SDM 28.3).
//! Four levels; level 0 maps 4 KiB, level 1 2 MiB, level 2 1 GiB.

use moira_abi::{FrameSize, Rights};

/// Table memory.
pub trait Tables {
    /// Reads an entry of the table at a physical address.
    fn read(&self, table: u64, index: usize) -> u64;
    /// Writes an entry.
    fn write(&self, table: u64, index: usize, entry: u64);
    /// A zeroed page for a new table.
    fn allocate(&self) -> Option<u64>;
}

/// How memory is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    /// Write-back.
    WriteBack,
    /// Uncached.
    Uncached,
    /// Write-combining.
    WriteCombining,
}

/// An entry format.
pub trait Format {
    /// An entry that points to a table.
    fn table(&self, address: u64) -> u64;
    /// An entry that maps a page.
    fn leaf(&self, address: u64, size: FrameSize, rights: Rights, cache: Cache) -> u64;
    /// Whether an entry (at a level) maps a page rather than pointing to a table. Only asked of entries that are not 0.
    fn is_leaf(&self, entry: u64, level: u8) -> bool;
    /// Physical address in an entry.
    fn address(&self, entry: u64) -> u64 {
        entry & 0x000f_ffff_ffff_f000
    }
}

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Tasks' page tables. Leaves carry USER; the PAT is the power-on one but for entry 1, which the kernel sets to write-combining
/// (so PWT alone means write-combining).
#[derive(Clone, Copy, Debug)]
pub struct TaskFormat;

/// AMD's nested page tables: like tasks', USER on every level, guests may execute anything they can write.
#[derive(Clone, Copy, Debug)]
pub struct NptFormat;

/// Intel's extended page tables.
#[derive(Clone, Copy, Debug)]
pub struct EptFormat;

const fn paging_leaf(address: u64, size: FrameSize, rights: Rights, cache: Cache) -> u64 {
    let mut entry = address | PRESENT | USER;
    if rights.contains(Rights::WRITE) {
        entry |= WRITE;
    }
    if !rights.contains(Rights::EXECUTE) {
        entry |= NO_EXECUTE;
    }
    if !matches!(size, FrameSize::Small) {
        entry |= LARGE;
    }
    entry
        | match cache {
            Cache::WriteBack => 0,
            Cache::Uncached => CACHE_DISABLE | WRITE_THROUGH,
            Cache::WriteCombining => WRITE_THROUGH,
        }
}

impl Format for TaskFormat {
    fn table(&self, address: u64) -> u64 {
        address | PRESENT | WRITE | USER
    }
    fn leaf(&self, address: u64, size: FrameSize, rights: Rights, cache: Cache) -> u64 {
        paging_leaf(address, size, rights, cache)
    }
    fn is_leaf(&self, entry: u64, level: u8) -> bool {
        level == 0 || entry & LARGE != 0
    }
}

impl Format for NptFormat {
    fn table(&self, address: u64) -> u64 {
        address | PRESENT | WRITE | USER
    }
    fn leaf(&self, address: u64, size: FrameSize, rights: Rights, cache: Cache) -> u64 {
        paging_leaf(address, size, rights, cache)
    }
    fn is_leaf(&self, entry: u64, level: u8) -> bool {
        level == 0 || entry & LARGE != 0
    }
}

impl Format for EptFormat {
    fn table(&self, address: u64) -> u64 {
        address | 7
    }
    fn leaf(&self, address: u64, size: FrameSize, rights: Rights, cache: Cache) -> u64 {
        let memory_type = match cache {
            Cache::WriteBack => 6,
            Cache::Uncached => 0,
            Cache::WriteCombining => 1,
        };
        // A writable page that cannot be read is a misconfiguration (SDM 28.3.3.1): READ always goes with it.
        let mut entry = address | memory_type << 3 | 1;
        if rights.contains(Rights::WRITE) {
            entry |= 2;
        }
        if rights.contains(Rights::EXECUTE) {
            entry |= 4;
        }
        if size != FrameSize::Small {
            entry |= LARGE;
        }
        entry
    }
    fn is_leaf(&self, entry: u64, level: u8) -> bool {
        level == 0 || entry & LARGE != 0
    }
}

/// Why a mapping was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// No memory for a table.
    NoMemory,
    /// Something is mapped there.
    InUse,
}

const fn index(address: u64, level: u8) -> usize {
    (address >> (12 + 9 * level as u32) & 511) as usize
}

/// The table at the level of a page size, made on the way if `make`.
fn descend<T: Tables, F: Format>(
    tables: &T,
    format: &F,
    root: u64,
    address: u64,
    size: FrameSize,
    make: bool,
) -> Result<u64, MapError> {
    let mut table = root;
    let mut level = 3;
    while level > size as u8 {
        let entry = tables.read(table, index(address, level));
        if entry == 0 {
            if !make {
                return Err(MapError::InUse);
            }
            let page = tables.allocate().ok_or(MapError::NoMemory)?;
            tables.write(table, index(address, level), format.table(page));
            table = page;
        } else if format.is_leaf(entry, level) {
            return Err(MapError::InUse);
        } else {
            table = format.address(entry);
        }
        level -= 1;
    }
    Ok(table)
}

/// Maps one page at an aligned virtual address. Tables made on the way stay when the last step fails.
///
/// # Errors
/// [`MapError`].
#[allow(clippy::too_many_arguments)]
pub fn map<T: Tables, F: Format>(
    tables: &T,
    format: &F,
    root: u64,
    address: u64,
    physical: u64,
    size: FrameSize,
    rights: Rights,
    cache: Cache,
) -> Result<(), MapError> {
    let table = descend(tables, format, root, address, size, true)?;
    let index = index(address, size as u8);
    if tables.read(table, index) != 0 {
        return Err(MapError::InUse);
    }
    tables.write(table, index, format.leaf(physical, size, rights, cache));
    Ok(())
}

/// Replaces or removes (`rights` none) the mapping of a page, if exactly `physical` is mapped there with that size. Answers
/// whether it was.
pub fn change<T: Tables, F: Format>(
    tables: &T,
    format: &F,
    root: u64,
    address: u64,
    physical: u64,
    size: FrameSize,
    rights: Option<(Rights, Cache)>,
) -> bool {
    let Ok(table) = descend(tables, format, root, address, size, false) else { return false };
    let index = index(address, size as u8);
    let entry = tables.read(table, index);
    if entry == 0 || !format.is_leaf(entry, size as u8) || format.address(entry) & !(size.bytes() - 1) != physical {
        return false;
    }
    tables.write(table, index, rights.map_or(0, |(rights, cache)| format.leaf(physical, size, rights, cache)));
    true
}

/// What is mapped at an address: the leaf entry and its level.
pub fn lookup<T: Tables, F: Format>(tables: &T, format: &F, root: u64, address: u64) -> Option<(u64, u8)> {
    let mut table = root;
    for level in (0..4).rev() {
        let entry = tables.read(table, index(address, level));
        if entry == 0 {
            return None;
        }
        if format.is_leaf(entry, level) {
            return Some((entry, level));
        }
        table = format.address(entry);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::{cell::RefCell, collections::BTreeMap};

    /// Tables in a map; page 0x1000 is the root; at most `limit` tables.
    struct Fake {
        words: RefCell<BTreeMap<(u64, usize), u64>>,
        next: RefCell<u64>,
        limit: u64,
    }

    impl Tables for Fake {
        fn read(&self, table: u64, index: usize) -> u64 {
            self.words.borrow().get(&(table, index)).copied().unwrap_or(0)
        }
        fn write(&self, table: u64, index: usize, entry: u64) {
            self.words.borrow_mut().insert((table, index), entry);
        }
        fn allocate(&self) -> Option<u64> {
            let mut next = self.next.borrow_mut();
            (*next < self.limit).then(|| {
                *next += 1;
                *next << 12
            })
        }
    }

    fn run<F: Format>(format: F, ops: Vec<(u8, u8, u8, u8)>) -> Result<(), TestCaseError> {
        let tables = Fake { words: RefCell::default(), next: RefCell::new(1), limit: 64 };
        let mut model: Vec<(u64, u64, FrameSize)> = Vec::new();
        for (op, place, size, frame) in ops {
            let size = [FrameSize::Small, FrameSize::Large, FrameSize::Huge][size as usize % 3];
            // Few places, so that pages of different sizes meet.
            let address = (u64::from(place) << 19 | u64::from(place & 3) << 12) & !(size.bytes() - 1);
            let physical = u64::from(frame) << 30;
            let overlaps =
                |other: &(u64, u64, FrameSize)| other.0 < address + size.bytes() && address < other.0 + other.2.bytes();
            if op % 3 < 2 {
                let answer = map(&tables, &format, 0x1000, address, physical, size, Rights::READ, Cache::WriteBack);
                match answer {
                    Ok(()) => {
                        prop_assert!(!model.iter().any(overlaps));
                        model.push((address, physical, size));
                    }
                    Err(MapError::InUse) => {}
                    Err(MapError::NoMemory) => prop_assert_eq!(*tables.next.borrow(), 64),
                }
            } else {
                let found = model.iter().position(|page| *page == (address, physical, size));
                prop_assert_eq!(change(&tables, &format, 0x1000, address, physical, size, None), found.is_some());
                if let Some(found) = found {
                    model.swap_remove(found);
                }
            }
            for (address, physical, size) in &model {
                let (entry, level) = lookup(&tables, &format, 0x1000, *address).unwrap();
                prop_assert_eq!((format.address(entry) & !(size.bytes() - 1), level), (*physical, *size as u8));
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn tasks_agree_with_the_model(ops in prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..80)) {
            run(TaskFormat, ops)?;
        }
        #[test]
        fn ept_agrees_with_the_model(ops in prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..80)) {
            run(EptFormat, ops)?;
        }
    }

    #[test]
    fn no_entry_grants_more_than_asked() {
        for bits in 0..8 {
            let rights = Rights(bits);
            let entry = TaskFormat.leaf(0, FrameSize::Small, rights, Cache::WriteBack);
            assert_eq!(entry & WRITE != 0, rights.contains(Rights::WRITE));
            assert_eq!(entry & NO_EXECUTE == 0, rights.contains(Rights::EXECUTE));
            let entry = EptFormat.leaf(0, FrameSize::Small, rights, Cache::WriteBack);
            assert_eq!(entry & 2 != 0, rights.contains(Rights::WRITE));
            assert_eq!(entry & 4 != 0, rights.contains(Rights::EXECUTE));
        }
    }
}
