//! Guest memory: one or two blocks of words that the guest writes at the same time.
//!
//! Everything goes through atomics, so the guest's writes are races that the language allows. Aligned accesses of 2, 4 and 8
//! bytes are one access on the bus, as virtio's ring indices need it (virtio 1.2, 2.7.13).

use core::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use vmm_devices::traits::{GuestMemory, OutOfRange};
use vmm_machine::layout::HIGH_RAM_BASE;

/// Guest memory.
#[derive(Clone, Copy, Debug)]
pub struct Ram<'a> {
    low: &'a [AtomicU64],
    high: &'a [AtomicU64],
    /// Firmware: it ends at 4 GiB, and the guest cannot write it.
    rom: &'a [AtomicU64],
}

/// The same memory in smaller pieces.
#[derive(Clone, Copy)]
struct Views;

#[allow(unsafe_code)]
impl Views {
    fn bytes(words: &[AtomicU64]) -> &[AtomicU8] {
        // SAFETY: atomics may be written through shared references; every byte of an `AtomicU64` is a valid `AtomicU8` of
        // lower alignment; the slice covers the same memory for the same time.
        unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 8) }
    }

    fn halves(words: &[AtomicU64]) -> &[AtomicU16] {
        // SAFETY: as for `bytes`.
        unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 4) }
    }

    fn doubles(words: &[AtomicU64]) -> &[AtomicU32] {
        // SAFETY: as for `bytes`.
        unsafe { core::slice::from_raw_parts(words.as_ptr().cast(), words.len() * 2) }
    }
}

impl<'a> Ram<'a> {
    /// Memory from address 0, and from 4 GiB on.
    #[must_use]
    pub fn new(low: &'a [AtomicU64], high: &'a [AtomicU64]) -> Ram<'a> {
        Ram { low, high, rom: &[] }
    }

    /// The same with a ROM that ends at 4 GiB. Code is fetched from it; to devices it is no memory.
    #[must_use]
    pub fn with_rom(self, rom: &'a [AtomicU64]) -> Ram<'a> {
        Ram { rom, ..self }
    }

    /// The ROM's words; none without firmware.
    #[must_use]
    pub fn rom(&self) -> &'a [AtomicU64] {
        self.rom
    }

    /// The aligned quadword of the ROM at `gpa`.
    #[must_use]
    #[cold]
    pub fn rom_word(&self, gpa: u64) -> Option<u64> {
        let offset = gpa.checked_sub(HIGH_RAM_BASE - 8 * self.rom.len() as u64)?;
        self.rom.get(usize::try_from(offset >> 3).ok()?).map(|word| word.load(Relaxed))
    }

    /// Bytes in all.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        8 * (self.low.len() as u64 + self.high.len() as u64)
    }

    /// The block that `gpa` would lie in, and its offset there.
    #[inline(always)]
    fn block(&self, gpa: u64) -> (&'a [AtomicU64], u64) {
        if gpa < HIGH_RAM_BASE { (self.low, gpa) } else { (self.high, gpa - HIGH_RAM_BASE) }
    }

    /// The aligned quadword at `gpa` (its low three bits do not count); `None` where there is neither memory nor ROM.
    #[must_use]
    #[inline(always)]
    pub fn word(&self, gpa: u64) -> Option<u64> {
        let (block, offset) = self.block(gpa);
        match block.get((offset >> 3) as usize) {
            Some(word) => Some(word.load(Relaxed)),
            None => self.rom_word(gpa),
        }
    }

    /// The page of 4 KiB around `gpa`; `None` where there is no memory.
    #[must_use]
    pub fn page(&self, gpa: u64) -> Option<&'a [AtomicU64; 512]> {
        let (block, offset) = self.block(gpa);
        let first = usize::try_from(offset >> 12).ok()?.checked_mul(512)?;
        block.get(first..first.checked_add(512)?)?.try_into().ok()
    }

    /// The block and the range of bytes in it, if all of it is memory.
    #[inline]
    fn range(&self, gpa: u64, len: u64) -> Result<(&'a [AtomicU64], usize), OutOfRange> {
        let (block, offset) = self.block(gpa);
        let end = offset.checked_add(len).ok_or(OutOfRange)?;
        if end <= 8 * block.len() as u64 { Ok((block, offset as usize)) } else { Err(OutOfRange) }
    }
}

