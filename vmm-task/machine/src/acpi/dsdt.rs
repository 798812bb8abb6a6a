//! The DSDT: what the fixed tables cannot say, as AML.

use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If, Local,
    Memory32Fixed, Method, Name, NotEqual, ONE, Or, Package, Path, ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};
use alloc::vec::Vec;

/// `_STA`: present, enabled, shown, working.
const STA_PRESENT: u8 = 0x0F;
const PCI_SLOTS: u8 = 32;
/// The interface of a PCI host bridge's `_OSC` (PCI Firmware Specification 3.3, 4.5.1).
const PCI_OSC_UUID: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
/// `_OSC` status: an unknown interface was named.
const OSC_UNKNOWN_UUID: u8 = 1 << 2;
/// `_OSC` status: an unknown revision was named.
const OSC_UNKNOWN_REVISION: u8 = 1 << 3;
/// `_OSC` status: something asked for was not granted.
const OSC_MASKED: u8 = 1 << 4;
/// `_OSC` control: the guest may use the PCI Express capability structure. There is no hot plug, no PME and no error
/// reporting to hand over.
const OSC_CAPABILITY_STRUCTURE: u8 = 1 << 4;

/// The small resource descriptor of an ISA interrupt: edge triggered, active high (ACPI 6.5, 6.4.2.1).
struct IrqNoFlags(u8);

impl Aml for IrqNoFlags {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << (self.0 & 15));
    }
}

fn path(name: &str) -> Path {
    Path::new(name)
}

fn hid(id: &str) -> Name {
    Name::new(path("_HID"), &EISAName::new(id))
}

fn crs(resources: Vec<&dyn Aml>) -> Name {
    Name::new(path("_CRS"), &ResourceTemplate::new(resources))
}

/// A device that is told by its id and resources alone.
fn isa_device(name: &str, id: &str, resources: Vec<&dyn Aml>, out: &mut dyn AmlSink) {
    let status = Name::new(path("_STA"), &STA_PRESENT);
    Device::new(path(name), Vec::from([&hid(id) as &dyn Aml, &crs(resources), &status])).to_aml_bytes(out);
}

/// `\_S5`: the sleep type that turns the machine off.
fn s5(out: &mut dyn AmlSink) {
    let kind = layout::S5_SLEEP_TYPE;
    Name::new(path("_S5_"), &Package::new(Vec::from([&kind as &dyn Aml, &kind, &ZERO, &ZERO]))).to_aml_bytes(out);
}

fn processors(config: &AcpiConfig, out: &mut dyn AmlSink) {
    for uid in 0..config.apic_ids.len() {
        let name = alloc::format!("C{uid:03X}");
        let id = Name::new(path("_HID"), &"ACPI0007");
        let unique = Name::new(path("_UID"), &(uid as u32));
        let status = Name::new(path("_STA"), &STA_PRESENT);
        Device::new(path(&name), Vec::from([&id as &dyn Aml, &unique, &status])).to_aml_bytes(out);
    }
}

/// The ECAM belongs to no device that could be moved. The power management ports are not named here: the FADT claims
/// them, and Linux warns of an overlap with the LPC bridge's own.
fn motherboard(config: &AcpiConfig, out: &mut dyn AmlSink) {
    let ecam = Memory32Fixed::new(true, config.ecam_base as u32, layout::ECAM_SIZE as u32);
    let unique = Name::new(path("_UID"), &ZERO);
    let resources = crs(Vec::from([&ecam as &dyn Aml]));
    Device::new(path("MBRD"), Vec::from([&hid("PNP0C02") as &dyn Aml, &unique, &resources])).to_aml_bytes(out);
}

fn host_bridge_crs(config: &AcpiConfig) -> Name {
    let buses = AddressSpace::<u16>::new_bus_number(0, 0xFF);
    let config_ports = IO::new(0xCF8, 0xCF8, 1, 8);
    let low_ports = AddressSpace::<u16>::new_io(0, 0xCF7, None);
    let high_ports = AddressSpace::<u16>::new_io(0xD00, 0xFFFF, None);
    let window = |&(first, last): &(u32, u32)| {
        AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None)
    };
    let windows: Vec<_> = config.pci_windows.iter().map(window).collect();
    let mut resources = Vec::from([&buses as &dyn Aml, &config_ports, &low_ports, &high_ports]);
    resources.extend(windows.iter().map(|window| window as &dyn Aml));
    let wide = config.pci64_window.map(|(base, size)| {
        AddressSpace::<u64>::new_memory(AddressSpaceCacheable::NotCacheable, true, base, base + (size - 1), None)
    });
    if let Some(wide) = &wide {
        resources.push(wide);
    }
    crs(resources)
}

