//! The moves that make up nearly all device accesses, decoded by hand.
//!
//! A general decoder fills in everything about an instruction; a device access needs a register number, a width and a
//! length. Whatever this path is not sure of it leaves to the general one, so it is an optimisation and nothing else:
//! the tests compare the two on all its encodings.

use crate::gprs::{mask, sign_extend};
use crate::mmio::{Action, MmioOp, Mode};
use crate::{Gprs, Target};

const OPERAND_SIZE: u8 = 0x66;
/// Bytes needed to decode without looking where they end: the longest instruction (SDM vol. 2A, 2.3.11).
const MAX_LEN: usize = 15;

/// What the prefixes say.
#[derive(Clone, Copy)]
struct Prefixes {
    rex: u8,
    operand16: bool,
}

impl Prefixes {
    /// Operand size of all but byte instructions.
    #[inline]
    const fn size(self) -> u8 {
        match (self.rex & 8 != 0, self.operand16) {
            (true, _) => 8,
            (false, true) => 2,
            (false, false) => 4,
        }
    }
}

/// Decodes one of MOV r/m,r; MOV r,r/m; MOV r/m,imm; MOVZX; MOVSX; MOVSXD with a memory operand; `None` for anything
/// else, and for fewer than 15 bytes.
#[inline]
pub fn decode(bytes: &[u8], mode: Mode, gprs: &Gprs) -> Option<MmioOp> {
    let long = match mode {
        Mode::Bits64 => true,
        Mode::Bits32 => false,
        Mode::Bits16 => return None,
    };
    let all = bytes.first_chunk::<MAX_LEN>()?;
    // Two prefixes, escape, opcode, ModRM and SIB are at most six bytes.
    let mut word = u64::from_le_bytes(*all.first_chunk()?);
    let mut at = 0;
    let mut next = || {
        let byte = word as u8;
        word >>= 8;
        at += 1;
        byte
    };
    let mut opcode = next();
    let mut prefixes = Prefixes { rex: 0, operand16: false };
    if opcode == OPERAND_SIZE {
        prefixes.operand16 = true;
        opcode = next();
    }
    if long && opcode & 0xF0 == 0x40 {
        prefixes.rex = opcode;
        opcode = next();
    }
    let escaped = opcode == 0x0F;
    if escaped {
        opcode = next();
    }
    let modrm = next();
    let (mode_bits, rm) = (modrm >> 6, modrm & 7);
    let base = if rm == 4 { next() & 7 } else { rm };
    let end: usize = match mode_bits {
        0 if base == 5 => at + 4,
        0 => at,
        1 => at + 1,
        2 => at + 4,
        // A register operand.
        _ => return None,
    };
    let (size, action, immediate) = if escaped {
        extended(opcode, modrm, prefixes)?
    } else {
        plain(opcode, modrm, prefixes, long, gprs, all, end)?
    };
    Some(MmioOp { len: end as u8 + immediate, size, mode, action, string: None })
}

/// The register that ModRM names, as a byte register if `size` is 1.
#[inline]
const fn register(modrm: u8, size: u8, rex: u8) -> Target {
    let number = modrm >> 3 & 7 | (rex & 4) << 1;
    if size == 1 && rex == 0 && number >= 4 {
        Target { index: number - 4, size, high: true }
    } else {
        Target { index: number, size, high: false }
    }
}

const fn load(target: Target, sign: bool) -> Action {
    Action::Load { target, sign, swap: false }
}

/// Opcodes of the first map: bytes accessed, the operation, length of the immediate, which stands at `end`.
#[inline]
fn plain(
    opcode: u8,
    modrm: u8,
    prefixes: Prefixes,
    long: bool,
    gprs: &Gprs,
    all: &[u8; MAX_LEN],
    end: usize,
) -> Option<(u8, Action, u8)> {
    let rex = prefixes.rex;
    let size = if opcode & 1 == 0 { 1 } else { prefixes.size() };
    Some(match opcode {
        0x88 | 0x89 => (size, Action::Store { value: gprs.read(register(modrm, size, rex)) }, 0),
        0x8A | 0x8B => (size, load(register(modrm, size, rex), false), 0),
        0xC6 | 0xC7 if modrm & 0x38 == 0 => {
            // At most four bytes, extended with their sign.
            let immediate = u32::from_le_bytes(*all.get(end..)?.first_chunk()?);
            let value = sign_extend(u64::from(immediate), 4) & mask(size);
            (size, Action::Store { value }, if size == 8 { 4 } else { size })
        }
        // Without REX.W it is a plain move that nobody writes; in 32-bit mode it is ARPL.
        0x63 if long && size == 8 => (4, load(register(modrm, 8, rex), true), 0),
        _ => return None,
    })
}

/// Opcodes after 0Fh.
#[inline]
fn extended(opcode: u8, modrm: u8, prefixes: Prefixes) -> Option<(u8, Action, u8)> {
    let target = register(modrm, prefixes.size(), prefixes.rex);
    Some(match opcode {
        0xB6 => (1, load(target, false), 0),
        0xB7 => (2, load(target, false), 0),
        0xBE => (1, load(target, true), 0),
        0xBF => (2, load(target, true), 0),
        _ => return None,
    })
}
