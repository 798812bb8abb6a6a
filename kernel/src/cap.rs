//! Capability slots: reading without a lock, writing under the structural lock, derivation.

use crate::{
    memory::{Obj, Object},
    object::{address_space, cap_table::CapTable, untyped, vcpu},
};
use core::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::*},
};
use moira_abi::{Error, ObjectType, Rights};
use moira_kernel_core::{
    capword::CapWord,
    derivation::{self, Links},
};

/// Mark of a vCPU's slot for its state page.
pub const STATE_PAGE: u16 = 2;

/// A slot's physical address. (One bit less than there is room for: the compiler then sees that it does not touch `DIRECT_MAP`.)
const LINK: u64 = (1 << 47) - 1;
/// The number of a flush, as far as it is kept, and the depth in the bits of `next` above the link.
const FLUSH: u64 = 0x3ff << 48;
const DEPTH: u64 = 63 << 58;

/// A slot: word 0 (object, rights, generation), word 1 (badge, or where a frame is mapped), and the derivation links with
/// the depth in the upper bits of `next` and a mark in those of `previous`.
#[repr(C, align(32))]
pub struct Slot {
    word0: AtomicU64,
    word1: AtomicU64,
    next: Cell<u64>,
    previous: Cell<u64>,
}

static_assertions::assert_eq_size!(Slot, [u8; 32]);

/// What a lock-free read of a slot gives.
#[derive(Clone, Copy)]
pub struct Cap {
    /// Word 0.
    pub word: CapWord,
    /// Badge or mapping.
    pub badge: u64,
}

impl Cap {
    /// The object, if it has this type and these rights.
    #[inline(always)]
    pub fn object<T: Object>(self, rights: Rights) -> Result<Obj<T>, Error> {
        if self.word.is(T::KIND, rights) {
            return Obj::from_word(self.word).ok_or(Error::WrongType);
        }
        Err(self.why_not(T::KIND))
    }

    /// A frame's physical address, if it is a frame with these rights.
    pub fn frame(self, rights: Rights) -> Result<u64, Error> {
        self.require(ObjectType::Frame, rights)?;
        Ok(self.word.address())
    }

    /// Whether it is one to this type with these rights.
    #[inline(always)]
    pub fn require(self, kind: ObjectType, rights: Rights) -> Result<(), Error> {
        if self.word.is(kind, rights) { Ok(()) } else { Err(self.why_not(kind)) }
    }

    /// Why a capability is not one to this type with the rights that were asked for.
    #[cold]
    pub fn why_not(self, kind: ObjectType) -> Error {
        if self.word.is_empty() {
            Error::Empty
        } else if self.word.kind_code() != kind as u8 {
            Error::WrongType
        } else {
            Error::NoRight
        }
    }
}

impl Slot {
    /// Reads the slot without a lock. Word 0 is read again after word 1: if it changed, the slot was empty at some moment.
    #[inline(always)]
    pub fn read(&self) -> Cap {
        self.read_quiet().unwrap_or(Cap { word: CapWord::EMPTY, badge: 0 })
    }

    /// Word 0 alone.
    #[inline(always)]
    pub fn word(&self) -> CapWord {
        CapWord(self.word0.load(Acquire))
    }

    /// The object in a slot inside an object, which only ever holds capabilities to one type.
    #[inline(always)]
    pub fn embedded<T: Object>(&self) -> Option<Obj<T>> {
        let word = self.word();
        debug_assert!(word.is_empty() || word.kind_code() == T::KIND as u8);
        // SAFETY: the slot lies inside an object whose code puts nothing but capabilities to `T` there.
        (!word.is_empty()).then(|| unsafe { Obj::at(word.address()) })
    }

    /// What a lock-free read gives if nobody is writing the slot at this moment.
    #[inline(always)]
    pub fn read_quiet(&self) -> Option<Cap> {
        let word = self.word0.load(Acquire);
        let badge = self.word1.load(Acquire);
        (self.word0.load(Relaxed) == word).then_some(Cap { word: CapWord(word), badge })
    }

    /// Whether nothing is here.
    pub fn is_empty(&self) -> bool {
        self.word().is_empty()
    }

    /// Puts a capability here that is derived from nothing (boot), or whose links are set.
    pub fn write(&self, word: CapWord, badge: u64) {
        let generation = self.word0.load(Relaxed) >> 54;
        self.word0.store(generation << 54, Release);
        self.word1.store(badge, Release);
        self.word0.store(word.with_generation(generation + 1 & 0x3ff).0, Release);
    }

    /// Empties the slot's words (not its links). The generation stays.
    fn clear(&self) {
        let generation = self.word0.load(Relaxed) >> 54;
        self.word0.store((generation + 1 & 0x3ff) << 54, Release);
        self.word1.store(0, Release);
    }

