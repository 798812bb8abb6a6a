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
}

impl Platform {
    /// Starts a processor; its `Cpu` capability, with all rights, is in `slot` when this succeeds.
    ///
    /// # Errors
    /// `Again` until it runs; `InUse` (it runs already); `BadArgument`; `NoHardware` (it does not answer).
    pub fn start_cpu(self, apic_id: u32, slot: Slot) -> Result<Cpu, Error> {
        raw::simple(Method::PlatformStartCpu, self.slot().0, &[u64::from(apic_id), slot.word()])?;
        Ok(Cpu::new(slot))
    }

    /// Names an I/O APIC; answers its number of pins.
    ///
    /// # Errors
    /// `InUse`; `BadArgument`; `NoMemory` (too many).
    pub fn add_io_apic(self, physical: u64, first_gsi: u32) -> Result<u32, Error> {
        let words = [physical, u64::from(first_gsi)];
        raw::simple(Method::PlatformAddIoApic, self.slot().0, &words).map(|answer| answer[0] as u32)
    }

    /// Makes the interrupt of an I/O APIC's pin, delivered on `cpu` to `notification`.
    ///
    /// # Errors
    /// `BadArgument` (no such GSI); `InUse`; `SlotInUse`; `NoMemory` (no vector is free).
    pub fn make_line(
        self,
        gsi: u32,
        flags: InterruptFlags,
        cpu: Cpu,
        notification: Notification,
        slot: Slot,
    ) -> Result<Interrupt, Error> {
        let flags = u64::from(flags.level) | u64::from(flags.active_low) << 1;
        self.make_interrupt([0, u64::from(gsi), flags, slot.word(), cpu.slot().word(), notification.slot().word()])
            .map(|()| Interrupt::new(slot))
    }

    /// Makes a message-signalled interrupt; [`Interrupt::message`] tells what the device must write.
    ///
    /// # Errors
    /// As [`Platform::make_line`].
    pub fn make_msi(self, cpu: Cpu, notification: Notification, slot: Slot) -> Result<Interrupt, Error> {
        self.make_interrupt([1, 0, 0, slot.word(), cpu.slot().word(), notification.slot().word()])
            .map(|()| Interrupt::new(slot))
    }

    fn make_interrupt(self, words: [u64; 6]) -> Result<(), Error> {
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
        let bytes = buffer.write(text);
        raw::invoke(Method::PlatformLog, Tag::new(0, bytes, 0), self.slot().0, &[]).check().map(|_| bytes)
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

    /// Copies trace events of one CPU, from a byte offset of its ring on, to the caller's message buffer; answers how many bytes.
    ///
    /// # Errors
    /// `BadArgument` (no such CPU or offset).
    pub fn trace(self, cpu_index: u32, offset: u64) -> Result<usize, Error> {
        let words = [u64::from(cpu_index), offset];
        let answer = raw::invoke(Method::PlatformTrace, Tag::default(), self.slot().0, &words).check()?;
        Ok(answer.tag.bytes())
    }

    /// Runs the kernel's invariant check (debug builds) on what was made from `untyped`; answers the live objects.
    ///
    /// # Errors
    /// `NoMethod` in release builds.
    pub fn check(self, untyped: Untyped) -> Result<u64, Error> {
        raw::simple(Method::PlatformCheck, self.slot().0, &[untyped.slot().word()]).map(|answer| answer[0])
    }
}
