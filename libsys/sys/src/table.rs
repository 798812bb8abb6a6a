//! Capability tables.

use crate::slot::capability;
use crate::*;
use moira_abi::Method;

capability! {
    /// A table of capabilities. Sources are always slots of the caller's table; destinations are slots of the table invoked.
    CapTable, CapTable
}

/// What [`CapTable::inspect`] answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inspected {
    /// What the capability names; `None`: the slot is empty.
    pub kind: Option<ObjectType>,
    /// Its rights.
    pub rights: Rights,
    /// Its badge.
    pub badge: u64,
}

impl CapTable {
    /// Copies a capability with at most `rights`. The handle is for tasks whose table this is. A copy of an [`Untyped`] lends the
    /// memory: the copy makes objects, the original makes none until `revoke` on it has taken the copy back.
    ///
    /// # Errors
    /// `NotCopyable` (an untyped that something was made of, or that is lent), `SlotInUse`, `NoSlot`, `TooDeep`.
    pub fn copy<T: Capability>(self, source: T, destination: Slot, rights: Rights) -> Result<T, Error> {
        let words = [source.slot().word(), destination.word(), u64::from(rights.0)];
        raw::simple(Method::CapCopy, self.slot().0, &words)?;
        Ok(T::at(destination))
    }

    /// Copies a capability and gives the copy a badge: who calls, or which bits are signalled.
    ///
    /// # Errors
    /// As [`CapTable::copy`]; `BadArgument` if the source has a badge already.
    pub fn mint<T: Badged>(self, source: T, destination: Slot, rights: Rights, badge: u64) -> Result<T, Error> {
        let words = [source.slot().word(), destination.word(), u64::from(rights.0), badge];
        raw::simple(Method::CapMint, self.slot().0, &words)?;
        Ok(T::at(destination))
    }

    /// Moves a capability; the source slot is empty afterwards.
    ///
    /// # Errors
    /// `SlotInUse`, `NoSlot`.
    pub fn move_to<T: Capability>(self, source: T, destination: Slot) -> Result<T, Error> {
        raw::simple(Method::CapMove, self.slot().0, &[source.slot().word(), destination.word()])?;
        Ok(T::at(destination))
    }

    /// Empties a slot of this table, and those of capabilities derived from it; a mapped frame is unmapped, but other CPUs may use the
    /// mapping a little longer ([`Space::unmap_fully`] waits for them). The object lives on.
    ///
    /// # Errors
    /// `Again` (derived capabilities remain), `Empty`, `InUse` (an untyped of which something was made), `NoSlot`.
    pub fn delete(self, slot: Slot) -> Result<(), Error> {
        raw::simple(Method::CapDelete, self.slot().0, &[slot.word()]).map(|_| ())
    }

    /// [`CapTable::delete`], coming back until it is done.
    ///
    /// # Errors
    /// As [`CapTable::delete`] but for `Again`. A slot found empty after a first *Again* is success.
    pub fn delete_fully(self, slot: Slot) -> Result<(), Error> {
        let mut retiring = false;
        loop {
            match self.delete(slot) {
                Err(Error::Retiring | Error::Again) => retiring = true,
                Err(Error::Empty) if retiring => return Ok(()),
                other => return other,
            }
            core::hint::spin_loop();
        }
    }

    /// Removes capabilities derived from the one in a slot of this table, a bounded number a call.
    ///
    /// # Errors
    /// `Again`, `Retiring`: call again.
    pub fn revoke(self, slot: Slot) -> Result<(), Error> {
        raw::simple(Method::CapRevoke, self.slot().0, &[slot.word()]).map(|_| ())
    }

    /// [`CapTable::revoke`] until it is done.
    ///
    /// # Errors
    /// Never `Again` or `Retiring`.
    pub fn revoke_fully(self, slot: Slot) -> Result<(), Error> {
        fully(|| self.revoke(slot))
    }

    /// What a slot of this table holds.
    ///
    /// # Errors
    /// `NoSlot`.
    pub fn inspect(self, slot: Slot) -> Result<Inspected, Error> {
        let [kind, rights, badge, ..] = match raw::simple(Method::CapInspect, self.slot().0, &[slot.word()]) {
            Err(Error::Empty) => [0; 8],
            other => other?,
        };
        let kind = u8::try_from(kind).ok().and_then(ObjectType::from_code);
        Ok(Inspected { kind, rights: Rights(rights as u8), badge })
    }
}

/// Kinds of capability that carry a badge.
pub trait Badged: Capability {}

impl Badged for Endpoint {}
impl Badged for Notification {}
