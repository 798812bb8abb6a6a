//! The PVH boot protocol (Xen's docs/misc/pvh and `start_info.h`): an ELF kernel with a note that names its 32-bit
//! physical entry point, started in protected mode without paging, EBX at the start information.

use super::elf_image::{Image, write_cmdline};
use super::{ElfError, InitialState, place_high, state};
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
    /// The one module Linux knows: an initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Command line, without a terminating zero.
    pub cmdline: &'a [u8],
    /// Guest-physical address of the ACPI RSDP, 0 if there is none.
    pub rsdp: u64,
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
    let module = match guest.initrd {
        Some(bytes) if !bytes.is_empty() => {
            let size = bytes.len() as u64;
            let base = place_high(map, size, u64::MAX, &span).ok_or(ElfError::NoRoom { size })?;
            ram.write(base, bytes)?;
            Some((base, size))
        }
        _ => None,
    };
    ram.write(layout::BOOT_INFO, &start_info(map, guest.rsdp, module))?;
    map.write_bda(ram)?;
    state::gdt::write(ram)?;
    let mut state = InitialState::flat32(entry);
    state.gprs[state::RBX] = layout::BOOT_INFO;
    Ok(state)
}

/// `hvm_start_info`, then the module list, then the memory map.
fn start_info(map: &MemoryMap, rsdp: u64, module: Option<(u64, u64)>) -> Vec<u8> {
    let modules = layout::BOOT_INFO + START_INFO_SIZE;
    let memmap = modules + MODULE_ENTRY_SIZE;
    let mut out =
        Vec::with_capacity((memmap - layout::BOOT_INFO + MEMMAP_ENTRY_SIZE * map.e820().len() as u64) as usize);
    for word in [START_MAGIC, START_VERSION, 0, u32::from(module.is_some())] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let modlist = if module.is_some() { modules } else { 0 };
    for word in [modlist, layout::BOOT_CMDLINE, rsdp, memmap] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for word in [map.e820().len() as u32, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    let (base, size) = module.unwrap_or((0, 0));
    for word in [base, size, 0, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for entry in map.e820() {
        out.extend_from_slice(&entry.base.to_le_bytes());
        out.extend_from_slice(&entry.size.to_le_bytes());
        out.extend_from_slice(&u64::from(entry.kind as u32).to_le_bytes());
    }
    out
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
