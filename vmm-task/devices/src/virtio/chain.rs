//! A descriptor chain whose every segment has been checked to be guest RAM.

use crate::traits::{GuestMemory, OutOfRange, Segment};
use alloc::vec::Vec;

/// A chain taken from a queue: first what the device may read, then what it may write.
#[derive(Clone, Debug, Default)]
pub struct Chain {
    pub(super) head: u16,
    pub(super) segments: Vec<Segment>,
    /// How many of the segments are readable.
    pub(super) readable: usize,
}

impl Chain {
    /// An empty chain, to be filled by [`super::Queue::pop`]. It keeps its memory for the next one.
    #[must_use]
    pub const fn new() -> Self {
        Self { head: 0, segments: Vec::new(), readable: 0 }
    }

    /// What the chain is given back by.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// The segments that the device may read.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or(&[])
    }

    /// The segments that the device may write.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or(&[])
    }
}

/// Bytes in all segments together; a chain never has 4 GiB.
#[must_use]
pub fn total(segments: &[Segment]) -> u64 {
    segments.iter().map(|s| u64::from(s.len)).sum()
}

/// Puts bytes `offset` to `offset + len` of the segments, as segments, into `out`; less if there is less.
pub fn slice(segments: &[Segment], mut offset: u64, mut len: u64, out: &mut Vec<Segment>) {
    out.clear();
    for s in segments {
        let size = u64::from(s.len);
        if len == 0 {
            break;
        }
        if offset >= size {
            offset -= size;
            continue;
        }
        let n = (size - offset).min(len);
        out.push(Segment { gpa: s.gpa + offset, len: n as u32, writable: s.writable });
        offset = 0;
        len -= n;
    }
}

/// Copies from the segments, from byte `offset` on, into `out`; says how many bytes there were.
///
/// # Errors
/// [`OutOfRange`] if guest memory has shrunk meanwhile.
pub fn read(
    segments: &[Segment],
    mut offset: u64,
    out: &mut [u8],
    memory: &dyn GuestMemory,
) -> Result<usize, OutOfRange> {
    let mut done = 0;
    for s in segments {
        let size = u64::from(s.len);
        if offset >= size {
            offset -= size;
            continue;
        }
        let rest = out.get_mut(done..).unwrap_or(&mut []);
        let n = (size - offset).min(rest.len() as u64) as usize;
        if n == 0 {
            break;
        }
        memory.read(s.gpa + offset, &mut rest[..n])?;
        offset = 0;
        done += n;
    }
    Ok(done)
}

/// Copies `data` into the segments from byte `offset` on; says how many bytes found room.
///
/// # Errors
/// [`OutOfRange`] if guest memory has shrunk meanwhile.
pub fn write(
    segments: &[Segment],
    mut offset: u64,
    data: &[u8],
    memory: &dyn GuestMemory,
) -> Result<usize, OutOfRange> {
    let mut done = 0;
    for s in segments {
        let size = u64::from(s.len);
        if offset >= size {
            offset -= size;
            continue;
        }
        let rest = data.get(done..).unwrap_or(&[]);
        let n = (size - offset).min(rest.len() as u64) as usize;
        if n == 0 {
            break;
        }
        memory.write(s.gpa + offset, &rest[..n])?;
        offset = 0;
        done += n;
    }
    Ok(done)
}
