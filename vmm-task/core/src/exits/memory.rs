//! Accesses outside RAM: device registers, or nothing.

use super::decode;
use super::port::{segment_index, translate};
use crate::event::vector;
use crate::state::field;
use crate::vm::{Ending, Next, Vm};
use moira_abi::vcpu::{access, group};
use vmm_decode::{Address, DecodeError, Gprs, MmioOp, Step, mmio, operand};
use vmm_devices::traits::GuestMemory;

/// A nested page fault; `now` in TSC ticks. The kernel writes groups RIP and CONTROL with it.
#[inline]
pub(super) fn memory(vm: &mut Vm<'_>, now: u64) -> Next {
    let (gpa, kind) = (vm.page.get(field::ADDRESS), vm.page.get(field::QUALIFICATION));
    if kind & (access::FETCH | access::WALK) != 0 {
        return stray(vm, gpa, kind);
    }
    if !vm.needs(group::CONTROL) {
        return Next::Again;
    }
    let mode = decode::mode(vm);
    let mut gprs = Gprs(vm.page.gprs());
    let mut rflags = vm.page.get(field::RFLAGS);
    let Some(bytes) = decode::bytes(vm, mode) else { return Next::Again };
    let op = match mmio(bytes.bytes(), mode, &gprs, rflags) {
        Ok(op) => op,
        Err(error) => return undecoded(vm, error),
    };
    let now = vm.ns(now);
    // The local APIC is among the devices: what can be delivered may change.
    vm.attention = true;
    match op.first_step() {
        Step::Read | Step::Write(_) if (gpa & 0xfff) + u64::from(op.size) > 0x1000 => {
            if let Err(next) = across_pages(vm, &op, bytes.bytes(), &mut gprs, &mut rflags, now) {
                return next;
            }
        }
        Step::Read => {
            let value = match rom_read(vm, gpa, op.size) {
                Some(value) => value,
                None => vm.board().mmio_read(vm.index, gpa, op.size, now, &vm.ram),
            };
            if let Some(back) = op.complete_read(value, &mut gprs, &mut rflags) {
                vm.board().mmio_write(vm.index, gpa, op.size, back, now, &vm.ram);
            }
            vm.page.set(field::RFLAGS, rflags);
        }
        Step::Write(value) => vm.board().mmio_write(vm.index, gpa, op.size, value, now, &vm.ram),
        Step::Move { source, destination } => {
            if let Err(next) = move_string(vm, &op, source, destination, now) {
                return next;
            }
        }
        Step::Compare { source, destination } => {
            if let Err(next) = compare_string(vm, &op, source, destination, &mut rflags, now) {
                return next;
            }
        }
        Step::Nothing => {}
    }
    let rip = op.retire(&mut gprs, rflags, vm.page.get(field::RIP));
    vm.page.set_gprs(&gprs.0);
    vm.set_rip(rip);
    Next::Enter
}

/// The value at `gpa` if that is ROM: a read of it exits only as half of a change, whose write then goes nowhere.
#[inline]
fn rom_read(vm: &Vm<'_>, gpa: u64, size: u8) -> Option<u64> {
    if vm.ram.rom().is_empty() {
        return None;
    }
    let low = u128::from(vm.ram.rom_word(gpa)?);
    let high = vm.ram.rom_word(gpa.wrapping_add(8)).map_or(u128::MAX << 64, |word| u128::from(word) << 64);
    let value = ((high | low) >> (8 * (gpa & 7))) as u64;
    Some(if size >= 8 { value } else { value & ((1 << (8 * u64::from(size))) - 1) })
}

/// An instruction or a page table lies where there is no memory. RAM is always mapped, so this is no race.
#[cold]
fn stray(vm: &mut Vm<'_>, gpa: u64, kind: u64) -> Next {
    if vm.ram.word(gpa).is_some() {
        return vm.end(Ending::Unsupported("a fault in memory that is mapped"));
    }
    if kind & access::FETCH != 0 && kind & access::WALK == 0 {
        return vm.end(Ending::Unsupported("code outside of memory"));
    }
    vm.end(Ending::Unsupported("page tables outside of memory"))
}

/// The bytes are no access to a device.
#[cold]
fn undecoded(vm: &mut Vm<'_>, error: DecodeError) -> Next {
    match error {
        // The guest has changed the instruction since, or its tables.
        DecodeError::NotMemory | DecodeError::Incomplete => Next::Again,
        DecodeError::Invalid => vm.raise(vector::UNDEFINED, None),
        // Vector and x87 registers and the like: no driver reaches a device with them.
        DecodeError::Unsupported => vm.raise(vector::PROTECTION, Some(0)),
    }
}

