//! Programs: the segments of an ELF file, checked.

use alloc::vec::Vec;
use core::fmt;
use elf::{ElfBytes, abi, endian::LittleEndian};
use moira_abi::{PAGE, USER_END};

/// What a segment may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read.
    Read,
    /// Read and write.
    Write,
    /// Read and execute.
    Execute,
}

/// A segment, rounded to pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment<'a> {
    /// First page.
    pub address: u64,
    /// Bytes, a multiple of the page.
    pub length: u64,
    /// Where in it the file's bytes begin.
    pub offset: u64,
    /// Where in the file these begin.
    pub at: u64,
    /// The file's bytes; the rest is zero.
    pub bytes: &'a [u8],
    /// What it may do.
    pub access: Access,
}

impl Segment<'_> {
    /// Where in the file the pages lie that all tasks made from it can share: what nobody may write, and what the file holds from the
    /// first byte of a page to the last. What follows the segment in its last page is the same file's.
    #[must_use]
    pub fn shareable(&self, file_bytes: u64) -> Option<core::ops::Range<u64>> {
        let end = self.at.checked_add(self.length)?;
        let whole = self.bytes.len().next_multiple_of(PAGE as usize) as u64 == self.length;
        let aligned = self.offset == 0 && self.at.is_multiple_of(PAGE);
        (self.access != Access::Write && whole && aligned && end <= file_bytes).then_some(self.at..end)
    }
}

/// A program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image<'a> {
    /// First instruction.
    pub entry: u64,
    /// Its segments, by address, disjoint.
    pub segments: Vec<Segment<'a>>,
}

/// Why a file is no program for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// Not an ELF file that can be read.
    NotElf,
    /// For another machine, or not linked to fixed addresses.
    WrongKind,
    /// A segment that could be written and executed.
    WritableCode,
    /// Segments that overlap, lie outside user space or outside the file.
    BadSegment,
}

impl fmt::Display for ImageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ImageError::NotElf => "not an ELF file",
            ImageError::WrongKind => "not a program for this machine",
            ImageError::WritableCode => "a segment is both writable and executable",
            ImageError::BadSegment => "a segment overlaps another, or lies outside of the file or of user space",
        })
    }
}

