//! Two instructions that need no permission: CPUID and RDRAND.
#![allow(unsafe_code)]

use vmm_machine::cpuid::Leaf;

/// What this processor's CPUID answers.
#[must_use]
#[allow(unused_unsafe, reason = "safe in newer compilers")]
pub fn cpuid(leaf: u32, subleaf: u32) -> Leaf {
    // SAFETY: every x86-64 processor has CPUID.
    let answer = unsafe { core::arch::x86_64::__cpuid_count(leaf, subleaf) };
    Leaf::new(answer.eax, answer.ebx, answer.ecx, answer.edx)
}

/// Whether there is RDRAND (SDM vol. 2A: CPUID leaf 1, ECX bit 30).
#[must_use]
pub fn has_random() -> bool {
    cpuid(1, 0).ecx & 1 << 30 != 0
}

/// A random number from the processor, if it has one ready. Only where [`has_random`].
#[must_use]
pub fn random() -> Option<u64> {
    let (value, carry): (u64, u8);
    // SAFETY: callers have checked that the instruction exists; it writes a register and flags.
    unsafe { core::arch::asm!("rdrand {}", "setc {}", out(reg) value, out(reg_byte) carry, options(nomem, nostack)) };
    (carry != 0).then_some(value)
}
