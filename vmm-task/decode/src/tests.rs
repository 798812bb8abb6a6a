//! Tests of decoding and completion.

use crate::*;
use std::vec::Vec;

mod properties;

const M64: Mode = Mode::Bits64;

fn gprs() -> Gprs {
    let mut g = Gprs::default();
    for i in 0..16u8 {
        g.set(i, 0x1111_1111_1111_1111u64.wrapping_mul(u64::from(i)) ^ 0x0123_4567_89AB_CDEF);
    }
    g
}

fn target(index: u8, size: u8) -> Target {
    Target { index, size, high: false }
}

fn load(index: u8, size: u8, sign: bool) -> Action {
    Action::Load { target: target(index, size), sign, swap: false }
}

/// Decodes in 64-bit mode and checks length and size.
fn decode(bytes: &[u8], size: u8) -> Action {
    let op = mmio(bytes, M64, &gprs(), 2).unwrap();
    assert_eq!((usize::from(op.len), op.size), (bytes.len(), size), "{bytes:02x?}");
    // With enough bytes after it the hand path may take it; the answer is the same.
    let padded = [bytes, &[0xCC; 15]].concat();
    assert_eq!(mmio(&padded, M64, &gprs(), 2), Ok(op));
    op.action
}

#[test]
fn moves_to_registers() {
    assert_eq!(decode(&[0x8B, 0x00], 4), load(0, 4, false)); // mov eax,[rax]
    assert_eq!(decode(&[0x8B, 0x4C, 0x24, 0x10], 4), load(1, 4, false)); // mov ecx,[rsp+10h]
    assert_eq!(decode(&[0x48, 0x8B, 0x15, 1, 0, 0, 0], 8), load(2, 8, false)); // mov rdx,[rip+1]
    assert_eq!(decode(&[0x66, 0x8B, 0x9F, 1, 2, 3, 4], 2), load(3, 2, false)); // mov bx,[rdi+...]
    assert_eq!(decode(&[0x44, 0x8B, 0x24, 0x85, 0, 0, 0, 0], 4), load(12, 4, false)); // mov r12d,[rax*4]
    assert_eq!(
        decode(&[0x8A, 0x27], 1),
        Action::Load { target: Target { index: 4 - 4, size: 1, high: true }, sign: false, swap: false }
    ); // mov ah,[rdi]
    assert_eq!(decode(&[0x40, 0x8A, 0x27], 1), load(4, 1, false)); // mov spl,[rdi]
    assert_eq!(decode(&[0x0F, 0xB6, 0x07], 1), load(0, 4, false)); // movzx eax,byte [rdi]
    assert_eq!(decode(&[0x48, 0x0F, 0xBF, 0x07], 2), load(0, 8, true)); // movsx rax,word [rdi]
    assert_eq!(decode(&[0x48, 0x63, 0x07], 4), load(0, 8, true)); // movsxd rax,dword [rdi]
    assert_eq!(decode(&[0xA1, 0x20, 0, 0xE0, 0xFE, 0, 0, 0, 0], 4), load(0, 4, false)); // mov eax,[moffs]
    assert_eq!(decode(&[0x67, 0x8B, 0x00], 4), load(0, 4, false)); // mov eax,[eax]
    assert_eq!(decode(&[0x65, 0x8B, 0x00], 4), load(0, 4, false)); // mov eax,gs:[rax]
    let swapped = Action::Load { target: target(0, 4), sign: false, swap: true };
    assert_eq!(decode(&[0x0F, 0x38, 0xF0, 0x07], 4), swapped); // movbe eax,[rdi]
}

