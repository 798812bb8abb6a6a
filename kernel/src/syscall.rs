//! The one system call: which method of which object. Hot methods first; structural ones under the structural lock.

use crate::{
    arch,
    cap::{self, Cap, Slot},
    checks, ipc,
    memory::Obj,
    object::{
        address_space, cap_table, cpu as cpu_object, endpoint, interrupt, io_ports, plan, platform, sched_context,
        thread::{self, Thread, reg},
        untyped, vcpu,
    },
    percpu::Cpu,
    sched, smp, trace, wait,
};
use moira_abi::{Error, Method, Rights, Tag};

/// Runs the whole of a system call; a checking kernel looks how long it is.
#[inline(always)]
fn checked(cpu: &'static Cpu, what: u8, work: impl FnOnce() -> Obj<Thread>) -> Obj<Thread> {
    checks::entered(cpu, what);
    let next = work();
    checks::left(cpu);
    checks::before_task(cpu, next);
    next
}

/// `call`, from `entry.s`; answers the thread to resume.
#[unsafe(no_mangle)]
extern "C" fn syscall_call(cpu: &'static Cpu, thread: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    checked(cpu, Method::Call as u8, || ipc::call(cpu, thread, tag))
}

/// `reply_receive`, from `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn syscall_reply_receive(cpu: &'static Cpu, thread: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    checked(cpu, Method::ReplyReceive as u8, || ipc::reply_receive(cpu, thread, tag))
}

/// `run`, from `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn syscall_run(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    checked(cpu, Method::VcpuRun as u8, || vcpu::run(cpu, thread))
}

/// `signal`, from `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn syscall_signal(cpu: &'static Cpu, thread: Obj<Thread>) -> Obj<Thread> {
    checked(cpu, Method::Signal as u8, || wait::signal(cpu, thread))
}

// What `entry.s` compares with.
const NUMBERS: [u8; 4] = [Method::Call as u8, Method::ReplyReceive as u8, Method::Signal as u8, Method::VcpuRun as u8];
static_assertions::const_assert!(matches!(NUMBERS, [1, 2, 6, 9]));

/// Everything else, from `entry.s`.
#[unsafe(no_mangle)]
extern "C" fn syscall(cpu: &'static Cpu, thread: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    const DISPATCH: u8 = Method::Dispatch as u8;
    const RECEIVE: u8 = Method::Receive as u8;
    checked(cpu, tag.low(), || match tag.low() {
        DISPATCH => ipc::dispatch(cpu, thread),
        RECEIVE => ipc::receive(cpu, thread),
        _ => other(cpu, thread, tag),
    })
}

#[inline(never)]
fn other(cpu: &'static Cpu, thread: Obj<Thread>, tag: Tag) -> Obj<Thread> {
    trace::of(cpu, trace::SYSCALL, thread, tag.low() as u64);
    match Method::from_code(tag.low()) {
        Some(Method::Reply) => ipc::reply(cpu, thread, tag),
        Some(Method::Park) => ipc::park(cpu, thread),
        Some(Method::Wait) => wait::wait(cpu, thread),
        Some(Method::Poll) => wait::poll(thread),
        Some(method) => {
            match invoke(cpu, thread, method) {
                Err(Busy::Restart) => ipc::restart(cpu, thread),
                Err(Busy::Answer(error)) => thread.set_status(Err(error)),
                Ok(()) => thread.set_status(Ok(())),
            }
            sched::resume(cpu, thread)
        }
        None => thread.done(Err(Error::NoMethod)),
    }
}

/// Why an invocation did not succeed.
enum Busy {
    /// The structural lock is taken, or this was a part of the work: the call runs again.
    Restart,
    /// This is the answer.
    Answer(Error),
}

impl From<Error> for Busy {
    fn from(error: Error) -> Busy {
        Busy::Answer(error)
    }
}

/// Of work that is done a part at a time: whether this was the last one.
fn finished(done: Result<bool, Error>) -> Result<(), Busy> {
    if done? { Ok(()) } else { Err(Busy::Restart) }
}

fn invoke(cpu: &'static Cpu, thread: Obj<Thread>, method: Method) -> Result<(), Busy> {
    let slot = cap::slot_of(thread.table()?, thread.regs[reg::RDI].get())?;
    let cap = slot.read();
    // Methods that change nothing structural take no lock.
    match method {
        Method::PortIn => return finished(io_ports::access(cap, thread, false)),
        Method::PortOut => return finished(io_ports::access(cap, thread, true)),
        Method::InterruptAck => return Ok(interrupt::ack(cap.object(Rights::USE)?)?),
        Method::InterruptMessage => return Ok(interrupt::message(cap.object(Rights::USE)?, thread)?),
        Method::ContextConsumed => return Ok(sched_context::consumed(cpu, cap.object(Rights::USE)?, thread)?),
        Method::ContextLosers => return Ok(sched_context::losers(cpu, cap.object(Rights::USE)?, thread)?),
        Method::PlanAppendMany => {
            let plan = cap.object(Rights::USE)?;
            let begun = begin(cpu, thread, method);
            let result = plan::append_many(cpu, plan, thread);
            book(cpu, thread, method, begun);
            return finished(result);
        }
        Method::VcpuKick => return Ok(vcpu::kick(cpu, cap.object(Rights::USE)?)?),
        Method::CapInspect => return Ok(cap_table::inspect(cap.object(Rights::USE)?, thread)?),
        Method::CpuLedger => return Ok(cpu_object::ledger(cpu, cap.object(Rights(0))?, thread)?),
        Method::PlatformLog => return finished(platform::log(cap.object(Rights::USE)?, thread)),
        Method::PlatformEnd => return Ok(platform::end(cap.object(Rights::USE)?, thread)?),
        Method::PlatformTrace => return Ok(platform::trace(cap.object(Rights::USE)?, thread)?),
        _ => {}
    }
    if !smp::lock(cpu) {
        return Err(Busy::Restart);
    }
    let begun = begin(cpu, thread, method);
    // Until the lock was taken, others may have changed the slot: then all is decoded again.
    let same = slot.word() == cap.word;
    let result = if same { structural(cpu, thread, method, slot, cap) } else { Err(Busy::Restart) };
    smp::unlock(cpu);
    book(cpu, thread, method, begun);
    result
}

