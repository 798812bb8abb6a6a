//! Arithmetic of read-modify-write instructions, flags included.

use crate::gprs::mask;

const CF: u64 = 1 << 0;
const PF: u64 = 1 << 2;
const AF: u64 = 1 << 4;
const ZF: u64 = 1 << 6;
const SF: u64 = 1 << 7;
const OF: u64 = 1 << 11;
const STATUS: u64 = CF | PF | AF | ZF | SF | OF;

/// Operation on a left operand (the destination) and a right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alu {
    /// left + right
    Add,
    /// left | right
    Or,
    /// left + right + carry
    Adc,
    /// left − right − carry
    Sbb,
    /// left & right
    And,
    /// left − right
    Sub,
    /// left ^ right
    Xor,
    /// Flags of left − right; no result.
    Cmp,
    /// Flags of left & right; no result.
    Test,
    /// !left, no flags
    Not,
    /// −left
    Neg,
    /// left + 1, carry kept
    Inc,
    /// left − 1, carry kept
    Dec,
    /// Carry := bit `right` of left; no result.
    Bt,
    /// Carry := the bit, and set it.
    Bts,
    /// Carry := the bit, and clear it.
    Btr,
    /// Carry := the bit, and flip it.
    Btc,
}

impl Alu {
    /// Whether the destination is written.
    #[must_use]
    pub const fn writes(self) -> bool {
        !matches!(self, Self::Cmp | Self::Test | Self::Bt)
    }

    /// The result (masked to `size` bytes) and the new RFLAGS. Flags that the manual leaves undefined are cleared.
    #[must_use]
    pub fn apply(self, left: u64, right: u64, size: u8, rflags: u64) -> (u64, u64) {
        let (a, b) = (left & mask(size), right & mask(size));
        let carry = rflags & CF;
        match self {
            Self::Add => add(a, b, 0, size, rflags),
            Self::Adc => add(a, b, carry, size, rflags),
            Self::Inc => keep_carry(add(a, 1, 0, size, rflags), carry),
            Self::Sub | Self::Cmp => sub(a, b, 0, size, rflags),
            Self::Sbb => sub(a, b, carry, size, rflags),
            Self::Dec => keep_carry(sub(a, 1, 0, size, rflags), carry),
            Self::Neg => sub(0, a, 0, size, rflags),
            Self::Not => (!a & mask(size), rflags),
            Self::And | Self::Test => logic(a & b, size, rflags),
            Self::Or => logic(a | b, size, rflags),
            Self::Xor => logic(a ^ b, size, rflags),
            Self::Bt | Self::Bts | Self::Btr | Self::Btc => self.bit(a, right, size, rflags),
        }
    }

    fn bit(self, value: u64, index: u64, size: u8, rflags: u64) -> (u64, u64) {
        let index = index % (u64::from(size.max(1)) * 8);
        let bit = 1u64 << index;
        let flags = rflags & !CF | (value >> index & 1);
        let result = match self {
            Self::Bts => value | bit,
            Self::Btr => value & !bit,
            Self::Btc => value ^ bit,
            _ => value,
        };
        (result, flags)
    }
}

fn keep_carry((result, rflags): (u64, u64), carry: u64) -> (u64, u64) {
    (result, rflags & !CF | carry)
}

const fn sign_bit(size: u8) -> u64 {
    1 << (size as u32 * 8 - 1)
}

/// ZF, SF and PF of a result.
fn result_flags(result: u64, size: u8) -> u64 {
    let mut flags = 0;
    if result == 0 {
        flags |= ZF;
    }
    if result & sign_bit(size) != 0 {
        flags |= SF;
    }
    if (result as u8).count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

fn logic(result: u64, size: u8, rflags: u64) -> (u64, u64) {
    (result, rflags & !STATUS | result_flags(result, size))
}

fn add(a: u64, b: u64, carry: u64, size: u8, rflags: u64) -> (u64, u64) {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = wide as u64 & mask(size);
    let mut flags = result_flags(result, size) | (a ^ b ^ result) & AF;
    if wide > u128::from(mask(size)) {
        flags |= CF;
    }
    if (a ^ result) & (b ^ result) & sign_bit(size) != 0 {
        flags |= OF;
    }
    (result, rflags & !STATUS | flags)
}

fn sub(a: u64, b: u64, borrow: u64, size: u8, rflags: u64) -> (u64, u64) {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) & mask(size);
    let mut flags = result_flags(result, size) | (a ^ b ^ result) & AF;
    if u128::from(a) < u128::from(b) + u128::from(borrow) {
        flags |= CF;
    }
    if (a ^ b) & (a ^ result) & sign_bit(size) != 0 {
        flags |= OF;
    }
    (result, rflags & !STATUS | flags)
}
