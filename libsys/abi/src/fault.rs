//! Faults as messages, and a thread's registers.

/// Label of a message that the kernel sends for a thread that faulted. W0 vector (SDM 6.3.1), W1 error code, W2 `rip`,
/// W3 `CR2` for a page fault, W4 `rsp`, W5 `rflags`. The badge is the one of the fault endpoint's capability.
pub const FAULT_LABEL: u32 = 0xffff_fff0;

/// Reply label: the thread goes on at its registers (which the handler may have written).
pub const RESUME: u32 = 0;

/// All user registers of a thread, in the order of the instruction encoding, then `rip` and `rflags`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Registers {
    /// rax rcx rdx rbx rsp rbp rsi rdi r8–r15.
    pub gpr: [u64; 16],
    /// Instruction pointer; must be below [`USER_END`](crate::USER_END) when written.
    pub rip: u64,
    /// Flags; the kernel forces IF = 1 and IOPL, NT, VM = 0. TF may be set: single step.
    pub rflags: u64,
}