/// Structural work begins: answers when.
#[inline(always)]
fn begin(cpu: &Cpu, thread: Obj<Thread>, method: Method) -> u64 {
    let begun = arch::now();
    trace::event_at(cpu, begun, trace::STRUCTURAL, thread.address(), method as u64);
    begun
}

/// Books structural work since then.
#[inline(always)]
fn book(cpu: &Cpu, thread: Obj<Thread>, method: Method, begun: u64) {
    let ended = arch::now();
    // Part of the asker's own time: what a helper pays for is told as lost.
    let wrong = if cfg!(feature = "mischarge-structural") { cpu.scheduler.get() } else { None };
    if let Some(context) = wrong.or(cpu.chosen.get())
        && (wrong.is_some() || cpu.beneficiary.get() == Some(context))
    {
        context.structural.set(context.structural.get() + (ended - begun));
    }
    trace::event_at(cpu, ended, trace::STRUCTURAL_END, thread.address(), method as u64);
}

/// Called in one place, so worth no call.
#[inline(always)]
fn structural(cpu: &'static Cpu, thread: Obj<Thread>, method: Method, slot: Obj<Slot>, cap: Cap) -> Result<(), Busy> {
    const USE: Rights = Rights::USE;
    Ok(match method {
        Method::UntypedRetype => return finished(untyped::retype(cap.object(USE)?, slot, thread)),
        Method::UntypedRevoke => untyped::revoke(cpu, cap.object(USE)?, slot),
        Method::UntypedInfo => untyped::info(cap.object(USE)?, thread),
        Method::CapCopy => cap_table::derive(cap.object(USE)?, thread, false),
        Method::CapMint => cap_table::derive(cap.object(USE)?, thread, true),
        Method::CapMove => cap_table::relocate(cap.object(USE)?, thread),
        Method::CapDelete => cap_table::delete(cap.object(USE)?, thread),
        Method::CapRevoke => cap_table::revoke(cap.object(USE)?, thread),
        Method::SpaceMap => address_space::map_frame(cap.object(USE)?, thread),
        Method::SpaceUnmap => address_space::unmap_frame(cap.object(USE)?, thread),
        Method::SpaceProtect => address_space::protect_frame(cap.object(USE)?, thread),
        Method::SpaceAddMemory => address_space::add_memory(cap.object(USE)?, thread),
        Method::ThreadConfigure => thread::configure(cap.object(USE)?, thread),
        Method::ThreadActivate => thread::activate(cpu, cap.object(USE)?, thread),
        Method::ThreadStop => thread::stop(cpu, cap.object(USE)?),
        Method::ThreadResume => thread::resume(cpu, cap.object(USE)?),
        Method::ThreadBindNotification => thread::bind_notification(cpu, cap.object(USE)?, thread),
        Method::ThreadReadRegisters => thread::read_registers(cpu, cap.object(USE)?, thread),
        Method::ThreadWriteRegisters => thread::write_registers(cpu, cap.object(USE)?, thread),
        Method::ThreadReceiveSlots => thread::receive_slots(cap.object(USE)?, thread),
        Method::ContextBind => sched_context::bind(cap.object(USE)?, thread),
        Method::ContextSetHome => sched_context::set_home(cpu, cap.object(USE)?, thread),
        Method::EndpointBind => endpoint::bind(cap.object(Rights::SERVE)?, thread),
        Method::InterruptBind => interrupt::bind(cap.object(USE)?, thread),
        Method::VcpuConfigure => vcpu::configure(cap.object(USE)?, thread),
        Method::VcpuSetSpace => vcpu::set_space(cap.object(USE)?, thread),
        Method::VcpuAllowMsr => return finished(vcpu::allow_msr(cap.object(USE)?, thread)),
        Method::VcpuAllowPorts => return finished(vcpu::allow_ports(cap.object(USE)?, thread)),
        Method::PlanClear => plan::clear(cap.object(USE)?, thread),
        Method::PlanAppend => plan::append(cap.object(USE)?, thread),
        Method::CpuInstallPlan => cpu_object::install_plan(cpu, cap.object(Rights::PLAN)?, thread),
        Method::CpuSetScheduler => cpu_object::set_scheduler(cpu, cap.object(Rights::PLAN)?, thread),
        Method::PlatformStartCpu => platform::start_cpu(cap.object(USE)?, slot, thread),
        Method::PlatformAddIoApic => platform::add_io_apic(cap.object(USE)?, thread),
        Method::PlatformMakeInterrupt => platform::make_interrupt(cap.object(USE)?, thread),
        Method::PlatformMakeIoPorts => platform::make_io_ports(cap.object(USE)?, slot, thread),
        Method::PlatformMakeFrame => platform::make_frame(cap.object(USE)?, slot, thread),
        _ => Err(Error::NoMethod),
    }?)
}
