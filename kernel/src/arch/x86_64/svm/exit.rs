//! From SVM's exit code to an [`Outcome`].
use moira_abi::vcpu::{Exit, control_write, event, group, invalid, request, seg};
use moira_kernel_core::vcpu_check::{self as check, Event, default_groups, efer};

use super::super::mitigations;
use super::super::virt::{CpuVirt, Nmi, Outcome, StatePage, VcpuHw, put, report, slow, write_spec_ctrl};
use super::state::{self, store_state};
use super::vmcb::{Clean, Vmcb};
use super::{TF, vmcb};

/// Exit codes (APM 2 appendix C) that are looked at here.
mod code {
    pub const CR_WRITE_4: u64 = 0x14;
    pub const CR_WRITE_8: u64 = 0x18;
    pub const CR_READ_8: u64 = 0x08;
    pub const DR_READ: u64 = 0x20;
    pub const DR_WRITE: u64 = 0x30;
    pub const DR_LAST: u64 = 0x3f;
    pub const EXCEPTION: u64 = 0x40;
    pub const DB: u64 = 0x41;
    pub const MC: u64 = 0x52;
    pub const EXCEPTION_LAST: u64 = 0x5f;
    pub const INTR: u64 = 0x60;
    pub const NMI: u64 = 0x61;
    pub const SMI: u64 = 0x62;
    pub const VINTR: u64 = 0x64;
    pub const CPUID: u64 = 0x72;
    pub const IRET: u64 = 0x74;
    pub const IO: u64 = 0x7b;
    pub const MSR: u64 = 0x7c;
    pub const TASK_SWITCH: u64 = 0x7d;
    pub const VMMCALL: u64 = 0x81;
    pub const ICEBP: u64 = 0x88;
    pub const NESTED_FAULT: u64 = 0x400;
    pub const INVALID: u64 = u64::MAX;
    /// The same, from an emulator that keeps 32 bits.
    pub const INVALID_SHORT: u64 = 0xffff_ffff;
    pub const BUSY: u64 = u64::MAX - 1;
}

/// DR6's condition bits: B0–B3, BD, BS, BT.
const DR6_CONDITIONS: u64 = 0xe00f;
const DR6_BS: u64 = 1 << 14;
const DR6_POINTS: u64 = 15;
/// CS.L in the VMCB's packed attributes.
const CS_LONG: u16 = 1 << 9;

/// Says what the exit means, and writes its groups if it is for the VMM.
#[inline(always)]
pub(super) fn classify(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    let block = vmcb(hw);
    block.event_inject = 0;
    let delivering = block.exit_int_info;
    if delivering & event::VALID != 0 || hw.shadow().slow != 0 {
        return classify_slowly(cpu, hw, page, out);
    }
    if block.exit_code == code::IO {
        // The hot one.
        return port(cpu, hw, page, out);
    }
    match block.exit_code {
        code::CPUID => plain(cpu, hw, page, out, Exit::Cpuid),
        code::VMMCALL => plain(cpu, hw, page, out, Exit::Hypercall),
        _ => dispatch(cpu, hw, page, out),
    }
}

/// IN, OUT, INS, OUTS: RIP behind the instruction is in EXITINFO2 on every SVM.
#[inline(always)]
fn port(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    let block = vmcb(hw);
    report(page, Exit::Port, check::port_from_svm(block.exit_info1).0, block.exit_info2.wrapping_sub(block.rip));
    guest(cpu, hw, page, Exit::Port, out)
}

/// An exit for an instruction that says all by itself.
#[inline(always)]
fn plain(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64, exit: Exit) -> Outcome {
    let block = vmcb(hw);
    report(page, exit, 0, length(block));
    guest(cpu, hw, page, exit, out | find_code(block, page))
}

