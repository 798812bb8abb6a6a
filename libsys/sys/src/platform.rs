//! The machine.

use crate::slot::capability;
use crate::*;
use moira_abi::{Method, Tag};

capability! {
    /// The machine: processors to start, interrupts and ports to name, the kernel's log, the end.
    Platform, Platform
}

/// How an interrupt line signals (I/O APIC).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InterruptFlags {
    /// Level rather than edge.
    pub level: bool,
    /// Active low rather than high.
    pub active_low: bool,
}

/// How the run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All went well.
    Success = 0,
    /// It failed; the message buffer says why.
    Failure = 1,
    /// The machine reboots.
    Reboot = 2,
    /// The machine powers off.
    PowerOff = 3,
}

impl Platform {
    /// Starts a processor; its `Cpu` capability, with all rights, is in `slot` when this succeeds.
    ///
    /// # Errors
    /// `Again` until it runs; `SlotInUse`; `NoMemory` (there are as many as the kernel can have).
    pub fn start_cpu(self, apic_id: u32, slot: Slot) -> Result<Cpu, Error> {
        raw::simple(Method::PlatformStartCpu, self.slot().0, &[u64::from(apic_id), slot.word()])?;
        Ok(Cpu::new(slot))
    }

    /// [`Platform::start_cpu`] until the processor runs.
    ///
    /// # Errors
    /// As [`Platform::start_cpu`] but for `Again`.
    pub fn start_cpu_fully(self, apic_id: u32, slot: Slot) -> Result<Cpu, Error> {
        fully(|| self.start_cpu(apic_id, slot))
    }

    /// Names an I/O APIC; answers its number of pins.
    ///
    /// # Errors
    /// `BadArgument` (alignment, memory); `NoMemory` (too many).
    pub fn add_io_apic(self, physical: u64, first_gsi: u32) -> Result<u32, Error> {
        let words = [physical, u64::from(first_gsi)];
        raw::simple(Method::PlatformAddIoApic, self.slot().0, &words).map(|answer| answer[0] as u32)
    }

    /// Makes a fresh interrupt that of an I/O APIC's pin, delivered on `cpu` to `notification` (SIGNAL; its badge gives the bits).
    /// It may fire at once.
    ///
    /// # Errors
    /// `BadArgument` (no such GSI); `InUse` (not fresh); `NoMemory` (no vector of that CPU is free).
    pub fn make_line(
        self,
        interrupt: Interrupt,
        gsi: u32,
        flags: InterruptFlags,
        cpu: Cpu,
        notification: Notification,
    ) -> Result<(), Error> {
        let flags = u64::from(flags.level) | u64::from(flags.active_low) << 1;
        self.make_interrupt([0, u64::from(gsi), flags], interrupt, cpu, notification)
    }

    /// Makes a fresh interrupt a message-signalled one; [`Interrupt::message`] tells what the device must write.
    ///
    /// # Errors
    /// As [`Platform::make_line`].
    pub fn make_msi(self, interrupt: Interrupt, cpu: Cpu, notification: Notification) -> Result<(), Error> {
        self.make_interrupt([1, 0, 0], interrupt, cpu, notification)
    }

    fn make_interrupt(
        self,
        [kind, gsi, flags]: [u64; 3],
        interrupt: Interrupt,
        cpu: Cpu,
        notification: Notification,
    ) -> Result<(), Error> {
        let words = [kind, gsi, flags, interrupt.slot().word(), cpu.slot().word(), notification.slot().word()];
        raw::simple(Method::PlatformMakeInterrupt, self.slot().0, &words).map(|_| ())
    }

    /// Makes a range of ports, both ends inclusive.
    ///
    /// # Errors
    /// `BadArgument`; `NoRight` (ports that the kernel keeps); `SlotInUse`.
    pub fn make_ports(self, first: u16, last: u16, slot: Slot) -> Result<IoPorts, Error> {
        let words = [u64::from(first), u64::from(last), slot.word()];
        raw::simple(Method::PlatformMakeIoPorts, self.slot().0, &words)?;
        Ok(IoPorts::new(slot))
    }

    /// Writes to the kernel's log, at most 4096 bytes; answers how many were taken.
    ///
    /// # Errors
    /// Those of every invocation.
    pub fn log(self, buffer: &mut MessageBuffer, text: &[u8]) -> Result<usize, Error> {
        self.log_with(buffer, text, 0)
    }

    /// [`Platform::log`], but not in the middle of a line of a task that drives the serial line itself.
    ///
    /// # Errors
    /// `Again` (there is such a line).
    pub fn log_between(self, buffer: &mut MessageBuffer, text: &[u8]) -> Result<usize, Error> {
        self.log_with(buffer, text, 1)
    }

    fn log_with(self, buffer: &mut MessageBuffer, text: &[u8], how: u64) -> Result<usize, Error> {
        let bytes = buffer.write(text);
        let tag = Tag::new(0, bytes, 0);
        raw::invoke(Method::PlatformLog, tag, self.slot().0, &[how, 0]).check().map(|_| bytes)
    }

    /// Ends the run or the machine; `why` goes to the kernel's log.
    ///
    /// # Errors
    /// Returns only with an error.
    pub fn end(self, buffer: &mut MessageBuffer, outcome: Outcome, why: &[u8]) -> Error {
        let bytes = buffer.write(why);
        match raw::invoke(Method::PlatformEnd, Tag::new(0, bytes, 0), self.slot().0, &[outcome as u64]).check() {
            Ok(_) => Error::Inactive,
            Err(error) => error,
        }
    }

    /// Makes a frame of device memory or firmware tables: readable and writable, `size` in size, at a multiple of it.
    ///
    /// # Errors
    /// `BadArgument` (alignment, or the kernel gave that memory out); `SlotInUse`.
    pub fn make_frame(self, physical: u64, size: FrameSize, slot: Slot) -> Result<Frame, Error> {
        let words = [physical, u64::from(size.bits()), slot.word()];
        raw::simple(Method::PlatformMakeFrame, self.slot().0, &words)?;
        Ok(Frame::new(slot))
    }

    /// Copies trace events of one CPU, from event number `first` on, to the caller's message buffer, 32 bytes each.
    ///
    /// # Errors
    /// `BadArgument` (no such CPU).
    pub fn trace(self, cpu_index: u32, first: u64) -> Result<TraceCopy, Error> {
        let words = [u64::from(cpu_index), first];
        let [next, first, written, ..] = raw::simple(Method::PlatformTrace, self.slot().0, &words)?;
        Ok(TraceCopy { first, next, written })
    }

    /// Switches the trace of all CPUs on for some kinds of events (bit n: [`moira_abi::trace::kind`] n; 1: all), or off (0); answers how
    /// many events this CPU wrote so far.
    ///
    /// # Errors
    /// `BadArgument` (no such CPU).
    pub fn set_trace(self, cpu_index: u32, kinds: u64) -> Result<u64, Error> {
        let words = [u64::from(cpu_index), u64::MAX, kinds];
        raw::simple(Method::PlatformTrace, self.slot().0, &words).map(|answer| answer[0])
    }
}

/// What [`Platform::trace`] copied: events `first` to `next` (not included). Older ones than `first` are overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceCopy {
    /// Number of the first event in the buffer.
    pub first: u64,
    /// Number of the event after the last one.
    pub next: u64,
    /// Events ever written.
    pub written: u64,
}
