//! The local APIC, in xAPIC mode (MMIO) or x2APIC mode (MSRs): timer, end of interrupt, interrupts between processors
//! (SDM 11, APM 16).

use super::{paging, tsc};
use crate::percpu::Cpu;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use x86::{
    apic::xapic::*,
    msr::{IA32_APIC_BASE, IA32_TSC_DEADLINE, rdmsr, wrmsr},
};

/// Vector of the timer.
pub const TIMER: u8 = 0xf1;
/// Vector of interrupts between processors.
pub const CALL: u8 = 0xf2;
/// Vector of spurious interrupts.
pub const SPURIOUS: u8 = 0xff;

static MMIO: AtomicU64 = AtomicU64::new(0);
static X2APIC: AtomicBool = AtomicBool::new(false);
static DEADLINE: AtomicBool = AtomicBool::new(false);

fn read(register: u32) -> u32 {
    // SAFETY: the register exists in both modes; the page is mapped uncached for the kernel alone.
    unsafe {
        if X2APIC.load(Relaxed) {
            rdmsr(0x800 + (register >> 4)) as u32
        } else {
            ((MMIO.load(Relaxed) + register as u64) as *const u32).read_volatile()
        }
    }
}

#[inline(always)]
fn write(register: u32, value: u32) {
    // SAFETY: as for `read`; what is written is the kernel's own configuration.
    unsafe {
        if X2APIC.load(Relaxed) {
            wrmsr(0x800 + (register >> 4), value as u64);
        } else {
            ((MMIO.load(Relaxed) + register as u64) as *mut u32).write_volatile(value);
        }
    }
}

/// Switches this processor's APIC on. Answers its id.
pub fn init() -> u32 {
    let features = raw_cpuid::CpuId::new().get_feature_info();
    let x2apic = features.as_ref().is_some_and(|f| f.has_x2apic());
    // SAFETY: the APIC base MSR exists on every 64-bit processor; bits 10 and 11 switch modes as CPUID allows.
    let base = unsafe {
        let base = rdmsr(IA32_APIC_BASE);
        wrmsr(IA32_APIC_BASE, base | 1 << 11);
        if x2apic {
            wrmsr(IA32_APIC_BASE, base | 3 << 10);
        }
        base & 0x000f_ffff_ffff_f000
    };
    X2APIC.store(x2apic, Relaxed);
    DEADLINE.store(features.is_some_and(|f| f.has_tsc_deadline()), Relaxed);
    if !x2apic && MMIO.load(Relaxed) == 0 {
        MMIO.store(paging::map_device(base), Relaxed);
    }
    write(XAPIC_LVT_LINT0, 1 << 16);
    write(XAPIC_LVT_LINT1, 4 << 8);
    write(XAPIC_LVT_ERROR, 1 << 16);
    write(XAPIC_TIMER_DIV_CONF, 0xb);
    write(XAPIC_LVT_TIMER, TIMER as u32);
    write(XAPIC_SVR, 0x100 | SPURIOUS as u32);
    if x2apic { read(XAPIC_ID) } else { read(XAPIC_ID) >> 24 }
}

/// After calibration: uses the TSC deadline mode where there is one.
pub fn init_timer() {
    if DEADLINE.load(Relaxed) {
        write(XAPIC_LVT_TIMER, 2 << 17 | TIMER as u32);
    }
}

/// Whether the x2APIC is in use.
pub fn is_x2apic() -> bool {
    X2APIC.load(Relaxed)
}

/// Begins measuring the timer's frequency.
pub fn start_measuring() {
    write(XAPIC_LVT_TIMER, 1 << 16 | TIMER as u32);
    write(XAPIC_TIMER_INIT_COUNT, u32::MAX);
}

/// Ticks since then.
pub fn stop_measuring() -> u64 {
    let ticks = u32::MAX - read(XAPIC_TIMER_CURRENT_COUNT);
    write(XAPIC_TIMER_INIT_COUNT, 0);
    write(XAPIC_LVT_TIMER, TIMER as u32);
    ticks as u64
}

/// End of interrupt.
#[inline(always)]
pub fn end_of_interrupt() {
    write(XAPIC_EOI, 0);
}

/// Makes the timer fire at a TSC value. Written only if it changed; a deadline already past fires at once.
#[inline(always)]
pub fn set_timer(cpu: &Cpu, deadline: u64, now: u64) {
    if cpu.timer.get() == deadline {
        return;
    }
    cpu.timer.set(deadline);
    if DEADLINE.load(Relaxed) {
        // SAFETY: CPUID has the deadline mode. 0 would disarm: deadlines are never 0.
        unsafe { wrmsr(IA32_TSC_DEADLINE, deadline) };
        return;
    }
    let ticks = (deadline.saturating_sub(now) as u128 * tsc::apic_ratio() as u128) >> 32;
    // One more tick: the timer never fires before the deadline by rounding. Very far deadlines fire early and are set again.
    write(XAPIC_TIMER_INIT_COUNT, (ticks + 1).min(u32::MAX as u128) as u32);
}

/// Interrupts another processor.
pub fn interrupt_cpu(apic_id: u32) {
    command(apic_id, 0x4000 | CALL as u32);
}

/// Interrupts this processor as soon as it can be.
pub fn interrupt_this() {
    const SELF: u32 = 1 << 18;
    command(0, SELF | 0x4000 | CALL as u32);
}

pub fn command(apic_id: u32, low: u32) {
    if X2APIC.load(Relaxed) {
        // SAFETY: the x2APIC's interrupt command register.
        unsafe { wrmsr(0x830, (apic_id as u64) << 32 | low as u64) };
        return;
    }
    write(XAPIC_ICR1, apic_id << 24);
    write(XAPIC_ICR0, low);
    for _ in 0..10_000 {
        if read(XAPIC_ICR0) & 1 << 12 == 0 {
            break;
        }
    }
}

/// First step of starting a processor (SDM 9.4.4): it stops, and waits for [`startup`]. Also what ends an attempt.
pub fn reset_cpu(apic_id: u32) {
    command(apic_id, 0xc500);
}

/// Second and third step: it runs the code at `page * 4096`.
pub fn startup(apic_id: u32, page: u8) {
    command(apic_id, 0x4600 | page as u32);
}