#[test]
fn moves_to_memory() {
    let g = gprs();
    let store = |value| Action::Store { value };
    assert_eq!(decode(&[0x89, 0x07], 4), store(g.get(0) & 0xFFFF_FFFF));
    assert_eq!(decode(&[0x4C, 0x89, 0x3F], 8), store(g.get(15)));
    assert_eq!(decode(&[0x66, 0x89, 0x0F], 2), store(g.get(1) & 0xFFFF));
    assert_eq!(decode(&[0x88, 0x3F], 1), store(g.get(3) >> 8 & 0xFF)); // bh
    assert_eq!(decode(&[0x40, 0x88, 0x3F], 1), store(g.get(7) & 0xFF)); // dil
    assert_eq!(decode(&[0xC6, 0x07, 0x7F], 1), store(0x7F));
    assert_eq!(decode(&[0xC7, 0x47, 0x08, 1, 2, 3, 0x84], 4), store(0x8403_0201));
    assert_eq!(decode(&[0x48, 0xC7, 0x07, 0xFE, 0xFF, 0xFF, 0xFF], 8), store(u64::MAX - 1));
    assert_eq!(decode(&[0x66, 0xC7, 0x07, 0x34, 0x12], 2), store(0x1234));
    assert_eq!(decode(&[0x0F, 0xC3, 0x07], 4), store(g.get(0) & 0xFFFF_FFFF)); // movnti
    assert_eq!(decode(&[0x0F, 0x38, 0xF1, 0x07], 4), store(u64::from((g.get(0) as u32).swap_bytes())));
}

#[test]
fn read_modify_write() {
    let g = gprs();
    let modify = |alu, operand| Action::Modify { alu, operand };
    let eax = g.get(0) & 0xFFFF_FFFF;
    for (opcode, alu) in [
        (0x01, Alu::Add),
        (0x09, Alu::Or),
        (0x11, Alu::Adc),
        (0x19, Alu::Sbb),
        (0x21, Alu::And),
        (0x29, Alu::Sub),
        (0x31, Alu::Xor),
        (0x39, Alu::Cmp),
        (0x85, Alu::Test),
    ] {
        assert_eq!(decode(&[opcode, 0x07], 4), modify(alu, eax));
    }
    assert_eq!(
        decode(&[0x83, 0x0F, 0xFF], 4),
        match decode(&[0x83, 0x0F, 0xFF], 4) {
            Action::Modify { alu: Alu::Or, operand } if operand as u32 == u32::MAX => modify(Alu::Or, operand),
            other => panic!("{other:?}"),
        }
    );
    assert_eq!(decode(&[0xF0, 0x81, 0x27, 1, 0, 0, 0], 4), modify(Alu::And, 1)); // lock and
    assert_eq!(decode(&[0xF6, 0x07, 0x40], 1), modify(Alu::Test, 0x40));
    assert_eq!(decode(&[0xF7, 0x17], 4), modify(Alu::Not, 0));
    assert_eq!(decode(&[0xF7, 0x1F], 4), modify(Alu::Neg, 0));
    assert_eq!(decode(&[0xFF, 0x07], 4), modify(Alu::Inc, 0));
    assert_eq!(decode(&[0xFE, 0x0F], 1), modify(Alu::Dec, 0));
    assert_eq!(decode(&[0x0F, 0xBA, 0x2F, 5], 4), modify(Alu::Bts, 5));
    assert_eq!(decode(&[0x0F, 0xB3, 0x07], 4), modify(Alu::Btr, eax));
    assert_eq!(decode(&[0x87, 0x0F], 4), Action::Exchange { target: target(1, 4) });
    assert_eq!(decode(&[0xF0, 0x0F, 0xC1, 0x0F], 4), Action::ExchangeAdd { target: target(1, 4) });
    assert_eq!(decode(&[0x0F, 0xB1, 0x0F], 4), Action::CompareExchange { replacement: g.get(1) & 0xFFFF_FFFF });
    assert_eq!(decode(&[0x03, 0x0F], 4), Action::Combine { alu: Alu::Add, target: target(1, 4) });
    assert_eq!(
        decode(&[0x3A, 0x2F], 1),
        Action::Combine { alu: Alu::Cmp, target: Target { index: 1, size: 1, high: true } }
    );
}

