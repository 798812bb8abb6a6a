//! Accesses outside RAM: device registers, or nothing.

use super::decode;
use super::port::{segment_index, translate};
use crate::event::vector;
use crate::state::field;
use crate::vm::{Ending, Next, Vm};
use moira_abi::vcpu::{access, group};
use vmm_decode::{Address, DecodeError, Gprs, MmioOp, Mode, Step, mmio};
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
    let op = match decode::bytes(vm, mode).map(|bytes| mmio(bytes.bytes(), mode, &gprs, rflags)) {
        Some(Ok(op)) => op,
        Some(Err(error)) => return undecoded(vm, error),
        None => return Next::Again,
    };
    let now = vm.ns(now);
    // The local APIC is among the devices: what can be delivered may change.
    vm.attention = true;
    match op.first_step() {
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
            if let Err(next) = move_string(vm, &op, mode, source, destination, now) {
                return next;
            }
        }
        Step::Nothing => {}
    }
    let rip = op.retire(&mut gprs, vm.page.get(field::RIP));
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

/// One element of MOVS, of which one side at least is outside RAM.
fn move_string(
    vm: &mut Vm<'_>,
    op: &MmioOp,
    mode: Mode,
    source: Address,
    destination: Address,
    now: u64,
) -> Result<(), Next> {
    if !vm.needs(group::SEGMENTS) {
        return Err(Next::Again);
    }
    let place = |vm: &mut Vm<'_>, address: Address, write: bool| {
        let base = vm.page.segment_base(segment_index(address.segment));
        let linear = address.linear(mode, base);
        translate(vm, linear, write)
    };
    let from = place(vm, source, false)?;
    let to = place(vm, destination, true)?;
    let size = usize::from(op.size.clamp(1, 8));
    let mut bytes = [0; 8];
    if GuestMemory::read(&vm.ram, from, bytes.get_mut(..size).unwrap_or_default()).is_err() {
        bytes = vm.board().mmio_read(vm.index, from, op.size, now, &vm.ram).to_le_bytes();
    }
    if GuestMemory::write(&vm.ram, to, bytes.get(..size).unwrap_or_default()).is_err() {
        vm.board().mmio_write(vm.index, to, op.size, u64::from_le_bytes(bytes), now, &vm.ram);
    }
    Ok(())
}
