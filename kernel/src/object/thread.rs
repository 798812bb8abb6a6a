//! `Thread`: registers, a space, a capability table, a level. ABI: `docs/abi/thread.md`.
//!
//! The capabilities a thread was configured with stand in slots inside the object, so revoking them needs no search and nothing
//! cached can outlive them.

use super::{Header, cap_table::CapTable, life, notification::Notification, sched_context::SchedContext, vcpu::Vcpu};
use crate::{
    cap::{self, Slot},
    memory::{self, Obj, Object},
    percpu::Cpu,
    sched, smp,
};
use core::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::*},
};
use moira_abi::{Error, FrameSize, ObjectType, Rights, Tag, USER_END, fault};
use static_assertions::const_assert_eq;

/// What a thread is doing (`sched.rs` says what follows from it).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// Never activated (what zeroed memory says).
    Inactive = 0,
    /// Can run.
    Ready = 1,
    /// In a call that no server has taken yet: decoded again whenever its time comes.
    Calling = 2,
    /// Its call is being served.
    AwaitReply = 3,
    /// A server without a request.
    Receiving = 4,
    /// In `wait`.
    Waiting = 5,
    /// Runs a guest.
    InGuest = 6,
    /// A scheduler whose `dispatch` is in force.
    InDispatch = 7,
    /// Stopped or parked.
    Stopped = 8,
    /// Faulted: its fault message waits for the handler like a call.
    Faulting = 9,
}

/// Indices into [`Thread::regs`].
pub mod reg {
    /// Tag in, tag out.
    pub const RAX: usize = 0;
    /// User stack.
    pub const RSP: usize = 4;
    /// Capability in, badge out.
    pub const RDI: usize = 7;
    /// Deadline.
    pub const R15: usize = 15;
    /// Instruction pointer.
    pub const RIP: usize = 16;
    /// Flags.
    pub const RFLAGS: usize = 17;
    /// The message words W0–W7.
    pub const WORDS: [usize; 8] = [6, 2, 8, 9, 10, 12, 13, 14];
}

/// A `dispatch` in force.
#[derive(Clone, Copy)]
pub struct Dispatch {
    /// Who got the slack.
    pub context: Option<Obj<SchedContext>>,
    /// Until when.
    pub until: u64,
    /// The sequence the scheduler had seen.
    pub token: u64,
}

/// A thread: 1024 bytes.
#[repr(C, align(64))]
pub struct Thread {
    /// Header.
    pub header: Header,
    /// State.
    pub state: Cell<State>,
    /// Whether its context was reported blocked at this thread.
    pub watched: Cell<bool>,
    /// Level, 0–7.
    pub level: Cell<u8>,
    /// Whether the current caller died.
    pub caller_gone: Cell<bool>,
    /// Whether the call it waits on is a fault message (the answer does not go into its registers).
    pub fault_call: Cell<bool>,
    /// First of the four slots for received capabilities; 0: none.
    pub receive_slots: Cell<u16>,
    /// Whose time its work is for.
    pub beneficiary: Cell<Option<Obj<SchedContext>>>,
    /// Who it serves.
    pub caller: Cell<Option<Obj<Thread>>>,
    /// Who serves it.
    pub server: Cell<Option<Obj<Thread>>>,
    /// Registers in the order of the instruction encoding, rip, rflags. `entry.s` knows this offset.
    pub regs: [Cell<u64>; 18],
    /// Not 0: resume by IRET with all registers.
    pub full_exit: Cell<u64>,
    /// Its capability table.
    pub table: Slot,
    /// Its address space.
    pub space: Slot,
    /// Its message buffer (a frame).
    pub buffer: Slot,
    /// Where its faults go.
    pub fault_endpoint: Slot,
    /// What is signalled when it stops by a fault.
    pub fault_notification: Slot,
    /// The account that pays for it.
    pub context: Cell<Option<Obj<SchedContext>>>,
    /// Notification whose bits end its receive.
    pub bound: Cell<Option<Obj<Notification>>>,
    /// Notification it waits on.
    pub waits: Cell<Option<Obj<Notification>>>,
    /// Deadline of receive or wait; 0: none.
    pub deadline: Cell<u64>,
    /// The vCPU it runs.
    pub vcpu: Cell<Option<Obj<Vcpu>>>,
    /// Deadline of the guest's run.
    pub guest_until: Cell<u64>,
    /// Its dispatch in force.
    pub dispatch: Cell<Dispatch>,
    /// Last fault: vector, error code, CR2.
    pub fault: Cell<(u64, u64, u64)>,
}

