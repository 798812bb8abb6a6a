//! Priorities, start-up, timers, destinations and errors of local APICs that are together.

use super::*;
use crate::lapic::{BASE_ENABLE, BASE_X2APIC};
use proptest::prelude::*;

const TIMER_HZ: u64 = 1_000_000_000;
const TSC_HZ: u64 = 2_500_000_000;

fn bus(n: u32) -> ApicBus {
    let ids: Vec<u32> = (0..n).collect();
    let mut b = ApicBus::new(&ids, TIMER_HZ, TSC_HZ);
    for i in 0..n as usize {
        let _ = b.mmio_write(i, 0xF0, 0x1FF, 0);
    }
    b
}

fn fixed(dest: u32, vector: u8) -> Message {
    Message { dest, wide: false, logical: false, level: false, delivery: Delivery::Fixed, vector }
}

#[test]
fn priorities_and_end_of_interrupt() {
    let mut b = bus(1);
    assert!(b.deliver(&fixed(0, 0x35)));
    assert!(b.deliver(&Message { level: true, ..fixed(0, 0x81) }));
    let l = b.get_mut(0).unwrap();
    assert_eq!(l.highest_pending(), Some(0x81));
    l.accept(0x81);
    assert_eq!(l.highest_pending(), None);
    assert_eq!(b.mmio_read(0, 0xA0, 0), 0x80);
    assert_eq!(b.mmio_write(0, 0xB0, 0, 0), EoiBroadcast(Some(0x81)));
    let l = b.get_mut(0).unwrap();
    assert_eq!(l.highest_pending(), Some(0x35));
    l.set_cr8(3);
    assert_eq!(l.highest_pending(), None);
    assert_eq!(b.mmio_read(0, 0x80, 0), 0x30);
    assert_eq!(b.mmio_read(0, 0x210, 0), 1 << 0x15);
}

#[test]
fn init_and_startup_bring_up_a_processor() {
    let mut b = bus(1);
    b = ApicBus { lapics: [Lapic::new(0, true), Lapic::new(1, false)].to_vec(), ..b };
    assert!(b.get(1).unwrap().waits_for_startup());
    let _ = b.mmio_write(0, 0x310, 1 << 24, 0);
    let _ = b.mmio_write(0, 0x300, 0x0000_C500, 0);
    assert_eq!(b.take_event(1), Some(CpuEvent::Init));
    let _ = b.mmio_write(0, 0x300, 0x0000_8500, 0);
    assert_eq!(b.take_event(1), None, "de-assert does nothing");
    let _ = b.mmio_write(0, 0x300, 0x0000_069A, 0);
    let _ = b.mmio_write(0, 0x300, 0x0000_069B, 0);
    assert_eq!(b.take_event(1), Some(CpuEvent::Startup(0x9A)), "the second start-up is lost");
    assert_eq!(b.take_event(1), None);
    assert_eq!(b.take_kicks(), 2);
}

#[test]
fn timer_modes() {
    let mut b = bus(1);
    let _ = b.mmio_write(0, 0x3E0, 3, 0); // divide by 16
    let _ = b.mmio_write(0, 0x320, 0xEF, 0);
    let _ = b.mmio_write(0, 0x380, 1_000_000, 100);
    assert_eq!(b.mmio_read(0, 0x390, 100 + 8_000_000), 500_000);
    assert_eq!(b.next_deadline(), Some(16_000_100));
    b.poll(16_000_099);
    assert_eq!(b.get(0).unwrap().highest_pending(), None);
    b.poll(16_000_100);
    assert_eq!(b.get(0).unwrap().highest_pending(), Some(0xEF));
    assert_eq!((b.next_deadline(), b.mmio_read(0, 0x390, 17_000_000)), (None, 0));
    let _ = b.mmio_write(0, 0x320, 0x2_00EF, 20_000_000);
    let _ = b.mmio_write(0, 0x380, 1_000_000, 20_000_000);
    b.poll(20_000_000 + 3 * 16_000_000 + 5);
    assert_eq!(b.next_deadline(), Some(20_000_000 + 4 * 16_000_000), "the phase is kept");
    let _ = b.mmio_write(0, 0x320, 0x4_00EF, 0);
    assert_eq!(b.next_deadline(), None);
    let _ = b.msr_write(0, 0x6E0, TSC_HZ, 0).unwrap();
    let at = b.next_deadline().unwrap();
    assert!((1_000_000_000..1_000_000_005).contains(&at));
    assert_eq!(b.msr_read(0, 0x6E0, 0), Ok(TSC_HZ));
    b.poll(at);
    assert_eq!(b.msr_read(0, 0x6E0, 0), Ok(0));
}

