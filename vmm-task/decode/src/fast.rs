//! The moves that make up nearly all device accesses, decoded by hand.
//!
//! A general decoder fills in everything about an instruction; a device access needs a register number, a width and a
//! length. Whatever this path is not sure of it leaves to the general one, so it is an optimisation and nothing else:
//! the tests compare the two on all its encodings.

use crate::gprs::{mask, sign_extend};
use crate::mmio::{Action, MmioOp, Mode};
use crate::{Gprs, Target};

const OPERAND_SIZE: u8 = 0x66;
/// Longest instruction (SDM vol. 2A, 2.3.11).
const MAX_LEN: usize = 15;

#[derive(Clone, Copy)]
struct Prefixes {
    rex: u8,
    operand16: bool,
}

/// Decodes one of MOV r/m,r; MOV r,r/m; MOV r/m,imm; MOVZX; MOVSX; MOVSXD with a memory operand; `None` for anything
/// else, including bytes that are cut off.
#[inline]
pub fn decode(bytes: &[u8], mode: Mode, gprs: &Gprs) -> Option<MmioOp> {
    let long = match mode {
        Mode::Bits64 => true,
        Mode::Bits32 => false,
        Mode::Bits16 => return None,
    };
    let mut at = 0;
    let mut prefixes = Prefixes { rex: 0, operand16: false };
    if *bytes.first()? == OPERAND_SIZE {
        prefixes.operand16 = true;
        at = 1;
    }
    let mut opcode = *bytes.get(at)?;
    at += 1;
    if long && opcode & 0xF0 == 0x40 {
        prefixes.rex = opcode;
        opcode = *bytes.get(at)?;
        at += 1;
    }
    // 0: the map with no escape, 1: after 0Fh.
    let escaped = opcode == 0x0F;
    if escaped {
        opcode = *bytes.get(at)?;
        at += 1;
    }
    let modrm = *bytes.get(at)?;
    let end = at + memory_operand_len(bytes.get(at + 1..)?, modrm)?;
    let mut op = action(escaped, opcode, modrm, prefixes, long, gprs, bytes.get(end..)?)?;
    op.mode = mode;
    let len = end + usize::from(op.len);
    if len > bytes.len() || len > MAX_LEN {
        return None;
    }
    op.len = len as u8;
    Some(op)
}

/// Length of ModRM, SIB and displacement with 32- or 64-bit addressing; `None` for a register operand. `rest` begins
/// after ModRM.
#[inline]
fn memory_operand_len(rest: &[u8], modrm: u8) -> Option<usize> {
    let (mode, rm) = (modrm >> 6, modrm & 7);
    if mode == 3 {
        return None;
    }
    let mut len = 1;
    let mut base = rm;
    if rm == 4 {
        base = *rest.first()? & 7;
        len += 1;
    }
    len += match mode {
        0 if base == 5 => 4,
        0 => 0,
        1 => 1,
        _ => 4,
    };
    Some(len)
}

/// The register that ModRM names, as a byte register if `size` is 1.
#[inline]
fn register(modrm: u8, size: u8, rex: u8) -> Target {
    let number = modrm >> 3 & 7 | (rex & 4) << 1;
    if size == 1 && rex == 0 && number >= 4 {
        Target { index: number - 4, size, high: true }
    } else {
        Target { index: number, size, high: false }
    }
}

/// The operation; `len` is that of the immediate.
#[inline]
fn action(
    escaped: bool,
    opcode: u8,
    modrm: u8,
    prefixes: Prefixes,
    long: bool,
    gprs: &Gprs,
    immediate: &[u8],
) -> Option<MmioOp> {
    let rex = prefixes.rex;
    let size = match (rex & 8 != 0, prefixes.operand16) {
        (true, _) => 8,
        (false, true) => 2,
        (false, false) => 4,
    };
    let load = |target, size, sign| (size, Action::Load { target, sign, swap: false }, 0);
    let (size, action, len) = match (escaped, opcode) {
        (false, 0x88) => (1, Action::Store { value: gprs.read(register(modrm, 1, rex)) }, 0),
        (false, 0x89) => (size, Action::Store { value: gprs.read(register(modrm, size, rex)) }, 0),
        (false, 0x8A) => load(register(modrm, 1, rex), 1, false),
        (false, 0x8B) => load(register(modrm, size, rex), size, false),
        (false, 0xC6) if modrm & 0x38 == 0 => (1, Action::Store { value: u64::from(*immediate.first()?) }, 1),
        (false, 0xC7) if modrm & 0x38 == 0 => store_immediate(size, immediate)?,
        (true, 0xB6) => load(register(modrm, size, rex), 1, false),
        (true, 0xB7) => load(register(modrm, size, rex), 2, false),
        (true, 0xBE) => load(register(modrm, size, rex), 1, true),
        (true, 0xBF) => load(register(modrm, size, rex), 2, true),
        // Without REX.W it is a plain move that nobody writes; in 32-bit mode it is ARPL.
        (false, 0x63) if long && size == 8 => load(register(modrm, 8, rex), 4, true),
        _ => return None,
    };
    Some(MmioOp { len, size, mode: Mode::Bits64, action, string: None })
}

/// MOV r/m,imm: the immediate has at most four bytes, and is extended with its sign.
#[inline]
fn store_immediate(size: u8, immediate: &[u8]) -> Option<(u8, Action, u8)> {
    let (value, len) = if size == 2 {
        (u64::from(u16::from_le_bytes(*immediate.first_chunk()?)), 2)
    } else {
        (sign_extend(u64::from(u32::from_le_bytes(*immediate.first_chunk()?)), 4), 4)
    };
    Some((size, Action::Store { value: value & mask(size) }, len))
}
