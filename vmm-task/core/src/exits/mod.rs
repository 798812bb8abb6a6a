//! One function for each kind of exit.
//!
//! Each completes the guest's instruction, or raises the fault that the instruction has, or (where something is missing that
//! the next exit can bring, or the guest has changed the instruction meanwhile) lets the guest execute it again.

mod control;
pub(crate) mod decode;
mod memory;
mod msr;
mod port;

use crate::event::vector;
use crate::state::{field, gpr};
use crate::vm::{Ending, Next, Processor, Vm};
use moira_abi::vcpu::{Exit, group};
pub(crate) use port::port;
use vmm_decode::Expected;
use vmm_machine::cpuid::{Leaf, Live};

const CR4_OSXSAVE: u64 = 1 << 18;

/// Answers to CPUID that were given before: a leaf that shows nothing of the processor's state never changes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answers {
    /// Leaf and subleaf; none where nothing was asked yet, since the last leaf there is needs no answer kept.
    asked: [(u64, u64); Answers::KEPT],
    given: [Leaf; Answers::KEPT],
}

impl Answers {
    /// A power of two.
    const KEPT: usize = 16;

    #[inline(always)]
    fn place(leaf: u64, subleaf: u64) -> usize {
        (leaf ^ leaf >> 28 ^ subleaf << 2) as usize % Answers::KEPT
    }
}

impl Default for Answers {
    fn default() -> Self {
        Answers { asked: [(u64::MAX, 0); Answers::KEPT], given: [Leaf::default(); Answers::KEPT] }
    }
}

/// CPUID.
#[inline(always)]
pub(crate) fn cpuid(vm: &mut Vm<'_>) -> Next {
    let Some(length) = decode::length(vm, Expected::Cpuid) else { return Next::Again };
    let page = vm.page;
    let (leaf, subleaf) = (page.gpr(gpr::RAX) & 0xffff_ffff, page.gpr(gpr::RCX) & 0xffff_ffff);
    let place = Answers::place(leaf, subleaf);
    let answer = if vm.answers.asked[place] == (leaf, subleaf) {
        vm.answers.given[place]
    } else {
        match ask(vm, leaf, subleaf, place) {
            Some(answer) => answer,
            None => return Next::Again,
        }
    };
    page.set_gpr(gpr::RAX, answer.eax.into());
    page.set_gpr(gpr::RBX, answer.ebx.into());
    page.set_gpr(gpr::RCX, answer.ecx.into());
    page.set_gpr(gpr::RDX, answer.edx.into());
    vm.advance(length);
    Next::Enter
}

#[inline(never)]
fn ask(vm: &mut Vm<'_>, leaf: u64, subleaf: u64, place: usize) -> Option<Leaf> {
    let shows_state = matches!(leaf, 1 | 0xd | 0x8000_0001);
    let mut live = Live::default();
    if shows_state {
        if !vm.needs(group::CONTROL | group::TSC_XCR) {
            return None;
        }
        live = Live {
            osxsave: vm.page.get(field::CR4) & CR4_OSXSAVE != 0,
            xcr0: vm.page.get(field::XCR0),
            apic: vm.board().has_apic(vm.index),
        };
    }
    let answer = vm.cpuid.answer(leaf as u32, subleaf as u32, live);
    // Intel answers leaves beyond the last with the last basic one, which may be the one that shows state.
    if !shows_state
        && vm.cpuid.answer(leaf as u32, subleaf as u32, Live { osxsave: true, xcr0: u64::MAX, apic: true }) == answer
    {
        vm.answers.asked[place] = (leaf, subleaf);
        vm.answers.given[place] = answer;
    }
    Some(answer)
}

/// All exits but the hottest.
#[inline(always)]
pub(crate) fn other(vm: &mut Vm<'_>, exit: Exit, cpu: &impl Processor) -> Next {
    match exit {
        Exit::Memory => memory::memory(vm, cpu.now()),
        Exit::MsrRead => msr::read(vm, cpu.now()),
        Exit::MsrWrite => msr::write(vm, cpu.now()),
        _ => rare(vm, exit),
    }
}

