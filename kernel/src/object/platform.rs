//! `Platform`: the machine. ABI: `docs/abi/platform.md`. Given to the root task, which delegates parts of it.

use super::{interrupt::Interrupt, io_ports, life, notification::Notification, thread::Thread};
use crate::{
    arch, boot,
    cap::{self, Slot},
    checks,
    memory::{self, Obj, Object, Page},
    percpu::{self, Cpu},
    trace,
};
use core::sync::atomic::Ordering::*;
use moira_abi::{Error, FrameSize, ObjectType, PAGE, Rights};
use moira_kernel_core::capword::CapWord;

/// The machine: its fields are statics elsewhere.
#[repr(C, align(64))]
pub struct Platform {
    reserved: u64,
}

impl Object for Platform {
    const KIND: ObjectType = ObjectType::Platform;
}

/// `log`: prints the caller's message buffer, a piece at a time. W0 = 1: not in the middle of a line of a task that drives the serial
/// line itself; W1: bytes printed already, counted up here. Answers whether all is printed; else the call runs again.
pub fn log(_: Obj<Platform>, caller: Obj<Thread>) -> Result<bool, Error> {
    let (buffer, bytes) = text(caller)?;
    let begun = caller.word(1).min(bytes as u64);
    if begun == 0 && caller.word(0) == 1 && crate::log::is_open() {
        return Err(Error::Again);
    }
    let rest = Page(buffer + begun).bytes(bytes - begun as usize);
    caller.set_word(1, begun + crate::log::piece(rest, caller.physical()) as u64);
    Ok(caller.word(1) == bytes as u64)
}

fn text(caller: Obj<Thread>) -> Result<(u64, usize), Error> {
    let bytes = caller.tag().bytes();
    if bytes > PAGE as usize {
        return Err(Error::BadArgument);
    }
    Ok((caller.buffer()?, bytes))
}

/// `end`: W0 how.
pub fn end(_: Obj<Platform>, caller: Obj<Thread>) -> Result<(), Error> {
    if caller.word(0) < 4 {
        checks::report(arch::cpu());
    }
    match caller.word(0) {
        0 => crate::log!("moira: system ended: ok"),
        1 => {
            let (buffer, bytes) = text(caller)?;
            let why = core::str::from_utf8(Page(buffer).bytes(bytes)).unwrap_or("(not text)");
            crate::log!("moira: system ended: failed: {why}");
        }
        2 => crate::log!("moira: system reboots"),
        3 => crate::log!("moira: system powers off"),
        _ => return Err(Error::BadArgument),
    }
    arch::end(caller.word(0))
}

/// `trace`: W0 CPU index, W1 first event; answers W0 the event after the last one copied.
pub fn trace(_: Obj<Platform>, caller: Obj<Thread>) -> Result<(), Error> {
    let cpu = u32::try_from(caller.word(0)).ok().and_then(percpu::get).ok_or(Error::BadArgument)?;
    if caller.word(1) == u64::MAX {
        trace::switch(caller.word(2));
        caller.answer1(cpu.trace.written.get());
        return Ok(());
    }
    let buffer = caller.buffer()?;
    let written = cpu.trace.written.get();
    let first = caller.word(1).max(written.saturating_sub(trace::EVENTS as u64));
    let end = written.min(first.saturating_add(moira_abi::trace::COPIED));
    for (i, number) in (first..end).enumerate() {
        memory::write_struct(buffer + i as u64 * 32, &cpu.trace.events[number as usize % trace::EVENTS].get());
    }
    caller.answer3(end.max(first), first, written);
    Ok(())
}

/// `start_cpu`: W0 APIC id, W1 destination slot. Each call is a step; *Again* until it runs.
pub fn start_cpu(_: Obj<Platform>, slot: Obj<Slot>, caller: Obj<Thread>) -> Result<(), Error> {
    let apic_id = u32::try_from(caller.word(0)).map_err(|_| Error::BadArgument)?;
    let to = caller.table()?.empty_slot(caller.word(1))?;
    let cpu = arch::smp::start(apic_id)?;
    cap::insert(slot, to, CapWord::new(ObjectType::Cpu, Obj::from_ref(cpu).physical(), Rights::ALL, 0), 0)
}

