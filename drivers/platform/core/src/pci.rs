//! PCI functions as the firmware left them (PCI 3.0, chapter 6).

use crate::findings::Route;
use crate::machine::{Machine, Width};
use alloc::{vec, vec::Vec};
use moira_proto::platform::{Bar, MsiX, PciAddress, PciDevice};

/// Most functions that are listed.
const MOST_FUNCTIONS: usize = 512;
/// Most capabilities of a function: there is no room for more.
const MOST_CAPABILITIES: usize = 48;

/// Registers of a function's header.
pub mod register {
    /// Vendor, device.
    pub const ID: u8 = 0;
    /// Command.
    pub const COMMAND: u8 = 4;
    /// Status.
    pub const STATUS: u8 = 6;
    /// Revision, class.
    pub const CLASS: u8 = 8;
    /// Header type.
    pub const HEADER: u8 = 0x0e;
    /// First base address.
    pub const BAR: u8 = 0x10;
    /// Secondary bus (bridges).
    pub const SECONDARY: u8 = 0x19;
    /// Subsystem vendor, device.
    pub const SUBSYSTEM: u8 = 0x2c;
    /// First capability.
    pub const CAPABILITIES: u8 = 0x34;
    /// Interrupt pin.
    pub const PIN: u8 = 0x3d;
}

/// Command: answers to ports, to memory.
const DECODE: u64 = 3;
/// Status: there are capabilities.
const HAS_CAPABILITIES: u64 = 1 << 4;
/// Capability: MSI.
const MSI: u64 = 5;
/// Capability: MSI-X.
const MSI_X: u64 = 0x11;

/// All functions that are reached from bus 0 and from the host bridges' further buses.
pub fn enumerate(machine: &mut impl Machine, roots: &[u8]) -> Vec<PciDevice> {
    let mut seen = [false; 256];
    let mut buses: Vec<u8> = roots.to_vec();
    if !buses.contains(&0) {
        buses.push(0);
    }
    let mut found = vec![];
    // Each bus is visited once, whatever the bridges say.
    while let Some(bus) = buses.pop() {
        if core::mem::replace(&mut seen[usize::from(bus)], true) {
            continue;
        }
        for device in 0..32 {
            for function in 0..8 {
                let at = PciAddress::new(bus, device, function);
                let Some(entry) = read_function(machine, at) else {
                    if function == 0 {
                        break;
                    }
                    continue;
                };
                buses.extend(entry.secondary_bus);
                if found.len() < MOST_FUNCTIONS {
                    found.push(entry);
                }
                let header = machine.config_read(at, register::HEADER, Width::Byte);
                if function == 0 && header & 0x80 == 0 {
                    break;
                }
            }
        }
    }
    found.sort_by_key(|entry| entry.address);
    found
}

fn read_function(machine: &mut impl Machine, at: PciAddress) -> Option<PciDevice> {
    let id = machine.config_read(at, register::ID, Width::Long);
    if id & 0xffff == 0xffff || id == 0 {
        return None;
    }
    let class = machine.config_read(at, register::CLASS, Width::Long);
    let kind = machine.config_read(at, register::HEADER, Width::Byte) & 0x7f;
    let (bars, bridge) = match kind {
        0 => (6, false),
        1 => (2, true),
        _ => (0, false),
    };
    let subsystem = if bridge { 0 } else { machine.config_read(at, register::SUBSYSTEM, Width::Long) };
    let mut entry = PciDevice {
        address: at,
        vendor: id as u16,
        device: (id >> 16) as u16,
        class: (class >> 8) as u32,
        revision: class as u8,
        subsystem: (subsystem as u16, (subsystem >> 16) as u16),
        bars: read_bars(machine, at, bars),
        pin: machine.config_read(at, register::PIN, Width::Byte) as u8,
        msi: None,
        msix: None,
        secondary_bus: bridge.then(|| machine.config_read(at, register::SECONDARY, Width::Byte) as u8),
    };
    read_capabilities(machine, &mut entry);
    Some(entry)
}

