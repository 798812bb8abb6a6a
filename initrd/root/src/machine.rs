//! The machine as the root task finds it when there is no platform task: it reads no ACPI, so processors are tried by APIC ids
//! from 0 and the I/O APIC is taken to be where PCs have it.

use crate::{Doing, Failure, PLATFORM, Root, failure, no_slots};
use alloc::{format, vec::Vec};
use log::info;
use moira_abi::boot::slot;
use moira_rt::sys::{Cpu, Slot, fully};

/// Where PCs have their first I/O APIC.
const IO_APIC: u64 = 0xfec0_0000;

/// Processors and interrupt controllers.
pub struct Machine {
    /// Processors by index.
    pub cpus: Vec<Cpu>,
    /// Whether the I/O APIC was named to the kernel.
    io_apic: bool,
}

impl Machine {
    /// The boot processor alone.
    pub fn new() -> Machine {
        Machine { cpus: alloc::vec![Cpu::new(Slot(slot::CPU))], io_apic: false }
    }

    /// A processor by its index.
    pub fn cpu(&self, index: u32) -> Result<Cpu, Failure> {
        self.cpus.get(index as usize).copied().ok_or_else(|| format!("there is no CPU {index}"))
    }

    /// Makes sure that interrupt lines can be made.
    pub fn need_io_apic(&mut self) -> Result<(), Failure> {
        if !self.io_apic {
            PLATFORM.add_io_apic(IO_APIC, 0).doing(|| failure("the I/O APIC"))?;
            self.io_apic = true;
        }
        Ok(())
    }
}

impl Root {
    /// Starts as many processors as the system needs.
    pub fn start_cpus(&mut self) -> Result<(), Failure> {
        let mut apic_id = 0;
        while (self.machine.cpus.len() as u32) < self.system.cpus {
            if apic_id == self.info.boot_apic_id {
                apic_id += 1;
            }
            let slot = self.memory.slots.take(1).ok_or_else(no_slots)?;
            let limit = moira_rt::sys::now() + self.info.tsc_hz;
            // Each call is a step; what does not run after a second is not there.
            let cpu = fully(|| {
                let started = PLATFORM.start_cpu(apic_id, slot);
                if moira_rt::sys::now() > limit {
                    started.map_err(|_| moira_rt::sys::Error::NoHardware)
                } else {
                    started
                }
            });
            let cpu = cpu.doing(|| {
                let (has, needs) = (self.machine.cpus.len(), self.system.cpus);
                format!("the system needs {needs} CPUs, {has} run, and the one with APIC id {apic_id} does not answer")
            })?;
            self.machine.cpus.push(cpu);
            apic_id += 1;
        }
        if self.machine.cpus.len() > 1 {
            info!("root: {} CPUs run", self.machine.cpus.len());
        }
        Ok(())
    }
}
