//! Instructions on a device's memory (`pc-testdev`'s, at FF000000h) that drivers seldom use: each is an exit, and the monitor has to
//! do what the processor would.

use core::arch::asm;

const DEVICE: u64 = 0xff00_0000;
const BYTES: usize = 32;

/// Runs them all and says how many went wrong.
pub fn run() {
    let mut memory = [0u8; BYTES];
    for (index, byte) in memory.iter_mut().enumerate() {
        *byte = index as u8;
    }
    let results = [
        ("rep movsb", copy(&memory)),
        ("repe cmpsb, equal", compare(&memory) == 0),
        ("repe cmpsb, unequal", {
            memory[20] ^= 1;
            compare(&memory) == BYTES as u64 - 21
        }),
        ("repne scasb", scan(9) == BYTES as u64 - 10),
        ("over the end of a page", across()),
        ("shl, imul, bsr, setc, cmov", compute()),
    ];
    for (name, _) in results.iter().filter(|(_, right)| !right) {
        say!("guest: {name} is wrong");
    }
    say!(
        "guest: {} of {} on device memory are right",
        results.iter().filter(|(_, right)| *right).count(),
        results.len()
    );
}

/// Copies to the device and back.
fn copy(from: &[u8; BYTES]) -> bool {
    let mut back = [0u8; BYTES];
    // SAFETY: the device's memory is mapped and nobody else's; both buffers are as long as the count says.
    unsafe {
        asm!("rep movsb", inout("rsi") from.as_ptr() => _, inout("rdi") DEVICE => _, inout("rcx") BYTES => _);
        asm!("rep movsb", inout("rsi") DEVICE => _, inout("rdi") back.as_mut_ptr() => _, inout("rcx") BYTES => _);
    }
    back == *from
}

/// Bytes that were not compared any more when the first difference was found.
fn compare(with: &[u8; BYTES]) -> u64 {
    let mut left = BYTES as u64;
    // SAFETY: only reads, as far as the count says.
    unsafe { asm!("repe cmpsb", inout("rsi") with.as_ptr() => _, inout("rdi") DEVICE => _, inout("rcx") left) };
    left
}

/// Bytes that were not looked at any more when this one was found.
fn scan(byte: u8) -> u64 {
    let mut left = BYTES as u64;
    // SAFETY: only reads, as far as the count says.
    unsafe { asm!("repne scasb", in("al") byte, inout("rdi") DEVICE => _, inout("rcx") left) };
    left
}

/// Two accesses of four bytes, two in each page.
fn across() -> bool {
    let (place, read): (u64, u32);
    // SAFETY: the device's memory is mapped and nobody else's.
    unsafe {
        asm!(
            "mov dword ptr [{at}], {value:e}",
            "mov {read:e}, [{at}]",
            "mov {place}, [{at} + 2]",
            at = in(reg) DEVICE + 0xffe,
            value = in(reg) 0x4433_2211u32,
            read = out(reg) read,
            place = out(reg) place,
        );
    }
    read == 0x4433_2211 && place & 0xffff == 0x4433
}

fn compute() -> bool {
    let (shifted, product, highest, moved, carry): (u64, u64, u64, u64, u64);
    // SAFETY: as above.
    unsafe {
        asm!(
            "mov dword ptr [{at}], 0x81",
            "shl dword ptr [{at}], 4",
            "mov {shifted:e}, [{at}]",
            "imul {product:e}, dword ptr [{at}], 3",
            "bsr {highest:e}, dword ptr [{at}]",
            "stc",
            "setc byte ptr [{at}]",
            "xor {moved:e}, {moved:e}",
            "cmp {moved:e}, 0",
            "cmove {moved:e}, dword ptr [{at}]",
            "movzx {carry:e}, byte ptr [{at}]",
            at = in(reg) DEVICE,
            shifted = out(reg) shifted,
            product = out(reg) product,
            highest = out(reg) highest,
            moved = out(reg) moved,
            carry = out(reg) carry,
        );
    }
    (shifted, product, highest, moved, carry) == (0x810, 0x1830, 11, 0x801, 1)
}