/// `_PRT`: each slot's four pins go straight to I/O APIC pins, by the formula that the devices use.
fn host_bridge_prt() -> Name {
    let entries: Vec<_> = (0..PCI_SLOTS)
        .flat_map(|slot| (0..4u8).map(move |pin| (slot, pin)))
        .map(|(slot, pin)| (u32::from(slot) << 16 | 0xFFFF, pin, layout::pci_gsi(slot, pin)))
        .collect();
    let packages: Vec<_> = entries
        .iter()
        .map(|(address, pin, gsi)| Package::new(Vec::from([address as &dyn Aml, pin, &ZERO, gsi])))
        .collect();
    Name::new(path("_PRT"), &Package::new(packages.iter().map(|p| p as &dyn Aml).collect()))
}

/// `_OSC`: grants the capability structure and nothing else.
fn host_bridge_osc(out: &mut dyn AmlSink) {
    let (status, control) = (path("CDW1"), path("CDW3"));
    let (four, eight) = (4u8, 8u8);
    let first = CreateDWordField::new(&status, &Arg(3), &ZERO);
    let third = CreateDWordField::new(&control, &Arg(3), &eight);
    let grant = And::new(&Local(0), &control, &OSC_CAPABILITY_STRUCTURE);
    let masked = Or::new(&status, &status, &OSC_MASKED);
    let differs = NotEqual::new(&Local(0), &control);
    let if_masked = If::new(&differs, Vec::from([&masked as &dyn Aml]));
    let wrong_revision = NotEqual::new(&Arg(1), &ONE);
    let revision_bit = Or::new(&status, &status, &OSC_UNKNOWN_REVISION);
    let if_revision = If::new(&wrong_revision, Vec::from([&revision_bit as &dyn Aml]));
    let answer = Store::new(&control, &Local(0));
    let uuid = Uuid::new(PCI_OSC_UUID);
    let known = Equal::new(&Arg(0), &uuid);
    let body = Vec::from([&third as &dyn Aml, &grant, &if_masked, &if_revision, &answer]);
    let if_known = If::new(&known, body);
    let unknown = Or::new(&status, &status, &OSC_UNKNOWN_UUID);
    let otherwise = Else::new(Vec::from([&unknown as &dyn Aml]));
    let result = Return::new(&Arg(3));
    // Serialized, because it makes named fields.
    let method = Vec::from([&first as &dyn Aml, &if_known, &otherwise, &result]);
    Method::new(path("_OSC"), four, true, method).to_aml_bytes(out);
}

fn host_bridge(config: &AcpiConfig, out: &mut dyn AmlSink) {
    let mut osc = Raw(Vec::new());
    host_bridge_osc(&mut osc.0);
    let compatible = Name::new(path("_CID"), &EISAName::new("PNP0A03"));
    let numbers = ["_UID", "_SEG", "_BBN"].map(|name| Name::new(path(name), &ZERO));
    let hid = hid("PNP0A08");
    let (crs, prt) = (host_bridge_crs(config), host_bridge_prt());
    let mut children: Vec<&dyn Aml> = Vec::from([&hid as &dyn Aml, &compatible]);
    children.extend(numbers.iter().map(|n| n as &dyn Aml));
    children.extend([&crs as &dyn Aml, &prt, &osc]);
    Device::new(path("PCI0"), children).to_aml_bytes(out);
}

/// AML that is ready made.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn isa_devices(config: &AcpiConfig, out: &mut dyn AmlSink) {
    if config.serial {
        let com1 = Name::new(path("_UID"), &ONE);
        let resources = crs(Vec::from([&IO::new(0x3F8, 0x3F8, 1, 8) as &dyn Aml, &IrqNoFlags(4)]));
        let status = Name::new(path("_STA"), &STA_PRESENT);
        Device::new(path("COM1"), Vec::from([&hid("PNP0501") as &dyn Aml, &com1, &resources, &status]))
            .to_aml_bytes(out);
    }
    if config.keyboard {
        let (data, command) = (IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1));
        isa_device("KBD_", "PNP0303", Vec::from([&data as &dyn Aml, &command, &IrqNoFlags(1)]), out);
        if config.mouse {
            isa_device("MOU_", "PNP0F13", Vec::from([&IrqNoFlags(12) as &dyn Aml]), out);
        }
    }
    if config.hpet {
        let registers = Memory32Fixed::new(true, layout::HPET_BASE as u32, layout::HPET_SIZE as u32);
        isa_device("HPET", "PNP0103", Vec::from([&registers as &dyn Aml]), out);
    }
    isa_device("RTC_", "PNP0B00", Vec::from([&IO::new(0x70, 0x70, 1, 8) as &dyn Aml, &IrqNoFlags(8)]), out);
}

/// The whole table.
pub fn build(config: &AcpiConfig) -> Vec<u8> {
    let mut system_bus = Raw(Vec::new());
    processors(config, &mut system_bus.0);
    motherboard(config, &mut system_bus.0);
    host_bridge(config, &mut system_bus.0);
    isa_devices(config, &mut system_bus.0);
    let mut body = Vec::new();
    s5(&mut body);
    Scope::new(path("_SB_"), Vec::from([&system_bus as &dyn Aml])).to_aml_bytes(&mut body);
    let mut table = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&body);
    table.as_slice().to_vec()
}