#[test]
fn the_count_goes_on_between_one_shot_and_periodic() {
    let mut b = bus(1);
    let _ = b.mmio_write(0, 0x3E0, 0xB, 0);
    let _ = b.mmio_write(0, 0x320, 0xEF, 0);
    let _ = b.mmio_write(0, 0x380, 1_000_000, 0);
    let _ = b.mmio_write(0, 0x320, 0x2_00EF, 700_000);
    assert_eq!(b.mmio_read(0, 0x390, 700_000), 300_000);
    assert_eq!(b.next_deadline(), Some(1_000_000));
    b.poll(1_000_000);
    assert_eq!(b.next_deadline(), Some(2_000_000));
    let _ = b.mmio_write(0, 0x320, 0xEF, 1_600_000);
    assert_eq!(b.mmio_read(0, 0x390, 1_600_000), 400_000);
    b.poll(2_000_000);
    assert_eq!((b.next_deadline(), b.mmio_read(0, 0x390, 2_000_000)), (None, 0));
    // Nothing counts, so nothing goes on.
    let _ = b.mmio_write(0, 0x320, 0x2_00EF, 2_000_000);
    assert_eq!((b.next_deadline(), b.mmio_read(0, 0x390, 2_500_000)), (None, 0));
}

#[test]
fn destinations() {
    let mut b = bus(8);
    for i in 0..8 {
        let _ = b.mmio_write(i, 0xD0, 1 << (24 + i), 0);
    }
    let hit =
        |b: &ApicBus, v: u8| (0..8).filter(|&i| b.get(i).unwrap().highest_pending() == Some(v)).collect::<Vec<_>>();
    b.deliver(&Message { logical: true, ..fixed(0b101, 0x40) });
    assert_eq!(hit(&b, 0x40), [0, 2]);
    b.deliver(&fixed(0xFF, 0x50));
    assert_eq!(hit(&b, 0x50).len(), 8);
    for _ in 0..4 {
        b.deliver(&Message { logical: true, delivery: Delivery::Lowest, ..fixed(0xF0, 0x60) });
    }
    assert_eq!(hit(&b, 0x60), [4, 5, 6, 7], "equals take turns");
    for i in 0..8 {
        let _ = b.mmio_write(i, 0xE0, 0x0FFF_FFFF, 0);
        let _ = b.mmio_write(i, 0xD0, ((i as u32 / 4) << 28) | 1 << (24 + i % 4), 0);
    }
    b.deliver(&Message { logical: true, ..fixed(0x16, 0x70) });
    assert_eq!(hit(&b, 0x70), [5, 6]);
    let _ = b.mmio_write(3, 0x300, 0x000C_4080, 0);
    assert_eq!(hit(&b, 0x80), [0, 1, 2, 4, 5, 6, 7]);
}

#[test]
fn x2apic_mode() {
    let ids: Vec<u32> = (0..34).collect();
    let mut b = ApicBus::new(&ids, TIMER_HZ, TSC_HZ);
    for i in 0..34 {
        let base = b.msr_read(i, 0x1B, 0).unwrap();
        assert_eq!(b.msr_read(i, 0x802, 0), Err(GpFault));
        let _ = b.msr_write(i, 0x1B, base | BASE_X2APIC, 0).unwrap();
        let _ = b.msr_write(i, 0x80F, 0x1FF, 0).unwrap();
    }
    assert_eq!(b.msr_read(33, 0x802, 0), Ok(33));
    assert_eq!(b.msr_read(33, 0x80D, 0), Ok(2 << 16 | 2));
    assert_eq!(b.mmio_read(0, 0x20, 0), u32::MAX);
    let _ = b.msr_write(0, 0x830, 0x0002_0003_0000_0841, 0).unwrap();
    assert_eq!(b.take_kicks(), 3 << 32);
    let _ = b.msr_write(5, 0x83F, 0x55, 0).unwrap();
    assert_eq!(b.get(5).unwrap().highest_pending(), Some(0x55));
    for (msr, v) in [(0x80B, 1), (0x802, 0), (0x80D, 0), (0x80E, 0), (0x831, 0), (0x8FF, 0), (0x808, 0x100)] {
        assert!(b.msr_write(0, msr, v, 0).is_err(), "{msr:x}");
    }
    let base = b.msr_read(1, 0x1B, 0).unwrap();
    assert!(b.msr_write(1, 0x1B, base & !BASE_X2APIC, 0).is_err());
    let _ = b.msr_write(1, 0x1B, base & !BASE_X2APIC & !BASE_ENABLE, 0).unwrap();
    assert!(b.get(1).unwrap().takes_pic());
}

