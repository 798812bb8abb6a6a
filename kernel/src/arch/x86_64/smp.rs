//! Starting processors.

use super::{apic, paging, tables, tsc, virt, vm};
use crate::{
    boot,
    memory::{DIRECT_MAP, Obj, Page},
    percpu::{self, Cpu},
    sched,
};
use core::sync::atomic::Ordering::*;

/// Physical address of the trampoline; the page is kept out of what tasks get.
pub const TRAMPOLINE: u64 = 0x8000;
/// Bytes of a kernel stack.
const STACK: u64 = 16 * 1024;
/// Stacks of their own, a page each: NMI, double fault, machine check, debug.
const IST: u64 = 4;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_cr3: u8;
}

/// Bytes of memory that each processor needs: its structure, tables, stacks and pages for the virtualization hardware.
pub const fn bytes_per_cpu() -> u64 {
    let structure = (size_of::<Cpu>() as u64 + 4095) & !4095;
    structure + 4096 + STACK + IST * 4096 + virt::HOST_PAGES as u64 * 4096
}

/// Lays out a processor's memory (zeroed, at `physical`) and registers it.
pub fn prepare(index: u32, physical: u64) -> &'static Cpu {
    // SAFETY: zeroed memory of the right size, given for ever; zero is a valid pattern for every field.
    let cpu: &'static Cpu = unsafe { &*((DIRECT_MAP | physical) as *const Cpu) };
    // SAFETY: `index` is written before anyone else can see the structure.
    unsafe { (&raw const cpu.index).cast_mut().write(index) };
    let structure = (size_of::<Cpu>() as u64 + 4095) & !4095;
    cpu.me.set(DIRECT_MAP | physical);
    cpu.loaded_space.store(crate::smp::NOTHING, Relaxed);
    cpu.loaded_guest.store(crate::smp::NOTHING, Relaxed);
    cpu.stack.set(DIRECT_MAP | physical + structure + 4096 + STACK);
    cpu.virt_pages.set(physical + structure + 4096 + STACK + IST * 4096);
    // In the kernel: odd.
    cpu.epoch.store(1, Relaxed);
    for i in 0..IST {
        let page = physical + structure + 4096 + STACK + i * 4096;
        Page(page).write(4088, cpu.me.get());
    }
    cpu
}

/// Loads a processor's tables (on that processor).
pub fn init_this(cpu: &'static Cpu) {
    let structure = (size_of::<Cpu>() as u64 + 4095) & !4095;
    let base = cpu.me.get() + structure;
    let ist = [0, 1, 2, 3].map(|i| base + 4096 + STACK + (i + 1) * 4096 - 16);
    // SAFETY: the page behind the structure is this processor's own; called once on it.
    unsafe { tables::init(cpu, &*(base as *const tables::Tables), ist) };
    cpu.apic_id.set(apic::init());
}

/// Starts the processor with an APIC id, in the next free structure. `None`: all are in use. It sets `online` when it runs.
pub fn start(apic_id: u32) -> Option<&'static Cpu> {
    let (index, memory) = boot::next_cpu()?;
    let cpu = prepare(index, memory);
    cpu.apic_id.set(apic_id);
    percpu::register(cpu);
    let begin = &raw const ap_trampoline as u64;
    let length = &raw const ap_trampoline_end as u64 - begin;
    for offset in (0..length).step_by(8) {
        // SAFETY: the trampoline lies in the image; the target page is the kernel's.
        let word = unsafe { ((begin + offset) as *const u64).read() };
        Page(TRAMPOLINE).write(offset, word);
    }
    let arguments = &raw const ap_cr3 as u64 - begin;
    let words = [paging::root(), cpu.stack.get(), cpu.me.get(), ap_main as *const () as u64];
    for (i, word) in words.into_iter().enumerate() {
        Page(TRAMPOLINE).write(arguments + i as u64 * 8, word);
    }
    paging::identity(true, TRAMPOLINE + 4096);
    apic::start_cpu(apic_id, (TRAMPOLINE >> 12) as u8);
    let limit = super::now() + tsc::hz();
    while !cpu.online.load(Acquire) && super::now() < limit {
        core::hint::spin_loop();
    }
    paging::identity(false, TRAMPOLINE + 4096);
    Some(cpu)
}

/// A started processor's first Rust code, on its own stack.
extern "C" fn ap_main(cpu: &'static Cpu) -> ! {
    paging::load_kernel();
    init_this(cpu);
    apic::init_timer();
    vm::enable(cpu);
    cpu.account_since.set(super::now());
    cpu.ledger_start.set(super::now());
    cpu.online.store(true, Release);
    leave(sched::run_next(cpu))
}

/// Leaves the kernel to a thread, from the boot code.
pub fn leave(thread: Obj<crate::object::thread::Thread>) -> ! {
    unsafe extern "C" {
        fn resume_thread();
    }
    // SAFETY: the thread is the current one, its space is loaded; the code does not come back.
    unsafe {
        core::arch::asm!("jmp {}", sym resume_thread, in("rax") DIRECT_MAP | thread.physical(), options(noreturn));
    }
}
