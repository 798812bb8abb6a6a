//! What happens after the start: tasks finish, die, are made anew; the system ends.

use crate::{
    Failure, PLATFORM, Root, TABLE,
    build::{Built, Life},
    failure, orders,
};
use alloc::{format, string::String, vec::Vec};
use core::fmt::Write;
use log::{debug, error, info, warn};
use moira_abi::{FrameSize, PAGE};
use moira_proto::{
    start::layout,
    system::{Restart, Role, Task},
};
use moira_root::restart::Next;
use moira_rt::{
    end,
    sys::{Capability, Deadline, Error, MessageBuffer, Outcome, Rights, Snapshot, now},
};

/// How a task came to its end.
enum End {
    /// Its `main` returned.
    Finished,
    /// It panicked, with this text.
    Panicked(String),
    /// The fault, in words.
    Fault(String),
}

/// How far below its stack an access is taken for one that found the stack too small.
const BELOW_A_STACK: u64 = 64 << 10;
/// Most bytes of a panic's text that are printed.
const MOST_TEXT: usize = 400;

impl Root {
    /// Waits for tasks to end, forever. Answers only why that cannot go on.
    pub fn supervise(&mut self, buffer: &mut MessageBuffer) -> Failure {
        loop {
            if let Some(outcome) = self.outcome() {
                return match outcome {
                    Ok(()) => {
                        info!("root: every task has finished");
                        let error = PLATFORM.end(buffer, Outcome::Success, b"");
                        format!("cannot end the system: {error:?}")
                    }
                    Err(why) => why,
                };
            }
            let bits = match self.stopped.wait(self.next_restart()) {
                Ok(bits) => bits,
                Err(Error::Timeout) => 0,
                Err(error) => return format!("cannot wait for tasks: {error:?}"),
            };
            if bits & orders::BIT != 0
                && let Err(why) = self.follow_orders()
            {
                return why;
            }
            for index in 0..self.tasks.len() {
                if bits >> (index % orders::TASK_BITS) & 1 == 0 {
                    continue;
                }
                if let Err(why) = self.look_at(index, buffer) {
                    return why;
                }
            }
            if let Err(why) = self.restart_rested() {
                return why;
            }
        }
    }

    /// When the next task is to be made anew.
    fn next_restart(&self) -> Deadline {
        let ticks = self.tasks.iter().filter_map(|built| match built.life {
            Life::Resting(until) => Some(until),
            _ => None,
        });
        ticks.min().map_or(Deadline::NEVER, Deadline)
    }

    /// Makes those anew whose time has come.
    fn restart_rested(&mut self) -> Result<(), Failure> {
        for index in 0..self.tasks.len() {
            if let Some(Life::Resting(until)) = self.tasks.get(index).map(|built| built.life)
                && until <= now()
            {
                self.make_anew(index)?;
            }
        }
        Ok(())
    }

    /// Whether the system is at its end: when all that have an end have reached it.
    fn outcome(&self) -> Option<Result<(), Failure>> {
        let lasting = |task: &Task| task.serves || task.restart == Restart::Always || task.role != Role::None;
        let ending = || self.system.tasks.iter().zip(&self.tasks).filter(|(task, _)| !lasting(task));
        if ending().count() == 0 || ending().any(|(_, built)| matches!(built.life, Life::Running | Life::Resting(_))) {
            // A task that is made anew counts as long as it runs; without any that ends, only `end-system` ends it.
            return None;
        }
        Some(match ending().find(|(_, built)| built.life == Life::Dead) {
            None => Ok(()),
            Some((task, _)) => Err(format!("task {} died", task.name)),
        })
    }