/// Decodes and completes against a device cell; returns (cell, gprs, rflags, rip).
fn run(bytes: &[u8], mode: Mode, mut g: Gprs, mut flags: u64, cell: u64) -> (u64, Gprs, u64, u64) {
    let op = mmio(bytes, mode, &g, flags).unwrap();
    let mask = if op.size == 8 { u64::MAX } else { (1 << (8 * op.size)) - 1 };
    let mut memory = cell;
    let put = |memory: &mut u64, v: u64| *memory = *memory & !mask | v & mask;
    match op.first_step() {
        Step::Write(v) => put(&mut memory, v),
        Step::Read => {
            if let Some(v) = op.complete_read(cell, &mut g, &mut flags) {
                assert_eq!(v & !mask, 0, "a result has no bits above its size");
                put(&mut memory, v);
            }
        }
        Step::Move { .. } | Step::Compare { .. } | Step::Nothing => {}
    }
    let rip = op.retire(&mut g, flags, 0x1000);
    (memory, g, flags, rip)
}

const CF: u64 = 1;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;

#[test]
fn completions_change_what_they_must_and_no_more() {
    let g = gprs();
    let (_, after, _, rip) = run(&[0x8B, 0x00], M64, g, 2, 0xFFFF_FFFF_8000_0001);
    assert_eq!((after.get(0), rip), (0x8000_0001, 0x1002), "32-bit loads clear the upper half");
    let (_, after, ..) = run(&[0x66, 0x8B, 0x00], M64, g, 2, 0xABCD);
    assert_eq!(after.get(0), g.get(0) & !0xFFFF | 0xABCD, "16-bit loads keep the rest");
    let (_, after, ..) = run(&[0x8A, 0x27], M64, g, 2, 0xEE);
    assert_eq!(after.get(0), g.get(0) & !0xFF00 | 0xEE00);
    let (_, after, ..) = run(&[0x48, 0x0F, 0xBE, 0x07], M64, g, 2, 0x80);
    assert_eq!(after.get(0), 0xFFFF_FFFF_FFFF_FF80);
    let (_, after, ..) = run(&[0x0F, 0xBE, 0x07], M64, g, 2, 0x80);
    assert_eq!(after.get(0), 0xFFFF_FF80);
    let (_, after, ..) = run(&[0x0F, 0x38, 0xF0, 0x07], M64, g, 2, 0x1122_3344);
    assert_eq!(after.get(0), 0x4433_2211);

    let (cell, _, flags, _) = run(&[0x83, 0x07, 0xFF], M64, g, 2, 1); // add dword [rdi],-1
    assert_eq!((cell, flags & (CF | ZF | SF | OF)), (0, CF | ZF));
    let (cell, _, flags, _) = run(&[0xFF, 0x07], M64, g, 2 | CF, 0x7FFF_FFFF); // inc
    assert_eq!((cell, flags & (CF | ZF | SF | OF)), (0x8000_0000, CF | SF | OF), "carry is kept");
    let (cell, _, flags, _) = run(&[0x83, 0x3F, 2], M64, g, 2, 1); // cmp
    assert_eq!((cell, flags & (CF | ZF | SF)), (1, CF | SF));
    let (cell, after, ..) = run(&[0x87, 0x0F], M64, g, 2, 7); // xchg
    assert_eq!((cell, after.get(1)), (g.get(1) & 0xFFFF_FFFF, 7));
    let (cell, after, ..) = run(&[0x0F, 0xC1, 0x0F], M64, g, 2, 7); // xadd
    assert_eq!((cell, after.get(1)), ((g.get(1) as u32).wrapping_add(7).into(), 7));
    let eax = g.get(0) & 0xFFFF_FFFF;
    let (cell, after, flags, _) = run(&[0x0F, 0xB1, 0x0F], M64, g, 2, eax); // cmpxchg, equal
    assert_eq!((cell, after.get(0), flags & ZF), (g.get(1) & 0xFFFF_FFFF, g.get(0), ZF));
    let (cell, after, flags, _) = run(&[0x0F, 0xB1, 0x0F], M64, g, 2, 5); // cmpxchg, different
    assert_eq!((cell, after.get(0), flags & ZF), (5, 5, 0));
    let (cell, _, flags, _) = run(&[0x0F, 0xBA, 0x37, 33], M64, g, 2, 0xFF); // btr, index taken modulo the width
    assert_eq!((cell, flags & CF), (0xFD, CF));
    let (_, after, ..) = run(&[0x23, 0x0F], M64, g, 2, 0xF0); // and ecx,[rdi]
    assert_eq!(after.get(1), g.get(1) & 0xF0);
}

