//! `Thread` and `SchedContext`.

use moira_abi::{Error, Method, Rights, USER_END, fault::Registers};
use moira_lab::{Check, Lab, Outcome, Puppet, Stub, With, code_of, invoke, taken};
use moira_sys::{Capability, FrameSize, SchedContext, Slot, Thread};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("thread-configure", configure);
    lab.experiment("thread-activate", activate);
    lab.experiment("thread-stop-and-resume", stop);
    lab.experiment("thread-registers", registers);
    lab.experiment("thread-flags", flags);
    lab.experiment("thread-single-step", single_step);
    lab.experiment("thread-forbidden-instructions", forbidden);
    lab.experiment("thread-selectors", selectors);
    lab.experiment("thread-receive-slots", receive_slots);
    lab.experiment("thread-without-its-table", without_table);
    lab.experiment("thread-stops-itself", stops_itself);
    lab.experiment("context-bind", bind);
    lab.experiment("context-consumed", consumed);
    lab.experiment("context-home", home);
    lab.experiment("context-of-a-dead-thread", dead_thread);
}

fn raw(method: Method, slot: u64, words: [u64; 8]) -> Result<[u64; 8], Error> {
    invoke(code_of(method), slot, words, 0).check()
}

fn fresh(lab: &mut Lab, check: &mut Check) -> Option<Thread> {
    let slot = lab.slots(1);
    check.good("thread", lab.arena.retype_threads(1, slot)).and_then(|made| made.get(0))
}

fn configure(lab: &mut Lab, check: &mut Check) {
    let Some(thread) = fresh(lab, check) else { return };
    let slot = lab.slots(6);
    let s = |index: u32| u64::from(slot.plus(index).0);
    let word = u64::from(thread.slot().0);
    check.good("endpoint", lab.arena.retype_endpoints(1, slot));
    check.good("notification", lab.arena.retype_notifications(1, slot.plus(1)));
    check.good("frame", lab.arena.retype_frames(FrameSize::Small, 1, slot.plus(2)));
    check.good("weak frame", Lab::TABLE.copy(moira_sys::Frame::new(slot.plus(2)), slot.plus(3), Rights::READ));
    let (table, space, entry) = (2, 3, Stub::Stop.address());
    for (name, words, error) in [
        ("space: type", [table, table, 0, 1, 0, 0, entry, 0], Error::WrongType),
        ("space: empty", [s(5), table, 0, 1, 0, 0, entry, 0], Error::Empty),
        ("space: none", [0, table, 0, 1, 0, 0, entry, 0], Error::NoSlot),
        ("table: type", [space, space, 0, 1, 0, 0, entry, 0], Error::WrongType),
        ("table: none", [space, 0, 0, 1, 0, 0, entry, 0], Error::NoSlot),
        ("buffer: type", [space, table, space, 1, 0, 0, entry, 0], Error::WrongType),
        ("buffer: read-only", [space, table, s(3), 1, 0, 0, entry, 0], Error::NoRight),
        ("buffer: empty", [space, table, s(5), 1, 0, 0, entry, 0], Error::Empty),
        ("level", [space, table, 0, 8, 0, 0, entry, 0], Error::BadArgument),
        ("level", [space, table, 0, u64::MAX, 0, 0, entry, 0], Error::BadArgument),
        ("level", [space, table, 0, 256, 0, 0, entry, 0], Error::BadArgument),
        ("fault endpoint: type", [space, table, 0, 1, s(1), 0, entry, 0], Error::WrongType),
        ("fault notification: type", [space, table, 0, 1, 0, s(0), entry, 0], Error::WrongType),
        ("entry", [space, table, 0, 1, 0, 0, USER_END, 0], Error::BadArgument),
        ("entry", [space, table, 0, 1, 0, 0, 0xffff_8000_0000_0000, 0], Error::BadArgument),
        ("entry", [space, table, 0, 1, 0, 0, u64::MAX, 0], Error::BadArgument),
        ("stack", [space, table, 0, 1, 0, 0, entry, USER_END + 1], Error::BadArgument),
        ("stack", [space, table, 0, 1, 0, 0, entry, u64::MAX], Error::BadArgument),
    ] {
        check.equal(name, raw(Method::ThreadConfigure, word, words), Err(error));
    }
    check.good("configure", raw(Method::ThreadConfigure, word, [space, table, s(2), 7, s(0), s(1), entry, USER_END]));
    check.equal("twice", raw(Method::ThreadConfigure, word, [space, table, 0, 1, 0, 0, entry, 0]), Err(Error::InUse));
    check.equal("active", raw(Method::ThreadConfigure, 4, [space, table, 0, 1, 0, 0, entry, 0]), Err(Error::Active));
    let large = lab.arena.info().is_ok_and(|info| info.free >= 1 << 21);
    check.holds("a large frame is refused elsewhere", !large);
}

