//! RDMSR and WRMSR.

use super::decode;
use crate::event::vector;
use crate::state::{Field, field, gpr};
use crate::vm::{Next, Vm};
use moira_abi::vcpu::{group, seg};
use vmm_decode::Expected;
use vmm_devices::board::Board;
use vmm_machine::msr::{CpuState, KernelMsr, Read, Write, number};

/// RDMSR; `now` in TSC ticks.
pub(super) fn read(vm: &mut Vm<'_>, now: u64) -> Next {
    let Some(length) = decode::length(vm, Expected::Rdmsr) else { return Next::Again };
    let msr = vm.page.gpr(gpr::RCX) as u32;
    let value = if Board::is_apic_msr(msr) {
        let now = vm.ns(now);
        vm.board().msr_read(vm.index, msr, now).ok()
    } else {
        match vm.msr.read(msr) {
            Read::Value(value) => Some(value),
            Read::Tsc => Some(now.wrapping_add(vm.tsc_offset)),
            Read::Kernel(kept) => {
                if !vm.needs(group_of(kept)) {
                    return Next::Again;
                }
                Some(kernel_value(vm, kept))
            }
            // The board's, all of which were asked above.
            Read::ApicBase | Read::TscDeadline | Read::X2Apic(_) | Read::Fault => None,
        }
    };
    let Some(value) = value else { return fault(vm, msr, "read") };
    vm.page.set_gpr(gpr::RAX, value & 0xffff_ffff);
    vm.page.set_gpr(gpr::RDX, value >> 32);
    vm.advance(length);
    Next::Enter
}

/// WRMSR.
pub(super) fn write(vm: &mut Vm<'_>, now: u64) -> Next {
    let Some(length) = decode::length(vm, Expected::Wrmsr) else { return Next::Again };
    let msr = vm.page.gpr(gpr::RCX) as u32;
    let value = vm.page.gpr(gpr::RAX) & 0xffff_ffff | vm.page.gpr(gpr::RDX) << 32;
    let done = if Board::is_apic_msr(msr) {
        let now = vm.ns(now);
        // An end of interrupt lets in what waited behind it. A command to oneself tells of itself.
        const X2APIC_COMMAND: u32 = 0x830;
        vm.attention |= msr != X2APIC_COMMAND;
        vm.board().msr_write(vm.index, msr, value, now).is_ok()
    } else {
        match write_other(vm, msr, value, now) {
            Ok(done) => done,
            Err(next) => return next,
        }
    };
    if !done {
        return fault(vm, msr, "write");
    }
    vm.advance(length);
    Next::Enter
}

/// MSRs that are not the APIC's. Answers whether the write is legal; an error: the guest has to come again.
fn write_other(vm: &mut Vm<'_>, msr: u32, value: u64, now: u64) -> Result<bool, Next> {
    // The policy stores at once, so all that it may need has to be there before.
    let needed = if msr == number::EFER { group::CONTROL } else { 0 };
    if !vm.needs(needed) {
        return Err(Next::Again);
    }
    let state = CpuState { cr0: vm.page.get(field::CR0), efer: vm.page.get(field::EFER) };
    let stays_the_same = matches!(msr, number::TSC | number::TSC_ADJUST);
    if stays_the_same && !vm.needs(group::TSC_XCR) {
        return Err(Next::Again);
    }
    match vm.msr.write(msr, value, state) {
        Write::Done => {}
        Write::AdjustTsc(change) => move_tsc(vm, change, now),
        Write::SetTsc(value) => {
            let change = value.wrapping_sub(now.wrapping_add(vm.tsc_offset)) as i64;
            vm.msr.tsc_was_set(change);
            move_tsc(vm, change, now);
        }
        Write::Kernel(kept, value) => {
            if kept != KernelMsr::PredCmd {
                if !vm.needs(group_of(kept)) {
                    return Err(Next::Again);
                }
                set_kernel_value(vm, kept, value);
            }
        }
        Write::ApicBase(_) | Write::TscDeadline(_) | Write::X2Apic(..) | Write::Fault => return Ok(false),
    }
    Ok(true)
}

