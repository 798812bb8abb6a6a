//! Measures against what processors leak: chosen at boot (`moira_kernel_core::mitigations` says which), done here and in `entry.s`.
//!
//! What is off costs nothing: the entry code is patched for what it has to do beyond the usual, and everything else hangs on bits
//! that the paths test anyway (`Cpu::attention`, `Shadow::slow`).

use super::{paging, tables, virt::leaf};
use crate::{
    memory::{DIRECT_MAP, KERNEL_BASE},
    percpu::{Cpu, attention},
};
use core::{
    arch::asm,
    fmt::from_fn,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
};
pub use moira_kernel_core::mitigations::measure;
use moira_kernel_core::mitigations::{Facts, MEASURES, Verdict};
use x86::msr::{IA32_EFER, IA32_LSTAR, rdmsr, wrmsr};

const SPEC_CTRL: u32 = 0x48;
const PRED_CMD: u32 = 0x49;
const ARCH_CAPABILITIES: u32 = 0x10a;
const FLUSH_CMD: u32 = 0x10b;
/// AMD's decode configuration; bit 9 ends Zenbleed.
const DE_CFG: u32 = 0xc001_1029;
/// Automatic IBRS.
const EFER_AIBRSE: u64 = 1 << 21;

/// Bits of [`measure`] that are done.
pub(super) static ON: AtomicU32 = AtomicU32::new(0);
/// SPEC_CTRL of the host.
static HOST_SPEC_CTRL: AtomicU32 = AtomicU32::new(0);

unsafe extern "C" {
    fn entry_syscall_hardened();
    fn entry_interrupt_hardened();
    fn exit_sysret_hardened();
    fn exit_iret_hardened();
    fn patch_interrupt();
    fn patch_sysret();
    fn patch_iret();
    pub(super) fn fill_return_stack();
}

/// Whether any of these is done.
#[inline(always)]
pub fn has(bits: u32) -> bool {
    ON.load(Relaxed) & bits != 0
}

/// What the processor says.
fn facts() -> Facts {
    let (basic, seven, amd21) = (leaf(1, 0), leaf(7, 0), leaf(0x8000_0021, 0));
    let family = basic.eax >> 8 & 15;
    Facts {
        // The end of "AuthenticAMD" or "HygonGenuine".
        amd: matches!(&leaf(0, 0).ecx.to_le_bytes(), b"cAMD" | b"uine"),
        family: if family == 15 { 15 + (basic.eax >> 20 & 255) } else { family },
        model: basic.eax >> 4 & 15 | basic.eax >> 12 & 0xf0,
        virtual_machine: basic.ecx >> 31 != 0,
        leaf7_ebx: seven.ebx,
        leaf7_edx: seven.edx,
        leaf7_2_edx: if seven.eax >= 2 { leaf(7, 2).edx } else { 0 },
        amd8_ebx: leaf(0x8000_0008, 0).ebx,
        amd21_eax: amd21.eax,
        amd21_ecx: amd21.ecx,
        // SAFETY: CPUID says that the register exists.
        capabilities: if seven.edx & 1 << 29 != 0 { unsafe { rdmsr(ARCH_CAPABILITIES) } } else { 0 },
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::On => "on",
        Verdict::Unneeded => "unneeded",
        Verdict::Off => "off",
        Verdict::Missing => "missing",
    }
}

/// Chooses, says so in one line, and patches the entry code (boot processor, before any other runs). `option`: a value of the
/// kernel's command line.
pub fn choose<'a>(option: impl Fn(&str) -> Option<&'a str>) {
    let facts = facts();
    let all_off = option("mitigations") == Some("off");
    let chosen = || MEASURES.iter().map(|one| (one, one.decide(&facts, all_off, option(one.name))));
    let on = chosen().filter(|(_, verdict)| *verdict == Verdict::On).map(|(one, _)| one.bit).sum();
    let told = from_fn(|f| chosen().try_for_each(|(one, verdict)| write!(f, " {}={}", one.name, word(verdict))));
    crate::log!("moira: mitigations:{told}");
    ON.store(on, Relaxed);
    // AMD's automatic IBRS is a bit of EFER, not of SPEC_CTRL.
    let bit = |measure: u32, value: u32| if on & measure != 0 { value } else { 0 };
    let ibrs = if facts.amd { 0 } else { 1 };
    HOST_SPEC_CTRL.store(bit(measure::IBRS, ibrs) | bit(measure::SSBD, 1 << 2) | bit(measure::BHI, 1 << 10), Relaxed);
    if has(measure::PTI | measure::VERW) {
        patch(patch_sysret, exit_sysret_hardened);
        patch(patch_iret, exit_iret_hardened);
    }
    if has(measure::PTI | measure::ENTRY_IBPB | measure::FENCE) {
        patch(patch_interrupt, entry_interrupt_hardened);
    }
}

