//! `Vcpu`: a virtual processor. ABI: `docs/abi/vcpu.md`. How guests are entered: `arch::virt`.

use super::{
    Header,
    address_space::AddressSpace,
    io_ports, life,
    thread::{State, Thread, reg},
};
use crate::{
    arch::{
        self, trap,
        virt::{self, CpuVirt, Outcome, StatePage, VcpuHw},
        vm,
    },
    cap::{self, Slot},
    checks,
    memory::{Obj, Object, Page},
    percpu::{Cpu, attention},
    sched, smp, trace,
};
use core::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::*},
};
use moira_abi::{
    Error, FrameSize, ObjectType, Rights,
    object::space_kind,
    vcpu::{Exit, VcpuState},
};
use moira_kernel_core::flush::{self, Flush, Reason, Seen};

/// A vCPU: 32 KiB; the first page is this, the rest belongs to `arch::virt`.
#[repr(C, align(4096))]
pub struct Vcpu {
    /// Header.
    pub header: Header,
    /// Physical address of the thread that runs it; 0: none.
    pub thread: AtomicU64,
    /// Somebody wants the guest to exit.
    kicked: AtomicBool,
    /// Groups that the VMM wants written at each exit, beyond the exit's own.
    wanted: Cell<u64>,
    /// The space that its translations are of, and that space's generation, at the last entry.
    pub seen: Cell<Seen>,
    /// The state page.
    state: Slot,
    /// The guest's space.
    space: Slot,
}

impl Object for Vcpu {
    const KIND: ObjectType = ObjectType::Vcpu;
}

impl Obj<Vcpu> {
    #[inline(always)]
    fn hw(self) -> VcpuHw {
        // SAFETY: a vCPU's block of 32 KiB; the first page is this object.
        unsafe { VcpuHw::from_block(Page(self.physical()).address()) }
    }

    fn space(self) -> Option<Obj<AddressSpace>> {
        self.space.embedded()
    }

    fn thread(self) -> Option<Obj<Thread>> {
        let address = self.thread.load(Acquire);
        // SAFETY: cut when either dies.
        (address != 0).then(|| unsafe { Obj::at(address) })
    }

    #[inline(always)]
    fn state_page(self) -> Option<StatePage> {
        let word = self.state.word();
        // SAFETY: a frame of 4 KiB, checked by `configure`, whose capability is still here.
        (!word.is_empty()).then(|| unsafe { StatePage::new(Page(word.address()).address() as *mut VcpuState) })
    }
}

/// A fresh vCPU has the state after reset.
pub fn init(vcpu: Obj<Vcpu>) {
    if let Some(vendor) = vm::vendor() {
        virt::init(vendor, vcpu.hw());
    }
}

fn guest_space(caller: Obj<Thread>, index: u64) -> Result<Obj<AddressSpace>, Error> {
    let space: Obj<AddressSpace> = caller.table()?.read(index)?.object(Rights::USE)?;
    if space.kind.get() != space_kind::GUEST {
        return Err(Error::WrongType);
    }
    if space.root.get() == 0 { Err(Error::NoMemory) } else { Ok(space) }
}

/// `configure`: W0 state-page frame, W1 guest space, W2 CPU (0: the caller's).
pub fn configure(vcpu: Obj<Vcpu>, caller: Obj<Thread>) -> Result<(), Error> {
    if vcpu.header.life() != life::INACTIVE {
        return Err(Error::Active);
    }
    let table = caller.table()?;
    let frame = table.read(caller.word(0))?;
    frame.frame(Rights::READ.or(Rights::WRITE))?;
    if frame.word.frame_size() != FrameSize::Small {
        return Err(Error::BadArgument);
    }
    guest_space(caller, caller.word(1))?;
    // Where its only user lives needs no capability.
    let home: Obj<Cpu> =
        if caller.word(2) == 0 { Obj::from_ref(arch::cpu()) } else { table.object(caller.word(2), Rights(0))? };
    if home.virt.get().is_null() {
        return Err(Error::NoHardware);
    }
    cap::derive(cap::slot_of(table, caller.word(0))?, Obj::from_ref(&vcpu.state), Rights::ALL, None)?;
    if let Err(error) = cap::derive(cap::slot_of(table, caller.word(1))?, Obj::from_ref(&vcpu.space), Rights::ALL, None)
    {
        cap::remove(Obj::from_ref(&vcpu.state));
        return Err(error);
    }
    Obj::from_ref(&vcpu.state).set_mark(cap::STATE_PAGE);
    vcpu.header.home.store(home.index, Relaxed);
    vcpu.header.life.store(life::ACTIVE, Release);
    Ok(())
}

