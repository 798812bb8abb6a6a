//! Tests of the ACPI tables. The judge is ACPICA's own compiler, `iasl`.

use super::*;
use crate::test_ram::TestRam;
use std::path::Path;
use std::process::Command;
use std::string::String;

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

fn table(tables: &Tables, name: &[u8; 4]) -> Table {
    tables.parts().iter().find(|t| &t.name == name).expect("the table is there").clone()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

#[test]
fn tables_find_each_other_and_add_up() {
    let tables = Tables::build_in_bios_area(&AcpiConfig::new(4)).unwrap();
    let mut ram = TestRam::new(16 << 20);
    tables.write(&mut ram).unwrap();
    assert_eq!(tables.rsdp(), layout::BIOS_BASE);
    assert_eq!(ram.bytes(tables.rsdp(), 8), b"RSD PTR ");
    assert_eq!(sum(&ram.bytes(tables.rsdp(), 20)), 0);
    assert_eq!(sum(&ram.bytes(tables.rsdp(), 36)), 0);
    let xsdt = ram.u64(tables.rsdp() + 24);
    let len = ram.u32(xsdt + 4) as usize;
    let mut names = Vec::new();
    for i in 0..(len - 36) / 8 {
        let at = ram.u64(xsdt + 36 + 8 * i as u64);
        let bytes = ram.bytes(at, ram.u32(at + 4) as usize);
        assert_eq!(sum(&bytes), 0);
        names.push(bytes[..4].to_vec());
    }
    assert_eq!(names, [b"FACP".to_vec(), b"APIC".to_vec(), b"MCFG".to_vec()]);
    // The old root lists the same.
    let rsdt = u64::from(ram.u32(tables.rsdp() + 16));
    assert_eq!((ram.bytes(rsdt, 4), sum(&ram.bytes(rsdt, ram.u32(rsdt + 4) as usize))), (b"RSDT".to_vec(), 0));
    for i in 0..3 {
        assert_eq!(u64::from(ram.u32(rsdt + 36 + 4 * i)), ram.u64(xsdt + 36 + 8 * i));
    }
    let fadt = table(&tables, b"FACP").bytes;
    assert_eq!(u64::from(u32_at(&fadt, 36)), table(&tables, b"FACS").address);
    assert_eq!(u64_at(&fadt, 140), table(&tables, b"DSDT").address);
    assert_eq!(table(&tables, b"FACS").address % 64, 0);
    let end = tables.parts().iter().map(|t| t.address + t.bytes.len() as u64).max().unwrap();
    assert!(end <= layout::HEADERS_BASE);
}

#[test]
fn fadt_says_what_the_machine_has() {
    let fadt = table(&Tables::build_in_bios_area(&AcpiConfig::new(1)).unwrap(), b"FACP").bytes;
    let flags = u32_at(&fadt, 112);
    for (bit, set) in [(0, true), (4, false), (8, true), (10, true), (20, false)] {
        assert_eq!(flags >> bit & 1 == 1, set, "flag {bit}");
    }
    assert_eq!(fadt[46], 9, "SCI");
    assert_eq!((u32_at(&fadt, 56), u32_at(&fadt, 64), u32_at(&fadt, 76)), (0x600, 0x604, 0x608));
    assert_eq!((u64_at(&fadt, 120), fadt[128]), (0xCF9, 6));
    assert_eq!(fadt[109] & 3, 3, "legacy devices and 8042");
    assert_eq!(u32_at(&fadt, 48), 0, "no SMI command");
}

#[test]
fn madt_names_every_processor() {
    let config = AcpiConfig { apic_ids: Vec::from([0, 1, 300]), ..AcpiConfig::new(1) };
    let madt = table(&Tables::build_in_bios_area(&config).unwrap(), b"APIC").bytes;
    let mut found = Vec::new();
    let mut at = 44;
    while at < madt.len() {
        let (kind, len) = (madt[at], madt[at + 1] as usize);
        found.push((kind, madt[at + 2..at + len].to_vec()));
        at += len;
    }
    assert_eq!(at, madt.len());
    assert_eq!(found[0], (0, Vec::from([0, 0, 1, 0, 0, 0])));
    assert_eq!(found[1], (0, Vec::from([1, 1, 1, 0, 0, 0])));
    assert_eq!(found[2].0, 9);
    assert_eq!(u32_at(&found[2].1, 2), 300);
    assert_eq!(found[3], (1, Vec::from([0, 0, 0, 0, 0xC0, 0xFE, 0, 0, 0, 0])));
    assert_eq!(found[4], (2, Vec::from([0, 0, 2, 0, 0, 0, 0, 0])));
    assert_eq!(found[5], (2, Vec::from([0, 9, 9, 0, 0, 0, 13, 0])));
    assert_eq!(found[6], (4, Vec::from([0xFF, 0, 0, 1])));
    assert_eq!(found[7].0, 0x0A);
}

#[test]
fn wrong_configurations_are_refused() {
    let with = |config: AcpiConfig| Tables::build_in_bios_area(&config).unwrap_err();
    assert_eq!(with(AcpiConfig::new(0)), AcpiError::CpuCount { count: 0 });
    assert_eq!(with(AcpiConfig::new(129)), AcpiError::CpuCount { count: 129 });
    let window = Some((0x1000, 0x1000));
    assert_eq!(
        with(AcpiConfig { pci64_window: window, ..AcpiConfig::new(1) }),
        AcpiError::BadWindow { base: 0x1000, size: 0x1000 }
    );
    assert!(matches!(Tables::build(&AcpiConfig::new(1), 0xE0000, 0xE0100), Err(AcpiError::NoRoom { .. })));
    assert!(matches!(Tables::build(&AcpiConfig::new(1), 0xE0010, 0x10_0000), Err(AcpiError::BadBase { .. })));
    assert!(Tables::build_in_bios_area(&AcpiConfig::new(128)).is_ok(), "the largest machine fits");
}

/// Runs `iasl` and returns what it printed. A missing `iasl` fails the test: tables nobody checked are not tested.
fn iasl(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("iasl").current_dir(directory).args(arguments).output();
    let output = output.expect("cannot run `iasl`: install Debian's package acpica-tools");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "iasl {arguments:?} failed:\n{text}");
    text
}