/// An access that begins in one page and ends in the next, which may be of another device, or memory.
#[cold]
fn across_pages(
    vm: &mut Vm<'_>,
    op: &MmioOp,
    bytes: &[u8],
    gprs: &mut Gprs,
    rflags: &mut u64,
    now: u64,
) -> Result<(), Next> {
    let Some(address) = operand(bytes, op.mode, gprs) else { return Err(undecoded(vm, DecodeError::Unsupported)) };
    match op.first_step() {
        Step::Write(value) => Span::of(vm, op, address, true)?.write(vm, value, now),
        _ => {
            // Both pages must allow all of it before a device is asked.
            let place = Span::of(vm, op, address, op.writes())?;
            if let Some(back) = op.complete_read(place.read(vm, now), gprs, rflags) {
                place.write(vm, back, now);
            }
            vm.page.set(field::RFLAGS, *rflags);
        }
    }
    Ok(())
}

/// One element of MOVS, of which one side at least is outside RAM.
fn move_string(vm: &mut Vm<'_>, op: &MmioOp, source: Address, destination: Address, now: u64) -> Result<(), Next> {
    let from = Span::of(vm, op, source, false)?;
    let to = Span::of(vm, op, destination, true)?;
    let value = from.read(vm, now);
    to.write(vm, value, now);
    Ok(())
}

/// One element of CMPS, likewise.
fn compare_string(
    vm: &mut Vm<'_>,
    op: &MmioOp,
    source: Address,
    destination: Address,
    rflags: &mut u64,
    now: u64,
) -> Result<(), Next> {
    let left = Span::of(vm, op, source, false)?;
    let right = Span::of(vm, op, destination, false)?;
    let (left, right) = (left.read(vm, now), right.read(vm, now));
    op.compare(left, right, rflags);
    vm.page.set(field::RFLAGS, *rflags);
    Ok(())
}

/// Where the bytes of an operand lie: in one page, or in two.
#[derive(Clone, Copy)]
pub(super) struct Span {
    /// Guest-physical address of the first byte, and how many bytes are in its page.
    first: (u64, u8),
    /// The same of the next page; no bytes if it is not reached.
    second: (u64, u8),
}

impl Span {
    /// Finds the operand of `op` at `address`; a fault has been raised if there is none, or [`Next::Again`].
    pub(super) fn of(vm: &mut Vm<'_>, op: &MmioOp, address: Address, write: bool) -> Result<Span, Next> {
        if !vm.needs(group::SEGMENTS) {
            return Err(Next::Again);
        }
        let base = vm.page.segment_base(segment_index(address.segment));
        let linear = address.linear(op.mode, base);
        let first = translate(vm, linear, write)?;
        let here = (0x1000 - (linear & 0xfff)).min(op.size.into()) as u8;
        let rest = op.size - here;
        let second = match rest {
            0 => 0,
            _ => translate(vm, linear.wrapping_add(here.into()), write)?,
        };
        Ok(Span { first: (first, here), second: (second, rest) })
    }

    pub(super) fn read(self, vm: &Vm<'_>, now: u64) -> u64 {
        let low = read(vm, self.first, now);
        if self.second.1 == 0 { low } else { low | read(vm, self.second, now) << (8 * u32::from(self.first.1)) }
    }

    pub(super) fn write(self, vm: &Vm<'_>, value: u64, now: u64) {
        write(vm, self.first, value, now);
        if self.second.1 != 0 {
            write(vm, self.second, value >> (8 * u32::from(self.first.1)), now);
        }
    }
}

/// Reads up to eight bytes in one page, of memory or of a device.
fn read(vm: &Vm<'_>, (gpa, bytes): (u64, u8), now: u64) -> u64 {
    let mut value = [0; 8];
    if GuestMemory::read(&vm.ram, gpa, value.get_mut(..bytes.into()).unwrap_or_default()).is_ok() {
        return u64::from_le_bytes(value);
    }
    if let Some(value) = rom_read(vm, gpa, bytes) {
        return value;
    }
    // Devices know of accesses of 1, 2, 4 and 8 bytes.
    if bytes.is_power_of_two() {
        return vm.board().mmio_read(vm.index, gpa, bytes, now, &vm.ram);
    }
    (0..bytes).fold(0, |value, at| {
        value | vm.board().mmio_read(vm.index, gpa + u64::from(at), 1, now, &vm.ram) << (8 * u32::from(at))
    })
}

/// Writes up to eight bytes in one page.
fn write(vm: &Vm<'_>, (gpa, bytes): (u64, u8), value: u64, now: u64) {
    if GuestMemory::write(&vm.ram, gpa, value.to_le_bytes().get(..bytes.into()).unwrap_or_default()).is_ok() {
        return;
    }
    let mask = u64::MAX >> (64 - 8 * u32::from(bytes.clamp(1, 8)));
    if bytes.is_power_of_two() {
        return vm.board().mmio_write(vm.index, gpa, bytes, value & mask, now, &vm.ram);
    }
    for at in 0..bytes {
        let byte = value >> (8 * u32::from(at)) & 0xff;
        vm.board().mmio_write(vm.index, gpa + u64::from(at), 1, byte, now, &vm.ram);
    }
}
