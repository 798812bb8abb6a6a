//! Length of the instruction behind an exit that does not carry one (SVM without next-RIP save).

use crate::full;
use crate::mmio::{DecodeError, Mode};
use iced_x86::Mnemonic;

/// The instruction an exit says was executed.
///
/// The bytes are read after the exit and another processor of the guest may have changed them, so the length is only
/// given for the instruction that the exit was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// CPUID.
    Cpuid,
    /// HLT.
    Hlt,
    /// RDMSR.
    Rdmsr,
    /// WRMSR.
    Wrmsr,
    /// RDTSC.
    Rdtsc,
    /// RDTSCP.
    Rdtscp,
    /// RDPMC.
    Rdpmc,
    /// VMMCALL (AMD's) or VMCALL (Intel's): guests do not always know where they are.
    Hypercall,
    /// XSETBV.
    Xsetbv,
    /// INVD.
    Invd,
    /// WBINVD.
    Wbinvd,
    /// PAUSE.
    Pause,
    /// MONITOR.
    Monitor,
    /// MWAIT.
    Mwait,
    /// INVLPG.
    Invlpg,
    /// IRET in any operand size.
    Iret,
    /// IN, INS.
    In,
    /// OUT, OUTS.
    Out,
    /// MOV to or from a control or debug register, CLTS, LMSW, SMSW.
    ControlRegister,
    /// INT n, INT3, INT1, INTO: for re-injecting soft events.
    SoftInterrupt,
}

impl Expected {
    fn accepts(self, mnemonic: Mnemonic) -> bool {
        match self {
            Self::Cpuid => mnemonic == Mnemonic::Cpuid,
            Self::Hlt => mnemonic == Mnemonic::Hlt,
            Self::Rdmsr => mnemonic == Mnemonic::Rdmsr,
            Self::Wrmsr => mnemonic == Mnemonic::Wrmsr,
            Self::Rdtsc => mnemonic == Mnemonic::Rdtsc,
            Self::Rdtscp => mnemonic == Mnemonic::Rdtscp,
            Self::Rdpmc => mnemonic == Mnemonic::Rdpmc,
            Self::Hypercall => matches!(mnemonic, Mnemonic::Vmmcall | Mnemonic::Vmcall),
            Self::Xsetbv => mnemonic == Mnemonic::Xsetbv,
            Self::Invd => mnemonic == Mnemonic::Invd,
            Self::Wbinvd => matches!(mnemonic, Mnemonic::Wbinvd | Mnemonic::Wbnoinvd),
            Self::Pause => mnemonic == Mnemonic::Pause,
            Self::Monitor => mnemonic == Mnemonic::Monitor,
            Self::Mwait => mnemonic == Mnemonic::Mwait,
            Self::Invlpg => mnemonic == Mnemonic::Invlpg,
            Self::Iret => matches!(mnemonic, Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq),
            Self::In => matches!(mnemonic, Mnemonic::In | Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd),
            Self::Out => matches!(mnemonic, Mnemonic::Out | Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd),
            Self::ControlRegister => {
                matches!(mnemonic, Mnemonic::Mov | Mnemonic::Clts | Mnemonic::Lmsw | Mnemonic::Smsw)
            }
            Self::SoftInterrupt => matches!(mnemonic, Mnemonic::Int | Mnemonic::Int3 | Mnemonic::Int1 | Mnemonic::Into),
        }
    }

    /// The encoding without prefixes, which is what compilers write.
    const fn plain(self) -> Option<&'static [u8]> {
        Some(match self {
            Self::Cpuid => &[0x0F, 0xA2],
            Self::Hlt => &[0xF4],
            Self::Rdmsr => &[0x0F, 0x32],
            Self::Wrmsr => &[0x0F, 0x30],
            Self::Rdtsc => &[0x0F, 0x31],
            Self::Rdtscp => &[0x0F, 0x01, 0xF9],
            Self::Rdpmc => &[0x0F, 0x33],
            Self::Hypercall => &[0x0F, 0x01, 0xD9],
            Self::Xsetbv => &[0x0F, 0x01, 0xD1],
            Self::Invd => &[0x0F, 0x08],
            Self::Wbinvd => &[0x0F, 0x09],
            Self::Pause => &[0xF3, 0x90],
            Self::Monitor => &[0x0F, 0x01, 0xC8],
            Self::Mwait => &[0x0F, 0x01, 0xC9],
            Self::Invlpg
            | Self::Iret
            | Self::In
            | Self::Out
            | Self::ControlRegister
            | Self::SoftInterrupt => return None,
        })
    }
}

/// Length of the instruction at the start of `bytes`, if it is the `expected` one.
///
/// # Errors
/// [`DecodeError::Incomplete`] if more bytes are needed; [`DecodeError::NotMemory`] if it is another instruction: the
/// guest changed it, and should simply run again; [`DecodeError::Invalid`] if it is none.
#[inline]
pub fn exit_length(bytes: &[u8], mode: Mode, expected: Expected) -> Result<u8, DecodeError> {
    if let Some(plain) = expected.plain()
        && bytes.starts_with(plain)
    {
        return Ok(plain.len() as u8);
    }
    let instruction = full::instruction(bytes, mode)?;
    if expected.accepts(instruction.mnemonic()) { Ok(instruction.len() as u8) } else { Err(DecodeError::NotMemory) }
}