fn move_tsc(vm: &mut Vm<'_>, change: i64, now: u64) {
    vm.tsc_offset = vm.tsc_offset.wrapping_add_signed(change);
    vm.page.set(field::TSC_OFFSET, vm.tsc_offset);
    cut_xcr0(vm);
    vm.changed |= group::TSC_XCR;
    let now = vm.ns(now);
    vm.board().set_tsc_offset(vm.index, vm.tsc_offset, now);
}

/// #GP(0), and a line in the log for each MSR that was not asked for before.
#[cold]
fn fault(vm: &mut Vm<'_>, msr: u32, what: &str) -> Next {
    if vm.msr.first_sight(msr) {
        log::debug!("the guest tried to {what} MSR {msr:x}");
    }
    vm.raise(vector::PROTECTION, Some(0))
}

const fn group_of(kept: KernelMsr) -> u64 {
    match kept {
        KernelMsr::Efer => group::CONTROL,
        KernelMsr::FsBase | KernelMsr::GsBase => group::SEGMENTS,
        KernelMsr::TscAux | KernelMsr::SpecCtrl => group::TSC_XCR,
        KernelMsr::PredCmd => 0,
        _ => group::MSRS,
    }
}

/// The word of the page that holds it; segment bases lie elsewhere.
const fn word_of(kept: KernelMsr) -> Option<Field> {
    Some(match kept {
        KernelMsr::Pat => field::PAT,
        KernelMsr::Efer => field::EFER,
        KernelMsr::SysenterCs => field::SYSENTER_CS,
        KernelMsr::SysenterEsp => field::SYSENTER_ESP,
        KernelMsr::SysenterEip => field::SYSENTER_EIP,
        KernelMsr::Star => field::STAR,
        KernelMsr::Lstar => field::LSTAR,
        KernelMsr::Cstar => field::CSTAR,
        KernelMsr::Fmask => field::SFMASK,
        KernelMsr::KernelGsBase => field::KERNEL_GS_BASE,
        KernelMsr::TscAux => field::TSC_AUX,
        KernelMsr::SpecCtrl => field::SPEC_CTRL,
        KernelMsr::FsBase | KernelMsr::GsBase | KernelMsr::PredCmd => return None,
    })
}

fn kernel_value(vm: &Vm<'_>, kept: KernelMsr) -> u64 {
    match (word_of(kept), kept) {
        (Some(word), _) => vm.page.get(word),
        (None, KernelMsr::FsBase) => vm.page.segment_base(seg::FS),
        (None, KernelMsr::GsBase) => vm.page.segment_base(seg::GS),
        (None, _) => 0,
    }
}

fn set_kernel_value(vm: &mut Vm<'_>, kept: KernelMsr, value: u64) {
    match (word_of(kept), kept) {
        (Some(word), _) => vm.page.set(word, value),
        (None, KernelMsr::FsBase) => vm.page.set_segment_base(seg::FS, value),
        (None, KernelMsr::GsBase) => vm.page.set_segment_base(seg::GS, value),
        (None, _) => {}
    }
    let group = group_of(kept);
    match group {
        group::MSRS => make_canonical(vm),
        group::TSC_XCR => cut_xcr0(vm),
        _ => {}
    }
    vm.changed |= group;
}

/// XCR0 may be what an emulator that does not intercept XSETBV let in: the kernel refuses components that it cannot save.
fn cut_xcr0(vm: &Vm<'_>) {
    const AVX: u64 = 6;
    const AVX512: u64 = 0xe0;
    let mut value = vm.page.get(field::XCR0) & vm.xcr0 | 1;
    if value & AVX != AVX {
        value &= 3;
    }
    if value & AVX512 != AVX512 {
        value &= !AVX512;
    }
    vm.page.set(field::XCR0, value);
}

/// Addresses among the MSRs that the guest wrote by itself: an emulator may have let others in than a processor does, and the
/// kernel takes the group as a whole.
fn make_canonical(vm: &Vm<'_>) {
    for word in [field::LSTAR, field::CSTAR, field::KERNEL_GS_BASE, field::SYSENTER_ESP, field::SYSENTER_EIP] {
        let value = vm.page.get(word);
        vm.page.set(word, ((value as i64) << 16 >> 16) as u64);
    }
}
