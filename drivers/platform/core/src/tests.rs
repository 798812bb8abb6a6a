//! Tables of two emulators, and a machine made of nothing else.
//!
//! The files of `tests/data` hold what the firmware left in memory: for each piece its physical address (8 bytes), its length (4), its
//! bytes. `q35.bin`: QEMU 7.2, `-machine q35 -smp 4 -m 512` with two virtio devices, SeaBIOS. `bochs.bin`: Bochs 2.7, two processors,
//! 128 MiB, its own BIOS.

use crate::findings::{self, Route};
use crate::interpreter::{self, Access, Aml};
use crate::machine::{Machine, Shared, Width};
use crate::msi::{self, Kind, Unfit};
use crate::pci;
use crate::power;
use crate::second::Second;
use crate::summary;
use crate::tables::{self, Root, Tables};
use crate::timer;
use crate::value::Value;
use alloc::{string::String, sync::Arc, vec, vec::Vec};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_proto::platform::{Fixed, IoApic, NmiLine, PciAddress, PlatformInfo, Register};
use proptest::prelude::*;
use std::collections::BTreeMap;

const Q35: &[u8] = include_bytes!("../tests/data/q35.bin");
const BOCHS: &[u8] = include_bytes!("../tests/data/bochs.bin");

/// A function's configuration space, and which of its bits can be written.
type Space = ([u8; 256], [u8; 256]);

/// A machine of memory, a few ports, and PCI functions with their writable bits.
#[derive(Clone, Default)]
pub struct Fake {
    pub memory: BTreeMap<u64, u8>,
    pub ports: BTreeMap<u16, u64>,
    pub written: Vec<(u16, u64)>,
    pub functions: BTreeMap<u16, Space>,
    pub clock: Arc<AtomicU64>,
    selected: u64,
}

impl Fake {
    pub fn of(file: &[u8]) -> Fake {
        let mut fake = Fake::default();
        let mut rest = file;
        while !rest.is_empty() {
            let address = u64::from_le_bytes(rest[..8].try_into().unwrap());
            let length = u32::from_le_bytes(rest[8..12].try_into().unwrap()) as usize;
            fake.memory.extend((address..).zip(rest[12..12 + length].iter().copied()));
            rest = &rest[12 + length..];
        }
        fake
    }

    fn function(&mut self, port: u16) -> Option<(&mut Space, usize)> {
        let offset = (self.selected & 0xfc) as usize + usize::from(port - 0xcfc);
        let entry = self.functions.get_mut(&((self.selected >> 8) as u16))?;
        Some((entry, offset))
    }
}

impl Machine for Fake {
    fn load(&mut self, address: u64, width: Width) -> u64 {
        (0..width.bytes()).rev().fold(0, |value, offset| {
            value << 8 | u64::from(*self.memory.get(&address.wrapping_add(offset)).unwrap_or(&0xff))
        })
    }

    fn store(&mut self, address: u64, width: Width, value: u64) {
        for offset in 0..width.bytes() {
            self.memory.insert(address + offset, (value >> (offset * 8)) as u8);
        }
    }

    fn input(&mut self, port: u16, width: Width) -> u64 {
        if (0xcfc..0xd00).contains(&port) {
            let Some((entry, offset)) = self.function(port) else {
                return width.ones();
            };
            let bytes = &entry.0[offset..offset + width.bytes() as usize];
            return bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        }
        if port == 0x608 {
            return (self.clock.load(Relaxed) * timer::PM_HZ / 1_000_000_000) & 0xff_ffff;
        }
        self.ports.get(&port).copied().unwrap_or(width.ones())
    }

    fn output(&mut self, port: u16, width: Width, value: u64) {
        if port == 0xcf8 {
            self.selected = value & 0x7fff_ffff;
        } else if (0xcfc..0xd00).contains(&port) {
            if let Some((entry, offset)) = self.function(port) {
                for index in 0..width.bytes() as usize {
                    let mask = entry.1[offset + index];
                    let byte = (value >> (index * 8)) as u8;
                    entry.0[offset + index] = entry.0[offset + index] & !mask | byte & mask;
                }
            }
        } else {
            self.written.push((port, value));
            if port == 0xb2 {
                self.ports.insert(0x604, 1);
            }
        }
    }

    fn nanoseconds(&mut self) -> u64 {
        self.clock.load(Relaxed)
    }

    fn wait(&mut self, nanoseconds: u64) {
        self.clock.fetch_add(nanoseconds, Relaxed);
    }
}

