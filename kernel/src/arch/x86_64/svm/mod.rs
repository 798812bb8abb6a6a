//! AMD SVM (APM 2 chapter 15), with nested paging.
mod exit;
mod state;
mod vmcb;

use core::arch::asm;
use core::mem::offset_of;

use moira_abi::vcpu::{VcpuState, event};
use moira_kernel_core::vcpu_check::efer;
use x86::msr;

use super::virt::{
    CpuVirt, Nmi, Outcome, StatePage, Tags, VcpuHw, become_resident, get, leaf, put, slow, write_spec_ctrl,
};
use super::{apic, mitigations};
pub(super) use moira_kernel_core::vcpu_check::msr_bits_svm as msr_bits;
pub(super) use state::{load_state, store_state};
use vmcb::{Clean, INTERCEPT2, INTERCEPT3, Intercept1, Vmcb, vintr};

const VM_CR: u32 = 0xc001_0114;
const VM_CR_SVMDIS: u64 = 1 << 4;
const VM_HSAVE_PA: u32 = 0xc001_0117;
const TF: u64 = 1 << 8;
/// #DB, #AC, #MC: always.
const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;
/// TLB_CONTROL: every tag.
const FLUSH_ALL: u32 = 1;

/// Whether this SVM will do.
pub(super) fn usable() -> Result<(), &'static str> {
    // SAFETY: VM_CR exists where CPUID says SVM.
    if unsafe { msr::rdmsr(VM_CR) } & VM_CR_SVMDIS != 0 {
        return Err("SVM locked off by firmware");
    }
    if leaf(0x8000_000a, 0).edx & 1 == 0 {
        return Err("SVM without nested paging");
    }
    if leaf(0x8000_000a, 0).ebx < 2 {
        return Err("SVM with fewer than two ASIDs");
    }
    Ok(())
}

/// Turns SVM on. Page 0 of the host's pages is the host save area, page 1 the VMCB that keeps the host's VMLOAD state.
///
/// # Safety
/// As for `virt::enable_cpu`.
pub(super) unsafe fn enable(cpu: &mut CpuVirt) -> Result<(), &'static str> {
    let found = leaf(0x8000_000a, 0);
    cpu.tags = Tags::new(found.ebx - 1);
    cpu.features.next_rip = found.edx & 1 << 3 != 0;
    cpu.features.decode = found.edx & 1 << 7 != 0;
    cpu.features.tcg = leaf(0x4000_0000, 0).ebx == u32::from_le_bytes(*b"TCGT");
    cpu.features.clean = if found.edx & 1 << 5 != 0 { Clean::all().bits() } else { 0 };
    // SAFETY: the MSRs exist; the pages are this module's; VMSAVE writes into the second.
    unsafe {
        msr::wrmsr(msr::IA32_EFER, msr::rdmsr(msr::IA32_EFER) | efer::SVME);
        msr::wrmsr(VM_HSAVE_PA, cpu.pages_phys);
        asm!("vmsave rax", in("rax") cpu.pages_phys + 4096, options(nostack));
    }
    Ok(())
}

/// The vCPU's control block.
#[inline]
fn vmcb<'a>(hw: VcpuHw) -> &'a mut Vmcb {
    // SAFETY: page-aligned, the right size, valid for any bits; `VcpuHw` guarantees one user, who keeps one reference.
    unsafe { &mut *hw.control().cast::<Vmcb>() }
}

/// Controls and the state after reset.
pub(super) fn init(hw: VcpuHw) {
    let vmcb = vmcb(hw);
    // CR8 reads and writes, and CR4 writes, or the guest could turn on what its CPUID does not show; the other control
    // registers are the guest's own under nested paging.
    vmcb.intercept_cr = 1 << 8 | 1 << 20 | 1 << 24;
    vmcb.intercept_dr = 0xffff_ffff;
    vmcb.intercept_exceptions = EXCEPTIONS;
    vmcb.intercept1 = Intercept1::all() - Intercept1::VINTR - Intercept1::IRET;
    vmcb.intercept2 = INTERCEPT2;
    vmcb.intercept3 = intercepts_of_newer();
    vmcb.virtual_interrupt = vintr::MASKING;
    vmcb.nested_control = 1;
    vmcb.asid = 1;
    (vmcb.io_map, vmcb.msr_map) = hw.maps();
    state::reset(vmcb);
}

/// Intercepts for instructions that only newer processors have.
fn intercepts_of_newer() -> u32 {
    let bits = leaf(0x8000_0008, 0).ebx;
    let [broadcast, commit] = INTERCEPT3;
    broadcast * (bits >> 3 & 1) | commit * (bits >> 8 & 1)
}

/// Points the VMCB at the permission maps.
pub(super) fn maps_changed(_cpu: &CpuVirt, hw: VcpuHw) {
    let vmcb = vmcb(hw);
    (vmcb.io_map, vmcb.msr_map) = hw.maps();
    vmcb.clean.remove(Clean::MAPS);
}

