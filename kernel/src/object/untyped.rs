//! `Untyped`: a power-of-two block of physical memory. ABI: `docs/abi/untyped.md`.
//!
//! The block's state lies in a control block of 256 bytes outside of it (in the parent, or in boot memory). `revoke` is phased; the
//! phase stands here, and any holder may continue it.
//!
//! An untyped that nothing was made of can be lent: its capability is copied, once, and the copy makes the objects. As long as
//! there is a copy, the original makes nothing, so all objects derive from one slot; `revoke` on the original takes the copy
//! back first, wherever it went, whatever its holder is doing.

use super::{
    Header, address_space, cap_table,
    endpoint::Endpoint,
    interrupt, life,
    notification::{self, Notification},
    plan::Plan,
    sched_context, thread, vcpu,
};
use crate::{
    cap::{self, Budget, Cap, Slot},
    memory::{self, Obj, Object},
    percpu::{self, Cpu},
    smp::{self, Grace},
};
use core::{cell::Cell, sync::atomic::Ordering::*};
use moira_abi::{Error, FrameSize, ObjectType, Rights, boot::untyped_kind};
use moira_kernel_core::{capword::CapWord, untyped::Free};

/// log2 of the bytes of a control block.
pub const CONTROL_BITS: u8 = 8;
/// Most objects one `retype` makes.
pub const MOST_OBJECTS: u64 = 16;
/// Greatest nesting of untyped memories.
const MOST_NESTED: u32 = 8;
/// Bytes that one step of a revoke zeroes.
const ZERO_STEP: u64 = 4096;

mod phase {
    pub const IDLE: u8 = 0;
    pub const CAPS: u8 = 1;
    pub const UNLINK: u8 = 2;
    pub const UNLINKED: u8 = 3;
    pub const RETIRE: u8 = 4;
    pub const AWAIT: u8 = 5;
    pub const FLUSH: u8 = 6;
    pub const GRACE: u8 = 7;
    pub const MAIL: u8 = 8;
    pub const ZERO: u8 = 9;
}

/// The control block.
#[repr(C)]
pub struct Untyped {
    /// Header; `argument` is the nesting.
    pub header: Header,
    base: Cell<u64>,
    low: Cell<u64>,
    high: Cell<u64>,
    /// Where the walk over objects, or the zeroing, stands.
    cursor: Cell<u64>,
    /// Number and generation of the space that took it all for tables; 0: none.
    space: Cell<u64>,
    bits: Cell<u8>,
    kind: Cell<u8>,
    phase: Cell<u8>,
    /// An inner untyped that the walk is inside of.
    inner: Cell<u64>,
    end_low: Cell<u64>,
    /// CPUs that a grace period still waits for.
    grace: Cell<Grace>,
}

static_assertions::const_assert!(size_of::<Untyped>() <= 1 << CONTROL_BITS);

impl Object for Untyped {
    const KIND: ObjectType = ObjectType::Untyped;
}

/// Makes a zeroed control block describe a block of memory.
pub fn init(control: Obj<Untyped>, base: u64, bits: u8, kind: u32, nesting: u32) {
    control.header.init(ObjectType::Untyped, CONTROL_BITS, nesting);
    control.base.set(base);
    control.low.set(base);
    control.high.set(base + (1 << bits));
    control.bits.set(bits);
    control.kind.set(kind as u8);
}

/// Whether an untyped has given memory away (its capability must not vanish then).
pub fn in_use(cap: Cap) -> bool {
    Obj::<Untyped>::from_word(cap.word).is_some_and(|u| {
        u.phase.get() != phase::IDLE
            || u.low.get() != u.base.get()
            || u.high.get() != u.base.get() + (1 << u.bits.get())
    })
}