fn activate(lab: &mut Lab, check: &mut Check) {
    let Some(thread) = fresh(lab, check) else { return };
    check.equal("not configured", thread.activate(Lab::CPU, [0, 0]), Err(Error::Inactive));
    check.equal("stop", thread.stop(), Err(Error::Inactive));
    check.equal("resume", thread.resume(), Err(Error::Inactive));
    let Some(puppet) = check.good("puppet", Puppet::made(lab, With::level(1))) else { return };
    check.equal("stop", puppet.thread.stop(), Err(Error::Inactive));
    check.equal("resume", puppet.thread.resume(), Err(Error::Inactive));
    for (slot, error) in [(0, Error::NoSlot), (3, Error::WrongType)] {
        check.equal("no CPU", raw(Method::ThreadActivate, puppet.word(), [slot, 0, 0, 0, 0, 0, 0, 0]), Err(error));
    }
    check.equal("cannot run yet", puppet.run(lab), Ok(Outcome::Runs));
    check.good("activate", puppet.thread.activate(Lab::CPU, [0x11, 0x22]));
    check.equal("twice", puppet.thread.activate(Lab::CPU, [0, 0]), Err(Error::Active));
    check.equal("runs", puppet.run(lab), Ok(Outcome::Fault(6, 0, 0)));
    if let Some(seen) = check.good("look", puppet.look(lab)) {
        check.equal("arguments", (seen.registers.gpr[7], seen.registers.gpr[6]), (0x11, 0x22));
        check.equal("stack", seen.registers.gpr[4], 0x1000);
        check.equal("entry", seen.registers.rip, Stub::Stop.address() + 1);
        check.equal("other registers", seen.registers.gpr[0] | seen.registers.gpr[3] | seen.registers.gpr[12], 0);
    }
    check.equal("its fault was signalled", taken(lab.faults), 1);
}

fn stop(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let mut registers = Registers::default();
    registers.gpr[0] = 0;
    check.good("set", puppet.set(lab, Stub::Count, registers));
    let mut first = 0;
    // A busy host may take the processor away for all of its time.
    for _ in 0..1_000 {
        let ran = puppet.context.map(|context| lab.run(context, 10_000));
        check.equal("runs until its time is over", ran, Some(Ok(moira_sys::Dispatched::Until)));
        check.equal("resume", puppet.thread.resume(), Err(Error::Active));
        check.equal("read", puppet.look(lab).err(), Some(Error::Active));
        check.good("stop", puppet.thread.stop());
        first = puppet.look(lab).map_or(0, |seen| seen.registers.gpr[0]);
        if first > 100 {
            break;
        }
        check.good("resume", puppet.thread.resume());
    }
    check.holds("counted", first > 100);
    check.equal("stopped", puppet.run(lab), Ok(Outcome::Runs));
    check.good("stop again", puppet.thread.stop());
    check.equal("nothing moved", puppet.look(lab).map(|seen| seen.registers.gpr[0]), Ok(first));
    check.good("resume", puppet.thread.resume());
    check.equal("runs", puppet.context.map(|context| lab.run(context, 10_000)), Some(Ok(moira_sys::Dispatched::Until)));
    check.good("stop", puppet.thread.stop());
    check.holds("went on", puppet.look(lab).is_ok_and(|seen| seen.registers.gpr[0] > first));
}

