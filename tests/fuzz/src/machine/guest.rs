//! What the hostile machine is made of: states of a vCPU that are nearly right, and code that exits in every way.

use super::attack::Random;
use core::mem::offset_of;
use moira_abi::vcpu::{VcpuState, event, group};
use moira_lab::{
    Mode,
    guest::{CODE, IDT, STACK, basis},
    store, stored,
};

/// Bytes of the guest's memory.
pub const MEMORY: u64 = 32 * 4096;
/// Pieces of code, 16 bytes each.
const PIECES: u64 = (MEMORY - CODE) / 16;

/// Instructions, most of which end in an exit somewhere.
const INSTRUCTIONS: [&[u8]; 68] = [
    b"\x0f\xa2",             // cpuid
    b"\xec",                 // in al, dx
    b"\xee",                 // out dx, al
    b"\xe4\x80",             // in al, 0x80
    b"\xf3\x6c",             // rep insb
    b"\x66\x6f",             // outsw
    b"\xf4",                 // hlt
    b"\xfb\xf4",             // sti, hlt
    b"\x0f\x32",             // rdmsr
    b"\x0f\x30",             // wrmsr
    b"\x0f\x01\xc1",         // vmcall
    b"\x0f\x01\xd9",         // vmmcall
    b"\x0f\x22\xc0",         // mov cr0, rax
    b"\x0f\x22\xd8",         // mov cr3, rax
    b"\x0f\x22\xe0",         // mov cr4, rax
    b"\x44\x0f\x22\xc0",     // mov cr8, rax
    b"\x44\x0f\x20\xc0",     // mov rax, cr8
    b"\x0f\x20\xc0",         // mov rax, cr0
    b"\x0f\x23\xf8",         // mov dr7, rax
    b"\x0f\x21\xf0",         // mov rax, dr6
    b"\x0f\x06",             // clts
    b"\x0f\x01\xf0",         // lmsw ax
    b"\x0f\x08",             // invd
    b"\x0f\x09",             // wbinvd
    b"\x0f\x01\xd1",         // xsetbv
    b"\x0f\x01\xc8",         // monitor
    b"\x0f\x01\xc9",         // mwait
    b"\x0f\x33",             // rdpmc
    b"\x0f\x31",             // rdtsc
    b"\x0f\x01\xf9",         // rdtscp
    b"\xf3\x90\xf3\x90",     // pause
    b"\xf1",                 // int1
    b"\xcc",                 // int3
    b"\xcd\x20",             // int 0x20: a task gate
    b"\xcd\x31",             // int 0x31
    b"\xcf",                 // iret
    b"\x48\xcf",             // iretq
    b"\xfb\x90",             // sti, nop
    b"\x9d",                 // popf
    b"\x8e\xd0",             // mov ss, ax
    b"\x0f\x01\x13",         // lgdt [rbx]
    b"\x0f\x01\x1b",         // lidt [rbx]
    b"\x0f\x00\xd8",         // ltr ax
    b"\x0f\x01\x3b",         // invlpg [rbx]
    b"\x0f\x01\xd8",         // vmrun
    b"\x0f\x01\xda",         // vmload
    b"\x0f\x01\xdc",         // stgi
    b"\x0f\x01\xdd",         // clgi
    b"\x0f\x01\xde",         // skinit
    b"\xf3\x0f\xc7\x33",     // vmxon [rbx]
    b"\x0f\xc7\x33",         // vmptrld [rbx]
    b"\x0f\x78\xc0",         // vmread
    b"\x66\x0f\x38\x80\x0b", // invept
    b"\x0f\x0b",             // ud2
    b"\x0f\x05",             // syscall
    b"\x48\x0f\x07",         // sysretq
    b"\x0f\x34",             // sysenter
    b"\x0f\x01\xf8",         // swapgs
    b"\x48\x89\x03",         // mov [rbx], rax
    b"\x48\x8b\x03",         // mov rax, [rbx]
    b"\xff\xe3",             // jmp rbx
    b"\xff\x2b",             // jmp far [rbx]
    b"\xff\xd3",             // call rbx
    b"\xdb\xe3",             // fninit
    b"\x0f\x57\xc0",         // xorps xmm0, xmm0
    b"\x0f\x37",             // getsec
    b"\x0f\xaa",             // rsm
    b"\xeb\xfe",             // for ever
];

/// Fills the guest's memory, seen at `base`: tables for every mode, and no code yet.
pub fn furnish(base: u64) {
    for word in 0..MEMORY / 8 {
        store(base + word * 8, 0);
    }
    moira_lab::guest::furnish(base);
    for vector in 0..256u64 {
        // Eight-byte gates for protected mode below, where long mode reads gates of sixteen bytes: some make sense in both.
        let gate = if vector == 0x20 { 0x0000_8500_0040_0000 } else { 0x0000_8e00_0018_0000 | CODE | vector * 16 };
        store(base + IDT + vector * 8, gate);
    }
}

/// Bochs (2.7) overlooks interrupts of the host in a guest that is *entered* with IF = 0, until the kernel's bound on a guest's run:
/// where the victim's share is measured on VT-x, entries have IF = 1; what the guest does later is its own affair.
pub fn interruptible(page: u64) {
    let flags = page + offset_of!(VcpuState, rflags) as u64;
    store(flags, stored(flags) | 0x200);
}

