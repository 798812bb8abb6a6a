//! What holds for any bytes: the two ways to decode agree, completions agree with models, nothing panics.

use super::*;
use proptest::prelude::*;

/// The hand path must agree with the decoder crate on everything it claims.
fn assert_paths_agree(bytes: &[u8], mode: Mode) -> bool {
    let g = gprs();
    let Some(fast) = crate::fast::decode(bytes, mode, &g) else { return false };
    assert_eq!(crate::full::decode(bytes, mode, &g, 2), Ok(fast), "{bytes:02x?} {mode:?}");
    true
}

#[test]
fn fast_path_agrees_on_all_its_encodings() {
    let mut taken = 0;
    let prefixes: Vec<Vec<u8>> = [&[][..], &[0x66]]
        .iter()
        .flat_map(|p| (0x3F..0x50u8).map(move |rex| if rex == 0x3F { p.to_vec() } else { [p, &[rex][..]].concat() }))
        .collect();
    let opcodes: Vec<Vec<u8>> = (0..=255u8).flat_map(|o| [std::vec![o], std::vec![0x0F, o]]).collect();
    for prefix in &prefixes {
        for opcode in &opcodes {
            for modrm in (0..=255u8).step_by(3).chain([4, 5, 12, 13, 0x84, 0xC0]) {
                for sib in [0x25, 0x84] {
                    let tail =
                        [modrm, sib, 0x81, 0x92, 0xA3, 0xB4, 0xC5, 0xD6, 0xE7, 0xF8, 0x19, 0x2A, 0x3B, 0x4C, 0x5D];
                    let bytes = [&prefix[..], opcode, &tail].concat();
                    for mode in [Mode::Bits64, Mode::Bits32] {
                        taken += u32::from(assert_paths_agree(&bytes, mode));
                    }
                }
            }
        }
    }
    assert!(taken > 40_000, "the fast path was taken {taken} times only");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(4000)))]

    /// Whatever the bytes: an operation that stays inside them or an error, and a completion that does not panic.
    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..20), values in prop::array::uniform16(any::<u64>()),
                                rflags in any::<u64>(), value in any::<u64>(), rip in any::<u64>()) {
        for mode in [Mode::Bits16, Mode::Bits32, Mode::Bits64] {
            let mut g = Gprs(values);
            let mut flags = rflags;
            match mmio(&bytes, mode, &g, rflags) {
                Ok(op) => {
                    prop_assert!(usize::from(op.len) <= bytes.len().min(15) && op.len > 0);
                    prop_assert!(matches!(op.size, 1 | 2 | 4 | 8));
                    if op.first_step() == Step::Read {
                        let _ = op.complete_read(value, &mut g, &mut flags);
                        prop_assert_eq!((flags ^ rflags) & !0x8D5, 0, "only status flags change");
                    }
                    let next = op.retire(&mut g, flags, rip);
                    prop_assert!(next == rip || next == complete::next_rip(mode, rip, op.len));
                }
                Err(DecodeError::Incomplete) => prop_assert!(bytes.len() < 15),
                Err(_) => {}
            }
            let _ = string_io(&bytes, mode, &g, rflags);
            let _ = exit_length(&bytes, mode, Expected::Cpuid);
        }
    }

    #[test]
    fn fast_path_agrees_on_random_bytes(opcode in prop::sample::select(std::vec![0x88u8, 0x89, 0x8A, 0x8B, 0xC6, 0xC7, 0x63, 0x0F]),
                                        rest in prop::collection::vec(any::<u8>(), 10..20), rex in any::<Option<u8>>()) {
        let mut bytes: Vec<u8> = rex.map(|r| 0x40 | r & 15).into_iter().collect();
        bytes.push(opcode);
        bytes.extend(rest);
        for mode in [Mode::Bits64, Mode::Bits32] {
            assert_paths_agree(&bytes, mode);
        }
    }

    /// Cutting a decodable instruction short is recognised as such.
    #[test]
    fn cut_instructions_are_incomplete(bytes in prop::collection::vec(any::<u8>(), 15)) {
        let g = gprs();
        if let Ok(op) = mmio(&bytes, M64, &g, 2) {
            let len = usize::from(op.len);
            prop_assert_eq!(mmio(&bytes[..len - 1], M64, &g, 2), Err(DecodeError::Incomplete));
            prop_assert_eq!(mmio(&bytes[..len], M64, &g, 2), Ok(op));
        }
    }

    /// Shifts and rotations against arithmetic that does not go bit by bit.
    #[test]
    fn shifts_agree_with_a_model(a in any::<u64>(), count in 0u64..256, size in prop::sample::select(std::vec![1u8, 2, 4, 8]), carry in any::<bool>()) {
        let bits = u32::from(size) * 8;
        let mask = if size == 8 { u64::MAX } else { (1 << bits) - 1 };
        let n = count as u32 & if size == 8 { 63 } else { 31 };
        let (a, c) = (a & mask, u64::from(carry));
        let signed = i128::from(((a << (64 - bits)) as i64) >> (64 - bits));
        let wide = u128::from(a);
        // A rotation of the operand, or of the operand with carry above it, is one of so many bits.
        let rotate = |value: u128, by: u32, bits: u32| {
            let by = by % bits;
            (value << by | value >> (bits - by)) & ((1 << bits) - 1)
        };
        let with_carry = wide | u128::from(c) << bits;
        let up = rotate(with_carry, n, bits + 1);
        let down = rotate(with_carry, bits + 1 - n % (bits + 1), bits + 1);
        let results: [(Alu, u64, u64); 7] = [
            (Alu::Shl, (wide << n) as u64, (wide << n >> bits) as u64 & 1),
            (Alu::Shr, (wide >> n) as u64, (wide << 1 >> n) as u64 & 1),
            (Alu::Sar, (signed >> n) as u64, (signed << 1 >> n) as u64 & 1),
            (Alu::Rol, rotate(wide, n, bits) as u64, rotate(wide, n, bits) as u64 & 1),
            (Alu::Ror, rotate(wide, bits - n % bits, bits) as u64, (rotate(wide, bits - n % bits, bits) >> (bits - 1)) as u64 & 1),
            (Alu::Rcl, up as u64, (up >> bits) as u64),
            (Alu::Rcr, down as u64, (down >> bits) as u64),
        ];
        for (alu, expected, out) in results {
            let (result, flags) = alu.apply(a, count, size, 2 | c);
            prop_assert_eq!(result, expected & mask, "{:?} by {}", alu, n);
            if n == 0 {
                prop_assert_eq!(flags, 2 | c);
            } else {
                prop_assert_eq!(flags & CF, out, "{:?} by {}", alu, n);
                if matches!(alu, Alu::Shl | Alu::Shr | Alu::Sar) {
                    prop_assert_eq!(flags & ZF != 0, result == 0);
                }
            }
        }
    }

    /// Arithmetic flags against wide arithmetic.
    #[test]
    fn flags_agree_with_a_model(a in any::<u64>(), b in any::<u64>(), size in prop::sample::select(std::vec![1u8, 2, 4, 8]), carry in any::<bool>()) {
        let bits = u32::from(size) * 8;
        let mask = if size == 8 { u64::MAX } else { (1 << bits) - 1 };
        let signed = |v: u64| i128::from(((v << (64 - bits)) as i64) >> (64 - bits));
        let (a, b, c) = (a & mask, b & mask, u64::from(carry));
        let models: [(Alu, i128, i128); 4] = [
            (Alu::Add, i128::from(a) + i128::from(b), signed(a) + signed(b)),
            (Alu::Adc, i128::from(a) + i128::from(b) + i128::from(c), signed(a) + signed(b) + i128::from(c)),
            (Alu::Sub, i128::from(a) - i128::from(b), signed(a) - signed(b)),
            (Alu::Sbb, i128::from(a) - i128::from(b) - i128::from(c), signed(a) - signed(b) - i128::from(c)),
        ];
        for (alu, unsigned, exact) in models {
            let (result, flags) = alu.apply(a, b, size, 2 | c);
            prop_assert_eq!(result, unsigned as u64 & mask);
            prop_assert_eq!(flags & CF != 0, unsigned < 0 || unsigned > i128::from(mask));
            prop_assert_eq!(flags & OF != 0, signed(result) != exact);
            prop_assert_eq!(flags & ZF != 0, result == 0);
            prop_assert_eq!(flags & SF != 0, signed(result) < 0);
            prop_assert_eq!(flags & 4 != 0, (result as u8).count_ones().is_multiple_of(2));
        }
    }
}
