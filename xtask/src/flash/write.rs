//! Copying and reading back, with a digest of what went by.

use sha2::{Digest as _, Sha256};
use std::io::{self, Read, Write};

/// Bytes moved at once: large enough for a stick's erase blocks.
const CHUNK: usize = 1 << 20;

/// Tells one content from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Digest {
    /// Bytes.
    pub length: u64,
    hash: [u8; 32],
}

/// Copies all of `from`; `moved` is told the bytes of each step.
pub fn copy(from: &mut dyn Read, to: &mut dyn Write, moved: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    pass(from, u64::MAX, &mut |chunk| {
        to.write_all(chunk)?;
        moved(chunk.len() as u64);
        Ok(())
    })
}

/// Reads at most `length` bytes of `from`; fewer if it ends before.
pub fn digest(from: &mut dyn Read, length: u64, moved: &mut dyn FnMut(u64)) -> io::Result<Digest> {
    pass(from, length, &mut |chunk| {
        moved(chunk.len() as u64);
        Ok(())
    })
}

fn pass(from: &mut dyn Read, limit: u64, each: &mut dyn FnMut(&[u8]) -> io::Result<()>) -> io::Result<Digest> {
    let mut hash = Sha256::new();
    let mut length = 0_u64;
    let mut buffer = vec![0_u8; CHUNK];
    let mut from = from.take(limit);
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let chunk = buffer.get(..count).unwrap_or(&[]);
        hash.update(chunk);
        each(chunk)?;
        length += count as u64;
    }
    Ok(Digest { length, hash: hash.finalize().into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_copied_has_the_digest_of_what_is_there(
            data in proptest::collection::vec(any::<u8>(), 0..5000),
            flip in any::<proptest::sample::Index>()
        ) {
            let mut there = Vec::new();
            let mut moved = 0;
            let written = copy(&mut data.as_slice(), &mut there, &mut |bytes| moved += bytes).unwrap();
            prop_assert_eq!(&there, &data);
            prop_assert_eq!((moved, written.length), (data.len() as u64, data.len() as u64));
            // A device is longer than the image; what lies behind does not count.
            there.extend_from_slice(b"old content");
            let read = digest(&mut there.as_slice(), data.len() as u64, &mut |_| ()).unwrap();
            prop_assert_eq!(read, written);
            if !data.is_empty() {
                there[flip.index(data.len())] ^= 1;
                let read = digest(&mut there.as_slice(), data.len() as u64, &mut |_| ()).unwrap();
                prop_assert_ne!(read, written);
            }
        }
    }
}
