//! The files of the system image, a cpio archive in the "newc" format whose data starts on pages (xtask pads the names).

use alloc::{string::String, vec::Vec};

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File<'a> {
    /// Its name.
    pub name: String,
    /// Where its contents begin, in bytes from the start of the archive.
    pub offset: u64,
    /// Its contents.
    pub bytes: &'a [u8],
}

/// All files of an archive, as far as it can be read.
#[must_use]
pub fn files(archive: &[u8]) -> Vec<File<'_>> {
    cpio_reader::iter_files(archive)
        .map(|entry| {
            let bytes = entry.file();
            let offset = (bytes.as_ptr() as usize).wrapping_sub(archive.as_ptr() as usize) as u64;
            File { name: entry.name().trim_end_matches('\0').into(), offset, bytes }
        })
        .collect()
}

/// The file with a name.
#[must_use]
pub fn find<'f, 'a>(files: &'f [File<'a>], name: &str) -> Option<&'f File<'a>> {
    files.iter().find(|file| file.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::format;

    fn entry(name: &str, name_bytes: usize, contents: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let fields = [1, 0o100_644, 0, 0, 1, 0, contents.len(), 0, 0, 0, 0, name_bytes, 0];
        bytes.extend_from_slice(b"070701");
        for field in fields {
            bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        bytes.extend_from_slice(name.as_bytes());
        bytes.resize(110 + name_bytes, 0);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend_from_slice(contents);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    #[test]
    fn padded_names_are_found_where_they_lie() {
        let mut archive = entry("system", 4096 - 110, b"what runs");
        archive.extend(entry("empty", 6, b""));
        archive.extend(entry("TRAILER!!!", 11, b""));
        let files = files(&archive);
        let system = find(&files, "system").unwrap();
        assert_eq!((system.offset, system.bytes), (4096, &b"what runs"[..]));
        assert!(find(&files, "empty").unwrap().bytes.is_empty());
        assert!(find(&files, "sys").is_none());
    }

    #[test]
    fn rubbish_holds_no_files() {
        assert!(files(b"not an archive at all").is_empty());
        let mut cut = entry("system", 4096 - 110, b"what runs");
        cut.truncate(4100);
        assert!(files(&cut).is_empty());
    }
}
