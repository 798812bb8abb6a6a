//! The memory side of INS and OUTS, whose exits name the port.

use crate::Gprs;
use crate::full;
use crate::mmio::{Action, Address, DecodeError, MmioOp, Mode};
use iced_x86::Mnemonic;

/// One element of INS or OUTS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StringIo {
    /// To a port (OUTS) instead of from one (INS).
    pub output: bool,
    /// Where in memory the element is: ES:RDI for INS, DS:RSI or an override for OUTS.
    pub address: Address,
    /// Size, length and step; end the element with [`MmioOp::retire`]. [`Action::Nothing`] if the count is zero.
    pub op: MmioOp,
}

/// Decodes INS or OUTS at the start of `bytes`.
///
/// # Errors
/// [`DecodeError`]; [`DecodeError::NotMemory`] if it is another instruction.
pub fn string_io(bytes: &[u8], mode: Mode, gprs: &Gprs, rflags: u64) -> Result<StringIo, DecodeError> {
    let i = full::instruction(bytes, mode)?;
    let output = match i.mnemonic() {
        Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => true,
        Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd => false,
        _ => return Err(DecodeError::NotMemory),
    };
    let operands = full::string_operands(&i, gprs, rflags).ok_or(DecodeError::NotMemory)?;
    let action = if operands.finished {
        Action::Nothing
    } else {
        Action::Move { source: operands.source, destination: operands.destination }
    };
    Ok(StringIo {
        output,
        address: if output { operands.source } else { operands.destination },
        op: MmioOp {
            len: i.len() as u8,
            size: i.memory_size().size() as u8,
            mode,
            action,
            string: Some(operands.step),
        },
    })
}