const_assert_eq!(core::mem::offset_of!(Thread, regs), 64);
const_assert_eq!(core::mem::offset_of!(Thread, full_exit), 64 + 18 * 8);
static_assertions::const_assert!(size_of::<Thread>() <= 1024);

impl Object for Thread {
    const KIND: ObjectType = ObjectType::Thread;
}

impl Thread {
    /// Address just above the registers: what the entry code pushes from.
    #[inline(always)]
    pub fn regs_end(&self) -> u64 {
        &raw const self.full_exit as u64
    }

    /// A message word.
    #[inline(always)]
    pub fn word(&self, index: usize) -> u64 {
        self.regs[reg::WORDS[index]].get()
    }

    /// Sets one.
    #[inline(always)]
    pub fn set_word(&self, index: usize, value: u64) {
        self.regs[reg::WORDS[index]].set(value);
    }

    /// The tag of its call.
    #[inline(always)]
    pub fn tag(&self) -> Tag {
        Tag(self.regs[reg::RAX].get())
    }

    /// Its capability table.
    #[inline(always)]
    pub fn table(&self) -> Result<Obj<CapTable>, Error> {
        self.table.embedded().ok_or(Error::Inactive)
    }

    /// Physical address of its message buffer.
    pub fn buffer(&self) -> Result<u64, Error> {
        let word = self.buffer.word();
        if word.is_empty() { Err(Error::NotMapped) } else { Ok(word.address()) }
    }

    /// Answers one word.
    pub fn answer1(&self, w0: u64) {
        self.set_word(0, w0);
    }
    /// Answers two words.
    pub fn answer2(&self, w0: u64, w1: u64) {
        self.set_word(0, w0);
        self.set_word(1, w1);
    }
    /// Answers three words.
    pub fn answer3(&self, w0: u64, w1: u64, w2: u64) {
        self.answer2(w0, w1);
        self.set_word(2, w2);
    }
    /// Answers four words.
    pub fn answer4(&self, w0: u64, w1: u64, w2: u64, w3: u64) {
        self.answer3(w0, w1, w2);
        self.set_word(3, w3);
    }

    /// Puts a status without message into its registers.
    #[inline(always)]
    pub fn set_status(&self, status: Result<(), Error>) {
        self.regs[reg::RAX].set(status.err().map_or(0, |error| error as u64));
    }

    /// Ends what it waits for with a status.
    pub fn finish(&self, status: Result<(), Error>) {
        if !self.fault_call.replace(false) {
            self.set_status(status);
        }
        self.state.set(State::Ready);
    }

    /// Makes its call run again when it next runs.
    pub fn restart_call(&self) {
        // SYSCALL is two bytes long.
        self.regs[reg::RIP].set(self.regs[reg::RIP].get().wrapping_sub(2));
    }
}

impl Obj<Thread> {
    /// Answers its system call with a status. It runs on.
    #[inline(always)]
    pub fn done(self, result: Result<(), Error>) -> Obj<Thread> {
        self.set_status(result);
        self
    }
}

/// Gives a thread one of its capabilities: number `index` of the caller's, if it is what belongs there.
fn give(table: Obj<CapTable>, index: u64, slot: &Slot, kind: ObjectType, rights: Rights) -> Result<(), Error> {
    let from = cap::slot_of(table, index)?;
    let cap = from.read();
    cap.require(kind, rights)?;
    if kind == ObjectType::Frame && cap.word.frame_size() != FrameSize::Small {
        return Err(Error::BadArgument);
    }
    // As `cap::derive` does it for these types: frames come without their mapping.
    let badge = if kind == ObjectType::Frame { 0 } else { cap.badge };
    cap::insert(from, Obj::from_ref(slot), cap.word, badge)
}