fn load(file: &[u8]) -> (Fake, Tables) {
    let mut fake = Fake::of(file);
    let root = tables::find_root(&mut fake, None).unwrap();
    let tables = Tables::collect(&mut fake, root).unwrap();
    (fake, tables)
}

fn info(file: &[u8]) -> PlatformInfo {
    summary::read(&load(file).1, 0)
}

#[test]
fn q35_is_read() {
    let info = info(Q35);
    let cpus: Vec<_> = info.cpus.iter().map(|cpu| (cpu.apic_id, cpu.uid, cpu.enabled)).collect();
    assert_eq!(cpus, [(0, 0, true), (1, 1, true), (2, 2, true), (3, 3, true)]);
    let io_apic = IoApic { id: 0, address: 0xfec0_0000, first_gsi: 0 };
    assert_eq!(info.io_apics, [io_apic]);
    let overrides: Vec<_> =
        info.overrides.iter().map(|entry| (entry.irq, entry.gsi, entry.level, entry.active_low)).collect();
    assert_eq!(
        overrides,
        [(0, 2, false, false), (5, 5, true, false), (9, 9, true, false), (10, 10, true, false), (11, 11, true, false)]
    );
    assert_eq!(info.nmi_lines, [NmiLine { uid: None, pin: 1 }]);
    assert_eq!((info.local_apic, info.has_8259), (0xfee0_0000, true));
    assert_eq!(info.ecam.len(), 1);
    assert_eq!((info.ecam[0].address, info.ecam[0].last_bus), (0xb000_0000, 255));
    assert_eq!(
        info.fixed,
        Fixed {
            sci: 9,
            pm_timer: Some(Register::Port(0x608)),
            pm_timer_32: false,
            pm1a_control: Some(Register::Port(0x604)),
            pm1b_control: None,
            smi_command: 0xb2,
            acpi_enable: 2,
            reset: Some((Register::Port(0xcf9), 0xf)),
        }
    );
}

#[test]
fn bochs_is_read() {
    let info = info(BOCHS);
    assert_eq!(info.cpus.iter().filter(|cpu| cpu.enabled).count(), 2);
    assert_eq!(info.io_apics.len(), 1);
    assert_eq!((info.io_apics[0].address, info.io_apics[0].first_gsi), (0xfec0_0000, 0));
    assert_eq!(info.isa_interrupt(0).unwrap().gsi, 2);
    assert_eq!(info.fixed.pm_timer, Some(Register::Port(0xb008)));
    assert_eq!(info.fixed.pm1a_control, Some(Register::Port(0xb004)));
    assert!(info.fixed.reset.is_none() && info.ecam.is_empty());
}

#[test]
fn the_boot_processor_comes_first() {
    let info = summary::read(&load(Q35).1, 2);
    assert_eq!(info.cpus.iter().map(|cpu| cpu.apic_id).collect::<Vec<_>>(), [2, 0, 1, 3]);
}

/// The bridge to ISA, whose registers say where the firmware sent the interrupt links.
fn with_links(fake: &mut Fake, at: PciAddress, links: &[(usize, [u8; 4])]) {
    let mut space = [0; 256];
    put(&mut space, 0, &[0x86, 0x80, 0x18, 0x29, 7, 0, 0x10, 2, 2, 0, 1, 6]);
    for (offset, irqs) in links {
        put(&mut space, *offset, irqs);
    }
    fake.functions.insert(at.0, (space, [0; 256]));
}

/// Both interpreters on one machine's tables.
fn interpret(file: &[u8]) -> findings::Findings {
    let (mut fake, tables) = load(file);
    with_links(&mut fake, PciAddress::new(0, 0x1f, 0), &[(0x60, [10, 5, 11, 9]), (0x68, [3, 4, 6, 7])]);
    with_links(&mut fake, PciAddress::new(0, 1, 0), &[(0x60, [9, 10, 11, 5])]);
    let (machine, tables) = (Shared::new(fake), Arc::new(tables));
    let access = Access::new(machine.clone(), tables.clone());
    assert_eq!(interpreter::agrees(&access, &summary::read(&tables, 0)), Ok(()));
    let first = Aml::load(&access).unwrap();
    first.initialize();
    let mut second = Second::load(&machine, &tables).unwrap();
    findings::gather(&first, Some(&mut second))
}

