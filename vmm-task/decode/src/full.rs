//! The general path: any instruction, by `iced-x86`.

use crate::complete::swap_bytes;
use crate::gprs::{RAX, RCX, RDI, RSI, mask};
use crate::mmio::{Action, Address, DecodeError, MmioOp, Mode, Repeat, SegmentName, StringStep};
use crate::{Alu, Gprs, Target};
use iced_x86::{ConditionCode, Decoder, DecoderError, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

const DF: u64 = 1 << 10;
const MAX_LEN: usize = 15;

/// Decodes one instruction, whatever it is.
pub fn instruction(bytes: &[u8], mode: Mode) -> Result<Instruction, DecodeError> {
    let bytes = bytes.get(..MAX_LEN).unwrap_or(bytes);
    let bits = match mode {
        Mode::Bits16 => 16,
        Mode::Bits32 => 32,
        Mode::Bits64 => 64,
    };
    let mut decoder = Decoder::try_new(bits, bytes, DecoderOptions::NONE).map_err(|_| DecodeError::Invalid)?;
    let instruction = decoder.decode();
    match decoder.last_error() {
        DecoderError::None if !instruction.is_invalid() => Ok(instruction),
        DecoderError::NoMoreBytes if bytes.len() < MAX_LEN => Err(DecodeError::Incomplete),
        _ => Err(DecodeError::Invalid),
    }
}

pub fn decode(bytes: &[u8], mode: Mode, gprs: &Gprs, rflags: u64) -> Result<MmioOp, DecodeError> {
    let i = instruction(bytes, mode)?;
    let (action, string) = match string_action(&i, gprs, rflags) {
        Some(found) => found,
        None => (plain_action(&i, gprs, rflags)?, None),
    };
    let size = i.memory_size().size();
    if !matches!(size, 1 | 2 | 4 | 8) {
        return Err(DecodeError::Unsupported);
    }
    Ok(MmioOp { len: i.len() as u8, size: size as u8, mode, action, string })
}

/// The part of a general register that iced names.
pub fn target(register: Register) -> Option<Target> {
    let from = |first: Register| (register as u32).checked_sub(first as u32);
    let whole = |first, size| from(first).filter(|&n| n < 16).map(|n| Target { index: n as u8, size, high: false });
    // Byte registers: AL to BL, AH to BH, SPL to DIL, R8L to R15L.
    let byte = from(Register::AL).filter(|&n| n < 20).map(|n| match n {
        4..8 => Target { index: n as u8 - 4, size: 1, high: true },
        8.. => Target { index: n as u8 - 4, size: 1, high: false },
        _ => Target { index: n as u8, size: 1, high: false },
    });
    byte.or_else(|| whole(Register::AX, 2)).or_else(|| whole(Register::EAX, 4)).or_else(|| whole(Register::RAX, 8))
}

fn register_operand(i: &Instruction, operand: u32) -> Option<Target> {
    (i.op_kind(operand) == OpKind::Register).then(|| target(i.op_register(operand))).flatten()
}

/// A register's or immediate's value.
fn value_operand(i: &Instruction, operand: u32, gprs: &Gprs) -> Option<u64> {
    match register_operand(i, operand) {
        Some(target) => Some(gprs.read(target)),
        None => i.try_immediate(operand).ok(),
    }
}

/// Everything but string instructions.
fn plain_action(i: &Instruction, gprs: &Gprs, rflags: u64) -> Result<Action, DecodeError> {
    let memory = |operand| operand < i.op_count() && i.op_kind(operand) == OpKind::Memory;
    if memory(0) {
        memory_first(i, gprs, rflags).ok_or(DecodeError::Unsupported)
    } else if memory(1) {
        let target = register_operand(i, 0).ok_or(DecodeError::Unsupported)?;
        memory_second(i, target, gprs, rflags).ok_or(DecodeError::Unsupported)
    } else {
        // A memory operand elsewhere, or of another kind, is a vector or port instruction's; a stack can be a device too.
        let named = |kind| {
            !matches!(kind, OpKind::Register | OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64)
        };
        let elsewhere = i.op_kinds().enumerate().any(|(n, kind)| named(kind) && i.try_immediate(n as u32).is_err());
        Err(if elsewhere || i.is_stack_instruction() { DecodeError::Unsupported } else { DecodeError::NotMemory })
    }
}

fn memory_first(i: &Instruction, gprs: &Gprs, rflags: u64) -> Option<Action> {
    let size = i.memory_size().size() as u8;
    // SETcc: no other instruction with memory first has a condition.
    if let Some(holds) = condition(i.condition_code(), rflags) {
        return Some(Action::Store { value: holds.into() });
    }
    let alu = match i.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movnti | Mnemonic::Movdiri => {
            return Some(Action::Store { value: value_operand(i, 1, gprs)? & mask(size) });
        }
        Mnemonic::Movbe => return Some(Action::Store { value: swap_bytes(value_operand(i, 1, gprs)?, size) }),
        Mnemonic::Xchg => return Some(Action::Exchange { target: register_operand(i, 1)? }),
        Mnemonic::Xadd => return Some(Action::ExchangeAdd { target: register_operand(i, 1)? }),
        Mnemonic::Cmpxchg => return Some(Action::CompareExchange { replacement: value_operand(i, 1, gprs)? }),
        Mnemonic::Not => Alu::Not,
        Mnemonic::Neg => Alu::Neg,
        Mnemonic::Inc => Alu::Inc,
        Mnemonic::Dec => Alu::Dec,
        // The forms with two and three operands have memory second.
        Mnemonic::Mul => return Some(Action::Multiply { signed: false }),
        Mnemonic::Imul => return Some(Action::Multiply { signed: true }),
        Mnemonic::Shld => Alu::Shld(value_operand(i, 2, gprs)? as u8),
        Mnemonic::Shrd => Alu::Shrd(value_operand(i, 2, gprs)? as u8),
        other => shift(other).or_else(|| binary(other))?,
    };
    let operand = if i.op_count() > 1 { value_operand(i, 1, gprs)? } else { 0 };
    Some(Action::Modify { alu, operand })
}