/// Takes a whole untouched untyped for a space's tables.
pub fn consume(cap: Cap, space: u64) -> Result<(u64, u64), Error> {
    let untyped: Obj<Untyped> = cap.object(Rights::USE)?;
    if untyped.phase.get() != phase::IDLE || untyped.kind.get() == untyped_kind::DIRTY as u8 {
        return Err(Error::Revoking);
    }
    if untyped.kind.get() != untyped_kind::CLEAN as u8 {
        return Err(Error::WrongType);
    }
    if in_use(cap) {
        return Err(Error::InUse);
    }
    let end = untyped.high.get();
    untyped.low.set(end);
    untyped.space.set(space);
    Ok((untyped.base.get(), end))
}

/// `retype`: W0 type, W1 size, W2 count, W3 first slot. Answers whether all are made: what one hold of the lock has no time for is made
/// when the call runs again, with W2 and W3 counted on.
pub fn retype(untyped: Obj<Untyped>, slot: Obj<Slot>, caller: Obj<thread::Thread>) -> Result<bool, Error> {
    let kind = u8::try_from(caller.word(0)).ok().and_then(ObjectType::from_code).ok_or(Error::BadArgument)?;
    let size = u8::try_from(caller.word(1)).map_err(|_| Error::BadArgument)?;
    let (count, first_slot) = (caller.word(2), caller.word(3));
    let bits = kind.size_bits(size).ok_or(Error::BadArgument)?;
    if count == 0 || count > MOST_OBJECTS || (kind == ObjectType::AddressSpace && size > 1) {
        return Err(Error::BadArgument);
    }
    if kind == ObjectType::Vcpu && crate::arch::vm::vendor().is_none() {
        return Err(Error::NoHardware);
    }
    if untyped.phase.get() != phase::IDLE {
        return Err(Error::Revoking);
    }
    if cap::is_lent(slot) {
        return Err(Error::InUse);
    }
    // All that can fail comes before the first object is made: nothing would unmake it.
    cap::may_derive(slot)?;
    allowed(untyped, kind)?;
    if kind == ObjectType::AddressSpace {
        address_space::numbers_left(count)?;
    }
    let table = caller.table()?;
    for i in 0..count {
        table.empty_slot(first_slot.wrapping_add(i))?;
    }
    // Room for all of them, before the first is made.
    let free = Free { low: untyped.low.get(), high: untyped.high.get() };
    let all = room(free, kind, bits, count)?;
    let part = count.min(per_hold(kind));
    let (control, first, free) = if part == count { all } else { room(free, kind, bits, part)? };
    // What is taken from above is made from above, so that its addresses rise with its slots.
    let above = matches!(kind, ObjectType::Frame | ObjectType::Untyped);
    let part_slot = first_slot + if above { count - part } else { 0 };
    for i in 0..part {
        let at = first + (i << bits);
        let to = cap::slot_of(table, part_slot + i)?;
        let word = make(untyped, kind, size, bits, at, control + (i << CONTROL_BITS))?;
        cap::put(slot, to, word, 0);
    }
    untyped.low.set(free.low);
    untyped.high.set(free.high);
    caller.set_word(2, count - part);
    caller.set_word(3, if above { first_slot } else { first_slot + part });
    Ok(part == count)
}

/// Objects that one hold of the structural lock makes.
fn per_hold(kind: ObjectType) -> u64 {
    match kind {
        ObjectType::Vcpu | ObjectType::AddressSpace => 1,
        ObjectType::Frame | ObjectType::Untyped => 3,
        _ => 2,
    }
}

/// Takes memory: for control blocks, for objects; and what is left.
fn room(free: Free, kind: ObjectType, bits: u8, count: u64) -> Result<(u64, u64, Free), Error> {
    match kind {
        ObjectType::Frame => free.take_high(bits, count).map(|(at, free)| (0, at, free)),
        ObjectType::Untyped => free
            .take_low(CONTROL_BITS, count)
            .and_then(|(control, free)| free.take_high(bits, count).map(|(at, free)| (control, at, free))),
        _ => free.take_low(bits, count).map(|(at, free)| (0, at, free)),
    }
    .ok_or(Error::NoMemory)
}

