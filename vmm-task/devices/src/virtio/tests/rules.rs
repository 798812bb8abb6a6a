//! What drivers may not do, and what the transport owes to all of them.

use super::block::{Disk, HEADER, STATUS, disk, request};
use super::devices::{Echo, Lent, Port};
use super::*;
use crate::uart::tests::Loop;
use crate::virtio::block::Block;
use crate::virtio::console::Console;
use crate::virtio::entropy::Entropy;
use crate::virtio::{Chain, Queue, QueueError};
use proptest::prelude::*;

#[test]
fn a_driver_has_a_queue_of_256_entries_whatever_the_device_shows() {
    for (entries, taken) in [(32, 32), (256, 256), (512, 16), (24, 16)] {
        let mut g = Guest::new(Box::new(Entropy::new(Box::new(Counter(0)))), p::SLOT_ENTROPY);
        g.entries = Some(entries);
        let (_, mut rings) = g.start(true, feature::VERSION_1);
        let r = &mut rings[0];
        assert_eq!(r.size, taken);
        // The last entry first, as free lists often give them.
        r.next_desc = taken - 1;
        g.offer(r, &[(0x5000, 8, true)]);
        g.kick(r);
        assert_eq!(g.used(r), Some((u32::from(taken) - 1, 8)));
    }
}

#[test]
fn what_a_driver_may_not_do_needs_a_reset() {
    type Sin = fn(&Guest, &mut Ring);
    let sins: &[(Sin, QueueError)] = &[
        (|g, r| g.ram.store_u16(r.avail_gpa() + 2, 2000).unwrap(), QueueError::AvailableIndex),
        (|g, r| g.publish(r, r.size), QueueError::DescriptorIndex),
        (
            |g, r| {
                g.descriptor(r.base, 0, 0x5000, 4, 3, 0);
                g.publish(r, 0);
            },
            QueueError::ChainTooLong,
        ),
        (
            |g, r| {
                g.offer(r, &[(MEMORY as u64 - 4, 8, true)]);
            },
            QueueError::Memory,
        ),
        (
            |g, r| {
                g.offer(r, &[(u64::MAX - 4, 8, true)]);
            },
            QueueError::Memory,
        ),
        (
            |g, r| {
                g.offer(r, &[(0x5000, 8, true), (0x5000, 8, false)]);
            },
            QueueError::Order,
        ),
        (
            |g, r| {
                g.descriptor(r.base, 0, 0x5000, 24, 4, 0);
                g.publish(r, 0);
            },
            QueueError::Indirect,
        ),
        (
            |g, r| {
                g.descriptor(r.base, 0, 0x5000, 16, 4, 0);
                g.descriptor(0x5000, 0, 0x5000, 16, 4, 0);
                g.publish(r, 0);
            },
            QueueError::Indirect,
        ),
    ];
    for (n, (sin, error)) in sins.iter().enumerate() {
        let mut g = Guest::new(Box::new(Entropy::new(Box::new(Counter(0)))), p::SLOT_ENTROPY);
        let (_, mut rings) = g.start(true, !0);
        sin(&g, &mut rings[0]);
        let r = &rings[0];
        let mut alone = Queue::new(r.size);
        (alone.descriptors, alone.available, alone.used, alone.indirect) = (r.base, r.avail_gpa(), r.used_gpa(), true);
        alone.enable(&g.ram).unwrap();
        assert_eq!(alone.pop(&g.ram, &mut Chain::new()), Err(*error), "sin {n}");
        g.kick(&rings[0]);
        assert_eq!(g.status(), 0x4F, "sin {n}");
        assert_eq!(g.board.faults().collect::<Vec<_>>(), [(p::SLOT_ENTROPY, error.text())]);
        assert_eq!(g.interrupt(), Some(0x40), "sin {n}: the configuration interrupt tells");
        // Forgiven after a reset.
        let (_, mut rings) = g.start(true, !0);
        let head = g.offer(&mut rings[0], &[(0x5000, 8, true)]);
        g.ram.store_u16(rings[0].used_gpa() + 2, 0).unwrap();
        g.kick(&rings[0]);
        assert_eq!(g.used(&mut rings[0]), Some((u32::from(head), 8)), "sin {n}");
    }
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let (_, mut g) = disk(4);
    g.probe(true);
    for features in [0u64, feature::VERSION_1 | 1 << 60, feature::VERSION_1 | 1 << 40] {
        g.set_status(0);
        g.set_status(3);
        for i in 0..2 {
            g.write(g.common + 8, 4, i);
            g.write(g.common + 0xC, 4, features >> (32 * i) & 0xFFFF_FFFF);
        }
        g.set_status(0xB);
        assert_eq!(g.status(), 3);
        g.set_status(0xF);
        assert_eq!(g.status() & 4, 0);
    }
}

