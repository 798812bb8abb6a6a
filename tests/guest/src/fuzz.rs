//! A hostile guest: does at random what a guest can do to its monitor, from a seed, and counts the faults it gets.
//!
//! It leaves alone what would end the machine (reset and power registers) and its own memory below 8 MiB, so that it can
//! say in the end that it got there.

use crate::fuzz_devices;
use crate::hardware::now;
use core::arch::{asm, global_asm};
use core::ptr::{addr_of, addr_of_mut};

// `guarded(function, argument)` calls the function with interrupts on and answers 0, or 1 if it ended in an exception.
// Interrupts are ended at the APIC, and the code they came into goes on with interrupts off: however many wait, each
// operation makes progress.
global_asm!(
    ".pushsection .text.fuzz, \"ax\", @progbits",
    "guarded:",
    "push rbx", "push rbp", "push r12", "push r13", "push r14", "push r15",
    "mov [rip + {saved}], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "sti",
    "call rax",
    "xor eax, eax",
    "jmp 2f",
    "fuzz_exception:",
    "mov rsp, [rip + {saved}]",
    "mov eax, 1",
    "2:",
    "cli", "cld",
    "pop r15", "pop r14", "pop r13", "pop r12", "pop rbp", "pop rbx",
    "ret",
    "fuzz_interrupt:",
    "and dword ptr [rsp + 16], 0xfffffdff",
    "push rax",
    "mov eax, 0xfee000b0",
    "mov dword ptr [rax], 0",
    "pop rax",
    "iretq",
    ".popsection",
    saved = sym SAVED,
);

static mut SAVED: u64 = 0;
static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];

unsafe extern "C" {
    fn guarded(function: extern "C" fn(&mut Random), random: &mut Random) -> u32;
    fn fuzz_exception();
    fn fuzz_interrupt();
}

/// Numbers from a seed (xorshift64*).
#[repr(transparent)]
pub struct Random(u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }

    /// A number of any size, with favourites.
    pub fn value(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(256),
            4 => 0x80_0000 + self.below(0x80_0000),
            _ => self.next() >> self.below(64),
        }
    }
}

/// Runs `count` operations from `seed`.
pub fn run(seed: u64, count: u64) {
    install();
    let mut random = Random(seed << 1 | 1);
    let mut faults = 0;
    let start = now();
    for _ in 0..count {
        let operation = random.pick(&OPERATIONS);
        // SAFETY: the operation comes back or ends in an exception, which the handlers installed above turn into an answer.
        faults += u64::from(unsafe { guarded(operation, &mut random) });
    }
    crate::serial::init();
    say!("fuzz: seed {seed}, {count} operations, {faults} faults, {} ticks", now() - start);
    say!("fuzz: done");
}

// A place of the table is written without a reference to it: an iterator would make one.
#[allow(clippy::needless_range_loop)]
fn install() {
    for vector in 0..256 {
        let handler = if vector < 32 { fuzz_exception as *const () as u64 } else { fuzz_interrupt as *const () as u64 };
        // An interrupt gate of ring 0 in the loader's 64-bit code segment.
        let low = handler & 0xffff | 0x10 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
        // SAFETY: nobody else uses the table yet.
        unsafe { addr_of_mut!(IDT[vector]).write([low, handler >> 32]) };
    }
    let register = [0xfff_u16, 0, 0, 0, 0];
    let mut register = register;
    let base = addr_of!(IDT) as u64;
    for (word, shift) in register.iter_mut().skip(1).zip([0, 16, 32, 48]) {
        *word = (base >> shift) as u16;
    }
    // SAFETY: the table lives for ever.
    unsafe { asm!("lidt [{}]", in(reg) register.as_ptr(), options(nostack)) };
}

type Operation = extern "C" fn(&mut Random);

const OPERATIONS: [Operation; 17] = [
    port_in,
    port_out,
    port_string,
    memory_read,
    memory_write,
    memory_other,
    msr_read,
    msr_write,
    processor_id,
    control,
    debug,
    step,
    fuzz_devices::virtqueue,
    fuzz_devices::firmware_config,
    fuzz_devices::pci,
    fuzz_devices::interrupts,
    fuzz_devices::tables,
];

/// Ports of devices, and any other.
fn port(random: &mut Random) -> u16 {
    const KNOWN: [u16; 24] = [
        0x20, 0x21, 0xa0, 0xa1, 0x40, 0x42, 0x43, 0x61, 0x60, 0x70, 0x71, 0x80, 0xcf8, 0xcfc, 0xcfd, 0x3f8, 0x3f9,
        0x3fa, 0x3fc, 0x510, 0x511, 0x518, 0x600, 0x608,
    ];
    let port = if random.below(4) == 0 { random.next() as u16 } else { random.pick(&KNOWN) };
    // What ends the machine.
    let ends = matches!(port, 0x601..=0x607 | 0xcf6..=0xcf9 | 0x8f..=0x92 | 0x61..=0x64 | 0xf1..=0xf4 | 0x3f5..=0x3f8);
    if ends { 0x80 } else { port }
}