fn allowed(untyped: Obj<Untyped>, kind: ObjectType) -> Result<(), Error> {
    match untyped.kind.get() as u32 {
        untyped_kind::CLEAN => {}
        untyped_kind::DIRTY if kind == ObjectType::Untyped => {}
        untyped_kind::DIRTY => return Err(Error::Revoking),
        // Memory with contents: only frames; objects and control blocks would have to lie in it.
        _ if kind == ObjectType::Frame => {}
        _ => return Err(Error::WrongType),
    }
    if kind == ObjectType::Untyped && untyped.header.argument.load(Relaxed) >= MOST_NESTED {
        return Err(Error::TooDeep);
    }
    Ok(())
}

/// Makes one object and answers its capability word.
fn make(untyped: Obj<Untyped>, kind: ObjectType, size: u8, bits: u8, at: u64, control: u64) -> Result<CapWord, Error> {
    Ok(match kind {
        ObjectType::Frame => {
            let size = FrameSize::from_bits(bits).ok_or(Error::BadArgument)?;
            CapWord::new(kind, at, Rights::ALL, 0).with_frame_size(size)
        }
        ObjectType::Untyped => {
            if untyped.kind.get() == untyped_kind::DIRTY as u8 {
                memory::zero(control, 1 << CONTROL_BITS);
            }
            // SAFETY: zeroed memory of this untyped, just taken.
            let inner = unsafe { Obj::<Untyped>::at(control) };
            init(inner, at, size, untyped.kind.get() as u32, untyped.header.argument.load(Relaxed) + 1);
            CapWord::new(kind, control, Rights::ALL, 0)
        }
        _ => {
            // SAFETY: zeroed memory of this untyped, just taken; all objects begin with a header.
            let header = unsafe { Obj::<Header>::at(at) };
            header.init(kind, bits, size as u32);
            // SAFETY: the same memory, now an object of this type (all arms).
            unsafe {
                match kind {
                    ObjectType::CapTable => cap_table::init(Obj::at(at), bits),
                    ObjectType::AddressSpace => address_space::init(Obj::at(at), size)?,
                    ObjectType::Vcpu => vcpu::init(Obj::at(at)),
                    _ => {}
                }
            }
            CapWord::new(kind, at, Rights::ALL, 0)
        }
    })
}

/// `info`: W0 physical address, W1 bits, W2 free bytes, W3 kind.
pub fn info(untyped: Obj<Untyped>, caller: Obj<thread::Thread>) -> Result<(), Error> {
    let free = untyped.high.get() - untyped.low.get();
    caller.answer4(untyped.base.get(), untyped.bits.get() as u64, free, untyped.kind.get() as u64);
    Ok(())
}

/// `revoke`: one bounded step of ending everything that was made from this memory.
pub fn revoke(cpu: &Cpu, untyped: Obj<Untyped>, slot: Obj<Slot>) -> Result<(), Error> {
    if untyped.phase.get() > phase::CAPS && cap::has_descendants(slot) {
        // The holder of a copy began this; nothing is derived from the copy any more, and now it goes too.
        cap::revoke_some(slot, &mut Budget::new());
        return Err(Error::Again);
    }
    let done = match untyped.phase.get() {
        phase::IDLE | phase::UNLINK => true,
        phase::CAPS => cap::revoke_some(slot, &mut Budget::new()),
        // A CPU that read a capability before it was removed may still be about to link its object somewhere.
        phase::UNLINKED | phase::GRACE => {
            let mut grace = untyped.grace.get();
            let over = grace.look();
            untyped.grace.set(grace);
            if over { true } else { return Err(Error::Retiring) }
        }
        // Emptying a table inside may have removed capabilities; new ones cannot have been made.
        phase::RETIRE => walk(cpu, untyped, &mut Budget::new(), retire)?,
        phase::AWAIT => walk(cpu, untyped, &mut Budget::new(), dead)?,
        phase::FLUSH if !smp::flushed(untyped.cursor.get()) => return Err(Error::Retiring),
        phase::FLUSH => true,
        // Whoever read a link to a thread before it died may have left a message in its CPU's mailbox. Nobody sends more.
        phase::MAIL => walk(cpu, untyped, &mut Budget::new(), without_mail)?,
        _ => return zero(untyped),
    };
    if done {
        enter(cpu, untyped, untyped.phase.get() + 1);
    }
    Err(Error::Again)
}

