//! `AddressSpace`: a translation of a task or a guest. ABI: `docs/abi/address-space.md`.
//!
//! Table pages come from untyped memory that the owner donates with `add_memory`. A frame's slot records the one place where it is
//! mapped: virtual page number, and the number of the space. Numbers carry a generation, so a slot that outlives the space
//! it was mapped in is recognised.

use super::{Header, thread::Thread, untyped};
use crate::{
    arch,
    cap::{self, Cap, Slot},
    memory::{Obj, Object, Page},
    smp, trace,
};
use core::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering::*},
};
use moira_abi::{Error, ObjectType, Rights, USER_END, method::map, object::space_kind};
use moira_kernel_core::{
    flush::{self, Own, Reason},
    radix::{self, Cache, Format, Mapping, Tables},
};

/// Spaces that can exist at once on the machine.
const IDS: usize = 4096;
/// Numbers looked at in one search.
const SEARCH: u64 = 48;

/// Space by number: physical address of the object, generation in the upper 16 bits.
static SPACES: [AtomicU64; IDS] = [const { AtomicU64::new(0) }; IDS];
/// Where the search for a free number begins.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

const ADDRESS: u64 = (1 << 48) - 1;
/// Mark of a slot whose page-table entry is gone while other CPUs may still hold the translation. The slot knows which flush it waits for.
const UNMAPPING: u16 = 1;
/// Mark of a slot whose entry was narrowed likewise; the rights and the cache mode that were asked for stand above it.
const PROTECTING: u16 = 4;

/// An address space: 256 bytes.
#[repr(C)]
pub struct AddressSpace {
    /// Header.
    pub header: Header,
    /// What CR3 gets: the top-level table, or the kernel's own while there is none.
    pub load: Cell<u64>,
    /// Physical address of the top-level table; 0 until memory was added, and after the space died.
    pub root: Cell<u64>,
    /// Kind: `space_kind`.
    pub kind: Cell<u8>,
    /// Number and generation: bits 0–11, 12–27.
    pub id: Cell<u64>,
    /// Next donated page, and the end of that donation.
    pool: Cell<(u64, u64)>,
    /// Donations not begun yet: chained through their first two words (next, end).
    more: Cell<u64>,
    /// Changes with each flush of a guest's translations.
    pub generation: AtomicU64,
}

static_assertions::const_assert!(size_of::<AddressSpace>() <= 256);

impl Object for AddressSpace {
    const KIND: ObjectType = ObjectType::AddressSpace;
}

impl Tables for Obj<AddressSpace> {
    #[inline(always)]
    fn read(&self, table: u64, index: usize) -> u64 {
        Page(table).read(index as u64 * 8)
    }
    #[inline(always)]
    fn write(&self, table: u64, index: usize, entry: u64) {
        Page(table).write(index as u64 * 8, entry);
    }
    fn allocate(&self) -> Option<u64> {
        let (next, end) = self.pool.get();
        if next < end {
            self.pool.set((next + 4096, end));
            return Some(next);
        }
        let chunk = self.more.get();
        if chunk == 0 {
            return None;
        }
        let page = Page(chunk);
        self.more.set(page.read(0));
        self.pool.set((chunk + 4096, page.read(8)));
        page.write(0, 0);
        page.write(8, 0);
        Some(chunk)
    }
}

impl Obj<AddressSpace> {
    fn is_task(self) -> bool {
        self.kind.get() == space_kind::TASK
    }

    fn format(self) -> Format {
        if !self.is_task() && arch::vm::is_vmx() { Format::Ept } else { Format::Paging }
    }
}

/// A free number, with so many others behind it. Where there are too few the next search begins behind this one: *Again*.
fn free_number(others: usize) -> Result<u64, Error> {
    let start = NEXT_ID.load(Relaxed);
    let is_free = |id: &u64| *id != 0 && SPACES[*id as usize].load(Relaxed) & ADDRESS == 0;
    let mut free = (start..start + SEARCH).map(|id| id % IDS as u64).filter(is_free);
    match free.next() {
        Some(id) if others == 0 || free.nth(others - 1).is_some() => Ok(id),
        _ => {
            NEXT_ID.store(start + SEARCH, Relaxed);
            Err(Error::Again)
        }
    }
}