/// Writes a piece of code and answers where.
pub fn piece(random: &Random, base: u64) -> u64 {
    let at = CODE + random.below(PIECES) * 16;
    let mut bytes = [0x90u8; 16];
    let mut used = 0;
    while used < 12 {
        let instruction = INSTRUCTIONS[random.below(INSTRUCTIONS.len() as u64) as usize];
        if random.one_in(16) {
            bytes[used] = random.next() as u8;
            used += 1;
        }
        let end = (used + instruction.len()).min(16);
        bytes[used..end].copy_from_slice(&instruction[..end - used]);
        used = end;
    }
    let value = u128::from_le_bytes(bytes);
    store(base + at, value as u64);
    store(base + at + 8, (value >> 64) as u64);
    at
}

macro_rules! set {
    ($page:expr, $($field:ident = $value:expr),+ $(,)?) => { $(store($page + offset_of!(VcpuState, $field) as u64, $value);)+ };
}

/// The victim's state: real mode, at its code.
pub fn victim(page: u64) {
    basis(page, CODE, Mode::Real);
    set!(page, rflags = 0x202);
}

/// A state that can be entered, in one of three modes.
pub fn good(random: &Random, page: u64, rip: u64) {
    basis(page, rip, [Mode::Real, Mode::Protected, Mode::Long][random.below(3) as usize % 3]);
    set!(page, rflags = 2 | random.of(&[0, 0, 0x200, 0x200, 0x100, 0x1_0000]));
    set!(page, interruptibility = random.of(&[0, 0, 0, 1, 2, 8]));
    set!(page, request = if random.one_in(4) { random.below(4) } else { 0 });
    set!(page, cr2 = random.next(), tsc_offset = random.next());
    if random.one_in(4) {
        // XSETBV and CR4's other bits exist only with this one.
        let cr4 = page + offset_of!(VcpuState, cr4) as u64;
        store(cr4, stored(cr4) | 1 << 18);
    }
}

/// General registers that lead somewhere.
pub fn registers(random: &Random, page: u64) {
    for index in 0..16 {
        let value = match random.below(4) {
            0 => random.next(),
            1 => random.below(MEMORY),
            2 => random.of(&[0x10, 0x1b, 0x174, 0x277, 0xc000_0080, 0xc000_0082, 0xc000_0102, 0x80, 0x3f8, 0xcf8]),
            _ => CODE + random.below(PIECES) * 16,
        };
        store(page + index * 8, value);
    }
    // The stack is in memory, mostly.
    if !random.one_in(8) {
        store(page + 32, STACK);
    }
}

/// The group that a word of the page belongs to, or none where only the kernel writes.
fn group_of(offset: usize) -> u64 {
    const fn at(offset: usize, first: usize, last: usize) -> bool {
        offset >= first && offset <= last
    }
    if at(offset, offset_of!(VcpuState, rip), offset_of!(VcpuState, rflags)) {
        group::RIP
    } else if offset == offset_of!(VcpuState, interruptibility) {
        group::INTERRUPTIBILITY
    } else if at(offset, offset_of!(VcpuState, inject), offset_of!(VcpuState, request)) {
        group::INJECT
    } else if at(offset, offset_of!(VcpuState, cr0), offset_of!(VcpuState, efer)) {
        group::CONTROL
    } else if at(offset, offset_of!(VcpuState, cpl), offset_of!(VcpuState, gdtr) - 8) {
        group::SEGMENTS
    } else if at(offset, offset_of!(VcpuState, gdtr), offset_of!(VcpuState, star) - 8) {
        group::TABLES
    } else if at(offset, offset_of!(VcpuState, star), offset_of!(VcpuState, pat)) {
        group::MSRS
    } else if at(offset, offset_of!(VcpuState, dr), offset_of!(VcpuState, exceptions)) {
        group::DEBUG
    } else if at(offset, offset_of!(VcpuState, tsc_offset), offset_of!(VcpuState, spec_ctrl)) {
        group::TSC_XCR
    } else if offset >= offset_of!(VcpuState, pdpte) {
        group::PDPTE
    } else {
        0
    }
}

/// Changes one word of the page: a bit, a number of its neighbourhood, or all of it. Answers its group.
pub fn mutate(random: &Random, page: u64) -> u64 {
    let offset = random.below((size_of::<VcpuState>() / 8) as u64) as usize * 8;
    let old = stored(page + offset as u64);
    let new = match random.below(8) {
        0 => random.next(),
        1 => random.of(&[0, 1, u64::MAX, 1 << 47, 1 << 63, 0xffff_8000_0000_0000, 0xffff_ffff]),
        2 => old.wrapping_add(random.below(17)).wrapping_sub(8),
        3 => old ^ 1 << random.below(64),
        _ => old ^ 1 << random.below(32),
    };
    store(page + offset as u64, new);
    group_of(offset)
}

/// Puts an event to inject into the page, mostly a good one.
pub fn inject(random: &Random, page: u64) {
    let vector = random.below(256);
    let (kind, vector) = match random.below(8) {
        0 | 1 => (event::INTERRUPT, vector),
        2 => (event::NMI, 2),
        3 => (event::EXCEPTION, random.of(&[0, 1, 6, 7, 16, 18, 19])),
        4 => (event::EXCEPTION | event::HAS_CODE, random.of(&[8, 10, 11, 12, 13, 14, 17])),
        5 => (event::SOFTWARE_INTERRUPT, vector),
        6 => (event::SOFTWARE_EXCEPTION, 3 + random.below(2)),
        _ => (random.next() & 0xf00, vector),
    };
    let code = if kind & event::HAS_CODE != 0 { random.below(1 << 16) << 32 } else { 0 };
    let junk = if random.one_in(32) { random.next() } else { 0 };
    set!(page, inject = event::VALID | kind | vector | code | junk, inject_length = random.below(17));
}
