//! Linux bzImage by the 64-bit boot protocol, or where it has no such entry point by the 32-bit one
//! (Documentation/arch/x86/boot.rst, protocol 2.10 and newer).
//!
//! The setup part of a bzImage is not run: its header is checked and copied into `boot_params`, the payload goes to the
//! address it prefers, and the processor starts at payload + 200h in 64-bit mode on an identity map, or at the payload in
//! 32-bit protected mode without paging.

use super::{InitialState, Module, Range, paging, place_high, state};
use crate::memory_map::MemoryMap;
use crate::{GuestRam, OutOfRange, fill_zero, layout};
use alloc::vec;
use core::mem::{offset_of, size_of};
use linux_boot_params::{BootE820Entry, BootParams, LINUX_BOOT_HEADER_MAGIC, SetupHeader};
use static_assertions::const_assert_eq;

const BOOT_PARAMS_SIZE: usize = size_of::<BootParams>();
const_assert_eq!(BOOT_PARAMS_SIZE, 4096);
const HEADER: usize = offset_of!(BootParams, hdr);
/// The setup header may grow up to the next field of `boot_params`.
const HEADER_LIMIT: usize = offset_of!(BootParams, edd_mbr_sig_buffer);
/// The header's second word is a jump over the header; its displacement tells where the header ends.
const HEADER_JUMP_END: usize = HEADER + offset_of!(SetupHeader, header);
/// The first with `pref_address` and `init_size`.
const OLDEST_VERSION: u16 = 0x020A;
/// The first with `xloadflags`.
const VERSION_64: u16 = 0x020C;
const BOOT_FLAG: u16 = 0xAA55;
const LOADED_HIGH: u8 = 1;
const XLF_KERNEL_64: u16 = 1;
const LOADER_UNDEFINED: u8 = 0xFF;
const ENTRY_64: u64 = 0x200;
const SECTOR: usize = 512;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct LinuxGuest<'a> {
    /// The bzImage.
    pub kernel: &'a [u8],
    /// Initial RAM disks: the kernel gets them as one, each on four bytes, as it takes archives that follow each other.
    pub modules: &'a [Module<'a>],
    /// Command line, without a terminating zero.
    pub cmdline: &'a [u8],
    /// Guest-physical address of the ACPI RSDP, 0 if there is none.
    pub rsdp: u64,
}

/// Why a kernel cannot be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinuxError {
    /// The image ends inside its setup header.
    TooShort {
        /// Bytes in the image.
        len: usize,
    },
    /// Not AA55h at 1FEh: no boot sector.
    NoBootFlag {
        /// What stands there.
        found: u16,
    },
    /// Not "HdrS" at 202h: no kernel, or one before protocol 2.00.
    NoMagic {
        /// What stands there.
        found: u32,
    },
    /// Older than protocol 2.10.
    OldProtocol {
        /// The image's protocol version.
        version: u16,
    },
    /// The header claims to end outside the room `boot_params` has for it.
    HeaderLength {
        /// Offset of the header's claimed end.
        end: usize,
    },
    /// A zImage, which loads below 1 MiB.
    NotLoadedHigh,
    /// The image ends before the payload that its header promises.
    Truncated {
        /// Bytes the header promises.
        needed: u64,
        /// Bytes there are.
        len: usize,
    },
    /// The header promises no payload at all.
    NoPayload,
    /// `kernel_alignment` is not a power of two.
    BadAlignment {
        /// What the header says.
        alignment: u32,
    },
    /// The kernel wants to lie below 1 MiB and cannot be moved.
    LoadsTooLow {
        /// Address it prefers.
        address: u64,
    },
    /// The kernel with its working space does not fit into the RAM below the PCI hole.
    KernelDoesNotFit {
        /// Where it must begin.
        address: u64,
        /// Bytes it needs from there (`init_size` or its payload).
        needed: u64,
        /// Where RAM ends.
        ram_end: u64,
    },
    /// No room for the initial RAM disk.
    InitrdDoesNotFit {
        /// Its size.
        size: u64,
        /// The highest address it may reach: `initrd_addr_max` or the end of RAM.
        limit: u64,
    },
    /// The command line is longer than this kernel, or the room for it, takes.
    CmdlineTooLong {
        /// Its length.
        len: usize,
        /// Most it may be.
        max: usize,
    },
    /// The command line contains a zero byte.
    CmdlineHasZero,
    /// RAM is smaller than the memory map says.
    Ram(OutOfRange),
}

impl From<OutOfRange> for LinuxError {
    fn from(e: OutOfRange) -> Self {
        Self::Ram(e)
    }
}

/// What the header of a bzImage says, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    raw: &'a [u8],
    payload: &'a [u8],
    /// Whether it has a 64-bit entry point.
    long: bool,
    relocatable: bool,
    alignment: u64,
    pref_address: u64,
    init_size: u64,
    initrd_addr_max: u64,
    cmdline_size: usize,
}

