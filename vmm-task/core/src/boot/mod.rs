//! From an image to the first instruction: which protocol, and the registers it wants.

mod image;

use crate::ram::Ram;
use crate::state::{StatePage, field};
use alloc::vec::Vec;
use core::fmt;
pub use image::Found;
use image::Protocol;
use moira_abi::vcpu::{self, group, seg};
use vmm_devices::platform::IOAPIC_ID;
use vmm_machine::acpi::{AcpiConfig, AcpiError, Tables};
pub use vmm_machine::boot::Module;
use vmm_machine::boot::{self, ElfError, InitialState, firmware, flat, linux, multiboot, multiboot2, pvh};
use vmm_machine::memory_map::MemoryMap;
use vmm_machine::mp_table::{self, MpConfig};

/// What to boot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Guest<'a> {
    /// Firmware, to be started at the reset vector; then all else is ignored. It stands in the machine's ROM already.
    pub firmware: Option<&'a [u8]>,
    /// Kernel: a bzImage, an ELF file with a PVH note, a Multiboot kernel, or any other 64-bit ELF file.
    pub kernel: &'a [u8],
    /// Modules; the first is the initial RAM disk if there is one.
    pub modules: &'a [Module<'a>],
    /// Command line.
    pub cmdline: &'a [u8],
}

/// The files of an archive of modules ("newc" cpio); their names are their command lines.
#[must_use]
pub fn modules(archive: &[u8]) -> Vec<Module<'_>> {
    let files = cpio_reader::iter_files(archive);
    files.map(|file| Module { bytes: file.file(), cmdline: file.name().trim_end_matches('\0').as_bytes() }).collect()
}

/// Why it cannot be booted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BootError {
    /// No kernel that can be booted.
    NoKernel(Found),
    /// The bzImage is refused.
    Linux(linux::LinuxError),
    /// The ELF image is refused.
    Elf(ElfError),
    /// The Multiboot kernel is refused.
    Multiboot(multiboot::MultibootError),
    /// This protocol knows no modules.
    Modules,
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
            BootError::NoKernel(found) => write!(
                f,
                "the guest kernel is {found}; a Linux bzImage, an ELF file with a PVH note, a Multiboot kernel or any other \
                 64-bit ELF file was expected"
            ),
            BootError::Linux(error) => write!(f, "the bzImage is refused: {error:?}"),
            BootError::Elf(error) => write!(f, "the ELF image is refused: {error:?}"),
            BootError::Multiboot(error) => write!(f, "the Multiboot kernel is refused: {error:?}"),
            BootError::Modules => f.write_str(
                "there are modules or a RAM disk, and the kernel is a plain 64-bit ELF file, which is given none",
            ),
            BootError::Acpi(error) => write!(f, "no ACPI tables: {error:?}"),
            BootError::Ram(error) => write!(f, "the ACPI tables do not fit: {error:?}"),
            BootError::Firmware(error) => write!(f, "the firmware is refused: {error}"),
        }
    }
}

/// Starts firmware, which finds everything by itself; else puts ACPI tables and the image into RAM, by the protocol that its
/// content asks for. `signature` and `features` are CPUID leaf 1's EAX and EDX.
///
/// # Errors
/// [`BootError`]; RAM may be partly written.
pub fn load(
    ram: &mut Ram<'_>,
    map: &MemoryMap,
    cpus: u32,
    guest: &Guest<'_>,
    (signature, features): (u32, u32),
) -> Result<InitialState, BootError> {
    if let Some(image) = guest.firmware {
        return firmware::load(ram, image, signature).map_err(BootError::Firmware);
    }
    let tables = Tables::build_in_bios_area(&AcpiConfig::new(cpus)).map_err(BootError::Acpi)?;
    tables.write(ram).map_err(BootError::Ram)?;
    map.write_bda(ram).map_err(BootError::Ram)?;
    let old = MpConfig { cpus, signature: (signature, features), ioapic_id: IOAPIC_ID };
    mp_table::write(&old, ram).map_err(BootError::Ram)?;
    let (kernel, modules, cmdline, rsdp) = (guest.kernel, guest.modules, guest.cmdline, tables.rsdp());
    let multiboot = multiboot::MultibootGuest { kernel, cmdline, modules };
    match image::protocol(kernel, pvh::has_note).map_err(BootError::NoKernel)? {
        Protocol::Linux => {
            let guest = linux::LinuxGuest { kernel, modules, cmdline, rsdp };
            linux::load(ram, map, &guest).map_err(BootError::Linux)
        }
        Protocol::Multiboot => multiboot::load(ram, map, &multiboot).map_err(BootError::Multiboot),
        Protocol::Multiboot2 => {
            multiboot2::load(ram, map, &multiboot, tables.rsdp_bytes()).map_err(BootError::Multiboot)
        }
        Protocol::Elf => elf(ram, map, guest, rsdp),
    }
}

/// An ELF file with a PVH note by PVH, any other as it is.
fn elf(ram: &mut Ram<'_>, map: &MemoryMap, guest: &Guest<'_>, rsdp: u64) -> Result<InitialState, BootError> {
    let (kernel, modules, cmdline) = (guest.kernel, guest.modules, guest.cmdline);
    match pvh::load(ram, map, &pvh::PvhGuest { kernel, modules, cmdline, rsdp }) {
        Err(ElfError::NoPvhNote) if modules.is_empty() => {}
        Err(ElfError::NoPvhNote) => return Err(BootError::Modules),
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
