//! What firmware asks its machine: files of the firmware configuration device.

use alloc::boxed::Box;
use alloc::vec::Vec;
use vmm_devices::board::Board;
use vmm_devices::platform;
use vmm_machine::acpi::AcpiConfig;
use vmm_machine::acpi::loader::{FirmwareFiles, LOADER_FILE, RSDP_FILE, TABLES_FILE};
use vmm_machine::memory_map::{E820Kind, MemoryMap};

/// Adds the files: where RAM is, the ACPI tables, where the serial console is. `debug`: show firmware's debug output.
///
/// # Errors
/// What could not be made.
pub fn tell(board: &mut Board, map: &MemoryMap, cpus: u32, debug: bool) -> Result<(), &'static str> {
    if !debug {
        board.debug().mute_firmware();
    }
    let low_end = map.low_end();
    let make = move |ecam| FirmwareFiles::build(&AcpiConfig::for_firmware(cpus, low_end, ecam));
    make(None).map_err(|_| "ACPI tables")?;
    let files = Box::new(move |ecam| match make(ecam) {
        Ok(files) => Vec::from([(RSDP_FILE, files.rsdp), (TABLES_FILE, files.tables), (LOADER_FILE, files.loader)]),
        // The configuration was right for one ECAM, so it is for all.
        Err(_) => Vec::new(),
    });
    board.add_ecam_files(files).map_err(|_| "ACPI files")?;
    let files = [
        ("etc/e820", e820(map)),
        // SeaBIOS shows its text screen here.
        ("etc/sercon-port", platform::COM1_PORT.to_le_bytes().into()),
        // Milliseconds that SeaBIOS waits before it resets a machine that nothing boots.
        ("etc/boot-fail-wait", 5000u32.to_le_bytes().into()),
    ];
    files.into_iter().try_for_each(|(name, data)| board.fw_cfg().add(name, data).map_err(|_| "files"))
}

/// Where RAM lies, in the E820's format. What is reserved in it is firmware's to say.
fn e820(map: &MemoryMap) -> Vec<u8> {
    let mut file = Vec::new();
    for (base, size) in map.ram_blocks() {
        file.extend_from_slice(&base.to_le_bytes());
        file.extend_from_slice(&size.to_le_bytes());
        file.extend_from_slice(&(E820Kind::Ram as u32).to_le_bytes());
    }
    file
}