#[test]
fn string_instructions_go_one_element_at_a_time() {
    let mut g = gprs();
    g.set(1, 2);
    g.set(6, 0x1000);
    g.set(7, 0xFEE0_0000);
    let op = mmio(&[0xF3, 0xA5], M64, &g, 2).unwrap(); // rep movsd
    assert_eq!(op.size, 4);
    let source = Address { segment: SegmentName::Ds, offset: 0x1000 };
    let destination = Address { segment: SegmentName::Es, offset: 0xFEE0_0000 };
    assert_eq!(op.first_step(), Step::Move { source, destination });
    assert_eq!(op.retire(&mut g, 2, 0x40), 0x40, "one more to go");
    assert_eq!((g.get(1), g.get(6), g.get(7)), (1, 0x1004, 0xFEE0_0004));
    assert_eq!(mmio(&[0xF3, 0xA5], M64, &g, 2).unwrap().retire(&mut g, 2, 0x40), 0x42);
    assert_eq!(g.get(1), 0);
    assert_eq!(mmio(&[0xF3, 0xA5], M64, &g, 2).unwrap().first_step(), Step::Nothing);

    let op = mmio(&[0x64, 0xA4], M64, &g, 2 | 1 << 10).unwrap(); // movsb from fs, downwards
    assert_eq!(op.string.unwrap().by, -1);
    match op.action {
        Action::Move { source, .. } => {
            assert_eq!(source.segment, SegmentName::Fs);
            assert_eq!(source.linear(M64, 0x10), source.offset + 0x10);
        }
        other => panic!("{other:?}"),
    }
    let mut g = gprs();
    g.set(7, 0xFFFF_FFFF);
    let op = mmio(&[0x67, 0xAB], M64, &g, 2).unwrap(); // stosd with 32-bit addressing
    assert_eq!(op.first_step(), Step::Write(g.get(0) & 0xFFFF_FFFF));
    op.retire(&mut g, 2, 0);
    assert_eq!(g.get(7), 3, "wraps at 32 bits");
    let op = mmio(&[0xAC], M64, &g, 2).unwrap(); // lodsb
    assert_eq!(op.action, load(0, 1, false));
    assert_eq!(mmio(&[0x6D], M64, &g, 2), Err(DecodeError::Unsupported), "INS is a port's");
}

#[test]
fn string_port_instructions() {
    let mut g = gprs();
    g.set(1, 0x1_0000_0001);
    let io = string_io(&[0xF3, 0x6D], Mode::Bits32, &g, 2).unwrap(); // rep insd
    assert!(!io.output);
    assert_eq!((io.address.segment, io.address.offset), (SegmentName::Es, g.get(7) & 0xFFFF_FFFF));
    assert_eq!(io.op.retire(&mut g, 2, 0x10), 0x12, "the count is ECX");
    let io = string_io(&[0x2E, 0x6E], Mode::Bits16, &g, 2).unwrap(); // outsb cs:[si]
    assert!(io.output);
    assert_eq!((io.address.segment, io.address.offset, io.op.size), (SegmentName::Cs, g.get(6) & 0xFFFF, 1));
    assert_eq!(string_io(&[0x90], M64, &g, 2), Err(DecodeError::NotMemory));
}

