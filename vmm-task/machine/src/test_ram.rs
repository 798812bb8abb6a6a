//! Guest RAM for tests: pages appear when written, so a test can have gigabytes.

use crate::{GuestRam, OutOfRange, layout};
use std::collections::BTreeMap;

const PAGE: u64 = 4096;

/// Sparse RAM of a given size, split around the hole below 4 GiB as the memory map splits it.
pub struct TestRam {
    size: u64,
    pages: BTreeMap<u64, [u8; PAGE as usize]>,
}

impl TestRam {
    pub fn new(size: u64) -> Self {
        Self { size, pages: BTreeMap::new() }
    }

    fn check(&self, gpa: u64, len: usize) -> Result<(), OutOfRange> {
        let bad = OutOfRange { gpa, len };
        let end = gpa.checked_add(len as u64).ok_or(bad)?;
        let low = self.size.min(layout::LOW_RAM_LIMIT);
        let high_end = layout::HIGH_RAM_BASE + (self.size - low);
        if end <= low || (gpa >= layout::HIGH_RAM_BASE && end <= high_end) { Ok(()) } else { Err(bad) }
    }

    pub fn bytes(&self, gpa: u64, len: usize) -> std::vec::Vec<u8> {
        let mut out = std::vec![0; len];
        self.read(gpa, &mut out).expect("test reads inside RAM");
        out
    }

    pub fn u32(&self, gpa: u64) -> u32 {
        let mut b = [0; 4];
        self.read(gpa, &mut b).expect("test reads inside RAM");
        u32::from_le_bytes(b)
    }

    pub fn u64(&self, gpa: u64) -> u64 {
        let mut b = [0; 8];
        self.read(gpa, &mut b).expect("test reads inside RAM");
        u64::from_le_bytes(b)
    }
}

impl GuestRam for TestRam {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.check(gpa, bytes.len())?;
        let mut at = gpa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = (at % PAGE) as usize;
            let n = rest.len().min(PAGE as usize - offset);
            let page = self.pages.entry(at / PAGE).or_insert([0; PAGE as usize]);
            page[offset..offset + n].copy_from_slice(&rest[..n]);
            rest = &rest[n..];
            at += n as u64;
        }
        Ok(())
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(gpa, bytes.len())?;
        for (i, byte) in bytes.iter_mut().enumerate() {
            let at = gpa + i as u64;
            *byte = self.pages.get(&(at / PAGE)).map_or(0, |p| p[(at % PAGE) as usize]);
        }
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }
}
