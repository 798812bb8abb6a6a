//! From VT-x's exit reason to an [`Outcome`].
use core::mem::offset_of;

use moira_abi::vcpu::{Exit, VcpuState, control_write, event, group, invalid, request};
use moira_kernel_core::vcpu_check::{self as check, default_groups};

use super::super::virt::{CpuVirt, Outcome, StatePage, VcpuHw, put, report};
use super::state::{self, store_current};
use super::{put_field, switch, vmcs};

/// Basic exit reasons (SDM appendix C) that are looked at here.
mod reason {
    pub const EVENT: u32 = 0;
    pub const INTERRUPT: u32 = 1;
    pub const INTERRUPT_WINDOW: u32 = 7;
    pub const NMI_WINDOW: u32 = 8;
    pub const TASK_SWITCH: u32 = 9;
    pub const CPUID: u32 = 10;
    pub const VMCALL: u32 = 18;
    pub const CONTROL: u32 = 28;
    pub const DEBUG: u32 = 29;
    pub const IO: u32 = 30;
    pub const ENTRY_MACHINE_CHECK: u32 = 41;
    pub const EPT_VIOLATION: u32 = 48;
    pub const PREEMPTION_TIMER: u32 = 52;
    pub const ENTRY_FAILED: u32 = 1 << 31;
}

/// Bit 12 of an EPT violation's qualification and of the exit event: IRET had unblocked NMIs and runs again.
const UNBLOCKED_BY_IRET: u64 = 1 << 12;
const DR6_CONDITIONS: u64 = 0xe00f;

/// The processor refused the state; the event that was to be injected is dropped with it.
fn invalid_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, error: u64) -> Outcome {
    vmcs::ENTRY_EVENT.write(0);
    report(page, Exit::InvalidState, invalid::HARDWARE | error << 32, 0);
    guest(cpu, hw, page, Exit::InvalidState, 0)
}

/// Says what the exit means, and writes its groups if it is for the VMM.
#[inline(always)]
pub(super) fn classify(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64, number: u32) -> Outcome {
    // The hottest one, and inside of the caller.
    if number == reason::IO {
        return plain(cpu, hw, page, out, Exit::Port, check::port_from_vmx(vmcs::QUALIFICATION.read()).0);
    }
    classify_other(cpu, hw, page, out, number)
}

/// An exit for an instruction that cannot exit during the delivery of an event.
#[inline(always)]
fn plain(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64, exit: Exit, detail: u64) -> Outcome {
    put!(page, reason, exit as u64);
    put!(page, qualification, detail);
    put_field!(page, length, vmcs::INSTRUCTION_LENGTH);
    guest(cpu, hw, page, exit, out)
}

#[inline(never)]
fn classify_other(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64, number: u32) -> Outcome {
    match number {
        reason::CPUID => plain(cpu, hw, page, out, Exit::Cpuid, 0),
        reason::VMCALL => plain(cpu, hw, page, out, Exit::Hypercall, 0),
        _ => classify_rest(cpu, hw, page, out, number),
    }
}

#[inline(never)]
fn classify_rest(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64, number: u32) -> Outcome {
    if number == switch::REFUSED {
        return invalid_state(cpu, hw, page, vmcs::INSTRUCTION_ERROR.read().into());
    }
    if number & reason::ENTRY_FAILED != 0 {
        if number & 0xffff == reason::ENTRY_MACHINE_CHECK {
            return Outcome::MachineCheck;
        }
        return invalid_state(cpu, hw, page, 0x1000 | u64::from(number & 0xffff));
    }
    let pending = state::interrupted_delivery();
    let outcome = dispatch(cpu, hw, page, out, number & 0xffff);
    if pending.info != 0 {
        if pending.is_nmi() {
            // Not delivered, so that it blocks nothing yet.
            state::block_nmi(false);
        }
        if let Outcome::Guest { groups, .. } = outcome {
            put!(page, delivering, pending.packed());
            if u64::from(groups) & group::INTERRUPTIBILITY != 0 && pending.is_nmi() {
                store_current(cpu, hw, page, group::INTERRUPTIBILITY);
            }
        } else {
            state::arm(pending);
        }
    }
    outcome
}

#[inline(always)]
fn length() -> u64 {
    vmcs::INSTRUCTION_LENGTH.read().into()
}

/// Writes what goes with every exit for the VMM.
#[inline(always)]
fn guest(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, exit: Exit, out: u64) -> Outcome {
    put!(page, delivering, 0);
    let groups = default_groups(exit) | out & group::ALL;
    store_current(cpu, hw, page, groups);
    Outcome::Guest { exit, groups: groups as u32 }
}