/// `add_io_apic`: W0 physical address, W1 first GSI; answers W0 the number of its pins.
pub fn add_io_apic(_: Obj<Platform>, caller: Obj<Thread>) -> Result<(), Error> {
    let (address, first) = (caller.word(0), caller.word(1));
    if !address.is_multiple_of(PAGE) || address >= 1 << 32 || first > 0xffff || boot::is_memory(address, PAGE) {
        return Err(Error::BadArgument);
    }
    caller.answer1(arch::ioapic::add(address, first as u32).ok_or(Error::NoMemory)? as u64);
    Ok(())
}

/// `make_interrupt`: W0 kind, W1 GSI, W2 flags, W3 fresh interrupt, W4 CPU, W5 notification.
pub fn make_interrupt(_: Obj<Platform>, caller: Obj<Thread>) -> Result<(), Error> {
    let (message, gsi, flags) = (caller.word(0), caller.word(1), caller.word(2));
    let table = caller.table()?;
    let interrupt: Obj<Interrupt> = table.object(caller.word(3), Rights::USE)?;
    let home: Obj<Cpu> = table.object(caller.word(4), Rights(0))?;
    table.object::<Notification>(caller.word(5), Rights::SIGNAL)?;
    if message > 1 || flags > 3 || (message == 0 && !arch::ioapic::exists(gsi)) {
        return Err(Error::BadArgument);
    }
    if interrupt.header.life() != life::INACTIVE {
        return Err(Error::InUse);
    }
    let vector = home.take_vector(interrupt).ok_or(Error::NoMemory)?;
    cap::derive(cap::slot_of(table, caller.word(5))?, Obj::from_ref(&interrupt.target), Rights::SIGNAL, None)
        .inspect_err(|_| home.drop_vector(vector))?;
    interrupt.header.home.store(home.index, Relaxed);
    interrupt.header.life.store(life::ACTIVE, Relaxed);
    interrupt.vector.set(vector);
    interrupt.message.set(message == 1);
    if message == 0 {
        interrupt.line.set(arch::ioapic::route(gsi as u32, vector, home.apic_id.get(), flags & 1 != 0, flags & 2 != 0));
    }
    super::interrupt::ack(interrupt)
}

/// `make_io_ports`: W0 first, W1 last, W2 destination slot.
pub fn make_io_ports(_: Obj<Platform>, slot: Obj<Slot>, caller: Obj<Thread>) -> Result<(), Error> {
    let (Ok(first), Ok(last)) = (u16::try_from(caller.word(0)), u16::try_from(caller.word(1))) else {
        return Err(Error::BadArgument);
    };
    if first > last {
        return Err(Error::BadArgument);
    }
    let to = caller.table()?.empty_slot(caller.word(2))?;
    cap::insert(slot, to, io_ports::word(first, last), 0)
}

/// `make_frame`: W0 physical address, W1 log2 of the bytes, W2 destination slot.
pub fn make_frame(_: Obj<Platform>, slot: Obj<Slot>, caller: Obj<Thread>) -> Result<(), Error> {
    let size = u8::try_from(caller.word(1)).ok().and_then(FrameSize::from_bits).ok_or(Error::BadArgument)?;
    let address = caller.word(0);
    if !address.is_multiple_of(size.bytes()) || address >= 1 << 46 || boot::is_memory(address, size.bytes()) {
        return Err(Error::BadArgument);
    }
    let to = caller.table()?.empty_slot(caller.word(2))?;
    let rights = Rights::READ.or(Rights::WRITE);
    cap::insert(slot, to, CapWord::new(ObjectType::Frame, address, rights, 0).with_frame_size(size), 0)
}
