//! From an image to the first instruction: which protocol, and the registers it wants.

use crate::ram::Ram;
use crate::state::{StatePage, field};
use core::fmt;
use moira_abi::vcpu::{self, group, seg};
use vmm_machine::acpi::{AcpiConfig, AcpiError, Tables};
use vmm_machine::boot::{self, ElfError, InitialState, firmware, flat, linux, pvh};
use vmm_machine::memory_map::MemoryMap;

/// What to boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guest<'a> {
    /// Firmware, to be started at the reset vector; then all else is ignored. It stands in the machine's ROM already.
    pub firmware: Option<&'a [u8]>,
    /// Kernel: a bzImage, a PVH ELF or a 64-bit ELF of our own.
    pub kernel: &'a [u8],
    /// Initial RAM disk.
    pub initrd: Option<&'a [u8]>,
    /// Command line.
    pub cmdline: &'a [u8],
}

/// Why it cannot be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// Neither a bzImage nor an ELF file.
    UnknownImage,
    /// The bzImage is refused.
    Linux(linux::LinuxError),
    /// The ELF image is refused.
    Elf(ElfError),
    /// No ACPI tables could be made.
    Acpi(AcpiError),
    /// The tables do not fit into RAM.
    Ram(vmm_machine::OutOfRange),
    /// The firmware is refused.
    Firmware(firmware::FirmwareError),
}

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BootError::UnknownImage => f.write_str("the guest kernel is neither a bzImage nor an ELF file"),
            BootError::Linux(error) => write!(f, "the bzImage is refused: {error:?}"),
            BootError::Elf(error) => write!(f, "the ELF image is refused: {error:?}"),
            BootError::Acpi(error) => write!(f, "no ACPI tables: {error:?}"),
            BootError::Ram(error) => write!(f, "the ACPI tables do not fit: {error:?}"),
            BootError::Firmware(error) => write!(f, "the firmware is refused: {error}"),
        }
    }
}

/// Firmware gets a processor after reset and finds everything else by itself. Else puts ACPI tables and the image into RAM: a bzImage by Linux's 64-bit protocol, an ELF file with a PVH note by PVH, any
/// other ELF file as one of our own.
///
/// # Errors
/// [`BootError`]; RAM may be partly written.
pub fn load(ram: &mut Ram<'_>, map: &MemoryMap, guest: &Guest<'_>, signature: u32) -> Result<InitialState, BootError> {
    if let Some(image) = guest.firmware {
        return firmware::load(ram, image, signature).map_err(BootError::Firmware);
    }
    let tables = Tables::build_in_bios_area(&AcpiConfig::new(1)).map_err(BootError::Acpi)?;
    tables.write(ram).map_err(BootError::Ram)?;
    let (kernel, initrd, cmdline, rsdp) = (guest.kernel, guest.initrd, guest.cmdline, tables.rsdp());
    if kernel.get(0x202..0x206) == Some(b"HdrS") {
        let guest = linux::LinuxGuest { kernel, initrd, cmdline, rsdp };
        return linux::load(ram, map, &guest).map_err(BootError::Linux);
    }
    if !kernel.starts_with(b"\x7fELF") {
        return Err(BootError::UnknownImage);
    }
    match pvh::load(ram, map, &pvh::PvhGuest { kernel, initrd, cmdline, rsdp }) {
        Err(ElfError::NoPvhNote) => {}
        other => return other.map_err(BootError::Elf),
    }
    let guest = flat::FlatGuest { image: kernel, cmdline, argument: ram.bytes() };
    flat::load(ram, map, &guest).map_err(BootError::Elf)
}

/// PAT after reset (SDM 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Fills the state page for a processor that starts in `initial`; answers the groups to load.
#[must_use]
pub fn fill(page: &StatePage<'_>, initial: &InitialState) -> u64 {
    page.set_gprs(&initial.gprs);
    for (word, value) in [
        (field::RIP, initial.rip),
        (field::RFLAGS, initial.rflags),
        (field::INTERRUPTIBILITY, 0),
        (field::INJECT, 0),
        (field::INJECT_LENGTH, 0),
        (field::REQUEST, 0),
        (field::CR0, initial.cr0),
        (field::CR2, 0),
        (field::CR3, initial.cr3),
        (field::CR4, initial.cr4),
        (field::EFER, initial.efer),
        (field::CPL, 0),
        (field::STAR, 0),
        (field::LSTAR, 0),
        (field::CSTAR, 0),
        (field::SFMASK, 0),
        (field::KERNEL_GS_BASE, 0),
        (field::SYSENTER_CS, 0),
        (field::SYSENTER_ESP, 0),
        (field::SYSENTER_EIP, 0),
        (field::PAT, PAT_RESET),
        (field::DR, 0),
        (field::DR.plus(1), 0),
        (field::DR.plus(2), 0),
        (field::DR.plus(3), 0),
        (field::DR6, 0xffff_0ff0),
        (field::DR7, 0x400),
        (field::TSC_OFFSET, 0),
        (field::TSC_AUX, 0),
        (field::XCR0, 1),
        (field::SPEC_CTRL, 0),
    ] {
        page.set(word, value);
    }
    for (index, segment) in [
        (seg::ES, &initial.es),
        (seg::CS, &initial.cs),
        (seg::SS, &initial.ss),
        (seg::DS, &initial.ds),
        (seg::FS, &initial.fs),
        (seg::GS, &initial.gs),
        (seg::LDTR, &initial.ldtr),
        (seg::TR, &initial.tr),
    ] {
        page.set_segment(index, &convert(segment));
    }
    page.set_table(field::GDTR, initial.gdtr.base, initial.gdtr.limit.into());
    page.set_table(field::IDTR, initial.idtr.base, initial.idtr.limit.into());
    group::ALL & !group::PDPTE
}

fn convert(segment: &boot::Segment) -> vcpu::Segment {
    vcpu::Segment {
        selector: segment.selector,
        rights: segment.access.into(),
        limit: segment.limit,
        base: segment.base,
        ..vcpu::Segment::default()
    }
}
