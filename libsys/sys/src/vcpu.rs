//! Virtual processors.

use crate::slot::capability;
use crate::*;
use moira_abi::{Method, vcpu::Exit};

capability! {
    /// A virtual processor and its state page ([`abi::vcpu::VcpuState`]).
    Vcpu, Vcpu
}

/// Why the guest stopped and what the kernel wrote to the state page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VcpuExit {
    /// The reason.
    pub reason: Exit,
    /// [`abi::vcpu::group`] bits that are current on the state page; general-purpose registers always are.
    pub groups: u64,
}

impl Vcpu {
    /// Gives it a state page (a 4 KiB frame, readable and writable), a guest space and a home (slot [`Slot::NONE`]: the
    /// caller's own CPU).
    ///
    /// # Errors
    /// `Active`; `BadArgument` (frame size); `NoRight`.
    pub fn configure(self, state: Frame, space: GuestSpace, cpu: Cpu) -> Result<(), Error> {
        let words = [state.slot().word(), space.slot().word(), cpu.slot().word()];
        raw::simple(Method::VcpuConfigure, self.slot().0, &words).map(|_| ())
    }

    /// Enters the guest, on the caller's time. `changed`: groups of the state page that the caller wrote. `until`: exits
    /// when that time comes.
    ///
    /// # Errors
    /// `Inactive` (not configured), `WrongCpu`, `InUse`. A state that cannot be entered is no error but the exit *InvalidState*.
    #[inline(always)]
    pub fn run(self, changed: u64, until: Deadline) -> Result<VcpuExit, Error> {
        let [reason, groups, ..] = raw::simple(Method::VcpuRun, self.slot().0, &[changed, until.0])?;
        Ok(VcpuExit { reason: Exit::from_code(reason).unwrap_or(Exit::Other), groups })
    }

    /// [`Vcpu::run`] with the reason as the number it came as: for loops where each instruction counts.
    ///
    /// # Errors
    /// As [`Vcpu::run`].
    #[inline(always)]
    pub fn run_raw(self, changed: u64, until: Deadline) -> Result<(u64, u64), Error> {
        let [reason, groups, ..] = raw::simple(Method::VcpuRun, self.slot().0, &[changed, until.0])?;
        Ok((reason, groups))
    }

    /// Makes a running guest exit with *Kicked*, or the next `run` return at once, once. From any CPU.
    ///
    /// # Errors
    /// `Inactive`.
    pub fn kick(self) -> Result<(), Error> {
        raw::simple(Method::VcpuKick, self.slot().0, &[]).map(|_| ())
    }

    /// Gives it another guest space.
    ///
    /// # Errors
    /// `WrongCpu`; `BadArgument` (not a guest space).
    pub fn set_space(self, space: GuestSpace) -> Result<(), Error> {
        raw::simple(Method::VcpuSetSpace, self.slot().0, &[space.slot().word()]).map(|_| ())
    }

    /// Lets the guest read or write a model-specific register without an exit.
    ///
    /// # Errors
    /// `NoRight` (not one of the harmless ones); `WrongCpu`.
    pub fn allow_msr(self, number: u32, read: bool, write: bool) -> Result<(), Error> {
        let access = u64::from(read) | u64::from(write) << 1;
        raw::simple(Method::VcpuAllowMsr, self.slot().0, &[u64::from(number), access]).map(|_| ())
    }

    /// Lets the guest reach these ports without an exit.
    ///
    /// # Errors
    /// `WrongCpu`.
    pub fn allow_ports(self, ports: IoPorts) -> Result<(), Error> {
        raw::simple(Method::VcpuAllowPorts, self.slot().0, &[ports.slot().word(), 0]).map(|_| ())
    }
}