/// Exits during the delivery of an event, while an NMI handler runs, and the like.
#[cold]
#[inline(never)]
fn classify_slowly(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    let block = vmcb(hw);
    let shadow = hw.shadow();
    // Nothing has returned since the exit: up to here all is inlined.
    if shadow.slow & slow::HARDEN != 0 {
        mitigations::after_exit();
    }
    if shadow.slow & slow::SPEC_CTRL != 0 {
        write_spec_ctrl(mitigations::host_spec_ctrl());
    }
    let mut pending = state::undelivered(hw);
    if shadow.slow & slow::SOFT != 0 {
        if pending.info as u64 & event::VALID != 0 {
            // The injected event was not delivered: RIP is the instruction's own again, which raises it anew.
            block.rip = block.rip.wrapping_sub(shadow.soft_length.into());
            pending = Event::NONE;
        }
        shadow.soft_length = 0;
        shadow.slow &= !slow::SOFT;
    }
    if pending.is_software() {
        pending = Event::NONE;
    }
    if pending.is_nmi() {
        state::set_nmi(hw, Nmi::Open);
    }
    if shadow.nmi == Nmi::Stepping && finish_step(hw) {
        return nmi_open(cpu, hw, page, out);
    }
    if shadow.nmi == Nmi::Blocked && block.exit_code == code::IRET {
        (shadow.stepped_flag, shadow.stepped_rip) = (block.rflags & TF, block.rip);
        state::set_nmi(hw, Nmi::Stepping);
        return Outcome::Again;
    }
    let through_gate = block.exit_int_info & event::VALID != 0;
    let outcome = if block.exit_code == code::TASK_SWITCH {
        task_switch(cpu, hw, page, out, through_gate)
    } else {
        dispatch(cpu, hw, page, out)
    };
    if pending.info != 0 {
        if let Outcome::Guest { .. } = outcome {
            put!(page, delivering, pending.packed());
        } else {
            // Nobody outside heard of this exit: the event goes in again at the next entry.
            if pending.is_nmi() {
                state::set_nmi(hw, Nmi::Blocked);
            }
            state::arm(cpu, hw, pending);
        }
    }
    outcome
}

/// Before an entry to step over an IRET: sets TF, and clears DR6, where conditions of earlier traps stand until the guest clears them.
pub(super) fn begin_step(hw: VcpuHw) {
    let block = vmcb(hw);
    hw.shadow().stepped_dr6 = block.dr6;
    block.rflags |= TF;
    block.dr6 &= !DR6_CONDITIONS;
    block.clean.remove(Clean::DEBUG);
}

/// After an entry with TF set to step over an IRET. True: NMIs are open now and the exit was nothing but the step.
fn finish_step(hw: VcpuHw) -> bool {
    let block = vmcb(hw);
    let shadow = hw.shadow();
    // B0-B3 mean something only where DR7 enables the break point (APM 2 13.1.1.3). Bochs exits before it sets DR6.
    let enabled = (0..4).filter(|point| block.dr7 >> (2 * point) & 3 != 0).fold(0, |bits, point| bits | 1 << point);
    let own = if shadow.stepped_flag != 0 { DR6_BS } else { 0 };
    let conditions = block.dr6 & DR6_CONDITIONS & (enabled | own | !(DR6_POINTS | DR6_BS));
    block.dr6 = shadow.stepped_dr6 | conditions;
    block.clean.remove(Clean::DEBUG);
    if block.rip == shadow.stepped_rip {
        // Something came first (a host interrupt, a nested fault on the stack): the flag is not the guest's.
        block.rflags = block.rflags & !TF | shadow.stepped_flag;
        return false;
    }
    state::set_nmi(hw, Nmi::Open);
    block.exit_code == code::DB && conditions == 0 && shadow.stepped_flag == 0
}

/// NMIs can be injected: tells the VMM if it asked.
fn nmi_open(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    if hw.shadow().slow & slow::NMI_WINDOW == 0 {
        return Outcome::Again;
    }
    nmi_window(cpu, hw, page, out)
}

/// The exit that `request::NMI_WINDOW` asked for; before an entry, too, where hardware with virtual NMIs would exit at once.
pub(super) fn nmi_window(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    let left = hw.shadow().request & !(request::NMI_WINDOW as u32);
    state::load_request(hw, left);
    report(page, Exit::NmiWindow, 0, 0);
    guest(cpu, hw, page, Exit::NmiWindow, out)
}

/// Length of the intercepted instruction where the processor saves the next RIP, else 0.
#[inline]
fn length(block: &Vmcb) -> u64 {
    if block.next_rip == 0 { 0 } else { block.next_rip.wrapping_sub(block.rip) & 15 }
}

/// Says where the code is if [`length`] is 0, and answers what else the VMM needs to decode it.
#[inline(always)]
fn find_code(block: &Vmcb, page: StatePage) -> u64 {
    if block.next_rip != 0 {
        return 0;
    }
    if block.efer & efer::LMA != 0 && block.segments[seg::CS].attributes & CS_LONG != 0 {
        put!(page, code_root, block.cr3);
        return 0;
    }
    put!(page, code_root, u64::MAX);
    group::CONTROL
}

