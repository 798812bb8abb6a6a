//! Starting processors.

use super::{apic, mitigations, paging, tables, tsc, virt, vm};
use crate::{
    boot,
    memory::{self, DIRECT_MAP, KERNEL_BASE, Obj, Page},
    percpu::{self, Cpu},
    sched,
};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::*};
use moira_abi::Error;
use x86::dtables::{DescriptorTablePointer, sgdt};

/// Physical address of the trampoline; the page is kept out of what tasks get.
pub const TRAMPOLINE: u64 = 0x8000;
/// Where processors' stacks appear, 64 KiB apart: below each lies a page where nothing is mapped.
const STACKS: u64 = KERNEL_BASE + 0x3000_0000;
/// First and last page of the kernel stack there; the others stand at every second page behind it.
const MAIN: core::ops::Range<u64> = 4..8;
/// Bytes of a kernel stack.
const STACK: u64 = (MAIN.end - MAIN.start) * 4096;
/// Stacks of their own, a page each: NMI, double fault, machine check, debug.
const IST: u64 = 4;

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static ap_cr3: u8;
}

// What lies behind one another in the memory of a processor: its structure, tables, stacks and pages for the virtualization hardware.
const TABLES: u64 = (size_of::<Cpu>() as u64 + 4095) & !4095;
const MAIN_STACK: u64 = TABLES + 4096;
const IST_STACKS: u64 = MAIN_STACK + STACK;
const VIRT: u64 = IST_STACKS + IST * 4096;
/// Bytes of memory that each processor needs.
pub const BYTES_PER_CPU: u64 = VIRT + virt::HOST_PAGES as u64 * 4096;

/// Maps a processor's stacks, and leaves to the tables of tasks what entering the kernel touches.
pub fn map(index: u32, physical: u64, allocate: paging::Allocate) {
    for page in [physical, physical + TABLES] {
        paging::show(DIRECT_MAP | page, page, false, allocate);
    }
    for i in 0..STACK / 4096 + IST {
        let (address, page) = (stack_page(index, i), physical + MAIN_STACK + i * 4096);
        paging::map(address, page, allocate);
        if i >= STACK / 4096 {
            paging::show(address, page, false, allocate);
        }
    }
}

/// Address of a page of a processor's stacks: those of the kernel stack, then one for each IST stack.
fn stack_page(index: u32, i: u64) -> u64 {
    let main = MAIN.end - MAIN.start;
    let page = if i < main { MAIN.start + i } else { MAIN.end + 1 + (i - main) * 2 };
    STACKS + (index as u64 * 16 + page) * 4096
}

/// Top of a processor's IST stack: NMI, double fault, machine check, debug. The word above it is the CPU pointer.
pub fn ist_top(index: u32, i: u64) -> u64 {
    stack_page(index, STACK / 4096 + i) + 4096 - 16
}

/// Where the stack ends that holds an address.
pub fn stack_end(address: u64) -> u64 {
    let is_main = address < STACKS || MAIN.contains(&(address >> 12 & 15));
    if is_main { (address | (STACK - 1)) + 1 } else { (address | 4095) + 1 }
}

/// Lays out a processor's memory (zeroed, at `physical`) and registers it.
pub fn prepare(index: u32, physical: u64) -> &'static Cpu {
    // SAFETY: zeroed memory of the right size, given for ever; zero is a valid pattern for every field.
    let cpu: &'static Cpu = unsafe { &*((DIRECT_MAP | physical) as *const Cpu) };
    // SAFETY: `index` is written before anyone else can see the structure.
    unsafe { (&raw const cpu.index).cast_mut().write(index) };
    cpu.me.set(DIRECT_MAP | physical);
    cpu.loaded_space.store(crate::smp::NOTHING, Relaxed);
    cpu.loaded_guest.store(crate::smp::NOTHING, Relaxed);
    cpu.stack.set(stack_page(index, STACK / 4096 - 1) + 4096);
    cpu.virt_pages.set(physical + VIRT);
    // In the kernel: odd.
    cpu.epoch.store(1, Relaxed);
    for i in 0..IST {
        Page(physical + IST_STACKS + i * 4096).write(4088, cpu.me.get());
    }
    cpu
}

/// Loads a processor's tables (on that processor).
pub fn init_this(cpu: &'static Cpu) {
    let ist = [0, 1, 2, 3].map(|i| ist_top(cpu.index, i));
    // SAFETY: the page behind the structure is this processor's own; called once on it.
    unsafe { tables::init(cpu, &*((cpu.me.get() + TABLES) as *const tables::Tables), ist) };
    mitigations::init_cpu(cpu);
    cpu.apic_id.set(apic::init());
}

/// This CPU, found by where its GDT lies: for the crash record, since GS may be a task's or a guest's.
pub fn this_by_tables() -> &'static Cpu {
    let mut gdt = DescriptorTablePointer::<u64>::default();
    // SAFETY: reads a register; what it names lies behind the structure, which lives for ever.
    unsafe {
        sgdt(&mut gdt);
        &*((gdt.base as u64 - TABLES) as *const Cpu)
    }
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
    memory::copy(begin - KERNEL_BASE, TRAMPOLINE, length as usize);
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
    unsafe { core::arch::asm!("jmp {}", sym resume_thread, in("rax") thread.address(), options(noreturn)) }
}
