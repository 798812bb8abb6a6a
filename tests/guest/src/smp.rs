//! Several processors: starts the others, sends interrupts in every way between them, and measures one.

use crate::bench;
use crate::hardware::{now, out16, read_msr, triple_fault, write_msr};
use core::arch::{asm, global_asm};
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

/// Most processors.
const MOST: usize = 8;
/// Where the others start: a page of memory that nobody uses, and its number as a start-up vector.
const START: u64 = 0x3_0000;
/// Parameters in that page, after the code (see below).
const CR3: u64 = START + 0x108;
const STACK: u64 = START + 0x110;
const ENTRY: u64 = START + 0x118;
const APIC: u64 = 0xfee0_0000;
const APIC_BASE: u32 = 0x1b;

/// What the vectors mean to a processor that takes them.
const COUNT: u8 = 0x40;
const TO_CLUSTERS: u8 = 0x41;
const TO_X2APIC: u8 = 0x42;
const STAMP: u8 = 0x43;

// Real mode at START:0. The far jump's operand and the GDT's base are absolute, as the page's place is fixed.
global_asm!(
    ".pushsection .rodata.smp, \"a\", @progbits",
    ".balign 16",
    "smp_start:",
    ".code16",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    "lgdt [0x100]",
    "mov eax, cr4",
    "or eax, 0x20",
    "mov cr4, eax",
    "mov eax, dword ptr [0x108]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, cr0",
    "and eax, 0x9fffffff",
    "or eax, 0x80000001",
    "mov cr0, eax",
    ".byte 0x66, 0xea",
    ".long 0x30180",
    ".word 0x10",
    ".org smp_start + 0x100",
    ".word 31",
    ".long 0x30120",
    ".word 0",
    ".org smp_start + 0x120",
    ".quad 0, 0x00cf9b000000ffff, 0x00af9b000000ffff, 0x00cf93000000ffff",
    ".org smp_start + 0x180",
    ".code64",
    "mov eax, 0x18",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov eax, 0x30110",
    "mov rsp, [rax]",
    "mov rax, [rax + 8]",
    "call rax",
    "ud2",
    "smp_end:",
    ".popsection",
);

// Entries of the IDT: one for each vector that is used, all alike but for the number; the stamp is taken first.
global_asm!(
    ".pushsection .text.smp, \"ax\", @progbits",
    "smp_nmi:", "push 2", "jmp smp_common",
    "smp_40:", "push 0x40", "jmp smp_common",
    "smp_41:", "push 0x41", "jmp smp_common",
    "smp_42:", "push 0x42", "jmp smp_common",
    "smp_43:",
    "push rax", "push rdx",
    "rdtsc", "shl rdx, 32", "or rax, rdx", "mov [rip + {stamp}], rax",
    "pop rdx", "pop rax",
    "push 0x43",
    "smp_common:",
    "push rax", "push rcx", "push rdx", "push rsi", "push rdi", "push r8", "push r9", "push r10", "push r11",
    "mov rdi, [rsp + 72]",
    "cld",
    "call {handler}",
    "pop r11", "pop r10", "pop r9", "pop r8", "pop rdi", "pop rsi", "pop rdx", "pop rcx", "pop rax",
    "add rsp, 8",
    "iretq",
    ".popsection",
    handler = sym handler,
    stamp = sym TAKEN,
);

// What a debugger stops at: counts at RDI.
global_asm!(
    ".pushsection .text.count, \"ax\", @progbits",
    ".globl count_here",
    "count_here:",
    "inc qword ptr [rdi]",
    "mov rax, [rdi]",
    ".globl count_done",
    "count_done:",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn count_here(counter: *mut u64);
    static smp_start: u8;
    static smp_end: u8;
    fn smp_nmi();
    fn smp_40();
    fn smp_41();
    fn smp_42();
    fn smp_43();
}