#[inline(never)]
fn dispatch(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    let block = vmcb(hw);
    let exit = match block.exit_code {
        code::INTR => return Outcome::HostInterrupt,
        // An NMI waited for STGI, where the kernel's handler ran.
        code::NMI | code::SMI | code::BUSY => return Outcome::Again,
        code::MC => return Outcome::MachineCheck,
        code::IO => return port(cpu, hw, page, out),
        code::NESTED_FAULT => {
            report(page, Exit::Memory, check::access_from_svm(block.exit_info1), 0);
            put!(page, address, block.exit_info2);
            put!(page, linear, 0);
            store_fetched(cpu, block, page);
            Exit::Memory
        }
        code::MSR => {
            let exit = if block.exit_info1 & 1 != 0 { Exit::MsrWrite } else { Exit::MsrRead };
            report(page, exit, 0, length(block));
            return guest(cpu, hw, page, exit, out | find_code(block, page));
        }
        code::VINTR => {
            let left = hw.shadow().request & !(request::INTERRUPT_WINDOW as u32);
            state::load_request(hw, left);
            report(page, Exit::InterruptWindow, 0, 0);
            Exit::InterruptWindow
        }
        code::TASK_SWITCH => return task_switch(cpu, hw, page, out, false),
        code::INVALID | code::INVALID_SHORT => {
            // Whether a refused VMRUN flushes is written nowhere. QEMU (7.2), where it refuses early, writes V_INTR back as zero, and
            // without V_INTR_MASKING a guest with its own interrupts off would keep the host's out.
            cpu.tags.flush_again();
            hw.shadow().generation = 0;
            state::load_request(hw, hw.shadow().request);
            report(page, Exit::InvalidState, invalid::HARDWARE, 0);
            Exit::InvalidState
        }
        code::CR_READ_8 | code::CR_WRITE_4 | code::CR_WRITE_8 | code::DR_READ..=code::DR_LAST => {
            register_move(cpu, block, page)
        }
        number @ code::EXCEPTION..=code::EXCEPTION_LAST => {
            report(page, Exit::Exception, number - code::EXCEPTION, 0);
            put!(page, error_code, block.exit_info1 & 0xffff_ffff);
            put!(page, address, if number == code::DB { debug_conditions(block) } else { block.exit_info2 });
            Exit::Exception
        }
        code::ICEBP => {
            // INT1: the debug exception that it raises, which VT-x reports before it moves RIP, too.
            report(page, Exit::Exception, 1, length(block).max(1));
            put!(page, error_code, 0);
            put!(page, address, 0);
            Exit::Exception
        }
        number => {
            let exit = check::plain_exit_svm(number);
            report(page, exit, if exit == Exit::Other { number } else { 0 }, length(block));
            return guest(cpu, hw, page, exit, out | find_code(block, page));
        }
    };
    guest(cpu, hw, page, exit, out)
}

/// Writes what goes with every exit for the VMM.
#[inline(always)]
fn guest(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, exit: Exit, out: u64) -> Outcome {
    put!(page, delivering, 0);
    let groups = default_groups(exit) | out & group::ALL;
    store_state(cpu, hw, page, groups);
    Outcome::Guest { exit, groups: groups as u32 }
}

/// MOV to CR4, or to or from CR8 or a debug register; decode assists name the general register.
fn register_move(cpu: &CpuVirt, block: &Vmcb, page: StatePage) -> Exit {
    let (exit, register, read) = match block.exit_code {
        code::CR_READ_8 => (Exit::ControlWrite, 8, control_write::READ),
        code::CR_WRITE_4 => (Exit::ControlWrite, 4, 0),
        code::CR_WRITE_8 => (Exit::ControlWrite, 8, 0),
        number if number < code::DR_WRITE => (Exit::DebugRegister, number & 15, control_write::READ),
        number => (Exit::DebugRegister, number & 15, 0),
    };
    let gpr = if cpu.features.decode {
        (block.exit_info1 & 15) << control_write::GPR_SHIFT
    } else {
        control_write::UNDECODED
    };
    report(page, exit, register | read | gpr, length(block));
    exit
}

/// What a debug exception sets in DR6. Bochs exits before it does so: then a set TF is the likely cause.
fn debug_conditions(block: &Vmcb) -> u64 {
    let conditions = block.dr6 & DR6_CONDITIONS;
    if conditions == 0 && block.rflags & TF != 0 { DR6_BS } else { conditions }
}

fn store_fetched(cpu: &CpuVirt, block: &Vmcb, page: StatePage) {
    let count = if cpu.features.decode { block.fetched_count.min(15) } else { 0 };
    put!(page, fetched_count, u64::from(count));
    if count != 0 {
        let mut bytes = [0; 16];
        bytes[..15].copy_from_slice(&block.fetched);
        put!(page, fetched, bytes);
    }
}

fn task_switch(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64, through_gate: bool) -> Outcome {
    let block = vmcb(hw);
    report(page, Exit::TaskSwitch, check::task_switch_from_svm(block.exit_info1, block.exit_info2, through_gate), 0);
    put!(page, error_code, block.exit_info2 & 0xffff_ffff);
    guest(cpu, hw, page, Exit::TaskSwitch, out)
}