/// `configure`: see the ABI page. The thread must be inactive and not configured before.
pub fn configure(thread: Obj<Thread>, caller: Obj<Thread>) -> Result<(), Error> {
    if thread.header.life() != life::INACTIVE {
        return Err(Error::Active);
    }
    if !thread.table.is_empty() || !thread.space.is_empty() {
        return Err(Error::InUse);
    }
    if caller.word(3) > 7 || caller.word(6) >= USER_END || caller.word(7) > USER_END {
        return Err(Error::BadArgument);
    }
    let table = caller.table()?;
    for (word, slot, kind, rights) in [
        (0, &thread.space, ObjectType::AddressSpace, Rights::USE),
        (1, &thread.table, ObjectType::CapTable, Rights::USE),
        (2, &thread.buffer, ObjectType::Frame, Rights::READ.or(Rights::WRITE)),
        (4, &thread.fault_endpoint, ObjectType::Endpoint, Rights::CALL),
        (5, &thread.fault_notification, ObjectType::Notification, Rights::SIGNAL),
    ] {
        // The last three may be missing.
        if word < 2 || caller.word(word) != 0 {
            give(table, caller.word(word), slot, kind, rights).inspect_err(|_| empty_slots(thread))?;
        }
    }
    thread.level.set(caller.word(3) as u8);
    thread.regs[reg::RIP].set(caller.word(6));
    thread.regs[reg::RSP].set(caller.word(7));
    thread.regs[reg::RFLAGS].set(0x202);
    thread.full_exit.set(1);
    Ok(())
}

/// `activate`: W0 CPU slot, W1, W2 arguments.
pub fn activate(cpu: &Cpu, thread: Obj<Thread>, caller: Obj<Thread>) -> Result<(), Error> {
    let home: Obj<Cpu> = caller.table()?.object(caller.word(0), Rights(0))?;
    if thread.header.life() != life::INACTIVE {
        return Err(Error::Active);
    }
    if thread.space.is_empty() || thread.table.is_empty() {
        return Err(Error::Inactive);
    }
    if let Some(context) = thread.context.get()
        && context.header.home() != home.index
    {
        return Err(Error::WrongCpu);
    }
    thread.regs[reg::RDI].set(caller.word(1));
    thread.regs[6].set(caller.word(2));
    thread.header.home.store(home.index, Relaxed);
    thread.header.life.store(life::ACTIVE, Release);
    if home.index == cpu.index {
        sched::begin(cpu, thread);
    } else {
        smp::post_thread(thread, smp::mail::ACTIVATE);
    }
    Ok(())
}

/// `stop`: the thread stops where it is; a call it waits on stays valid for the server, whose answer is dropped.
pub fn stop(cpu: &Cpu, thread: Obj<Thread>) -> Result<(), Error> {
    thread.header.active_on(cpu.index)?;
    sched::halt(cpu, thread);
    cpu.must_choose.set(true);
    Ok(())
}

/// `resume`: a stopped, parked or faulted thread goes on.
pub fn resume(cpu: &Cpu, thread: Obj<Thread>) -> Result<(), Error> {
    thread.header.active_on(cpu.index)?;
    if thread.state.get() != State::Stopped {
        return Err(Error::Active);
    }
    sched::make_ready(cpu, thread);
    Ok(())
}

/// `bind_notification`: W0 notification slot.
pub fn bind_notification(cpu: &Cpu, thread: Obj<Thread>, caller: Obj<Thread>) -> Result<(), Error> {
    let notification: Obj<Notification> = caller.table()?.object(caller.word(0), Rights::WAIT)?;
    not_elsewhere(cpu, thread)?;
    if thread.bound.get().is_some() {
        return Err(Error::InUse);
    }
    notification.attach(thread, true)?;
    thread.bound.set(Some(notification));
    Ok(())
}

/// Whether nobody else changes the thread meanwhile: it is not active on another CPU.
fn not_elsewhere(cpu: &Cpu, thread: Obj<Thread>) -> Result<(), Error> {
    if thread.header.life() == life::ACTIVE { thread.header.active_on(cpu.index) } else { Ok(()) }
}

/// Whether an active thread's registers may be read here: on its own CPU, or if it is stopped. Only `resume` and `write registers` get a
/// stopped thread out of that, or its end: all of them under the structural lock, which the reader holds. The state was
/// written before the fault notification was signalled, which is how another CPU knows where to look.
fn still(cpu: &Cpu, thread: Obj<Thread>) -> Result<(), Error> {
    // SAFETY: a plain byte, read once; its home CPU may write it meanwhile.
    let state = unsafe { thread.state.as_ptr().cast::<u8>().read_volatile() };
    match not_elsewhere(cpu, thread) {
        Err(Error::WrongCpu) if state == State::Stopped as u8 => Ok(()),
        other => other,
    }
}