extern "C" fn port_in(random: &mut Random) {
    let port = port(random);
    // SAFETY: reads a port into registers.
    unsafe {
        match random.below(3) {
            0 => asm!("in al, dx", in("dx") port, out("al") _, options(nomem, nostack)),
            1 => asm!("in ax, dx", in("dx") port, out("ax") _, options(nomem, nostack)),
            _ => asm!("in eax, dx", in("dx") port, out("eax") _, options(nomem, nostack)),
        }
    }
}

extern "C" fn port_out(random: &mut Random) {
    let port = port(random);
    let value = random.value() as u32;
    // SAFETY: devices of this machine; what they may write to memory is random, and most of memory is not ours.
    unsafe {
        match random.below(3) {
            0 => asm!("out dx, al", in("dx") port, in("al") value as u8, options(nostack)),
            1 => asm!("out dx, ax", in("dx") port, in("ax") value as u16, options(nostack)),
            _ => asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)),
        }
    }
}

extern "C" fn port_string(random: &mut Random) {
    let port = port(random);
    let at = 0x80_0000 + random.below(0x10_0000);
    let count = random.below(20);
    // SAFETY: memory from 8 MiB on is nobody's.
    unsafe {
        match random.below(3) {
            0 => asm!("rep insb", in("dx") port, inout("rdi") at => _, inout("rcx") count => _, options(nostack)),
            1 => asm!("rep outsb", in("dx") port, inout("rsi") at => _, inout("rcx") count => _, options(nostack)),
            _ => asm!("insd", in("dx") port, inout("rdi") at => _, options(nostack)),
        }
    }
}

/// Device memory: the APICs, PCI's configuration space, BARs, and where nothing is.
fn address(random: &mut Random) -> u64 {
    let base = random.pick(&[
        0xfee0_0000_u64,
        0xfec0_0000,
        0xb000_0000,
        0xb000_8000,
        0xb001_0000,
        0xc000_0000,
        0xc000_4000,
        0xd000_0000,
    ]);
    base + random.below(0x4000)
}

extern "C" fn memory_read(random: &mut Random) {
    let at = address(random);
    // SAFETY: not memory of the program.
    unsafe {
        match random.below(6) {
            0 => asm!("mov al, [{}]", in(reg) at, out("al") _, options(nostack)),
            1 => asm!("mov rax, [{}]", in(reg) at, out("rax") _, options(nostack)),
            2 => asm!("movsx eax, word ptr [{}]", in(reg) at, out("eax") _, options(nostack)),
            3 => asm!("add eax, [{}]", in(reg) at, out("eax") _, options(nostack)),
            4 => asm!("cmp byte ptr [{}], 7", in(reg) at, options(nostack)),
            _ => asm!("mov eax, [{}]", in(reg) at & !3, out("eax") _, options(nostack)),
        }
    }
}

extern "C" fn memory_write(random: &mut Random) {
    let at = address(random);
    let value = random.value();
    // SAFETY: as for `port_out`.
    unsafe {
        match random.below(4) {
            0 => asm!("mov [{}], al", in(reg) at, in("al") value as u8, options(nostack)),
            1 => asm!("mov [{}], rax", in(reg) at, in("rax") value, options(nostack)),
            _ => asm!("mov [{}], eax", in(reg) at & !3, in("eax") value as u32, options(nostack)),
        }
    }
}

extern "C" fn memory_other(random: &mut Random) {
    let at = address(random);
    let (other, count) = (0x80_0000 + random.below(0x10_0000), random.below(12));
    // SAFETY: as for `port_out`.
    unsafe {
        match random.below(6) {
            0 => {
                asm!("rep movsb", inout("rsi") at => _, inout("rdi") other => _, inout("rcx") count => _, options(nostack))
            }
            1 => {
                asm!("rep movsd", inout("rsi") other => _, inout("rdi") at => _, inout("rcx") count => _, options(nostack))
            }
            2 => asm!("rep stosq", inout("rdi") at => _, inout("rcx") count => _, in("rax") other, options(nostack)),
            3 => asm!("xchg [{}], eax", in(reg) at, inout("eax") 0 => _, options(nostack)),
            4 => asm!("lock cmpxchg [{}], ecx", in(reg) at, inout("eax") 0 => _, in("ecx") 1, options(nostack)),
            _ => asm!("fld qword ptr [{}]", in(reg) at, options(nostack)),
        }
    }
}

