//! Frames and the spaces they are mapped in.

use crate::slot::capability;
use crate::*;
use moira_abi::{Method, method::map};

capability! {
    /// A page of memory or device memory: 4 KiB, 2 MiB or 1 GiB. It is mapped at one place for each of its capabilities;
    /// copy the capability to map it twice.
    Frame, Frame
}

capability! {
    /// A task's translation from virtual to physical addresses.
    AddressSpace, AddressSpace
}

capability! {
    /// A guest's translation from guest-physical to physical addresses.
    GuestSpace, AddressSpace
}

/// How a frame is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapFlags(u64);

impl MapFlags {
    /// For reading.
    pub const READ: MapFlags = MapFlags(Rights::READ.0 as u64);
    /// For reading and writing.
    pub const READ_WRITE: MapFlags = MapFlags((Rights::READ.0 | Rights::WRITE.0) as u64);
    /// For reading and execution.
    pub const READ_EXECUTE: MapFlags = MapFlags((Rights::READ.0 | Rights::EXECUTE.0) as u64);
    /// For everything: guest spaces only.
    pub const GUEST_ALL: MapFlags = MapFlags((Rights::READ.0 | Rights::WRITE.0 | Rights::EXECUTE.0) as u64);

    /// Uncached, for device registers.
    #[must_use]
    pub const fn uncached(self) -> MapFlags {
        MapFlags(self.0 | map::UNCACHED)
    }

    /// Write-combining, for frame buffers.
    #[must_use]
    pub const fn write_combining(self) -> MapFlags {
        MapFlags(self.0 | map::WRITE_COMBINING)
    }
}

/// What task and guest spaces have in common. All methods are structural; none blocks.
pub trait Space: Capability {
    /// Maps a frame at `address` (virtual or guest-physical, a multiple of the frame's size).
    ///
    /// # Errors
    /// `BadArgument` (alignment, range), `NoRight` (beyond the frame's rights; writable and executable in a task space), `InUse` (the
    /// capability is mapped already or not flushed yet, or something is mapped there), `NoMemory` (page tables:
    /// [`Space::add_memory`]).
    fn map(self, frame: Frame, address: u64, flags: MapFlags) -> Result<(), Error> {
        raw::simple(Method::SpaceMap, self.slot().0, &[frame.slot().word(), address, flags.0]).map(|_| ())
    }

    /// Removes the mapping of this frame capability.
    ///
    /// # Errors
    /// `NotMapped`; `BadArgument` (mapped in another space); `Retiring`: gone from the table, but another CPU may still use it; call again until it succeeds.
    fn unmap(self, frame: Frame) -> Result<(), Error> {
        raw::simple(Method::SpaceUnmap, self.slot().0, &[frame.slot().word()]).map(|_| ())
    }

    /// [`Space::unmap`], coming back until no CPU can see the mapping.
    ///
    /// # Errors
    /// `NotMapped`.
    fn unmap_fully(self, frame: Frame) -> Result<(), Error> {
        unmap_loop(|| self.unmap(frame))
    }

    /// Changes rights and caching of this frame capability's mapping.
    ///
    /// # Errors
    /// As [`Space::map`]; `NotMapped`; `Retiring`: changed, but another CPU may still use the old rights; call again.
    fn protect(self, frame: Frame, flags: MapFlags) -> Result<(), Error> {
        raw::simple(Method::SpaceProtect, self.slot().0, &[frame.slot().word(), flags.0]).map(|_| ())
    }

    /// [`Space::protect`], coming back until all CPUs use the new rights.
    ///
    /// # Errors
    /// As [`Space::protect`] but for `Retiring`.
    fn protect_fully(self, frame: Frame, flags: MapFlags) -> Result<(), Error> {
        fully(|| self.protect(frame, flags))
    }

    /// Donates an untouched untyped, which becomes page tables.
    ///
    /// # Errors
    /// `BadArgument` (something was made from it), `Revoking` (not clean).
    fn add_memory(self, memory: Untyped) -> Result<(), Error> {
        raw::simple(Method::SpaceAddMemory, self.slot().0, &[memory.slot().word()]).map(|_| ())
    }
}

/// An unmap that was told *Retiring* may find nothing mapped when it comes back: then it is done.
fn unmap_loop(mut step: impl FnMut() -> Result<(), Error>) -> Result<(), Error> {
    let mut retiring = false;
    loop {
        match step() {
            Err(Error::Retiring | Error::Again) => retiring = true,
            Err(Error::NotMapped) if retiring => return Ok(()),
            other => return other,
        }
        core::hint::spin_loop();
    }
}

impl Space for AddressSpace {}
impl Space for GuestSpace {}
