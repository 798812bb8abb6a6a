//! Instructions that Rust has no words for.

use core::arch::asm;

/// Reads a byte from a port.
pub fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: this program owns the machine; a port access changes no memory of the program.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes a byte to a port.
pub fn out8(port: u16, value: u8) {
    // SAFETY: as for `in8`.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags)) };
}

/// Reads four bytes from a port.
#[inline(always)]
pub fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `in8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack, preserves_flags)) };
    value
}

/// Writes two bytes to a port.
pub fn out16(port: u16, value: u16) {
    // SAFETY: as for `in8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack, preserves_flags)) };
}

/// The time stamp counter.
#[inline(always)]
pub fn now() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe { asm!("rdtsc", out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags)) };
    u64::from(low) | u64::from(high) << 32
}

/// CPUID: EAX, EBX, ECX, EDX.
#[inline(always)]
pub fn cpuid(leaf: u32) -> [u32; 4] {
    let (a, c, d): (u32, u32, u32);
    let b: u64;
    // SAFETY: writes registers; RBX is kept by hand because the compiler uses it.
    unsafe {
        asm!(
            "mov {b}, rbx", "cpuid", "xchg {b}, rbx",
            b = out(reg) b, inout("eax") leaf => a, inout("ecx") 0 => c, out("edx") d,
            options(nomem, nostack, preserves_flags)
        );
    }
    [a, b as u32, c, d]
}

/// A hypercall, by the instruction of the processor's vendor.
#[inline(always)]
pub fn hypercall(amd: bool, number: u64) -> u64 {
    let answer;
    // SAFETY: the monitor answers in RAX and touches nothing else.
    unsafe {
        if amd {
            asm!("vmmcall", inout("rax") number => answer, options(nostack));
        } else {
            asm!("vmcall", inout("rax") number => answer, options(nostack));
        }
    }
    answer
}

/// Stops until the next interrupt, with interrupts off: for good.
pub fn halt() -> ! {
    loop {
        // SAFETY: the program has ended.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Faults with no way to handle the fault.
pub fn triple_fault() -> ! {
    let nothing = [0u16; 5];
    // SAFETY: the program ends here.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const nothing, options(noreturn, nostack)) }
}

/// Reads a model-specific register that this processor has.
#[inline(always)]
pub fn read_msr(number: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reads a register.
    unsafe {
        asm!("rdmsr", in("ecx") number, out("eax") low, out("edx") high, options(nomem, nostack, preserves_flags))
    };
    u64::from(low) | u64::from(high) << 32
}

/// Writes a model-specific register of the local APIC, or one that changes nothing by itself.
#[inline(always)]
pub fn write_msr(number: u32, value: u64) {
    let (low, high) = (value as u32, (value >> 32) as u32);
    // SAFETY: interrupts that this causes have handlers.
    unsafe { asm!("wrmsr", in("ecx") number, in("eax") low, in("edx") high, options(nostack, preserves_flags)) };
}