#[test]
fn other_modes() {
    let g = gprs();
    let op = mmio(&[0x8B, 0x07], Mode::Bits16, &g, 2).unwrap(); // mov ax,[bx]
    assert_eq!((op.size, op.len, op.action), (2, 2, load(0, 2, false)));
    let op = mmio(&[0x66, 0x67, 0x8B, 0x07], Mode::Bits16, &g, 2).unwrap(); // mov eax,[edi]
    assert_eq!((op.size, op.len, op.action), (4, 4, load(0, 4, false)));
    let op = mmio(&[0x8B, 0x0D, 0, 0, 0xE0, 0xFE], Mode::Bits32, &g, 2).unwrap();
    assert_eq!((op.size, op.len, op.action), (4, 6, load(1, 4, false)));
    let op = mmio(&[0xFF, 0xFF], Mode::Bits32, &g, 2);
    assert_eq!(op, Err(DecodeError::Invalid));
    assert_eq!(mmio(&[0x8B, 0x00], Mode::Bits32, &g, 2).unwrap().retire(&mut gprs(), 2, 0xFFFF_FFFE), 0);
}

#[test]
fn errors_say_what_is_wrong() {
    let g = gprs();
    let error = |bytes: &[u8]| mmio(bytes, M64, &g, 2).unwrap_err();
    assert_eq!(error(&[]), DecodeError::Incomplete);
    assert_eq!(error(&[0x48]), DecodeError::Incomplete);
    assert_eq!(error(&[0x8B]), DecodeError::Incomplete);
    assert_eq!(error(&[0x8B, 0x80, 0, 0, 0]), DecodeError::Incomplete);
    assert_eq!(error(&[0xC7, 0x07, 0, 0, 0]), DecodeError::Incomplete);
    assert_eq!(error(&[0x66; 15]), DecodeError::Invalid);
    assert_eq!(error(&[0x0F, 0x0B, 0x90]), DecodeError::NotMemory); // ud2
    assert_eq!(error(&[0x8B, 0xC0]), DecodeError::NotMemory); // register operand
    assert_eq!(error(&[0x90]), DecodeError::NotMemory);
    assert_eq!(error(&[0x0F, 0x10, 0x07]), DecodeError::Unsupported); // movups xmm0,[rdi]
    assert_eq!(error(&[0xDD, 0x07]), DecodeError::Unsupported); // fld
    assert_eq!(error(&[0x48, 0x0F, 0xC7, 0x0F]), DecodeError::Unsupported); // cmpxchg16b
    assert_eq!(error(&[0xFF, 0x17]), DecodeError::Unsupported); // call [rdi]
    assert_eq!(error(&[0xFF, 0x37]), DecodeError::Unsupported); // push [rdi]
    assert_eq!(error(&[0x50]), DecodeError::Unsupported); // push rax
    assert_eq!(error(&[0xF2, 0x0F, 0xC2, 0x07, 0]), DecodeError::Unsupported); // cmpsd xmm0,[rdi],0, no string instruction
    assert_eq!(error(&[0xF7, 0x37]), DecodeError::Unsupported); // div dword [rdi]
}

