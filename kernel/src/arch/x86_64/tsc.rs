//! The TSC's frequency: what CPUID says if the PIT agrees within 1 %, else what the PIT says. The local APIC timer is measured in the
//! same interval.

use super::{apic, now, port_read, port_write};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

static HZ: AtomicU64 = AtomicU64::new(0);
/// APIC timer ticks per TSC tick, 32.32 fixed point.
static APIC_RATIO: AtomicU64 = AtomicU64::new(0);

/// The PIT's frequency.
const PIT_HZ: u64 = 1_193_182;
/// PIT ticks of one measurement: about 10 ms.
const PIT_TICKS: u64 = 11_932;

/// Ticks per second.
pub fn hz() -> u64 {
    HZ.load(Relaxed)
}

/// APIC timer ticks per TSC tick, 32.32.
pub fn apic_ratio() -> u64 {
    APIC_RATIO.load(Relaxed)
}

/// Measures. The local APIC must be on.
pub fn calibrate() {
    let (tsc, timer) = (0..3).map(|_| measure()).min_by_key(|(tsc, _)| *tsc).unwrap_or((1, 1));
    let measured = tsc * PIT_HZ / PIT_TICKS;
    let told = raw_cpuid::CpuId::new().get_tsc_info().and_then(|info| info.tsc_frequency()).unwrap_or(0);
    let agrees = told != 0 && told.abs_diff(measured) < measured / 100;
    HZ.store(if agrees { told } else { measured }, Relaxed);
    APIC_RATIO.store(((timer as u128) << 32).checked_div(tsc as u128).unwrap_or(1) as u64, Relaxed);
}

/// One run of PIT channel 2 (not connected to an interrupt): TSC ticks and APIC timer ticks in it.
fn measure() -> (u64, u64) {
    let gate = port_read(0x61, 1) & 0xfc;
    port_write(0x61, 1, gate);
    port_write(0x43, 1, 0xb0);
    port_write(0x42, 1, PIT_TICKS as u32 & 0xff);
    port_write(0x42, 1, (PIT_TICKS >> 8) as u32);
    apic::start_measuring();
    port_write(0x61, 1, gate | 1);
    let begin = now();
    // About 10 ms; the bound is for machines without a PIT.
    let mut left = 100_000_000u64;
    while port_read(0x61, 1) & 0x20 == 0 && left > 0 {
        left -= 1;
    }
    let tsc = now() - begin;
    let timer = apic::stop_measuring();
    port_write(0x61, 1, gate);
    (tsc.max(1), timer)
}
