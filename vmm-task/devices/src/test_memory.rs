//! Guest memory for tests.

use crate::traits::{GuestMemory, OutOfRange};
use alloc::vec::Vec;
use std::sync::Arc;
use std::sync::Mutex;

/// RAM from 0 on.
#[derive(Clone)]
pub struct Ram(pub Arc<Mutex<Vec<u8>>>);

impl Ram {
    pub fn new(size: usize) -> Self {
        Self(Arc::new(Mutex::new(alloc::vec![0; size])))
    }

    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        self.0.lock().unwrap()[gpa as usize..gpa as usize + len].to_vec()
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), OutOfRange> {
        if !self.contains(gpa, out.len() as u64) {
            return Err(OutOfRange);
        }
        out.copy_from_slice(&self.0.lock().unwrap()[gpa as usize..gpa as usize + out.len()]);
        Ok(())
    }
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), OutOfRange> {
        if !self.contains(gpa, data.len() as u64) {
            return Err(OutOfRange);
        }
        self.0.lock().unwrap()[gpa as usize..gpa as usize + data.len()].copy_from_slice(data);
        Ok(())
    }
    fn contains(&self, gpa: u64, len: u64) -> bool {
        gpa.checked_add(len).is_some_and(|end| end <= self.0.lock().unwrap().len() as u64)
    }
}
