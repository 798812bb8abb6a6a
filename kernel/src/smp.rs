//! What crosses CPUs: the structural lock, mailboxes, grace periods, flushes. Nothing here is on a hot path of IPC.
//!
//! **Mailbox.** A thread with messages for its CPU is pushed once: the `fetch_or` that finds its mask zero pushes.
//!
//! ```text
//! sender                              receiver (home CPU)
//! mask |= message                     take the whole stack (swap)
//! if mask was 0: push node            for each: next = node.next; mask.swap(0); act
//! fence                               (a message after the swap pushes again)
//! read accept -> interrupt            accept = ..; fence; drain; choose
//! ```
//!
//! **Grace.** Kernel entry makes the epoch odd (locked, so before any read of a slot), exit makes it even. Whoever unlinked something waits
//! until every CPU was seen even, or saw its own next entry.

use crate::{
    arch, checks,
    memory::{DIRECT_MAP, Obj},
    object::{
        Header,
        address_space::AddressSpace,
        life, notification,
        thread::{State, Thread},
        untyped,
    },
    percpu::{self, Cpu, MAX_CPUS},
    sched, trace,
};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::*, fence};
use moira_abi::Error;
use moira_kernel_core::{
    flush::{self, Reason},
    turns::Turns,
};

/// Messages.
pub mod mail {
    /// A thread becomes active here.
    pub const ACTIVATE: u32 = 1;
    /// Something it waits for happened.
    pub const WAKE: u32 = 2;
    /// Its guest is to exit.
    pub const KICK: u32 = 4;
    /// The object is to be let go of.
    pub const RETIRE: u32 = 8;
    /// A plan waits (CPU).
    pub const PLAN: u32 = 16;
    /// A scheduler was registered (CPU).
    pub const SCHEDULER: u32 = 32;
    /// What the thread waits on is gone.
    pub const PEER_GONE: u32 = 64;
}

/// Messages that are acted upon at a time.
const MAIL_BATCH: usize = 16;

/// The address of no space (an empty slot's is 0, which must not look loaded).
pub const NOTHING: u64 = 1;

/// The structural lock.
static LOCK: Turns<AtomicU64, { MAX_CPUS / 64 }> =
    Turns::new(AtomicU64::new(0), AtomicU64::new(0), [const { AtomicU64::new(0) }; MAX_CPUS / 64]);
/// Number of the last flush asked for.
static FLUSHES: AtomicU64 = AtomicU64::new(0);

/// Takes the structural lock if it is free.
#[inline(always)]
fn try_lock(cpu: &Cpu) -> bool {
    let taken = LOCK.try_take();
    if taken {
        checks::locked(cpu);
    }
    taken
}

/// Takes the structural lock, in turn. Interrupts are let in while others hold it; if one of them asks for a choice (a window
/// began, somebody sent a message), the answer is false and the system call is to run again. Not for use within Choose.
#[inline(always)]
pub fn lock(cpu: &Cpu) -> bool {
    try_lock(cpu) || wait_for_lock(cpu)
}

#[cold]
fn wait_for_lock(cpu: &Cpu) -> bool {
    LOCK.want(cpu.index);
    trace::event(cpu, trace::WAIT, 0, 0);
    let mut held = LOCK.poll(cpu.index);
    while !held {
        sched::let_in(cpu, arch::take_interrupts);
        held = if cpu.must_choose.get() { break } else { LOCK.poll(cpu.index) };
    }
    // Called away: unless the lock was handed over at this very moment.
    held = held || LOCK.cancel(cpu.index);
    if held {
        checks::locked(cpu);
    }
    held
}

/// Gives it on.
#[inline(always)]
pub fn unlock(cpu: &Cpu) {
    checks::unlocked(cpu);
    LOCK.give(cpu.index);
}

/// Runs a structural step of another operation; *Again* if the lock cannot be had, without waiting unless `patient`.
#[inline(always)]
pub fn structural<T>(cpu: &Cpu, patient: bool, step: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    let held = try_lock(cpu) || patient && wait_for_lock(cpu);
    if !held {
        return Err(Error::Again);
    }
    let result = step();
    unlock(cpu);
    result
}

/// Writes a word of a page shared with a task.
pub fn store_u32(physical: u64, value: u32) {
    // SAFETY: the caller names an aligned word of a frame it holds.
    unsafe { AtomicU32::from_ptr((DIRECT_MAP | physical) as *mut u32) }.store(value, Release);
}

