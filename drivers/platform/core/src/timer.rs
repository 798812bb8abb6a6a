//! The TSC against the PM timer (ACPI 6.5, 4.8.2.1).

use crate::machine::{Machine, Width};
use moira_proto::platform::{Fixed, Register};

/// Ticks of the PM timer in a second.
pub const PM_HZ: u64 = 3_579_545;
/// Largest difference between two clocks that is no mistake, in parts per million: 1 %.
pub const TOLERANCE_PPM: u64 = 10_000;
/// How long is measured: far longer than a read takes, far shorter than a 24-bit timer's 4.6 s.
const SPAN_NS: u64 = 50_000_000;
/// Reads to choose the quickest from: this task may be interrupted in any of them.
const TRIES: u32 = 8;

/// The TSC's frequency, if `tsc` ticks passed in `pm` ticks of the PM timer.
#[must_use]
pub fn frequency(tsc: u64, pm: u64) -> Option<u64> {
    let hz = u128::from(tsc) * u128::from(PM_HZ) / u128::from((pm > 0).then_some(pm)?);
    u64::try_from(hz).ok()
}

/// How far `measured` is from `claimed`, in parts per million of `claimed`.
#[must_use]
pub fn deviation_ppm(measured: u64, claimed: u64) -> u64 {
    if claimed == 0 {
        return u64::MAX;
    }
    let ppm = u128::from(measured.abs_diff(claimed)) * 1_000_000 / u128::from(claimed);
    u64::try_from(ppm).unwrap_or(u64::MAX)
}

/// PM timer ticks from `start` to `end`, over at most one wrap.
#[must_use]
pub const fn elapsed(start: u32, end: u32, bits_32: bool) -> u32 {
    let difference = end.wrapping_sub(start);
    if bits_32 { difference } else { difference & 0xff_ffff }
}

/// One look at both clocks: the TSC in the middle of the quickest of several reads of the PM timer.
fn look(machine: &mut impl Machine, timer: Register, tsc: &impl Fn() -> u64) -> (u64, u32) {
    let mut best = (u64::MAX, 0, 0);
    for _ in 0..TRIES {
        let before = tsc();
        let ticks = machine.read_register(timer, Width::Long) as u32;
        let took = tsc().wrapping_sub(before);
        if took < best.0 {
            best = (took, before + took / 2, ticks);
        }
    }
    (best.1, best.2)
}

/// Measures the TSC's frequency. `None`: there is no PM timer, or it stands still.
pub fn measure(machine: &mut impl Machine, fixed: &Fixed, tsc: impl Fn() -> u64) -> Option<u64> {
    let timer = fixed.pm_timer?;
    let start = look(machine, timer, &tsc);
    machine.wait(SPAN_NS);
    let end = look(machine, timer, &tsc);
    let pm = elapsed(start.1, end.1, fixed.pm_timer_32);
    frequency(end.0.wrapping_sub(start.0), pm.into())
}
