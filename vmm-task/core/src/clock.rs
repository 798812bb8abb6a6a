//! Time: between the TSC and nanoseconds, and from the machine's clock (Motorola MC146818) to seconds since 1970.

/// Bits behind the point.
const SHIFT: u32 = 32;

/// Nanoseconds since the TSC was zero: one multiplication and one shift, since every exit asks.
///
/// The ratio is rounded to 32 bits behind the point, for a TSC of some GHz less than a nanosecond in a second off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TscClock {
    multiplier: u64,
}

impl TscClock {
    /// For a TSC of `hz` ticks a second.
    #[must_use]
    pub const fn new(hz: u64) -> TscClock {
        let hz = if hz == 0 { 1 } else { hz } as u128;
        let multiplier = ((1_000_000_000u128 << SHIFT) + hz / 2) / hz;
        TscClock { multiplier: if multiplier == 0 { 1 } else { multiplier as u64 } }
    }

    /// Nanoseconds at a value of the TSC.
    #[must_use]
    #[inline(always)]
    pub const fn ns(&self, tsc: u64) -> u64 {
        (tsc as u128 * self.multiplier as u128 >> SHIFT) as u64
    }

    /// The least value of the TSC at which [`Self::ns`] is `ns` or more.
    #[must_use]
    pub const fn tsc_at(&self, ns: u64) -> u64 {
        let ticks = ((ns as u128) << SHIFT).div_ceil(self.multiplier as u128);
        if ticks > u64::MAX as u128 { u64::MAX } else { ticks as u64 }
    }
}

/// Register B: hours are 0 to 23.
const HOURS_24: u8 = 2;
/// Register B: numbers are binary, not BCD.
const BINARY: u8 = 4;

/// Seconds since 1970 from seconds, minutes, hours, day, month, year and century, and register B. `None`: no date.
#[must_use]
pub fn unix_seconds(registers: [u8; 7], register_b: u8) -> Option<u64> {
    let number = |value: u8| {
        if register_b & BINARY != 0 {
            return Some(u64::from(value));
        }
        let (tens, ones) = (value >> 4, value & 15);
        (tens < 10 && ones < 10).then_some(u64::from(tens * 10 + ones))
    };
    let [second, minute, hour, day, month, year, century] = registers;
    let afternoon = register_b & HOURS_24 == 0 && hour & 0x80 != 0;
    let hour = number(if register_b & HOURS_24 == 0 { hour & 0x7f } else { hour })?;
    let hour = if register_b & HOURS_24 == 0 { hour % 12 + if afternoon { 12 } else { 0 } } else { hour };
    let (second, minute, day, month) = (number(second)?, number(minute)?, number(day)?, number(month)?);
    let century = number(century).filter(|century| (20..30).contains(century)).unwrap_or(20);
    let year = century * 100 + number(year)?;
    let plausible = second < 60 && minute < 60 && hour < 24 && (1..=31).contains(&day) && (1..=12).contains(&month);
    plausible.then(|| days_since_1970(year, month, day) * 86400 + hour * 3600 + minute * 60 + second)
}

/// Days from 1970-01-01 to a date in or after 2000 (proleptic Gregorian calendar; years are counted from March).
fn days_since_1970(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    // 719,468 days lie between 0000-03-01 and 1970-01-01.
    year * 365 + leap_days + (month * 153 + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_deadline_is_reached_when_its_tick_comes(hz in 50_000_000u64..6_000_000_000, ns in 1u64..1 << 55) {
            let clock = TscClock::new(hz);
            let at = clock.tsc_at(ns);
            prop_assert!(clock.ns(at) >= ns && clock.ns(at - 1) < ns);
            let exact = u128::from(ns) * u128::from(hz) / 1_000_000_000;
            prop_assert!(u128::from(at).abs_diff(exact) <= exact / 500_000_000 + 2);
        }
    }

    #[test]
    fn dates_are_read_in_all_formats() {
        // 2026-01-01 00:00:00, BCD, 24 hours.
        assert_eq!(unix_seconds([0, 0, 0, 1, 1, 0x26, 0x20], HOURS_24), Some(1_767_225_600));
        // 2024-02-29 12:34:56, binary.
        assert_eq!(unix_seconds([56, 34, 12, 29, 2, 24, 20], HOURS_24 | BINARY), Some(1_709_210_096));
        // The same time on a clock of twelve hours: 12 p.m.
        assert_eq!(unix_seconds([0x56, 0x34, 0x92, 0x29, 2, 0x24, 0x20], 0), Some(1_709_210_096));
        assert_eq!(unix_seconds([0xff; 7], 0xff), None);
        assert_eq!(unix_seconds([0, 0, 0, 0, 0, 0, 0], HOURS_24), None);
    }
}
