//! `Interrupt`: one source, bound to a notification. ABI: `docs/abi/interrupt.md`.
//!
//! A source fires once per acknowledgement: the handler masks it (I/O APIC line) or counts on the driver (MSI), signals, and
//! whoever acknowledges unmasks.

use super::{Header, notification::Notification, sched_context::SchedContext, thread::Thread};
use crate::{
    arch,
    cap::{self, Slot},
    memory::{Obj, Object},
    percpu::Cpu,
};
use core::cell::Cell;
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
    /// The line; nothing for a message-signalled one.
    pub line: Cell<arch::ioapic::Line>,
    /// Times it fired.
    pub count: Cell<u64>,
}

static_assertions::const_assert!(size_of::<Interrupt>() <= 128);

impl Object for Interrupt {
    const KIND: ObjectType = ObjectType::Interrupt;
}

impl Obj<Interrupt> {
    /// The source fired on its CPU. Answers who its handling is charged to: the account of the thread that waits for it, or is bound to
    /// its notification, if that lives here.
    #[inline(always)]
    pub fn fire(self, cpu: &Cpu) -> Option<Obj<SchedContext>> {
        self.count.set(self.count.get() + 1);
        let line = self.line.get();
        line.mask(true);
        let Some(cap) = self.target.read_quiet() else {
            // The binding is being replaced at this moment: let it come again.
            line.mask(false);
            return None;
        };
        let notification = Obj::<Notification>::from_word(cap.word)?;
        notification.set(cap.badge);
        let waiter = notification.waiter()?;
        if notification.wake_thread(cpu, waiter) {
            cpu.must_choose.set(true);
        }
        // A waiter stays one until its own CPU looks at the bits, which it does not do under our hands.
        if waiter.header.home() == cpu.index { waiter.context.get() } else { None }
    }
}

/// `bind`: W0 notification slot.
pub fn bind(interrupt: Obj<Interrupt>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(caller.table()?, caller.word(0))?;
    slot.read().object::<Notification>(Rights::SIGNAL)?;
    cap::keep(slot, &interrupt.target, Rights::SIGNAL)
}

/// `ack`: lets the source fire again.
pub fn ack(interrupt: Obj<Interrupt>) -> Result<(), Error> {
    if interrupt.vector.get() == 0 {
        return Err(Error::Inactive);
    }
    interrupt.line.get().mask(false);
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
        interrupt.line.get().mask(true);
        crate::percpu::by_index(interrupt.header.home()).drop_vector(interrupt.vector.replace(0));
    }
    cap::empty(&interrupt.target);
}
