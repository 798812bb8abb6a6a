//! Capabilities that came with a call: keeping one, letting it go, and emptying the receive slots.

use crate::memory::Slots;
use moira_sys::{CapTable, Capability, Error, Received};

/// Moves the call's capability `index` out of the receive slots into one of `slots`. `None`, and all is as before, if there is none,
/// it is of another kind, or the table is full.
pub fn keep<T: Capability>(table: CapTable, slots: &mut Slots, call: &Received, index: usize) -> Option<T> {
    let slot = call.capability(index)?;
    if !table.inspect(slot).is_ok_and(|found| found.kind == Some(T::TYPE)) {
        return None;
    }
    let kept = slots.take(1)?;
    let moved = table.move_to(T::at(slot), kept);
    if moved.is_err() {
        slots.give(kept, 1);
    }
    moved.ok()
}

/// Lets go of a capability that was kept.
pub fn let_go(table: CapTable, slots: &mut Slots, capability: impl Capability) {
    let slot = capability.slot();
    // Empty: its object died, and all capabilities of it.
    if matches!(table.delete_fully(slot), Ok(()) | Err(Error::Empty)) {
        slots.give(slot, 1);
    }
}

/// Empties the receive slots before the answer: what one client sent unasked must not take the place of what the next one sends.
pub fn drop_rest(table: CapTable, call: &Received) {
    for slot in (0..call.caps).filter_map(|index| call.capability(index)) {
        // Empty: it was kept, in another slot.
        let _ = table.delete_fully(slot);
    }
}
