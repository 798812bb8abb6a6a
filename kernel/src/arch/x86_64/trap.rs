//! Exceptions and interrupts, from user mode and from the few places in the kernel where interrupts are let in.

use super::{apic, paging};
use crate::{
    checks, ipc,
    memory::Obj,
    object::{sched_context::SchedContext, thread::Thread},
    panic,
    percpu::Cpu,
    sched, smp, trace,
};

/// From user mode (`entry.s`): answers the thread to resume.
#[unsafe(no_mangle)]
extern "C" fn user_trap(cpu: &'static Cpu, thread: Obj<Thread>, vector: u64, error: u64) -> Obj<Thread> {
    checks::entered(cpu, 0);
    let next = if vector < 32 {
        let address = if vector == 14 { paging::fault_address() } else { 0 };
        ipc::fault(cpu, thread, vector, error, address)
    } else {
        interrupt(cpu, vector as u8);
        sched::resume(cpu, thread)
    };
    checks::left(cpu);
    checks::before_task(cpu, next);
    next
}

/// Handles an interrupt. The kernel must choose afterwards if `must_choose` is set.
#[inline(always)]
pub fn interrupt(cpu: &Cpu, vector: u8) {
    match vector {
        apic::TIMER | apic::CALL => {
            trace::event(cpu, trace::INTERRUPT, vector as u64, 0);
            if vector == apic::TIMER {
                // What it was set to is history.
                cpu.timer.set(0);
            }
            apic::end_of_interrupt();
            cpu.must_choose.set(true);
        }
        apic::SPURIOUS => {}
        _ => {
            let begun = sched::charge(cpu);
            let owner = cpu.source(vector).and_then(|source| source.fire(cpu));
            apic::end_of_interrupt();
            sched::charge_interrupt(cpu, owner);
            if trace::is_on(cpu) {
                trace_handled(cpu, begun, vector, owner);
            }
        }
    }
}

#[cold]
#[inline(never)]
fn trace_handled(cpu: &Cpu, begun: u64, vector: u8, owner: Option<Obj<SchedContext>>) {
    trace::event_at(cpu, begun, trace::INTERRUPT, vector as u64, 0);
    let whose = owner.map_or(0, |owner| owner.physical());
    trace::event_at(cpu, cpu.account_since.get(), trace::INTERRUPT_END, vector as u64, whose);
}

/// In the kernel (`entry.s`): an interrupt where the kernel waits for one, or a bug.
#[unsafe(no_mangle)]
extern "C" fn kernel_trap(vector: u64, frame: *const u64, saved: *const u64) {
    if vector >= 32 {
        let cpu = super::cpu();
        // A halted CPU counts as outside of the kernel; what the handler touches must not be reused under it.
        let halted = smp::is_outside(cpu);
        if halted {
            smp::enter_kernel(cpu);
        }
        interrupt(cpu, vector as u8);
        if halted {
            smp::leave_kernel(cpu);
        }
        return;
    }
    panic::exception(vector, frame, saved);
}

/// NMI, double fault, machine check (`entry.s`), on their own stacks.
#[unsafe(no_mangle)]
extern "C" fn paranoid_trap(vector: u64, frame: *const u64) {
    if vector == 2 {
        // An NMI that nobody asked for: counted by the platform, not fatal.
        return;
    }
    panic::exception(vector, frame, core::ptr::null());
}