/// Whether `init` will find numbers for that many new spaces: asked before any is made, so that `retype` fails as a whole.
pub fn numbers_left(count: u64) -> Result<(), Error> {
    free_number(count as usize - 1).map(drop)
}

/// Gives a new space its number.
pub fn init(space: Obj<AddressSpace>, kind: u8) -> Result<(), Error> {
    if kind > space_kind::GUEST {
        return Err(Error::BadArgument);
    }
    let id = free_number(0)?;
    let entry = SPACES[id as usize].load(Relaxed);
    SPACES[id as usize].store(entry & !ADDRESS | space.physical(), Release);
    NEXT_ID.store(id + 1, Relaxed);
    space.id.set(id | entry >> 48 << 12);
    space.kind.set(kind);
    space.load.set(arch::paging::task_root());
    Ok(())
}

/// The live space with this number and generation.
pub fn by_id(id: u64) -> Option<Obj<AddressSpace>> {
    let entry = SPACES[(id & 0xfff) as usize].load(Acquire);
    let live = entry & ADDRESS != 0 && entry >> 48 == id >> 12;
    // SAFETY: the entry is cut before the space's memory is reused.
    live.then(|| unsafe { Obj::at(entry & ADDRESS) })
}

/// `add_memory`: W0 slot of an untouched untyped. The first page becomes the top-level table.
pub fn add_memory(space: Obj<AddressSpace>, caller: Obj<Thread>) -> Result<(), Error> {
    // A space whose tables were revoked is dead: nothing would end the new ones with it.
    if space.id.get() == 0 {
        return Err(Error::Inactive);
    }
    let slot = cap::slot_of(caller.table()?, caller.word(0))?;
    if cap::is_lent(slot) {
        return Err(Error::InUse);
    }
    let (base, end) = untyped::consume(slot.read(), space.id.get())?;
    donate(space, base, end);
    Ok(())
}

/// Takes zeroed pages for tables.
pub fn donate(space: Obj<AddressSpace>, base: u64, end: u64) {
    let (next, pool_end) = space.pool.get();
    if next == pool_end {
        space.pool.set((base, end));
    } else {
        Page(base).write(0, space.more.get());
        Page(base).write(8, end);
        space.more.set(base);
    }
    if space.root.get() == 0
        && let Some(root) = space.allocate()
    {
        if space.is_task() {
            arch::paging::copy_kernel_half(root);
            space.load.set(root);
        }
        space.root.set(root);
    }
}

fn arguments(rights: u64) -> Result<(Rights, Cache), Error> {
    let cache = match rights & !0xff {
        0 => Cache::WriteBack,
        map::UNCACHED => Cache::Uncached,
        map::WRITE_COMBINING => Cache::WriteCombining,
        _ => return Err(Error::BadArgument),
    };
    Ok((Rights(rights as u8), cache))
}

fn check_rights(space: Obj<AddressSpace>, cap: Cap, rights: Rights) -> Result<(), Error> {
    if !cap.word.rights().contains(rights) || !rights.contains(Rights::READ) {
        return Err(Error::NoRight);
    }
    let both = Rights::WRITE.or(Rights::EXECUTE);
    if space.is_task() && rights.contains(both) {
        return Err(Error::NoRight);
    }
    Ok(())
}

/// `map`: W0 frame slot, W1 virtual address, W2 rights and cache.
pub fn map_frame(space: Obj<AddressSpace>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(caller.table()?, caller.word(0))?;
    map_slot(space, slot, caller.word(1), caller.word(2))
}

/// Maps the frame of a slot.
pub fn map_slot(space: Obj<AddressSpace>, slot: Obj<Slot>, address: u64, flags: u64) -> Result<(), Error> {
    let cap = slot.read();
    let physical = cap.frame(Rights(0))?;
    let (rights, cache) = arguments(flags)?;
    check_rights(space, cap, rights)?;
    if cap.badge != 0 {
        return Err(Error::InUse);
    }
    let size = cap.word.frame_size();
    let limit = if space.is_task() { USER_END } else { 1 << 46 };
    if address & (size.bytes() - 1) != 0 || address >= limit || size.bytes() > limit - address {
        return Err(Error::BadArgument);
    }
    if space.id.get() == 0 {
        return Err(Error::Inactive);
    }
    if space.root.get() == 0 {
        return Err(Error::NoMemory);
    }
    let page = Mapping { address, physical, size };
    radix::map(&space, space.format(), space.root.get(), page, rights, cache)?;
    // Never 0, even for page 0: numbers start at 1.
    slot.set_mapping(address >> 12 | space.id.get() << 36);
    slot.set_mark(0);
    Ok(())
}