#[test]
fn errors_are_reported_once_written() {
    let mut b = bus(1);
    let _ = b.mmio_write(0, 0x370, 0xFE, 0);
    let _ = b.mmio_write(0, 0x300, 0x0004_4005, 0);
    assert_eq!(b.mmio_read(0, 0x280, 0), 0);
    let _ = b.mmio_write(0, 0x280, 0, 0);
    assert_eq!(b.mmio_read(0, 0x280, 0), 0x20);
    assert_eq!(b.get(0).unwrap().highest_pending(), Some(0xFE));
    let _ = b.mmio_write(0, 0x370, 5, 0);
    let _ = b.mmio_write(0, 0x300, 0x0004_4005, 0);
    assert!(b.get(0).unwrap().highest_pending() == Some(0xFE));
}

#[test]
fn two_nmis_wait_and_one_while_a_handler_runs() {
    let mut b = ApicBus::new(&[0], TIMER_HZ, TSC_HZ);
    let apic = b.get_mut(0).unwrap();
    (0..5).for_each(|_| apic.request_nmi());
    assert!(apic.take_nmi() && apic.take_nmi() && !apic.take_nmi());
    (0..5).for_each(|_| apic.request_nmi());
    assert!(apic.take_nmi());
    apic.request_nmi();
    apic.latch_nmis();
    assert!(apic.take_nmi() && !apic.nmi_pending());
}

#[test]
fn lint0_and_lint1() {
    let mut b = ApicBus::new(&[0, 1], TIMER_HZ, TSC_HZ);
    assert!(b.get(0).unwrap().takes_pic());
    assert!(!b.get(1).unwrap().takes_pic());
    b.nmi_button();
    assert!(b.get_mut(0).unwrap().take_nmi());
    assert!(!b.get(1).unwrap().nmi_pending());
    let _ = b.mmio_write(0, 0x350, 0x1_0700, 0);
    assert!(!b.get(0).unwrap().takes_pic());
}

proptest! {
    #[test]
    fn storms_do_not_panic(ops in proptest::collection::vec((0u8..8, 0usize..5, any::<u16>(), any::<u64>(), 0u64..1 << 34), 0..300)) {
        let mut b = ApicBus::new(&[0, 1, 2, 17], TIMER_HZ, TSC_HZ);
        let mut now = 0;
        for (op, cpu, reg, v, dt) in ops {
            now += dt;
            match op {
                0 => { b.mmio_read(cpu, u32::from(reg & 0xFFF), now); }
                1 => { let _ = b.mmio_write(cpu, u32::from(reg & 0x3F0), v as u32, now); }
                2 => { let _ = b.msr_read(cpu, 0x800 | u32::from(reg & 0x3F), now); }
                3 => { let _ = b.msr_write(cpu, 0x800 | u32::from(reg & 0x3F), v & 0xFF_FFFF_FFFF, now); }
                4 => { let _ = b.msr_write(cpu, 0x1B, crate::platform::LAPIC_BASE | v & 0xD00, now); }
                5 => { b.deliver(&Message::from(MsiMessage { address: v, data: u32::from(reg) })); }
                6 => { let _ = b.msr_write(cpu, 0x6E0, v, now); }
                _ => {
                    b.poll(now);
                    for n in 0..4 {
                        prop_assert!(b.get(n).unwrap().next_deadline().is_none_or(|d| d > now));
                        let l = b.get_mut(n).unwrap();
                        if let Some(v) = l.highest_pending() { l.accept(v); prop_assert!(l.ppr() >> 4 >= v >> 4); }
                    }
                }
            }
        }
    }
}
