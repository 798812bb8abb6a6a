//! Makes a program smaller for the archive: what the loader does not read (symbols, debug lines) stays in `target/`.

/// Bytes of an ELF64 header and of one program header.
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(N)?)?;
    Some(field.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// The program up to the end of its last segment, without section headers; none if `image` is no little-endian ELF64
/// program or its headers point outside the file.
pub fn loadable(image: &[u8]) -> Option<Vec<u8>> {
    if image.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = usize::try_from(number::<8>(image, 32)?).ok()?;
    let count = usize::try_from(number::<2>(image, 56)?).ok()?;
    if number::<2>(image, 54)? != PROGRAM_HEADER as u64 || count == 0 {
        return None;
    }
    let mut end = HEADER.max(table.checked_add(count * PROGRAM_HEADER)?);
    for index in 0..count {
        let header = table + index * PROGRAM_HEADER;
        let offset = usize::try_from(number::<8>(image, header + 8)?).ok()?;
        let length = usize::try_from(number::<8>(image, header + 32)?).ok()?;
        end = end.max(offset.checked_add(length)?);
    }
    let mut small = image.get(..end)?.to_vec();
    // Section headers: offset, entry size, count and the index of the names.
    small.get_mut(40..48)?.fill(0);
    small.get_mut(58..64)?.fill(0);
    Some(small)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A program of one segment of 16 bytes at 128, then junk.
    fn program() -> Vec<u8> {
        let mut image = vec![0; 400];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[32] = 64;
        image[40] = 200;
        image[54] = 56;
        image[56] = 1;
        image[60] = 3;
        image[64 + 8] = 128;
        image[64 + 32] = 16;
        image
    }

    #[test]
    fn keeps_segments_and_forgets_sections() {
        let small = loadable(&program()).unwrap();
        assert_eq!(small.len(), 144);
        assert!(small[40..48].iter().chain(&small[58..64]).all(|byte| *byte == 0));
    }

    #[test]
    fn refuses_what_is_no_program() {
        assert_eq!(loadable(b"#!/bin/sh"), None);
        let mut outside = program();
        outside[64 + 8 + 4] = 1;
        assert_eq!(loadable(&outside), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 6..300)) {
            bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
            let _ = loadable(&bytes);
        }
    }
}