static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];
static mut STACKS: [[u64; 1024]; MOST] = [[0; 1024]; MOST];
/// Interrupts [`COUNT`] and NMIs of each processor, and whether it is there.
static COUNTS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
static NMIS: [AtomicU32; MOST] = [const { AtomicU32::new(0) }; MOST];
static ALIVE: AtomicU32 = AtomicU32::new(0);
/// Processors that followed [`TO_CLUSTERS`] and [`TO_X2APIC`].
static CHANGED: AtomicU32 = AtomicU32::new(0);
/// When the handler of [`STAMP`] began.
static TAKEN: AtomicU64 = AtomicU64::new(0);
/// What the others do once they are there: 0 halt, 1 spin, 2 count.
static SPIN: AtomicU32 = AtomicU32::new(0);

fn x2apic() -> bool {
    read_msr(APIC_BASE) & 1 << 10 != 0
}

fn apic_write(register: u64, value: u32) {
    if x2apic() {
        write_msr(0x800 + (register >> 4) as u32, value.into());
    } else {
        // SAFETY: a register of this processor's APIC.
        unsafe { ((APIC + register) as *mut u32).write_volatile(value) };
    }
}

fn apic_read(register: u64) -> u32 {
    if x2apic() {
        read_msr(0x800 + (register >> 4) as u32) as u32
    } else {
        // SAFETY: a register of this processor's APIC.
        unsafe { ((APIC + register) as *const u32).read_volatile() }
    }
}

fn id() -> u32 {
    if x2apic() { apic_read(0x20) } else { apic_read(0x20) >> 24 }
}

/// Sends a command to a destination.
fn send(destination: u32, command: u32) {
    if x2apic() {
        write_msr(0x830, u64::from(destination) << 32 | u64::from(command));
    } else {
        apic_write(0x310, destination << 24);
        apic_write(0x300, command);
    }
}

const LOGICAL: u32 = 1 << 11;
const LOWEST: u32 = 1 << 8;
const NMI: u32 = 4 << 8;
const INIT: u32 = 5 << 8 | 1 << 14;
const STARTUP: u32 = 6 << 8;
const SELF: u32 = 1 << 18;
const ALL: u32 = 2 << 18;
const OTHERS: u32 = 3 << 18;

extern "C" fn handler(vector: u64) {
    let me = id() as usize % MOST;
    match vector as u8 {
        2 => {
            NMIS[me].fetch_add(1, SeqCst);
            return;
        }
        COUNT => {
            COUNTS[me].fetch_add(1, SeqCst);
        }
        TO_CLUSTERS => {
            apic_write(0xe0, 0x0fff_ffff);
            apic_write(0xd0, (me as u32 / 4) << 28 | 1 << (24 + me % 4));
            CHANGED.fetch_add(1, SeqCst);
        }
        TO_X2APIC => {
            write_msr(APIC_BASE, read_msr(APIC_BASE) | 1 << 10);
            CHANGED.fetch_add(1, SeqCst);
        }
        _ => {}
    }
    apic_write(0xb0, 0);
}

/// Loads the IDT and switches the APIC on, flat logical mode.
fn prepare() {
    let descriptor = (addr_of!(IDT) as u64).wrapping_shl(16) | 0xfff;
    let pointer = [descriptor, addr_of!(IDT) as u64 >> 48];
    // SAFETY: the table is filled and lives forever.
    unsafe { asm!("lidt [{}]", in(reg) pointer.as_ptr(), options(readonly, nostack)) };
    apic_write(0xf0, 0x1ff);
    if !x2apic() {
        apic_write(0xe0, u32::MAX);
        apic_write(0xd0, 1 << (24 + id()));
    }
}

extern "C" fn other() -> ! {
    prepare();
    ALIVE.fetch_or(1 << id(), SeqCst);
    loop {
        match SPIN.load(SeqCst) {
            0 => {
                // SAFETY: interrupts have handlers.
                unsafe { asm!("sti", "hlt", options(nostack)) };
            }
            1 => core::hint::spin_loop(),
            _ => count_once(),
        }
    }
}

/// Counts in the way that a debugger can stop at.
fn count_once() {
    let mut counter = u64::from(COUNTS[id() as usize % MOST].load(SeqCst));
    // SAFETY: the routine adds one to the number.
    unsafe { count_here(&raw mut counter) };
    COUNTS[id() as usize % MOST].store(counter as u32, SeqCst);
}