#[test]
fn both_interpreters_agree_on_q35() {
    let found = interpret(Q35);
    assert_eq!(found.disagreements, Vec::<String>::new());
    assert!(found.agreed > 20, "{}", found.agreed);
    assert_eq!(found.off, Some((0, 0)));
    // q35's slots 0 to 24 begin with pin A on GSI 20 to 23 in turn; slot 31 is fixed.
    let route = |device, pin| {
        let found = found.routes.iter().find(|route| (route.device, route.pin) == (device, pin));
        found.map(|route| (route.gsi, route.level))
    };
    assert_eq!(route(31, 0), Some((16, true)));
    assert_eq!(found.routes.len(), 128);
    assert!(found.routes.iter().all(|route| (16..24).contains(&route.gsi)));
    assert!(found.devices.iter().any(|device| device.1 == "PNP0A08"));
}

#[test]
fn both_interpreters_agree_on_bochs() {
    let found = interpret(BOCHS);
    assert_eq!(found.disagreements, Vec::<String>::new());
    assert!(found.agreed > 10, "{}", found.agreed);
    assert_eq!(found.off, Some((0, 0)));
    assert!(found.devices.iter().any(|device| device.1 == "PNP0A03"));
    // The links' registers were read where they are: devices take links A to D in turn.
    let gsi = |device, pin| {
        let found = found.routes.iter().find(|route| (route.device, route.pin) == (device, pin));
        found.map(|route| route.gsi)
    };
    let mut of_device_2: Vec<_> = (0..4).filter_map(|pin| gsi(2, pin)).collect();
    of_device_2.sort_unstable();
    assert_eq!(of_device_2, [5, 9, 10, 11]);
}

#[test]
fn a_disagreement_is_told() {
    let (fake, tables) = load(Q35);
    let (machine, tables) = (Shared::new(fake), Arc::new(tables));
    let first = Aml::load(&Access::new(machine, tables)).unwrap();
    // The second one has other tables.
    let (other, tables) = load(BOCHS);
    let mut second = Second::load(&Shared::new(other), &tables).unwrap();
    assert!(!findings::gather(&first, Some(&mut second)).disagreements.is_empty());
}

#[test]
fn a_wrong_reading_is_told() {
    let (fake, tables) = load(Q35);
    let tables = Arc::new(tables);
    let access = Access::new(Shared::new(fake), tables.clone());
    let mut info = summary::read(&tables, 0);
    info.cpus[1].apic_id = 7;
    assert!(interpreter::agrees(&access, &info).is_err());
}

#[test]
fn damaged_tables_are_left_out() {
    let (mut fake, tables) = load(Q35);
    let madt = tables.find(b"APIC").unwrap().address;
    *fake.memory.get_mut(&(madt + 50)).unwrap() ^= 1;
    let damaged = Tables::collect(&mut fake, tables.root).unwrap();
    assert!(damaged.find(b"APIC").is_none());
    assert_eq!(damaged.rejected, [madt]);
    let Root::Rsdt(root) = tables.root else { panic!() };
    *fake.memory.get_mut(&(root + 40)).unwrap() ^= 1;
    assert!(Tables::collect(&mut fake, tables.root).is_err());
}

#[test]
fn a_damaged_root_pointer_is_none() {
    let mut fake = Fake::of(Q35);
    let address = fake.memory.keys().copied().find(|address| *address >= 0xe_0000).unwrap();
    assert!(tables::find_root(&mut fake, Some(address)).is_some());
    *fake.memory.get_mut(&(address + 17)).unwrap() ^= 1;
    assert_eq!(tables::find_root(&mut fake, Some(address)), None);
}

/// Replaces bytes of a table and makes its checksum right again.
fn patched(fake: &Fake, table: &tables::Table, changes: &[(usize, u8)]) -> Fake {
    let mut fake = fake.clone();
    let mut bytes = table.bytes().to_vec();
    for (offset, byte) in changes {
        // Not the length: a wrong one is a table of another length.
        let offset = 9 + offset % (bytes.len() - 9);
        bytes[offset] = *byte;
    }
    bytes[9] = 0;
    bytes[9] = bytes.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    fake.memory.extend((table.address..).zip(bytes));
    fake
}

