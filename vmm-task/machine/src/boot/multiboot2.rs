//! Multiboot 2 (specification 2.0): kernels whose header asks by tags, started in 32-bit protected mode like Multiboot 1's,
//! with information in tags.

use super::multiboot::{self, Addresses, MultibootError, Placed, word};
use super::{ElfError, InitialState, Range, state};
use crate::memory_map::MemoryMap;
use crate::{GuestRam, layout};
use alloc::vec::Vec;

pub use super::multiboot::MultibootGuest;

const HEADER_MAGIC: u32 = 0xE852_50D6;
const LOADER_MAGIC: u64 = 0x36D7_6289;
/// The header lies in the first 32 KiB, on an 8-byte boundary.
const HEADER_SEARCH: usize = 32768;
/// Architecture: 32-bit protected mode of i386.
const I386: u32 = 0;
/// A tag's flag: the loader may ignore it.
const OPTIONAL: u16 = 1;

/// Tags of the header.
mod wish {
    pub const END: u16 = 0;
    pub const INFORMATION: u16 = 1;
    pub const ADDRESS: u16 = 2;
    pub const ENTRY: u16 = 3;
    pub const CONSOLE: u16 = 4;
    pub const FRAMEBUFFER: u16 = 5;
    pub const MODULE_ALIGN: u16 = 6;
    /// EFI boot services, and entry points for EFI: for machines started by EFI, which this one is not.
    pub const EFI: core::ops::RangeInclusive<u16> = 7..=9;
    pub const RELOCATABLE: u16 = 10;
}

/// Tags of the information.
mod info {
    pub const END: u32 = 0;
    pub const CMDLINE: u32 = 1;
    pub const LOADER: u32 = 2;
    pub const MODULE: u32 = 3;
    pub const MEMORY: u32 = 4;
    pub const MEMMAP: u32 = 6;
    pub const OLD_RSDP: u32 = 14;
    pub const NEW_RSDP: u32 = 15;
}

/// Offset and length of the header.
fn find_header(kernel: &[u8]) -> Option<(usize, usize)> {
    let end = kernel.len().min(HEADER_SEARCH);
    (0..end).step_by(8).find_map(|at| {
        let (magic, architecture) = (word(kernel, at)?, word(kernel, at + 4)?);
        let (length, checksum) = (word(kernel, at + 8)?, word(kernel, at + 12)?);
        let sum = magic.wrapping_add(architecture).wrapping_add(length).wrapping_add(checksum);
        (magic == HEADER_MAGIC && sum == 0).then_some((at, length as usize))
    })
}

/// Whether an image has a Multiboot 2 header.
#[must_use]
pub fn is_multiboot2(kernel: &[u8]) -> bool {
    find_header(kernel).is_some()
}

/// What the header asks for.
#[derive(Default)]
struct Wishes {
    addresses: Option<Addresses>,
    entry: Option<u32>,
}

fn read_header(kernel: &[u8], at: usize, length: usize) -> Result<Wishes, MultibootError> {
    let architecture = word(kernel, at + 4).unwrap_or(0);
    if architecture != I386 {
        return Err(MultibootError::WrongMachine { architecture });
    }
    let header = at.checked_add(length).and_then(|end| kernel.get(at..end)).ok_or(MultibootError::BadAddresses)?;
    let mut wishes = Wishes::default();
    let mut tag = 16;
    // Each tag moves on by eight bytes at least.
    while let (Some(kind), Some(size)) = (word(header, tag), word(header, tag + 4)) {
        let field = |i: usize| word(header, tag + 8 + 4 * i).ok_or(MultibootError::BadAddresses);
        match kind as u16 {
            wish::END => break,
            wish::ADDRESS => {
                let (header, load, load_end, bss_end) = (field(0)?, field(1)?, field(2)?, field(3)?);
                wishes.addresses = Some(Addresses { header, load, load_end, bss_end });
            }
            wish::ENTRY => wishes.entry = Some(field(0)?),
            // Modules lie on pages; there is no screen; an image is loaded where it wants to be.
            wish::INFORMATION | wish::CONSOLE | wish::FRAMEBUFFER | wish::MODULE_ALIGN | wish::RELOCATABLE => {}
            kind if wish::EFI.contains(&kind) => {}
            _ if (kind >> 16) as u16 & OPTIONAL != 0 => {}
            kind => return Err(MultibootError::Demands { flags: kind.into() }),
        }
        tag += (size as usize).max(8).next_multiple_of(8);
    }
    Ok(wishes)
}

