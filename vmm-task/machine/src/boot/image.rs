//! What an image is, by its content: which protocol boots it, or what it is in place of a kernel.

use super::{multiboot, multiboot2};
use core::fmt;

/// A boot protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// A bzImage.
    Linux,
    /// An ELF file, with a PVH note or without.
    Elf,
    /// Multiboot 1, in an ELF file or by the addresses in its header.
    Multiboot,
    /// Multiboot 2, the same.
    Multiboot2,
}

/// What an image is that no protocol boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing at all.
    Empty,
    /// A compressed file, and the program that unpacks it.
    Compressed(&'static str, &'static str),
    /// Something that is known and is no kernel.
    Known(&'static str),
    /// A 32-bit ELF file that says nothing of how to boot it.
    Elf32,
    /// Unknown; its first bytes.
    Unknown([u8; 4]),
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Found::Empty => f.write_str("an empty file"),
            Found::Compressed(what, tool) => write!(f, "{what}; unpack it with `{tool}` first"),
            Found::Known(what) => f.write_str(what),
            Found::Elf32 => f.write_str("a 32-bit ELF file with neither a PVH note nor a Multiboot header"),
            Found::Unknown([a, b, c, d]) => {
                write!(f, "a file that begins with the bytes {a:02x} {b:02x} {c:02x} {d:02x}")
            }
        }
    }
}

/// Files that are taken for kernels now and then, by what they begin with.
const KNOWN: &[(&[u8], Found)] = &[
    (b"\x1f\x8b", Found::Compressed("a file compressed by gzip", "gunzip")),
    (b"\xfd7zXZ\0", Found::Compressed("a file compressed by xz", "unxz")),
    (b"\x28\xb5\x2f\xfd", Found::Compressed("a file compressed by zstd", "unzstd")),
    (b"BZh", Found::Compressed("a file compressed by bzip2", "bunzip2")),
    (b"\x04\x22\x4d\x18", Found::Compressed("a file compressed by lz4", "unlz4")),
    (b"\x5d\0\0", Found::Compressed("a file compressed by lzma", "unlzma")),
    (b"070701", Found::Known("a cpio archive, as of an initial RAM disk")),
    (b"!<arch>", Found::Known("an archive of object files or a Debian package")),
    (b"QFI\xfb", Found::Known("a disk image in QEMU's format")),
    (b"\xcf\xfa\xed\xfe", Found::Known("a Mach-O program")),
    (b"#!", Found::Known("a script")),
    (b"MZ", Found::Known("a program for EFI or Windows that is no Linux kernel")),
];

/// Which protocol boots this image. Linux comes first, since its image may also be a program for EFI; then ELF files with a
/// note for PVH (told by `has_note`), which say more than a Multiboot header does; then that.
pub(super) fn protocol(image: &[u8], has_note: impl FnOnce(&[u8]) -> bool) -> Result<Protocol, Found> {
    if image.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(Protocol::Linux);
    }
    let is_elf = image.starts_with(b"\x7fELF");
    if is_elf && has_note(image) {
        return Ok(Protocol::Elf);
    }
    if multiboot::is_multiboot(image) {
        return Ok(Protocol::Multiboot);
    }
    if multiboot2::is_multiboot2(image) {
        return Ok(Protocol::Multiboot2);
    }
    match (is_elf, image.get(4)) {
        (true, Some(1)) => Err(Found::Elf32),
        (true, _) => Ok(Protocol::Elf),
        (false, _) => Err(found(image)),
    }
}

fn found(image: &[u8]) -> Found {
    const CD: usize = 0x8001;
    let Some(first) = image.first_chunk::<4>() else {
        return if image.is_empty() { Found::Empty } else { Found::Known("a file of less than four bytes") };
    };
    if let Some((_, found)) = KNOWN.iter().find(|(start, _)| image.starts_with(start)) {
        return *found;
    }
    if image.get(CD..CD + 5) == Some(b"CD001") {
        return Found::Known("a CD image: it boots by firmware, as a disk");
    }
    if image.get(510..512) == Some(b"\x55\xaa") {
        return Found::Known("a boot sector or a disk image: it boots by firmware, as a disk");
    }
    Found::Unknown(*first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::ToString;
    use std::vec;

    fn refused(image: &[u8]) -> std::string::String {
        protocol(image, |_| false).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        assert_eq!(refused(b""), "an empty file");
        assert_eq!(refused(b"\x1f\x8b\x08\0"), "a file compressed by gzip; unpack it with `gunzip` first");
        assert!(refused(b"070701000").contains("cpio"));
        assert!(refused(b"hello").ends_with("68 65 6c 6c"));
        assert!(refused(b"\x7fELF\x01").contains("32-bit ELF"));
        let mut disk = vec![0; 512];
        disk[510..].copy_from_slice(b"\x55\xaa");
        assert!(refused(&disk).contains("boot sector"));
    }

    #[test]
    fn kernels_are_told_apart() {
        let mut image = vec![0; 0x4000];
        let put = |image: &mut [u8], at: usize, words: &[u32]| {
            for (i, word) in words.iter().enumerate() {
                image[at + 4 * i..at + 4 * i + 4].copy_from_slice(&word.to_le_bytes());
            }
        };
        put(&mut image, 0x2000, &[0xE852_50D6, 0, 24, 0u32.wrapping_sub(0xE852_50D6 + 24)]);
        assert_eq!(protocol(&image, |_| false), Ok(Protocol::Multiboot2));
        put(&mut image, 0x1000, &[0x1BAD_B002, 3, 0u32.wrapping_sub(0x1BAD_B005)]);
        assert_eq!(protocol(&image, |_| false), Ok(Protocol::Multiboot));
        image[..5].copy_from_slice(b"\x7fELF\x02");
        assert_eq!(protocol(&image, |_| false), Ok(Protocol::Multiboot));
        assert_eq!(protocol(&image, |_| true), Ok(Protocol::Elf));
        assert_eq!(protocol(&image[..0x1000], |_| false), Ok(Protocol::Elf));
        image[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(protocol(&image, |_| true), Ok(Protocol::Linux));
    }
}
