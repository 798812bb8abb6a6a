//! The world switch and the few instructions that have no wrapper elsewhere.
use core::arch::asm;
use core::mem::offset_of;

use moira_abi::vcpu::VcpuState;
use x86::msr;
use x86::vmx::vmcs::host;

use super::super::{mitigations, virt::TableRegister};

/// Enters the guest of the current VMCS. True: the instruction failed and there was no entry; the general registers in the
/// page are then as they were.
///
/// Host RSP and RIP are written only when the stack pointer is another than last time (`host_rsp`). That is right because
/// this function is one piece of code: it must not be inlined. With the measure RSB the exit goes by way of filling the return stack.
///
/// # Safety
/// The current VMCS's controls and other host fields are right.
#[inline(never)]
pub(super) unsafe fn enter(page: *mut VcpuState, launched: &mut bool, host_rsp: &mut u64) -> bool {
    let failed: u64;
    // SAFETY: every general register is saved by hand or declared; an exit restores RSP from the VMCS; the memory clobber is
    // the default.
    unsafe {
        asm!(
            "push rbx", "push rbp", "push rsi", "push rdi",
            "cmp rsp, [rdx]",
            "je 2f",
            "mov [rdx], rsp",
            "mov eax, {host_rsp}",
            "vmwrite rax, rsp",
            "lea rcx, [rip + 5f]",
            "test dword ptr [rip + {measures}], {rsb}",
            "jz 7f",
            "lea rcx, [rip + 8f]",
            "7:",
            "mov eax, {host_rip}",
            "vmwrite rax, rcx",
            "2:",
            "cmp byte ptr [rsi], 0",
            "mov rax, [rdi + {gpr}]", "mov rcx, [rdi + {gpr} + 8]", "mov rdx, [rdi + {gpr} + 16]",
            "mov rbx, [rdi + {gpr} + 24]", "mov rbp, [rdi + {gpr} + 40]", "mov rsi, [rdi + {gpr} + 48]",
            "mov r8, [rdi + {gpr} + 64]", "mov r9, [rdi + {gpr} + 72]", "mov r10, [rdi + {gpr} + 80]",
            "mov r11, [rdi + {gpr} + 88]", "mov r12, [rdi + {gpr} + 96]", "mov r13, [rdi + {gpr} + 104]",
            "mov r14, [rdi + {gpr} + 112]", "mov r15, [rdi + {gpr} + 120]", "mov rdi, [rdi + {gpr} + 56]",
            "je 3f",
            "vmresume",
            "jmp 4f",
            "3:",
            "vmlaunch",
            "4:",
            "pop rdi", "pop rsi", "mov eax, 1", "jmp 6f",
            "8:",
            "call {fill}",
            "5:",
            "push rdi",
            "mov rdi, [rsp + 8]",
            "mov [rdi + {gpr}], rax", "mov [rdi + {gpr} + 8], rcx", "mov [rdi + {gpr} + 16], rdx",
            "mov [rdi + {gpr} + 24], rbx", "mov [rdi + {gpr} + 40], rbp", "mov [rdi + {gpr} + 48], rsi",
            "mov [rdi + {gpr} + 64], r8", "mov [rdi + {gpr} + 72], r9", "mov [rdi + {gpr} + 80], r10",
            "mov [rdi + {gpr} + 88], r11", "mov [rdi + {gpr} + 96], r12", "mov [rdi + {gpr} + 104], r13",
            "mov [rdi + {gpr} + 112], r14", "mov [rdi + {gpr} + 120], r15",
            "pop rax", "mov [rdi + {gpr} + 56], rax",
            "pop rdi", "pop rsi", "mov byte ptr [rsi], 1", "xor eax, eax",
            "6:",
            "pop rbp", "pop rbx",
            gpr = const offset_of!(VcpuState, gpr),
            host_rsp = const host::RSP,
            host_rip = const host::RIP,
            measures = sym mitigations::ON,
            rsb = const mitigations::measure::RSB,
            fill = sym mitigations::fill_return_stack,
            out("rax") failed, inout("rdi") page => _, inout("rsi") core::ptr::from_mut(launched) => _,
            inout("rdx") core::ptr::from_mut(host_rsp) => _,
            out("rcx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
    failed != 0
}

/// Writes an MSR that the guest and the host see differently.
#[inline(always)]
pub(super) fn write_if(differs: bool, number: u32, value: u64) {
    if differs {
        // SAFETY: a SYSCALL MSR; the value was checked, or is the host's.
        unsafe { msr::wrmsr(number, value) };
    }
}

#[inline(always)]
pub(super) fn lgdt(table: &TableRegister) {
    // SAFETY: the kernel's own table.
    unsafe { asm!("lgdt [{}]", in(reg) table, options(nostack, preserves_flags, readonly)) };
}

#[inline(always)]
pub(super) fn read_cr2() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr2", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

#[inline(always)]
pub(super) fn write_cr2(value: u64) {
    // SAFETY: the register has no effect.
    unsafe { asm!("mov cr2, {}", in(reg) value, options(nomem, nostack, preserves_flags)) };
}

#[inline(always)]
pub(super) fn read_cr3() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) fn vmclear(phys: u64) {
    // SAFETY: the address of a VMCS page that this module owns.
    unsafe { asm!("vmclear [{}]", in(reg) &phys, options(nostack)) };
}

pub(super) fn vmptrld(phys: u64) {
    // SAFETY: as for `vmclear`; it was cleared since another CPU used it.
    unsafe { asm!("vmptrld [{}]", in(reg) &phys, options(nostack)) };
}

/// VMXON; false if the processor refused.
///
/// # Safety
/// `phys` is a page for this, with the revision in it; CR0, CR4 and the feature control MSR are right.
pub(super) unsafe fn vmxon(phys: u64) -> bool {
    let failed: u8;
    // SAFETY: the caller's contract.
    unsafe { asm!("vmxon [{}]", "setbe {}", in(reg) &phys, out(reg_byte) failed, options(nostack)) };
    failed == 0
}

/// Drops what was cached for one EPT root, or for all where the processor cannot tell.
pub(super) fn invept(single: bool, eptp: u64) {
    let descriptor = [eptp, 0];
    let kind: u64 = if single { 1 } else { 2 };
    // SAFETY: drops caches only.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) &descriptor, options(nostack)) };
}

/// Drops everything tagged with any VPID.
pub(super) fn invvpid_all() {
    let descriptor = [0u64; 2];
    // SAFETY: drops caches only.
    unsafe { asm!("invvpid {}, [{}]", in(reg) 2u64, in(reg) &descriptor, options(nostack)) };
}

/// Calls the kernel's NMI handler for an NMI that ended a guest: NMIs stay blocked until its IRET (SDM 27.5.5).
pub(super) fn call_nmi_handler() {
    // SAFETY: vector 2 has a gate with a stack of its own.
    unsafe { asm!("int 2") };
}