    /// Records where a frame is mapped (structural lock held).
    pub fn set_mapping(&self, mapping: u64) {
        self.word1.store(mapping, Release);
    }

    /// Extra bits of a frame's mapping (structural lock held).
    pub fn mark(&self) -> u16 {
        (self.previous.get() >> 48) as u16
    }

    /// Remembers which flush an unmapping or protecting waits for: ten bits of its number, as flushes are numbered one by one.
    pub fn await_flush(&self, number: u64) {
        self.next.set(self.next.get() & !FLUSH | number << 48 & FLUSH);
    }

    /// That flush, or a later one up to `last`.
    pub fn awaited_flush(&self, last: u64) -> u64 {
        last.wrapping_sub(last.wrapping_sub(self.next.get() >> 48) & FLUSH >> 48)
    }

    /// Sets them.
    pub fn set_mark(&self, mark: u16) {
        self.previous.set(self.previous.get() & LINK | (mark as u64) << 48);
    }
}

/// The links of all slots, named by their physical addresses.
struct SlotLinks;

fn slot(address: u64) -> Obj<Slot> {
    // SAFETY: only addresses of slots are ever stored in links.
    unsafe { Obj::at(address) }
}

impl Links for SlotLinks {
    fn next(&self, at: u64) -> u64 {
        slot(at).next.get() & LINK
    }
    fn previous(&self, at: u64) -> u64 {
        slot(at).previous.get() & LINK
    }
    fn depth(&self, at: u64) -> u16 {
        (slot(at).next.get() >> 58) as u16
    }
    fn child(&self, at: u64) -> Option<u64> {
        // The depths are the highest bits.
        let word = slot(at).next.get();
        let next = word & LINK;
        (next != 0 && slot(next).next.get() > word | !DEPTH).then_some(next)
    }
    fn set_next(&self, at: u64, next: u64) {
        let at = slot(at);
        at.next.set(at.next.get() & !LINK | next);
    }
    fn set_previous(&self, at: u64, previous: u64) {
        let at = slot(at);
        at.previous.set(at.previous.get() & !LINK | previous);
    }
    fn set_depth(&self, at: u64, depth: u16) {
        let at = slot(at);
        at.next.set(at.next.get() & !DEPTH | (depth as u64) << 58);
    }
}

/// Whether something may be derived from this one.
pub fn may_derive(parent: Obj<Slot>) -> Result<(), Error> {
    if SlotLinks.depth(parent.physical()) < derivation::MAX_DEPTH { Ok(()) } else { Err(Error::TooDeep) }
}

/// Puts a capability into an empty slot as a child of `parent`.
pub fn insert(parent: Obj<Slot>, to: Obj<Slot>, word: CapWord, badge: u64) -> Result<(), Error> {
    if !to.is_empty() {
        return Err(Error::SlotInUse);
    }
    may_derive(parent)?;
    put(parent, to, word, badge);
    Ok(())
}

/// The same where both are known to be so.
pub fn put(parent: Obj<Slot>, to: Obj<Slot>, word: CapWord, badge: u64) {
    derivation::insert_child(&SlotLinks, parent.physical(), to.physical());
    to.set_mark(0);
    to.write(word, badge);
}

/// Moves a capability to an empty slot.
pub fn relocate(from: Obj<Slot>, to: Obj<Slot>) -> Result<(), Error> {
    if !to.is_empty() {
        return Err(Error::SlotInUse);
    }
    let (cap, mark) = (from.read(), from.mark());
    from.clear();
    derivation::replace(&SlotLinks, from.physical(), to.physical());
    to.set_mark(mark);
    to.await_flush(from.next.get() >> 48);
    to.write(cap.word, cap.badge);
    Ok(())
}

/// Copies a capability with fewer rights (and a badge, if the source has none). Frames come without their mapping. A copy of an
/// untyped memory lends it: see `object/untyped.rs`. With the structural lock held nobody else writes the slot.
pub fn derive(from: Obj<Slot>, to: Obj<Slot>, rights: Rights, badge: Option<u64>) -> Result<(), Error> {
    let cap = Cap { word: from.word(), badge: from.word1.load(Relaxed) };
    let kind = cap.word.kind().ok_or(Error::Empty)?;
    if kind == ObjectType::Untyped && (untyped::in_use(cap) || has_descendants(from)) {
        return Err(Error::NotCopyable);
    }
    let badge = match (kind, badge) {
        (ObjectType::Frame, None) => 0,
        (_, None) => cap.badge,
        (ObjectType::Endpoint | ObjectType::Notification, Some(badge)) if cap.badge == 0 => badge,
        (ObjectType::Endpoint | ObjectType::Notification, Some(_)) => return Err(Error::BadArgument),
        (_, Some(_)) => return Err(Error::WrongType),
    };
    insert(from, to, cap.word.with_rights(cap.word.rights().and(rights)), badge)
}