#[test]
fn comparing_strings_ends_with_the_count_or_the_flag() {
    let mut g = gprs();
    g.set(1, 3);
    g.set(6, 0x1000);
    g.set(7, 0xFEE0_0000);
    let op = mmio(&[0xF3, 0xA6], M64, &g, 2).unwrap(); // repe cmpsb
    let source = Address { segment: SegmentName::Ds, offset: 0x1000 };
    let destination = Address { segment: SegmentName::Es, offset: 0xFEE0_0000 };
    assert_eq!((op.first_step(), op.size), (Step::Compare { source, destination }, 1));
    let mut flags = 2;
    op.compare(5, 5, &mut flags);
    assert_eq!(flags & (ZF | CF), ZF);
    assert_eq!(op.retire(&mut g, flags, 0x40), 0x40, "equal, and two to go");
    assert_eq!((g.get(1), g.get(6), g.get(7)), (2, 0x1001, 0xFEE0_0001));
    op.compare(5, 6, &mut flags);
    assert_eq!(flags & (ZF | CF | SF), CF | SF, "source minus destination");
    assert_eq!(op.retire(&mut g, flags, 0x40), 0x42, "unequal: the end");
    assert_eq!((g.get(1), g.get(6)), (1, 0x1002));
    op.compare(7, 7, &mut flags);
    assert_eq!(op.retire(&mut g, flags, 0x40), 0x42, "equal, and the count is over");
    assert_eq!(mmio(&[0xF3, 0xA6], M64, &g, 2).unwrap().first_step(), Step::Nothing);
    // repne scasd: goes on while they are unequal.
    g.set(1, 9);
    let op = mmio(&[0xF2, 0xAF], M64, &g, 2).unwrap();
    let accumulator = Action::Combine { alu: Alu::Cmp, target: target(0, 4) };
    assert_eq!((op.action, op.size, op.first_step()), (accumulator, 4, Step::Read));
    let mut flags = 2;
    assert_eq!(op.complete_read(g.get(0).wrapping_add(1), &mut g.clone(), &mut flags), None);
    assert_eq!(op.retire(&mut g, flags, 0x40), 0x40);
    assert_eq!(op.complete_read(g.get(0), &mut g.clone(), &mut flags), None);
    assert_eq!(op.retire(&mut g, flags, 0x40), 0x42);
    assert_eq!(g.get(1), 7);
    // Without a prefix: one element, whatever the flag. The upper half of RAX does not count for scasb.
    let op = mmio(&[0xAE], M64, &g, 2).unwrap();
    op.complete_read(g.get(0) & 0xFF, &mut g.clone(), &mut flags);
    assert_eq!((flags & ZF, op.retire(&mut g, flags, 0x40)), (ZF, 0x41));
    // REPNE has no meaning with MOVS, and counts as on processors.
    assert_eq!(mmio(&[0xF2, 0xA4], M64, &g, 2).unwrap().string.unwrap().repeat, Repeat::Count);
}