const fn shift(mnemonic: Mnemonic) -> Option<Alu> {
    Some(match mnemonic {
        Mnemonic::Shl | Mnemonic::Sal => Alu::Shl,
        Mnemonic::Shr => Alu::Shr,
        Mnemonic::Sar => Alu::Sar,
        Mnemonic::Rol => Alu::Rol,
        Mnemonic::Ror => Alu::Ror,
        Mnemonic::Rcl => Alu::Rcl,
        Mnemonic::Rcr => Alu::Rcr,
        _ => return None,
    })
}

/// Whether a condition holds (SDM vol. 1, appendix B).
fn condition(code: ConditionCode, rflags: u64) -> Option<bool> {
    let flag = |bit: u32| rflags >> bit & 1 != 0;
    let (carry, parity, zero, sign, overflow) = (flag(0), flag(2), flag(6), flag(7), flag(11));
    Some(match code {
        ConditionCode::o => overflow,
        ConditionCode::no => !overflow,
        ConditionCode::b => carry,
        ConditionCode::ae => !carry,
        ConditionCode::e => zero,
        ConditionCode::ne => !zero,
        ConditionCode::be => carry || zero,
        ConditionCode::a => !carry && !zero,
        ConditionCode::s => sign,
        ConditionCode::ns => !sign,
        ConditionCode::p => parity,
        ConditionCode::np => !parity,
        ConditionCode::l => sign != overflow,
        ConditionCode::ge => sign == overflow,
        ConditionCode::le => zero || sign != overflow,
        ConditionCode::g => !zero && sign == overflow,
        ConditionCode::None => return None,
    })
}

fn memory_second(i: &Instruction, target: Target, gprs: &Gprs, rflags: u64) -> Option<Action> {
    // CMOVcc: no other instruction with memory second has a condition.
    if let Some(holds) = condition(i.condition_code(), rflags) {
        return Some(Action::LoadIf { target, holds });
    }
    let derive = |alu, operand| Some(Action::Derive { alu, operand, target });
    match i.mnemonic() {
        Mnemonic::Imul if i.op_count() == 3 => return derive(Alu::Imul, value_operand(i, 2, gprs)?),
        Mnemonic::Imul => return Some(Action::Combine { alu: Alu::Imul, target }),
        Mnemonic::Bsf => return derive(Alu::Bsf, gprs.read(target)),
        Mnemonic::Bsr => return derive(Alu::Bsr, gprs.read(target)),
        Mnemonic::Tzcnt => return derive(Alu::Tzcnt, 0),
        Mnemonic::Lzcnt => return derive(Alu::Lzcnt, 0),
        Mnemonic::Popcnt => return derive(Alu::Popcnt, 0),
        _ => {}
    }
    Some(match i.mnemonic() {
        Mnemonic::Mov | Mnemonic::Movzx => Action::Load { target, sign: false, swap: false },
        Mnemonic::Movsx | Mnemonic::Movsxd => Action::Load { target, sign: true, swap: false },
        Mnemonic::Movbe => Action::Load { target, sign: false, swap: true },
        Mnemonic::Xchg => Action::Exchange { target },
        // TEST is symmetric, and the assembler may have the operands either way.
        other => match binary(other)? {
            Alu::Bt | Alu::Bts | Alu::Btr | Alu::Btc => return None,
            alu => Action::Combine { alu, target },
        },
    })
}

const fn binary(mnemonic: Mnemonic) -> Option<Alu> {
    Some(match mnemonic {
        Mnemonic::Add => Alu::Add,
        Mnemonic::Or => Alu::Or,
        Mnemonic::Adc => Alu::Adc,
        Mnemonic::Sbb => Alu::Sbb,
        Mnemonic::And => Alu::And,
        Mnemonic::Sub => Alu::Sub,
        Mnemonic::Xor => Alu::Xor,
        Mnemonic::Cmp => Alu::Cmp,
        Mnemonic::Test => Alu::Test,
        // With a register index the processor has already moved the address to the word that holds the bit.
        Mnemonic::Bt => Alu::Bt,
        Mnemonic::Bts => Alu::Bts,
        Mnemonic::Btr => Alu::Btr,
        Mnemonic::Btc => Alu::Btc,
        _ => return None,
    })
}