/// Reads addresses and sizes. To learn a size, ones are written; meanwhile the function must not answer there (PCI 3.0, 6.2.5.1).
fn read_bars(machine: &mut impl Machine, at: PciAddress, count: u8) -> Vec<Bar> {
    let mut bars = vec![];
    if count == 0 {
        return bars;
    }
    let command = machine.config_read(at, register::COMMAND, Width::Word);
    machine.config_write(at, register::COMMAND, Width::Word, command & !DECODE);
    let mut index = 0;
    while index < count {
        let (low, low_size) = probe(machine, at, index);
        let ports = low & 1 != 0;
        let wide = !ports && low >> 1 & 3 == 2 && index + 1 < count;
        let (high, high_size) = if wide { probe(machine, at, index + 1) } else { (0, 0) };
        let flags = if ports { 3 } else { 15 };
        let writable = low_size & !flags | high_size << 32;
        if writable != 0 {
            bars.push(Bar {
                index,
                ports,
                prefetchable: !ports && low & 8 != 0,
                address: low & !flags | high << 32,
                // The lowest bit that can be written.
                size: writable & writable.wrapping_neg(),
            });
        }
        index += if wide { 2 } else { 1 };
    }
    machine.config_write(at, register::COMMAND, Width::Word, command);
    bars
}

/// A base address register's value, and the bits of it that can be written.
fn probe(machine: &mut impl Machine, at: PciAddress, index: u8) -> (u64, u64) {
    let register = register::BAR + index * 4;
    let value = machine.config_read(at, register, Width::Long);
    machine.config_write(at, register, Width::Long, 0xffff_ffff);
    let writable = machine.config_read(at, register, Width::Long);
    machine.config_write(at, register, Width::Long, value);
    (value, writable)
}

fn read_capabilities(machine: &mut impl Machine, entry: &mut PciDevice) {
    let at = entry.address;
    if machine.config_read(at, register::STATUS, Width::Word) & HAS_CAPABILITIES == 0 {
        return;
    }
    let mut next = machine.config_read(at, register::CAPABILITIES, Width::Byte) as u8 & !3;
    for _ in 0..MOST_CAPABILITIES {
        if next < 0x40 {
            return;
        }
        let head = machine.config_read(at, next, Width::Long);
        let control = (head >> 16) as u16;
        // Not where their registers would reach beyond 256.
        match head & 0xff {
            MSI if next <= 0xf0 => entry.msi = Some((next, 1 << (control >> 1 & 7).min(5))),
            MSI_X if next <= 0xf4 => {
                let table = machine.config_read(at, next + 4, Width::Long) as u32;
                entry.msix = Some(MsiX {
                    capability: next,
                    entries: (control & 0x7ff) + 1,
                    bar: table as u8 & 7,
                    offset: table & !7,
                });
            }
            _ => {}
        }
        next = (head >> 8) as u8 & !3;
    }
}

/// Where a function's interrupt pin goes. Behind a bridge the pins rotate with the device's number on each level up to the host
/// bridge's bus (PCI-to-PCI bridge 1.2, 9.1).
#[must_use]
pub fn route(devices: &[PciDevice], routes: &[Route], at: PciAddress) -> Option<Route> {
    let entry = devices.iter().find(|entry| entry.address == at)?;
    let mut pin = entry.pin.checked_sub(1).filter(|pin| *pin < 4)?;
    let (mut bus, mut device) = (at.bus(), at.device());
    // No more levels than buses.
    for _ in 0..256 {
        let found = routes.iter().find(|route| (route.bus, route.device, route.pin) == (bus, device, pin));
        if found.is_some() {
            return found.copied();
        }
        let bridge = devices.iter().find(|entry| entry.secondary_bus == Some(bus) && bus != 0)?;
        pin = (pin + device) % 4;
        (bus, device) = (bridge.address.bus(), bridge.address.device());
    }
    None
}