fn registers(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let mut registers = Registers { rflags: 0x8d7, ..Registers::default() };
    for (index, register) in registers.gpr.iter_mut().enumerate() {
        *register = 0x1111_1111_1111_1111 * (index as u64 + 1);
    }
    check.equal("executes", puppet.execute(lab, Stub::Stop, registers), Ok(Outcome::Fault(6, 0, 0)));
    if let Some(seen) = check.good("look", puppet.look(lab)) {
        check.equal("all registers", seen.registers.gpr, registers.gpr);
        check.equal("flags", seen.registers.rflags & 0xfff, 0xad7);
    }
    for rip in [USER_END, 1 << 47, 0xffff_8000_0000_0000, u64::MAX] {
        let bad = Registers { rip, ..registers };
        check.equal("rip", puppet.thread.write_registers(&mut lab.buffer, &bad), Err(Error::BadArgument));
    }
    // Stacks that nothing lies at, and that are not even addresses.
    for rsp in [0, u64::MAX, 1 << 63, 0x8000_0000_0000, 7] {
        registers.gpr[4] = rsp;
        check.equal("any stack", puppet.execute(lab, Stub::Stop, registers), Ok(Outcome::Fault(6, 0, 0)));
        check.equal("rsp", puppet.look(lab).map(|seen| seen.registers.gpr[4]), Ok(rsp));
    }
    // The last instruction below the hole.
    let last = Registers { rip: USER_END - 1, ..registers };
    check.good("rip", puppet.thread.write_registers(&mut lab.buffer, &last));
    check.good("resume", puppet.thread.resume());
    check.equal("nothing there", puppet.run(lab), Ok(Outcome::Fault(14, 0x14, USER_END - 1)));
    check.equal("one's own", Lab::THREAD.read_registers(&mut lab.buffer).err(), Some(Error::Active));
    let Some(bare) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let read = bare.invoke(lab, code_of(Method::ThreadReadRegisters), puppet.word(), &[]);
    check.equal("without a buffer", answered(read), Some(Err(Error::NotMapped)));
}

/// The status of a system call that came back.
pub fn answered(outcome: Result<Outcome, Error>) -> Option<Result<(), Error>> {
    match outcome {
        Ok(Outcome::Answered(answer)) => answer.result(),
        _ => None,
    }
}

fn flags(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    // Everything that a task may not choose: IF off, IOPL 3, NT, VM, RF, VIF, VIP.
    let registers = Registers { rflags: 0x1b_7000, ..Registers::default() };
    check.equal("executes", puppet.execute(lab, Stub::Stop, registers), Ok(Outcome::Fault(6, 0, 0)));
    let flags = puppet.look(lab).map(|seen| seen.registers.rflags & !0x1_0000);
    check.equal("forced", flags, Ok(0x202));
    // The same from inside: popf changes neither IF nor IOPL; NT stays until a system call clears it.
    let Some((stack, _)) = check.good("stack", lab.memory(1)) else { return };
    let mut registers = Registers::default();
    registers.gpr[0] = 0x7002;
    registers.gpr[4] = stack + 4096;
    check.equal("popf", puppet.execute(lab, Stub::Popf, registers), Ok(Outcome::Fault(6, 0, 0)));
    let seen = puppet.look(lab).map(|seen| seen.registers.gpr[1] & 0x3200);
    check.equal("interrupts on, IOPL 0", seen, Ok(0x200));
    // A system call with NT, DF, AC and TF set comes back like any other.
    for flag in [0x4000, 0x400, 0x4_0000] {
        registers = Registers { rflags: flag | 2, ..Registers::default() };
        registers.gpr[0] = code_of(Method::CapInspect);
        registers.gpr[7] = 2;
        registers.gpr[6] = 4;
        let outcome = puppet.execute(lab, Stub::Syscall, registers);
        check.equal("system call with odd flags", answered(outcome), Some(Ok(())));
    }
}

fn single_step(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let mut registers = Registers { rflags: 0x102, rip: Stub::Step.address(), ..Registers::default() };
    for step in 1..=4 {
        check.good("write", puppet.thread.write_registers(&mut lab.buffer, &registers));
        check.good("resume", puppet.thread.resume());
        check.equal("debug exception", puppet.run(lab), Ok(Outcome::Fault(1, 0, 0)));
        let Some(seen) = check.good("look", puppet.look(lab)) else { return };
        check.equal("one instruction", seen.registers.rip, Stub::Step.address() + step);
        registers = seen.registers;
    }
    // Over a system call: the trap comes behind it, in the task.
    let mut registers = Registers { rflags: 0x102, ..Registers::default() };
    registers.gpr[0] = code_of(Method::CapInspect);
    registers.gpr[7] = 2;
    registers.gpr[6] = 4;
    match puppet.execute(lab, Stub::Syscall, registers) {
        Ok(Outcome::Fault(1, 0, _) | Outcome::Answered(_)) => {}
        other => {
            check.equal("stepped over a system call", other, Ok(Outcome::Fault(1, 0, 0)));
        }
    }
    let rip = puppet.look(lab).map_or(0, |seen| seen.registers.rip);
    check.holds("behind it", rip == Stub::Syscall.address() + 2);
}

