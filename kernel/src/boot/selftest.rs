//! What the kernel does to itself on purpose: `selftest=` on its command line. All but the first and the last two must end in the crash record.

use crate::{
    arch::{self, apic, mitigations, paging, smp, tables},
    memory::{DIRECT_MAP, KERNEL_BASE, Obj},
    object::{
        address_space::AddressSpace,
        thread::{Thread, reg},
    },
    percpu::Cpu,
};

/// Does what is asked for; `thread` is the root task's, ready to run.
pub fn run(which: &str, cpu: &Cpu, thread: Obj<Thread>) {
    let (text, entry) = (run as *const () as u64, thread.regs[reg::RIP].get());
    match which {
        "hang" => arch::stop(),
        "panic" => panic!("asked for by selftest=panic"),
        "triple" => tables::triple_fault(),
        "stack" => overflow(0),
        "write-text" => touch(text, true),
        "execute-data" => execute(text - KERNEL_BASE + DIRECT_MAP),
        "read-user" | "execute-user" => {
            // SAFETY: the root task's space, just made.
            let space = unsafe { Obj::<AddressSpace>::at(thread.space.word().address()) };
            if !mitigations::has(mitigations::measure::PTI) {
                paging::load(space.load.get());
            }
            if which == "read-user" { touch(entry, false) } else { execute(entry) }
        }
        "gs" => {
            // SAFETY: none: the next interrupt is to fault.
            unsafe { x86::msr::wrmsr(x86::msr::IA32_GS_BASE, 0) };
            apic::interrupt_this();
            arch::take_interrupts();
        }
        "nmi" => {
            apic::command(cpu.apic_id.get(), 0x4400);
            for _ in 0..1_000_000 {
                core::hint::spin_loop();
            }
            // SAFETY: the frame that the processor left at the top of the stack that its NMIs have.
            let selector = unsafe { ((smp::ist_top(cpu.index, 0) - 4 * 8) as *const u64).read_volatile() };
            crate::log!("moira: an NMI came on a stack of its own: {}", selector == tables::KERNEL_CODE as u64);
        }
        "task-fault" => thread.regs[reg::RIP].set(0x10),
        _ => {}
    }
}

/// Reads a word, and writes it back.
fn touch(address: u64, write: bool) {
    // SAFETY: none: this is to fault.
    unsafe {
        let value = (address as *const u64).read_volatile();
        if write {
            (address as *mut u64).write_volatile(value);
        }
    }
}

fn execute(address: u64) {
    // SAFETY: none: this is to fault.
    unsafe { core::mem::transmute::<u64, extern "C" fn()>(address)() }
}

/// Uses more stack than there is.
#[inline(never)]
fn overflow(depth: u64) {
    let taken = core::hint::black_box([depth; 64]);
    if taken[0] < u64::MAX {
        overflow(depth + 1);
    }
    core::hint::black_box(taken);
}
