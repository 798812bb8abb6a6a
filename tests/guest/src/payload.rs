//! A test payload as people write them: started by Multiboot in 32-bit protected mode, it goes to 64-bit mode by itself,
//! prints in every way there is (ports E9h and 402h, the serial port by polling and by interrupts), names its modules, and
//! ends by port F4h with their number.
//!
//! It is built twice, for Multiboot 1 and for Multiboot 2.

use crate::IS_2;
use crate::hardware::{halt, in8, out8};
use crate::serial;
use core::arch::{asm, global_asm};
use core::fmt::{self, Write};
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicUsize, Ordering};
const MAGIC: u32 = if IS_2 { 0xe852_50d6 } else { 0x1bad_b002 };
/// Multiboot 1: modules on pages, memory information. Multiboot 2: architecture i386.
const FLAGS: u32 = if IS_2 { 0 } else { 3 };

/// The header; only Multiboot 2's has a length and a last tag.
#[used]
#[unsafe(link_section = ".multiboot")]
static HEADER: [u32; 6] = if IS_2 {
    [MAGIC, FLAGS, 24, 0u32.wrapping_sub(MAGIC + FLAGS + 24), 0, 8]
} else {
    [MAGIC, FLAGS, 0u32.wrapping_sub(MAGIC + FLAGS), 0, 0, 0]
};

// EAX and EBX go to `main`'s arguments. One GiB is mapped to itself with pages of 2 MiB.
global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".code32",
    ".globl _start",
    "_start:",
    "cld",
    "movl $payload_stack_top, %esp",
    "movl %eax, %edi",
    "movl %ebx, %esi",
    "movl $payload_pdpt + 3, payload_pml4",
    "movl $payload_directory + 3, payload_pdpt",
    "xorl %ecx, %ecx",
    "1: movl %ecx, %eax",
    "shll $21, %eax",
    "orl $0x83, %eax",
    "movl %eax, payload_directory(, %ecx, 8)",
    "incl %ecx",
    "cmpl $512, %ecx",
    "jne 1b",
    "movl %cr4, %eax",
    "orl $0x20, %eax",
    "movl %eax, %cr4",
    "movl $payload_pml4, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "rdmsr",
    "orl $0x100, %eax",
    "wrmsr",
    "movl %cr0, %eax",
    "orl $0x80000001, %eax",
    "movl %eax, %cr0",
    "lgdt payload_gdtr",
    "ljmp $8, $payload_long",
    ".code64",
    "payload_long:",
    "movl $16, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %ss",
    "call {main}",
    "ud2",
    "payload_interrupt:",
    "pushq %rax", "pushq %rcx", "pushq %rdx", "pushq %rsi", "pushq %rdi", "pushq %r8", "pushq %r9", "pushq %r10", "pushq %r11",
    "cld",
    "call {interrupt}",
    "popq %r11", "popq %r10", "popq %r9", "popq %r8", "popq %rdi", "popq %rsi", "popq %rdx", "popq %rcx", "popq %rax",
    "iretq",
    ".balign 8",
    "payload_gdt: .quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "payload_gdtr: .word 23",
    ".long payload_gdt",
    ".popsection",
    ".pushsection .bss.payload, \"aw\", @nobits",
    ".balign 4096",
    "payload_pml4: .skip 4096",
    "payload_pdpt: .skip 4096",
    "payload_directory: .skip 4096",
    ".skip 16384",
    "payload_stack_top:",
    ".popsection",
    main = sym main,
    interrupt = sym interrupt,
    options(att_syntax)
);

static mut IDT: [[u64; 2]; 64] = [[0; 2]; 64];
const SERIAL_VECTOR: usize = 0x24;
const COM1: u16 = 0x3f8;
/// What the interrupt handler prints, and how much of it is out.
const BY_INTERRUPT: &[u8] = b"payload: one byte for each interrupt, this time\n";
static SENT: AtomicUsize = AtomicUsize::new(0);

unsafe extern "C" {
    fn payload_interrupt();
}

/// A port that takes text.
struct Port(u16);

impl fmt::Write for Port {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out8(self.0, byte));
        Ok(())
    }
}

extern "C" fn main(magic: u32, info: u32) -> ! {
    let _ = writeln!(Port(0xe9), "payload: magic {magic:x} on port E9h");
    let _ = writeln!(Port(0x402), "payload: port 402h");
    serial::init();
    say!("payload: the serial port by polling");
    by_interrupts();
    let mut count = 0;
    modules(info, |start, end, cmdline| {
        count += 1;
        let _ = write!(Port(0xe9), "payload: module of {} bytes, ", end - start);
        // SAFETY: the loader ends command lines with a zero.
        let text = (0..).map(|at| unsafe { (cmdline as *const u8).add(at).read_volatile() });
        text.take_while(|byte| *byte != 0).for_each(|byte| out8(0xe9, byte));
        let _ = writeln!(Port(0xe9));
    });
    let _ = write!(Port(0xe9), "payload: no newline here");
    // SAFETY: ends the machine.
    unsafe { asm!("out dx, eax", in("dx") 0xf4u16, in("eax") 0x100 + count, options(nomem, nostack)) };
    halt()
}

fn word(address: u32) -> u32 {
    // SAFETY: the loader's information, in memory that is mapped to itself.
    unsafe { (address as *const u32).read_unaligned() }
}

/// Names each module: where it begins and ends, and where its command line is.
fn modules(info: u32, mut each: impl FnMut(u32, u32, u32)) {
    if IS_2 {
        let (mut tag, end) = (info + 8, info + word(info));
        while tag < end {
            if word(tag) == 3 {
                each(word(tag + 8), word(tag + 12), tag + 16);
            }
            tag += word(tag + 4).next_multiple_of(8);
        }
    } else {
        let list = word(info + 24);
        (0..word(info + 20)).for_each(|i| each(word(list + 16 * i), word(list + 16 * i + 4), word(list + 16 * i + 8)));
    }
}

/// Prints a line through the transmitter's interrupt: IRQ 4 of the PIC, as a simple kernel has it.
fn by_interrupts() {
    let handler = payload_interrupt as *const () as u64;
    let low = handler & 0xffff | 8 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    // SAFETY: nobody else uses the table yet.
    unsafe { addr_of_mut!(IDT[SERIAL_VECTOR]).write([low, handler >> 32]) };
    let base = addr_of!(IDT) as u64;
    let register = [0x3ff, base as u16, (base >> 16) as u16, (base >> 32) as u16, (base >> 48) as u16];
    // SAFETY: the table lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) register.as_ptr(), options(nostack)) };
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0xa0, 0x11), (0xa1, 0x28), (0xa1, 2), (0xa1, 1)]
    {
        out8(port, value);
    }
    out8(0x21, 0xef);
    out8(0xa1, 0xff);
    // OUT2 lets interrupts out.
    out8(COM1 + 4, 0xb);
    out8(COM1 + 1, 2);
    while SENT.load(Ordering::Relaxed) < BY_INTERRUPT.len() {
        // SAFETY: the handler keeps all registers.
        unsafe { asm!("sti", "hlt", "cli") };
    }
    out8(COM1 + 1, 0);
}

extern "C" fn interrupt() {
    // Reading the identification takes the transmitter's request back.
    if in8(COM1 + 2) & 7 == 2 {
        let sent = SENT.fetch_add(1, Ordering::Relaxed);
        match BY_INTERRUPT.get(sent) {
            Some(byte) => out8(COM1, *byte),
            None => out8(COM1 + 1, 0),
        }
    }
    out8(0x20, 0x20);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    say!("payload: {info}");
    halt()
}