/// Bytes before the first whole word, and how many words follow.
fn split(offset: usize, len: usize) -> (usize, usize) {
    let head = (offset.wrapping_neg() & 7).min(len);
    (head, (len - head) / 8)
}

impl GuestMemory for Ram<'_> {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        let (block, offset) = self.range(gpa, out.len() as u64)?;
        let (head, words) = split(offset, out.len());
        let (head, rest) = out.split_at_mut(head);
        let bytes = Views::bytes(block);
        for (to, from) in head.iter_mut().zip(bytes.get(offset..).unwrap_or_default()) {
            *to = from.load(Relaxed);
        }
        let at = offset + head.len();
        let mut chunks = rest.chunks_exact_mut(8);
        for (to, from) in (&mut chunks).zip(block.get(at / 8..).unwrap_or_default()) {
            to.copy_from_slice(&from.load(Relaxed).to_le_bytes());
        }
        let at = at + 8 * words;
        for (to, from) in chunks.into_remainder().iter_mut().zip(bytes.get(at..).unwrap_or_default()) {
            *to = from.load(Relaxed);
        }
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), OutOfRange> {
        let (block, offset) = self.range(gpa, data.len() as u64)?;
        let (head, words) = split(offset, data.len());
        let (head, rest) = data.split_at(head);
        let bytes = Views::bytes(block);
        for (from, to) in head.iter().zip(bytes.get(offset..).unwrap_or_default()) {
            to.store(*from, Relaxed);
        }
        let at = offset + head.len();
        let (whole, tail) = rest.as_chunks::<8>();
        for (from, to) in whole.iter().zip(block.get(at / 8..).unwrap_or_default()) {
            to.store(u64::from_le_bytes(*from), Relaxed);
        }
        let at = at + 8 * words;
        for (from, to) in tail.iter().zip(bytes.get(at..).unwrap_or_default()) {
            to.store(*from, Relaxed);
        }
        Ok(())
    }

    #[inline]
    fn contains(&self, gpa: u64, len: u64) -> bool {
        len == 0 || self.range(gpa, len).is_ok()
    }

    fn load_u16(&self, gpa: u64) -> Result<u16, OutOfRange> {
        if !gpa.is_multiple_of(2) {
            let mut bytes = [0; 2];
            self.read(gpa, &mut bytes)?;
            return Ok(u16::from_le_bytes(bytes));
        }
        let (block, offset) = self.range(gpa, 2)?;
        Views::halves(block).get(offset / 2).map(|half| half.load(Relaxed)).ok_or(OutOfRange)
    }

    fn store_u16(&self, gpa: u64, value: u16) -> Result<(), OutOfRange> {
        if !gpa.is_multiple_of(2) {
            return self.write(gpa, &value.to_le_bytes());
        }
        let (block, offset) = self.range(gpa, 2)?;
        Views::halves(block).get(offset / 2).map(|half| half.store(value, Relaxed)).ok_or(OutOfRange)
    }

    fn load_u32(&self, gpa: u64) -> Result<u32, OutOfRange> {
        if !gpa.is_multiple_of(4) {
            let mut bytes = [0; 4];
            self.read(gpa, &mut bytes)?;
            return Ok(u32::from_le_bytes(bytes));
        }
        let (block, offset) = self.range(gpa, 4)?;
        Views::doubles(block).get(offset / 4).map(|double| double.load(Relaxed)).ok_or(OutOfRange)
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), OutOfRange> {
        if !gpa.is_multiple_of(4) {
            return self.write(gpa, &value.to_le_bytes());
        }
        let (block, offset) = self.range(gpa, 4)?;
        Views::doubles(block).get(offset / 4).map(|double| double.store(value, Relaxed)).ok_or(OutOfRange)
    }

    fn load_u64(&self, gpa: u64) -> Result<u64, OutOfRange> {
        if !gpa.is_multiple_of(8) {
            let mut bytes = [0; 8];
            self.read(gpa, &mut bytes)?;
            return Ok(u64::from_le_bytes(bytes));
        }
        self.word(gpa).ok_or(OutOfRange)
    }

    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), OutOfRange> {
        if !gpa.is_multiple_of(8) {
            return self.write(gpa, &value.to_le_bytes());
        }
        let (block, offset) = self.range(gpa, 8)?;
        block.get(offset / 8).map(|word| word.store(value, Relaxed)).ok_or(OutOfRange)
    }
}