proptest! {
    // Each case reads a whole machine's tables.
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn no_table_breaks_the_reader(which in 0usize..2, signature in 0usize..3, changes in prop::collection::vec((any::<usize>(), any::<u8>()), 0..40)) {
        let (fake, all) = load([Q35, BOCHS][which]);
        let signature = [b"APIC", b"FACP", b"HPET"][signature];
        let table = all.find(signature).unwrap();
        let mut fake = patched(&fake, table, &changes);
        let all = Tables::collect(&mut fake, all.root).unwrap();
        let info = summary::read(&all, 0);
        prop_assert!(info.cpus.len() <= 256);
        prop_assert!(info.overrides.iter().all(|entry| entry.irq < 16));
    }

    #[test]
    fn no_resources_break_the_reader(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = findings::interrupt(&bytes);
    }

    #[test]
    fn frequencies_are_found_within_a_tick(hz in 1_000_000u64..6_000_000_000, milliseconds in 10u64..1000) {
        let (tsc, pm) = (hz * milliseconds / 1000, timer::PM_HZ * milliseconds / 1000);
        let found = timer::frequency(tsc, pm).unwrap();
        prop_assert!(timer::deviation_ppm(found, hz) < 1000);
    }
}

#[test]
fn interrupts_are_read_from_resources() {
    // IRQ 10, level, active low, shared; and IRQ 4 in the short form.
    assert_eq!(findings::interrupt(&[0x23, 0, 4, 0x18, 0x79, 0]), Some((10, true, true)));
    assert_eq!(findings::interrupt(&[0x22, 0x10, 0, 0x79, 0]), Some((4, false, false)));
    // Ports first, then an extended interrupt: level, active high, GSI 0x16.
    let bytes = [0x47, 1, 0, 0, 0, 0, 1, 1, 0x89, 6, 0, 9, 1, 0x16, 0, 0, 0, 0x79, 0];
    assert_eq!(findings::interrupt(&bytes), Some((0x16, true, false)));
    assert_eq!(findings::interrupt(&[0x79, 0]), None);
}

#[test]
fn hardware_ids_are_read() {
    assert_eq!(Value::Integer(0x030a_d041).hardware_id().unwrap(), "PNP0A03");
    assert_eq!(Value::String("QEMU0002".into()).hardware_id().unwrap(), "QEMU0002");
    assert_eq!(Value::Other.hardware_id(), None);
}

#[test]
fn the_clock_is_measured() {
    let mut fake = Fake::of(Q35);
    // The 24-bit timer wraps meanwhile.
    fake.clock.store(4_680_000_000, Relaxed);
    let (clock, fixed) = (fake.clock.clone(), info(Q35).fixed);
    let hz = timer::measure(&mut fake, &fixed, || clock.load(Relaxed) * 3).unwrap();
    assert!(timer::deviation_ppm(hz, 3_000_000_000) < 100, "{hz}");
    assert!(timer::deviation_ppm(3_100_000_000, 3_000_000_000) > timer::TOLERANCE_PPM);
    // A timer that stands still is no clock.
    let stopped = Fixed { pm_timer: Some(Register::Port(0x700)), ..fixed };
    assert_eq!(timer::measure(&mut fake, &stopped, || 5), None);
}

#[test]
fn off_enters_acpi_mode_first() {
    let mut fake = Fake::of(Q35);
    fake.ports.insert(0x604, 0);
    power::off(&mut fake, &info(Q35).fixed, (5, 0));
    assert_eq!(fake.written, [(0xb2, 2), (0x604, 1 | 5 << 10 | 1 << 13)]);
    assert_eq!(power::sleep_types(&Value::Package(vec![Value::Integer(5), Value::Integer(8)])), None);
}

#[test]
fn reset_begins_with_the_tables_word() {
    let mut fake = Fake::of(Q35);
    power::reset(&mut fake, &info(Q35).fixed);
    assert_eq!(fake.written[0], (0xcf9, 0xf));
    assert_eq!(fake.written.last(), Some(&(0x64, 0xfe)));
}

