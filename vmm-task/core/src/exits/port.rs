//! IN and OUT.

use super::decode;
use super::memory::Span;
use crate::event::vector;
use crate::state::{field, gpr};
use crate::vm::{Ending, Next, Vm};
use moira_abi::vcpu::{PortIo, group, seg};
use vmm_decode::mmio::SegmentName;
use vmm_decode::{Access, Action as Instruction, Gprs, WalkError, string_io, walk};
use vmm_devices::board::Action;

/// One port access; `now` in TSC ticks.
#[inline(always)]
pub(crate) fn port(vm: &mut Vm<'_>, now: u64) -> Next {
    let page = vm.page;
    let io = PortIo(page.get(field::QUALIFICATION));
    if io.string() {
        return string(vm, io, now);
    }
    let now = vm.ns(now);
    let (size, rax) = (io.size(), page.gpr(gpr::RAX));
    if io.input() {
        let value = u64::from(vm.board().port_read(io.port(), size, now, &vm.ram));
        // A 32-bit result clears the upper half, narrower ones keep it (SDM vol. 1, 3.4.1.1).
        let rax = match size {
            1 => rax & !0xff | value & 0xff,
            2 => rax & !0xffff | value & 0xffff,
            _ => value,
        };
        page.set_gpr(gpr::RAX, rax);
    } else {
        let action = vm.board().port_write(io.port(), size, rax as u32, now, &vm.ram);
        if action != Action::None {
            return act(vm, action);
        }
    }
    vm.advance(page.get(field::LENGTH));
    Next::Enter
}

/// What the board wants after a write.
#[cold]
fn act(vm: &mut Vm<'_>, action: Action) -> Next {
    match action {
        Action::None => Next::Enter,
        Action::Reset => vm.end(Ending::Reset),
        Action::PowerOff => vm.end(Ending::PowerOff),
        Action::DebugExit(value) => vm.end(Ending::DebugExit(value)),
    }
}

/// Index of a segment register on the state page.
pub(super) fn segment_index(name: SegmentName) -> usize {
    match name {
        SegmentName::Es => seg::ES,
        SegmentName::Cs => seg::CS,
        SegmentName::Ss => seg::SS,
        SegmentName::Ds => seg::DS,
        SegmentName::Fs => seg::FS,
        SegmentName::Gs => seg::GS,
    }
}

/// Where `bytes` bytes at a linear address lie; a fault has been raised if nowhere.
pub(super) fn translate(vm: &mut Vm<'_>, linear: u64, write: bool) -> Result<u64, Next> {
    let access = Access { write, user: vm.page.get(field::CPL) == 3, fetch: false };
    let (paging, ram) = (decode::paging(vm), vm.ram);
    match walk(&paging, linear, access, &mut |gpa| ram.word(gpa)) {
        Ok(translation) => Ok(translation.gpa),
        Err(WalkError::PageFault { code }) => {
            if !vm.needs(group::CONTROL) {
                return Err(Next::Again);
            }
            vm.page.set(field::CR2, linear);
            vm.changed |= group::CONTROL;
            Err(vm.raise(vector::PAGE_FAULT, Some(code)))
        }
        Err(_) => Err(vm.raise(vector::PROTECTION, Some(0))),
    }
}

/// One element of INS or OUTS. A repeated one exits again for the next.
#[inline(never)]
fn string(vm: &mut Vm<'_>, io: PortIo, now: u64) -> Next {
    if !vm.needs(group::CONTROL | group::SEGMENTS) {
        return Next::Again;
    }
    let mode = decode::mode(vm);
    let mut gprs = Gprs(vm.page.gprs());
    let Some(bytes) = decode::bytes(vm, mode) else { return Next::Again };
    let Ok(element) = string_io(bytes.bytes(), mode, &gprs, vm.page.get(field::RFLAGS)) else { return Next::Again };
    if element.output == io.input() {
        return Next::Again;
    }
    if element.op.action != Instruction::Nothing {
        match move_element(vm, io, &element, now) {
            Next::Enter if vm.event.is_none() => {}
            other => return other,
        }
    }
    let rip = element.op.retire(&mut gprs, vm.page.get(field::RFLAGS), vm.page.get(field::RIP));
    vm.page.set_gprs(&gprs.0);
    vm.set_rip(rip);
    Next::Enter
}

fn move_element(vm: &mut Vm<'_>, io: PortIo, element: &vmm_decode::StringIo, now: u64) -> Next {
    let memory = match Span::of(vm, &element.op, element.address, !element.output) {
        Ok(memory) => memory,
        Err(next) => return next,
    };
    let (now, size) = (vm.ns(now), element.op.size.clamp(1, 4));
    if element.output {
        let value = memory.read(vm, now) as u32;
        let action = vm.board().port_write(io.port(), size, value, now, &vm.ram);
        act(vm, action)
    } else {
        let value = vm.board().port_read(io.port(), size, now, &vm.ram);
        memory.write(vm, value.into(), now);
        Next::Enter
    }
}