fn assert_clean(what: &str, text: &str) {
    assert!(text.contains("0 Errors, 0 Warnings, 0 Remarks"), "iasl on {what} is not silent:\n{text}");
}

/// Disassembles every table and compiles the result again: no error, warning or remark, and the same bytes.
fn check_with_iasl(config: &AcpiConfig) {
    let directory = tempfile::tempdir().unwrap();
    let tables = Tables::build_in_bios_area(config).unwrap();
    for part in tables.parts().iter().filter(|t| &t.name != b"RSDP") {
        let name = String::from_utf8_lossy(&part.name).into_owned();
        let binary = directory.path().join(std::format!("{name}.aml"));
        std::fs::write(&binary, &part.bytes).unwrap();
        let text = iasl(directory.path(), &["-d", &std::format!("{name}.aml")]);
        for bad in ["Error", "Warning", "Invalid", "incorrect", "does not match"] {
            assert!(!text.contains(bad), "iasl -d on {name} says {bad}:\n{text}");
        }
        let source = std::fs::read_to_string(directory.path().join(std::format!("{name}.dsl"))).unwrap();
        for bad in ["/* Incorrect", "**** ", "Unknown"] {
            assert!(!source.contains(bad), "the disassembly of {name} has {bad}:\n{source}");
        }
        let again = std::format!("{name}-again");
        let text = iasl(directory.path(), &["-p", &again, "-tc", &std::format!("{name}.dsl")]);
        assert_clean(&name, &text);
        let compiled = std::fs::read(directory.path().join(std::format!("{again}.aml"))).unwrap();
        // The compiler writes its own name and revision into bytes 28 to 35, which changes the checksum at 9.
        assert_eq!(compiled.len(), part.bytes.len(), "{name} changed size");
        for (i, (new, old)) in compiled.iter().zip(&part.bytes).enumerate() {
            assert!(new == old || i == 9 || (28..36).contains(&i), "{name} differs at {i}");
        }
    }
}

#[test]
fn iasl_accepts_the_tables_of_one_processor() {
    check_with_iasl(&AcpiConfig::new(1));
}

#[test]
fn iasl_accepts_the_tables_of_a_large_machine() {
    let window = Some((0x80_0000_0000, 0x10_0000_0000));
    let apic_ids = (0..127).chain([300]).collect();
    check_with_iasl(&AcpiConfig { pci64_window: window, apic_ids, ..AcpiConfig::new(1) });
}

#[test]
fn iasl_accepts_the_tables_for_firmware() {
    check_with_iasl(&AcpiConfig::for_firmware(2, 256 << 20, Some(0xE000_0000)));
}

#[test]
fn iasl_accepts_the_tables_of_a_bare_machine() {
    check_with_iasl(&AcpiConfig { serial: false, keyboard: false, mouse: false, ..AcpiConfig::new(2) });
}