#[test]
fn what_compilers_write_with_a_memory_operand() {
    let mut g = gprs();
    g.set(0, 0xFFFF_FFFF_1234_5678);
    g.set(1, 3);
    let modify = |alu, operand| Action::Modify { alu, operand };
    assert_eq!(decode(&[0xD1, 0x27], 4), modify(Alu::Shl, 1)); // shl dword [rdi],1
    assert_eq!(decode(&[0xC1, 0x2F, 4], 4), modify(Alu::Shr, 4));
    assert_eq!(decode(&[0xD2, 0x07], 1), modify(Alu::Rol, gprs().get(1) & 0xFF)); // rol byte [rdi],cl
    let (cell, _, flags, _) = run(&[0x0F, 0xA4, 0x07, 3], M64, g, 2, 0x1234_5678); // shld [rdi],eax,3
    assert_eq!((cell, flags & CF), (0x91A2_B3C0, 0));
    g.set(0, 0xAAAA_AAAA);
    let (cell, ..) = run(&[0x0F, 0xA5, 0x07], M64, g, 2, 0x1234_5678); // shld [rdi],eax,cl
    assert_eq!(cell, 0x1234_5678 << 3 & 0xFFFF_FFFF | 5);
    let (cell, ..) = run(&[0x0F, 0xAD, 0x07], M64, g, 2, 0x1234_5678); // shrd [rdi],eax,cl
    assert_eq!(cell, 0x1234_5678 >> 3 | 2 << 29);
    let (cell, ..) = run(&[0x0F, 0x94, 0x07], M64, g, 2 | ZF, 0xEE); // sete [rdi]
    assert_eq!(cell, 1);
    let (cell, ..) = run(&[0x0F, 0x94, 0x07], M64, g, 2, 0xEE);
    assert_eq!(cell, 0);
    g.set(0, 0x1234_5678_1234_5678);
    let (_, after, ..) = run(&[0x0F, 0x45, 0x07], M64, g, 2 | ZF, 0xABCD_EF12); // cmovne eax,[rdi]
    assert_eq!(after.get(0), 0x1234_5678, "the upper half goes even if the condition does not hold");
    let (_, after, ..) = run(&[0x0F, 0x45, 0x07], M64, g, 2, 0xABCD_EF12);
    assert_eq!(after.get(0), 0xABCD_EF12);
    let (_, after, ..) = run(&[0x66, 0x0F, 0xAF, 0x07], M64, g, 2, 51); // imul ax,[rdi]
    assert_eq!(after.get(0), 0x1234_5678_1234_39E8);
    let (_, after, flags, _) = run(&[0x69, 0x07, 0x37, 1, 0, 0], M64, g, 2, 0x1234_5678); // imul eax,[rdi],311
    assert_eq!((after.get(0), flags & (CF | OF)), (0x1D95_0BC8, CF | OF));
    let (_, after, ..) = run(&[0xF6, 0x27], M64, Gprs([0x1111_1111_1111_1111; 16]), 2, 0x33); // mul byte [rdi]
    assert_eq!((after.get(0), after.get(2)), (0x1111_1111_1111_0363, 0x1111_1111_1111_1111));
    let (_, after, ..) = run(&[0x48, 0xF7, 0x27], M64, Gprs([0x1111_1111_1111_1111; 16]), 2, 0x3333_3333_3333_3333);
    assert_eq!((after.get(0), after.get(2)), (0x2FC9_62FC_962F_C963, 0x0369_D036_9D03_69D0));
    let (_, after, flags, _) = run(&[0xF7, 0x2F], M64, Gprs([u64::MAX; 16]), 2, 5); // imul dword [rdi]: -1 * 5
    assert_eq!((after.get(0), after.get(2), flags & (CF | OF)), (0xFFFF_FFFB, 0xFFFF_FFFF, 0));
    let (_, after, flags, _) = run(&[0x0F, 0xBC, 0x07], M64, g, 2, 0xC000_0000); // bsf eax,[rdi]
    assert_eq!((after.get(0), flags & ZF), (30, 0));
    let (_, after, ..) = run(&[0x0F, 0xBD, 0x07], M64, g, 2, 0xC000_0000); // bsr
    assert_eq!(after.get(0), 31);
    let (_, after, flags, _) = run(&[0x48, 0x0F, 0xBC, 0x07], M64, g, 2, 0);
    assert_eq!((after.get(0), flags & ZF), (g.get(0), ZF), "no bit: the register keeps its value");
    let (_, after, flags, _) = run(&[0xF3, 0x0F, 0xBC, 0x07], M64, g, 2, 0); // tzcnt
    assert_eq!((after.get(0), flags & (ZF | CF)), (32, CF));
    let (_, after, ..) = run(&[0xF3, 0x66, 0x0F, 0xBD, 0x07], M64, g, 2, 1); // lzcnt ax,[rdi]
    assert_eq!(after.get(0) & 0xFFFF, 15);
    let (_, after, ..) = run(&[0xF3, 0x0F, 0xB8, 0x07], M64, g, 2, 0xFF00_0001); // popcnt
    assert_eq!(after.get(0), 9);
}

#[test]
fn where_an_operand_is() {
    let mut g = gprs();
    for (index, value) in [(0, 0x1000), (3, 0x20), (7, 0xFEE0_0000), (6, 0x5000), (5, 0xFFFF_FFFF_0000_0010)] {
        g.set(index, value);
    }
    let at = |bytes: &[u8], mode| operand(bytes, mode, &g).map(|address| (address.segment, address.offset));
    assert_eq!(at(&[0x8B, 0x44, 0x98, 0x08], M64), Some((SegmentName::Ds, 0x1088))); // [rax+rbx*4+8]
    assert_eq!(at(&[0x65, 0x89, 0x07], M64), Some((SegmentName::Gs, 0xFEE0_0000)));
    assert_eq!(at(&[0x8B, 0x45, 0xF0], M64), Some((SegmentName::Ss, 0xFFFF_FFFF_0000_0000)));
    assert_eq!(at(&[0x67, 0x8B, 0x45, 0xF0], M64), Some((SegmentName::Ss, 0)), "cut to the address size");
    assert_eq!(at(&[0xA1, 0x20, 0, 0xE0, 0xFE, 1, 0, 0, 0], M64), Some((SegmentName::Ds, 0x1_FEE0_0020)));
    assert_eq!(at(&[0x8B, 0x0D, 0, 0, 0xE0, 0xFE], Mode::Bits32), Some((SegmentName::Ds, 0xFEE0_0000)));
    assert_eq!(at(&[0x8B, 0x00], Mode::Bits16), Some((SegmentName::Ds, 0x5020)), "[bx+si]");
    assert_eq!(at(&[0xAB], M64), Some((SegmentName::Es, 0xFEE0_0000)), "stosd");
    assert_eq!(at(&[0x64, 0xAD], M64), Some((SegmentName::Fs, 0x5000)), "lodsd");
    assert_eq!((at(&[0x90], M64), at(&[0x8B, 0xC0], M64)), (None, None));
}