fn push(cpu: &Cpu, header: Obj<Header>) {
    let mut head = cpu.mailbox.load(Relaxed);
    loop {
        header.mail_next.store(head, Relaxed);
        match cpu.mailbox.compare_exchange_weak(head, header.physical(), SeqCst, Relaxed) {
            Ok(_) => return,
            Err(other) => head = other,
        }
    }
}

fn post(header: Obj<Header>, message: u32, interrupt_always: bool) {
    let cpu = percpu::by_index(header.home());
    if header.mail.fetch_or(message, SeqCst) == 0 {
        push(cpu, header);
    }
    fence(SeqCst);
    if interrupt_always || cpu.accept.load(SeqCst) {
        arch::apic::interrupt_cpu(cpu.apic_id.get());
    }
}

/// Sends a message to a thread on another CPU.
pub fn post_thread(thread: Obj<Thread>, message: u32) {
    post(Obj::from_ref(&thread.header), message, message == mail::KICK);
}

/// Asks another CPU to let go of an object.
pub fn post_retire(header: Obj<Header>) {
    header.life.store(life::RETIRING, Release);
    post(header, mail::RETIRE, true);
}

/// Sends a message to a CPU.
pub fn post_cpu(cpu: &Cpu, message: u32) {
    cpu.mail.fetch_or(message, SeqCst);
    arch::apic::interrupt_cpu(cpu.apic_id.get());
}

/// Has a CPU act on its messages.
pub fn collect(index: u32) {
    arch::apic::interrupt_cpu(percpu::by_index(index).apic_id.get());
}

/// Whether anything waits for this CPU.
pub fn has_mail(cpu: &Cpu) -> bool {
    cpu.mailbox.load(SeqCst) | cpu.backlog.get() | u64::from(cpu.mail.load(SeqCst)) != 0 || flush_due(cpu)
}

fn flush_due(cpu: &Cpu) -> bool {
    !flush::settled(cpu.flush_wanted.load(Acquire), cpu.flush_done.load(Relaxed))
}

/// Acts on the messages for this CPU.
#[inline(always)]
pub fn drain(cpu: &'static Cpu) {
    if has_mail(cpu) {
        drain_all(cpu);
    }
}

#[cold]
fn drain_all(cpu: &'static Cpu) {
    flush_here(cpu);
    let own = cpu.mail.swap(0, SeqCst);
    if own & mail::SCHEDULER != 0 {
        sched::register(cpu);
    }
    // What others send is in their hands, so only so much is taken at a time: the rest stays in the backlog for the next choice.
    let mut at = match cpu.backlog.take() {
        0 => cpu.mailbox.swap(0, SeqCst),
        rest => rest,
    };
    for _ in 0..MAIL_BATCH {
        if at == 0 {
            break;
        }
        // SAFETY: objects with messages stay until these are taken (revoke looks for both, RETIRE acknowledged and no mail left).
        let header = unsafe { Obj::<Header>::at(at) };
        at = header.mail_next.load(Relaxed);
        // Once its mail is taken a dead object may become something else at any moment.
        let dead = header.life() == life::DEAD;
        let messages = header.mail.swap(0, SeqCst);
        if !dead {
            receive(cpu, header, messages);
        }
    }
    cpu.backlog.set(at);
}

fn receive(cpu: &'static Cpu, header: Obj<Header>, messages: u32) {
    if messages & mail::RETIRE != 0 {
        untyped::retire_here(cpu, header);
        return;
    }
    if header.life() != life::ACTIVE {
        return;
    }
    // SAFETY: only threads get the other messages.
    let thread = unsafe { Obj::<Thread>::at(header.physical()) };
    // Somebody here may have stopped it before the message came.
    if messages & mail::ACTIVATE != 0 && thread.state.get() == State::Inactive {
        sched::begin(cpu, thread);
    }
    if messages & (mail::WAKE | mail::KICK) != 0 {
        sched::wake(cpu, thread);
    }
    if messages & mail::PEER_GONE != 0 {
        notification::cut(cpu, thread);
    }
}

/// Kernel entry of paths that do not come through `entry.s`.
#[inline(always)]
pub fn enter_kernel(cpu: &Cpu) {
    cpu.epoch.fetch_add(1, SeqCst);
}

