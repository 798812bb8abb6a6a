//! Other processors: each belongs to one account, by a plan of one window.

use crate::{Lab, lab::one};
use alloc::{vec, vec::Vec};
use moira_sys::{Configuration, Cpu, Error, SchedContext, Thread, Untyped};

/// Code of a thread of the laboratory's own.
pub type Entry = extern "C" fn(u64, u64) -> !;

impl Lab {
    /// The boot processor and the others, as many as `processors=` on the command line says. They last.
    ///
    /// # Errors
    /// Of `start_cpu`.
    pub fn processors(&mut self) -> Result<Vec<Cpu>, Error> {
        let wanted = self.option("processors").and_then(|text| text.parse().ok()).unwrap_or(1);
        let mut all = vec![Lab::CPU];
        let mut apic_id = 0;
        while all.len() < wanted {
            if apic_id != self.info.boot_apic_id {
                let slot = self.slots(1);
                all.push(Lab::PLATFORM.start_cpu_fully(apic_id, slot)?);
            }
            apic_id += 1;
        }
        self.keep();
        Ok(all)
    }

    /// Gives all of a processor's time to an account that is homed there. The plan is made from the arena.
    ///
    /// # Errors
    /// Of the plan's methods.
    pub fn own_window(&mut self, cpu: Cpu, context: SchedContext) -> Result<(), Error> {
        let slot = self.slots(1);
        let cycle = self.micros(1000);
        let plan = self.arena.retype_plan(8, slot)?;
        plan.clear(cycle)?;
        plan.append(context, 0, cycle)?;
        loop {
            match cpu.install_plan(Some(plan)) {
                Err(Error::Again) => {}
                other => return other,
            }
        }
    }

    /// Makes a thread of the laboratory's own code, with an account, on a processor.
    ///
    /// # Errors
    /// Of retype, configure, bind and activate.
    pub fn spawn(
        &mut self,
        from: Untyped,
        cpu: Cpu,
        level: u8,
        entry: Entry,
        arguments: [u64; 2],
        stack: u64,
    ) -> Result<(Thread, SchedContext), Error> {
        let slot = self.slots(2);
        let thread = one(from.retype_threads(1, slot)?)?;
        let context = one(from.retype_contexts(1, slot.plus(1))?)?;
        thread.configure(&Configuration {
            space: Lab::SPACE,
            table: Lab::TABLE,
            buffer: None,
            level,
            fault_endpoint: None,
            fault_notification: Some(self.faults),
            entry: entry as *const () as u64,
            stack: stack - 8,
        })?;
        context.bind(thread, cpu)?;
        thread.activate(cpu, arguments)?;
        Ok((thread, context))
    }
}
