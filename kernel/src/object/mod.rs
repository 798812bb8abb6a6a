//! Kernel objects, one file each.

pub mod address_space;
pub mod cap_table;
pub mod cpu;
pub mod endpoint;
pub mod interrupt;
pub mod io_ports;
pub mod notification;
pub mod plan;
pub mod platform;
pub mod sched_context;
pub mod thread;
pub mod untyped;
pub mod vcpu;

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::*};
use moira_abi::{Error, ObjectType};

/// Where an object stands between retype and reuse of its memory; 0 is memory that is no object.
pub mod life {
    /// Touched by whoever holds the structural lock.
    pub const INACTIVE: u8 = 1;
    /// Touched only by its home CPU.
    pub const ACTIVE: u8 = 2;
    /// Its home CPU was asked to let go of it.
    pub const RETIRING: u8 = 3;
    /// Let go of.
    pub const DEAD: u8 = 4;
}

/// What every object made by `retype` begins with.
#[repr(C)]
pub struct Header {
    /// Type number.
    pub kind: AtomicU8,
    /// log2 of its bytes.
    pub bits: AtomicU8,
    /// [`life`].
    pub life: AtomicU8,
    /// Index of its home CPU while active.
    pub home: AtomicU32,
    /// Next in a CPU's mailbox.
    pub mail_next: AtomicU64,
    /// Messages that wait for the home CPU ([`crate::smp::mail`]).
    pub mail: AtomicU32,
    /// Size argument of retype (space kind).
    pub argument: AtomicU32,
    reserved: AtomicU64,
}

static_assertions::assert_eq_size!(Header, [u8; 32]);

impl Header {
    /// Makes fresh zeroed memory an inactive object.
    pub fn init(&self, kind: ObjectType, bits: u8, argument: u32) {
        self.bits.store(bits, Relaxed);
        self.argument.store(argument, Relaxed);
        self.life.store(life::INACTIVE, Relaxed);
        self.kind.store(kind as u8, Release);
    }

    /// Whether it is active on that CPU.
    #[inline(always)]
    pub fn active_on(&self, cpu: u32) -> Result<(), Error> {
        match self.life() {
            life::ACTIVE if self.home() == cpu => Ok(()),
            life::ACTIVE => Err(Error::WrongCpu),
            _ => Err(Error::Inactive),
        }
    }

    /// Life.
    pub fn life(&self) -> u8 {
        self.life.load(Acquire)
    }

    /// Home CPU.
    #[inline(always)]
    pub fn home(&self) -> u32 {
        self.home.load(Relaxed)
    }
}
