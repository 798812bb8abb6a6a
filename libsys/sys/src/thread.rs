//! Threads and the accounts that pay for them.

use crate::slot::capability;
use crate::*;
use moira_abi::{Method, fault::Registers, time::Losers};

capability! {
    /// A thread.
    Thread, Thread
}

capability! {
    /// An account of CPU time, homed on one CPU.
    SchedContext, SchedContext
}

/// All that a thread needs before it can be activated.
#[derive(Clone, Copy, Debug)]
pub struct Configuration {
    /// Where it runs.
    pub space: AddressSpace,
    /// What it can name.
    pub table: CapTable,
    /// Its message buffer: a 4 KiB frame. None: it sends and receives words only.
    pub buffer: Option<Frame>,
    /// 0–7; calls and faults go to a higher level only.
    pub level: u8,
    /// Where its faults are sent. None: a fault stops it.
    pub fault_endpoint: Option<Endpoint>,
    /// What is signalled when a thread of level 7 faults.
    pub fault_notification: Option<Notification>,
    /// First instruction.
    pub entry: u64,
    /// First stack pointer.
    pub stack: u64,
}

/// The word for an optional capability: slot 0 names nothing.
fn optional<T: Capability>(capability: Option<T>) -> u64 {
    capability.map_or(Slot::NONE, Capability::slot).word()
}

impl Thread {
    /// Configures an inactive thread. What it is given is looked up now, in the caller's table.
    ///
    /// # Errors
    /// `Active`; `BadArgument` (level above 7, addresses outside user space, buffer not 4 KiB); for each capability
    /// `Empty`, `WrongType`, `NoRight`.
    pub fn configure(self, with: &Configuration) -> Result<(), Error> {
        let words = [
            with.space.slot().word(),
            with.table.slot().word(),
            optional(with.buffer),
            u64::from(with.level),
            optional(with.fault_endpoint),
            optional(with.fault_notification),
            with.entry,
            with.stack,
        ];
        raw::simple(Method::ThreadConfigure, self.slot().0, &words).map(|_| ())
    }

    /// Makes it active on a CPU, ready at its entry with `arguments` in `rdi` and `rsi`. It runs when its context is chosen.
    ///
    /// # Errors
    /// `Active`; `Inactive` (not configured).
    pub fn activate(self, cpu: Cpu, arguments: [u64; 2]) -> Result<(), Error> {
        let words = [cpu.slot().word(), arguments[0], arguments[1]];
        raw::simple(Method::ThreadActivate, self.slot().0, &words).map(|_| ())
    }

    /// Stops it wherever it is.
    ///
    /// # Errors
    /// `Inactive`; `WrongCpu`.
    pub fn stop(self) -> Result<(), Error> {
        raw::simple(Method::ThreadStop, self.slot().0, &[]).map(|_| ())
    }

    /// A stopped or parked thread goes on where it stopped.
    ///
    /// # Errors
    /// `Inactive`; `Active` (it is not stopped); `WrongCpu`.
    pub fn resume(self) -> Result<(), Error> {
        raw::simple(Method::ThreadResume, self.slot().0, &[]).map(|_| ())
    }

    /// From now on bits of this notification (WAIT) end the thread's receive.
    ///
    /// # Errors
    /// `InUse`; `WrongCpu`.
    pub fn bind_notification(self, notification: Notification) -> Result<(), Error> {
        raw::simple(Method::ThreadBindNotification, self.slot().0, &[notification.slot().word()]).map(|_| ())
    }

    /// Registers of a thread that does not run, and its last fault. `buffer` is the calling thread's own; its contents are
    /// overwritten.
    ///
    /// # Errors
    /// `Active` (it is running); `WrongCpu`.
    pub fn read_registers(self, buffer: &mut MessageBuffer) -> Result<Snapshot, Error> {
        let [state, vector, error_code, cr2, ..] = raw::simple(Method::ThreadReadRegisters, self.slot().0, &[])?;
        let registers = buffer.registers();
        let fault = (vector != u64::MAX).then_some(Fault {
            vector,
            error_code,
            rip: registers.rip,
            cr2,
            rsp: registers.gpr[4],
            rflags: registers.rflags,
        });
        Ok(Snapshot { state, registers, fault })
    }

