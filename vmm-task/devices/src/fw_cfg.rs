//! The firmware configuration device: named files that firmware reads by port or by DMA (QEMU's `fw_cfg`, whose
//! interface SeaBIOS and OVMF know; docs/specs/fw_cfg of that project).

use crate::traits::GuestMemory;
use alloc::vec::Vec;

const KEY_SIGNATURE: u16 = 0x00;
const KEY_ID: u16 = 0x01;
const KEY_CPUS: u16 = 0x05;
const KEY_MAX_CPUS: u16 = 0x0F;
const KEY_DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
/// Longest name of a file.
pub const NAME_MAX: usize = 55;
/// Most files.
pub const FILES_MAX: usize = 64;
/// Longest transfer by DMA in one access.
const DMA_MAX: u32 = 1 << 20;
const SIGNATURE: [u8; 8] = *b"QEMU CFG";

const DMA_ERROR: u32 = 1;
const DMA_READ: u32 = 2;
const DMA_SKIP: u32 = 4;
const DMA_SELECT: u32 = 8;
const DMA_WRITE: u32 = 16;

struct File {
    name: [u8; NAME_MAX + 1],
    data: Vec<u8>,
}

/// The name is too long or empty, or there are too many files, or one is too large.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// The device.
#[derive(Default)]
pub struct FwCfg {
    cpus: u16,
    files: Vec<File>,
    directory: Vec<u8>,
    selected: u16,
    position: usize,
    dma_high: u32,
}

impl FwCfg {
    /// Without files; `cpus` is what firmware shall wait for.
    #[must_use]
    pub fn new(cpus: u16) -> Self {
        let mut f = Self { cpus, ..Self::default() };
        f.list();
        f
    }

    /// Adds a file, or replaces the one of that name.
    ///
    /// # Errors
    /// [`Refused`]: nothing was changed.
    pub fn add(&mut self, name: &str, data: Vec<u8>) -> Result<(), Refused> {
        if name.is_empty() || name.len() > NAME_MAX || u32::try_from(data.len()).is_err() {
            return Err(Refused);
        }
        let mut bytes = [0; NAME_MAX + 1];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        if let Some(f) = self.files.iter_mut().find(|f| f.name == bytes) {
            f.data = data;
        } else if self.files.len() < FILES_MAX {
            self.files.push(File { name: bytes, data });
        } else {
            return Err(Refused);
        }
        self.list();
        Ok(())
    }

