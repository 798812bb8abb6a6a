//! Where everything is: the addresses, interrupts and identities of the virtual q35 machine.
//!
//! The ACPI tables, the boot loaders and the models all take them from here, so that they cannot disagree.

/// Base of the local APICs' register page after reset (SDM 3A, 11.4.1).
pub const LAPIC_BASE: u64 = 0xFEE0_0000;
/// Base of the I/O APIC's register page.
pub const IOAPIC_BASE: u64 = 0xFEC0_0000;
/// Bytes decoded by the I/O APIC.
pub const IOAPIC_SIZE: u64 = 0x1000;
/// The I/O APIC's id in the MADT and in its ID register.
pub const IOAPIC_ID: u8 = 0;
/// Input pins of the I/O APIC; they are GSIs 0 to 23.
pub const IOAPIC_PINS: u8 = 24;
/// Base of PCI Express' memory-mapped configuration space, for buses 0 to 255.
pub const ECAM_BASE: u64 = 0xB000_0000;
/// Bytes of PCI Express' configuration space: 256 buses of 1 MiB.
pub const ECAM_SIZE: u64 = 0x1000_0000;
/// First address of the window for PCI memory BARs.
pub const PCI_MMIO_BASE: u64 = 0xC000_0000;
/// First address past the window for PCI memory BARs.
pub const PCI_MMIO_END: u64 = 0xFEC0_0000;
/// First port of the window for PCI I/O BARs.
pub const PCI_IO_BASE: u16 = 0xC000;
/// High-precision event timer.
pub const HPET_BASE: u64 = 0xFED0_0000;
/// Bytes decoded by the HPET.
pub const HPET_SIZE: u64 = 0x400;

/// Base port of the ACPI registers (ICH9's PMBASE).
pub const PM_BASE: u16 = 0x600;
/// Ports decoded from [`PM_BASE`].
pub const PM_SIZE: u16 = 0x80;
/// PM1a event block: status at +0, enable at +2.
pub const PM1A_EVT: u16 = PM_BASE;
/// PM1a control block.
pub const PM1A_CNT: u16 = PM_BASE + 4;
/// PM timer, 32 bits.
pub const PM_TMR: u16 = PM_BASE + 8;
/// Frequency of the PM timer in Hz (ACPI 6.5, 4.8.3.3).
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// The system control interrupt: this GSI, level-triggered, active high.
pub const SCI_GSI: u8 = 9;
/// SLP_TYP that means S5 in PM1a_CNT; the DSDT's `\_S5` must say the same.
pub const SLP_TYP_S5: u8 = 5;
/// Reset control register.
pub const RESET_PORT: u16 = 0xCF9;
/// The value that resets the machine.
pub const RESET_VALUE: u8 = 0x06;

/// Ports of the first serial port.
pub const COM1_PORT: u16 = 0x3F8;
/// Interrupt of the first serial port.
pub const COM1_IRQ: u8 = 4;
/// Index port of the real-time clock; data is the next one.
pub const RTC_PORT: u16 = 0x70;
/// Interrupt of the real-time clock.
pub const RTC_IRQ: u8 = 8;
/// Interrupt of the keyboard channel.
pub const KBD_IRQ: u8 = 1;
/// ISA interrupt of PIT channel 0.
pub const PIT_IRQ: u8 = 0;
/// GSI of PIT channel 0 (MADT override: IRQ 0 is GSI 2).
pub const PIT_GSI: u8 = 2;
/// Input frequency of the PIT in Hz.
pub const PIT_HZ: u64 = 1_193_182;

/// Ports of the firmware configuration device: selector, data, and DMA at +4.
pub const FW_CFG_PORT: u16 = 0x510;

/// PCI slot of the virtio console.
pub const SLOT_CONSOLE: u8 = 1;
/// PCI slot of the first virtio disk.
pub const SLOT_BLOCK: u8 = 2;
/// PCI slot of the virtio entropy source.
pub const SLOT_ENTROPY: u8 = 3;
/// PCI slot of the LPC bridge, the last one.
pub const SLOT_LPC: u8 = 31;
/// First GSI of PCI's INTx pins; there are eight.
pub const PCI_GSI_BASE: u8 = 16;

/// The GSI of INTx pin `pin` (0 is INTA) of slot `slot` on the root bus. `_PRT` must say the same.
#[must_use]
pub const fn intx_gsi(slot: u8, pin: u8) -> u8 {
    PCI_GSI_BASE + (slot.wrapping_add(pin) & 7)
}
