//! Whether a guest's monitor will take what it is to boot, before anything boots: the same loader, into memory of the same size.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::HumanBytes;
use vmm_machine::boot::firmware::{self, FirmwareError};
use vmm_machine::boot::linux::LinuxError;
use vmm_machine::boot::multiboot::MultibootError;
use vmm_machine::boot::{self, BootError, ElfError, Guest, Module};
use vmm_machine::layout::LOW_RAM_LIMIT;
use vmm_machine::memory_map::{MapError, MemoryMap};
use vmm_machine::{GuestRam, OutOfRange};

use crate::paths;
use crate::system::{MODULES, NEXT_MODULE, Options, Size, split_module};

/// Memory where the options name none.
const USUAL: Size = Size(256 << 20);

/// Memory that costs only what is written.
struct Memory(Vec<u8>);

impl Memory {
    fn range(&self, gpa: u64, len: usize) -> Result<std::ops::Range<usize>, OutOfRange> {
        let start = usize::try_from(gpa).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(len)?));
        range.filter(|range| range.end <= self.0.len()).ok_or(OutOfRange { gpa, len })
    }
}

impl GuestRam for Memory {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        let range = self.range(gpa, bytes.len())?;
        self.0[range].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        bytes.copy_from_slice(&self.0[self.range(gpa, bytes.len())?]);
        Ok(())
    }

    fn size(&self) -> u64 {
        self.0.len() as u64
    }
}

/// Checks what these options of a manifest name, as far as it is there before a build: files, and guests that xtask fetches. Answers how many
/// bytes of files it saw.
///
/// # Errors
/// What the guest's monitor would say.
pub fn check(settings: &Options) -> Result<u64> {
    let setting = |name: &str| settings.get(name).filter(|value| !value.is_empty());
    let own = |name: &str| setting(name).filter(|value| Path::new(value).is_absolute());
    let memory = setting("guest-memory").and_then(|text| Size::parse(text)).unwrap_or(USUAL);
    let map = memory_map(memory)?;
    let mut bytes = 0;
    if let Some(path) = own("guest-firmware") {
        bytes += check_firmware(path)?;
    }
    if let Some(path) = own("guest-disk") {
        bytes += check_disk(path)?;
    }
    if let Some(name) = setting("guest-kernel") {
        bytes += check_kernel(name, settings, memory, &map)?;
    }
    Ok(bytes)
}

fn memory_map(memory: Size) -> Result<MemoryMap> {
    MemoryMap::new(memory.0).map_err(|error| match error {
        MapError::NotPages { .. } => anyhow!("--guest-memory {memory}: a machine has whole pages of 4 KiB"),
        _ => {
            let (least, most) = (Size(MemoryMap::MIN_RAM), Size(MemoryMap::MAX_RAM));
            anyhow!("--guest-memory {memory}: a machine has from {least} to {most}")
        }
    })
}

fn check_firmware(path: &str) -> Result<u64> {
    let image = read("firmware", path)?;
    let (least, most) = (Size(firmware::MIN_SIZE as u64), Size(firmware::MAX_SIZE as u64));
    match firmware::check(&image) {
        Ok(()) => Ok(image.len() as u64),
        Err(FirmwareError::Size { size }) => {
            bail!("--firmware {path}: {size} bytes, and an image has whole pages of 4 KiB, from {least} to {most}")
        }
        Err(error) => bail!("--firmware {path}: {error}"),
    }
}

fn check_disk(path: &str) -> Result<u64> {
    const SECTOR: u64 = 512;
    let data = fs::metadata(path).with_context(|| format!("--guest-disk {path}"))?;
    if !data.is_file() {
        bail!("--guest-disk {path}: this is no file");
    }
    let size = data.len();
    if size == 0 || !size.is_multiple_of(SECTOR) {
        bail!("--guest-disk {path}: {size} bytes, and a disk has whole sectors of {SECTOR} bytes");
    }
    Ok(size)
}

/// Lets the monitor's loader try the kernel, with its RAM disk and modules.
fn check_kernel(name: &str, settings: &Options, memory: Size, map: &MemoryMap) -> Result<u64> {
    let Some(image) = contents("guest-kernel", name)? else { return Ok(0) };
    let mut files = Vec::new();
    if let Some(name) = settings.get("guest-initrd").filter(|name| !name.is_empty()) {
        files.extend(contents("guest-initrd", name)?.map(|bytes| (bytes, "initrd".to_owned())));
    }
    let list = settings.get("guest-modules").and_then(|list| list.strip_prefix(MODULES)).unwrap_or_default();
    for module in list.split(NEXT_MODULE).filter(|module| !module.is_empty()) {
        let (file, line) = split_module(module);
        files.extend(contents("guest-module", file)?.map(|bytes| (bytes, line.unwrap_or_default().to_owned())));
    }
    let modules: Vec<_> = files.iter().map(|(bytes, line)| Module { bytes, cmdline: line.as_bytes() }).collect();
    let cmdline = settings.get("guest-cmdline").map_or("", String::as_str).as_bytes();
    let guest = Guest { firmware: None, kernel: &image, modules: &modules, cmdline };
    // What lies above 4 GiB no loader writes.
    let mut ram = Memory(vec![0; usize::try_from(map.low_end())?]);
    if let Err(error) = boot::load(&mut ram, map, 1, &guest, (0, 0)) {
        bail!("{}", refusal(name, &image, memory, error));
    }
    Ok((image.len() + files.iter().map(|(bytes, _)| bytes.len()).sum::<usize>()) as u64)
}

