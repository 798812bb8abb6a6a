//! The PVH boot protocol (Xen's docs/misc/pvh and `start_info.h`): an ELF kernel with a note that names its 32-bit
//! physical entry point, started in protected mode without paging, EBX at the start information.

use super::elf_image::{Image, write_cmdline};
use super::multiboot::{INFO_LIMIT, MultibootError, Placed, place_modules};
use super::{ElfError, InitialState, Module, state};
use crate::memory_map::MemoryMap;
use crate::{GuestRam, layout};
use alloc::vec::Vec;

const START_MAGIC: u32 = 0x336E_C578;
const START_VERSION: u32 = 1;
const START_INFO_SIZE: u64 = 56;
const MODULE_ENTRY_SIZE: u64 = 32;
const MEMMAP_ENTRY_SIZE: u64 = 24;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct PvhGuest<'a> {
    /// The ELF kernel, 32 or 64 bit.
    pub kernel: &'a [u8],
    /// Modules; Linux knows one, an initial RAM disk.
    pub modules: &'a [Module<'a>],
    /// Command line, without a terminating zero.
    pub cmdline: &'a [u8],
    /// Guest-physical address of the ACPI RSDP, 0 if there is none.
    pub rsdp: u64,
}

/// Whether an image is an ELF file with a PVH note.
#[must_use]
pub fn has_note(kernel: &[u8]) -> bool {
    Image::parse(kernel).is_ok_and(|image| image.pvh_entry().is_ok())
}

/// Loads a PVH kernel and returns the boot processor's state.
///
/// # Errors
/// [`ElfError`]; RAM may be partly written then.
pub fn load(ram: &mut dyn GuestRam, map: &MemoryMap, guest: &PvhGuest) -> Result<InitialState, ElfError> {
    let image = Image::parse(guest.kernel)?;
    let entry = image.pvh_entry()?;
    let span = image.load(ram, map)?;
    if !span.contains(&u64::from(entry)) {
        return Err(ElfError::EntryOutside { entry: u64::from(entry) });
    }
    write_cmdline(ram, guest.cmdline)?;
    let placed = place_modules(ram, map, guest.modules, &span).map_err(|error| match error {
        MultibootError::Elf(error) => error,
        _ => ElfError::TooManyModules,
    })?;
    let info = start_info(map, guest.rsdp, &placed);
    if info.len() as u64 > INFO_LIMIT {
        return Err(ElfError::TooManyModules);
    }
    ram.write(layout::BOOT_INFO, &info)?;
    map.write_bda(ram)?;
    state::gdt::write(ram)?;
    let mut state = InitialState::flat32(entry);
    state.gprs[state::RBX] = layout::BOOT_INFO;
    Ok(state)
}

/// `hvm_start_info`, then the module list, then the memory map, then the modules' command lines.
fn start_info(map: &MemoryMap, rsdp: u64, modules: &[Placed<'_>]) -> Vec<u8> {
    let list = layout::BOOT_INFO + START_INFO_SIZE;
    let memmap = list + MODULE_ENTRY_SIZE * modules.len() as u64;
    let mut string = memmap + MEMMAP_ENTRY_SIZE * map.e820().len() as u64;
    let mut out = Vec::with_capacity((string - layout::BOOT_INFO) as usize);
    for word in [START_MAGIC, START_VERSION, 0, modules.len() as u32] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let modlist = if modules.is_empty() { 0 } else { list };
    for word in [modlist, layout::BOOT_CMDLINE, rsdp, memmap] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for word in [map.e820().len() as u32, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for (base, size, cmdline) in modules {
        for word in [*base, *size, string, 0] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        string += cmdline.len() as u64 + 1;
    }
    for entry in map.e820() {
        out.extend_from_slice(&entry.base.to_le_bytes());
        out.extend_from_slice(&entry.size.to_le_bytes());
        out.extend_from_slice(&u64::from(entry.kind as u32).to_le_bytes());
    }
    for (_, _, cmdline) in modules {
        out.extend_from_slice(cmdline);
        out.push(0);
    }
    out
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
