//! Who gets an interrupt message: the bus of local APICs against a small model of what the manual says (SDM 3A, 11.6.2 and
//! 11.12.10), for commands from every processor in every mode.

use proptest::prelude::*;
use std::collections::BTreeSet;
use vmm_devices::apic_bus::{ApicBus, Delivery, Message};

/// How a processor's APIC is set.
#[derive(Clone, Copy, Debug)]
enum Mode {
    /// xAPIC, flat, with this logical id.
    Flat(u8),
    /// xAPIC, clusters, with this logical id.
    Cluster(u8),
    /// x2APIC.
    Wide,
    /// Switched off by software.
    Off,
}

fn mode() -> impl Strategy<Value = Mode> {
    prop_oneof![3 => any::<u8>().prop_map(Mode::Flat), 3 => any::<u8>().prop_map(Mode::Cluster), 3 => Just(Mode::Wide), 1 => Just(Mode::Off)]
}

fn bus(modes: &[Mode]) -> ApicBus {
    let ids: Vec<u32> = (0..modes.len() as u32).collect();
    let mut bus = ApicBus::new(&ids, 1_000_000_000, 1_000_000_000);
    for (cpu, mode) in modes.iter().enumerate() {
        let _ = bus.mmio_write(cpu, 0xf0, 0x1ff, 0);
        match *mode {
            Mode::Flat(id) => {
                let _ = bus.mmio_write(cpu, 0xd0, u32::from(id) << 24, 0);
            }
            Mode::Cluster(id) => {
                let _ = bus.mmio_write(cpu, 0xe0, 0x0fff_ffff, 0);
                let _ = bus.mmio_write(cpu, 0xd0, u32::from(id) << 24, 0);
            }
            Mode::Wide => {
                let base = bus.msr_read(cpu, 0x1b, 0).unwrap();
                let _ = bus.msr_write(cpu, 0x1b, base | 1 << 10, 0).unwrap();
            }
            Mode::Off => {
                let _ = bus.mmio_write(cpu, 0xf0, 0xff, 0);
            }
        }
    }
    bus
}

/// Whether the processor is among a destination's, by the manual.
fn named(cpu: usize, mode: Mode, dest: u32, logical: bool, wide: bool) -> bool {
    if dest == if wide { u32::MAX } else { 0xff } {
        return true;
    }
    if !logical {
        return cpu as u32 == dest;
    }
    match mode {
        Mode::Flat(id) => u32::from(id) & dest & 0xff != 0,
        Mode::Cluster(id) => u32::from(id) >> 4 == dest >> 4 & 15 && u32::from(id) & dest & 15 != 0,
        Mode::Wide => dest >> 16 == cpu as u32 >> 4 && 1 << (cpu & 15) & dest & 0xffff != 0,
        // Its logical destination is that of reset: none, flat.
        Mode::Off => false,
    }
}

fn requested(bus: &ApicBus, vector: u8) -> BTreeSet<usize> {
    (0..bus.len()).filter(|&cpu| bus.get(cpu).unwrap().highest_requested() == Some(vector)).collect()
}

fn is_off(mode: Mode) -> bool {
    matches!(mode, Mode::Off)
}

proptest! {
    #[test]
    fn fixed_messages_reach_whom_they_name(modes in prop::collection::vec(mode(), 1..9), dest in 0u32..0x140, logical: bool, vector in 16u8..) {
        let mut bus = bus(&modes);
        let dest = dest & 0xff;
        let message = Message { dest, wide: false, logical, level: false, delivery: Delivery::Fixed, vector };
        bus.deliver(&message);
        let model: BTreeSet<usize> = modes.iter().enumerate()
            .filter(|&(cpu, mode)| !is_off(*mode) && named(cpu, *mode, dest, logical, false)).map(|(cpu, _)| cpu).collect();
        prop_assert_eq!(requested(&bus, vector), model.clone());
        // Whoever got something is told, and nobody else.
        prop_assert_eq!(bus.take_kicks(), model.iter().fold(0, |bits, cpu| bits | 1 << cpu));
    }

    #[test]
    fn lowest_priority_reaches_exactly_one_with_the_least(
        modes in prop::collection::vec(mode(), 1..9), dest in 0u32..0x100, priorities in prop::collection::vec(0u8..16, 9), vector in 16u8..
    ) {
        let mut bus = bus(&modes);
        for (cpu, priority) in priorities.iter().enumerate().take(modes.len()) {
            bus.get_mut(cpu).unwrap().set_cr8(*priority);
        }
        bus.deliver(&Message { dest, wide: false, logical: true, level: false, delivery: Delivery::Lowest, vector });
        let model: Vec<usize> = modes.iter().enumerate()
            .filter(|&(cpu, mode)| !is_off(*mode) && named(cpu, *mode, dest, true, false)).map(|(cpu, _)| cpu).collect();
        let got = requested(&bus, vector);
        prop_assert_eq!(got.len(), usize::from(!model.is_empty()));
        let least = model.iter().map(|&cpu| priorities[cpu]).min();
        prop_assert!(got.iter().all(|cpu| model.contains(cpu) && Some(priorities[*cpu]) == least));
    }

    #[test]
    fn commands_follow_shorthand_and_mode(
        modes in prop::collection::vec(mode(), 1..9), from in 0usize..8, dest: u32, logical: bool, shorthand in 0u32..4, vector in 16u8..
    ) {
        let from = from % modes.len();
        prop_assume!(!is_off(modes[from]));
        let mut bus = bus(&modes);
        let wide = matches!(modes[from], Mode::Wide);
        // Mostly destinations that exist.
        let dest = if wide { if dest & 1 == 0 { dest >> 1 & 0xff } else { dest } } else { dest & 0xff };
        let low = u32::from(vector) | u32::from(logical) << 11 | shorthand << 18;
        if wide {
            let _ = bus.msr_write(from, 0x830, u64::from(dest) << 32 | u64::from(low), 0).unwrap();
        } else {
            let _ = bus.mmio_write(from, 0x310, dest << 24, 0);
            let _ = bus.mmio_write(from, 0x300, low, 0);
        }
        let model: BTreeSet<usize> = modes.iter().enumerate().filter(|&(cpu, mode)| !is_off(*mode) && match shorthand {
            0 => named(cpu, *mode, dest, logical, wide),
            1 => cpu == from,
            2 => true,
            _ => cpu != from,
        }).map(|(cpu, _)| cpu).collect();
        prop_assert_eq!(requested(&bus, vector), model);
    }
}