    /// A task may have stopped.
    fn look_at(&mut self, index: usize, buffer: &mut MessageBuffer) -> Result<(), Failure> {
        let (Some(spec), Some(built)) = (self.system.tasks.get(index).cloned(), self.tasks.get(index)) else {
            return Ok(());
        };
        if built.life != Life::Running {
            return Ok(());
        }
        let restarts = built.restarts;
        let mut ends = Vec::new();
        for (number, thread) in built.threads.iter().enumerate() {
            match thread.read_registers(buffer) {
                // It runs, here or on its own CPU: another thread, or another task with the same bit, has stopped.
                Err(Error::Active | Error::WrongCpu) => {}
                Err(error) => ends.push((number, Err(error))),
                Ok(snapshot) if snapshot.fault.is_none() => {}
                Ok(snapshot) => ends.push((number, Ok(snapshot))),
            }
        }
        let mut end = None;
        for (number, stopped) in ends {
            let found = match stopped {
                Err(error) => End::Fault(format!("stopped; its registers cannot be read: {error:?}")),
                Ok(snapshot) => self.end_of(index, number, &snapshot),
            };
            match found {
                // A task ends with its main thread.
                End::Finished if number != 0 => debug!("root: task {}: thread {number} finished", spec.name),
                found => {
                    end = Some(found);
                    break;
                }
            }
        }
        let Some(end) = end else { return Ok(()) };
        match end {
            End::Finished => {
                info!("root: task {}: finished", spec.name);
                self.bury(index, Life::Finished)
            }
            End::Panicked(text) => self.died(index, &spec, restarts, &text),
            End::Fault(text) => self.died(index, &spec, restarts, &text),
        }
    }

    fn died(&mut self, index: usize, spec: &Task, restarts: u32, how: &str) -> Result<(), Failure> {
        let name = &spec.name;
        match spec.restart {
            Restart::Always | Restart::OnFailure => self.died_again(index, spec, restarts, how),
            Restart::Never => {
                error!("root: task {name}: {how}: left dead");
                self.bury(index, Life::Dead)
            }
            Restart::EndSystem => {
                error!("root: task {name}: {how}: ends the system");
                Err(format!("task {name} died"))
            }
        }
    }

    /// A task that may be made anew died: now, later, or once too often.
    fn died_again(&mut self, index: usize, spec: &Task, restarts: u32, how: &str) -> Result<(), Failure> {
        let name = &spec.name;
        let lived = self.tasks.get(index).map_or(0, Built::age);
        let lived = crate::microseconds(self.info, lived).saturating_mul(1000);
        let next = self.identities.get_mut(index).map(|identity| identity.deaths.died(lived, &spec.patience));
        let restarts = restarts.saturating_add(1);
        match next.unwrap_or(Next::Dead(restarts)) {
            Next::Restart(0) => {
                warn!("root: task {name}: {how}: restart {restarts}");
                self.remove(index, Life::Resting(now()))?;
                self.make_anew(index)
            }
            Next::Restart(delay) => {
                let microseconds = delay / 1000;
                warn!("root: task {name}: {how}: restart {restarts} in {microseconds} us");
                self.remove(index, Life::Resting(now().saturating_add(self.ticks(delay))))
            }
            Next::Dead(deaths) => {
                error!("root: task {name}: {how}: died {deaths} times in a row: left dead");
                self.bury(index, Life::Dead)
            }
        }
    }

    /// Makes a task anew that died.
    fn make_anew(&mut self, index: usize) -> Result<(), Failure> {
        let restarts = self.tasks.get(index).map_or(0, |built| built.restarts).saturating_add(1);
        let built = self.build(index, restarts)?;
        if let Some(place) = self.tasks.get_mut(index) {
            *place = built;
        }
        for other in 0..self.tasks.len() {
            self.grant_controls(other)?;
        }
        self.activate(index)
    }

    /// A task came to its end for good: takes back all it has, unless the whole system has ended with it. Nobody is left then who would
    /// take the memory, and whoever boots next cleans it.
    fn bury(&mut self, index: usize, life: Life) -> Result<(), Failure> {
        if let Some(built) = self.tasks.get_mut(index) {
            built.life = life;
        }
        if self.outcome().is_some() { Ok(()) } else { self.remove(index, life) }
    }

