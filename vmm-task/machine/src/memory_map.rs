//! Where RAM lies, and what the guest is told about it.

use crate::{GuestRam, OutOfRange, layout};
use alloc::vec::Vec;
use core::fmt;

/// What an E820 range is (ACPI 6.5, table 15.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum E820Kind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used, not to be given to devices.
    Reserved = 2,
}

/// One range of the guest's physical address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct E820Entry {
    /// First byte.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// What it is.
    pub kind: E820Kind,
}

impl E820Entry {
    /// First byte after the range.
    #[must_use]
    pub const fn end(&self) -> u64 {
        self.base + self.size
    }
}

/// Why no memory map can be made for a RAM size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Less than [`MemoryMap::MIN_RAM`].
    TooSmall {
        /// Bytes asked for.
        ram: u64,
    },
    /// More than [`MemoryMap::MAX_RAM`].
    TooLarge {
        /// Bytes asked for.
        ram: u64,
    },
    /// Not a whole number of 4 KiB pages.
    NotPages {
        /// Bytes asked for.
        ram: u64,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MapError::TooSmall { ram } => {
                write!(f, "{} KiB of memory: a machine has {} KiB or more", ram >> 10, MemoryMap::MIN_RAM >> 10)
            }
            MapError::TooLarge { ram } => {
                write!(f, "{} GiB of memory: a machine has at most {} GiB", ram >> 30, MemoryMap::MAX_RAM >> 30)
            }
            MapError::NotPages { ram } => write!(f, "{ram} bytes of memory are no whole pages"),
        }
    }
}

/// The memory map of one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryMap {
    ram: u64,
    entries: Vec<E820Entry>,
}

impl MemoryMap {
    /// Least RAM a machine may have: conventional memory, BIOS area, and something above.
    pub const MIN_RAM: u64 = 2 * layout::ONE_MIB;
    /// Most RAM: 1 TiB, what 40 physical address bits reach with room for devices is well above any host this runs on.
    pub const MAX_RAM: u64 = 1 << 40;

    /// The map of a machine with `ram` bytes.
    ///
    /// # Errors
    /// [`MapError`] if `ram` is too small, too large or not a whole number of pages.
    pub fn new(ram: u64) -> Result<Self, MapError> {
        if !ram.is_multiple_of(4096) {
            return Err(MapError::NotPages { ram });
        }
        if ram < Self::MIN_RAM {
            return Err(MapError::TooSmall { ram });
        }
        if ram > Self::MAX_RAM {
            return Err(MapError::TooLarge { ram });
        }
        let mut map = Self { ram, entries: Vec::with_capacity(8) };
        map.push(0, layout::EBDA_BASE, E820Kind::Ram);
        map.push(layout::EBDA_BASE, layout::CONVENTIONAL_END, E820Kind::Reserved);
        map.push(layout::BIOS_BASE, layout::ONE_MIB, E820Kind::Reserved);
        map.push(layout::ONE_MIB, map.low_end(), E820Kind::Ram);
        map.push(layout::ECAM_BASE, layout::ECAM_BASE + layout::ECAM_SIZE, E820Kind::Reserved);
        map.push(layout::IOAPIC_BASE, layout::IOAPIC_BASE + layout::DEVICE_PAGE, E820Kind::Reserved);
        map.push(layout::LAPIC_BASE, layout::LAPIC_BASE + layout::DEVICE_PAGE, E820Kind::Reserved);
        if map.high_size() > 0 {
            map.push(layout::HIGH_RAM_BASE, layout::HIGH_RAM_BASE + map.high_size(), E820Kind::Ram);
        }
        Ok(map)
    }

    fn push(&mut self, base: u64, end: u64, kind: E820Kind) {
        self.entries.push(E820Entry { base, size: end - base, kind });
    }

    /// Bytes of RAM in all.
    #[must_use]
    pub const fn ram(&self) -> u64 {
        self.ram
    }

    /// First byte after the RAM below 4 GiB.
    #[must_use]
    pub const fn low_end(&self) -> u64 {
        if self.ram < layout::LOW_RAM_LIMIT { self.ram } else { layout::LOW_RAM_LIMIT }
    }

    /// Whether an image may lie there: low RAM above 1 MiB and the page before it, or conventional memory below what loaders
    /// put there.
    #[must_use]
    pub const fn is_loadable(&self, range: &core::ops::Range<u64>) -> bool {
        range.start >= layout::HEADERS_BASE && range.end <= self.low_end()
            || range.start >= layout::LOADABLE_BASE && range.end <= layout::BOOT_BASE
    }

