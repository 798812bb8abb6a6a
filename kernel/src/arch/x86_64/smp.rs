//! Starting processors.

use super::{apic, paging, tables, tsc, virt, vm};
use crate::{
    boot,
    memory::{DIRECT_MAP, Obj, Page},
    percpu::{self, Cpu},
    sched,
};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use moira_abi::Error;

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

/// The start that is under way: index + 1 of the processor, the steps done, and when the next one is due. Under the structural lock.
static UNDER_WAY: (AtomicU32, AtomicU32, AtomicU64) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU64::new(0));

/// Goes one step on in starting the processor with an APIC id, or in the start that is under way before it. *Again* until it runs.
///
/// # Errors
/// `NoMemory`: all structures are in use; `Inactive`: it did not come up within a second.
pub fn start(apic_id: u32) -> Result<&'static Cpu, Error> {
    if let Some(cpu) = UNDER_WAY.0.load(Relaxed).checked_sub(1).and_then(percpu::get) {
        go_on(cpu);
    }
    let known = (0..percpu::count() as u32).filter_map(percpu::get).find(|cpu| cpu.apic_id.get() == apic_id);
    match known {
        Some(cpu) if cpu.online.load(Acquire) => return Ok(cpu),
        _ if UNDER_WAY.0.load(Relaxed) != 0 => {}
        Some(_) => return Err(Error::Inactive),
        None => begin(apic_id)?,
    }
    Err(Error::Again)
}

fn begin(apic_id: u32) -> Result<(), Error> {
    let (index, memory) = boot::next_cpu().ok_or(Error::NoMemory)?;
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
    let words = [paging::root(), cpu.me.get(), ap_main as *const () as u64];
    for (i, word) in words.into_iter().enumerate() {
        Page(TRAMPOLINE).write(arguments() + i as u64 * 8, word);
    }
    paging::identity(true, TRAMPOLINE + 4096);
    apic::reset_cpu(apic_id);
    UNDER_WAY.0.store(index + 1, Relaxed);
    UNDER_WAY.1.store(0, Relaxed);
    due_in(10_000);
    Ok(())
}

/// Offset of the trampoline's arguments: root of the tables, structure, entry.
fn arguments() -> u64 {
    &raw const ap_cr3 as u64 - &raw const ap_trampoline as u64
}

fn due_in(microseconds: u64) {
    UNDER_WAY.2.store(super::now() + tsc::hz() / 1_000_000 * microseconds, Relaxed);
}

/// The next step of a start, if it is time for one.
fn go_on(cpu: &Cpu) {
    let late = super::now() >= UNDER_WAY.2.load(Relaxed);
    match UNDER_WAY.1.load(Relaxed) {
        _ if cpu.online.load(Acquire) => end(),
        _ if !late => {}
        2.. => {
            // Nobody, or too slow: it must not come to run when the trampoline is another one's.
            Page(TRAMPOLINE).write(arguments() + 8, 0);
            apic::reset_cpu(cpu.apic_id.get());
            end();
        }
        step => {
            apic::startup(cpu.apic_id.get(), (TRAMPOLINE >> 12) as u8);
            UNDER_WAY.1.store(step + 1, Relaxed);
            due_in(if step == 0 { 200 } else { 1_000_000 });
        }
    }
}

fn end() {
    UNDER_WAY.0.store(0, Relaxed);
    paging::identity(false, TRAMPOLINE + 4096);
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
