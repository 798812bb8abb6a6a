//! Guests that are no Debian Linux: each from one package, or made of what another guest brought.

use super::{ELSEWHERE, announce, debian, lock, spinner, write_whole};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How to come by a guest.
struct Other {
    /// What stands behind `guest:`.
    name: &'static str,
    /// Debian's package.
    package: &'static str,
    /// What to do with the package's files; the guest's bytes.
    make: fn(&Path) -> Result<Vec<u8>>,
}

const OTHERS: &[Other] = &[
    Other { name: "memtest", package: "memtest86+", make: |files| read(&files.join("boot/memtest86+x64.bin")) },
    Other { name: "memtest-i386", package: "memtest86+", make: |files| read(&files.join("boot/memtest86+ia32.bin")) },
    Other { name: "mach", package: "gnumach-image-1.8-486", make: mach },
    Other { name: "grub-pvh", package: "grub-xen-bin", make: grub },
];

/// The guest `name`, if there is one of that name.
pub fn file(cache: &Path, name: &str) -> Result<Option<PathBuf>> {
    let Some(other) = OTHERS.iter().find(|other| other.name == name) else { return Ok(None) };
    let folder = cache.join("guest").join(other.package);
    let path = folder.join(name);
    let _lock = lock(&folder)?;
    if !path.is_file() {
        let spinner = spinner();
        let files = debian::package(&folder, other.package, &|text| announce(&spinner, text)).context(ELSEWHERE)?;
        write_whole(&path, &(other.make)(&files)?)?;
        spinner.finish_and_clear();
    }
    Ok(Some(path))
}

/// The ELF file inside of a bzImage, as Debian ships no other: a kernel for PVH.
pub fn vmlinux(cache: &Path, kernel: &Path) -> Result<PathBuf> {
    let folder = cache.join("guest");
    let path = folder.join("vmlinux");
    let _lock = lock(&folder)?;
    let newer = |path: &Path| fs::metadata(path).and_then(|data| data.modified()).ok();
    if newer(&path) < newer(kernel) {
        write_whole(&path, &unpack_bzimage(&read(kernel)?)?)?;
    }
    Ok(path)
}

/// GNU Mach comes compressed.
fn mach(files: &Path) -> Result<Vec<u8>> {
    Ok(debian::run(Command::new("gzip").arg("-dc").arg(files.join("boot/gnumach-1.8-486.gz")))?.stdout)
}

/// GRUB for PVH, of GRUB's own modules.
fn grub(files: &Path) -> Result<Vec<u8>> {
    let modules = files.join("usr/lib/grub/i386-xen_pvh");
    let out = files.join("grub-pvh");
    let mut command = Command::new("grub-mkimage");
    command.arg("-d").arg(modules).args(["-O", "i386-xen_pvh", "-p", "/boot", "-o"]).arg(&out);
    debian::run(command.args(["echo", "normal", "halt"]))?;
    read(&out)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Unpacks the payload of a bzImage (Linux' Documentation/arch/x86/boot.rst: `payload_offset`, `payload_length`).
fn unpack_bzimage(image: &[u8]) -> Result<Vec<u8>> {
    let word = |at: usize| image.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let payload = || {
        let start = (usize::from(*image.get(0x1f1)?) + 1) * 512 + word(0x248)?;
        // Behind the compressed data stands its size.
        image.get(start..start + word(0x24c)?.checked_sub(4)?)
    };
    let payload = payload().context("the kernel is no bzImage")?;
    match payload.strip_prefix(b"\x02\x21\x4c\x18") {
        Some(blocks) => unpack_lz4(blocks),
        None => bail!("the kernel is not compressed by LZ4; unpack it by hand"),
    }
}

/// LZ4's old format: blocks of 8 MiB, each behind its compressed size.
fn unpack_lz4(mut blocks: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut out = Vec::new();
    while let Some((size, rest)) = blocks.split_first_chunk::<4>() {
        let size = u32::from_le_bytes(*size) as usize;
        let block = rest.get(..size).context("the kernel's payload ends too early")?;
        out.extend(lz4_flex::block::decompress(block, BLOCK).context("the kernel's payload cannot be unpacked")?);
        blocks = &rest[size..];
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_elf_file_of_a_bzimage_is_found() {
        let elf: Vec<u8> = (0..20_000u32).flat_map(|word| (word / 3).to_le_bytes()).collect();
        let packed = lz4_flex::block::compress(&elf);
        let mut image = vec![0u8; 1024 + 0x40];
        image[0x1f1] = 1;
        image[0x248..0x24c].copy_from_slice(&0x40u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&(packed.len() as u32 + 12).to_le_bytes());
        image.extend_from_slice(b"\x02\x21\x4c\x18");
        image.extend_from_slice(&(packed.len() as u32).to_le_bytes());
        image.extend_from_slice(&packed);
        image.extend_from_slice(&(elf.len() as u32).to_le_bytes());
        assert_eq!(unpack_bzimage(&image).unwrap(), elf);
        assert!(unpack_bzimage(&image[..2000]).is_err());
        assert!(unpack_bzimage(b"").is_err());
    }

    #[test]
    fn every_name_is_known() {
        for other in OTHERS {
            assert!(super::super::NAMES.contains(&other.name));
        }
    }
}
