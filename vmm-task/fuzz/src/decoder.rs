//! Instructions and page tables of a guest.

use crate::Bytes;
use crate::memory::Memory;
use vmm_decode::{Access, Expected, Gprs, Mode, Paging, exit_length, fetch, length_at, mmio, operand, string_io, walk};

const SIZE: u64 = 1 << 16;
const EXPECTED: [Expected; 9] = [
    Expected::Cpuid,
    Expected::Hlt,
    Expected::Rdmsr,
    Expected::Wrmsr,
    Expected::Hypercall,
    Expected::Pause,
    Expected::Xsetbv,
    Expected::Invd,
    Expected::ControlRegister,
];

/// Decodes the bytes at some address of a memory that is full of them, in some mode, by page tables among them.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let mode = bytes.pick(&[Mode::Bits64, Mode::Bits64, Mode::Bits32, Mode::Bits16]).unwrap_or(Mode::Bits64);
    let expected = bytes.pick(&EXPECTED).unwrap_or(Expected::Cpuid);
    let paging = Paging {
        cr0: if bytes.byte() & 3 == 0 { bytes.number(4) } else { 0x8001_0001 },
        cr3: bytes.number(2) & 0xf000,
        cr4: if bytes.byte() & 3 == 0 { bytes.number(3) } else { 0x20 },
        efer: if bytes.byte() & 3 == 0 { bytes.number(2) } else { 0xd01 },
        rflags: bytes.number(3) | 2,
        physical_bits: 36 + bytes.byte() % 17,
    };
    let mut rip = bytes.number(1 + u32::from(bytes.rest().len() as u8 & 7));
    if bytes.byte() & 1 == 0 {
        rip &= SIZE - 1;
    }
    let gprs = Gprs(core::array::from_fn(|_| bytes.number(8)));
    let access = Access { write: rip & 1 != 0, user: rip & 2 != 0, fetch: rip & 4 != 0 };
    let rest = bytes.rest();
    let mut image = if rest.is_empty() { vec![0] } else { rest.to_vec() };
    while image.len() < SIZE as usize {
        image.extend_from_within(..);
    }
    image.truncate(SIZE as usize);
    let memory = Memory::holding(image);
    let read = &mut |gpa| memory.word(gpa);
    let _ = walk(&paging, rip, access, read);
    let length = length_at(&paging, rip, mode, expected, read);
    assert!(length.is_err() || length.is_ok_and(|length| (1..=15).contains(&length)), "{length:?}");
    let fetched = fetch(&paging, rip, read);
    for code in [fetched.as_ref().map_or(rest, |fetched| fetched.bytes()), rest.get(..15).unwrap_or(rest)] {
        let _ = exit_length(code, mode, expected);
        if let Ok(op) = mmio(code, mode, &gprs, paging.rflags) {
            let mut after = gprs;
            let _ = operand(code, mode, &gprs);
            let _ = op.retire(&mut after, paging.rflags, rip);
        }
        let _ = string_io(code, mode, &gprs, paging.rflags);
    }
}

/// Instructions of each kind, in each mode.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    const CODE: [&[u8]; 14] = [
        &[0x0f, 0xa2],
        &[0xf4],
        &[0x0f, 0x32],
        &[0x0f, 0x30],
        &[0x0f, 0x01, 0xd9],
        &[0xf3, 0x90],
        &[0x0f, 0x01, 0xd1],
        &[0x0f, 0x22, 0xc0],
        &[0x48, 0x8b, 0x84, 0x88, 0x10, 0, 0, 0],
        &[0x66, 0x89, 0x07],
        &[0xf0, 0x0f, 0xb1, 0x0f],
        &[0x81, 0x25, 0, 0x10, 0, 0, 1, 2, 3, 4],
        &[0xf3, 0xa4],
        &[0xf2, 0x66, 0x6f],
    ];
    let each = |mode: u8| {
        CODE.iter().enumerate().map(move |(number, code)| {
            // Mode, what is expected, control registers as usual, an address, registers.
            let mut bytes = vec![mode, number as u8, 1, 0, 0, 1, 1, 0, 0, 2, 10, 0, 0];
            bytes.extend([0x10; 128]);
            bytes.extend_from_slice(code);
            bytes
        })
    };
    [0, 2, 3].into_iter().flat_map(each).collect()
}