#[inline(never)]
fn rare(vm: &mut Vm<'_>, exit: Exit) -> Next {
    match exit {
        Exit::Halt => match skip(vm, Expected::Hlt, Next::Halt) {
            // Nothing may come before it: an interrupt that STI holds back until HLT is to end HLT. QEMU forgets that shadow
            // when the guest is entered again.
            Next::Again => vm.hold_back(),
            next => next,
        },
        Exit::InterruptWindow | Exit::Iret => Next::Enter,
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
        Exit::Shutdown => vm.end(Ending::TripleFault),
        Exit::InvalidState => vm.end(Ending::InvalidState(vm.page.get(field::QUALIFICATION))),
        Exit::TaskSwitch => vm.end(Ending::Unsupported("a task switch")),
        Exit::Init => vm.end(Ending::Unsupported("an INIT signal")),
        // The named ones were handled before.
        _ => vm.end(Ending::Unsupported("an exit that the kernel does not know")),
    }
}

/// Skips an instruction that has no effect of its own.
fn skip(vm: &mut Vm<'_>, expected: Expected, next: Next) -> Next {
    match decode::length(vm, expected) {
        Some(length) => {
            vm.advance(length);
            next
        }
        None => Next::Again,
    }
}

fn cache_flush(vm: &mut Vm<'_>) -> Next {
    // Which of the two it was is not told; the one that is there has a length.
    let Some(length) = decode::length(vm, Expected::Wbinvd).or_else(|| decode::length(vm, Expected::Invd)) else {
        return Next::Again;
    };
    vm.advance(length);
    Next::Enter
}

/// There are no hypercalls: the answer is -1, which no caller takes for success.
#[inline(always)]
pub(crate) fn hypercall(vm: &mut Vm<'_>) -> Next {
    let Some(length) = decode::length(vm, Expected::Hypercall) else { return Next::Again };
    vm.page.set_gpr(gpr::RAX, u64::MAX);
    vm.advance(length);
    Next::Enter
}

fn nmi_window(vm: &mut Vm<'_>) -> Next {
    if vm.event.is_none() && vm.board().take_nmi(vm.index) {
        vm.inject_nmi();
    }
    Next::Enter
}

/// An exception that the kernel intercepts for its own safety: it goes on to the guest.
fn exception(vm: &mut Vm<'_>) -> Next {
    let number = vm.page.get(field::QUALIFICATION) as u8;
    match number {
        vector::DEBUG => {
            let (conditions, int1) = (vm.page.get(field::ADDRESS), vm.page.get(field::LENGTH));
            if int1 != 0 {
                if vm.planted() {
                    return Next::Enter;
                }
                // The guest's own.
                vm.set_rip(vm.page.get(field::RIP).wrapping_add(int1));
                return vm.raise(vector::DEBUG, None);
            }
            if vm.trapped(conditions) {
                return Next::Enter;
            }
            debug_exception(vm, conditions)
        }
        // Asked for by a debugger.
        vector::UNDEFINED if vm.planted() => Next::Enter,
        vector::ALIGNMENT => vm.raise(vector::ALIGNMENT, Some(0)),
        // The others are intercepted by nobody; if one comes, it is the guest's.
        8 | 10..=14 => {
            let code = vm.page.get(field::ERROR_CODE) as u32;
            vm.raise(number, Some(code))
        }
        _ => vm.raise(number, None),
    }
}

/// B0-B3 of DR6: a debug exception clears those that are not its own (SDM 17.2.3).
const POINTS: u64 = 15;

/// #DB with these conditions in DR6 (SDM 17.2.3): GD is cleared, so that the handler can use the registers.
fn debug_exception(vm: &mut Vm<'_>, conditions: u64) -> Next {
    const GD: u64 = 1 << 13;
    if !vm.needs(group::DEBUG) {
        return Next::Again;
    }
    vm.page.set(field::DR6, vm.page.get(field::DR6) & !POINTS | conditions);
    vm.page.set(field::DR7, vm.page.get(field::DR7) & !GD);
    vm.changed |= group::DEBUG;
    vm.raise(vector::DEBUG, None)
}

/// The guest single-steps and an instruction was completed here: the trap that comes after it.
#[cold]
pub(crate) fn single_step(vm: &mut Vm<'_>) {
    const BS: u64 = 1 << 14;
    if vm.trapped(BS) {
        return;
    }
    // All debug registers are written here only, so the page is current but for conditions of earlier traps.
    vm.page.set(field::DR6, vm.page.get(field::DR6) & !POINTS | BS);
    vm.changed |= group::DEBUG;
    // A trap is no fault: it cannot become a double one.
    let _ = vm.raise(vector::DEBUG, None);
}