/// Whether a CPU counts as outside of the kernel.
pub fn is_outside(cpu: &Cpu) -> bool {
    cpu.epoch.load(Relaxed) & 1 == 0
}

/// Kernel exit of such paths: nothing read from a slot is used after this.
#[inline(always)]
pub fn leave_kernel(cpu: &Cpu) {
    cpu.epoch.store(cpu.epoch.load(Relaxed) + 1, Release);
}

/// A grace period: four bits of each CPU's epoch at the beginning. An odd number is that of one that has yet to be seen outside of the
/// kernel; if it is found in the kernel with another epoch, it was outside meanwhile.
#[derive(Clone, Copy, Default)]
pub struct Grace([u64; MAX_CPUS / 16]);

impl Grace {
    /// Begins one: all other CPUs that run.
    pub fn begin(me: &Cpu) -> Grace {
        fence(SeqCst);
        let mut grace = Grace::default();
        for cpu in percpu::online().filter(|cpu| cpu.index != me.index) {
            grace.0[cpu.index as usize / 16] |= (cpu.epoch.load(SeqCst) & 15) << (cpu.index % 16 * 4);
        }
        grace
    }

    /// Looks again; answers whether it is over.
    pub fn look(&mut self) -> bool {
        let mut over = true;
        for cpu in percpu::online() {
            let (word, shift) = (&mut self.0[cpu.index as usize / 16], cpu.index % 16 * 4);
            let begun = *word >> shift & 15;
            if begun & 1 != 0 && cpu.epoch.load(SeqCst) & 15 == begun {
                over = false;
            } else {
                *word &= !(15 << shift);
            }
        }
        over
    }
}

/// A translation of a space was removed or narrowed: other CPUs that have it loaded must flush.
pub fn flush_space(space: Obj<AddressSpace>) {
    flush_where(|cpu| cpu.has_loaded(space));
}

/// One CPU drops what it has loaded, a guest that runs included.
pub fn flush_cpu(index: u32) {
    flush_where(|cpu| cpu.index == index);
}

fn flush_where(loaded: impl Fn(&Cpu) -> bool) {
    if percpu::count() == 1 {
        return;
    }
    fence(SeqCst);
    let me = arch::cpu();
    let mut number = 0;
    for cpu in percpu::online().filter(|cpu| cpu.index != me.index) {
        if loaded(cpu) {
            trace::event(me, trace::FLUSH, Reason::Asks as u64, cpu.index as u64);
            if number == 0 {
                number = FLUSHES.fetch_add(1, SeqCst) + 1;
            }
            cpu.flush_wanted.fetch_max(number, SeqCst);
            arch::apic::interrupt_cpu(cpu.apic_id.get());
        }
    }
}

/// A space dies: no CPU may go on with its tables. This CPU drops it at once, others when they flush.
pub fn unload_space(space: Obj<AddressSpace>) {
    let me = arch::cpu();
    space.root.set(0);
    if me.has_loaded(space) {
        trace::event(me, trace::FLUSH, Reason::Dead as u64, space.physical());
        unload(me);
    }
    flush_space(space);
}

/// Goes back to the kernel's own tables; what the next thread or guest needs is loaded anew.
fn unload(cpu: &Cpu) {
    arch::paging::load_kernel();
    cpu.loaded_space.store(NOTHING, SeqCst);
    cpu.loaded_guest.store(NOTHING, SeqCst);
    cpu.must_choose.set(true);
}

fn flush_here(cpu: &Cpu) {
    let wanted = cpu.flush_wanted.load(Acquire);
    if !flush::settled(wanted, cpu.flush_done.load(Relaxed)) {
        trace::event(cpu, trace::FLUSH, Reason::Asked as u64, cpu.loaded_space.load(Relaxed));
        // The loaded space may be the one that died.
        unload(cpu);
        cpu.flush_done.store(wanted, Release);
    }
}

/// Number of the last flush that was asked for.
pub fn last_flush() -> u64 {
    FLUSHES.load(SeqCst)
}

/// Whether everybody who was asked did the flushes up to this one; later ones are others' business.
pub fn flushed(number: u64) -> bool {
    percpu::count() == 1
        || percpu::online().all(|cpu| {
            let done = cpu.flush_done.load(Acquire);
            flush::settled(number, done) || flush::settled(cpu.flush_wanted.load(Acquire), done)
        })
}
