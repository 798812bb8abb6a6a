//! Message-signalled interrupts: writes address and data into the function and switches them on (PCI 3.0, 6.8).

use crate::machine::{Machine, Width};
use crate::pci::register;
use moira_proto::platform::PciDevice;

/// Command: may write to memory, which a message is; and has no use for its pin.
const MASTER_NO_PIN: u64 = 1 << 2 | 1 << 10;
/// Command: answers to memory.
const MEMORY: u64 = 1 << 1;
/// MSI control: on.
const MSI_ON: u64 = 1;
/// MSI control: number of messages in use, as a power of two.
const MSI_COUNT: u64 = 7 << 4;
/// MSI control: addresses of 64 bits.
const MSI_64: u64 = 1 << 7;
/// MSI-X control: on.
const MSIX_ON: u64 = 1 << 15;
/// MSI-X control: all messages masked.
const MSIX_MASKED: u64 = 1 << 14;

/// Which kind was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// MSI: one message.
    Msi,
    /// MSI-X.
    MsiX,
}

/// Why it was not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The function has no such message.
    NoMessage,
    /// The table lies in a base address register without an address.
    NoTable,
    /// The message's address does not fit.
    Address,
}

/// Which kind a function would use for message `number`, without touching it.
///
/// # Errors
/// [`Unfit::NoMessage`].
pub fn kind(device: &PciDevice, number: u16) -> Result<Kind, Unfit> {
    match (device.msix, device.msi) {
        (Some(msix), _) if number < msix.entries => Ok(Kind::MsiX),
        // Of MSI's messages only the first is used: further ones would need vectors in a row.
        (None, Some(_)) if number == 0 => Ok(Kind::Msi),
        _ => Err(Unfit::NoMessage),
    }
}

/// Sets up message `number` of a function.
///
/// # Errors
/// [`Unfit`]; the function is as before.
pub fn set_up(
    machine: &mut impl Machine,
    device: &PciDevice,
    number: u16,
    (address, data): (u64, u32),
) -> Result<Kind, Unfit> {
    let kind = kind(device, number)?;
    let at = device.address;
    let command = machine.config_read(at, register::COMMAND, Width::Word);
    match (kind, device.msix, device.msi) {
        (Kind::MsiX, Some(msix), _) => {
            let bar = device.bars.iter().find(|bar| bar.index == msix.bar && !bar.ports && bar.address != 0);
            let offset = u64::from(msix.offset) + u64::from(number) * 16;
            let entry = bar
                .filter(|bar| offset + 16 <= bar.size)
                .and_then(|bar| bar.address.checked_add(offset))
                .ok_or(Unfit::NoTable)?;
            let control = machine.config_read(at, msix.capability + 2, Width::Word);
            machine.config_write(at, register::COMMAND, Width::Word, command | MEMORY | MASTER_NO_PIN);
            let masked = control | MSIX_ON | MSIX_MASKED;
            machine.config_write(at, msix.capability + 2, Width::Word, masked);
            machine.store(entry, Width::Long, address & 0xffff_ffff);
            machine.store(entry + 4, Width::Long, address >> 32);
            machine.store(entry + 8, Width::Long, data.into());
            // This message is not masked.
            machine.store(entry + 12, Width::Long, 0);
            machine.config_write(at, msix.capability + 2, Width::Word, masked & !MSIX_MASKED);
        }
        (Kind::Msi, _, Some((capability, _))) => {
            let control = machine.config_read(at, capability + 2, Width::Word);
            let wide = control & MSI_64 != 0;
            if (!wide && address >> 32 != 0) || data >> 16 != 0 {
                return Err(Unfit::Address);
            }
            // Off while address and data change.
            let off = control & !(MSI_ON | MSI_COUNT);
            machine.config_write(at, capability + 2, Width::Word, off);
            machine.config_write(at, capability + 4, Width::Long, address & 0xffff_ffff);
            if wide {
                machine.config_write(at, capability + 8, Width::Long, address >> 32);
            }
            let place = if wide { 12 } else { 8 };
            machine.config_write(at, capability + place, Width::Word, data.into());
            machine.config_write(at, register::COMMAND, Width::Word, command | MASTER_NO_PIN);
            machine.config_write(at, capability + 2, Width::Word, off | MSI_ON);
        }
        _ => return Err(Unfit::NoMessage),
    }
    Ok(kind)
}
