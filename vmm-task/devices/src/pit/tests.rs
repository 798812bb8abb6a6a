//! The timer as Linux calibrates by it, and each mode.

use super::*;
use proptest::prelude::*;

#[test]
fn linux_quick_calibration_sees_the_right_rate() {
    let mut p = Pit::new();
    p.write(0x61, 1, 0);
    p.write(0x43, 0xB0, 0);
    p.write(0x42, 0xFF, 0);
    p.write(0x42, 0xFF, 0);
    // After 25 ms, 29,829 counts have passed.
    let at = 25_000_000;
    let lo = p.read(0x42, at);
    let hi = p.read(0x42, at);
    let count = u16::from(hi) << 8 | u16::from(lo);
    assert_eq!(0xFFFF - count, 29_829);
}

#[test]
fn channel_2_mode_0_raises_port_61_bit_5_on_time() {
    let mut p = Pit::new();
    p.write(0x61, 1, 0);
    p.write(0x43, 0xB0, 0);
    // 50 ms: 59,659 counts
    p.write(0x42, 59_659u16 as u8, 0);
    p.write(0x42, (59_659u16 >> 8) as u8, 0);
    assert_eq!(p.read(0x61, 49_999_000) & 0x20, 0);
    assert_eq!(p.read(0x61, 50_001_000) & 0x20, 0x20);
}

#[test]
fn periodic_ticks_keep_their_rate_over_an_hour() {
    let mut p = Pit::new();
    p.write(0x43, 0x34, 0);
    // 250 Hz
    p.write(0x40, 4773u16 as u8, 0);
    p.write(0x40, (4773u16 >> 8) as u8, 0);
    let mut ticks = 0u64;
    while let Some(d) = p.next_deadline() {
        if d > 3600 * 1_000_000_000 {
            break;
        }
        assert!(!p.poll(d - 1));
        assert!(p.poll(d));
        ticks += 1;
    }
    assert_eq!(ticks, 3600 * PIT_HZ / 4773);
    assert_eq!(p.missed(), 0);
}

#[test]
fn ticks_that_are_owed_are_paid_but_not_for_ever() {
    let mut p = Pit::new();
    p.write(0x43, 0x34, 0);
    p.write(0x40, 0xA9, 0);
    p.write(0x40, 0x04, 0); // 1193 counts: a millisecond
    let mut run = |from: u64, to: u64| {
        let mut n = u64::from(p.poll(from));
        while let Some(d) = p.next_deadline().filter(|&d| d <= to) {
            n += u64::from(p.poll(d));
        }
        (n, p.missed())
    };
    assert_eq!(run(0, 99_990_000).0, 100);
    // Not run for 50 ms: all of them come, within the next 50 ms.
    assert_eq!(run(149_990_000, 199_990_000), (100, 0));
    // Not run for 10 s: one second is paid.
    let (n, missed) = run(10_199_990_000, 12_199_990_000);
    assert!((2995..=3005).contains(&n) && (8995..=9005).contains(&missed), "{n} {missed}");
}

#[test]
fn one_shot_modes_fire_once() {
    for mode in [0x30, 0x38] {
        let mut p = Pit::new();
        p.write(0x43, mode, 0);
        p.write(0x40, 0, 1000);
        p.write(0x40, 0x10, 1000);
        let d = p.next_deadline().unwrap();
        assert!(d > 3_400_000 && d < 3_450_000, "{d}");
        assert!(p.poll(d));
        assert_eq!(p.next_deadline(), None);
        assert!(!p.poll(d * 2));
    }
}

#[test]
fn read_back_latches_status_and_count() {
    let mut p = Pit::new();
    p.write(0x43, 0x36, 0);
    p.write(0x40, 0, 0);
    p.write(0x40, 0x80, 0);
    p.write(0x43, 0xC2, 1_000_000);
    assert_eq!(p.read(0x40, 2_000_000) & 0x3F, 0x36);
    let lo = p.read(0x40, 3_000_000);
    let hi = p.read(0x40, 4_000_000);
    let c = u32::from(hi) << 8 | u32::from(lo);
    assert_eq!(c, 0x8000 - 2 * 1193);
}

#[test]
fn gate_stops_and_starts_mode_0() {
    let mut p = Pit::new();
    p.write(0x43, 0xB0, 0);
    p.write(0x42, 0, 0);
    p.write(0x42, 0x10, 0);
    p.write(0x43, 0x80, 10_000_000);
    assert_eq!((p.read(0x42, 0), p.read(0x42, 0)), (0, 0x10), "gate low: did not count");
    p.write(0x61, 1, 10_000_000);
    p.write(0x61, 0, 11_000_000);
    assert_eq!(p.read(0x61, 99_000_000) & 0x20, 0);
    p.write(0x61, 1, 99_000_000);
    assert_eq!(p.read(0x61, 102_000_000) & 0x20, 0x20);
}

proptest! {
    #[test]
    fn storms_do_not_panic_and_deadlines_move_on(ops in proptest::collection::vec((0u8..3, 0usize..5, any::<u8>(), 0u64..1 << 36), 0..200)) {
        let ports = [0x40, 0x41, 0x42, 0x43, 0x61];
        let mut p = Pit::new();
        let mut now = 0;
        for (op, port, v, dt) in ops {
            now += dt;
            match op {
                0 => { p.read(ports[port], now); }
                1 => p.write(ports[port], v, now),
                _ => { p.poll(now); prop_assert!(p.next_deadline().is_none_or(|d| d > now)); }
            }
        }
    }
}
