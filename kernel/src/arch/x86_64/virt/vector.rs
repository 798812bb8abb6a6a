//! XCR0 and the vector registers.
use core::ptr::addr_of;

use moira_kernel_core::vcpu_check::cr4;

use super::block::VcpuHw;
use super::cpu::{CpuVirt, leaf, read_cr0, read_cr4, write_cr0, write_cr4};

/// Bytes of the vector save area.
pub(super) const VECTOR_BYTES: usize = 3072;

/// XCR0 components that the save area can hold on this processor: never more than x87, SSE, AVX and AVX-512.
#[must_use]
pub fn guest_xcr0() -> u64 {
    if leaf(1, 0).ecx & 1 << 26 == 0 {
        return 3;
    }
    let components = leaf(0xd, 0);
    let supported = u64::from(components.eax) | u64::from(components.edx) << 32;
    let fits = |component: u32| {
        let part = leaf(0xd, component);
        supported >> component & 1 != 0 && (part.eax as usize + part.ebx as usize) <= VECTOR_BYTES
    };
    let mut value = supported & 3;
    if fits(2) {
        value |= 4;
        if fits(5) && fits(6) && fits(7) {
            value |= 0xe0;
        }
    }
    value
}

/// Saves the vector registers of the vCPU that owns them and clears them.
///
/// # Safety
/// The registers hold this vCPU's state, on this CPU; interrupts are off.
pub unsafe fn vector_save(cpu: &mut CpuVirt, hw: VcpuHw) {
    let area = hw.vector();
    let clean = addr_of!(cpu.init_vector).cast::<u8>();
    let features = cpu.features;
    with_vector(cpu, |mask| {
        let (low, high) = (mask as u32, (mask >> 32) as u32);
        // SAFETY: the area is 64-byte aligned and large enough for the components of `mask`; the vector unit is on. XSAVEOPT
        // may leave out what is unchanged since the XRSTOR from the same area.
        unsafe {
            if !features.xsave {
                core::arch::asm!("fxsave64 [{}]", "fxrstor64 [{}]", in(reg) area, in(reg) clean, options(nostack));
            } else {
                if features.xsaveopt {
                    core::arch::asm!("xsaveopt64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack));
                } else {
                    core::arch::asm!("xsave64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack));
                }
                core::arch::asm!("xrstor64 [{}]", in(reg) clean, in("eax") low, in("edx") high, options(nostack));
            }
        }
    });
}

/// Loads the vector registers with this vCPU's saved state.
///
/// # Safety
/// The registers hold nobody's state that is still needed; interrupts are off.
pub unsafe fn vector_restore(cpu: &mut CpuVirt, hw: VcpuHw) {
    let area = hw.vector();
    let features = cpu.features;
    with_vector(cpu, |mask| {
        // SAFETY: the area was zeroed or written by XSAVE with the same mask, and only by the kernel, so that it is well-formed.
        unsafe {
            if features.xsave {
                core::arch::asm!("xrstor64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack));
            } else {
                core::arch::asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
            }
        }
    });
}

/// Runs `body` with the vector unit on and XCR0 at all components a guest may have: a guest that cleared a bit of its XCR0
/// keeps the registers behind it.
fn with_vector(cpu: &CpuVirt, body: impl FnOnce(u64)) {
    let all = cpu.limits.xcr0;
    let cr0 = read_cr0();
    // SAFETY: TS and EM off, nothing else changes; put back below.
    unsafe { write_cr0(cr0 & !0xc) };
    if cpu.features.xsave {
        with_xsave(true, || {
            let before = read_xcr0();
            if before != all {
                write_xcr0(all);
            }
            body(all);
            if before != all {
                write_xcr0(before);
            }
        });
    } else {
        with_xsave(false, || body(3));
    }
    // SAFETY: the value that was there.
    unsafe { write_cr0(cr0) };
}

/// Runs `body` with CR4.OSXSAVE (where it exists) and OSFXSR on: both are off while tasks run.
pub(super) fn with_xsave<T>(exists: bool, body: impl FnOnce() -> T) -> T {
    let before = read_cr4();
    let osxsave = if exists { cr4::OSXSAVE } else { 0 };
    // SAFETY: enables instructions, changes no translation; put back below.
    unsafe { write_cr4(before | osxsave | 0x600) };
    let result = body();
    // SAFETY: the value that was there.
    unsafe { write_cr4(before) };
    result
}

pub(super) fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only called under `with_xsave`.
    unsafe { core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(low) | u64::from(high) << 32
}

pub(super) fn write_xcr0(value: u64) {
    // SAFETY: only called under `with_xsave`, with values that `xcr0_valid` accepted or the register held.
    unsafe {
        core::arch::asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}
