//! Decoding of an access to device memory.

use crate::{Alu, Gprs, Target, fast, full};

/// Default operand and address size: the L and D bits of CS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode, virtual-8086 mode, or a 16-bit code segment.
    Bits16,
    /// A 32-bit code segment.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentName {
    /// Extra.
    Es,
    /// Code.
    Cs,
    /// Stack.
    Ss,
    /// Data.
    Ds,
    /// F.
    Fs,
    /// G.
    Gs,
}

/// A memory operand: where it is, before segmentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// Segment it is relative to.
    pub segment: SegmentName,
    /// Offset, cut to the address size.
    pub offset: u64,
}

impl Address {
    /// The linear address, given the segment's base. In 64-bit mode only FS and GS have one.
    #[must_use]
    pub fn linear(&self, mode: Mode, base: u64) -> u64 {
        match (mode, self.segment) {
            (Mode::Bits64, SegmentName::Fs | SegmentName::Gs) => base.wrapping_add(self.offset),
            (Mode::Bits64, _) => self.offset,
            _ => base.wrapping_add(self.offset) & 0xFFFF_FFFF,
        }
    }
}

/// Why bytes are no access to device memory that can be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeError {
    /// The instruction goes on after the bytes given: fetch more, from the next page. Never with 15 or more bytes.
    Incomplete,
    /// No instruction: the processor would raise `#UD`. If the exit was real, the bytes have changed since.
    Invalid,
    /// An instruction that accesses no memory, or not in the way expected: the bytes have changed. Run the guest again.
    NotMemory,
    /// An instruction that accesses memory, but none that makes sense on a device (vector, x87, stack, control).
    Unsupported,
}

/// What an instruction does with device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reads into a register. The value has [`MmioOp::size`] bytes and is extended to the target's.
    Load {
        /// Register that receives the value.
        target: Target,
        /// Extended with its sign instead of zeros.
        sign: bool,
        /// Bytes in reverse order (MOVBE).
        swap: bool,
    },
    /// Writes.
    Store {
        /// What.
        value: u64,
    },
    /// Memory is the left operand: reads, computes, and writes back if the operation has a result.
    Modify {
        /// Operation.
        alu: Alu,
        /// Right operand.
        operand: u64,
    },
    /// A register is the left operand and memory the right one: reads, computes into the register.
    Combine {
        /// Operation.
        alu: Alu,
        /// Left operand, and destination.
        target: Target,
    },
    /// XCHG.
    Exchange {
        /// Register.
        target: Target,
    },
    /// XADD.
    ExchangeAdd {
        /// Register.
        target: Target,
    },
    /// CMPXCHG with the accumulator.
    CompareExchange {
        /// Value to store if they are equal.
        replacement: u64,
    },
    /// Memory is read and a register computed from it: IMUL with an immediate, BSF, BSR and the like.
    Derive {
        /// Operation; memory is its left operand.
        alu: Alu,
        /// Right operand; for BSF and BSR what the register keeps if no bit is set.
        operand: u64,
        /// Destination.
        target: Target,
    },
    /// CMOV: reads; only if the condition holds does the register change.
    LoadIf {
        /// Register.
        target: Target,
        /// Whether the condition holds.
        holds: bool,
    },
    /// MUL or IMUL with the accumulator, whose double takes the result.
    Multiply {
        /// IMUL.
        signed: bool,
    },
    /// MOVS: reads the source, writes the destination; one of them is the device. One element.
    Move {
        /// DS:RSI, or what an override says.
        source: Address,
        /// ES:RDI.
        destination: Address,
    },
    /// CMPS: reads both, of which one at least is the device. One element.
    Compare {
        /// DS:RSI, or what an override says: the left operand.
        source: Address,
        /// ES:RDI.
        destination: Address,
    },
    /// A string instruction whose count is zero: nothing but the next instruction.
    Nothing,
}

/// When a string instruction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repeat {
    /// After one element.
    Once,
    /// After RCX elements.
    Count,
    /// The same, or when two were unequal (REPE).
    WhileEqual,
    /// The same, or when two were equal (REPNE).
    WhileUnequal,
}

/// How a string instruction goes on after one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringStep {
    /// Added to the index registers.
    pub by: i8,
    /// Bytes of the index and count registers in use.
    pub address_size: u8,
    /// When it ends.
    pub repeat: Repeat,
    /// RSI moves.
    pub source: bool,
    /// RDI moves.
    pub destination: bool,
}

/// One access to device memory, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MmioOp {
    /// Length of the instruction in bytes.
    pub len: u8,
    /// Bytes accessed: 1, 2, 4 or 8.
    pub size: u8,
    /// Mode it was decoded for.
    pub mode: Mode,
    /// What it does.
    pub action: Action,
    /// For string instructions: what comes after.
    pub string: Option<StringStep>,
}

/// The first thing to do with the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read, then [`MmioOp::complete_read`].
    Read,
    /// Write this, then [`MmioOp::retire`].
    Write(u64),
    /// Read the source, write the destination, then [`MmioOp::retire`]; see [`Action::Move`].
    Move {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
    },
    /// Read both, then [`MmioOp::compare`]; see [`Action::Compare`].
    Compare {
        /// Source.
        source: Address,
        /// Destination.
        destination: Address,
    },
    /// Nothing: go to [`MmioOp::retire`].
    Nothing,
}

/// Decodes the instruction at the start of `bytes`, an access to device memory.
///
/// `bytes` are what could be fetched at the guest's RIP, 15 suffice. The commonest moves are decoded by hand; the rest
/// by `iced-x86`. The result holds the values that registers contribute, so it must be used before they change.
///
/// # Errors
/// [`DecodeError`].
#[inline]
pub fn mmio(bytes: &[u8], mode: Mode, gprs: &Gprs, rflags: u64) -> Result<MmioOp, DecodeError> {
    match fast::decode(bytes, mode, gprs) {
        Some(op) => Ok(op),
        None => full::decode(bytes, mode, gprs, rflags),
    }
}

/// Where the memory operand of the instruction at the start of `bytes` is. An exit tells the physical address of an access, which is
/// enough until the access goes on in another page.
#[must_use]
#[cold]
pub fn operand(bytes: &[u8], mode: Mode, gprs: &Gprs) -> Option<Address> {
    full::operand(bytes, mode, gprs)
}