/// Loads a Multiboot 2 kernel with its modules and returns the boot processor's state. `rsdp` are the bytes of ACPI's root
/// pointer.
///
/// # Errors
/// [`MultibootError`]; RAM may be partly written then.
pub fn load(
    ram: &mut dyn GuestRam,
    map: &MemoryMap,
    guest: &MultibootGuest,
    rsdp: &[u8],
) -> Result<InitialState, MultibootError> {
    let (at, length) = find_header(guest.kernel).ok_or(MultibootError::NoHeader)?;
    let wishes = read_header(guest.kernel, at, length)?;
    let (span, entry) = load_image(ram, map, guest.kernel, at, &wishes)?;
    if !span.contains(&u64::from(entry)) {
        return Err(ElfError::EntryOutside { entry: entry.into() }.into());
    }
    let placed = multiboot::place_modules(ram, map, guest.modules, &span)?;
    let information = information(map, guest.cmdline, &placed, rsdp);
    if information.len() as u64 > multiboot::INFO_LIMIT {
        return Err(MultibootError::TooManyModules);
    }
    ram.write(layout::BOOT_INFO, &information)?;
    map.write_bda(ram)?;
    state::gdt::write(ram)?;
    let mut state = InitialState::flat32(entry);
    state.gprs[state::RAX] = LOADER_MAGIC;
    state.gprs[state::RBX] = layout::BOOT_INFO;
    // Not promised, but found behind other loaders: some kernels call before they have a stack of their own.
    state.gprs[state::RSP] = layout::BOOT_STACK_TOP;
    Ok(state)
}

fn load_image(
    ram: &mut dyn GuestRam,
    map: &MemoryMap,
    kernel: &[u8],
    at: usize,
    wishes: &Wishes,
) -> Result<(Range, u32), MultibootError> {
    let Some(addresses) = &wishes.addresses else {
        let (span, entry) = multiboot::load_elf(ram, map, kernel)?;
        return Ok((span, wishes.entry.unwrap_or(entry)));
    };
    let entry = wishes.entry.ok_or(MultibootError::BadAddresses)?;
    Ok((multiboot::load_by_addresses(ram, map, kernel, at, addresses)?, entry))
}

/// The information: its size, then tags.
fn information(map: &MemoryMap, cmdline: &[u8], modules: &[Placed<'_>], rsdp: &[u8]) -> Vec<u8> {
    let mut out = Vec::from([0; 8]);
    tag(&mut out, info::CMDLINE, &[], &[cmdline, b"\0"]);
    tag(&mut out, info::LOADER, &[], &[b"moira\0"]);
    for &(base, size, cmdline) in modules {
        tag(&mut out, info::MODULE, &[base as u32, (base + size) as u32], &[cmdline, b"\0"]);
    }
    let (lower, upper) = (layout::EBDA_BASE >> 10, (map.low_end() - layout::ONE_MIB) >> 10);
    tag(&mut out, info::MEMORY, &[lower as u32, upper as u32], &[]);
    let mut entries = Vec::from([24, 0]);
    for entry in map.e820() {
        let (base, size) = (entry.base, entry.size);
        let words = [base as u32, (base >> 32) as u32, size as u32, (size >> 32) as u32, entry.kind as u32, 0];
        entries.extend_from_slice(&words);
    }
    tag(&mut out, info::MEMMAP, &entries, &[]);
    // Its first part is a whole one of revision 1, which some kernels look for alone.
    tag(&mut out, info::OLD_RSDP, &[], &[rsdp.get(..20).unwrap_or_default()]);
    tag(&mut out, info::NEW_RSDP, &[], &[rsdp]);
    tag(&mut out, info::END, &[], &[]);
    let size = (out.len() as u32).to_le_bytes();
    for (to, from) in out.iter_mut().zip(size) {
        *to = from;
    }
    out
}

/// Appends a tag of words and bytes; the next one begins on eight bytes.
fn tag(out: &mut Vec<u8>, kind: u32, words: &[u32], bytes: &[&[u8]]) {
    let size = 8 + 4 * words.len() + bytes.iter().map(|part| part.len()).sum::<usize>();
    for word in [kind, size as u32].iter().chain(words) {
        out.extend_from_slice(&word.to_le_bytes());
    }
    bytes.iter().for_each(|part| out.extend_from_slice(part));
    out.resize(out.len().next_multiple_of(8), 0);
}