    /// Ends a task, whatever it does, and takes back all it has.
    pub fn remove(&mut self, index: usize, life: Life) -> Result<(), Failure> {
        let Some(mut built) = self.tasks.get_mut(index).map(Built::take) else {
            return Ok(());
        };
        self.tear_down(&mut built)?;
        if let Some(name) = self.system.tasks.get(index).map(|task| task.name.clone()) {
            self.tell_end(&name)?;
        }
        built.life = life;
        if let Some(place) = self.tasks.get_mut(index) {
            *place = built;
        }
        Ok(())
    }

    fn end_of(&mut self, index: usize, number: usize, snapshot: &Snapshot) -> End {
        let Some(fault) = snapshot.fault else {
            return End::Finished;
        };
        // `end` leaves a marker in rax and the length of a text in rdi.
        let (marker, length) = (snapshot.registers.gpr[0], snapshot.registers.gpr[7]);
        if fault.vector == end::VECTOR && marker == end::FINISHED {
            return End::Finished;
        }
        if fault.vector == end::VECTOR && marker == end::PANICKED {
            let text = self.text(index, number, (length as usize).min(MOST_TEXT));
            return End::Panicked(text.unwrap_or_else(|why| format!("panicked; its text cannot be read: {why}")));
        }
        let mut text = format!("fault vector {} ({}) at rip {:#x}", fault.vector, name_of(fault.vector), fault.rip);
        if fault.vector == 14 {
            let kind = match fault.error_code {
                code if code & 16 != 0 => "execute",
                code if code & 2 != 0 => "write",
                _ => "read",
            };
            let _ = write!(text, " address {:#x} ({kind})", fault.cr2);
            let stack = self.system.tasks.get(index).map_or(0, |task| task.stack);
            let below = (layout::stack_top(number) - stack.next_multiple_of(PAGE)).wrapping_sub(fault.cr2);
            if (1..=BELOW_A_STACK).contains(&below) {
                let _ = write!(text, ", below its stack of {} KiB (`memory = {{ stack = … }}`)", stack >> 10);
            }
        } else if fault.error_code != 0 {
            let _ = write!(text, " error {:#x}", fault.error_code);
        }
        let _ = write!(text, " rsp {:#x}", fault.rsp);
        End::Fault(text)
    }

    /// The text at the start of the message buffer of a task's thread, printable characters only.
    fn text(&mut self, index: usize, number: usize, length: usize) -> Result<String, Failure> {
        let buffer = self.tasks.get(index).and_then(|built| built.buffers.get(number)).copied();
        let buffer = buffer.ok_or_else(|| failure("no such thread"))?;
        let copy = self.copy(buffer, Rights::READ.or(Rights::WRITE))?;
        let mut bytes = alloc::vec![0; length];
        let read = self.memory.view(copy, FrameSize::Small).map(|view| {
            view.shared().read(0, &mut bytes);
            self.memory.release(view)
        });
        if TABLE.delete_fully(copy.slot()).is_ok() {
            self.memory.slots.give(copy.slot(), 1);
        }
        match read {
            Ok(Ok(())) => {}
            Ok(Err(why)) | Err(why) => return Err(format!("{why:?}")),
        }
        let printable: Vec<u8> =
            bytes.into_iter().map(|byte| if byte == b' ' || byte.is_ascii_graphic() { byte } else { b'.' }).collect();
        String::from_utf8(printable).map_err(failure)
    }
}

/// Names of exceptions (SDM 6.3.1).
fn name_of(vector: u64) -> &'static str {
    match vector {
        0 => "divide error",
        1 => "debug",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound range",
        6 => "invalid opcode",
        7 => "no vector unit for tasks",
        12 => "stack fault",
        13 => "general protection",
        14 => "page fault",
        16 => "floating point",
        17 => "alignment check",
        19 => "vector floating point",
        _ => "exception",
    }
}
