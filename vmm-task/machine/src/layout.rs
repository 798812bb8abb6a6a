//! The fixed guest-physical addresses and ports of the machine.
//!
//! Modelled on the q35 chip set, so that firmware and old kernels find what they expect. Devices, ACPI tables, loaders
//! and the memory map all take their addresses from here.

/// RAM below 4 GiB ends here at the latest: the ECAM follows.
pub const LOW_RAM_LIMIT: u64 = 0xB000_0000;
/// RAM that does not fit below [`LOW_RAM_LIMIT`] goes on here.
pub const HIGH_RAM_BASE: u64 = 0x1_0000_0000;
/// PCI Express configuration space (MCFG), buses 0 to 255.
pub const ECAM_BASE: u64 = 0xB000_0000;
/// Size of the ECAM: 1 MiB a bus.
pub const ECAM_SIZE: u64 = 0x1000_0000;
/// 32-bit PCI memory window, first byte.
pub const PCI_WINDOW_BASE: u64 = 0xC000_0000;
/// 32-bit PCI memory window, last byte.
pub const PCI_WINDOW_LAST: u64 = 0xFEBF_FFFF;
/// I/O APIC registers.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// High-precision event timer registers. Only machines with firmware have a table that names it.
pub const HPET_BASE: u64 = 0xFED0_0000;
/// Bytes of the HPET's registers.
pub const HPET_SIZE: u64 = 0x400;
/// Low half of the HPET's capabilities: vendor, legacy replacement, 64-bit counter, three timers, revision.
pub const HPET_ID: u32 = 0x8086_A201;
/// Least period of the HPET's timers, in ticks of its counter.
pub const HPET_MIN_TICK: u16 = 128;
/// Local APIC registers after reset.
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// One page of device registers.
pub const DEVICE_PAGE: u64 = 0x1000;

/// Extended BIOS data area: conventional memory ends here.
pub const EBDA_BASE: u64 = 0x9_FC00;
/// First byte above conventional memory (VGA window, option ROMs).
pub const CONVENTIONAL_END: u64 = 0xA_0000;
/// BIOS area: the RSDP and the other ACPI tables lie here for guests that are booted without firmware.
pub const BIOS_BASE: u64 = 0xE_0000;
/// Linkers put a page of ELF headers before an image at 1 MiB: it may lie here, where no table reaches.
pub const HEADERS_BASE: u64 = ONE_MIB - 0x1000;
/// Extended memory begins here.
pub const ONE_MIB: u64 = 0x10_0000;

/// BIOS data area word with the first serial port's base.
pub const BDA_COM1: u64 = 0x400;
/// The first serial port.
pub const COM1_PORT: u16 = 0x3F8;
/// BIOS data area word with the EBDA's real-mode segment.
pub const BDA_EBDA_SEGMENT: u64 = 0x40E;
/// BIOS data area word with the kilobytes of conventional memory.
pub const BDA_CONVENTIONAL_KIB: u64 = 0x413;

/// First byte of what loaders put into conventional memory: its top, because kernels for the bottom of memory exist.
pub const BOOT_BASE: u64 = 0x8_1000;
/// Where loaders put the initial GDT.
pub const BOOT_GDT: u64 = BOOT_BASE;
/// Linux `boot_params` (one page), or the start information of PVH or Multiboot.
pub const BOOT_INFO: u64 = 0x8_2000;
/// Initial page tables: PML4, PDPT and four page directories.
pub const BOOT_PAGE_TABLES: u64 = 0x8_4000;
/// Command line.
pub const BOOT_CMDLINE: u64 = 0x9_0000;
/// Most bytes a command line may take with its terminating zero.
pub const BOOT_CMDLINE_MAX: u64 = 0xF000;
/// First byte of conventional memory where an image may lie: below are the interrupt vectors and the BIOS data area.
pub const LOADABLE_BASE: u64 = 0x1000;
/// Initial stack of guests whose boot protocol promises none; it grows down from here.
pub const BOOT_STACK_TOP: u64 = 0x8_0000;

/// GSI of the system control interrupt: level, active high.
pub const SCI_GSI: u32 = 9;
/// PM1a event block (4 bytes).
pub const PM1A_EVENT_PORT: u16 = 0x600;
/// PM1a control register (2 bytes).
pub const PM1A_CONTROL_PORT: u16 = 0x604;
/// PM timer (4 bytes).
pub const PM_TIMER_PORT: u16 = 0x608;
/// Reset control register.
pub const RESET_PORT: u16 = 0xCF9;
/// What to write to [`RESET_PORT`] for a full reset.
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP value of `\_S5` (soft off), as in bits 12:10 of PM1 control.
pub const S5_SLEEP_TYPE: u8 = 5;
/// CMOS index of the century byte (FADT `CENTURY`).
pub const CMOS_CENTURY: u8 = 0x32;
/// First GSI of the PCI interrupt lines; they are [`PCI_GSI_COUNT`].
pub const PCI_GSI_BASE: u32 = 16;
/// How many GSIs the PCI interrupt lines share.
pub const PCI_GSI_COUNT: u32 = 8;

/// The GSI that interrupt pin `pin` (0 = INTA) of PCI slot `slot` on bus 0 is wired to.
///
/// One formula for the `_PRT` and for the device model, so that they cannot disagree.
#[must_use]
pub const fn pci_gsi(slot: u8, pin: u8) -> u32 {
    PCI_GSI_BASE + (slot as u32 + pin as u32) % PCI_GSI_COUNT
}
