//! Small 64-bit guests of our own: an ELF64 image at its physical addresses, entered in 64-bit mode.

use super::elf_image::{Image, write_cmdline};
use super::{ElfError, InitialState, paging, state};
use crate::memory_map::MemoryMap;
use crate::{GuestRam, layout};

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct FlatGuest<'a> {
    /// The ELF64 image.
    pub image: &'a [u8],
    /// Command line; the guest gets its address in RSI, and a terminating zero.
    pub cmdline: &'a [u8],
    /// A word for the guest, in RDI.
    pub argument: u64,
}

/// Loads a 64-bit ELF guest and returns the boot processor's state: 64-bit mode, the first 4 GiB identity mapped,
/// interrupts off, RSP at a stack that grows down from [`layout::BOOT_STACK_TOP`], RDI and RSI as [`FlatGuest`] says.
///
/// # Errors
/// [`ElfError`]; RAM may be partly written then.
pub fn load(ram: &mut dyn GuestRam, map: &MemoryMap, guest: &FlatGuest) -> Result<InitialState, ElfError> {
    let image = Image::parse(guest.image)?;
    if !image.is_64() {
        return Err(ElfError::Not64Bit);
    }
    let span = image.load(ram, map)?;
    if !span.contains(&image.entry()) {
        return Err(ElfError::EntryOutside { entry: image.entry() });
    }
    write_cmdline(ram, guest.cmdline)?;
    state::gdt::write(ram)?;
    let cr3 = paging::identity_map(ram)?;
    let mut state = InitialState::long(image.entry(), cr3);
    state.gprs[state::RSP] = layout::BOOT_STACK_TOP;
    state.gprs[state::RDI] = guest.argument;
    state.gprs[state::RSI] = layout::BOOT_CMDLINE;
    Ok(state)
}
