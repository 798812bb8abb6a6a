//! Guest memory from address 0 on.

use std::cell::RefCell;
use std::ops::Range;
use vmm_devices::traits::{GuestMemory, OutOfRange};
use vmm_machine::GuestRam;

/// So many bytes.
pub struct Memory(RefCell<Vec<u8>>);

impl Memory {
    /// Zeroed memory.
    pub fn new(size: usize) -> Self {
        Memory(RefCell::new(vec![0; size]))
    }

    /// Memory with these bytes in it.
    pub fn holding(bytes: Vec<u8>) -> Self {
        Memory(RefCell::new(bytes))
    }

    /// The eight bytes at a multiple of eight.
    pub fn word(&self, gpa: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        GuestMemory::read(self, gpa & !7, &mut bytes).ok()?;
        Some(u64::from_le_bytes(bytes))
    }

    fn range(&self, gpa: u64, len: usize) -> Option<Range<usize>> {
        let from = usize::try_from(gpa).ok()?;
        let to = from.checked_add(len)?;
        (to <= self.0.borrow().len()).then_some(from..to)
    }
}

impl GuestMemory for Memory {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        let range = self.range(gpa, out.len()).ok_or(OutOfRange)?;
        out.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), OutOfRange> {
        let range = self.range(gpa, data.len()).ok_or(OutOfRange)?;
        self.0.borrow_mut()[range].copy_from_slice(data);
        Ok(())
    }

    fn contains(&self, gpa: u64, len: u64) -> bool {
        usize::try_from(len).is_ok_and(|len| self.range(gpa, len).is_some())
    }
}

impl GuestRam for Memory {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), vmm_machine::OutOfRange> {
        GuestMemory::write(self, gpa, bytes).map_err(|OutOfRange| vmm_machine::OutOfRange { gpa, len: bytes.len() })
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), vmm_machine::OutOfRange> {
        let len = bytes.len();
        GuestMemory::read(self, gpa, bytes).map_err(|OutOfRange| vmm_machine::OutOfRange { gpa, len })
    }

    fn size(&self) -> u64 {
        self.0.borrow().len() as u64
    }
}