/// Makes the vCPU resident, with a tag that is valid on this CPU.
#[cold]
#[inline(never)]
fn prepare(cpu: &mut CpuVirt, hw: VcpuHw) {
    let shadow = hw.shadow();
    let vmcb = vmcb(hw);
    let here = core::ptr::from_ref(cpu) as u64;
    if cpu.resident != hw.address() {
        become_resident(cpu, hw);
    }
    if shadow.cpu != here {
        // Everything cached for this VMCB is another CPU's, or an earlier vCPU's of the same memory.
        shadow.cpu = here;
        shadow.generation = 0;
        vmcb.clean = Clean::empty();
    }
    if shadow.generation != cpu.tags.generation {
        let (tag, flush) = cpu.tags.take();
        shadow.generation = cpu.tags.generation;
        vmcb.asid = tag;
        vmcb.tlb_control = if flush { FLUSH_ALL } else { 0 };
        vmcb.nested_cr3 = shadow.root;
        vmcb.clean.remove(Clean::ASID | Clean::NESTED);
    }
}

/// Enters the guest and classifies its exit.
///
/// # Safety
/// As for `virt::run`.
#[inline(always)]
pub(super) unsafe fn run(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    let shadow = hw.shadow();
    if cpu.resident != hw.address() || shadow.generation != cpu.tags.generation {
        prepare(cpu, hw);
    }
    let block = vmcb(hw);
    block.rax = get!(page, gpr[0]);
    block.rsp = get!(page, gpr[4]);
    if shadow.slow & slow::ONCE != 0 {
        state::deliver_once(hw);
    }
    if shadow.slow & !slow::ONCE != 0 {
        if shadow.slow & (slow::NMI | slow::NMI_WINDOW) == slow::NMI_WINDOW {
            if block.event_inject & event::VALID == 0 {
                if block.tlb_control != 0 {
                    cpu.tags.flush_again();
                }
                return exit::nmi_window(cpu, hw, page, out);
            }
            // What is armed goes in first, as with virtual NMIs; then the guest exits before its next instruction.
            apic::interrupt_this();
        }
        if shadow.nmi == Nmi::Stepping {
            exit::begin_step(hw);
        }
        if shadow.slow & slow::SPEC_CTRL != 0 {
            write_spec_ctrl(shadow.spec_ctrl);
        }
        if shadow.slow & slow::HARDEN != 0 {
            mitigations::before_entry();
        }
    }
    // SAFETY: the caller's contract; the VMCB's controls are this module's, and its state was checked as it was loaded.
    unsafe { enter(page.pointer(), hw.control_phys(), cpu.pages_phys + 4096) };
    let block = vmcb(hw);
    put!(page, gpr[0], block.rax);
    put!(page, gpr[4], block.rsp);
    block.tlb_control = 0;
    block.clean = Clean::from_bits_retain(cpu.features.clean);
    exit::classify(cpu, hw, page, out)
}

/// The world switch: general registers from and to the state page, VMLOAD and VMSAVE state, and VMRUN under GIF = 0 with
/// IF = 1, so that the guest can be interrupted by the host (V_INTR_MASKING) and the host not before STGI, where IF is 0
/// again: what is pending then waits for the caller's STI, but an NMI is taken at STGI.
///
/// # Safety
/// As for `virt::run`; `vmcb` and `host` are physical addresses of control blocks.
#[inline(always)]
unsafe fn enter(page: *mut VcpuState, vmcb: u64, host: u64) {
    const GPR: usize = offset_of!(VcpuState, gpr);
    // SAFETY: every general register is saved by hand or declared; VMRUN restores RSP and RAX; the memory clobber is the
    // default.
    unsafe {
        asm!(
            "push rbx", "push rbp", "push rdi", "push rdx",
            "clgi", "sti",
            "vmload rax",
            "mov rcx, [rdi + {gpr} + 8]", "mov rdx, [rdi + {gpr} + 16]", "mov rbx, [rdi + {gpr} + 24]",
            "mov rbp, [rdi + {gpr} + 40]", "mov rsi, [rdi + {gpr} + 48]", "mov r8, [rdi + {gpr} + 64]",
            "mov r9, [rdi + {gpr} + 72]", "mov r10, [rdi + {gpr} + 80]", "mov r11, [rdi + {gpr} + 88]",
            "mov r12, [rdi + {gpr} + 96]", "mov r13, [rdi + {gpr} + 104]", "mov r14, [rdi + {gpr} + 112]",
            "mov r15, [rdi + {gpr} + 120]", "mov rdi, [rdi + {gpr} + 56]",
            "vmrun rax",
            "vmsave rax",
            "pop rax",
            "vmload rax",
            "pop rax",
            "cli", "stgi",
            "mov [rax + {gpr} + 8], rcx", "mov [rax + {gpr} + 16], rdx", "mov [rax + {gpr} + 24], rbx",
            "mov [rax + {gpr} + 40], rbp", "mov [rax + {gpr} + 48], rsi", "mov [rax + {gpr} + 56], rdi",
            "mov [rax + {gpr} + 64], r8", "mov [rax + {gpr} + 72], r9", "mov [rax + {gpr} + 80], r10",
            "mov [rax + {gpr} + 88], r11", "mov [rax + {gpr} + 96], r12", "mov [rax + {gpr} + 104], r13",
            "mov [rax + {gpr} + 112], r14", "mov [rax + {gpr} + 120], r15",
            "pop rbp", "pop rbx",
            gpr = const GPR,
            inout("rax") vmcb => _, inout("rdi") page => _, inout("rdx") host => _,
            out("rcx") _, out("rsi") _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("r12") _, out("r13") _, out("r14") _, out("r15") _,
        );
    }
}