impl vmm_machine::GuestRam for Ram<'_> {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), vmm_machine::OutOfRange> {
        GuestMemory::write(self, gpa, bytes).map_err(|OutOfRange| vmm_machine::OutOfRange { gpa, len: bytes.len() })
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), vmm_machine::OutOfRange> {
        let len = bytes.len();
        GuestMemory::read(self, gpa, bytes).map_err(|OutOfRange| vmm_machine::OutOfRange { gpa, len })
    }

    fn size(&self) -> u64 {
        self.bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn words(count: usize) -> Vec<AtomicU64> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }

    proptest! {
        #[test]
        fn reads_what_was_written_and_nothing_beside(at in 0u64..80, data in prop::collection::vec(any::<u8>(), 0..40)) {
            let low = words(8);
            let ram = Ram::new(&low, &[]);
            let fits = at + data.len() as u64 <= 64;
            prop_assert_eq!(GuestMemory::write(&ram, at, &data).is_ok(), fits);
            let mut all = [0; 64];
            GuestMemory::read(&ram, 0, &mut all).unwrap();
            if fits {
                let mut expected = [0; 64];
                expected[at as usize..][..data.len()].copy_from_slice(&data);
                prop_assert_eq!(all, expected);
                let mut back = std::vec![0; data.len()];
                GuestMemory::read(&ram, at, &mut back).unwrap();
                prop_assert_eq!(back, data);
            } else {
                prop_assert_eq!(all, [0; 64]);
            }
        }

        #[test]
        fn single_accesses_agree_with_copies(at in 0u64..70, value: u64) {
            let low = words(8);
            let ram = Ram::new(&low, &[]);
            prop_assert_eq!(ram.store_u64(at, value).is_ok(), at + 8 <= 64);
            if at + 8 <= 64 {
                prop_assert_eq!(ram.load_u64(at), Ok(value));
                prop_assert_eq!(ram.load_u32(at), Ok(value as u32));
                prop_assert_eq!(ram.load_u16(at + 6), Ok((value >> 48) as u16));
            }
        }
    }

    #[test]
    fn a_rom_ends_at_four_gib_and_is_only_read() {
        let (low, rom) = (words(2), words(2));
        rom[1].store(7, Relaxed);
        let ram = Ram::new(&low, &[]).with_rom(&rom);
        assert_eq!((ram.word(HIGH_RAM_BASE - 1), ram.word(HIGH_RAM_BASE - 9)), (Some(7), Some(0)));
        assert_eq!((ram.word(HIGH_RAM_BASE - 17), ram.word(HIGH_RAM_BASE)), (None, None));
        assert!(GuestMemory::write(&ram, HIGH_RAM_BASE - 8, &[1]).is_err());
        assert!(GuestMemory::read(&ram, HIGH_RAM_BASE - 8, &mut [0]).is_err());
    }

    #[test]
    fn high_memory_begins_at_four_gib() {
        let (low, high) = (words(2), words(2));
        let ram = Ram::new(&low, &high);
        assert!(ram.contains(HIGH_RAM_BASE, 16) && !ram.contains(HIGH_RAM_BASE, 17) && !ram.contains(16, 1));
        ram.store_u32(HIGH_RAM_BASE + 4, 7).unwrap();
        assert_eq!(high[0].load(Relaxed), 7 << 32);
        assert!(GuestMemory::read(&ram, u64::MAX, &mut [0; 2]).is_err());
    }
}
