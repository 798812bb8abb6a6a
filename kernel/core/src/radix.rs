//! Page tables as a radix tree of 512-entry tables, for tasks (SDM 4.5, APM 5.3), NPT (the same format) and EPT (SDM 28.3).
//! Four levels; level 0 maps 4 KiB, level 1 2 MiB, level 2 1 GiB.

use moira_abi::{Error, FrameSize, Rights};

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

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
const EPT_EXECUTE: u64 = 1 << 2;

/// An entry format. In both, bit 7 says that an entry above the lowest level maps a page rather than pointing to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Tasks' page tables, and AMD's nested ones, where guests may execute anything they can write. Leaves carry USER; the PAT is the
    /// power-on one but for entry 1, which the kernel sets to write-combining (so PWT alone means write-combining).
    Paging,
    /// Intel's extended page tables.
    Ept,
}

impl Format {
    /// An entry that maps a page.
    #[inline(always)]
    fn leaf(self, address: u64, size: FrameSize, rights: Rights, cache: Cache) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let entry =
            address | PRESENT | bit(rights.contains(Rights::WRITE), WRITE) | bit(size != FrameSize::Small, LARGE);
        let execute = rights.contains(Rights::EXECUTE);
        match self {
            Format::Paging => {
                let cache = match cache {
                    Cache::WriteBack => 0,
                    Cache::Uncached => CACHE_DISABLE | WRITE_THROUGH,
                    Cache::WriteCombining => WRITE_THROUGH,
                };
                entry | USER | cache | bit(!execute, NO_EXECUTE)
            }
            // A writable page that cannot be read is a misconfiguration (SDM 28.3.3.1): READ (PRESENT's place) always goes with it.
            Format::Ept => {
                let memory_type = match cache {
                    Cache::WriteBack => 6,
                    Cache::Uncached => 0,
                    Cache::WriteCombining => 1,
                };
                entry | memory_type << 3 | bit(execute, EPT_EXECUTE)
            }
        }
    }
}

/// Whether an entry at a level maps a page. Only asked of entries that are not 0.
const fn is_leaf(entry: u64, level: u8) -> bool {
    level == 0 || entry & LARGE != 0
}

/// Physical address in an entry.
const fn address_of(entry: u64) -> u64 {
    entry & 0x000f_ffff_ffff_f000
}

const fn shift_of(level: u8) -> u32 {
    12 + 9 * level as u32
}

const fn index(address: u64, shift: u32) -> usize {
    (address >> shift & 511) as usize
}

/// A page and what it is to be mapped to.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    /// Aligned virtual address.
    pub address: u64,
    /// Aligned physical address.
    pub physical: u64,
    /// Its size.
    pub size: FrameSize,
}

/// The table at the level of a page's size, and the page's index in it. `make`: missing ones are made on the way.
#[inline(always)]
fn descend<T: Tables>(tables: &T, root: u64, page: Mapping, make: bool) -> Result<(u64, usize), Error> {
    let (mut table, mut shift) = (root, shift_of(3));
    while shift > shift_of(page.size as u8) {
        let index = index(page.address, shift);
        let entry = tables.read(table, index);
        if entry == 0 && make {
            let below = tables.allocate().ok_or(Error::NoMemory)?;
            // Everything is allowed there: present, write and user, or read, write and execute.
            tables.write(table, index, below | 7);
            table = below;
        } else if entry == 0 || entry & LARGE != 0 {
            return Err(Error::InUse);
        } else {
            table = address_of(entry);
        }
        shift -= 9;
    }
    Ok((table, index(page.address, shift)))
}

/// Maps one page. Tables made on the way stay when the last step fails.
///
/// # Errors
/// `NoMemory` for a table; `InUse`: something is mapped there.
#[inline(always)]
pub fn map<T: Tables>(
    tables: &T,
    format: Format,
    root: u64,
    page: Mapping,
    rights: Rights,
    cache: Cache,
) -> Result<(), Error> {
    let (table, index) = descend(tables, root, page, true)?;
    if tables.read(table, index) != 0 {
        return Err(Error::InUse);
    }
    tables.write(table, index, format.leaf(page.physical, page.size, rights, cache));
    Ok(())
}

/// Replaces or removes (`rights` none) a mapping, if exactly that is there. Answers whether it was.
pub fn change<T: Tables>(
    tables: &T,
    format: Format,
    root: u64,
    page: Mapping,
    rights: Option<(Rights, Cache)>,
) -> bool {
    let Mapping { physical, size, .. } = page;
    let Ok((table, index)) = descend(tables, root, page, false) else { return false };
    let entry = tables.read(table, index);
    if entry == 0 || !is_leaf(entry, size as u8) || address_of(entry) & !(size.bytes() - 1) != physical {
        return false;
    }
    tables.write(table, index, rights.map_or(0, |(rights, cache)| format.leaf(physical, size, rights, cache)));
    true
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

    /// What is mapped at an address: the leaf entry and its level.
    fn lookup(tables: &Fake, address: u64) -> Option<(u64, u8)> {
        let mut table = 0x1000;
        for level in (0..4).rev() {
            let entry = tables.read(table, index(address, shift_of(level)));
            if entry == 0 {
                return None;
            }
            if is_leaf(entry, level) {
                return Some((entry, level));
            }
            table = address_of(entry);
        }
        None
    }

    fn run(format: Format, ops: Vec<(u8, u8, u8, u8)>) -> Result<(), TestCaseError> {
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
                let page = Mapping { address, physical, size };
                let answer = map(&tables, format, 0x1000, page, Rights::READ, Cache::WriteBack);
                match answer {
                    Ok(()) => {
                        prop_assert!(!model.iter().any(overlaps));
                        model.push((address, physical, size));
                    }
                    Err(error) => {
                        prop_assert!(error == Error::InUse || error == Error::NoMemory && *tables.next.borrow() == 64)
                    }
                }
            } else {
                let found = model.iter().position(|page| *page == (address, physical, size));
                let page = Mapping { address, physical, size };
                prop_assert_eq!(change(&tables, format, 0x1000, page, None), found.is_some());
                if let Some(found) = found {
                    model.swap_remove(found);
                }
            }
            for (address, physical, size) in &model {
                let (entry, level) = lookup(&tables, *address).unwrap();
                prop_assert_eq!((address_of(entry) & !(size.bytes() - 1), level), (*physical, *size as u8));
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn tasks_agree_with_the_model(ops in prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..80)) {
            run(Format::Paging, ops)?;
        }
        #[test]
        fn ept_agrees_with_the_model(ops in prop::collection::vec(any::<(u8, u8, u8, u8)>(), 1..80)) {
            run(Format::Ept, ops)?;
        }
    }

    #[test]
    fn no_entry_grants_more_than_asked() {
        for bits in 0..8 {
            let rights = Rights(bits);
            let entry = Format::Paging.leaf(0, FrameSize::Small, rights, Cache::WriteBack);
            assert_eq!(entry & WRITE != 0, rights.contains(Rights::WRITE));
            assert_eq!(entry & NO_EXECUTE == 0, rights.contains(Rights::EXECUTE));
            let entry = Format::Ept.leaf(0, FrameSize::Small, rights, Cache::WriteBack);
            assert_eq!(entry & 2 != 0, rights.contains(Rights::WRITE));
            assert_eq!(entry & 4 != 0, rights.contains(Rights::EXECUTE));
        }
    }
}