/// All of `count` processors count until the power button is pressed.
pub fn count_for_debugger(count: u32) {
    SPIN.store(2, SeqCst);
    if count > 1 {
        start(count.min(MOST as u32));
    }
    say!("guest: {count} processors count");
    while !crate::button_pressed() {
        count_once();
    }
    say!("guest: all have counted: {}", counts(count).iter().take(count as usize).all(|&number| number > 0));
}

/// Halts with interrupts off until the NMI button is pressed.
pub fn await_nmi() {
    start(1);
    // LINT1 brings an NMI.
    apic_write(0x360, 0x400);
    say!("guest: halted");
    // SAFETY: the only thing that comes is an NMI, which has a handler.
    unsafe { asm!("cli", "hlt", options(nostack)) };
    say!("guest: NMIs: {}", NMIS[0].load(SeqCst));
}

/// Waits until something is so; so long that on a busy host nobody is only late.
fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let end = now() + 400_000_000_000;
    while !done() {
        if now() > end {
            say!("smp: failed: {what}");
            triple_fault();
        }
        core::hint::spin_loop();
    }
}

/// Starts all others, one after another; answers how many processors there are.
fn start(count: u32) -> u32 {
    for (vector, entry) in [
        (2, smp_nmi as *const () as u64),
        (COUNT, smp_40 as *const () as u64),
        (TO_CLUSTERS, smp_41 as *const () as u64),
        (TO_X2APIC, smp_42 as *const () as u64),
        (STAMP, smp_43 as *const () as u64),
    ] {
        let low = entry & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (entry >> 16 & 0xffff) << 48;
        // SAFETY: nobody uses the table yet.
        unsafe { (addr_of_mut!(IDT) as *mut [u64; 2]).add(vector.into()).write_volatile([low, entry >> 32]) };
    }
    prepare();
    let cr3: u64;
    // SAFETY: reads a register; the page is memory that nobody else uses.
    unsafe {
        asm!("mov {}, cr3", out(reg) cr3, options(nomem, nostack));
        let bytes = addr_of!(smp_end) as usize - addr_of!(smp_start) as usize;
        core::ptr::copy_nonoverlapping(addr_of!(smp_start), START as *mut u8, bytes);
        (CR3 as *mut u64).write_volatile(cr3);
        (ENTRY as *mut u64).write_volatile(other as *const () as u64);
    }
    for cpu in 1..count {
        // SAFETY: as above; each processor gets a stack of its own.
        unsafe { (STACK as *mut u64).write_volatile(addr_of!(STACKS) as u64 + 8192 * u64::from(cpu + 1)) };
        send(cpu, INIT);
        send(cpu, STARTUP | (START >> 12) as u32);
        send(cpu, STARTUP | (START >> 12) as u32);
        eventually("start", || ALIVE.load(SeqCst) >> cpu & 1 != 0);
    }
    count
}

fn counts(count: u32) -> [u32; MOST] {
    core::array::from_fn(|cpu| if cpu < count as usize { COUNTS[cpu].load(SeqCst) } else { 0 })
}

/// Sends one command, and waits until each processor in `to` (as bits) has counted it, and nobody else.
fn expect(what: &str, count: u32, to: u32, command: impl FnOnce()) {
    let before = counts(count);
    command();
    let want: [u32; MOST] = core::array::from_fn(|cpu| before[cpu] + (to >> cpu & 1));
    eventually(what, || counts(count) == want);
    say!("smp: {what}: ok");
}