/// The capability in a vCPU's slot for its state page was removed. A guest that runs now will leave its registers there when
/// it exits, and no grace period waits for guests: it is made to exit, and the flush that this counts as keeps the memory.
pub fn state_page_gone(slot: Obj<Slot>) {
    // SAFETY: the slot lies in the first page of a vCPU, which is aligned to its size.
    let vcpu: Obj<Vcpu> = unsafe { Obj::at(slot.physical() & !4095) };
    if vcpu.header.life() != life::INACTIVE {
        smp::flush_cpu(vcpu.header.home());
    }
}

/// `set_space`: W0 guest space.
pub fn set_space(vcpu: Obj<Vcpu>, caller: Obj<Thread>) -> Result<(), Error> {
    guest_space(caller, caller.word(0))?;
    if vcpu.header.life() == life::ACTIVE && vcpu.header.home() != arch::cpu().index {
        return Err(Error::WrongCpu);
    }
    let slot = Obj::from_ref(&vcpu.space);
    if !slot.is_empty() {
        cap::remove(slot);
    }
    vcpu.seen.set(Seen::default());
    cap::derive(cap::slot_of(caller.table()?, caller.word(0))?, slot, Rights::ALL, None)
}

fn here(vcpu: Obj<Vcpu>) -> Result<&'static Cpu, Error> {
    let cpu = arch::cpu();
    match vcpu.header.life() {
        life::ACTIVE if vcpu.header.home() == cpu.index => Ok(cpu),
        life::ACTIVE => Err(Error::WrongCpu),
        _ => Err(Error::Inactive),
    }
}

/// `allow_msr`: W0 number, W1 bit 0 read, bit 1 write. Answers whether it is done.
pub fn allow_msr(vcpu: Obj<Vcpu>, caller: Obj<Thread>) -> Result<bool, Error> {
    let virt = vm::of(here(vcpu)?).ok_or(Error::NoHardware)?;
    let number = u32::try_from(caller.word(0)).map_err(|_| Error::BadArgument)?;
    let (read, write) = (caller.word(1) & 1 != 0, caller.word(1) & 2 != 0);
    virt::allow_msr(virt, vcpu.hw(), number, read, write).map_err(|()| Error::BadArgument)
}

/// `allow_ports`: W0 `IoPorts`. Answers whether it is done.
pub fn allow_ports(vcpu: Obj<Vcpu>, caller: Obj<Thread>) -> Result<bool, Error> {
    let virt = vm::of(here(vcpu)?).ok_or(Error::NoHardware)?;
    let (first, last) = io_ports::range(caller.table()?.read(caller.word(0))?)?;
    // Lower and upper half, each a page of the map; W1 tells which was done.
    let half = caller.word(1) & 1;
    let (from, to) = if half == 0 { (0, 0x7fff) } else { (0x8000, 0xffff) };
    let done = virt::allow_ports(virt, vcpu.hw(), first.max(from), last.min(to));
    caller.set_word(1, if done { half + 1 } else { half });
    Ok(done && (half == 1 || last < 0x8000))
}

/// `run`: W0 groups changed (bits 0–31) and wanted (bits 32–63), W1 until.
#[inline(always)]
pub fn run(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    match begin(cpu, thread) {
        Ok(Some((vcpu, page, virt))) => {
            if go(cpu, thread, vcpu, page, virt) {
                thread
            } else {
                sched::run_next(cpu)
            }
        }
        Ok(None) => thread,
        Err(error) => thread.done(Err(error)),
    }
}

