//! Switching threads and spaces on one CPU.

use crate::{
    arch,
    memory::Obj,
    object::{address_space::AddressSpace, thread::Thread},
    percpu::Cpu,
    sched,
};
use core::sync::atomic::Ordering::*;

/// Makes a thread the current one and loads its space. Answers false (and stops the thread) if it has none any more.
#[inline(always)]
pub fn to(cpu: &Cpu, thread: Obj<Thread>) -> bool {
    let word = thread.space.word();
    if word.is_empty() {
        return without_space(cpu, thread);
    }
    if word.address() != cpu.loaded_space.load(Relaxed) && !load(cpu, word.address()) {
        return without_space(cpu, thread);
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
    // SAFETY: the address comes from a capability word of this type.
    let space = unsafe { Obj::<AddressSpace>::at(address) };
    let root = space.root.get();
    if root == 0 {
        return false;
    }
    if cpu.guest_state.get() {
        crate::object::vcpu::space_changes(cpu, address);
    }
    cpu.loaded_space.store(address, Relaxed);
    arch::paging::load(root);
    true
}
