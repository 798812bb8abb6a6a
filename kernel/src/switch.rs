//! Switching threads and spaces on one CPU.

use crate::{
    arch,
    memory::Obj,
    object::{address_space::AddressSpace, thread::Thread},
    percpu::{Cpu, attention},
    sched, trace,
};
use core::sync::atomic::Ordering::*;
use moira_kernel_core::flush;

/// Makes a thread the current one and loads its space. Answers false (and stops the thread) if it has none any more.
#[inline(always)]
pub fn to(cpu: &Cpu, thread: Obj<Thread>) -> bool {
    let address = thread.space.word().address();
    if !flush::may_stay(cpu.loaded_space.load(Relaxed), address) && !load(cpu, address) {
        return without_space(cpu, thread);
    }
    cpu.current.set(Some(thread));
    cpu.regs_end.set(thread.regs_end());
    true
}

/// The same where nothing is out of the ordinary. Answers false, having done nothing, if something is.
#[inline(always)]
pub fn quickly(cpu: &Cpu, thread: Obj<Thread>) -> bool {
    let address = thread.space.word().address();
    if cpu.attention.load(Relaxed) != 0 || address == 0 {
        return false;
    }
    if !flush::may_stay(cpu.loaded_space.load(Relaxed), address) {
        // SAFETY: as in `load`.
        let space = unsafe { Obj::<AddressSpace>::at(address) };
        cpu.loaded_space.store(address, Relaxed);
        arch::paging::load(space.load.get());
    }
    cpu.current.set(Some(thread));
    cpu.regs_end.set(thread.regs_end());
    true
}

#[cold]
fn without_space(cpu: &Cpu, thread: Obj<Thread>) -> bool {
    sched::halt(cpu, thread);
    cpu.must_choose.set(true);
    false
}

/// Loads a space. The store comes before the load of CR3 (which serialises), so whoever changes an entry and then finds the
/// space not loaded here knows that this CPU will see the change.
#[inline(always)]
fn load(cpu: &Cpu, address: u64) -> bool {
    if address == 0 {
        return false;
    }
    // SAFETY: the address comes from a capability word of this type.
    let space = unsafe { Obj::<AddressSpace>::at(address) };
    // A guest's state is still in registers.
    if cpu.attention.load(Relaxed) & attention::GUEST != 0 {
        crate::object::vcpu::space_changes(cpu, address);
    }
    // Exchanged, not stored: seen by others before the root is read, so that whoever retires the space finds it loaded here
    // or has this CPU find the kernel's tables in its place.
    cpu.loaded_space.swap(address, SeqCst);
    trace::event(cpu, trace::FLUSH, flush::Reason::Load as u64, address);
    if cpu.attention.load(Relaxed) & attention::HARDEN == 0 {
        arch::paging::load(space.load.get());
    } else {
        arch::mitigations::load_space(cpu, space.load.get());
    }
    true
}