/// Removes one capability that nothing is derived from. A frame is unmapped where it was mapped.
pub fn remove(at: Obj<Slot>) {
    let cap = at.read();
    if cap.word.kind_code() == ObjectType::Frame as u8 && cap.badge != 0 {
        address_space::unmap_slot(at, cap);
    }
    at.clear();
    derivation::unlink(&SlotLinks, at.physical());
    if at.mark() == STATE_PAGE {
        vcpu::state_page_gone(at);
    }
    at.set_mark(0);
}

/// Empties a slot inside an object.
pub fn empty(slot: &Slot) {
    if !slot.is_empty() {
        remove(Obj::from_ref(slot));
    }
}

/// Derives a capability into a slot inside an object, in the place of what was there.
pub fn keep(from: Obj<Slot>, slot: &Slot, rights: Rights) -> Result<(), Error> {
    empty(slot);
    derive(from, Obj::from_ref(slot), rights, None)
}

/// What one hold of the structural lock may still cost, in units of about ten instructions. Whatever fits into a fresh one is done
/// at last, and the first removal is done whatever was spent on the way to it, so that each hold gets on.
pub struct Budget {
    left: u32,
    fresh: bool,
}

impl Budget {
    /// Removing a capability, and what a mapping adds to it.
    const REMOVE: u32 = 16;
    const UNMAP: u32 = 9;

    /// That of a whole hold: the longest derivation and one removal, or five removals.
    pub const fn new() -> Budget {
        Budget { left: derivation::MAX_DEPTH as u32 + Budget::REMOVE + Budget::UNMAP, fresh: true }
    }

    /// Spends; answers whether there was enough left.
    pub fn spend(&mut self, units: u32) -> bool {
        let enough = self.left >= units;
        if enough {
            self.left -= units;
        }
        enough
    }

    fn spend_removal(&mut self, slot: Obj<Slot>) -> bool {
        let mapped = slot.word().kind_code() == ObjectType::Frame as u8 && slot.word1.load(Relaxed) != 0;
        let units = Budget::REMOVE + if mapped { Budget::UNMAP } else { 0 };
        if core::mem::take(&mut self.fresh) {
            self.left = self.left.saturating_sub(units);
            return true;
        }
        self.spend(units)
    }
}

/// Removes capabilities derived from a slot, leaves first, so that an interrupted revocation leaves a proper derivation behind. Answers
/// whether none is left.
pub fn revoke_some(of: Obj<Slot>, budget: &mut Budget) -> bool {
    let mut at = of.physical();
    loop {
        // A step down costs one.
        let most = if budget.fresh { derivation::MAX_DEPTH as u32 } else { budget.left };
        let mut steps = most;
        at = derivation::descend(&SlotLinks, at, &mut steps);
        budget.left = budget.left.saturating_sub(most - steps);
        if steps == 0 && has_descendants(slot(at)) {
            return false;
        }
        if at == of.physical() {
            return !has_descendants(of);
        }
        if !budget.spend_removal(slot(at)) {
            return false;
        }
        // What stands before a leaf is its parent or another leaf of that one.
        let before = SlotLinks.previous(at);
        remove(slot(at));
        at = before;
    }
}

/// Removes a capability and all that is derived from it. Answers whether it is done.
pub fn delete_some(at: Obj<Slot>, budget: &mut Budget) -> bool {
    if at.is_empty() {
        return true;
    }
    if !revoke_some(at, budget) || !budget.spend_removal(at) {
        return false;
    }
    remove(at);
    true
}

/// Whether anything is derived from a slot.
pub fn has_descendants(of: Obj<Slot>) -> bool {
    SlotLinks.child(of.physical()).is_some()
}

/// Whether a slot's untyped memory is lent: the first capability derived from it names the same memory.
pub fn is_lent(of: Obj<Slot>) -> bool {
    SlotLinks.child(of.physical()).is_some_and(|copy| {
        let (copy, word) = (slot(copy).word(), of.word());
        copy.kind_code() == ObjectType::Untyped as u8 && copy.address() == word.address()
    })
}

/// The slot with this index.
#[inline(always)]
pub fn slot_of(table: Obj<CapTable>, index: u64) -> Result<Obj<Slot>, Error> {
    if index.wrapping_sub(2) >= table.slots.get() {
        return Err(Error::NoSlot);
    }
    // SAFETY: a CapTable is an array of slots behind its header, which takes the room of the first two.
    Ok(unsafe { Obj::at(table.physical() + index * 32) })
}
