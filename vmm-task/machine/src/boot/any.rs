//! Any image by the protocol that its content asks for.

use super::image::{self, Found, Protocol};
use super::{ElfError, InitialState, Module, firmware, flat, linux, multiboot, multiboot2, pvh};
use crate::acpi::{AcpiConfig, AcpiError, Tables};
use crate::memory_map::MemoryMap;
use crate::mp_table::{self, MpConfig};
use crate::{GuestRam, OutOfRange};
use core::fmt;

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
    Ram(OutOfRange),
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
            BootError::Linux(error) => write!(f, "the bzImage is refused: {error}"),
            BootError::Elf(error) => write!(f, "the ELF image is refused: {error}"),
            BootError::Multiboot(error) => write!(f, "the Multiboot kernel is refused: {error}"),
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
    ram: &mut dyn GuestRam,
    map: &MemoryMap,
    cpus: u32,
    guest: &Guest<'_>,
    (signature, features): (u32, u32),
) -> Result<InitialState, BootError> {
    if let Some(image) = guest.firmware {
        return firmware::load(ram, image, signature).map_err(BootError::Firmware);
    }
    let config = AcpiConfig::new(cpus);
    let tables = Tables::build_in_bios_area(&config).map_err(BootError::Acpi)?;
    tables.write(ram).map_err(BootError::Ram)?;
    map.write_bda(ram).map_err(BootError::Ram)?;
    let old = MpConfig { cpus, signature: (signature, features), ioapic_id: config.ioapic_id };
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
fn elf(ram: &mut dyn GuestRam, map: &MemoryMap, guest: &Guest<'_>, rsdp: u64) -> Result<InitialState, BootError> {
    let (kernel, modules, cmdline) = (guest.kernel, guest.modules, guest.cmdline);
    match pvh::load(ram, map, &pvh::PvhGuest { kernel, modules, cmdline, rsdp }) {
        Err(ElfError::NoPvhNote) if modules.is_empty() => {}
        Err(ElfError::NoPvhNote) => return Err(BootError::Modules),
        other => return other.map_err(BootError::Elf),
    }
    let guest = flat::FlatGuest { image: kernel, cmdline, argument: ram.size() };
    flat::load(ram, map, &guest).map_err(BootError::Elf)
}