fn readable(thread: Obj<Thread>, caller: Obj<Thread>) -> Result<u64, Error> {
    let served = thread.state.get() == State::AwaitReply && thread.fault_call.get();
    if !served && !matches!(thread.state.get(), State::Stopped | State::Inactive | State::Faulting) {
        return Err(Error::Active);
    }
    caller.buffer()
}

/// `read registers` into the caller's message buffer.
pub fn read_registers(cpu: &Cpu, thread: Obj<Thread>, caller: Obj<Thread>) -> Result<(), Error> {
    still(cpu, thread)?;
    let buffer = readable(thread, caller)?;
    let mut registers = fault::Registers::default();
    for (to, from) in registers.gpr.iter_mut().zip(&thread.regs) {
        *to = from.get();
    }
    registers.rip = thread.regs[reg::RIP].get();
    registers.rflags = thread.regs[reg::RFLAGS].get();
    memory::write_struct(buffer, &registers);
    let (vector, error, address) = thread.fault.get();
    caller.answer4(thread.state.get() as u64, vector.wrapping_sub(1), error, address);
    Ok(())
}

/// `write registers` from the caller's message buffer.
pub fn write_registers(cpu: &Cpu, thread: Obj<Thread>, caller: Obj<Thread>) -> Result<(), Error> {
    not_elsewhere(cpu, thread)?;
    let registers: fault::Registers = memory::read_struct(readable(thread, caller)?);
    if registers.rip >= USER_END {
        return Err(Error::BadArgument);
    }
    for (from, to) in registers.gpr.iter().zip(&thread.regs) {
        to.set(*from);
    }
    thread.regs[reg::RIP].set(registers.rip);
    // Arithmetic flags, DF, TF, AC, ID; IF is always set.
    thread.regs[reg::RFLAGS].set(registers.rflags & 0x24_0dd5 | 0x202);
    thread.full_exit.set(1);
    Ok(())
}

/// `receive slots`: W0 first of four slots of the thread's own table.
pub fn receive_slots(thread: Obj<Thread>, caller: Obj<Thread>) -> Result<(), Error> {
    if thread != caller && thread.header.life() != life::INACTIVE {
        return Err(Error::Active);
    }
    let first = caller.word(0);
    if !(2..=0xfff0).contains(&first) || first + 2 > thread.table()?.slots.get() {
        return Err(Error::NoSlot);
    }
    thread.receive_slots.set(first as u16);
    Ok(())
}

/// Physical address of the root task's thread.
static ROOT: AtomicU64 = AtomicU64::new(0);

/// Whether this is the root task's thread: without it nobody sees to the others, so its end is that of the system.
pub fn is_root(thread: Obj<Thread>) -> bool {
    thread.physical() == ROOT.load(Relaxed)
}

/// Puts the kernel-made root thread in order (boot): its slots were filled by the caller.
pub fn boot_root(thread: Obj<Thread>, rip: u64, rsp: u64, info: u64) {
    ROOT.store(thread.physical(), Relaxed);
    thread.level.set(7);
    thread.regs[reg::RIP].set(rip);
    thread.regs[reg::RSP].set(rsp);
    thread.regs[reg::RDI].set(info);
    thread.regs[reg::RFLAGS].set(0x202);
    thread.full_exit.set(1);
    thread.header.life.store(life::ACTIVE, Release);
    thread.state.set(State::Ready);
}

/// Lets go of a thread on its home CPU: nothing outside refers to it afterwards.
pub fn retire(cpu: &Cpu, thread: Obj<Thread>) {
    sched::halt(cpu, thread);
    if let Some(client) = thread.caller.take() {
        client.server.set(None);
        client.finish(Err(Error::PeerGone));
        sched::news(cpu, client);
    }
    if let Some(bound) = thread.bound.take() {
        bound.bound.store(0, Relaxed);
        bound.waiter.store(0, Release);
    }
    if let Some(context) = thread.context.take() {
        context.thread.set(None);
    }
    if let Some(vcpu) = thread.vcpu.take() {
        vcpu.thread.store(0, Release);
    }
    cpu.must_choose.set(true);
}

/// Removes the capabilities of a thread that is let go of, or was never configured as a whole (structural lock held).
pub fn empty_slots(thread: Obj<Thread>) {
    for slot in [&thread.table, &thread.space, &thread.buffer, &thread.fault_endpoint, &thread.fault_notification] {
        cap::empty(slot);
    }
}