/// Reads a field of the setup header of an image that is known to be long enough.
macro_rules! field {
    ($image:expr, $field:ident, $type:ty) => {{
        const AT: usize = HEADER + offset_of!(SetupHeader, $field);
        let mut bytes = [0; size_of::<$type>()];
        bytes.copy_from_slice(&$image[AT..AT + size_of::<$type>()]);
        <$type>::from_le_bytes(bytes)
    }};
}

/// Writes a field of `boot_params` (or of its setup header).
macro_rules! put {
    ($params:expr, $field:ident, $value:expr) => {
        put_at($params, offset_of!(BootParams, $field), &$value.to_le_bytes())
    };
    ($params:expr, hdr.$field:ident, $value:expr) => {
        put_at($params, HEADER + offset_of!(SetupHeader, $field), &$value.to_le_bytes())
    };
}

fn put_at(params: &mut [u8], at: usize, bytes: &[u8]) {
    params[at..at + bytes.len()].copy_from_slice(bytes);
}

impl<'a> Header<'a> {
    /// Checks the header of `image`.
    ///
    /// # Errors
    /// [`LinuxError`] naming the first field that is wrong.
    pub fn parse(image: &'a [u8]) -> Result<Self, LinuxError> {
        if image.len() < HEADER + size_of::<SetupHeader>() {
            return Err(LinuxError::TooShort { len: image.len() });
        }
        let boot_flag = field!(image, boot_flag, u16);
        if boot_flag != BOOT_FLAG {
            return Err(LinuxError::NoBootFlag { found: boot_flag });
        }
        let magic = field!(image, header, u32);
        if magic != LINUX_BOOT_HEADER_MAGIC {
            return Err(LinuxError::NoMagic { found: magic });
        }
        let version = field!(image, version, u16);
        if version < OLDEST_VERSION {
            return Err(LinuxError::OldProtocol { version });
        }
        let end = HEADER_JUMP_END + usize::from(image[HEADER_JUMP_END - 1]);
        // Up to init_size everything is read here, so a header that claims to end before it is lying.
        let least = HEADER + offset_of!(SetupHeader, init_size) + size_of::<u32>();
        if end < least || end > HEADER_LIMIT || end > image.len() {
            return Err(LinuxError::HeaderLength { end });
        }
        if field!(image, loadflags, u8) & LOADED_HIGH == 0 {
            return Err(LinuxError::NotLoadedHigh);
        }
        let alignment = field!(image, kernel_alignment, u32);
        if !alignment.is_power_of_two() {
            return Err(LinuxError::BadAlignment { alignment });
        }
        Ok(Self {
            raw: &image[HEADER..end],
            payload: Self::payload(image)?,
            long: version >= VERSION_64 && field!(image, xloadflags, u16) & XLF_KERNEL_64 != 0,
            relocatable: field!(image, relocatable_kernel, u8) != 0,
            alignment: u64::from(alignment),
            pref_address: field!(image, pref_address, u64),
            init_size: u64::from(field!(image, init_size, u32)),
            initrd_addr_max: u64::from(field!(image, initrd_addr_max, u32)),
            cmdline_size: field!(image, cmdline_size, u32) as usize,
        })
    }