fn forbidden(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some((page, _)) = check.good("page", lab.memory(1)) else { return };
    let mut registers = Registers::default();
    registers.gpr[1] = 0x10; // rcx: an MSR (the TSC)
    registers.gpr[2] = 0x3f8; // rdx: a port
    registers.gpr[3] = page;
    registers.gpr[4] = page + 2048;
    // General protection, as the manuals say for privilege level 3.
    for stub in [
        Stub::Hlt,
        Stub::Cli,
        Stub::In,
        Stub::Out,
        Stub::Rdmsr,
        Stub::Wrmsr,
        Stub::MovCr3,
        Stub::ReadCr0,
        Stub::MovDr7,
        Stub::Lgdt,
        Stub::Wbinvd,
        Stub::Invlpg,
        Stub::Swapgs,
        Stub::Sysret,
        Stub::Rdpmc,
    ] {
        let outcome = puppet.execute(lab, stub, registers);
        check.equal(&alloc::format!("{stub:?}"), outcome, Ok(Outcome::Fault(13, 0, 0)));
    }
    // Invalid opcode, or general protection, as the processor and its modes have it.
    for stub in [
        Stub::Xsetbv,
        Stub::Xgetbv,
        Stub::Rdfsbase,
        Stub::Wrgsbase,
        Stub::Sysenter,
        Stub::Vmcall,
        Stub::Vmmcall,
        Stub::Vmxoff,
        Stub::Vmrun,
        Stub::Clgi,
        Stub::Monitor,
    ] {
        let outcome = puppet.execute(lab, stub, registers);
        let good = matches!(outcome, Ok(Outcome::Fault(6 | 13, 0, 0)));
        check.holds(&alloc::format!("{stub:?}: {outcome:?}"), good);
        let stayed = puppet.look(lab).map(|seen| seen.registers.rip) == Ok(stub.address());
        check.holds(&alloc::format!("{stub:?} did not pass"), stayed);
    }
    // No FPU and no vectors for tasks: device not available, or invalid opcode.
    for stub in [Stub::Fpu, Stub::Sse, Stub::Avx] {
        let outcome = puppet.execute(lab, stub, registers);
        check.holds(&alloc::format!("{stub:?}: {outcome:?}"), matches!(outcome, Ok(Outcome::Fault(6 | 7, 0, 0))));
        let stayed = puppet.look(lab).map(|seen| seen.registers.rip) == Ok(stub.address());
        check.holds(&alloc::format!("{stub:?} did not pass"), stayed);
    }
    // User-mode instruction prevention, where the processor has it.
    for stub in [Stub::Sgdt, Stub::Smsw, Stub::Str] {
        let outcome = puppet.execute(lab, stub, registers);
        let passed = puppet.look(lab).map(|seen| seen.registers.rip) != Ok(stub.address());
        check.holds(
            &alloc::format!("{stub:?}: {outcome:?}"),
            outcome == Ok(Outcome::Fault(13, 0, 0)) || (passed && !umip()),
        );
    }
    // Gates that are the kernel's own: general protection with the vector's error code.
    for (stub, vector) in [(Stub::Int80, 0x80), (Stub::IntTimer, 0x30)] {
        // The manuals' error code is eight times the vector; QEMU's is sixteen times.
        let outcome = puppet.execute(lab, stub, registers);
        let good = [8, 16].iter().any(|times| outcome == Ok(Outcome::Fault(13, vector * times + 2, 0)));
        check.holds(&alloc::format!("{stub:?}: {outcome:x?}"), good);
    }
    let breakpoint = puppet.execute(lab, Stub::Int3, registers);
    check.holds("int3", matches!(breakpoint, Ok(Outcome::Fault(3, 0, 0) | Outcome::Fault(13, 0x1a, 0))));
    check.equal("division by zero", puppet.execute(lab, Stub::Div, registers), Ok(Outcome::Fault(0, 0, 0)));
}

/// Whether the processor prevents these: CPUID 7, ECX bit 2. Said by the command line, as tasks cannot read CR4.
fn umip() -> bool {
    core::arch::x86_64::__cpuid_count(7, 0).ecx & 4 != 0
}

