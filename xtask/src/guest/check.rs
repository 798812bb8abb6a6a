//! Whether a guest's monitor will take what it is to boot, before anything boots: the same loader, into memory of the same size.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use vmm_machine::boot::{self, Guest, Module};
use vmm_machine::memory_map::MemoryMap;
use vmm_machine::{GuestRam, OutOfRange};

use crate::system::{MODULES, NEXT_MODULE, split_module};

/// Memory where the options name none.
const USUAL: u64 = 256 << 20;

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

/// Checks the kernel that these options of a manifest name, as far as they are files of the user's.
///
/// # Errors
/// What the guest's monitor would say.
pub fn check(options: &BTreeMap<String, String>) -> Result<()> {
    let own = |name: &str| options.get(name).filter(|path| Path::new(path).is_absolute());
    let Some(kernel) = own("guest-kernel") else { return Ok(()) };
    let mut files = Vec::new();
    if let Some(path) = own("guest-initrd") {
        files.push((read("guest-initrd", path)?, "initrd".to_owned()));
    }
    for module in
        options.get("guest-modules").and_then(|list| list.strip_prefix(MODULES)).unwrap_or("").split(NEXT_MODULE)
    {
        let (path, line) = split_module(module);
        if Path::new(path).is_absolute() {
            files.push((read("guest-module", path)?, line.unwrap_or_default().to_owned()));
        }
    }
    let modules: Vec<_> = files.iter().map(|(bytes, line)| Module { bytes, cmdline: line.as_bytes() }).collect();
    let bytes = read("guest-kernel", kernel)?;
    let cmdline = options.get("guest-cmdline").map_or("", String::as_str).as_bytes();
    let guest = Guest { firmware: None, kernel: &bytes, modules: &modules, cmdline };
    let memory = options.get("guest-memory").and_then(|text| text.strip_suffix("MiB")?.parse::<u64>().ok());
    try_to_boot(&guest, memory.map_or(USUAL, |mebibytes| mebibytes << 20))
        .with_context(|| format!("--guest-kernel {kernel}"))
}

fn try_to_boot(guest: &Guest<'_>, memory: u64) -> Result<()> {
    let map = match MemoryMap::new(memory) {
        Ok(map) => map,
        Err(error) => bail!("the guest: {error}"),
    };
    // What lies above 4 GiB no loader writes.
    let mut ram = Memory(vec![0; usize::try_from(map.low_end())?]);
    if let Err(error) = boot::load(&mut ram, &map, 1, guest, (0, 0)) {
        let hosted = guest.kernel.starts_with(b"\x7fELF") && contains(guest.kernel, b"/ld-linux");
        bail!("{error}{}", if hosted { "; it is a program that runs on Linux" } else { "" });
    }
    Ok(())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).take(1 << 16).any(|window| window == part)
}

fn read(option: &str, path: &str) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("--{option} {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn checked(kernel: &[u8], memory: &str) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new()?;
        file.write_all(kernel)?;
        let path = file.path().to_string_lossy().into_owned();
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
        checked(&multiboot(0x1000), "4MiB").unwrap();
        let text = refused(&multiboot(8 << 20), "4MiB");
        assert!(text.contains("the Multiboot kernel is refused: 0x800000 bytes at 0x100000 do not fit"), "{text}");
        checked(&multiboot(8 << 20), "16MiB").unwrap();
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        assert!(refused(b"\x1f\x8b\x08\0", "16MiB").contains("gunzip"));
        assert!(refused(b"#!/bin/sh\n", "16MiB").contains("a script"));
        assert!(
            refused(&multiboot(0x1000), "1MiB")
                .contains("the guest: 1024 KiB of memory: a machine has 2048 KiB or more")
        );
        let own = std::env::current_exe().unwrap();
        let text = refused(&fs::read(own).unwrap(), "64MiB");
        assert!(text.contains("it is a program that runs on Linux"), "{text}");
    }

    #[test]
    fn names_that_xtask_resolves_later_are_left_alone() {
        check(&[("guest-kernel".into(), "guest:vmlinux".into())].into()).unwrap();
        check(&BTreeMap::new()).unwrap();
    }
}
