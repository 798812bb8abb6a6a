//! `Interrupt`: one source, bound to a notification. ABI: `docs/abi/interrupt.md`.
//!
//! A source fires once per acknowledgement: the handler masks it (I/O APIC line) or counts on the driver (MSI), signals, and
//! whoever acknowledges unmasks.

use super::{Header, notification::Notification, thread::Thread};
use crate::{
    arch,
    cap::{self, Slot},
    memory::{Obj, Object},
    percpu::Cpu,
};
use core::{cell::Cell, sync::atomic::Ordering::*};
use moira_abi::{Error, ObjectType, Rights};

/// An interrupt source: 128 bytes.
#[repr(C)]
pub struct Interrupt {
    /// Header; `home` is the CPU it is delivered to.
    pub header: Header,
    /// The notification, with its badge.
    pub target: Slot,
    /// Vector on that CPU; 0: none.
    pub vector: Cell<u8>,
    /// Whether it is a message-signalled one.
    pub message: Cell<bool>,
    /// Global system interrupt (lines).
    pub gsi: Cell<u32>,
    /// Times it fired.
    pub count: Cell<u64>,
}

static_assertions::const_assert!(size_of::<Interrupt>() <= 128);

impl Object for Interrupt {
    const KIND: ObjectType = ObjectType::Interrupt;
}

impl Obj<Interrupt> {
    /// The source fired on its CPU. Answers whether to choose.
    #[inline(always)]
    pub fn fire(self, cpu: &Cpu) -> bool {
        self.count.set(self.count.get() + 1);
        if !self.message.get() {
            arch::ioapic::mask(self.gsi.get(), true);
        }
        let cap = self.target.read();
        match Obj::<Notification>::from_word(cap.word) {
            Some(notification) => notification.signal(cpu, cap.badge),
            None => false,
        }
    }
}

/// `bind`: W0 notification slot.
pub fn bind(interrupt: Obj<Interrupt>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(caller.table()?, caller.word(0))?;
    slot.read().object::<Notification>(Rights::SIGNAL)?;
    let target = Obj::from_ref(&interrupt.target);
    if !target.is_empty() {
        cap::remove(target);
    }
    cap::derive(slot, target, Rights::SIGNAL, None)
}

/// `ack`: lets the source fire again.
pub fn ack(interrupt: Obj<Interrupt>) -> Result<(), Error> {
    if interrupt.vector.get() == 0 {
        return Err(Error::Inactive);
    }
    if !interrupt.message.get() {
        arch::ioapic::mask(interrupt.gsi.get(), false);
    }
    Ok(())
}

/// `message`: W0 address, W1 data.
pub fn message(interrupt: Obj<Interrupt>, caller: Obj<Thread>) -> Result<(), Error> {
    if !interrupt.message.get() {
        return Err(Error::WrongType);
    }
    let apic = crate::percpu::by_index(interrupt.header.home()).apic_id.get();
    caller.answer2(0xfee0_0000 | (apic as u64 & 0xff) << 12, interrupt.vector.get() as u64);
    Ok(())
}

/// The source is silenced and its vector freed. A target may have been bound to one that never got a vector, too.
pub fn retire(interrupt: Obj<Interrupt>) {
    if interrupt.vector.get() != 0 {
        if !interrupt.message.get() {
            arch::ioapic::mask(interrupt.gsi.get(), true);
        }
        let home = crate::percpu::by_index(interrupt.header.home());
        home.vectors[interrupt.vector.get() as usize].store(0, Release);
    }
    let target = Obj::from_ref(&interrupt.target);
    if !target.is_empty() {
        cap::remove(target);
    }
}