fn selectors(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let mut registers = Registers::default();
    for selector in [0x10u64, 0x18, 0x20, 0x38, 0x50, 0xfff8] {
        registers.gpr[0] = selector;
        let outcome = puppet.execute(lab, Stub::LoadSs, registers);
        check.holds("a kernel selector for SS", matches!(outcome, Ok(Outcome::Fault(13, _, 0))));
    }
    // Code segments: a far jump finds none but the task's own, in particular none of 32 bits.
    let Some((memory, _)) = check.good("memory", lab.memory(1)) else { return };
    registers.gpr[3] = memory;
    for selector in 0..0x60u64 {
        (registers.gpr[0], registers.gpr[1]) = (selector, Stub::Stop.address());
        let outcome = puppet.execute(lab, Stub::Far, registers);
        let good = match selector & !3 {
            0x30 => outcome == Ok(Outcome::Fault(6, 0, 0)),
            _ => matches!(outcome, Ok(Outcome::Fault(13, _, 0))),
        };
        check.holds(&alloc::format!("far jump to {selector:#x}: {outcome:x?}"), good);
    }
    registers.gpr[0] = 0;
    let outcome = puppet.execute(lab, Stub::LoadDs, registers);
    check.equal("null for DS", outcome, Ok(Outcome::Fault(6, 0, 0)));
    registers.gpr[0] = 0x2b;
    let outcome = puppet.execute(lab, Stub::LoadGs, registers);
    check.equal("GS, whose base becomes 0", outcome, Ok(Outcome::Fault(14, 4, 0)));
    // The kernel still finds its own data after that.
    check.equal("a system call", answered(puppet.invoke(lab, code_of(Method::CapInspect), 2, &[4])), Some(Ok(())));
    check.equal("the laboratory's", Lab::TABLE.inspect(Slot(4)).map(|found| found.badge), Ok(0));
}

fn receive_slots(lab: &mut Lab, check: &mut Check) {
    let Some(thread) = fresh(lab, check) else { return };
    check.equal("not configured", thread.receive_slots(Slot(20)), Err(Error::Inactive));
    let Some(puppet) = check.good("puppet", Puppet::made(lab, With::level(1))) else { return };
    let last = lab.info.slot_count + 1;
    for slot in [0, 1, last - 2, last, u32::MAX] {
        check.equal("outside", puppet.thread.receive_slots(Slot(slot)), Err(Error::NoSlot));
    }
    check.good("the last four", puppet.thread.receive_slots(Slot(last - 3)));
    check.good("activate", puppet.thread.activate(Lab::CPU, [0, 0]));
    check.equal("active", puppet.thread.receive_slots(Slot(20)), Err(Error::Active));
    let own = Lab::THREAD.receive_slots(Slot(last - 3));
    check.good("one's own", own);
}

fn without_table(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(1);
    let Some(table) = check.good("table", lab.arena.retype_table(9, slot)) else { return };
    let Some(puppet) = check.good("puppet", Puppet::with(lab, With { table, ..With::level(1) })) else { return };
    check.good("copy", table.copy(Lab::THREAD, Slot(3), Rights::ALL));
    check.equal(
        "its own slot 3",
        answered(puppet.invoke(lab, code_of(Method::SpaceUnmap), 3, &[3])),
        Some(Err(Error::WrongType)),
    );
    check.good("revoke", Lab::TABLE.revoke_fully(slot));
    for method in [
        Method::CapInspect,
        Method::Call,
        Method::Signal,
        Method::Wait,
        Method::Poll,
        Method::VcpuRun,
        Method::Dispatch,
        Method::UntypedInfo,
    ] {
        let outcome = puppet.invoke(lab, code_of(method), 3, &[3]);
        check.equal(&alloc::format!("{method:?}"), answered(outcome), Some(Err(Error::Inactive)));
    }
}

fn stops_itself(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.good("prepare", puppet.prepare(lab, code_of(Method::ThreadStop), puppet.word(), &[], 0));
    let blocked = puppet.context.map(|context| lab.run(context, Lab::PATIENCE));
    let stopped = matches!(blocked, Some(Ok(moira_sys::Dispatched::Blocked { kind: moira_sys::Blocked::Stopped, .. })));
    check.holds("stopped", stopped);
    check.good("resume", puppet.thread.resume());
    check.equal("and was answered", answered(puppet.run(lab)), Some(Ok(())));
}

