//! Arithmetic of read-modify-write instructions, flags included.

use crate::gprs::{mask, sign_extend};

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
    /// left shifted left
    Shl,
    /// left shifted right, zeros come in
    Shr,
    /// left shifted right, the sign comes in
    Sar,
    /// left rotated left
    Rol,
    /// left rotated right
    Ror,
    /// left and carry rotated left
    Rcl,
    /// left and carry rotated right
    Rcr,
    /// left shifted left by so much, bits of right come in
    Shld(u8),
    /// left shifted right by so much, bits of right come in
    Shrd(u8),
    /// Low half of left × right, signed
    Imul,
    /// Index of the lowest bit that is set; right if none is
    Bsf,
    /// Index of the highest bit that is set; right if none is
    Bsr,
    /// Zeros below the lowest bit that is set
    Tzcnt,
    /// Zeros above the highest bit that is set
    Lzcnt,
    /// Bits that are set
    Popcnt,
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
            Self::Shl | Self::Shr | Self::Sar | Self::Rol | Self::Ror | Self::Rcl | Self::Rcr => {
                self.shift(a, right, size, rflags)
            }
            Self::Shld(count) => double_shift(a, b, count, size, true, rflags),
            Self::Shrd(count) => double_shift(a, b, count, size, false, rflags),
            Self::Imul => {
                let (product, flags) = multiply(a, b, size, true, rflags);
                (product as u64 & mask(size), flags)
            }
            Self::Bsf | Self::Bsr | Self::Tzcnt | Self::Lzcnt | Self::Popcnt => self.count(a, b, size, rflags),
        }
    }

    /// Shifts and rotations (SDM vol. 2B, SAL/SAR/SHL/SHR and RCL/RCR/ROL/ROR). A count of zero changes no flag.
    fn shift(self, value: u64, count: u64, size: u8, rflags: u64) -> (u64, u64) {
        let bits = u32::from(size) * 8;
        let count = count as u32 & if size == 8 { 63 } else { 31 };
        if count == 0 {
            return (value, rflags);
        }
        let (mut result, mut carry) = (value, rflags & CF);
        let top = sign_bit(size);
        // At most 63 steps of one bit, each as the manual has it.
        for _ in 0..count {
            let (low, high) = (result & 1, u64::from(result & top != 0));
            (result, carry) = match self {
                Self::Shl => (result << 1, high),
                Self::Shr => (result >> 1, low),
                Self::Sar => (result >> 1 | high << (bits - 1), low),
                Self::Rol => (result << 1 | high, high),
                Self::Ror => (result >> 1 | low << (bits - 1), low),
                Self::Rcl => (result << 1 | carry, high),
                _ => (result >> 1 | carry << (bits - 1), low),
            };
            result &= mask(size);
        }
        let high = u64::from(result & top != 0);
        let below = u64::from(result & top >> 1 != 0);
        let overflow = match self {
            Self::Shl | Self::Rol | Self::Rcl => high ^ carry,
            Self::Sar => 0,
            Self::Shr => u64::from(value & top != 0),
            _ => high ^ below,
        };
        let (changed, flags) = match self {
            Self::Shl | Self::Shr | Self::Sar => (STATUS, result_flags(result, size)),
            _ => (CF | OF, 0),
        };
        (result, rflags & !changed | flags | carry | if overflow != 0 { OF } else { 0 })
    }

    fn count(self, value: u64, old: u64, size: u8, rflags: u64) -> (u64, u64) {
        let bits = u32::from(size) * 8;
        // Zeros above the operand do not count.
        let above = value.leading_zeros().saturating_sub(64 - bits);
        let result = match self {
            Self::Bsf if value == 0 => old,
            Self::Bsr if value == 0 => old,
            Self::Bsf => value.trailing_zeros().into(),
            Self::Bsr => u64::from(bits - 1 - above),
            Self::Tzcnt => value.trailing_zeros().min(bits).into(),
            Self::Lzcnt => above.into(),
            _ => value.count_ones().into(),
        };
        let zero = match self {
            Self::Tzcnt | Self::Lzcnt => result == 0,
            _ => value == 0,
        };
        let carry = matches!(self, Self::Tzcnt | Self::Lzcnt) && value == 0;
        (result, rflags & !STATUS | if zero { ZF } else { 0 } | u64::from(carry))
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

/// SHLD and SHRD (SDM vol. 2B). Counts above the operand's width, whose result is undefined, give zero.
fn double_shift(left: u64, right: u64, count: u8, size: u8, up: bool, rflags: u64) -> (u64, u64) {
    let bits = u32::from(size) * 8;
    let count = u32::from(count) & if size == 8 { 63 } else { 31 };
    if count == 0 {
        return (left, rflags);
    }
    if count > bits {
        return (0, rflags & !STATUS | result_flags(0, size));
    }
    let (left, right) = (u128::from(left), u128::from(right));
    let (result, carry) = if up {
        ((left << bits | right) << count >> bits, left >> (bits - count) & 1)
    } else {
        ((right << bits | left) >> count, left >> (count - 1) & 1)
    };
    let result = result as u64 & mask(size);
    let overflow = if (result ^ left as u64) & sign_bit(size) != 0 { OF } else { 0 };
    (result, rflags & !STATUS | result_flags(result, size) | carry as u64 | overflow)
}

/// The whole product, and the flags: carry and overflow if its upper half says anything.
pub(crate) fn multiply(a: u64, b: u64, size: u8, signed: bool, rflags: u64) -> (u128, u64) {
    let (product, wide) = if signed {
        let of = |value| i128::from(sign_extend(value, size) as i64);
        let product = of(a) * of(b);
        (product as u128, product != of(product as u64))
    } else {
        let product = u128::from(a & mask(size)) * u128::from(b & mask(size));
        (product, product > u128::from(mask(size)))
    };
    (product, rflags & !STATUS | if wide { CF | OF } else { 0 })
}
