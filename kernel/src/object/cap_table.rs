//! `CapTable`: a table of capabilities. ABI: `docs/abi/cap-table.md`.

use super::Header;
use crate::{
    cap::{self, Budget, Cap, Slot},
    memory::{Obj, Object},
    object::thread::Thread,
};
use core::cell::Cell;
use moira_abi::{Error, ObjectType, Rights};

/// The header takes the room of slots 0 and 1.
#[repr(C)]
pub struct CapTable {
    /// Header.
    pub header: Header,
    /// Usable slots, indices 2 to this + 1.
    pub slots: Cell<u64>,
    /// Progress of emptying, while its untyped is revoked.
    pub cursor: Cell<u64>,
}

impl Object for CapTable {
    const KIND: ObjectType = ObjectType::CapTable;
}

/// Makes a fresh table know its size.
pub fn init(table: Obj<CapTable>, bits: u8) {
    table.slots.set(moira_abi::object::cap_table_slots(bits) as u64);
}

impl Obj<CapTable> {
    /// Reads a slot without a lock.
    #[inline(always)]
    pub fn read(self, index: u64) -> Result<Cap, Error> {
        Ok(cap::slot_of(self, index)?.read())
    }

    /// The object that a slot names.
    #[inline(always)]
    pub fn object<T: Object>(self, index: u64, rights: Rights) -> Result<Obj<T>, Error> {
        self.read(index)?.object(rights)
    }

    /// An empty slot.
    pub fn empty_slot(self, index: u64) -> Result<Obj<Slot>, Error> {
        let slot = cap::slot_of(self, index)?;
        if slot.is_empty() { Ok(slot) } else { Err(Error::SlotInUse) }
    }
}

/// `copy` (badge none) and `mint`: W0 source in the caller's table, W1 destination in this table, W2 rights, W3 badge.
pub fn derive(table: Obj<CapTable>, caller: Obj<Thread>, mint: bool) -> Result<(), Error> {
    let from = cap::slot_of(caller.table()?, caller.word(0))?;
    let to = cap::slot_of(table, caller.word(1))?;
    let rights = Rights(u8::try_from(caller.word(2)).map_err(|_| Error::BadArgument)?);
    cap::derive(from, to, rights, mint.then(|| caller.word(3)))
}

/// `move`: W0 source in the caller's table, W1 destination in this table.
pub fn relocate(table: Obj<CapTable>, caller: Obj<Thread>) -> Result<(), Error> {
    let from = cap::slot_of(caller.table()?, caller.word(0))?;
    let to = cap::slot_of(table, caller.word(1))?;
    if from.is_empty() {
        return Err(Error::Empty);
    }
    cap::relocate(from, to)
}

/// `delete`: W0 slot of this table. *Again* while derived capabilities remain.
pub fn delete(table: Obj<CapTable>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(table, caller.word(0))?;
    let cap = slot.read();
    if cap.word.is_empty() {
        return Err(Error::Empty);
    }
    if cap.word.kind_code() == ObjectType::Untyped as u8 && super::untyped::in_use(cap) {
        return Err(Error::InUse);
    }
    if cap::delete_some(slot, &mut Budget::new()) { Ok(()) } else { Err(Error::Again) }
}

/// `revoke`: W0 slot of this table; removes what is derived from it. *Again* until done.
pub fn revoke(table: Obj<CapTable>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(table, caller.word(0))?;
    if slot.is_empty() {
        return Err(Error::Empty);
    }
    if cap::revoke_some(slot, &mut Budget::new()) { Ok(()) } else { Err(Error::Again) }
}

/// `inspect`: W0 slot; answers W0 type, W1 rights, W2 badge.
pub fn inspect(table: Obj<CapTable>, caller: Obj<Thread>) -> Result<(), Error> {
    let cap = table.read(caller.word(0))?;
    let badge = match cap.word.kind() {
        Some(ObjectType::Endpoint | ObjectType::Notification) => cap.badge,
        _ => 0,
    };
    caller.answer3(cap.word.kind_code() as u64, cap.word.rights().0 as u64, badge);
    Ok(())
}

/// Empties the next slots of a table that is being destroyed. Answers whether it is empty.
pub fn empty_some(table: Obj<CapTable>, budget: &mut Budget) -> bool {
    while table.cursor.get() < table.slots.get() {
        let Ok(slot) = cap::slot_of(table, table.cursor.get() + 2) else { return true };
        // Empty slots are cheap, but not free.
        if !budget.spend(3) || !slot.is_empty() && !cap::delete_some(slot, budget) {
            return false;
        }
        table.cursor.set(table.cursor.get() + 1);
    }
    true
}