fn msr(random: &mut Random) -> u32 {
    const KNOWN: [u32; 26] = [
        0x10,
        0x1b,
        0x3a,
        0x3b,
        0x48,
        0x49,
        0x8b,
        0xfe,
        0x10a,
        0x174,
        0x175,
        0x179,
        0x1a0,
        0x1d9,
        0x200,
        0x250,
        0x26f,
        0x277,
        0x2ff,
        0x6e0,
        0x802,
        0x838,
        0xc000_0080,
        0xc000_0082,
        0xc000_0102,
        0xc000_0103,
    ];
    match random.below(4) {
        0 => random.next() as u32,
        1 => 0x800 + random.below(0x100) as u32,
        _ => random.pick(&KNOWN),
    }
}

extern "C" fn msr_read(random: &mut Random) {
    let number = msr(random);
    // SAFETY: reads a register, or faults.
    unsafe { asm!("rdmsr", in("ecx") number, out("eax") _, out("edx") _, options(nomem, nostack)) };
}

extern "C" fn msr_write(random: &mut Random) {
    let number = msr(random);
    let value = random.value();
    // SAFETY: none of the registers that the program depends on can lose the bits it needs: the processor refuses.
    unsafe {
        asm!("wrmsr", in("ecx") number, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack))
    };
}

extern "C" fn processor_id(random: &mut Random) {
    let leaf = random.pick(&[0u32, 0x4000_0000, 0x8000_0000]).wrapping_add(random.below(0x40) as u32);
    let leaf = if random.below(8) == 0 { random.next() as u32 } else { leaf };
    let subleaf = random.value() as u32;
    // SAFETY: writes registers.
    unsafe {
        asm!("mov {k}, rbx", "cpuid", "mov rbx, {k}", k = out(reg) _, inout("eax") leaf => _, inout("ecx") subleaf => _, out("edx") _,
            options(nomem, nostack));
    }
}

/// Control registers (only bits that exist: emulators let others in and then refuse to run with them), and instructions that only hypervisors and firmware use.
extern "C" fn control(random: &mut Random) {
    let value = random.value();
    // SAFETY: the bits that the program depends on stay; the processor refuses what does not exist.
    unsafe {
        match random.below(10) {
            0 => asm!("mov cr8, {}", in(reg) value & 0xff, options(nostack)),
            1 => asm!("mov {}, cr8", out(reg) _, options(nostack)),
            2 => {
                let flip = 1u64 << random.pick(&[1u32, 2, 3, 5, 16, 18]);
                asm!("mov {t}, cr0", "xor {t}, {f}", "mov cr0, {t}", t = out(reg) _, f = in(reg) flip, options(nostack));
            }
            3 => {
                let flip = 1u64 << random.pick(&[2u32, 3, 6, 8, 9, 10, 11, 18]);
                asm!("mov {t}, cr4", "xor {t}, {f}", "mov cr4, {t}", t = out(reg) _, f = in(reg) flip, options(nostack));
            }
            4 => asm!("wbinvd", options(nostack)),
            5 => asm!("clts", options(nostack)),
            6 => {
                asm!("xsetbv", in("ecx") value as u32 & 1, in("eax") random.value() as u32 | 1, in("edx") 0, options(nostack))
            }
            7 => asm!("rdpmc", in("ecx") value as u32, out("eax") _, out("edx") _, options(nostack)),
            8 => asm!("vmrun rax", in("rax") value, options(nostack)),
            _ => asm!("vmxoff", options(nostack)),
        }
    }
}

extern "C" fn debug(random: &mut Random) {
    let value = random.value();
    // SAFETY: breakpoints lie where no code is; others end in an exception.
    unsafe {
        match random.below(6) {
            0 => asm!("mov dr0, {}", in(reg) value | 1 << 40, options(nostack)),
            1 => asm!("mov dr6, {}", in(reg) value, options(nostack)),
            2 => asm!("mov dr7, {}", in(reg) value & 0xdc00, options(nostack)),
            3 => asm!("mov {}, dr7", out(reg) _, options(nostack)),
            4 => asm!("mov {}, dr4", out(reg) _, options(nostack)),
            _ => asm!("mov {}, dr6", out(reg) _, options(nostack)),
        }
    }
}

/// Single-steps over an instruction that the monitor completes.
extern "C" fn step(random: &mut Random) {
    let leaf = random.below(2) as u32;
    // SAFETY: the trap ends in the handler; without one the flag is cleared.
    unsafe {
        asm!("pushfq", "or dword ptr [rsp], 0x100", "popfq", "mov {k}, rbx", "cpuid", "mov rbx, {k}", "pushfq",
            "and dword ptr [rsp], 0xfffffeff", "popfq", k = out(reg) _, inout("eax") leaf => _, inout("ecx") 0 => _, out("edx") _);
    }
}
