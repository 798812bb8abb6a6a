//! Applying a finished access to registers and flags.

use crate::gprs::{RAX, RCX, RDI, RDX, RSI, mask, sign_extend};
use crate::mmio::{Action, MmioOp, Mode, Repeat, Step};
use crate::{Alu, Gprs, Target, alu};

const ZF: u64 = 1 << 6;

impl MmioOp {
    /// What to do with the device first.
    #[must_use]
    #[inline]
    pub fn first_step(&self) -> Step {
        match self.action {
            Action::Store { value } => Step::Write(value),
            Action::Move { source, destination } => Step::Move { source, destination },
            Action::Compare { source, destination } => Step::Compare { source, destination },
            Action::Nothing => Step::Nothing,
            _ => Step::Read,
        }
    }

    /// Whether the memory operand is written.
    #[must_use]
    pub fn writes(&self) -> bool {
        match self.action {
            Action::Modify { alu, .. } => alu.writes(),
            Action::Store { .. } | Action::Move { .. } => true,
            Action::Exchange { .. } | Action::ExchangeAdd { .. } | Action::CompareExchange { .. } => true,
            Action::Load { .. } | Action::LoadIf { .. } | Action::Combine { .. } | Action::Derive { .. } => false,
            Action::Multiply { .. } | Action::Compare { .. } | Action::Nothing => false,
        }
    }

    /// Takes the `value` the device gave (its low [`MmioOp::size`] bytes count) and changes registers and flags.
    ///
    /// Returns what must then be written to the same address, if anything. After that: [`MmioOp::retire`]. A caller
    /// that cannot do the write must not call this first, or registers would have changed for nothing.
    #[inline]
    pub fn complete_read(&self, value: u64, gprs: &mut Gprs, rflags: &mut u64) -> Option<u64> {
        let value = value & mask(self.size);
        match self.action {
            Action::Load { target, sign, swap } => {
                let value = if swap { swap_bytes(value, self.size) } else { value };
                gprs.write(target, if sign { sign_extend(value, self.size) } else { value });
                None
            }
            Action::Modify { alu, operand } => {
                let (result, flags) = alu.apply(value, operand, self.size, *rflags);
                *rflags = flags;
                alu.writes().then_some(result)
            }
            Action::Combine { alu, target } => {
                let (result, flags) = alu.apply(gprs.read(target), value, self.size, *rflags);
                *rflags = flags;
                if alu.writes() {
                    gprs.write(target, result);
                }
                None
            }
            Action::Exchange { target } => {
                let old = gprs.read(target);
                gprs.write(target, value);
                Some(old)
            }
            Action::ExchangeAdd { target } => {
                let (sum, flags) = Alu::Add.apply(value, gprs.read(target), self.size, *rflags);
                *rflags = flags;
                gprs.write(target, value);
                Some(sum)
            }
            Action::CompareExchange { replacement } => Some(self.compare_exchange(value, replacement, gprs, rflags)),
            Action::Derive { alu, operand, target } => {
                let (result, flags) = alu.apply(value, operand, self.size, *rflags);
                *rflags = flags;
                gprs.write(target, result);
                None
            }
            Action::LoadIf { target, holds } => {
                // A 32-bit register loses its upper half either way (SDM vol. 2A, CMOVcc).
                let value = if holds { value } else { gprs.read(target) };
                gprs.write(target, value);
                None
            }
            Action::Multiply { signed } => {
                self.multiply(value, signed, gprs, rflags);
                None
            }
            Action::Store { .. } | Action::Move { .. } | Action::Compare { .. } | Action::Nothing => None,
        }
    }

    /// The product goes to AX, DX:AX, EDX:EAX or RDX:RAX.
    fn multiply(&self, value: u64, signed: bool, gprs: &mut Gprs, rflags: &mut u64) {
        let register = |index| Target { index, size: self.size, high: false };
        let (product, flags) = alu::multiply(gprs.read(register(RAX)), value, self.size, signed, *rflags);
        *rflags = flags;
        if self.size == 1 {
            gprs.write(Target { index: RAX, size: 2, high: false }, product as u64);
        } else {
            gprs.write(register(RAX), product as u64 & mask(self.size));
            gprs.write(register(RDX), (product >> (8 * self.size)) as u64 & mask(self.size));
        }
    }

    /// Sets the flags for one element of CMPS: `source` minus `destination`.
    pub fn compare(&self, source: u64, destination: u64, rflags: &mut u64) {
        (_, *rflags) = Alu::Cmp.apply(source, destination, self.size, *rflags);
    }

    /// CMPXCHG always writes: the new value, or the old one again (SDM vol. 2A).
    fn compare_exchange(&self, value: u64, replacement: u64, gprs: &mut Gprs, rflags: &mut u64) -> u64 {
        let accumulator = Target { index: RAX, size: self.size, high: false };
        let expected = gprs.read(accumulator);
        (_, *rflags) = Alu::Cmp.apply(expected, value, self.size, *rflags);
        if expected == value {
            replacement & mask(self.size)
        } else {
            gprs.write(accumulator, value);
            value
        }
    }

    /// Ends the instruction, or one element of a repeated one, and returns the RIP to go on at.
    ///
    /// A repeated instruction with elements left goes on at itself: the guest runs it again and exits again, so that
    /// one exit does a bounded amount of work and interrupts come in between, as on the processor. `rflags` are those after
    /// the element.
    #[inline]
    pub fn retire(&self, gprs: &mut Gprs, rflags: u64, rip: u64) -> u64 {
        if let Some(step) = self.string
            && self.action != Action::Nothing
        {
            if step.source {
                gprs.advance(RSI, step.address_size, i64::from(step.by));
            }
            if step.destination {
                gprs.advance(RDI, step.address_size, i64::from(step.by));
            }
            if step.repeat != Repeat::Once {
                gprs.advance(RCX, step.address_size, -1);
                let goes_on = match step.repeat {
                    Repeat::WhileEqual => rflags & ZF != 0,
                    Repeat::WhileUnequal => rflags & ZF == 0,
                    Repeat::Once | Repeat::Count => true,
                };
                if goes_on && gprs.address(RCX, step.address_size) != 0 {
                    return rip;
                }
            }
        }
        next_rip(self.mode, rip, self.len)
    }
}

/// RIP after an instruction of `len` bytes.
#[must_use]
#[inline]
pub fn next_rip(mode: Mode, rip: u64, len: u8) -> u64 {
    let next = rip.wrapping_add(u64::from(len));
    if mode == Mode::Bits64 { next } else { next & 0xFFFF_FFFF }
}

pub(crate) fn swap_bytes(value: u64, size: u8) -> u64 {
    match size {
        2 => u64::from((value as u16).swap_bytes()),
        4 => u64::from((value as u32).swap_bytes()),
        8 => value.swap_bytes(),
        _ => value,
    }
}