/// Writes a little-endian field.
fn put(space: &mut [u8; 256], offset: usize, bytes: &[u8]) {
    space[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A bridge on bus 0, and behind it a function with both kinds of message.
fn with_pci() -> Fake {
    let mut fake = Fake::default();
    let (mut bridge, mut mask) = ([0; 256], [0; 256]);
    put(&mut bridge, 0, &[0x36, 0x1b, 0x01, 0x00]);
    put(&mut bridge, 8, &[0, 0, 4, 6]);
    bridge[0x0e] = 1;
    bridge[0x19] = 1;
    mask[4] = 7;
    fake.functions.insert(PciAddress::new(0, 3, 0).0, (bridge, mask));
    let (mut card, mut mask) = ([0; 256], [0; 256]);
    put(&mut card, 0, &[0xf4, 0x1a, 0x41, 0x10]);
    put(&mut card, 8, &[1, 0, 0, 2]);
    put(&mut card, 4, &[3, 0, 0x10, 0]);
    put(&mut mask, 4, &[7, 4]);
    // Ports of 32 bytes, and memory of 16 KiB above 4 GiB.
    put(&mut card, 0x10, &[0x01, 0xc0, 0, 0]);
    put(&mut mask, 0x10, &[0xe0, 0xff, 0, 0]);
    put(&mut card, 0x20, &[0x0c, 0, 0, 0xfe, 1, 0, 0, 0]);
    put(&mut mask, 0x20, &[0, 0xc0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    card[0x34] = 0x40;
    card[0x3d] = 2;
    put(&mut card, 0x40, &[0x05, 0x60, 0x80, 0]);
    put(&mut mask, 0x42, &[0x71, 0]);
    put(&mut mask, 0x44, &[0xff; 10]);
    put(&mut card, 0x60, &[0x11, 0x40, 3, 0, 4, 0x20, 0, 0]);
    put(&mut mask, 0x62, &[0, 0xc0]);
    fake.functions.insert(PciAddress::new(1, 2, 0).0, (card, mask));
    fake
}

#[test]
fn functions_behind_bridges_are_found_whole() {
    let mut fake = with_pci();
    let before = fake.functions.clone();
    let found = pci::enumerate(&mut fake, &[]);
    assert_eq!(fake.functions, before, "looking changes nothing");
    let [bridge, card] = &found[..] else { panic!("{found:?}") };
    assert_eq!(bridge.secondary_bus, Some(1));
    assert_eq!((card.vendor, card.device, card.class, card.pin), (0x1af4, 0x1041, 0x02_0000, 2));
    let bars: Vec<_> = card.bars.iter().map(|bar| (bar.index, bar.ports, bar.address, bar.size)).collect();
    assert_eq!(bars, [(0, true, 0xc000, 32), (4, false, 0x1_fe00_0000, 0x4000)]);
    assert_eq!(card.msi, Some((0x40, 1)));
    let msix = card.msix.unwrap();
    assert_eq!((msix.capability, msix.entries, msix.bar, msix.offset), (0x60, 4, 4, 0x2000));
    // Device 2, pin B, behind device 3: pin (1 + 2) mod 4 = D.
    let route = Route { bus: 0, device: 3, pin: 3, gsi: 19, level: true, active_low: true };
    assert_eq!(pci::route(&found, &[route], card.address), Some(route));
    assert_eq!(pci::route(&found, &[], card.address), None);
}

#[test]
fn messages_are_set_up() {
    let mut fake = with_pci();
    let mut card = pci::enumerate(&mut fake, &[]).remove(1);
    assert_eq!(msi::set_up(&mut fake, &card, 4, (0xfee0_0000, 50)), Err(Unfit::NoMessage));
    assert_eq!(msi::set_up(&mut fake, &card, 1, (0xfee0_1000, 50)), Ok(Kind::MsiX));
    let entry = 0x1_fe00_2010;
    let words: Vec<_> = (0..4).map(|word| fake.load(entry + word * 4, Width::Long)).collect();
    assert_eq!(words, [0xfee0_1000, 0, 50, 0]);
    assert_eq!(fake.functions[&card.address.0].0[0x63] & 0xc0, 0x80, "on, not masked");
    card.msix = None;
    assert_eq!(msi::set_up(&mut fake, &card, 0, (0xfee0_2000, 51)), Ok(Kind::Msi));
    let space = fake.functions[&card.address.0].0;
    assert_eq!((space[0x42] & 1, &space[0x44..0x48], space[0x4c]), (1, &[0, 0x20, 0xe0, 0xfe][..], 51));
    assert_eq!(space[4..6], [7, 4], "bus master, pin off");
    // A table that does not lie in its register's range is not written.
    let mut card = pci::enumerate(&mut fake, &[]).remove(1);
    card.bars.clear();
    assert_eq!(msi::set_up(&mut fake, &card, 0, (0xfee0_0000, 50)), Err(Unfit::NoTable));
}

#[test]
fn a_bridge_that_names_its_own_bus_ends() {
    let mut fake = with_pci();
    fake.functions.get_mut(&PciAddress::new(0, 3, 0).0).unwrap().0[0x19] = 0;
    assert_eq!(pci::enumerate(&mut fake, &[]).len(), 1);
}
