//! Lengths and bytes of instructions that exits do not carry.

use crate::state::field;
use crate::vm::Vm;
use moira_abi::vcpu::{group, seg};
use vmm_decode::{Expected, Fetched, Mode, Paging, fetch, length_at};

const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_VM: u64 = 1 << 17;
const CS_LONG: u32 = 1 << 13;
const CS_BIG: u32 = 1 << 14;

/// Physical address bits that the page-table walk allows; CPUID shows at most these.
const PHYSICAL_BITS: u8 = 52;

/// Mode of the code that runs; needs group CONTROL, with which the kernel writes CS.
#[inline]
pub(super) fn mode(vm: &Vm<'_>) -> Mode {
    let rights = vm.page.segment_rights(seg::CS);
    if vm.page.get(field::EFER) & EFER_LMA != 0 && rights & CS_LONG != 0 {
        return Mode::Bits64;
    }
    if vm.page.get(field::CR0) & CR0_PE == 0 || vm.page.get(field::RFLAGS) & RFLAGS_VM != 0 || rights & CS_BIG == 0 {
        Mode::Bits16
    } else {
        Mode::Bits32
    }
}

/// How linear addresses are translated; needs groups RIP and CONTROL.
#[inline]
pub(super) fn paging(vm: &Vm<'_>) -> Paging {
    Paging {
        cr0: vm.page.get(field::CR0),
        cr3: vm.page.get(field::CR3),
        cr4: vm.page.get(field::CR4),
        efer: vm.page.get(field::EFER),
        rflags: vm.page.get(field::RFLAGS),
        physical_bits: PHYSICAL_BITS,
    }
}

/// Linear address of the instruction.
#[inline]
fn linear_rip(vm: &Vm<'_>, mode: Mode) -> u64 {
    let rip = vm.page.get(field::RIP);
    match mode {
        Mode::Bits64 => rip,
        _ => rip.wrapping_add(vm.page.segment_base(seg::CS)) & 0xffff_ffff,
    }
}

/// Length of the instruction that exited as `expected`; `None`: let the guest execute it again.
#[inline(always)]
pub(super) fn length(vm: &mut Vm<'_>, expected: Expected) -> Option<u64> {
    let length = vm.page.get(field::LENGTH);
    if length != 0 { Some(length) } else { find_length(vm, expected) }
}

/// The processor did not tell. With such exits the kernel writes group CONTROL.
#[inline(never)]
fn find_length(vm: &mut Vm<'_>, expected: Expected) -> Option<u64> {
    if !vm.needs(group::CONTROL) {
        return None;
    }
    let mode = mode(vm);
    let (paging, rip, ram) = (paging(vm), linear_rip(vm, mode), vm.ram);
    length_at(&paging, rip, mode, expected, &mut |gpa| ram.word(gpa)).ok().map(u64::from)
}

/// Bytes of the instruction that exited, as far as they can be read; needs groups RIP and CONTROL. `None`: let
/// the guest execute it again.
#[inline]
pub(super) fn bytes(vm: &Vm<'_>, mode: Mode) -> Option<Fetched> {
    let (paging, rip, ram) = (paging(vm), linear_rip(vm, mode), vm.ram);
    fetch(&paging, rip, &mut |gpa| ram.word(gpa)).ok()
}
