//! One function for each kind of exit.
//!
//! Each completes the guest's instruction, or raises the fault that the instruction has, or (where something is missing that
//! the next exit can bring, or the guest has changed the instruction meanwhile) lets the guest execute it again.

mod control;
mod decode;
mod memory;
mod msr;
mod port;

use crate::event::vector;
use crate::state::{field, gpr};
use crate::vm::{Ending, Next, Vm};
use moira_abi::vcpu::{Exit, group};
pub(crate) use port::port;
use vmm_decode::Expected;
use vmm_machine::cpuid::Live;

const CR4_OSXSAVE: u64 = 1 << 18;

/// CPUID.
#[inline(always)]
pub(crate) fn cpuid(vm: &mut Vm<'_>) -> Next {
    let Some(length) = decode::length(vm, Expected::Cpuid) else { return Next::Enter };
    let (leaf, subleaf) = (vm.page.gpr(gpr::RAX) as u32, vm.page.gpr(gpr::RCX) as u32);
    let mut live = Live::default();
    if matches!(leaf, 1 | 0xd) {
        // Two leaves show control registers.
        if !vm.needs(group::CONTROL | group::TSC_XCR) {
            return Next::Enter;
        }
        live = Live { osxsave: vm.page.get(field::CR4) & CR4_OSXSAVE != 0, xcr0: vm.page.get(field::XCR0) };
    }
    let answer = vm.cpuid.answer(leaf, subleaf, live);
    vm.page.set_gpr(gpr::RAX, answer.eax.into());
    vm.page.set_gpr(gpr::RBX, answer.ebx.into());
    vm.page.set_gpr(gpr::RCX, answer.ecx.into());
    vm.page.set_gpr(gpr::RDX, answer.edx.into());
    vm.advance(length);
    Next::Enter
}

/// All exits but the two most frequent ones; `now` in TSC ticks.
pub(crate) fn other(vm: &mut Vm<'_>, exit: Exit, now: u64) -> Next {
    match exit {
        Exit::Memory => memory::memory(vm, now),
        Exit::MsrRead => msr::read(vm, now),
        Exit::MsrWrite => msr::write(vm, now),
        Exit::Halt => skip(vm, Expected::Hlt, Next::Halt),
        Exit::Hypercall => hypercall(vm),
        Exit::Port => port(vm, now),
        Exit::Cpuid => cpuid(vm),
        Exit::Until | Exit::Kicked | Exit::InterruptWindow | Exit::Iret => Next::Enter,
        Exit::NmiWindow => nmi_window(vm),
        Exit::Exception => exception(vm),
        Exit::ControlWrite => control::control(vm),
        Exit::DebugRegister => control::debug(vm),
        // There is no cache between the guest and its memory that it could see.
        Exit::CacheFlush => cache_flush(vm),
        Exit::Xsetbv => control::xsetbv(vm),
        // CPUID shows neither MONITOR nor a performance counter, nor a hypervisor's instructions.
        Exit::Mwait | Exit::Undefined => vm.raise(vector::UNDEFINED, None),
        Exit::Rdpmc => vm.raise(vector::PROTECTION, Some(0)),
        Exit::Pause => skip(vm, Expected::Pause, Next::Enter),
        Exit::Shutdown => Next::End(Ending::TripleFault),
        Exit::InvalidState => Next::End(Ending::InvalidState(vm.page.get(field::QUALIFICATION))),
        Exit::TaskSwitch => Next::End(Ending::Unsupported("a task switch")),
        Exit::Init => Next::End(Ending::Unsupported("an INIT signal")),
        Exit::Other => Next::End(Ending::Unsupported("an exit that the kernel does not know")),
    }
}

/// Skips an instruction that has no effect of its own.
fn skip(vm: &mut Vm<'_>, expected: Expected, next: Next) -> Next {
    match decode::length(vm, expected) {
        Some(length) => {
            vm.advance(length);
            next
        }
        None => Next::Enter,
    }
}

fn cache_flush(vm: &mut Vm<'_>) -> Next {
    // Which of the two it was is not told; the one that is there has a length.
    let Some(length) = decode::length(vm, Expected::Wbinvd).or_else(|| decode::length(vm, Expected::Invd)) else {
        return Next::Enter;
    };
    vm.advance(length);
    Next::Enter
}

/// There are no hypercalls: the answer is -1, which no caller takes for success.
fn hypercall(vm: &mut Vm<'_>) -> Next {
    let Some(length) = decode::length(vm, Expected::Hypercall) else { return Next::Enter };
    vm.page.set_gpr(gpr::RAX, u64::MAX);
    vm.advance(length);
    Next::Enter
}

fn nmi_window(vm: &mut Vm<'_>) -> Next {
    if vm.event.is_none() && vm.board.take_nmi(0) {
        vm.event = crate::event::Event::nmi();
    }
    Next::Enter
}

/// An exception that the kernel intercepts for its own safety: it goes on to the guest.
fn exception(vm: &mut Vm<'_>) -> Next {
    let number = vm.page.get(field::QUALIFICATION) as u8;
    match number {
        vector::DEBUG => {
            let conditions = vm.page.get(field::ADDRESS);
            debug_exception(vm, conditions)
        }
        vector::ALIGNMENT => vm.raise(vector::ALIGNMENT, Some(0)),
        // The others are intercepted by nobody; if one comes, it is the guest's.
        8 | 10..=14 => {
            let code = vm.page.get(field::ERROR_CODE) as u32;
            vm.raise(number, Some(code))
        }
        _ => vm.raise(number, None),
    }
}

/// #DB with these conditions in DR6 (SDM 17.2.3): GD is cleared, so that the handler can use the registers.
fn debug_exception(vm: &mut Vm<'_>, conditions: u64) -> Next {
    const GD: u64 = 1 << 13;
    if !vm.needs(group::DEBUG) {
        return Next::Enter;
    }
    vm.page.set(field::DR6, vm.page.get(field::DR6) | conditions);
    vm.page.set(field::DR7, vm.page.get(field::DR7) & !GD);
    vm.changed |= group::DEBUG;
    vm.raise(vector::DEBUG, None)
}

/// The guest single-steps and an instruction was completed here: the trap that comes after it.
#[cold]
pub(crate) fn single_step(vm: &mut Vm<'_>) {
    const BS: u64 = 1 << 14;
    // All debug registers are written here only, so the page is current but for conditions of earlier traps.
    vm.page.set(field::DR6, vm.page.get(field::DR6) | BS);
    vm.changed |= group::DEBUG;
    // A trap is no fault: it cannot become a double one.
    let _ = vm.raise(vector::DEBUG, None);
}
