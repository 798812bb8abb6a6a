//! Memory that others write too: a thread's message buffer.

use core::ptr::NonNull;
use moira_abi::{PAGE, fault::Registers};

/// A thread's message buffer: one page that the kernel fills when a message with bytes arrives. It belongs to one thread, and so
/// does this value.
///
/// Bytes are copied in and out: no reference into the page is ever made, because the kernel may write it at any system call.
#[derive(Debug)]
pub struct MessageBuffer {
    base: NonNull<u8>,
}

// SAFETY: the value is the only access to its page (see `new`); moving it to the thread that the page was configured for
// moves that access.
unsafe impl Send for MessageBuffer {}

impl MessageBuffer {
    /// Bytes of a buffer.
    pub const BYTES: usize = PAGE as usize;

    /// The buffer at `address`.
    ///
    /// # Safety
    /// `address` is page-aligned and not 0; a page is mapped there, readable and writable, for as long as the value lives; it is
    /// the buffer of the thread that uses this value, and no other value or reference covers it.
    #[must_use]
    pub const unsafe fn new(address: u64) -> MessageBuffer {
        // SAFETY: not null by this function's contract.
        let base = unsafe { NonNull::new_unchecked(address as *mut u8) };
        MessageBuffer { base }
    }

    /// Copies `bytes` to the start of the buffer, at most [`Self::BYTES`]; answers how many. That number goes into
    /// [`Message::bytes`](crate::Message::bytes).
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        self.write_at(0, bytes)
    }

    /// Copies `bytes` to `offset` as far as the page goes; answers how many were copied.
    pub fn write_at(&mut self, offset: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(Self::BYTES.saturating_sub(offset));
        if count > 0 {
            // SAFETY: `offset + count` is within the page, which is mapped and writable and not part of any Rust slice.
            unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.as_ptr().add(offset), count) };
        }
        count
    }

    /// Copies the buffer's start to `bytes`; answers how many bytes were copied. What a message brought is
    /// [`Received::bytes`](crate::Received::bytes) long: cut `bytes` to that.
    pub fn read(&self, bytes: &mut [u8]) -> usize {
        self.read_at(0, bytes)
    }

    /// Copies from `offset` as far as the page goes; answers how many bytes were copied.
    pub fn read_at(&self, offset: usize, bytes: &mut [u8]) -> usize {
        let count = bytes.len().min(Self::BYTES.saturating_sub(offset));
        if count > 0 {
            // SAFETY: as in `write_at`, for reading.
            unsafe { core::ptr::copy_nonoverlapping(self.base.as_ptr().add(offset), bytes.as_mut_ptr(), count) };
        }
        count
    }

    /// The 64-bit word number `index`; 0 beyond the page.
    #[must_use]
    pub fn word(&self, index: usize) -> u64 {
        let mut bytes = [0; 8];
        self.read_at(index.saturating_mul(8), &mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// Sets the 64-bit word number `index`; beyond the page nothing happens.
    pub fn set_word(&mut self, index: usize, value: u64) {
        self.write_at(index.saturating_mul(8), &value.to_le_bytes());
    }

    pub(crate) fn registers(&self) -> Registers {
        let mut registers = Registers::default();
        for (index, register) in registers.gpr.iter_mut().enumerate() {
            *register = self.word(index);
        }
        registers.rip = self.word(16);
        registers.rflags = self.word(17);
        registers
    }

    pub(crate) fn set_registers(&mut self, registers: &Registers) {
        for (index, register) in registers.gpr.iter().enumerate() {
            self.set_word(index, *register);
        }
        self.set_word(16, registers.rip);
        self.set_word(17, registers.rflags);
    }
}
