//! Multiboot 1 (specification 0.6.96): ELF or flat kernels with modules, started in protected mode, EAX the magic, EBX
//! the information structure.

use super::elf_image::{Image, write_cmdline};
use super::{ElfError, InitialState, Module, Range, place_high, state};
use crate::memory_map::MemoryMap;
use crate::{GuestRam, fill_zero, layout};
use alloc::vec::Vec;

const HEADER_MAGIC: u32 = 0x1BAD_B002;
const LOADER_MAGIC: u64 = 0x2BAD_B002;
/// The header lies in the first 8 KiB, on a 4-byte boundary.
const HEADER_SEARCH: usize = 8192;
/// Header flags 0 to 15 are demands; of those we grant page-aligned modules and memory information. The third, a video mode,
/// is heard and not granted, as by other loaders without a screen: kernels look at what they got.
const GRANTED_DEMANDS: u32 = 0b111;
const HAS_ADDRESSES: u32 = 1 << 16;
pub(super) const MAX_MODULES: usize = 32;
const LOADER_NAME: &[u8] = b"moira\0";

const INFO_SIZE: u64 = 116;
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MEMMAP: u32 = 1 << 6;
const INFO_LOADER: u32 = 1 << 9;
/// Start information may grow up to the page tables' place (unused in this protocol's 32-bit mode).
pub(super) const INFO_LIMIT: u64 = layout::BOOT_CMDLINE - layout::BOOT_INFO;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct MultibootGuest<'a> {
    /// The kernel.
    pub kernel: &'a [u8],
    /// Command line, without a terminating zero.
    pub cmdline: &'a [u8],
    /// Modules, in order.
    pub modules: &'a [Module<'a>],
}

/// Why a kernel cannot be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MultibootError {
    /// No header with a right checksum in the first 8 KiB.
    NoHeader,
    /// The header demands what is not given (flag bits 0 to 15).
    Demands {
        /// The demands that are not met.
        flags: u32,
    },
    /// The header's load addresses contradict each other or the file.
    BadAddresses,
    /// The image is not made for 32-bit protected mode on a PC.
    WrongMachine {
        /// The architecture in its header.
        architecture: u32,
    },
    /// The image does not fit below the PCI hole and above 1 MiB.
    DoesNotFit {
        /// Its first byte.
        address: u64,
        /// Its size.
        size: u64,
    },
    /// More modules, or longer command lines, than the information structure has room for.
    TooManyModules,
    /// The image is ELF and cannot be loaded, or a module found no room.
    Elf(ElfError),
}

impl From<ElfError> for MultibootError {
    fn from(e: ElfError) -> Self {
        Self::Elf(e)
    }
}

impl From<crate::OutOfRange> for MultibootError {
    fn from(e: crate::OutOfRange) -> Self {
        Self::Elf(ElfError::Ram(e))
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|b| u32::from_le_bytes(*b))
}

/// Offset and flags of the header.
fn find_header(kernel: &[u8]) -> Result<(usize, u32), MultibootError> {
    let end = kernel.len().min(HEADER_SEARCH);
    (0..end)
        .step_by(4)
        .find_map(|at| {
            let flags = word(kernel, at + 4)?;
            let sum = word(kernel, at)?.wrapping_add(flags).wrapping_add(word(kernel, at + 8)?);
            (word(kernel, at)? == HEADER_MAGIC && sum == 0).then_some((at, flags))
        })
        .ok_or(MultibootError::NoHeader)
}

/// Whether an image has a Multiboot 1 header.
#[must_use]
pub fn is_multiboot(kernel: &[u8]) -> bool {
    find_header(kernel).is_ok()
}

/// Where a header says that an image wants to lie.
pub(super) struct Addresses {
    /// Where the header itself lies.
    pub header: u32,
    /// First byte to load.
    pub load: u32,
    /// End of what is in the file; 0: all of it.
    pub load_end: u32,
    /// End of what is to be cleared behind it.
    pub bss_end: u32,
}

/// Loads a kernel, whose header is at `at` in its file, by the addresses in it; its range.
pub(super) fn load_by_addresses(
    ram: &mut dyn GuestRam,
    map: &MemoryMap,
    kernel: &[u8],
    at: usize,
    addresses: &Addresses,
) -> Result<Range, MultibootError> {
    let Addresses { header, load, load_end, bss_end } = *addresses;
    let start = header.checked_sub(load).and_then(|before| at.checked_sub(before as usize));
    let image = start.and_then(|start| kernel.get(start..)).ok_or(MultibootError::BadAddresses)?;
    let data = match load_end {
        0 => image,
        end => {
            let len = end.checked_sub(load).ok_or(MultibootError::BadAddresses)?;
            image.get(..len as usize).ok_or(MultibootError::BadAddresses)?
        }
    };
    let (address, data_end) = (u64::from(load), u64::from(load) + data.len() as u64);
    let end = data_end.max(u64::from(bss_end));
    if !map.is_loadable(&(address..end)) {
        return Err(MultibootError::DoesNotFit { address, size: end - address });
    }
    ram.write(address, data)?;
    fill_zero(ram, data_end, end - data_end)?;
    Ok(address..end)
}

