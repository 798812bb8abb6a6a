//! Which virtualization extension the machine has, and the processors' parts of it.

use super::virt::{self, CpuVirt, Vendor};
use crate::percpu::Cpu;
use core::sync::atomic::{AtomicU32, Ordering::*};
use moira_abi::boot::virtualization;

static VENDOR: AtomicU32 = AtomicU32::new(virtualization::NONE);

/// The extension in use.
#[inline(always)]
pub fn vendor() -> Option<Vendor> {
    match VENDOR.load(Relaxed) {
        virtualization::VMX => Some(Vendor::Vmx),
        virtualization::SVM => Some(Vendor::Svm),
        _ => None,
    }
}

/// Whether guest spaces are EPT.
#[inline(always)]
pub fn is_vmx() -> bool {
    VENDOR.load(Relaxed) == virtualization::VMX
}

/// Switches the extension on, on the boot processor. Answers `virtualization`.
pub fn choose(vendor: Vendor, cpu: &Cpu) -> u32 {
    VENDOR.store(vendor as u32, Relaxed);
    if !enable(cpu) {
        VENDOR.store(virtualization::NONE, Relaxed);
    }
    VENDOR.load(Relaxed)
}

/// Switches it on, on this processor. A processor where that fails runs no guests.
pub fn enable(cpu: &Cpu) -> bool {
    let Some(vendor) = vendor() else { return false };
    // SAFETY: once per processor, after its tables were loaded; the pages were laid out for this (`smp::prepare`).
    match unsafe { virt::enable_cpu(vendor, cpu.virt_pages.get()) } {
        Ok(state) => {
            cpu.virt.set(state);
            true
        }
        Err(why) => {
            crate::log!("moira: cpu {}: no virtual machines: {why}", cpu.index);
            false
        }
    }
}

/// A processor's part, if it can run guests. Interrupts are off in the kernel and nothing else runs on this CPU's stack, so the
/// reference is the only one while it is used.
#[inline(always)]
#[allow(clippy::mut_from_ref)]
pub fn of(cpu: &Cpu) -> Option<&mut CpuVirt> {
    // SAFETY: set once by `enable`; see above.
    unsafe { cpu.virt.get().as_mut() }
}