/// Puts a jump in the place of the code at `place`.
fn patch(place: unsafe extern "C" fn(), to: unsafe extern "C" fn()) {
    let (place, to) = (place as *const () as u64, to as *const () as u64);
    let [a, b, c, d] = (to.wrapping_sub(place + 5) as u32).to_le_bytes();
    // SAFETY: a place that `entry.s` made for this, five bytes or more of whole instructions, reached by the writable mapping of all
    // memory. Nothing has run it yet; the load of CR3 that follows serialises.
    unsafe { ((place - KERNEL_BASE + DIRECT_MAP) as *mut [u8; 5]).write_unaligned([0xe9, a, b, c, d]) }
}

/// Prepares a processor: on it, after its tables were loaded.
pub fn init_cpu(cpu: &Cpu) {
    cpu.measures.set(ON.load(Relaxed) as u64 | (tables::KERNEL_DATA as u64) << 32);
    if has(measure::PTI) {
        cpu.kernel_cr3.set(paging::root());
        cpu.task_cr3.set(paging::task_root());
    }
    if has(measure::PTI | measure::IBPB | measure::RSB) {
        cpu.attention.fetch_or(attention::HARDEN, Relaxed);
    }
    // SAFETY: each register exists where its measure is on: the processor said so, or the command line takes the risk.
    unsafe {
        if has(measure::PTI | measure::ENTRY_IBPB) {
            wrmsr(IA32_LSTAR, entry_syscall_hardened as *const () as u64);
        }
        let spec_ctrl = host_spec_ctrl();
        if spec_ctrl != 0 {
            wrmsr(SPEC_CTRL, spec_ctrl);
        }
        if has(measure::IBRS) && spec_ctrl & 1 == 0 {
            wrmsr(IA32_EFER, rdmsr(IA32_EFER) | EFER_AIBRSE);
        }
        if has(measure::ZENBLEED) {
            wrmsr(DE_CFG, rdmsr(DE_CFG) | 1 << 9);
        }
    }
}

/// SPEC_CTRL outside of guests.
pub fn host_spec_ctrl() -> u64 {
    HOST_SPEC_CTRL.load(Relaxed) as u64
}

/// Loads a space that others must not be seen from. Where tasks run on tables of their own, the exit of the kernel loads them.
#[cold]
pub fn load_space(cpu: &Cpu, root: u64) {
    if has(measure::PTI) {
        cpu.task_cr3.set(root)
    } else {
        paging::load(root)
    }
    barrier();
    after_exit();
}

/// The tables that the next exit to a task leaves loaded.
pub fn loaded(cpu: &Cpu) -> u64 {
    if has(measure::PTI) { cpu.task_cr3.get() } else { paging::loaded() }
}

/// What one space, or vCPU, taught the branch predictor is not used in another.
pub fn barrier() {
    if has(measure::IBPB) {
        // SAFETY: as in `init_cpu`.
        unsafe { wrmsr(PRED_CMD, 1) }
    }
}

/// Before a guest is entered.
#[cold]
#[inline(never)]
pub fn before_entry() {
    if has(measure::L1D) {
        // SAFETY: as in `init_cpu`.
        unsafe { wrmsr(FLUSH_CMD, 1) }
    }
    if has(measure::VERW) {
        let selector = tables::KERNEL_DATA;
        // SAFETY: with a segment that can be written it only clears buffers.
        unsafe { asm!("verw word ptr [{}]", in(reg) &selector, options(nostack, readonly)) }
    }
}

/// After a guest exited, or another space was loaded: no return of the kernel is predicted from calls of the guest's.
pub fn after_exit() {
    if has(measure::RSB) {
        // SAFETY: changes no register.
        unsafe { asm!("call {}", sym fill_return_stack) }
    }
}