    /// Sets the registers of a stopped or faulting thread; the kernel forces the flags that a task may not choose.
    ///
    /// # Errors
    /// `Active`; `WrongCpu`; `BadArgument` (`rip` outside user space).
    pub fn write_registers(self, buffer: &mut MessageBuffer, registers: &Registers) -> Result<(), Error> {
        buffer.set_registers(registers);
        let tag = moira_abi::Tag::new(0, size_of::<Registers>(), 0);
        raw::invoke(Method::ThreadWriteRegisters, tag, self.slot().0, &[]).check().map(|_| ())
    }

    /// Names the first of four consecutive slots that take received capabilities. For the caller itself or an inactive thread.
    ///
    /// # Errors
    /// `Active`; `NoSlot`.
    pub fn receive_slots(self, first: Slot) -> Result<(), Error> {
        raw::simple(Method::ThreadReceiveSlots, self.slot().0, &[first.word()]).map(|_| ())
    }
}

/// What [`Thread::read_registers`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Number of the thread's state, for people (`docs/abi/thread.md`).
    pub state: u64,
    /// Its registers.
    pub registers: Registers,
    /// Its last fault, with the registers as they are now.
    pub fault: Option<Fault>,
}

/// What was charged to a context, in TSC ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Consumed {
    /// Its own time.
    pub own: u64,
    /// Time it paid for others' requests by helping.
    pub lost: u64,
    /// Time others paid for its requests.
    pub delivered: u64,
    /// Structural work it asked for; part of `own`.
    pub structural: u64,
    /// Interrupt handlers of its sources; not part of `own`.
    pub interrupts: u64,
    /// The part of `lost` that was lost to nobody who lives.
    pub gone: u64,
    /// Its number in [`Losers`](abi::time::Losers) of others; 512 times that is its name in the trace.
    pub number: u64,
    /// The name of its thread in the trace; 0: it has none.
    pub thread: u64,
}

impl SchedContext {
    /// This account pays for that thread, and lives on that CPU. Answers the context's index on the CPU's status page, if one is free.
    ///
    /// # Errors
    /// `InUse` (one of them is bound already); `WrongCpu`.
    pub fn bind(self, thread: Thread, cpu: Cpu) -> Result<Option<u32>, Error> {
        let words = [thread.slot().word(), cpu.slot().word()];
        raw::simple(Method::ContextBind, self.slot().0, &words).map(|answer| u32::try_from(answer[0]).ok())
    }

    /// What was charged so far.
    ///
    /// # Errors
    /// `WrongCpu`.
    pub fn consumed(self) -> Result<Consumed, Error> {
        let [own, lost, delivered, structural, interrupts, gone, number, thread] =
            raw::simple(Method::ContextConsumed, self.slot().0, &[])?;
        Ok(Consumed { own, lost, delivered, structural, interrupts, gone, number, thread })
    }

    /// To whom it lost time. `buffer` is the calling thread's own; its contents are overwritten.
    ///
    /// # Errors
    /// `NotMapped` (the caller has no buffer).
    pub fn losers(self, buffer: &mut MessageBuffer) -> Result<Losers, Error> {
        raw::simple(Method::ContextLosers, self.slot().0, &[])?;
        let mut losers = Losers::default();
        for (index, entry) in losers.to.iter_mut().enumerate() {
            *entry = [buffer.word(2 * index), buffer.word(2 * index + 1)];
        }
        let words = 2 * losers.to.len();
        losers.others = buffer.word(words);
        losers.gone = buffer.word(words + 1);
        Ok(losers)
    }

    /// Moves the account of an inactive thread to another CPU.
    ///
    /// # Errors
    /// `Active`.
    pub fn set_home(self, cpu: Cpu) -> Result<(), Error> {
        raw::simple(Method::ContextSetHome, self.slot().0, &[cpu.slot().word()]).map(|_| ())
    }
}
