//! `IoPorts`: a range of ports. ABI: `docs/abi/io-ports.md`. The range stands in the capability: there is no object.

use super::thread::Thread;
use crate::{arch, cap::Cap, memory::Obj};
use moira_abi::{Error, ObjectType, Rights};
use moira_kernel_core::capword::CapWord;

/// Word 0 of a range: first and last port take the place of the address.
pub fn word(first: u16, last: u16) -> CapWord {
    CapWord::new(ObjectType::IoPorts, (first as u64) << 6 | (last as u64) << 22, Rights::ALL, 0)
}

/// The range in a capability.
pub fn range(cap: Cap) -> Result<(u16, u16), Error> {
    cap.require(ObjectType::IoPorts, Rights::USE)?;
    Ok(((cap.word.address() >> 6) as u16, (cap.word.address() >> 22) as u16))
}

/// `in` and `out`: W0 port, W1 bytes, W2 value. Answers whether it was done; else the call runs again.
pub fn access(cap: Cap, caller: Obj<Thread>, write: bool) -> Result<bool, Error> {
    let (first, last) = range(cap)?;
    let port = u16::try_from(caller.word(0)).map_err(|_| Error::BadArgument)?;
    let size = caller.word(1);
    if !matches!(size, 1 | 2 | 4) || port < first || port as u64 + size - 1 > last as u64 {
        return Err(Error::BadArgument);
    }
    if write {
        let register = port.wrapping_sub(arch::serial::COM1);
        if register < 8 {
            if crate::log::is_busy() {
                return Ok(false);
            }
            crate::log::task_wrote(register, caller.word(2) as u32);
        }
        arch::port_write(port, size as u8, caller.word(2) as u32);
    } else {
        let mut value = arch::port_read(port, size as u8);
        if port == arch::serial::COM1 + 5 && crate::log::is_busy() {
            // The kernel's log has not finished a line: for others the transmitter is busy until then.
            value &= !arch::serial::EMPTY;
        }
        caller.answer1(value as u64);
    }
    Ok(true)
}