/// Begins a phase.
fn enter(cpu: &Cpu, untyped: Obj<Untyped>, next: u8) {
    match next {
        phase::UNLINKED | phase::GRACE => untyped.grace.set(Grace::begin(cpu)),
        phase::RETIRE | phase::AWAIT | phase::MAIL => begin_walk(untyped),
        phase::FLUSH => untyped.cursor.set(smp::last_flush()),
        phase::ZERO => untyped.cursor.set(untyped.base.get()),
        _ => {}
    }
    untyped.phase.set(next);
}

fn zero(untyped: Obj<Untyped>) -> Result<(), Error> {
    let (base, end) = (untyped.base.get(), untyped.base.get() + (1 << untyped.bits.get()));
    let at = untyped.cursor.get();
    if at < end {
        memory::zero(at, ZERO_STEP.min(end - at));
        untyped.cursor.set(at + ZERO_STEP);
        return Err(Error::Again);
    }
    untyped.low.set(base);
    untyped.high.set(end);
    untyped.space.set(0);
    untyped.kind.set(untyped_kind::CLEAN as u8);
    untyped.phase.set(phase::IDLE);
    Ok(())
}

fn begin_walk(untyped: Obj<Untyped>) {
    untyped.cursor.set(untyped.base.get());
    untyped.inner.set(0);
    untyped.end_low.set(untyped.low.get());
}

/// Calls `visit` on the objects made from an untyped and, through the control blocks among them, on those of the untyped
/// memories inside. `visit` answers whether the object is done with. Answers whether the walk is over. Recursion is bounded by
/// the nesting of untyped memories.
fn walk(
    cpu: &Cpu,
    untyped: Obj<Untyped>,
    budget: &mut Budget,
    visit: fn(&Cpu, Obj<Header>, &mut Budget) -> Result<bool, Error>,
) -> Result<bool, Error> {
    // An inner one that was itself being revoked, and had come to zeroing: its objects are gone, and what is left of their memory
    // must not be read as headers (windows of a plan and a vCPU's state are what tasks wrote).
    if untyped.phase.get() == phase::ZERO {
        return Ok(true);
    }
    if untyped.space.get() != 0 {
        // Its memory is a space's tables: that space ends with it.
        let enough = budget.spend(cost(ObjectType::AddressSpace));
        if enough && let Some(space) = address_space::by_id(untyped.space.get()) {
            address_space::retire(space);
        }
        return Ok(enough);
    }
    while untyped.cursor.get() < untyped.end_low.get() {
        if !budget.spend(2) {
            return Ok(false);
        }
        let at = untyped.cursor.get();
        // SAFETY: the lower part of an untyped holds objects with headers, and zeroes between them.
        let header = unsafe { Obj::<Header>::at(at) };
        match ObjectType::from_code(header.kind.load(Relaxed)) {
            None => {
                // A gap before an aligned object: a step of its own costs more than one on the way to something.
                budget.spend(1);
                untyped.cursor.set(at + 64);
            }
            Some(ObjectType::Untyped) => {
                // SAFETY: the header says so.
                let inner = unsafe { Obj::<Untyped>::at(at) };
                if untyped.inner.get() != at {
                    begin_walk(inner);
                    untyped.inner.set(at);
                }
                if !walk(cpu, inner, budget, visit)? {
                    return Ok(false);
                }
                untyped.cursor.set(at + (1 << CONTROL_BITS));
            }
            Some(_) => {
                if !visit(cpu, header, budget)? {
                    return Ok(false);
                }
                untyped.cursor.set(at + (1 << header.bits.load(Relaxed)));
            }
        }
    }
    Ok(true)
}

fn without_mail(_: &Cpu, header: Obj<Header>, budget: &mut Budget) -> Result<bool, Error> {
    if header.mail.load(Acquire) == 0 {
        return Ok(budget.spend(7));
    }
    smp::collect(header.home());
    Err(Error::Retiring)
}