    fn payload(image: &'a [u8]) -> Result<&'a [u8], LinuxError> {
        // Zero means four, for kernels from before the field.
        let sectors = match field!(image, setup_sects, u8) {
            0 => 4,
            n => usize::from(n),
        };
        let start = (sectors + 1) * SECTOR;
        let size = u64::from(field!(image, syssize, u32)) * 16;
        if size <= ENTRY_64 {
            return Err(LinuxError::NoPayload);
        }
        let needed = start as u64 + size;
        // The size is rounded up to 16 bytes, and some images end before it.
        let end = usize::try_from(needed).ok().filter(|&end| end < image.len() + 16).map(|end| end.min(image.len()));
        let Some(end) = end else {
            return Err(LinuxError::Truncated { needed, len: image.len() });
        };
        Ok(&image[start..end])
    }

    /// Where the kernel goes, with the space it unpacks into.
    fn place(&self, map: &MemoryMap) -> Result<Range, LinuxError> {
        let needed = self.init_size.max(self.payload.len() as u64);
        let mut address = self.pref_address;
        if self.relocatable {
            // The unpacker moves itself up to the preferred address anyway, so lower is never better.
            address = address
                .max(layout::ONE_MIB)
                .checked_next_multiple_of(self.alignment)
                .ok_or(LinuxError::KernelDoesNotFit { address, needed, ram_end: map.low_end() })?;
        } else if address < layout::ONE_MIB {
            return Err(LinuxError::LoadsTooLow { address });
        }
        match address.checked_add(needed) {
            Some(end) if end <= map.low_end() => Ok(address..end),
            _ => Err(LinuxError::KernelDoesNotFit { address, needed, ram_end: map.low_end() }),
        }
    }
}

/// Puts a Linux kernel, its initrd and its parameters into `ram`, and returns the boot processor's state.
///
/// Also writes the GDT, the page tables and the BIOS data area's two words. Writes the image once; `ram` need not be
/// zero, except that Linux's own unpacker clears what it needs.
///
/// # Errors
/// [`LinuxError`]; RAM may be partly written then and the VM must not be started.
pub fn load(ram: &mut dyn GuestRam, map: &MemoryMap, guest: &LinuxGuest) -> Result<InitialState, LinuxError> {
    let header = Header::parse(guest.kernel)?;
    let kernel = header.place(map)?;
    check_cmdline(&header, guest.cmdline)?;
    let size = guest.modules.iter().map(|module| (module.bytes.len() as u64).next_multiple_of(4)).sum();
    let initrd = if size > 0 { Some((place_initrd(&header, map, &kernel, size)?, size)) } else { None };

    ram.write(kernel.start, header.payload)?;
    if let Some((mut base, _)) = initrd {
        for module in guest.modules {
            ram.write(base, module.bytes)?;
            let end = base + module.bytes.len() as u64;
            base = end.next_multiple_of(4);
            fill_zero(ram, end, base - end)?;
        }
    }
    ram.write(layout::BOOT_CMDLINE, guest.cmdline)?;
    ram.write(layout::BOOT_CMDLINE + guest.cmdline.len() as u64, &[0])?;
    let params = boot_params(&header, map, guest, initrd);
    ram.write(layout::BOOT_INFO, &params)?;
    map.write_bda(ram)?;
    let mut state = if header.long {
        state::gdt::write(ram)?;
        InitialState::long(kernel.start + ENTRY_64, paging::identity_map(ram)?)
    } else {
        state::gdt::write_linux32(ram)?;
        InitialState::linux32(kernel.start as u32)
    };
    state.gprs[state::RSI] = layout::BOOT_INFO;
    state.gprs[state::RSP] = layout::BOOT_STACK_TOP;
    Ok(state)
}

fn check_cmdline(header: &Header, cmdline: &[u8]) -> Result<(), LinuxError> {
    let max = header.cmdline_size.min(layout::BOOT_CMDLINE_MAX as usize - 1);
    if cmdline.len() > max {
        return Err(LinuxError::CmdlineTooLong { len: cmdline.len(), max });
    }
    if cmdline.contains(&0) {
        return Err(LinuxError::CmdlineHasZero);
    }
    Ok(())
}

fn place_initrd(header: &Header, map: &MemoryMap, kernel: &Range, size: u64) -> Result<u64, LinuxError> {
    let limit = header.initrd_addr_max + 1;
    place_high(map, size, limit, kernel).ok_or(LinuxError::InitrdDoesNotFit { size, limit: limit.min(map.low_end()) })
}

fn boot_params(header: &Header, map: &MemoryMap, guest: &LinuxGuest, initrd: Option<(u64, u64)>) -> vec::Vec<u8> {
    let mut page = vec![0u8; BOOT_PARAMS_SIZE];
    let params = page.as_mut_slice();
    // The protocol wants everything outside the header zero.
    put_at(params, HEADER, header.raw);
    put!(params, hdr.type_of_loader, LOADER_UNDEFINED);
    put!(params, hdr.ext_loader_type, 0u8);
    put!(params, hdr.ext_loader_ver, 0u8);
    put!(params, hdr.loadflags, LOADED_HIGH);
    put!(params, hdr.vid_mode, 0xFFFFu16);
    put!(params, hdr.setup_data, 0u64);
    put!(params, hdr.hardware_subarch, 0u32);
    put!(params, hdr.hardware_subarch_data, 0u64);
    put!(params, hdr.cmd_line_ptr, layout::BOOT_CMDLINE as u32);
    put!(params, acpi_rsdp_addr, guest.rsdp);
    let (base, size) = initrd.unwrap_or((0, 0));
    // Initrds lie in low RAM, so the halves above 4 GiB stay zero.
    put!(params, hdr.ramdisk_image, base as u32);
    put!(params, hdr.ramdisk_size, size as u32);
    put!(params, ext_ramdisk_image, ((base >> 32) as u32));
    put!(params, ext_ramdisk_size, ((size >> 32) as u32));
    put!(params, e820_entries, (map.e820().len() as u8));
    let mut at = offset_of!(BootParams, e820_table);
    for entry in map.e820() {
        put_at(params, at + offset_of!(BootE820Entry, addr), &entry.base.to_le_bytes());
        put_at(params, at + offset_of!(BootE820Entry, size), &entry.size.to_le_bytes());
        put_at(params, at + offset_of!(BootE820Entry, typ), &(entry.kind as u32).to_le_bytes());
        at += size_of::<BootE820Entry>();
    }
    page
}

#[cfg(test)]
#[path = "linux_tests.rs"]
mod tests;