fn bind(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(3);
    let Some(contexts) = check.good("contexts", lab.arena.retype_contexts(2, slot)) else { return };
    let (Some(first), Some(second)) = (contexts.get(0), contexts.get(1)) else { return };
    let Some(thread) = fresh(lab, check) else { return };
    let word = u64::from(first.slot().0);
    for (name, words, error) in [
        ("no thread", [3, 6], Error::WrongType),
        ("empty", [slot.plus(2).0.into(), 6], Error::Empty),
        ("no CPU", [thread.slot().0.into(), 3], Error::WrongType),
        ("outside", [thread.slot().0.into(), 0], Error::NoSlot),
    ] {
        check.equal(name, raw(Method::ContextBind, word, [words[0], words[1], 0, 0, 0, 0, 0, 0]), Err(error));
    }
    let index = check.good("bind", first.bind(thread, Lab::CPU)).flatten();
    check.holds("it has a word on the page", index.is_some());
    check.equal("the context again", first.bind(thread, Lab::CPU).err(), Some(Error::InUse));
    check.equal("the thread again", second.bind(thread, Lab::CPU).err(), Some(Error::InUse));
    check.equal("one's own thread", second.bind(Lab::THREAD, Lab::CPU).err(), Some(Error::InUse));
}

fn consumed(lab: &mut Lab, check: &mut Check) {
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    let Some(context) = puppet.context else { return };
    check.equal("nothing yet", context.consumed().map(|used| used.own + used.lost + used.delivered), Ok(0));
    check.good("set", puppet.set(lab, Stub::Count, Registers::default()));
    let begin = moira_sys::now();
    check.good("run", lab.run(context, 500));
    let took = moira_sys::now() - begin;
    let used = context.consumed().map_or(0, |used| used.own);
    check.holds("about what it ran", used > took / 4 && used <= took);
    let before = Lab::CONTEXT.consumed().map_or(0, |used| used.own);
    check.holds("this thread's grows", Lab::CONTEXT.consumed().is_ok_and(|used| used.own > before));
    let structural = Lab::CONTEXT.consumed().map_or(0, |used| used.structural);
    check.holds("structural work is part of it", structural > 0 && structural < before);
}

fn home(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(1);
    let Some(context) = check.good("context", lab.arena.retype_contexts(1, slot)).and_then(|made| made.get(0)) else {
        return;
    };
    check.good("a first home", context.set_home(Lab::CPU));
    check.good("again", context.set_home(Lab::CPU));
    let Some(puppet) = check.good("puppet", Puppet::new(lab, 1)) else { return };
    check.equal(
        "of an active thread",
        puppet.context.map(|context| context.set_home(Lab::CPU)),
        Some(Err(Error::Active)),
    );
    let bad = raw(Method::ContextSetHome, context.slot().0.into(), [3, 0, 0, 0, 0, 0, 0, 0]);
    check.equal("no CPU", bad, Err(Error::WrongType));
    // Words on the status page are given back: many rounds need no more than one.
    let Some(thread) = fresh(lab, check) else { return };
    let index = check.good("bind", context.bind(thread, Lab::CPU)).flatten();
    check.holds("a word is left", index.is_some());
    let count = moira_abi::time::STATUS_CONTEXTS as u32 + 10;
    for _ in 0..count {
        check.good("home", context.set_home(Lab::CPU));
    }
    let slot = lab.slots(2);
    let another = lab.arena.retype_contexts(1, slot).ok().and_then(|made| made.get(0));
    let thread = fresh(lab, check);
    if let (Some(another), Some(thread)) = (another, thread) {
        check.holds("still one left", another.bind(thread, Lab::CPU).is_ok_and(|index| index.is_some()));
    }
}

fn dead_thread(lab: &mut Lab, check: &mut Check) {
    let slot = lab.slots(3);
    let Some(context) = check.good("context", lab.arena.retype_contexts(1, slot)).and_then(|made| made.get(0)) else {
        return;
    };
    let Some(memory) =
        check.good("untyped", lab.arena.retype_untypeds(12, 1, slot.plus(1))).and_then(|made| made.get(0))
    else {
        return;
    };
    let mut indices = alloc::vec::Vec::new();
    for _ in 0..moira_abi::time::STATUS_CONTEXTS + 8 {
        let Some(thread) = check.good("thread", memory.retype_threads(1, slot.plus(2))).and_then(|made| made.get(0))
        else {
            return;
        };
        indices.push(check.good("bind", context.bind(thread, Lab::CPU)).flatten());
        check.good("revoke", memory.revoke_fully());
        let dispatched = lab.run(context, Lab::PATIENCE);
        let gone = matches!(dispatched, Ok(moira_sys::Dispatched::Blocked { kind: moira_sys::Blocked::Gone, .. }));
        check.holds("its thread is gone", gone);
    }
    check.holds("its word on the page is one", indices.iter().all(Option::is_some));
    let _: Option<SchedContext> = None;
}