/// `unmap`: W0 frame slot.
pub fn unmap_frame(space: Obj<AddressSpace>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(caller.table()?, caller.word(0))?;
    let cap = slot.read();
    cap.frame(Rights(0))?;
    if cap.badge == 0 {
        return Err(Error::NotMapped);
    }
    if cap.badge >> 36 != space.id.get() {
        if by_id(cap.badge >> 36).is_some() {
            return Err(Error::BadArgument);
        }
        slot.set_mapping(0);
        return Err(Error::NotMapped);
    }
    if slot.mark() != UNMAPPING {
        change(space, cap, None);
    }
    await_flush(slot, UNMAPPING)?;
    slot.set_mapping(0);
    Ok(())
}

/// Marks a slot whose entry was changed until the flushes asked for by then are done; coming back for them begins none anew.
#[inline(always)]
fn await_flush(slot: Obj<Slot>, mark: u16) -> Result<(), Error> {
    if slot.mark() != mark {
        slot.set_mark(mark);
        slot.await_flush(smp::last_flush());
    }
    if !smp::flushed(slot.awaited_flush(smp::last_flush())) {
        return Err(Error::Retiring);
    }
    slot.set_mark(0);
    Ok(())
}

/// `protect`: W0 frame slot, W1 rights and cache.
pub fn protect_frame(space: Obj<AddressSpace>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(caller.table()?, caller.word(0))?;
    let cap = slot.read();
    cap.frame(Rights(0))?;
    let (rights, cache) = arguments(caller.word(1))?;
    check_rights(space, cap, rights)?;
    if cap.badge == 0 || cap.badge >> 36 != space.id.get() || slot.mark() == UNMAPPING {
        return Err(Error::NotMapped);
    }
    let asked = PROTECTING | (rights.0 as u16) << 8 | (cache as u16) << 4;
    if slot.mark() != asked && !change(space, cap, Some((rights, cache))) {
        return Err(Error::NotMapped);
    }
    await_flush(slot, asked)
}

/// Replaces or removes the entry of a mapped frame and starts the flushes. Answers whether there was an entry.
fn change(space: Obj<AddressSpace>, cap: Cap, rights: Option<(Rights, Cache)>) -> bool {
    let address = (cap.badge & ((1 << 36) - 1)) << 12;
    let page = Mapping { address, physical: cap.word.address(), size: cap.word.frame_size() };
    let root = space.root.get();
    let found = root != 0 && radix::change(&space, space.format(), root, page, rights);
    if found {
        match flush::after_change(!space.is_task()) {
            Own::Page => {
                trace::event(arch::cpu(), trace::FLUSH, Reason::Page as u64, address);
                arch::paging::invalidate(address);
            }
            Own::Generation => _ = space.generation.fetch_add(1, SeqCst),
        }
        smp::flush_space(space);
    }
    found
}

/// A mapped frame's slot goes away: its entry goes first.
pub fn unmap_slot(slot: Obj<Slot>, cap: Cap) {
    if slot.mark() != UNMAPPING
        && let Some(space) = by_id(cap.badge >> 36)
    {
        change(space, cap, None);
    }
}

/// The space dies: no number, no CPU that has it loaded.
pub fn retire(space: Obj<AddressSpace>) {
    let id = space.id.get();
    if id != 0 {
        space.id.set(0);
        space.load.set(arch::paging::task_root());
        // vCPUs look at the root anew.
        space.generation.fetch_add(1, SeqCst);
        SPACES[(id & 0xfff) as usize].store(((id >> 12) + 1 & 0xffff) << 48, Release);
        smp::unload_space(space);
    }
    space.root.set(0);
    // What was donated belongs to its untyped memory again.
    space.pool.set((0, 0));
    space.more.set(0);
}