/// What works in xAPIC and x2APIC mode alike; `logical`: the logical destination of all but the first processor.
fn round(count: u32, mode: &str, logical: u32) {
    let others = (1 << count) - 2;
    say!("smp: {mode}");
    for cpu in 1..count {
        expect("fixed", count, 1 << cpu, || send(cpu, COUNT.into()));
    }
    expect("all but self", count, others, || send(0, OTHERS | u32::from(COUNT)));
    expect("all", count, others | 1, || send(0, ALL | u32::from(COUNT)));
    expect("self", count, 1, || send(0, SELF | u32::from(COUNT)));
    expect("logical", count, others, || send(logical, LOGICAL | u32::from(COUNT)));
    let before: u32 = counts(count).iter().sum();
    for _ in 0..8 {
        send(logical, LOGICAL | LOWEST | u32::from(COUNT));
    }
    // Those that find the vector requested already fold into one, so at least one and at most eight.
    eventually("lowest priority", || (1..=8).contains(&(counts(count).iter().sum::<u32>() - before)));
    let nmis = |cpu: u32| NMIS[cpu as usize % MOST].load(SeqCst);
    for cpu in 1..count {
        let before = nmis(cpu);
        send(cpu, NMI);
        eventually("NMI", || nmis(cpu) == before + 1);
    }
    say!("smp: lowest priority and NMI: ok");
}

/// Lets all processors change their APIC's mode.
fn change(count: u32, vector: u8) {
    CHANGED.store(0, SeqCst);
    send(0, ALL | u32::from(vector));
    eventually("change", || CHANGED.load(SeqCst) == count);
    // The last ones may still be in their handlers.
    let end = now() + 1_000_000;
    while now() < end {}
}

/// Interrupts of every kind between `count` processors.
pub fn run(count: u32) {
    let count = start(count.clamp(2, MOST as u32));
    // SAFETY: interrupts have handlers.
    unsafe { asm!("sti", options(nostack)) };
    say!("smp: {count} processors");
    round(count, "flat", (1 << count) - 2);
    change(count, TO_CLUSTERS);
    // One cluster of up to four.
    round(count.min(4), "clusters", (1 << count.min(4)) - 2);
    change(count, TO_X2APIC);
    round(count, "x2APIC", (1 << count) - 2);
    expect("self IPI register", count, 1, || write_msr(0x83f, COUNT.into()));
    // A second start of a processor that runs.
    ALIVE.store(1, SeqCst);
    // SAFETY: as in `start`.
    unsafe { (STACK as *mut u64).write_volatile(addr_of!(STACKS) as u64 + 8192 * 2) };
    send(1, INIT);
    send(1, STARTUP | (START >> 12) as u32);
    eventually("second start", || ALIVE.load(SeqCst) >> 1 & 1 != 0);
    say!("smp: done");
}

/// An interrupt for this processor, whose stack is where there is no memory.
pub fn interrupt_without_stack() -> ! {
    start(1);
    send(0, SELF | u32::from(COUNT));
    // SAFETY: the program ends here.
    unsafe { asm!("mov rsp, {}", "sti", "2: jmp 2b", in(reg) 0xd000_0000_u64, options(noreturn)) }
}

/// Lets the others spin and ends the machine: by a triple fault, or by switching it off.
pub fn end_while_others_run(count: u32, fault: bool) -> ! {
    SPIN.store(1, SeqCst);
    start(count.clamp(2, MOST as u32));
    say!("smp: the others spin");
    if fault {
        triple_fault();
    }
    out16(0x604, 5 << 10 | 1 << 13);
    loop {
        core::hint::spin_loop();
    }
}

/// Measures an interrupt from this processor to a halted one, this one halting at once, until the first instruction of the handler.
pub fn measure() {
    const SAMPLES: usize = 1000;
    start(2);
    write_msr(APIC_BASE, read_msr(APIC_BASE) | 1 << 10);
    let mut samples = [0u64; SAMPLES];
    for sample in &mut samples {
        // The timer ends the halt: one-shot, long enough that the other one has long been there.
        write_msr(0x832, COUNT.into());
        write_msr(0x83e, 0xb);
        write_msr(0x838, 2_000_000);
        let before = COUNTS[0].load(SeqCst);
        TAKEN.store(0, SeqCst);
        let sent = now();
        write_msr(0x830, 1 << 32 | u64::from(STAMP));
        while COUNTS[0].load(SeqCst) == before {
            // SAFETY: interrupts have handlers. Between STI and HLT none comes.
            unsafe { asm!("sti", "hlt", "cli", options(nostack)) };
        }
        *sample = TAKEN.load(SeqCst).saturating_sub(sent);
    }
    samples.sort_unstable();
    bench::print("vm.ipi", &samples, 0);
    say!("bench: done");
}