/// Reads a program. `limit`: the first address that is not for images.
///
/// # Errors
/// [`ImageError`].
pub fn read(file: &[u8], limit: u64) -> Result<Image<'_>, ImageError> {
    let elf = ElfBytes::<LittleEndian>::minimal_parse(file).map_err(|_| ImageError::NotElf)?;
    if elf.ehdr.e_machine != abi::EM_X86_64 || elf.ehdr.e_type != abi::ET_EXEC {
        return Err(ImageError::WrongKind);
    }
    let mut segments = Vec::new();
    for header in elf.segments().ok_or(ImageError::NotElf)?.iter() {
        if header.p_type != abi::PT_LOAD || header.p_memsz == 0 {
            continue;
        }
        let access = match (header.p_flags & abi::PF_W != 0, header.p_flags & abi::PF_X != 0) {
            (true, true) => return Err(ImageError::WritableCode),
            (true, false) => Access::Write,
            (false, true) => Access::Execute,
            (false, false) => Access::Read,
        };
        let address = header.p_vaddr & !(PAGE - 1);
        let end = header.p_vaddr.checked_add(header.p_memsz).and_then(|end| end.checked_next_multiple_of(PAGE));
        let end = end.filter(|end| *end <= limit.min(USER_END)).ok_or(ImageError::BadSegment)?;
        if address == 0 || header.p_filesz > header.p_memsz {
            return Err(ImageError::BadSegment);
        }
        let bytes = usize::try_from(header.p_offset)
            .ok()
            .zip(usize::try_from(header.p_filesz).ok())
            .and_then(|(start, length)| file.get(start..start.checked_add(length)?))
            .ok_or(ImageError::BadSegment)?;
        let (offset, at) = (header.p_vaddr - address, header.p_offset);
        segments.push(Segment { address, length: end - address, offset, at, bytes, access });
    }
    segments.sort_by_key(|segment| segment.address);
    let overlap =
        segments.iter().zip(segments.iter().skip(1)).any(|(one, next)| one.address + one.length > next.address);
    let inside = |segment: &Segment| (segment.address..segment.address + segment.length).contains(&elf.ehdr.e_entry);
    if overlap || !segments.iter().any(|segment| segment.access == Access::Execute && inside(segment)) {
        return Err(ImageError::BadSegment);
    }
    Ok(Image { entry: elf.ehdr.e_entry, segments })
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    /// An ELF file with these program headers: (flags, offset, address, bytes in the file, bytes in memory).
    fn file(headers: &[(u32, u64, u64, u64, u64)], entry: u64) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..16].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes[16..20].copy_from_slice(&[2, 0, 62, 0]);
        bytes[20] = 1;
        bytes[24..32].copy_from_slice(&entry.to_le_bytes());
        bytes[32] = 64;
        bytes[52..58].copy_from_slice(&[64, 0, 56, 0, headers.len() as u8, 0]);
        for (flags, offset, address, in_file, in_memory) in headers {
            bytes.extend_from_slice(&1u32.to_le_bytes());
            bytes.extend_from_slice(&flags.to_le_bytes());
            for word in [offset, address, address, in_file, in_memory, &4096] {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
        }
        bytes.resize(0x3000, 0xab);
        bytes
    }

    const LIMIT: u64 = 0x7000_0000;

    #[test]
    fn segments_are_rounded_to_pages() {
        let bytes = file(&[(5, 0x1000, 0x20_0000, 0x800, 0x800), (6, 0x1800, 0x20_1800, 0x10, 0x2000)], 0x20_0010);
        let image = read(&bytes, LIMIT).unwrap();
        assert_eq!(image.segments.len(), 2);
        let data = &image.segments[1];
        assert_eq!((data.address, data.length, data.offset, data.bytes.len()), (0x20_1000, 0x3000, 0x800, 0x10));
        assert_eq!(data.access, Access::Write);
    }

    #[test]
    fn whole_pages_that_nobody_writes_are_shared() {
        let bytes = file(&[(5, 0x1000, 0x20_0000, 0x800, 0x800), (6, 0x2000, 0x20_1000, 0x800, 0x800)], 0x20_0010);
        let image = read(&bytes, LIMIT).unwrap();
        assert_eq!(image.segments[0].shareable(bytes.len() as u64), Some(0x1000..0x2000));
        assert_eq!(image.segments[0].shareable(0x1fff), None, "what follows is another file's");
        assert_eq!(image.segments[1].shareable(bytes.len() as u64), None, "writable");
        let zeroed = file(&[(5, 0x1000, 0x20_0000, 0x800, 0x1800)], 0x20_0010);
        assert_eq!(read(&zeroed, LIMIT).unwrap().segments[0].shareable(0x3000), None, "a page of zeroes");
        let moved = file(&[(5, 0x1800, 0x20_0800, 0x800, 0x800)], 0x20_0810);
        assert_eq!(read(&moved, LIMIT).unwrap().segments[0].shareable(0x3000), None, "not from a page's first byte");
    }

    #[test]
    fn what_cannot_be_run_is_refused() {
        let text = (5, 0x1000, 0x20_0000, 0x800, 0x800);
        let refused = |headers: &[_], entry| read(&file(headers, entry), LIMIT).unwrap_err();
        assert_eq!(read(b"#!/bin/sh", LIMIT), Err(ImageError::NotElf));
        assert_eq!(refused(&[(7, 0x1000, 0x20_0000, 8, 8)], 0x20_0000), ImageError::WritableCode);
        assert_eq!(refused(&[text], 0x30_0000), ImageError::BadSegment);
        assert_eq!(refused(&[text, (6, 0, 0x20_0800, 8, 8)], 0x20_0000), ImageError::BadSegment);
        assert_eq!(refused(&[text, (6, 0x2ff9, 0x30_0000, 8, 8)], 0x20_0000), ImageError::BadSegment);
        assert_eq!(refused(&[text, (6, 0, u64::MAX - 4, 0, 8)], 0x20_0000), ImageError::BadSegment);
        assert_eq!(refused(&[text, (6, 0, 0x10, 0, 8)], 0x20_0000), ImageError::BadSegment);
        assert_eq!(refused(&[text, (6, 0, 0x30_0000, 9, 8)], 0x20_0000), ImageError::BadSegment);
    }

    proptest! {
        #[test]
        fn damaged_files_are_refused_or_make_sense(at in 0usize..176, value: u8) {
            let mut bytes = file(&[(5, 0x1000, 0x20_0000, 0x800, 0x800), (6, 0x1800, 0x20_1800, 0x10, 0x2000)], 0x20_0010);
            bytes[at] = value;
            if let Ok(image) = read(&bytes, LIMIT) {
                for segment in &image.segments {
                    prop_assert!(segment.offset + segment.bytes.len() as u64 <= segment.length);
                    prop_assert!(segment.address + segment.length <= LIMIT);
                }
            }
        }
    }
}
