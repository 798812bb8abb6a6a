//! The machine: which processors and I/O APICs there are, as the firmware's tables say. Only tables of fixed layout are read here
//! ([decision 11](../../../docs/decisions/0011-root-reads-madt.md)); AML, PCI and power are the platform task's.

use crate::{Doing, Failure, PLATFORM, Root, TABLE, no_slots};
use alloc::{format, string::String, vec::Vec};
use log::{debug, info, warn};
use moira_abi::{
    FrameSize,
    boot::{BootInfo, slot},
};
use moira_proto::platform::{IoApic, PlatformInfo};
use moira_rt::{
    memory::Memory,
    sys::{Cpu, Error, Slot, fully, now},
};
use platform_core::{
    machine::{self, Width},
    summary,
    tables::{self, Tables, find_root, read_root_pointer},
};

const PAGE: u64 = 4096;
/// Where PCs have their first I/O APIC, for machines without tables.
const IO_APIC: IoApic = IoApic { id: 0, address: 0xfec0_0000, first_gsi: 0 };
/// APIC ids that are tried on machines without tables.
const BLIND_IDS: core::ops::Range<u32> = 0..16;

/// Processors and interrupt controllers.
pub struct Machine {
    /// Processors that run, by index.
    pub cpus: Vec<Cpu>,
    /// APIC ids of those that may be started, in the tables' order.
    waiting: Vec<u32>,
    /// I/O APICs that the kernel was not told of yet.
    io_apics: Vec<IoApic>,
    /// Where the ACPI tables begin.
    tables: Option<tables::Root>,
}

impl Machine {
    /// The boot processor, and what the tables tell of others.
    pub fn new(info: &BootInfo, memory: &mut Memory) -> Machine {
        let cpus = alloc::vec![Cpu::new(Slot(slot::CPU))];
        let mut firmware = Firmware { memory };
        let tables = read_root_pointer(&info.rsdp_copy).or_else(|| find_root(&mut firmware, None));
        let found = tables
            .and_then(|root| Tables::collect(&mut firmware, root).ok())
            .map_or_else(PlatformInfo::default, |tables| summary::read(&tables, info.boot_apic_id));
        let enabled = found.cpus.iter().filter(|cpu| cpu.enabled && cpu.apic_id != info.boot_apic_id);
        let mut waiting: Vec<u32> = enabled.map(|cpu| cpu.apic_id).collect();
        let mut io_apics = found.io_apics;
        if found.cpus.is_empty() {
            warn!("root: no ACPI table names the processors: trying APIC ids {BLIND_IDS:?}");
            waiting = BLIND_IDS.filter(|id| *id != info.boot_apic_id).collect();
        }
        if io_apics.is_empty() {
            io_apics.push(IO_APIC);
        }
        debug!("root: {} processors to start, {} I/O APICs", waiting.len(), io_apics.len());
        Machine { cpus, waiting, io_apics, tables }
    }

    /// A processor by its index.
    pub fn cpu(&self, index: u32) -> Result<Cpu, Failure> {
        self.cpus.get(index as usize).copied().ok_or_else(|| format!("there is no CPU {index}"))
    }

    /// What a task with the platform's capability is told: an argument of the [platform task](../../../drivers/platform/src/main.rs).
    pub fn tables_argument(&self) -> Option<String> {
        self.tables.map(|root| match root {
            tables::Root::Rsdt(address) => format!("rsdt={address:#x}"),
            tables::Root::Xsdt(address) => format!("xsdt={address:#x}"),
        })
    }

    /// Makes sure that interrupt lines can be made.
    pub fn need_io_apics(&mut self) -> Result<(), Failure> {
        for io_apic in core::mem::take(&mut self.io_apics) {
            let IoApic { address, first_gsi, .. } = io_apic;
            PLATFORM.add_io_apic(address, first_gsi).doing(|| format!("the I/O APIC at {address:#x}"))?;
        }
        Ok(())
    }
}

/// Firmware's memory, a page at a time. Nothing else of the hardware is in reach.
struct Firmware<'a> {
    memory: &'a mut Memory,
}

impl Firmware<'_> {
    /// Copies what lies in one page; `None` where the kernel does not give the page out, or room is short.
    fn read(&mut self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let offset = address % PAGE;
        let slot = self.memory.slots.take(1)?;
        let frame = PLATFORM.make_frame(address - offset, FrameSize::Small, slot);
        let read = frame.ok().and_then(|frame| {
            let view = self.memory.view(frame, FrameSize::Small).ok()?;
            view.shared().read(usize::try_from(offset).ok()?, bytes);
            self.memory.release(view).ok()
        });
        // Empty already: the frame was refused. Else the slot is lost, and no more than that.
        if matches!(TABLE.delete_fully(slot), Ok(()) | Err(Error::Empty)) {
            self.memory.slots.give(slot, 1);
        }
        read
    }
}

impl machine::Machine for Firmware<'_> {
    fn load(&mut self, address: u64, width: Width) -> u64 {
        let mut bytes = [0xff; 8];
        let used = width.bytes() as usize;
        self.copy(address, bytes.get_mut(..used).unwrap_or_default());
        u64::from_le_bytes(bytes) & width.ones()
    }

    fn copy(&mut self, address: u64, bytes: &mut [u8]) {
        bytes.fill(0xff);
        let mut at = address;
        let mut rest = bytes;
        while !rest.is_empty() {
            let here = rest.len().min((PAGE - at % PAGE) as usize);
            let (page, others) = rest.split_at_mut(here);
            // What cannot be reached reads as ones.
            let _ = self.read(at, page);
            at = at.wrapping_add(here as u64);
            rest = others;
        }
    }

    fn store(&mut self, _: u64, _: Width, _: u64) {}

    fn input(&mut self, _: u16, width: Width) -> u64 {
        width.ones()
    }

    fn output(&mut self, _: u16, _: Width, _: u64) {}

    fn nanoseconds(&mut self) -> u64 {
        0
    }

    fn wait(&mut self, _: u64) {}
}

impl Root {
    /// Starts as many processors as the system needs.
    pub fn start_cpus(&mut self) -> Result<(), Failure> {
        let needs = self.system.cpus as usize;
        let mut waiting = core::mem::take(&mut self.machine.waiting).into_iter();
        while self.machine.cpus.len() < needs {
            let has = self.machine.cpus.len();
            let apic_id =
                waiting.next().ok_or_else(|| format!("the system needs {needs} CPUs, the machine has {has}"))?;
            let slot = self.memory.slots.take(1).ok_or_else(no_slots)?;
            let limit = now() + self.info.tsc_hz;
            // Each call is a step; what does not run after a second is not there.
            let cpu = fully(|| {
                let started = PLATFORM.start_cpu(apic_id, slot);
                if now() > limit { started.map_err(|_| Error::NoHardware) } else { started }
            });
            let cpu = cpu.doing(|| {
                format!("the system needs {needs} CPUs, {has} run, and the one with APIC id {apic_id} does not answer")
            })?;
            self.machine.cpus.push(cpu);
        }
        if self.machine.cpus.len() > 1 {
            info!("root: {} CPUs run", self.machine.cpus.len());
        }
        Ok(())
    }
}
