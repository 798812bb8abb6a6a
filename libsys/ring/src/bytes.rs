//! A stream of bytes over a queue: each entry carries up to seven.

use crate::{Consumer, LayoutError, PeerMisbehaved, Producer, PushError, Word};
use core::sync::atomic::AtomicU32;

/// Bytes of one entry; the entry's lowest byte says how many.
const EACH: usize = 7;

/// The writing side of a stream.
pub struct Writer<'a, W = AtomicU32>(Producer<'a, u64, W>);

/// The reading side of a stream.
pub struct Reader<'a, W = AtomicU32>(Consumer<'a, u64, W>);

impl<'a, W: Word> Writer<'a, W> {
    /// The writer of a new stream, as for [`Producer::new`].
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(words: &'a [W], capacity: u32) -> Result<Self, LayoutError> {
        Producer::new(words, capacity).map(Writer)
    }

    /// Writes as many bytes as there is room for; how many.
    ///
    /// # Errors
    /// The reader broke the protocol.
    pub fn write(&mut self, bytes: &[u8]) -> Result<usize, PeerMisbehaved> {
        let mut written = 0;
        for chunk in bytes.chunks(EACH) {
            let first = chunk.len() as u64;
            let entry = chunk.iter().rev().fold(0, |entry, byte| entry << 8 | u64::from(*byte)) << 8 | first;
            match self.0.push(entry) {
                Ok(()) => written += chunk.len(),
                Err(PushError::Full) => break,
                Err(PushError::Peer(error)) => return Err(error),
            }
        }
        Ok(written)
    }
}

impl<'a, W: Word> Reader<'a, W> {
    /// The reader of a new stream, as for [`Consumer::new`].
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn new(words: &'a [W], capacity: u32) -> Result<Self, LayoutError> {
        Consumer::new(words, capacity).map(Reader)
    }

    /// Hands bytes to `take`, of one entry at a time and of `entries` at most.
    ///
    /// # Errors
    /// The writer broke the protocol.
    pub fn read(&mut self, entries: u32, mut take: impl FnMut(&[u8])) -> Result<(), PeerMisbehaved> {
        for _ in 0..entries {
            let Some(entry) = self.0.pop()? else { break };
            let [count, bytes @ ..] = entry.to_le_bytes();
            take(bytes.get(..usize::from(count).min(EACH)).unwrap_or_default());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn bytes_come_out_as_they_went_in() {
        let words: Vec<AtomicU32> = (0..crate::words_needed::<u64>(4).unwrap()).map(|_| AtomicU32::new(0)).collect();
        let (mut writer, mut reader) = (Writer::new(&words, 4).unwrap(), Reader::new(&words, 4).unwrap());
        let all: Vec<u8> = (0..100).collect();
        let (mut got, mut rest) = (Vec::new(), &all[..]);
        for _ in 0..20 {
            rest = &rest[writer.write(rest).unwrap()..];
            reader.read(3, |bytes| got.extend_from_slice(bytes)).unwrap();
        }
        assert_eq!(got, all);
    }
}