#[inline]
fn dispatch(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64, number: u32) -> Outcome {
    let exit = match number {
        reason::INTERRUPT | reason::PREEMPTION_TIMER => return Outcome::HostInterrupt,
        reason::EVENT => match exception(page) {
            Ok(exit) => exit,
            Err(outcome) => return outcome,
        },
        reason::EPT_VIOLATION => {
            memory(page);
            Exit::Memory
        }
        reason::INTERRUPT_WINDOW | reason::NMI_WINDOW => {
            let (exit, bit) = match number {
                reason::INTERRUPT_WINDOW => (Exit::InterruptWindow, request::INTERRUPT_WINDOW),
                _ => (Exit::NmiWindow, request::NMI_WINDOW),
            };
            let left = hw.shadow().request & !(bit as u32);
            state::load_request(hw, left);
            report(page, exit, 0, 0);
            exit
        }
        reason::TASK_SWITCH => {
            report(page, Exit::TaskSwitch, vmcs::QUALIFICATION.read(), length());
            put!(page, error_code, u64::from(vmcs::VECTORING_CODE.read()));
            Exit::TaskSwitch
        }
        reason::CONTROL => {
            control(page, vmcs::QUALIFICATION.read());
            Exit::ControlWrite
        }
        reason::DEBUG => {
            let qualification = vmcs::QUALIFICATION.read();
            let read = if qualification & 1 << 4 != 0 { control_write::READ } else { 0 };
            let gpr = (qualification >> 8 & 15) << control_write::GPR_SHIFT;
            report(page, Exit::DebugRegister, qualification & 7 | read | gpr, length());
            Exit::DebugRegister
        }
        other => {
            let exit = check::plain_exit_vmx(other);
            let (detail, bytes) = match exit {
                Exit::Other => (other.into(), 0),
                Exit::Shutdown | Exit::Init => (0, 0),
                _ => (0, length()),
            };
            report(page, exit, detail, bytes);
            exit
        }
    };
    guest(cpu, hw, page, exit, out)
}

/// The vector of the interrupt that the last exit acknowledged.
pub(in super::super) fn taken_interrupt() -> Option<u8> {
    let info = vmcs::EXIT_EVENT.read();
    (u64::from(info) & event::VALID != 0).then_some(info as u8)
}

/// Exceptions and NMIs.
fn exception(page: StatePage) -> Result<Exit, Outcome> {
    let info = vmcs::EXIT_EVENT.read();
    let vector = u64::from(info & 0xff);
    if u64::from(info) & event::TYPE == event::NMI {
        switch::call_nmi_handler();
        return Err(Outcome::Again);
    }
    if vector == 18 {
        return Err(Outcome::MachineCheck);
    }
    if u64::from(info) & UNBLOCKED_BY_IRET != 0 && vector != 8 && u64::from(vmcs::VECTORING.read()) & event::VALID == 0
    {
        state::block_nmi(true);
    }
    let int1 = u64::from(info) & event::TYPE == event::PRIVILEGED_EXCEPTION;
    report(page, Exit::Exception, vector, if int1 { length() } else { 0 });
    let code = if u64::from(info) & event::HAS_CODE != 0 { vmcs::EXIT_EVENT_CODE.read() } else { 0 };
    put!(page, error_code, u64::from(code));
    let qualification = vmcs::QUALIFICATION.read();
    put!(page, address, if vector == 1 { qualification & DR6_CONDITIONS } else { qualification });
    Ok(Exit::Exception)
}

fn memory(page: StatePage) {
    let qualification = vmcs::QUALIFICATION.read();
    if qualification & UNBLOCKED_BY_IRET != 0 && u64::from(vmcs::VECTORING.read()) & event::VALID == 0 {
        state::block_nmi(true);
    }
    report(page, Exit::Memory, check::access_from_vmx(qualification), 0);
    put!(page, address, vmcs::GUEST_PHYSICAL.read());
    put!(page, linear, if qualification & 1 << 7 != 0 { vmcs::GUEST_LINEAR.read() } else { 0 });
    put!(page, fetched_count, 0);
}

/// The kinds of control-register access (SDM table 27-3, bits 4–5).
const KIND_WRITE: u64 = 0;
const KIND_READ: u64 = 1;
const KIND_CLTS: u64 = 2;

fn control(page: StatePage, qualification: u64) {
    let gpr = (qualification >> 8 & 15) << control_write::GPR_SHIFT;
    let flags = match qualification >> 4 & 3 {
        KIND_WRITE => gpr,
        KIND_READ => gpr | control_write::READ,
        KIND_CLTS => control_write::CLTS,
        _ => control_write::LMSW,
    };
    report(page, Exit::ControlWrite, qualification & 15 | flags, length());
    put!(page, address, qualification >> 16 & 0xffff);
}
