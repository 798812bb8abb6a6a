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

    /// The encoding without prefixes, which is what compilers write, as a little-endian number, and its length.
    #[inline]
    pub(crate) const fn pattern(self) -> Option<(u64, u8)> {
        Some(match self {
            Self::Cpuid => (0xA2_0F, 2),
            Self::Hlt => (0xF4, 1),
            Self::Rdmsr => (0x32_0F, 2),
            Self::Wrmsr => (0x30_0F, 2),
            Self::Rdtsc => (0x31_0F, 2),
            Self::Rdtscp => (0xF9_01_0F, 3),
            Self::Rdpmc => (0x33_0F, 2),
            Self::Hypercall => (0xD9_01_0F, 3),
            Self::Xsetbv => (0xD1_01_0F, 3),
            Self::Invd => (0x08_0F, 2),
            Self::Wbinvd => (0x09_0F, 2),
            Self::Pause => (0x90_F3, 2),
            Self::Monitor => (0xC8_01_0F, 3),
            Self::Mwait => (0xC9_01_0F, 3),
            Self::Invlpg | Self::Iret | Self::In | Self::Out | Self::ControlRegister | Self::SoftInterrupt => {
                return None;
            }
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
    if let Some((pattern, len)) = expected.pattern()
        && let Some(start) = bytes.get(..usize::from(len))
        && start.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte)) == pattern
    {
        return Ok(len);
    }
    let instruction = full::instruction(bytes, mode)?;
    if expected.accepts(instruction.mnemonic()) { Ok(instruction.len() as u8) } else { Err(DecodeError::NotMemory) }
}