/// Looks whether an object is let go of. What capabilities it kept are removed here, under the structural lock, which its home CPU did not
/// have.
fn dead(_: &Cpu, header: Obj<Header>, budget: &mut Budget) -> Result<bool, Error> {
    let (at, kind) = (header.physical(), ObjectType::from_code(header.kind.load(Relaxed)));
    // SAFETY: the header names the type of the object at this address (all uses).
    unsafe {
        let dead = header.life() == life::DEAD
            || kind == Some(ObjectType::Notification) && Obj::<Notification>::at(at).waiter().is_none();
        if !dead {
            return Err(Error::Retiring);
        }
        match kind {
            Some(kind @ ObjectType::Thread) if budget.spend(cost(kind)) => thread::empty_slots(Obj::at(at)),
            Some(kind @ ObjectType::Vcpu) if budget.spend(cost(kind)) => vcpu::empty_slots(Obj::at(at)),
            Some(ObjectType::Thread | ObjectType::Vcpu) => return Ok(false),
            _ => return Ok(budget.spend(8)),
        }
    }
    Ok(true)
}

/// What retiring an object costs, at most, in units of a [`Budget`]; tables count for themselves.
fn cost(kind: ObjectType) -> u32 {
    match kind {
        ObjectType::CapTable => 0,
        // The most that the budget of a hold has after eight nested untypeds.
        ObjectType::Thread => 58,
        ObjectType::Vcpu => 50,
        ObjectType::AddressSpace | ObjectType::Interrupt => 40,
        ObjectType::SchedContext => 34,
        _ => 29,
    }
}

/// Retires one object: at once if it is inactive or lives here, else by a message to its home CPU.
fn retire(cpu: &Cpu, header: Obj<Header>, budget: &mut Budget) -> Result<bool, Error> {
    let at = header.physical();
    let kind = ObjectType::from_code(header.kind.load(Relaxed));
    if !budget.spend(kind.map_or(0, cost)) {
        return Ok(false);
    }
    // SAFETY: the header names the type of the object at this address (all arms).
    unsafe {
        match kind {
            Some(ObjectType::CapTable) if !cap_table::empty_some(Obj::at(at), budget) => return Ok(false),
            Some(ObjectType::AddressSpace) => address_space::retire(Obj::at(at)),
            Some(ObjectType::Notification) => {
                notification::retire(cpu, Obj::at(at));
                return Ok(true);
            }
            Some(ObjectType::Interrupt) => interrupt::retire(Obj::at(at)),
            Some(ObjectType::Endpoint) => cap::empty(&Obj::<Endpoint>::at(at).server),
            Some(ObjectType::Thread | ObjectType::SchedContext | ObjectType::Vcpu | ObjectType::Plan) => {
                match header.life() {
                    life::ACTIVE if header.home() != cpu.index => smp::post_retire(header),
                    life::ACTIVE | life::INACTIVE => retire_here(cpu, header),
                    _ => {}
                }
                return Ok(true);
            }
            _ => {}
        }
    }
    header.life.store(life::DEAD, Release);
    Ok(true)
}

/// Retires a homed object on its home CPU (or an inactive one, on any).
pub fn retire_here(cpu: &Cpu, header: Obj<Header>) {
    let (at, active) = (header.physical(), header.life() == life::ACTIVE || header.life() == life::RETIRING);
    let home = if active { percpu::by_index(header.home()) } else { cpu };
    // SAFETY: the header names the type of the object at this address (all arms).
    unsafe {
        match ObjectType::from_code(header.kind.load(Relaxed)) {
            Some(ObjectType::Thread) => thread::retire(home, Obj::at(at)),
            Some(ObjectType::SchedContext) => sched_context::retire(Obj::at(at), home),
            Some(ObjectType::Vcpu) => vcpu::retire(home, Obj::at(at)),
            Some(ObjectType::Plan) => home.drop_plan(Obj::<Plan>::at(at)),
            _ => {}
        }
    }
    header.life.store(life::DEAD, Release);
}