#[test]
fn nothing_moves_without_bus_mastering_and_all_of_it_after() {
    let mut g = Guest::new(Box::new(Entropy::new(Box::new(Counter(0)))), p::SLOT_ENTROPY);
    let (_, mut rings) = g.start(true, !0);
    g.set_config(4, 2, 2);
    g.offer(&mut rings[0], &[(0x5000, 8, true)]);
    g.kick(&rings[0]);
    g.poll();
    assert_eq!(g.used(&mut rings[0]), None);
    g.set_config(4, 2, 7);
    assert_eq!(g.board.next_deadline(), Some(0));
    g.poll();
    assert!(g.used(&mut rings[0]).is_some());
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let (_, mut g) = disk(77);
    g.probe(true);
    let mut at = g.config(0x34, 1) as u8;
    while (g.config(at, 1), g.config(at + 3, 1)) != (9, 5) {
        at = g.config(at + 1, 1) as u8;
    }
    g.set_config(at + 4, 1, 0);
    g.set_config(at + 8, 4, 0x1000);
    g.set_config(at + 12, 4, 4);
    assert_eq!(g.config(at + 16, 4), 77);
    g.set_config(at + 8, 4, 0x14);
    g.set_config(at + 12, 4, 1);
    g.set_config(at + 16, 1, 3);
    assert_eq!(g.status(), 3);
}

#[test]
fn reset_of_the_machine_is_like_new() {
    let (_, mut g) = disk(4);
    let (_, _) = g.start(true, !0);
    g.board.reset();
    g.write(p::LAPIC_BASE + 0xF0, 4, 0x1FF);
    let (_, mut rings) = g.start(true, !0);
    g.ram.store_u16(rings[0].used_gpa() + 2, 0).unwrap();
    request(&g, 4, 0);
    g.offer(&mut rings[0], &[HEADER, STATUS]);
    g.kick(&rings[0]);
    assert!(g.used(&mut rings[0]).is_some());
    assert_eq!(g.interrupt(), Some(0x41));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A driver that writes anything anywhere: rings full of noise, registers in any order and size.
    #[test]
    fn hostile_driver(seed in any::<u64>(), ops in proptest::collection::vec((0u8..6, any::<u16>(), any::<u64>()), 0..300), which in 0u8..6) {
        let device: Box<dyn VirtioDevice> = match which {
            0 => {
                let d = Disk::default();
                d.0.lock().unwrap().image = std::vec![0; 512 * 64];
                d.0.lock().unwrap().deferred = seed & 1 != 0;
                Box::new(Block::new(Box::new(d), b"x"))
            }
            1 => Box::new(Console::new(Box::new(Loop::default()))),
            3 => Box::new(crate::virtio::net::Net::new(Box::new(Port::default()), [2; 6])),
            5 => Box::new(crate::virtio::vsock::Vsock::new(Box::new(Echo::default()), 3)),
            4 => Box::new(crate::virtio::balloon::Balloon::new(Box::new(Lent::default()))),
            _ => Box::new(Entropy::new(Box::new(Counter(0)))),
        };
        let mut g = Guest::new(device, 4);
        let (_, rings) = g.start(seed & 2 != 0, !0);
        let mut x = seed | 1;
        let mut noise = || { x ^= x << 13; x ^= x >> 7; x ^= x << 17; x };
        for (op, at, v) in ops {
            match op {
                0 => g.write(g.bar + u64::from(at & 0x3FFF), 1 << (v & 3), v >> 2),
                1 => { g.read(g.bar + u64::from(at & 0x3FFF), 1 << (v & 3)); }
                2 => {
                    // Plausible descriptors: small lengths, any flags, addresses mostly in memory.
                    let r = &rings[usize::from(at) % rings.len()];
                    for i in 0..16 {
                        let n = noise();
                        g.descriptor(r.base, i, n & 0x5F_FFFF, (n >> 32) as u32 & 0x1FFF, (n >> 48) as u16 & 7, (n >> 56) as u16 & 31);
                        let _ = g.ram.store_u16(r.avail_gpa() + 4 + 2 * u64::from(i), (n >> 40) as u16 & 15);
                    }
                }
                3 => {
                    let r = &rings[usize::from(at) % rings.len()];
                    let old = g.ram.load_u16(r.avail_gpa() + 2).unwrap();
                    g.ram.store_u16(r.avail_gpa() + 2, old.wrapping_add(v as u16 & 7)).unwrap();
                    g.kick(r);
                }
                4 => g.set_config(at as u8 & 0xFC, 4, v as u32),
                _ => if v & 15 == 0 { g.set_status(0); g.set_config(0x10, 4, g.bar as u32); g.start(seed & 2 != 0, !0); } else { g.poll(); },
            }
        }
        let _ = g.board.next_deadline();
    }
}
