//! Interrupts whose handlers take long, with interrupts off and without an exit: each must come once, however often the host interrupts
//! the guest meanwhile.

use core::arch::{asm, global_asm};
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

const APIC: u64 = 0xfee0_0000;
/// The first is more urgent, so that the second one waits for a window while it is served.
const VECTORS: [u8; 2] = [0x60, 0x50];
/// Rounds of a handler's loop: some milliseconds where an instruction is a nanosecond.
const LONG: u64 = 2_000_000;

// The handlers use one counter of those that are inside, and one of those that came while one was.
global_asm!(
    ".pushsection .text.once, \"ax\", @progbits",
    "once_first:",
    "lock inc qword ptr [rip + {first}]",
    "jmp once_common",
    "once_second:",
    "lock inc qword ptr [rip + {second}]",
    "once_common:",
    "push rcx",
    "push rax",
    "mov ecx, 1",
    "lock xadd [rip + {inside}], rcx",
    "test rcx, rcx",
    "jz 1f",
    "lock inc qword ptr [rip + {twice}]",
    "1:",
    "mov ecx, {long}",
    "2:",
    "dec ecx",
    "jnz 2b",
    "lock dec qword ptr [rip + {inside}]",
    "mov eax, {eoi}",
    "mov dword ptr [rax], 0",
    "pop rax",
    "pop rcx",
    "iretq",
    ".popsection",
    first = sym FIRST,
    second = sym SECOND,
    inside = sym INSIDE,
    twice = sym TWICE,
    long = const LONG,
    eoi = const APIC + 0xb0,
);

unsafe extern "C" {
    fn once_first();
    fn once_second();
}

static FIRST: AtomicU64 = AtomicU64::new(0);
static SECOND: AtomicU64 = AtomicU64::new(0);
static INSIDE: AtomicU64 = AtomicU64::new(0);
static TWICE: AtomicU64 = AtomicU64::new(0);
static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];

/// Sends itself both interrupts, so often, and says how many came.
pub fn run(count: u64) {
    for (vector, entry) in VECTORS.into_iter().zip([once_first as *const () as u64, once_second as *const () as u64]) {
        // An interrupt gate of ring 0 in the loader's 64-bit code segment.
        let low = entry & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (entry >> 16 & 0xffff) << 48;
        // SAFETY: nobody uses the table yet.
        unsafe { (addr_of_mut!(IDT) as *mut [u64; 2]).add(vector.into()).write_volatile([low, entry >> 32]) };
    }
    let pointer = [(addr_of!(IDT) as u64).wrapping_shl(16) | 0xfff, addr_of!(IDT) as u64 >> 48];
    // SAFETY: the table is filled and lives forever.
    unsafe { asm!("lidt [{}]", in(reg) pointer.as_ptr(), options(readonly, nostack)) };
    write(0xf0, 0x1ff);
    for turn in 0..count {
        // One alone, and both.
        let vectors = VECTORS.get(..1 + turn as usize % 2).unwrap_or_default();
        // SAFETY: both vectors have handlers.
        unsafe { asm!("cli", options(nomem, nostack)) };
        for vector in vectors {
            write(0x310, 0);
            write(0x300, 1 << 18 | 1 << 14 | u32::from(*vector));
        }
        // SAFETY: as above.
        unsafe { asm!("sti", "nop", options(nomem, nostack)) };
    }
    let [first, second, twice] = [&FIRST, &SECOND, &TWICE].map(|counter| counter.load(SeqCst));
    say!("guest: sent {count} and {}, came {first} and {second}, {twice} in the middle of another", count / 2);
    if [first, second, twice] != [count, count / 2, 0] {
        say!("guest: not each of them once");
    }
}

fn write(register: u64, value: u32) {
    // SAFETY: a register of this processor's APIC.
    unsafe { ((APIC + register) as *mut u32).write_volatile(value) };
}