/// What the loader says: of memory that is too little in terms of the option, else in its own words.
fn refusal(name: &str, kernel: &[u8], memory: Size, error: BootError) -> String {
    if let BootError::Linux(LinuxError::InitrdDoesNotFit { size, .. }) = error {
        let size = HumanBytes(size);
        return format!("--guest-memory {memory} is too little: a RAM disk of {size} finds no room beside {name}");
    }
    if let Some(end) = end(error).filter(|end| memory.0 < *end && *end <= LOW_RAM_LIMIT) {
        let enough = Size(end.next_multiple_of(1 << 20));
        return format!("--guest-memory {memory} is too little for {name}, which needs {enough} or more");
    }
    if kernel.starts_with(b"\x7fELF") && contains(kernel, b"/ld-linux") {
        return format!("--guest-kernel {name}: it is a program that runs on Linux, and no kernel");
    }
    format!("--guest-kernel {name}: {error}")
}

/// Where a kernel would end that does not fit.
fn end(error: BootError) -> Option<u64> {
    match error {
        BootError::Linux(LinuxError::KernelDoesNotFit { address, needed, .. }) => address.checked_add(needed),
        BootError::Multiboot(MultibootError::DoesNotFit { address, size })
        | BootError::Multiboot(MultibootError::Elf(ElfError::SegmentDoesNotFit { address, size, .. }))
        | BootError::Elf(ElfError::SegmentDoesNotFit { address, size, .. }) => address.checked_add(size),
        _ => None,
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).take(1 << 16).any(|window| window == part)
}

/// What a manifest's value names: a guest, fetched if it is not there yet, or a file. None: it is not there before a build.
fn contents(option: &str, name: &str) -> Result<Option<Vec<u8>>> {
    if name.starts_with("image:") {
        return Ok(None);
    }
    match name.strip_prefix("guest:") {
        Some(part) => {
            let path = super::file(&paths::cache()?, part)?;
            fs::read(&path).with_context(|| format!("cannot read {}", path.display())).map(Some)
        }
        // What is no absolute path begins at the repository's root.
        None => fs::read(paths::root().join(name)).with_context(|| format!("--{option} {name}")).map(Some),
    }
}

fn read(option: &str, path: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("--{option} {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file with these bytes, and its path.
    fn file(bytes: &[u8]) -> (tempfile::NamedTempFile, String) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        let path = file.path().to_string_lossy().into_owned();
        (file, path)
    }

    fn checked(kernel: &[u8], memory: &str) -> Result<u64> {
        let (_file, path) = file(kernel);
        check(&[("guest-kernel".into(), path), ("guest-memory".into(), memory.into())].into())
    }

    fn refused(kernel: &[u8], memory: &str) -> String {
        format!("{:#}", checked(kernel, memory).unwrap_err())
    }

    /// A Multiboot kernel of one page at 1 MiB that wants `size` bytes of memory.
    fn multiboot(size: u32) -> Vec<u8> {
        const FLAGS: u32 = 1 << 16;
        let words = [
            0x1BAD_B002,
            FLAGS,
            0u32.wrapping_sub(0x1BAD_B002 + FLAGS),
            0x10_0000,
            0x10_0000,
            0x10_1000,
            0x10_0000 + size,
            0x10_0000,
        ];
        let mut image: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_le_bytes()).collect();
        image.resize(0x1000, 0x90);
        image
    }

    #[test]
    fn a_kernel_that_fits_passes_and_one_that_does_not_is_refused() {
        assert_eq!(checked(&multiboot(0x1000), "4MiB").unwrap(), 0x1000);
        let text = refused(&multiboot(8 << 20), "4MiB");
        assert!(text.starts_with("--guest-memory 4 MiB is too little for "), "{text}");
        assert!(text.ends_with(", which needs 9 MiB or more"), "{text}");
        checked(&multiboot(8 << 20), "16MiB").unwrap();
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        assert!(refused(b"\x1f\x8b\x08\0", "16MiB").contains("gunzip"));
        assert!(refused(b"#!/bin/sh\n", "16MiB").contains("a script"));
        assert_eq!(refused(&multiboot(0x1000), "1MiB"), "--guest-memory 1 MiB: a machine has from 2 MiB to 1024 GiB");
        let own = std::env::current_exe().unwrap();
        let text = refused(&fs::read(own).unwrap(), "64MiB");
        assert!(text.contains("it is a program that runs on Linux"), "{text}");
    }

    #[test]
    fn what_is_built_later_is_left_alone() {
        check(&[("guest-kernel".into(), "image:moira-test-multiboot".into())].into()).unwrap();
        check(&[("guest-kernel".into(), String::new()), ("guest-disk".into(), "zeros:16".into())].into()).unwrap();
        check(&Options::new()).unwrap();
    }

    #[test]
    fn firmware_has_whole_pages_and_a_reset_vector() {
        let checked = |bytes: &[u8]| {
            let (_file, path) = file(bytes);
            check(&[("guest-firmware".into(), path)].into()).map_err(|error| error.to_string())
        };
        assert_eq!(checked(&[1; 64 << 10]), Ok(64 << 10));
        let text = checked(b"# Moira").unwrap_err();
        assert!(text.starts_with("--firmware /"), "{text}");
        assert!(text.ends_with(": 7 bytes, and an image has whole pages of 4 KiB, from 64 KiB to 16 MiB"), "{text}");
        assert!(checked(&[0; 64 << 10]).unwrap_err().contains("reset vector"));
    }

    #[test]
    fn disks_have_whole_sectors() {
        let checked = |size: usize| {
            let (_file, path) = file(&vec![0; size]);
            check(&[("guest-disk".into(), path)].into()).map_err(|error| error.to_string())
        };
        assert_eq!(checked(1024), Ok(1024));
        for size in [0, 511, 1000] {
            let text = checked(size).unwrap_err();
            assert!(text.ends_with("bytes, and a disk has whole sectors of 512 bytes"), "{text}");
        }
    }
}