/// Loads a kernel by the addresses in its header; its range and entry point.
fn load_by_header(
    ram: &mut dyn GuestRam,
    map: &MemoryMap,
    kernel: &[u8],
    at: usize,
) -> Result<(Range, u32), MultibootError> {
    let field = |i: usize| word(kernel, at + 12 + 4 * i).ok_or(MultibootError::BadAddresses);
    let addresses = Addresses { header: field(0)?, load: field(1)?, load_end: field(2)?, bss_end: field(3)? };
    Ok((load_by_addresses(ram, map, kernel, at, &addresses)?, field(4)?))
}

/// Loads an ELF kernel; its range and the physical address of its entry point.
pub(super) fn load_elf(ram: &mut dyn GuestRam, map: &MemoryMap, kernel: &[u8]) -> Result<(Range, u32), MultibootError> {
    let image = Image::parse(kernel)?;
    let entry = image.physical_entry();
    let entry = u32::try_from(entry).map_err(|_| ElfError::EntryOutside { entry })?;
    Ok((image.load(ram, map)?, entry))
}

/// A module in RAM: its address, its size, its command line.
pub(super) type Placed<'a> = (u64, u64, &'a [u8]);

/// Puts modules as high as they go, each on a page, the first highest.
pub(super) fn place_modules<'a>(
    ram: &mut dyn GuestRam,
    map: &MemoryMap,
    modules: &'a [Module<'a>],
    span: &Range,
) -> Result<Vec<Placed<'a>>, MultibootError> {
    if modules.len() > MAX_MODULES {
        return Err(MultibootError::TooManyModules);
    }
    let mut top = u64::MAX;
    let mut placed = Vec::with_capacity(modules.len());
    for module in modules {
        let size = module.bytes.len() as u64;
        top = place_high(map, size, top, span).ok_or(ElfError::NoRoom { size })?;
        ram.write(top, module.bytes)?;
        placed.push((top, size, module.cmdline));
    }
    Ok(placed)
}

/// Loads a Multiboot 1 kernel with its modules and returns the boot processor's state.
///
/// # Errors
/// [`MultibootError`]; RAM may be partly written then.
pub fn load(ram: &mut dyn GuestRam, map: &MemoryMap, guest: &MultibootGuest) -> Result<InitialState, MultibootError> {
    let (at, flags) = find_header(guest.kernel)?;
    let unmet = flags & 0xFFFF & !GRANTED_DEMANDS;
    if unmet != 0 {
        return Err(MultibootError::Demands { flags: unmet });
    }
    let (span, entry) = if flags & HAS_ADDRESSES != 0 {
        load_by_header(ram, map, guest.kernel, at)?
    } else {
        load_elf(ram, map, guest.kernel)?
    };
    if !span.contains(&u64::from(entry)) {
        return Err(ElfError::EntryOutside { entry: u64::from(entry) }.into());
    }
    write_cmdline(ram, guest.cmdline)?;
    let placed = place_modules(ram, map, guest.modules, &span)?;
    let info = information(map, &placed).ok_or(MultibootError::TooManyModules)?;
    ram.write(layout::BOOT_INFO, &info)?;
    map.write_bda(ram)?;
    state::gdt::write(ram)?;
    let mut state = InitialState::flat32(entry);
    state.gprs[state::RAX] = LOADER_MAGIC;
    state.gprs[state::RBX] = layout::BOOT_INFO;
    // Not promised, but found behind other loaders: some kernels call before they have a stack of their own.
    state.gprs[state::RSP] = layout::BOOT_STACK_TOP;
    Ok(state)
}

/// The information structure, the module list, the memory map, then the modules' command lines; `None` if too long.
fn information(map: &MemoryMap, modules: &[(u64, u64, &[u8])]) -> Option<Vec<u8>> {
    let list = layout::BOOT_INFO + INFO_SIZE;
    let memmap = list + 16 * modules.len() as u64;
    let memmap_len = 24 * map.e820().len() as u64;
    let loader = memmap + memmap_len;
    let mut string = loader + LOADER_NAME.len() as u64;
    let words = [
        INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMMAP | INFO_LOADER,
        (layout::EBDA_BASE >> 10) as u32,
        ((map.low_end() - layout::ONE_MIB) >> 10) as u32,
        0,
        layout::BOOT_CMDLINE as u32,
        modules.len() as u32,
        list as u32,
        0,
        0,
        0,
        0,
        memmap_len as u32,
        memmap as u32,
        0,
        0,
        0,
        loader as u32,
    ];
    let mut out = Vec::new();
    let mut put = |word: u32| out.extend_from_slice(&word.to_le_bytes());
    words.iter().for_each(|&w| put(w));
    (words.len()..INFO_SIZE as usize / 4).for_each(|_| put(0));
    for (base, size, cmdline) in modules {
        [*base as u32, (base + size) as u32, string as u32, 0].iter().for_each(|&w| put(w));
        string += cmdline.len() as u64 + 1;
    }
    for entry in map.e820() {
        // The size field does not count itself.
        [
            20,
            entry.base as u32,
            (entry.base >> 32) as u32,
            entry.size as u32,
            (entry.size >> 32) as u32,
            entry.kind as u32,
        ]
        .iter()
        .for_each(|&w| put(w));
    }
    out.extend_from_slice(LOADER_NAME);
    for (_, _, cmdline) in modules {
        out.extend_from_slice(cmdline);
        out.push(0);
    }
    (out.len() as u64 <= INFO_LIMIT).then_some(out)
}
