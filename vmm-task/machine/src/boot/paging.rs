//! The identity map that 64-bit entry points start on.

use crate::{GuestRam, OutOfRange, layout};

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE: u64 = 1 << 7;
const TABLE: u64 = 4096;
const DIRECTORIES: u64 = 4;

/// Maps the first 4 GiB to themselves with 2 MiB pages, writable and executable, and returns CR3.
///
/// 4 GiB hold every image, initrd and table a loader places, and the interrupt controllers. 2 MiB pages because every
/// 64-bit processor has them (1 GiB pages not).
pub fn identity_map(ram: &mut dyn GuestRam) -> Result<u64, OutOfRange> {
    let pml4 = layout::BOOT_PAGE_TABLES;
    let pdpt = pml4 + TABLE;
    let directories = pdpt + TABLE;
    crate::fill_zero(ram, pml4, 2 * TABLE)?;
    ram.write(pml4, &(pdpt | PRESENT_WRITABLE).to_le_bytes())?;
    let mut page = [0u8; TABLE as usize];
    for d in 0..DIRECTORIES {
        let directory = directories + d * TABLE;
        ram.write(pdpt + 8 * d, &(directory | PRESENT_WRITABLE).to_le_bytes())?;
        for (i, entry) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let frame = (d * 512 + i as u64) << 21;
            *entry = (frame | LARGE | PRESENT_WRITABLE).to_le_bytes();
        }
        ram.write(directory, &page)?;
    }
    Ok(pml4)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_ram::TestRam;

    #[test]
    fn walking_the_tables_gives_the_address_back() {
        let mut ram = TestRam::new(2 << 20);
        let cr3 = identity_map(&mut ram).unwrap();
        for address in [0u64, 0x1000, 0x20_0000, 0xFEE0_0000, 0xFFFF_FFFF] {
            let l4 = ram.u64(cr3 + 8 * (address >> 39));
            let l3 = ram.u64((l4 & !0xFFF) + 8 * (address >> 30 & 511));
            let l2 = ram.u64((l3 & !0xFFF) + 8 * (address >> 21 & 511));
            assert_eq!(l2 & 0x83, 0x83);
            assert_eq!((l2 & !0x1F_FFFF) | address & 0x1F_FFFF, address);
        }
        assert_eq!(ram.u64(cr3 + 8), 0, "nothing above 512 GiB");
        assert_eq!(ram.u64(cr3 + 4096 + 32), 0, "nothing above 4 GiB");
    }
}