    /// Gives a file that is there other contents of the same size, which firmware may have read from the directory already.
    ///
    /// # Errors
    /// [`Refused`]: there is no such file, or its size would change.
    pub fn replace(&mut self, name: &str, data: Vec<u8>) -> Result<(), Refused> {
        let named = |f: &&mut File| f.name.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.first() == Some(&0));
        match self.files.iter_mut().find(named) {
            Some(f) if f.data.len() == data.len() => {
                f.data = data;
                Ok(())
            }
            _ => Err(Refused),
        }
    }

    /// Writes the directory anew.
    fn list(&mut self) {
        self.directory.clear();
        self.directory.extend_from_slice(&(self.files.len() as u32).to_be_bytes());
        for (key, f) in (FIRST_FILE..).zip(&self.files) {
            self.directory.extend_from_slice(&(f.data.len() as u32).to_be_bytes());
            self.directory.extend_from_slice(&key.to_be_bytes());
            self.directory.extend_from_slice(&[0; 2]);
            self.directory.extend_from_slice(&f.name);
        }
    }

    /// Nothing selected, as after power-on; files stay.
    pub fn reset(&mut self) {
        (self.selected, self.position, self.dma_high) = (0, 0, 0);
    }

    /// Copies from the selected item into `out`, zeros beyond its end, and moves on.
    fn take(&mut self, out: &mut [u8]) {
        let cpus = self.cpus.to_le_bytes();
        let item: &[u8] = match self.selected {
            KEY_SIGNATURE => b"QEMU",
            // Traditional interface and DMA.
            KEY_ID => &[3, 0, 0, 0],
            KEY_CPUS | KEY_MAX_CPUS => &cpus,
            KEY_DIRECTORY => &self.directory,
            key => key.checked_sub(FIRST_FILE).and_then(|i| self.files.get(usize::from(i))).map_or(&[], |f| &f.data),
        };
        let rest = item.get(self.position..).unwrap_or(&[]);
        let n = rest.len().min(out.len());
        let (filled, beyond) = out.split_at_mut(n);
        filled.copy_from_slice(&rest[..n]);
        beyond.fill(0);
        self.position = self.position.saturating_add(out.len());
    }

    fn select(&mut self, key: u16) {
        (self.selected, self.position) = (key, 0);
    }

    /// A read of 1, 2 or 4 bytes at 510h + `offset`.
    pub fn read(&mut self, offset: u16, size: u8) -> u32 {
        match offset {
            1 => {
                let mut b = [0];
                self.take(&mut b);
                u32::from(b[0])
            }
            4..=11 => (0..u16::from(size.min(4))).fold(0, |v, i| {
                let b = SIGNATURE.get(usize::from(offset + i - 4)).copied().unwrap_or(0);
                v | u32::from(b) << (8 * i)
            }),
            _ => 0,
        }
    }

    /// A write of 1, 2 or 4 bytes at 510h + `offset`.
    pub fn write(&mut self, offset: u16, size: u8, value: u32, memory: &dyn GuestMemory) {
        match (offset, size) {
            (0, 2) => self.select(value as u16),
            (4, 4) => self.dma_high = value.swap_bytes(),
            (8, 4) => {
                let at = u64::from(core::mem::take(&mut self.dma_high)) << 32 | u64::from(value.swap_bytes());
                self.dma(at, memory);
            }
            _ => {}
        }
    }

    /// Does what the structure at `at` says, and tells there how it went.
    fn dma(&mut self, at: u64, memory: &dyn GuestMemory) {
        let mut raw = [0; 16];
        if memory.read(at, &mut raw).is_err() {
            return;
        }
        let [c0, c1, c2, c3, l0, l1, l2, l3, address @ ..] = raw;
        let (control, length) = (u32::from_be_bytes([c0, c1, c2, c3]), u32::from_be_bytes([l0, l1, l2, l3]));
        if control & DMA_SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let done = if control & DMA_READ != 0 {
            self.dma_read(u64::from_be_bytes(address), length, memory)
        } else if control & DMA_SKIP != 0 {
            self.position = self.position.saturating_add(length as usize);
            true
        } else {
            // No item can be written.
            control & DMA_WRITE == 0
        };
        let answer = if done { 0 } else { DMA_ERROR };
        // The structure was readable a moment ago; a guest that has lost it loses the answer.
        let _ = memory.write(at, &answer.to_be_bytes());
    }

    fn dma_read(&mut self, mut gpa: u64, length: u32, memory: &dyn GuestMemory) -> bool {
        if length > DMA_MAX || !memory.contains(gpa, u64::from(length)) {
            return false;
        }
        let mut left = length as usize;
        while left > 0 {
            let mut buffer = [0; 512];
            let n = left.min(buffer.len());
            let part = &mut buffer[..n];
            self.take(part);
            if memory.write(gpa, part).is_err() {
                return false;
            }
            gpa += n as u64;
            left -= n;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_memory::Ram;
    use proptest::prelude::*;
    use std::vec;

    fn device() -> FwCfg {
        let mut f = FwCfg::new(2);
        f.add("etc/e820", vec![1, 2, 3]).unwrap();
        f.add("etc/acpi/rsdp", (0..=255).collect()).unwrap();
        f
    }

    #[test]
    fn by_port() {
        let (mut f, ram) = (device(), Ram::new(4096));
        let mut read = |key: u32, n: usize| {
            f.write(0, 2, key, &ram);
            (0..n).map(|_| f.read(1, 1) as u8).collect::<Vec<_>>()
        };
        assert_eq!(read(0, 5), b"QEMU\0");
        assert_eq!(read(5, 2), [2, 0]);
        let d = read(0x19, 4 + 128);
        assert_eq!((&d[..12], &d[12..20]), (&[0, 0, 0, 2, 0, 0, 0, 3, 0, 0x20, 0, 0][..], &b"etc/e820"[..]));
        assert_eq!(read(0x20, 4), [1, 2, 3, 0]);
        assert_eq!(read(0x22, 1), [0]);
    }

    #[test]
    fn by_dma() {
        let (mut f, ram) = (device(), Ram::new(4096));
        assert_eq!((f.read(4, 4).to_le_bytes(), f.read(8, 4).to_le_bytes()), (*b"QEMU", *b" CFG"));
        let mut go = |control: u32, length: u32, address: u64| {
            ram.write(0x100, &control.to_be_bytes()).unwrap();
            ram.write(0x104, &length.to_be_bytes()).unwrap();
            ram.write(0x108, &address.to_be_bytes()).unwrap();
            f.write(4, 4, 0, &ram);
            f.write(8, 4, 0x100u32.swap_bytes(), &ram);
            u32::from_be_bytes(ram.bytes(0x100, 4).try_into().unwrap())
        };
        assert_eq!(go(0x21 << 16 | DMA_SELECT | DMA_SKIP, 10, 0), 0);
        assert_eq!(go(DMA_READ, 4, 0x200), 0);
        assert_eq!(ram.bytes(0x200, 4), [10, 11, 12, 13]);
        assert_eq!(go(DMA_READ, 300, 0x200), 0);
        assert_eq!((ram.bytes(0x200 + 241, 1), ram.bytes(0x200 + 242, 1)), (vec![255], vec![0]));
        assert_eq!(go(DMA_READ, 5000, 0x200), DMA_ERROR);
        assert_eq!(go(DMA_READ, 4, u64::MAX), DMA_ERROR);
        assert_eq!(go(DMA_WRITE, 4, 0x200), DMA_ERROR);
    }

    #[test]
    fn contents_are_replaced_but_sizes_stay() {
        let (mut f, ram) = (device(), Ram::new(4096));
        assert_eq!(f.replace("etc/e820", vec![4, 5, 6]), Ok(()));
        assert_eq!(f.replace("etc/e820", vec![4]), Err(Refused));
        assert_eq!(f.replace("etc/e82", vec![4, 5, 6]), Err(Refused));
        f.write(0, 2, 0x20, &ram);
        assert_eq!([f.read(1, 1), f.read(1, 1), f.read(1, 1), f.read(1, 1)], [4, 5, 6, 0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let mut f = device();
        assert_eq!(f.add("", vec![]), Err(Refused));
        assert_eq!(f.add(&"x".repeat(56), vec![]), Err(Refused));
        for i in 0..FILES_MAX - 2 {
            f.add(&std::format!("{i}"), vec![]).unwrap();
        }
        assert_eq!(f.add("more", vec![]), Err(Refused));
        assert_eq!(f.add("etc/e820", vec![9]), Ok(()));
    }

    proptest! {
        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((any::<bool>(), 0u16..14, 0u8..5, any::<u32>(), any::<[u8; 16]>()), 0..200)) {
            let (mut f, ram) = (device(), Ram::new(4096));
            for (w, o, s, v, dma) in ops {
                ram.write(u64::from(v.swap_bytes() & 0xFF0), &dma).unwrap();
                if w { f.write(o, s, v & 0xF00F_0000, &ram); } else { f.read(o, s); }
            }
        }
    }
}
