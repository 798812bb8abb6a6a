//! `Notification`: a word of bits, signalled from any CPU. ABI: `docs/abi/notification.md`.
//!
//! ```text
//! signaller (any CPU)                 waiter's CPU
//! bits |= badge                       waiter = thread; state = Waiting
//! fence                               fence
//! read waiter                         read bits (Walk); block only if 0
//! if set: tell its CPU (wake)
//! ```
//! Either the signaller sees the waiter, or the waiter's Walk sees the bits.

use super::{
    Header, life,
    thread::{State, Thread},
};
use crate::{
    memory::{Obj, Object},
    percpu::Cpu,
    sched, smp,
};
use core::sync::atomic::{AtomicU64, Ordering::*};
use moira_abi::{Error, ObjectType};

/// A notification: 128 bytes.
#[repr(C)]
pub struct Notification {
    /// Header.
    pub header: Header,
    /// Bits that were signalled and not yet taken.
    pub bits: AtomicU64,
    /// Physical address of the thread that waits, or is bound; 0: none.
    pub waiter: AtomicU64,
    /// 1 while the waiter is bound for good.
    pub bound: AtomicU64,
}

static_assertions::const_assert!(size_of::<Notification>() <= 128);

impl Object for Notification {
    const KIND: ObjectType = ObjectType::Notification;
}

impl Notification {
    /// The waiting or bound thread.
    #[inline(always)]
    pub fn waiter(&self) -> Option<Obj<Thread>> {
        let address = self.waiter.load(Acquire);
        // SAFETY: set only to live threads, cut when either dies.
        (address != 0).then(|| unsafe { Obj::at(address) })
    }

    /// Takes all bits.
    #[inline(always)]
    pub fn take(&self) -> u64 {
        if self.bits.load(Relaxed) == 0 { 0 } else { self.bits.swap(0, AcqRel) }
    }

    /// Whether bits are pending.
    #[inline(always)]
    pub fn pending(&self) -> bool {
        self.bits.load(Acquire) != 0
    }
}

impl Obj<Notification> {
    /// Sets bits. The waiter has to be looked at after this ([`Obj::wake`]).
    #[inline(always)]
    pub fn set(self, bits: u64) {
        self.bits.fetch_or(bits, SeqCst);
    }

    /// Wakes the waiter. Answers whether this CPU has to choose again.
    #[inline(always)]
    pub fn wake(self, cpu: &Cpu) -> bool {
        self.waiter().is_some_and(|thread| self.wake_thread(cpu, thread))
    }

    /// [`Obj::wake`], of the waiter that was found.
    #[inline(always)]
    pub fn wake_thread(self, cpu: &Cpu, thread: Obj<Thread>) -> bool {
        if thread.header.home() == cpu.index {
            return sched::wake(cpu, thread);
        }
        // An inactive one has no CPU yet; it looks at the bits when it comes to wait.
        if thread.header.life() == life::ACTIVE {
            smp::post_thread(thread, smp::mail::WAKE);
        }
        false
    }

    /// Sets bits and wakes the waiter. Answers whether this CPU has to choose again.
    #[inline(always)]
    pub fn signal(self, cpu: &Cpu, bits: u64) -> bool {
        self.set(bits);
        self.wake(cpu)
    }

    /// Makes a thread the waiter. Fails if another one is.
    pub fn attach(self, thread: Obj<Thread>, bound: bool) -> Result<(), Error> {
        let me = thread.physical();
        match self.waiter.compare_exchange(0, me, SeqCst, SeqCst) {
            Ok(_) => {}
            Err(other) if other == me => {}
            Err(_) => return Err(Error::InUse),
        }
        if bound {
            self.bound.store(1, Relaxed);
        }
        Ok(())
    }

    /// The waiter no longer waits.
    #[inline(always)]
    pub fn detach(self) {
        if self.bound.load(Relaxed) == 0 {
            self.waiter.store(0, Release);
        }
    }
}

/// The notification dies: whoever waits on it gets *PeerGone*, on its own CPU. Its memory waits until no thread is attached.
pub fn retire(cpu: &Cpu, notification: Obj<Notification>) {
    notification.header.life.store(life::RETIRING, Release);
    let Some(thread) = notification.waiter() else { return };
    if matches!(thread.header.life(), life::ACTIVE | life::RETIRING) && thread.header.home() != cpu.index {
        smp::post_thread(thread, smp::mail::PEER_GONE);
        return;
    }
    cut(cpu, thread);
}

/// A thread lets go of what it is bound to and waits on, as far as that dies (on its own CPU).
pub fn cut(cpu: &Cpu, thread: Obj<Thread>) {
    let dies = |n: &Obj<Notification>| n.header.life() == life::RETIRING;
    if let Some(bound) = thread.bound.get().filter(dies) {
        thread.bound.set(None);
        bound.waiter.store(0, Release);
    }
    if thread.state.get() == State::Waiting
        && let Some(notification) = thread.waits.get().filter(dies)
    {
        thread.waits.set(None);
        notification.waiter.store(0, Release);
        thread.finish(Err(Error::PeerGone));
        sched::news(cpu, thread);
    }
}
