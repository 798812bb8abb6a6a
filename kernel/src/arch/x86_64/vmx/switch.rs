//! The world switch and the few instructions that have no wrapper elsewhere.
use core::arch::asm;
use core::mem::offset_of;

use moira_abi::vcpu::VcpuState;
use x86::msr;
use x86::vmx::vmcs::{host, ro};

use super::super::mitigations;
use super::super::virt::{Block, CpuVirt, VcpuHw};

/// What [`enter`] answers in place of an exit reason if there was no entry.
pub(super) const REFUSED: u32 = u32::MAX;
/// VM-instruction error: VMRESUME of a VMCS that was not launched since its last VMCLEAR (SDM 30.4).
const UNLAUNCHED: u32 = 5;

/// Enters the guest of the current VMCS; answers the exit reason, or [`REFUSED`]: the general registers in the page are then as
/// they were.
///
/// # Safety
/// The current VMCS is this vCPU's; its controls and host fields other than RSP and RIP are right.
#[inline(always)]
pub(super) unsafe fn enter(page: *mut VcpuState, hw: VcpuHw) -> u32 {
    let reason: u32;
    // SAFETY: `world_switch` keeps RSP, RBX and RBP; the memory clobber is the default.
    unsafe {
        asm!(
            "call {world_switch}", world_switch = sym world_switch,
            out("eax") reason, inout("rdi") page => _, inout("rsi") hw.address() => _,
            out("rcx") _, out("rdx") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _, out("r12") _, out("r13") _,
            out("r14") _, out("r15") _,
        );
    }
    reason
}

/// RDI: state page, RSI: block of the vCPU. Answers in EAX what [`enter`] does; all other registers but RSP, RBX and RBP are lost.
///
/// Host RSP and RIP are written only when the stack pointer is another than last time: this is one piece of code, wherever it is
/// called from. With the measure RSB the exit goes by way of filling the return stack. A VMCS that was cleared, or whose launch
/// failed, is found out by VMRESUME, and launched.
#[unsafe(naked)]
unsafe extern "C" fn world_switch() {
    core::arch::naked_asm!(
        "push rbx", "push rbp", "push rdi",
        "cmp rsp, [rsi + {last_rsp}]",
        "jne 7f",
        "2:",
        "mov rax, [rdi + {gpr}]", "mov rcx, [rdi + {gpr} + 8]", "mov rdx, [rdi + {gpr} + 16]",
        "mov rbx, [rdi + {gpr} + 24]", "mov rbp, [rdi + {gpr} + 40]", "mov rsi, [rdi + {gpr} + 48]",
        "mov r8, [rdi + {gpr} + 64]", "mov r9, [rdi + {gpr} + 72]", "mov r10, [rdi + {gpr} + 80]",
        "mov r11, [rdi + {gpr} + 88]", "mov r12, [rdi + {gpr} + 96]", "mov r13, [rdi + {gpr} + 104]",
        "mov r14, [rdi + {gpr} + 112]", "mov r15, [rdi + {gpr} + 120]", "mov rdi, [rdi + {gpr} + 56]",
        "vmresume",
        "push rax",
        "mov eax, {error}",
        "vmread rax, rax",
        "cmp eax, {unlaunched}",
        "pop rax",
        "jne 4f",
        "vmlaunch",
        "4:",
        "mov eax, {refused}",
        "pop rdi",
        "jmp 6f",
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
        "pop qword ptr [rdi + {gpr} + 56]",
        "pop rdi",
        "mov eax, {reason}",
        "vmread rax, rax",
        "6:",
        "pop rbp", "pop rbx",
        "ret",
        "7:",
        "mov [rsi + {last_rsp}], rsp",
        "mov eax, {host_rsp}",
        "vmwrite rax, rsp",
        "lea rcx, [rip + 5b]",
        "test dword ptr [rip + {measures}], {rsb}",
        "jz 9f",
        "lea rcx, [rip + 8b]",
        "9:",
        "mov eax, {host_rip}",
        "vmwrite rax, rcx",
        "jmp 2b",
        gpr = const offset_of!(VcpuState, gpr),
        last_rsp = const offset_of!(Block, shadow.vmx.host_rsp),
        error = const ro::VM_INSTRUCTION_ERROR,
        unlaunched = const UNLAUNCHED,
        refused = const REFUSED,
        reason = const ro::EXIT_REASON,
        host_rsp = const host::RSP,
        host_rip = const host::RIP,
        measures = sym mitigations::ON,
        rsb = const mitigations::measure::RSB,
        fill = sym mitigations::fill_return_stack,
    );
}

/// Writes an MSR that the guest and the host see differently.
#[inline(always)]
pub(super) fn write_if(differs: bool, number: u32, value: u64) {
    if differs {
        // SAFETY: a SYSCALL MSR; the value was checked, or is the host's.
        unsafe { msr::wrmsr(number, value) };
    }
}

/// The host's GDT with its limit.
#[inline(always)]
pub(super) fn load_gdt(cpu: &CpuVirt) {
    // SAFETY: the kernel's own table.
    unsafe {
        asm!("lgdt [{} + {gdt}]", in(reg) cpu, gdt = const offset_of!(CpuVirt, host.gdt), options(nostack, preserves_flags, readonly));
    }
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