fn segment(register: Register) -> SegmentName {
    match register {
        Register::ES => SegmentName::Es,
        Register::CS => SegmentName::Cs,
        Register::SS => SegmentName::Ss,
        Register::FS => SegmentName::Fs,
        Register::GS => SegmentName::Gs,
        _ => SegmentName::Ds,
    }
}

/// Bytes of the index registers that a string instruction uses, from its operand kinds.
fn string_address_size(i: &Instruction) -> Option<u8> {
    (0..i.op_count()).find_map(|operand| match i.op_kind(operand) {
        OpKind::MemorySegSI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    })
}

/// What the operands of a string instruction are, and where it goes on.
pub struct StringOperands {
    pub source: Address,
    pub destination: Address,
    pub step: StringStep,
    /// The count is zero: no element is left.
    pub finished: bool,
}

/// The operands of MOVS, CMPS, STOS, LODS, SCAS, INS or OUTS.
pub fn string_operands(i: &Instruction, gprs: &Gprs, rflags: u64) -> Option<StringOperands> {
    let (source, destination) = match i.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => (true, true),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => (false, true),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => (true, false),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => (true, true),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => (false, true),
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => (false, true),
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => (true, false),
        _ => return None,
    };
    // The mnemonics of MOVSD and CMPSD are also vector instructions'.
    let address_size = string_address_size(i)?;
    let repeat = match (i.has_rep_prefix(), i.has_repne_prefix(), compares(i)) {
        (false, false, _) => Repeat::Once,
        (true, _, true) => Repeat::WhileEqual,
        (false, true, true) => Repeat::WhileUnequal,
        _ => Repeat::Count,
    };
    let size = i.memory_size().size() as i8;
    let step =
        StringStep { by: if rflags & DF != 0 { -size } else { size }, address_size, repeat, source, destination };
    Some(StringOperands {
        source: Address { segment: segment(i.memory_segment()), offset: gprs.address(RSI, address_size) },
        destination: Address { segment: SegmentName::Es, offset: gprs.address(RDI, address_size) },
        step,
        finished: repeat != Repeat::Once && gprs.address(RCX, address_size) == 0,
    })
}

/// Of a string instruction: whether it is CMPS or SCAS.
fn compares(i: &Instruction) -> bool {
    matches!(i.mnemonic(), Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq)
        || matches!(i.mnemonic(), Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq)
}

fn string_action(i: &Instruction, gprs: &Gprs, rflags: u64) -> Option<(Action, Option<StringStep>)> {
    let operands = string_operands(i, gprs, rflags)?;
    let size = i.memory_size().size() as u8;
    let accumulator = Target { index: RAX, size, high: false };
    let step = operands.step;
    let action = match (step.source, step.destination) {
        _ if operands.finished => Action::Nothing,
        (true, true) if compares(i) => Action::Compare { source: operands.source, destination: operands.destination },
        (_, true) if compares(i) => Action::Combine { alu: Alu::Cmp, target: accumulator },
        (true, true) => Action::Move { source: operands.source, destination: operands.destination },
        // INS and OUTS go to ports; their exits are others.
        _ if matches!(i.mnemonic(), Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd) => return None,
        _ if matches!(i.mnemonic(), Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd) => return None,
        (true, false) => Action::Load { target: accumulator, sign: false, swap: false },
        _ => Action::Store { value: gprs.read(accumulator) },
    };
    Some((action, Some(step)))
}

/// Where the memory operand of the instruction at the start of `bytes` is; of a string instruction with two, none.
pub fn operand(bytes: &[u8], mode: Mode, gprs: &Gprs) -> Option<Address> {
    let i = instruction(bytes, mode).ok()?;
    if let Some(size) = string_address_size(&i) {
        // One of the two is the device's: STOS and SCAS go by RDI, LODS by RSI.
        let destination =
            i.op_kinds().any(|kind| matches!(kind, OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI));
        let (segment, register) = if destination { (SegmentName::Es, RDI) } else { (segment(i.memory_segment()), RSI) };
        return Some(Address { segment, offset: gprs.address(register, size) });
    }
    if !i.op_kinds().any(|kind| kind == OpKind::Memory) {
        return None;
    }
    let part =
        |register: Register| if register == Register::None { Some(0) } else { Some(gprs.read(target(register)?)) };
    // With RIP as its base the displacement is the address already.
    let (base, width) = match i.memory_base() {
        Register::RIP => (0, 8),
        Register::EIP => (0, 4),
        Register::None => (
            0,
            match i.memory_index() {
                Register::None => i.memory_displ_size().max(2) as u8,
                index => target(index)?.size,
            },
        ),
        base => (part(base)?, target(base)?.size),
    };
    let index = part(i.memory_index())?.wrapping_mul(u64::from(i.memory_index_scale()));
    let offset = base.wrapping_add(index).wrapping_add(i.memory_displacement64());
    Some(Address { segment: segment(i.memory_segment()), offset: offset & mask(width) })
}
