//! The hardware, as the rest of this crate sees it.

use alloc::sync::Arc;
use moira_proto::platform::{PciAddress, Register};

/// Bytes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Width {
    /// One.
    Byte,
    /// Two.
    Word,
    /// Four.
    Long,
    /// Eight: memory only.
    Quad,
}

impl Width {
    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        match self {
            Width::Byte => 1,
            Width::Word => 2,
            Width::Long => 4,
            Width::Quad => 8,
        }
    }

    /// All ones, as a bus answers where nothing is.
    #[must_use]
    pub const fn ones(self) -> u64 {
        match self {
            Width::Byte => 0xff,
            Width::Word => 0xffff,
            Width::Long => 0xffff_ffff,
            Width::Quad => u64::MAX,
        }
    }
}

/// Access to hardware. What cannot be reached reads as ones and ignores writes, as on a bus.
pub trait Machine: Send {
    /// Reads physical memory of firmware or devices.
    fn load(&mut self, address: u64, width: Width) -> u64;
    /// Writes physical memory of firmware or devices.
    fn store(&mut self, address: u64, width: Width, value: u64);
    /// Reads a port; at most four bytes.
    fn input(&mut self, port: u16, width: Width) -> u64;
    /// Writes a port; at most four bytes.
    fn output(&mut self, port: u16, width: Width, value: u64);
    /// Nanoseconds since some point.
    fn nanoseconds(&mut self) -> u64;
    /// Waits so many nanoseconds at least, and lets others run if it can.
    fn wait(&mut self, nanoseconds: u64);

    /// Copies physical memory, 0xff where it cannot be reached.
    fn copy(&mut self, address: u64, bytes: &mut [u8]) {
        for (offset, byte) in (0u64..).zip(bytes) {
            *byte = self.load(address.wrapping_add(offset), Width::Byte) as u8;
        }
    }

    /// Reads configuration space by mechanism #1 (PCI 3.0, 3.2.2.3.2): the first 256 bytes of a function, aligned.
    fn config_read(&mut self, at: PciAddress, offset: u8, width: Width) -> u64 {
        self.output(CONFIG_ADDRESS, Width::Long, config_address(at, offset));
        self.input(CONFIG_DATA + u16::from(offset & 3), width)
    }

    /// Writes configuration space.
    fn config_write(&mut self, at: PciAddress, offset: u8, width: Width, value: u64) {
        self.output(CONFIG_ADDRESS, Width::Long, config_address(at, offset));
        self.output(CONFIG_DATA + u16::from(offset & 3), width, value);
    }

    /// Reads a register.
    fn read_register(&mut self, register: Register, width: Width) -> u64 {
        match register {
            Register::Port(port) => self.input(port, width),
            Register::Memory(address) => self.load(address, width),
            Register::Config(device, function, offset) => u8::try_from(offset)
                .map_or(width.ones(), |offset| self.config_read(PciAddress::new(0, device, function), offset, width)),
        }
    }

    /// Writes a register.
    fn write_register(&mut self, register: Register, width: Width, value: u64) {
        match register {
            Register::Port(port) => self.output(port, width, value),
            Register::Memory(address) => self.store(address, width, value),
            Register::Config(device, function, offset) => {
                if let Ok(offset) = u8::try_from(offset) {
                    self.config_write(PciAddress::new(0, device, function), offset, width, value);
                }
            }
        }
    }
}

/// Selects a configuration register.
const CONFIG_ADDRESS: u16 = 0xcf8;
/// Its data.
const CONFIG_DATA: u16 = 0xcfc;

const fn config_address(at: PciAddress, offset: u8) -> u64 {
    1 << 31 | (at.0 as u64) << 8 | (offset & !3) as u64
}

/// One machine for the two interpreters and the server.
#[derive(Debug)]
pub struct Shared<M>(Arc<spin::Mutex<M>>);

impl<M> Clone for Shared<M> {
    fn clone(&self) -> Shared<M> {
        Shared(self.0.clone())
    }
}

impl<M: Machine> Shared<M> {
    /// Shares a machine.
    pub fn new(machine: M) -> Shared<M> {
        Shared(Arc::new(spin::Mutex::new(machine)))
    }

    /// Uses the machine. Not to be nested: one thread uses all of it, and no access calls back.
    pub fn with<R>(&self, use_it: impl FnOnce(&mut M) -> R) -> R {
        use_it(&mut self.0.lock())
    }
}
