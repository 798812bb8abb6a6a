//! Memory to make objects from.

use crate::slot::capability;
use crate::*;
use moira_abi::{Method, object::space_kind};

capability! {
    /// A power-of-two block of physical memory.
    Untyped, Untyped
}

/// What [`Untyped::info`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UntypedInfo {
    /// Physical address.
    pub address: u64,
    /// log2 of the size in bytes.
    pub size_bits: u8,
    /// Bytes that nothing was made of yet.
    pub free: u64,
    /// [`abi::boot::untyped_kind`].
    pub kind: u32,
}

impl Untyped {
    /// Makes `count` (1–16) objects in consecutive empty slots of the caller's table. `size`: see
    /// [`ObjectType::size_bits`](moira_abi::ObjectType::size_bits); for address spaces the kind.
    fn retype<T: Capability>(self, size: u8, count: u32, first: Slot) -> Result<Caps<T>, Error> {
        let words = [T::TYPE as u64, u64::from(size), u64::from(count), first.word()];
        raw::simple(Method::UntypedRetype, self.slot().0, &words)?;
        Ok(Caps::new(first, count))
    }

    /// Makes `count` (1–16) untypeds of `2^size_bits` bytes (12–47), each aligned to its size.
    ///
    /// # Errors
    /// All `retype` methods: `BadArgument` (size or count), `NoMemory`, `SlotInUse`, `NoSlot`, `Revoking` (this
    /// memory is not clean; [`Untyped::revoke_fully`] cleans it), `InUse` (it is lent), `TooDeep`.
    pub fn retype_untypeds(self, size_bits: u8, count: u32, first: Slot) -> Result<Caps<Untyped>, Error> {
        self.retype(size_bits, count, first)
    }

    /// Makes `count` (1–16) frames.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_frames(self, size: FrameSize, count: u32, first: Slot) -> Result<Caps<Frame>, Error> {
        self.retype(size.bits(), count, first)
    }

    /// Makes a task's address space. It has no memory for page tables yet: [`Space::add_memory`].
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_space(self, slot: Slot) -> Result<AddressSpace, Error> {
        self.retype::<AddressSpace>(space_kind::TASK, 1, slot).map(|_| AddressSpace::new(slot))
    }

    /// Makes a guest's address space.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`]; `NoHardware`.
    pub fn retype_guest_space(self, slot: Slot) -> Result<GuestSpace, Error> {
        self.retype::<GuestSpace>(space_kind::GUEST, 1, slot).map(|_| GuestSpace::new(slot))
    }

    /// Makes a capability table of `2^size_bits` bytes (7–21), which has `2^(size_bits-5) - 2` slots.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_table(self, size_bits: u8, slot: Slot) -> Result<CapTable, Error> {
        self.retype::<CapTable>(size_bits, 1, slot).map(|_| CapTable::new(slot))
    }

    /// Makes `count` (1–16) threads.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_threads(self, count: u32, first: Slot) -> Result<Caps<Thread>, Error> {
        self.retype(0, count, first)
    }

    /// Makes `count` (1–16) scheduling contexts.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_contexts(self, count: u32, first: Slot) -> Result<Caps<SchedContext>, Error> {
        self.retype(0, count, first)
    }

    /// Makes `count` (1–16) endpoints.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_endpoints(self, count: u32, first: Slot) -> Result<Caps<Endpoint>, Error> {
        self.retype(0, count, first)
    }

    /// Makes `count` (1–16) notifications.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_notifications(self, count: u32, first: Slot) -> Result<Caps<Notification>, Error> {
        self.retype(0, count, first)
    }

    /// Makes `count` (1–16) interrupts without a source: [`Platform::make_line`], [`Platform::make_msi`].
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_interrupts(self, count: u32, first: Slot) -> Result<Caps<Interrupt>, Error> {
        self.retype(0, count, first)
    }

    /// Makes `count` (1–16) virtual processors.
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`]; `NoHardware`.
    pub fn retype_vcpus(self, count: u32, first: Slot) -> Result<Caps<Vcpu>, Error> {
        self.retype(0, count, first)
    }

    /// Makes an empty plan of `2^size_bits` bytes (8–20).
    ///
    /// # Errors
    /// As [`Untyped::retype_untypeds`].
    pub fn retype_plan(self, size_bits: u8, slot: Slot) -> Result<Plan, Error> {
        self.retype::<Plan>(size_bits, 1, slot).map(|_| Plan::new(slot))
    }

    /// Ends every object made from this memory and zeroes it, one bounded step a call.
    ///
    /// # Errors
    /// `Again`: one step was done, call again. `Retiring`: another CPU still uses an object, call again later.
    pub fn revoke(self) -> Result<(), Error> {
        raw::simple(Method::UntypedRevoke, self.slot().0, &[]).map(|_| ())
    }

    /// [`Untyped::revoke`] until it is done.
    ///
    /// # Errors
    /// Never `Again` or `Retiring`.
    pub fn revoke_fully(self) -> Result<(), Error> {
        fully(|| self.revoke())
    }

    /// Where and how much.
    ///
    /// # Errors
    /// Those of every invocation (`Empty`, `NoSlot`, `WrongType`, `NoRight`).
    pub fn info(self) -> Result<UntypedInfo, Error> {
        let [address, size_bits, free, kind, ..] = raw::simple(Method::UntypedInfo, self.slot().0, &[])?;
        Ok(UntypedInfo { address, size_bits: size_bits as u8, free, kind: kind as u32 })
    }
}