#[test]
fn lengths_only_of_what_the_exit_was_for() {
    let length = |bytes: &[u8], expected| exit_length(bytes, M64, expected);
    assert_eq!(length(&[0x0F, 0xA2, 0x90], Expected::Cpuid), Ok(2));
    assert_eq!(length(&[0x66, 0x0F, 0xA2], Expected::Cpuid), Ok(3), "a useless prefix counts");
    assert_eq!(length(&[0x0F, 0x31], Expected::Cpuid), Err(DecodeError::NotMemory));
    assert_eq!(length(&[0xF4], Expected::Hlt), Ok(1));
    assert_eq!(length(&[0x0F, 0x32], Expected::Rdmsr), Ok(2));
    assert_eq!(length(&[0x0F, 0x30], Expected::Wrmsr), Ok(2));
    assert_eq!(length(&[0x0F, 0x01, 0xD9], Expected::Hypercall), Ok(3));
    assert_eq!(length(&[0x0F, 0x01, 0xC1], Expected::Hypercall), Ok(3), "Intel's");
    assert_eq!(length(&[0x0F, 0x01, 0xD1], Expected::Xsetbv), Ok(3));
    assert_eq!(length(&[0x0F, 0x01, 0xF9], Expected::Rdtscp), Ok(3));
    assert_eq!(length(&[0xF3, 0x90], Expected::Pause), Ok(2));
    assert_eq!(length(&[0xE4, 0x60], Expected::In), Ok(2));
    assert_eq!(length(&[0x66, 0xEF], Expected::Out), Ok(2));
    assert_eq!(length(&[0x48, 0xCF], Expected::Iret), Ok(2));
    assert_eq!(length(&[0xCD, 0x80], Expected::SoftInterrupt), Ok(2));
    assert_eq!(length(&[0x0F, 0x20, 0xC0], Expected::ControlRegister), Ok(3));
    assert_eq!(length(&[0x0F], Expected::Cpuid), Err(DecodeError::Incomplete));
}

#[test]
fn every_plain_length_is_what_the_decoder_says() {
    use Expected::*;
    for expected in
        [Cpuid, Hlt, Rdmsr, Wrmsr, Rdtsc, Rdtscp, Rdpmc, Hypercall, Xsetbv, Invd, Wbinvd, Pause, Monitor, Mwait]
    {
        for bytes in [
            &[0x0Fu8, 0xA2][..],
            &[0xF4],
            &[0x0F, 0x32],
            &[0x0F, 0x30],
            &[0x0F, 0x31],
            &[0x0F, 0x01, 0xF9],
            &[0x0F, 0x33],
            &[0x0F, 0x01, 0xD9],
            &[0x0F, 0x01, 0xD1],
            &[0x0F, 0x08],
            &[0x0F, 0x09],
            &[0xF3, 0x90],
            &[0x0F, 0x01, 0xC8],
            &[0x0F, 0x01, 0xC9],
        ] {
            // An unneeded operand-size prefix forces the general path, which must accept the same instruction.
            let slow: Vec<u8> = [&[0x2Eu8][..], bytes].concat();
            let (plain, general) = (exit_length(bytes, M64, expected), exit_length(&slow, M64, expected));
            assert_eq!(plain.is_ok(), general.is_ok(), "{expected:?} {bytes:02x?}");
            if let (Ok(a), Ok(b)) = (plain, general) {
                assert_eq!(a + 1, b);
            }
        }
    }
}
