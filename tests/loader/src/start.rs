//! From PVH's 32-bit entry to Rust, from Rust to Linux's 64-bit entry, and the serial port in between.

use crate::memory::{self, Range};
use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use vmm_machine::boot::InitialState;

/// Places of the registers in [`InitialState::gprs`], which has them in the order of instructions.
const RSP: usize = 4;
const RSI: usize = 6;

// The first 4 GiB are mapped to themselves in 2 MiB pages; then long mode (SDM 10.8.5).
global_asm!(
    ".pushsection .note.Xen, \"a\", @note",
    ".balign 4",
    ".long 4, 8, 18",
    ".asciz \"Xen\"",
    ".quad loader_start",
    ".popsection",
    ".pushsection .text.start, \"ax\", @progbits",
    ".code32",
    ".globl loader_start",
    "loader_start:",
    "cld",
    "cli",
    "mov esp, offset loader_stack_top",
    "mov edi, offset loader_tables + 0x2000",
    "mov eax, 0x83",
    "mov ecx, 2048",
    "2:",
    "mov [edi], eax",
    "add eax, 0x200000",
    "add edi, 8",
    "dec ecx",
    "jnz 2b",
    "mov edi, offset loader_tables + 0x1000",
    "mov eax, offset loader_tables + 0x2003",
    "mov ecx, 4",
    "3:",
    "mov [edi], eax",
    "add eax, 0x1000",
    "add edi, 8",
    "dec ecx",
    "jnz 3b",
    "mov edi, offset loader_tables",
    "mov eax, offset loader_tables + 0x1003",
    "mov [edi], eax",
    "mov cr3, edi",
    "mov eax, 0x20",
    "mov cr4, eax",
    "mov ecx, 0xc0000080",
    "mov eax, 0x100",
    "xor edx, edx",
    "wrmsr",
    "mov eax, 0x80000011",
    "mov cr0, eax",
    "lgdt [loader_gdt_register]",
    "push 8",
    "mov eax, offset loader_long",
    "push eax",
    "retf",
    ".code64",
    "loader_long:",
    "xor eax, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov ss, eax",
    "mov edi, ebx",
    "call {main}",
    "ud2",
    ".balign 8",
    "loader_gdt: .quad 0, 0x00af9b000000ffff",
    "loader_gdt_register: .short 15",
    ".quad loader_gdt",
    ".popsection",
    ".pushsection .bss, \"aw\", @nobits",
    ".balign 4096",
    "loader_tables: .skip 6 * 4096",
    ".skip 32768",
    "loader_stack_top:",
    ".popsection",
    main = sym crate::main,
);

/// PVH's start information (Xen, `arch-x86/hvm/start_info.h`).
pub struct Info {
    /// First module: address and bytes.
    pub module: Option<(u64, u64)>,
    /// Where ACPI's root pointer lies; 0: not told.
    pub rsdp: u64,
    /// The machine's map of memory.
    pub map: Vec<Range>,
}

impl Info {
    /// Reads it; `None` if it is none.
    pub fn read(at: u64) -> Option<Info> {
        const MAGIC: u32 = 0x336e_c578;
        const MOST: u64 = 64;
        if memory::word(at) as u32 != MAGIC {
            return None;
        }
        let modules = memory::word(at + 12) as u32;
        let list = memory::word(at + 16);
        let module = (modules > 0).then(|| (memory::word(list), memory::word(list + 8)));
        let (table, count) = (memory::word(at + 40), memory::word(at + 48) & 0xffff_ffff);
        let entry = |index| {
            let at = table + 24 * index;
            (memory::word(at), memory::word(at + 8), memory::word(at + 16) as u32)
        };
        Some(Info { module, rsdp: memory::word(at + 32), map: (0..count.min(MOST)).map(entry).collect() })
    }
}

/// Leaves for the guest's first instruction.
pub fn enter(state: &InitialState) -> ! {
    let table = [state.gdtr.limit, state.gdtr.base as u16, (state.gdtr.base >> 16) as u16, 0, 0];
    // SAFETY: the loader ends here; the tables were written by the boot protocol's loader.
    unsafe {
        asm!(
            "mov cr3, {cr3}",
            "lgdt [{table}]",
            "mov ds, {data:e}", "mov es, {data:e}", "mov ss, {data:e}",
            "mov rsp, {stack}",
            "push {code}",
            "push {rip}",
            "retfq",
            cr3 = in(reg) state.cr3,
            table = in(reg) table.as_ptr(),
            data = in(reg) u64::from(state.ds.selector),
            stack = in(reg) state.gprs[RSP],
            code = in(reg) u64::from(state.cs.selector),
            rip = in(reg) state.rip,
            in("rsi") state.gprs[RSI],
            options(noreturn)
        )
    }
}

const PORT: u16 = 0x3f8;

/// Prints on the first serial port.
pub fn say(text: &str) {
    for byte in text.bytes() {
        // SAFETY: the port is the loader's own until it jumps; bounded, should nobody ever take a byte.
        unsafe {
            for _ in 0..100_000 {
                let status: u8;
                asm!("in al, dx", in("dx") PORT + 5, out("al") status, options(nomem, nostack));
                if status & 0x20 != 0 {
                    break;
                }
            }
            asm!("out dx, al", in("dx") PORT, in("al") byte, options(nomem, nostack));
        }
    }
}

/// Prints a number.
pub fn say_number(number: u64) {
    let mut digits = [0u8; 20];
    let mut rest = number;
    let mut first = digits.len();
    for (index, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0' + (rest % 10) as u8;
        rest /= 10;
        first = index;
        if rest == 0 {
            break;
        }
    }
    say(core::str::from_utf8(digits.get(first..).unwrap_or_default()).unwrap_or_default());
}

/// The TSC.
pub fn now() -> u64 {
    // SAFETY: reads a register.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Nothing more.
pub fn halt() -> ! {
    loop {
        // SAFETY: the program has ended.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    say("loader: panicked\n");
    halt()
}