/// What runs: the vCPU, its state page, this CPU's virtualization.
type Parts = (Obj<Vcpu>, StatePage, &'static mut CpuVirt);

/// Decodes a run: answers none if the guest's state was refused (the exit says so).
#[inline(always)]
fn begin(cpu: &'static Cpu, thread: Obj<Thread>) -> Result<Option<Parts>, Error> {
    let vcpu: Obj<Vcpu> = thread.table()?.read(thread.regs[reg::RDI].get())?.object(Rights::USE)?;
    if vcpu.header.life() != life::ACTIVE {
        return Err(Error::Inactive);
    }
    if vcpu.header.home() != cpu.index {
        return Err(Error::WrongCpu);
    }
    // Each names the other, or neither does.
    if thread.vcpu.get() != Some(vcpu) {
        if vcpu.thread.load(Relaxed) != 0 || thread.vcpu.get().is_some() {
            return Err(Error::InUse);
        }
        vcpu.thread.store(thread.physical(), Release);
        thread.vcpu.set(Some(vcpu));
    }
    let (Some(page), Some(virt)) = (vcpu.state_page(), vm::of(cpu)) else { return Err(Error::Inactive) };
    let masks = thread.word(0);
    vcpu.wanted.set(masks >> 32);
    thread.guest_until.set(thread.word(1));
    if let Err(check) = virt::load_state(virt, vcpu.hw(), page, masks & 0xffff_ffff) {
        refuse(page, thread, check);
        return Ok(None);
    }
    thread.state.set(State::InGuest);
    Ok(Some((vcpu, page, virt)))
}

#[cold]
fn refuse(page: StatePage, thread: Obj<Thread>, check: u64) {
    virt::report(page, Exit::InvalidState, check, 0);
    complete(thread, Exit::InvalidState, 0);
}

#[inline(always)]
fn complete(thread: Obj<Thread>, exit: Exit, groups: u64) {
    thread.answer2(exit as u64, groups);
    thread.set_status(Ok(()));
    thread.state.set(State::Ready);
}

/// Whether the run must end for something other than the guest.
#[inline(always)]
fn due(vcpu: Obj<Vcpu>, thread: Obj<Thread>, now: u64) -> Option<Exit> {
    if vcpu.kicked.load(Relaxed) && vcpu.kicked.swap(false, AcqRel) {
        return Some(Exit::Kicked);
    }
    let (until, bound) = (thread.guest_until.get(), thread.bound.get());
    (bound.is_some_and(|bound| bound.pending()) || until != 0 && until <= now).then_some(Exit::Until)
}

/// Enters the guest that a thread runs already: [`go`].
pub fn enter(cpu: &'static Cpu, thread: Obj<Thread>) -> bool {
    let parts = thread.vcpu.get().and_then(|vcpu| Some((vcpu, vcpu.state_page()?, vm::of(cpu)?)));
    let Some((vcpu, page, virt)) = parts else {
        thread.finish(Err(Error::Inactive));
        return true;
    };
    go(cpu, thread, vcpu, page, virt)
}

/// Enters the guest until it exits for its VMM (true: the thread goes on) or the kernel has to choose (false).
#[inline(always)]
fn go(cpu: &'static Cpu, thread: Obj<Thread>, vcpu: Obj<Vcpu>, page: StatePage, virt: &mut CpuVirt) -> bool {
    loop {
        let now = arch::now();
        if let Some(exit) = due(vcpu, thread, now) {
            leave(thread, exit);
            return true;
        }
        // What must end a guest in its own window interrupts it; wakes alone, which anyone can send, do not.
        if cpu.backlog.get() != 0 || cpu.accept.load(Relaxed) && smp::has_mail(cpu) {
            return false;
        }
        if !prepare(cpu, vcpu) {
            if smp::has_mail(cpu) {
                // Its space is gone, and so may the vCPU be, of which this CPU has not read yet.
                return false;
            }
            refuse(page, thread, moira_abi::vcpu::invalid::HARDWARE);
            return true;
        }
        if checks::ON {
            checks::before_guest(cpu, vcpu.seen.get(), vcpu.space());
        }
        let until = thread.guest_until.get();
        if until != 0 && until < cpu.timer.get() {
            arch::apic::set_timer(cpu, until, now);
        }
        smp::leave_kernel(cpu);
        checks::left(cpu);
        // SAFETY: interrupts are off, this is the vCPU's home; `prepare` loaded its space and vector state.
        let outcome = unsafe { virt::run(virt, vcpu.hw(), page, vcpu.wanted.get()) };
        checks::again(cpu);
        smp::enter_kernel(cpu);
        // Nearly all exits are the VMM's.
        if let Outcome::Guest { exit, groups } = outcome {
            trace::of(cpu, trace::EXIT, thread, exit as u64);
            complete(thread, exit, groups.into());
            return true;
        }
        host_event(cpu, virt, outcome);
        if cpu.must_choose.get() {
            return false;
        }
    }
}

/// An exit that is the kernel's own business.
#[inline(never)]
fn host_event(cpu: &Cpu, virt: &CpuVirt, outcome: Outcome) {
    match outcome {
        Outcome::HostInterrupt => match virt::taken_interrupt(virt) {
            Some(vector) => trap::interrupt(cpu, vector),
            None => {
                checks::left(cpu);
                arch::take_interrupts();
                checks::again(cpu);
            }
        },
        Outcome::MachineCheck => panic!("machine check while a guest ran"),
        Outcome::Again | Outcome::Guest { .. } => {}
    }
}

/// Loads what the guest needs and the processor does not hold: its translation and vector registers.
#[inline(always)]
fn prepare(cpu: &Cpu, vcpu: Obj<Vcpu>) -> bool {
    let word = vcpu.space.word();
    if word.address() != cpu.loaded_guest.load(Relaxed) {
        if word.is_empty() {
            return false;
        }
        cpu.loaded_guest.store(word.address(), SeqCst);
    }
    // SAFETY: the capability names a live space.
    let space = unsafe { Obj::<AddressSpace>::at(word.address()) };
    let (flush, seen) = flush::at_load(vcpu.seen.get(), space.id.get(), space.generation.load(Acquire));
    if flush != Flush::Nothing {
        if space.root.get() == 0 {
            return false;
        }
        trace::event(cpu, trace::FLUSH, Reason::Guest as u64, word.address());
        vcpu.seen.set(seen);
        // SAFETY: the root of a live guest space, whose entries map only frames that its owner holds.
        unsafe { virt::set_space(vcpu.hw(), space.root.get()) };
    }
    if cpu.vector_owner.get() != Some(vcpu) {
        own_vectors(cpu, vcpu);
    }
    true
}

#[cold]
fn own_vectors(cpu: &Cpu, vcpu: Obj<Vcpu>) {
    let Some(virt) = vm::of(cpu) else { return };
    if let Some(other) = cpu.vector_owner.get() {
        // SAFETY: the registers hold this vCPU's state on this CPU.
        unsafe { virt::vector_save(virt, other.hw()) };
    }
    // SAFETY: nobody's state is in the registers.
    unsafe { virt::vector_restore(virt, vcpu.hw()) };
    cpu.vector_owner.set(Some(vcpu));
    cpu.attention.fetch_or(attention::GUEST, Relaxed);
}

/// Another space is about to be loaded: nothing of a guest stays in registers that its tasks could see.
#[cold]
pub fn space_changes(cpu: &Cpu, _space: u64) {
    let Some(virt) = vm::of(cpu) else { return };
    virt::settle(virt);
    if let Some(owner) = cpu.vector_owner.take() {
        // SAFETY: the registers hold this vCPU's state on this CPU.
        unsafe { virt::vector_save(virt, owner.hw()) };
    }
    cpu.attention.fetch_and(!attention::GUEST, Relaxed);
}

/// Walk's question about a thread in a guest: if its run is due to end, it is made ready with that exit.
pub fn check(thread: Obj<Thread>, now: u64) {
    match thread.vcpu.get() {
        Some(vcpu) => {
            if let Some(exit) = due(vcpu, thread, now) {
                leave(thread, exit);
            }
        }
        None => thread.finish(Err(Error::Inactive)),
    }
}

/// Ends a run from outside of the guest.
pub fn leave(thread: Obj<Thread>, exit: Exit) {
    let mut groups = 0;
    if let Some(vcpu) = thread.vcpu.get()
        && let (Some(page), Some(virt)) = (vcpu.state_page(), vm::of(arch::cpu()))
    {
        groups = virt::end_run(virt, vcpu.hw(), page, exit, vcpu.wanted.get());
    }
    complete(thread, exit, groups);
}

/// `kick`.
pub fn kick(cpu: &Cpu, vcpu: Obj<Vcpu>) -> Result<(), Error> {
    if vcpu.header.life() != life::ACTIVE {
        return Err(Error::Inactive);
    }
    vcpu.kicked.store(true, SeqCst);
    if let Some(thread) = vcpu.thread() {
        if thread.header.home() == cpu.index {
            if sched::wake(cpu, thread) {
                cpu.must_choose.set(true);
            }
        } else {
            smp::post_thread(thread, smp::mail::KICK);
        }
    }
    Ok(())
}

/// Lets go of a vCPU on its home CPU.
pub fn retire(home: &Cpu, vcpu: Obj<Vcpu>) {
    if let Some(thread) = vcpu.thread() {
        thread.vcpu.set(None);
        if thread.state.get() == State::InGuest {
            thread.finish(Err(Error::PeerGone));
            sched::news(home, thread);
        }
    }
    vcpu.thread.store(0, Release);
    if home.vector_owner.get() == Some(vcpu) {
        space_changes(home, 0);
    }
    if let Some(virt) = vm::of(home)
        && vcpu.header.life() != life::INACTIVE
    {
        virt::detach(virt, vcpu.hw());
    }
}

/// Removes the capabilities of a vCPU that is let go of (structural lock held).
pub fn empty_slots(vcpu: Obj<Vcpu>) {
    for slot in [&vcpu.state, &vcpu.space] {
        let slot = Obj::from_ref(slot);
        if !slot.is_empty() {
            cap::remove(slot);
        }
    }
}