    /// Bytes of RAM above 4 GiB.
    #[must_use]
    pub const fn high_size(&self) -> u64 {
        self.ram - self.low_end()
    }

    /// The E820 map: sorted, disjoint ranges.
    #[must_use]
    pub fn e820(&self) -> &[E820Entry] {
        &self.entries
    }

    /// RAM blocks as (guest-physical base, bytes): one, or two around the hole. This is what is backed with memory;
    /// unlike the E820 map it has no gap for the VGA window, which is plain memory here.
    pub fn ram_blocks(&self) -> impl Iterator<Item = (u64, u64)> + use<> {
        let high = self.high_size();
        core::iter::once((0, self.low_end())).chain((high > 0).then_some((layout::HIGH_RAM_BASE, high)))
    }

    /// Where a 64-bit PCI window can begin: above all RAM, on a 1 GiB boundary.
    #[must_use]
    pub const fn pci64_base(&self) -> u64 {
        (layout::HIGH_RAM_BASE + self.high_size()).next_multiple_of(1 << 30)
    }

    /// Writes the words of the BIOS data area that tell where conventional memory ends, where the serial port is, and that the screen is
    /// 80 by 25 in colour (mode 3). Linux looks for its real-mode trampoline's place there when no firmware has run.
    ///
    /// # Errors
    /// [`OutOfRange`] if `ram` is smaller than this map says.
    pub fn write_bda(&self, ram: &mut dyn GuestRam) -> Result<(), OutOfRange> {
        ram.write(layout::BDA_COM1, &layout::COM1_PORT.to_le_bytes())?;
        // Equipment: coprocessor, colour screen, one serial port. Then mode, columns, port of the CRTC, rows less one.
        for (address, value) in [(0x410, 0x0222), (0x44a, 80), (0x463, 0x3d4)] {
            ram.write(address, &u16::to_le_bytes(value))?;
        }
        ram.write(0x449, &[3])?;
        ram.write(0x484, &[24])?;
        ram.write(layout::BDA_EBDA_SEGMENT, &((layout::EBDA_BASE >> 4) as u16).to_le_bytes())?;
        ram.write(layout::BDA_CONVENTIONAL_KIB, &((layout::EBDA_BASE >> 10) as u16).to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn small_machine_has_no_high_ram() {
        let map = MemoryMap::new(256 << 20).unwrap();
        assert_eq!(map.low_end(), 256 << 20);
        assert_eq!(map.high_size(), 0);
        assert_eq!(map.ram_blocks().collect::<Vec<_>>(), [(0, 256 << 20)]);
        assert_eq!(map.e820()[0], E820Entry { base: 0, size: 0x9FC00, kind: E820Kind::Ram });
        assert_eq!(map.e820()[3], E820Entry { base: 1 << 20, size: 255 << 20, kind: E820Kind::Ram });
        assert_eq!(map.pci64_base(), 1 << 32);
    }

    #[test]
    fn large_machine_goes_on_above_4_gib() {
        let map = MemoryMap::new(4 << 30).unwrap();
        assert_eq!(map.low_end(), 0xB000_0000);
        assert_eq!(map.high_size(), (4 << 30) - 0xB000_0000);
        assert_eq!(map.pci64_base(), (4 << 30) + (2 << 30));
    }

    #[test]
    fn sizes_that_make_no_machine_are_refused() {
        assert_eq!(MemoryMap::new(4096), Err(MapError::TooSmall { ram: 4096 }));
        assert_eq!(MemoryMap::new((1 << 30) + 1), Err(MapError::NotPages { ram: (1 << 30) + 1 }));
        assert_eq!(MemoryMap::new(2 << 40), Err(MapError::TooLarge { ram: 2 << 40 }));
    }

    proptest! {
        #[test]
        fn ranges_are_sorted_disjoint_and_account_for_all_ram(pages in 512u64..(1 << 24)) {
            let map = MemoryMap::new(pages * 4096).unwrap();
            for pair in map.e820().windows(2) {
                prop_assert!(pair[0].end() <= pair[1].base);
            }
            let usable: u64 = map.e820().iter().filter(|e| e.kind == E820Kind::Ram).map(|e| e.size).sum();
            prop_assert_eq!(usable, map.ram() - (layout::ONE_MIB - layout::EBDA_BASE));
            prop_assert_eq!(map.ram_blocks().map(|b| b.1).sum::<u64>(), map.ram());
            let devices = [layout::ECAM_BASE, layout::PCI_WINDOW_BASE, layout::IOAPIC_BASE, layout::LAPIC_BASE];
            for (base, size) in map.ram_blocks() {
                for device in devices {
                    prop_assert!(!(base..base + size).contains(&device));
                }
            }
        }
    }
}
