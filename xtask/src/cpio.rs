//! Archives in cpio's "newc" format (`cpio -H newc`): a system's, whose files start on pages, and the Linux guest's.
//!
//! The kernel hands the archive to the root task as frames, and root maps files from it without copying, so data must be
//! page-aligned within the archive (which is itself loaded on a page). The name field is padded with NULs for that: its
//! length counts them, readers of C strings stop at the first, and readers that keep the field must cut there. Nothing
//! depends on the day or the machine: equal input gives equal bytes.

/// Alignment of each file's data.
pub const PAGE: usize = 4096;
/// Bytes of an entry's header: a magic word of six characters and thirteen numbers of eight.
const HEADER: usize = 110;
/// Kinds of files with the rights they get.
const FILE: u32 = 0o100_444;
const PROGRAM: u32 = 0o100_755;
const FOLDER: u32 = 0o040_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;
/// The entry that ends an archive.
const TRAILER: &str = "TRAILER!!!";

/// An archive being written.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
}

/// A file of 4 GiB or more, which the format cannot hold.
#[derive(Debug, PartialEq, Eq)]
pub struct TooLarge;

impl std::fmt::Display for TooLarge {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("the file is 4 GiB or more, which a cpio archive cannot hold")
    }
}

impl std::error::Error for TooLarge {}

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Archive::default()
    }

    /// Appends a file whose data starts at a multiple of [`PAGE`]; the offset of that data.
    pub fn file(&mut self, name: &str, data: &[u8]) -> Result<usize, TooLarge> {
        let size = u32::try_from(data.len()).map_err(|_| TooLarge)?;
        let start = self.bytes.len();
        let least = start + HEADER + name.len() + 1;
        let data_at = least.next_multiple_of(PAGE);
        // `start` is a multiple of four, so this name field ends where the data begins, without further padding.
        self.header(FILE, size, (0, 0), data_at - start - HEADER);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.resize(data_at, 0);
        self.data(data);
        Ok(data_at)
    }

    /// Appends a program, without alignment.
    pub fn program(&mut self, name: &str, data: &[u8]) -> Result<(), TooLarge> {
        let size = u32::try_from(data.len()).map_err(|_| TooLarge)?;
        self.named(name, PROGRAM, size, (0, 0));
        self.data(data);
        Ok(())
    }

    /// Appends an empty folder; files in it come after it.
    pub fn folder(&mut self, name: &str) {
        self.named(name, FOLDER, 0, (0, 0));
    }

    /// Appends a symbolic link to `target`, which is shorter than 4 GiB.
    pub fn link(&mut self, name: &str, target: &str) {
        self.named(name, LINK, u32::try_from(target.len()).unwrap_or(0), (0, 0));
        self.data(target.as_bytes());
    }

    /// Appends a character device.
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        self.named(name, CHARACTER_DEVICE, 0, (major, minor));
    }

    /// Ends the archive; its bytes, a whole number of pages.
    pub fn finish(mut self) -> Vec<u8> {
        self.named(TRAILER, 0, 0, (0, 0));
        self.bytes.resize(self.bytes.len().next_multiple_of(PAGE), 0);
        self.bytes
    }

    /// Header and name, padded to four bytes.
    fn named(&mut self, name: &str, mode: u32, size: u32, device: (u32, u32)) {
        self.header(mode, size, device, name.len() + 1);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn data(&mut self, data: &[u8]) {
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn header(&mut self, mode: u32, size: u32, device: (u32, u32), name_field: usize) {
        // The trailer is no file: no inode, no link.
        let links = u32::from(mode != 0);
        self.inode += links;
        // A name field is shorter than two pages.
        let name_field = u32::try_from(name_field).unwrap_or(u32::MAX);
        let numbers = [self.inode * links, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_field, 0];
        self.bytes.extend_from_slice(b"070701");
        for number in numbers {
            self.bytes.extend_from_slice(format!("{number:08x}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
        cpio_reader::iter_files(archive)
            .map(|entry| (entry.name().trim_end_matches('\0').to_owned(), entry.file().to_vec()))
            .collect()
    }

    #[test]
    fn the_same_files_give_the_same_bytes() {
        let make = || {
            let mut archive = Archive::new();
            archive.file("root", b"abc").unwrap();
            archive.finish()
        };
        assert_eq!(make(), make());
    }

    #[test]
    fn an_empty_archive_is_a_trailer() {
        assert_eq!(read(&Archive::new().finish()), vec![]);
    }

    proptest! {
        #[test]
        fn files_read_back_from_page_boundaries(
            files in proptest::collection::vec(("[a-z0-9-]{1,40}", proptest::collection::vec(any::<u8>(), 0..9000)), 0..6)
        ) {
            let mut archive = Archive::new();
            let mut offsets = Vec::new();
            for (name, data) in &files {
                offsets.push(archive.file(name, data).unwrap());
            }
            let bytes = archive.finish();
            prop_assert_eq!(bytes.len() % PAGE, 0);
            prop_assert_eq!(&read(&bytes), &files);
            for (offset, (_, data)) in offsets.iter().zip(&files) {
                prop_assert_eq!(offset % PAGE, 0);
                prop_assert_eq!(&bytes[*offset..offset + data.len()], data.as_slice());
            }
        }
    }
}
