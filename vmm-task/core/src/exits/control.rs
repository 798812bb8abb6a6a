//! Control and debug registers, and XSETBV.

use super::decode;
use crate::event::vector;
use crate::state::{field, gpr};
use crate::vm::{Next, Vm};
use moira_abi::vcpu::{control_write, group};
use vmm_decode::{Expected, Mode};

const CR0_PE: u64 = 1;
const CR0_TS: u64 = 1 << 3;
const CR0_PG: u64 = 1 << 31;
const CR0_NW: u64 = 1 << 29;
const CR0_CD: u64 = 1 << 30;
const CR0_DEFINED: u64 = 0xe005_003f;
/// Reserved bits of an entry of PAE paging, below those above the physical address; without the next one.
const PDPTE_RESERVED: u64 = 0x1c6;
/// QEMU's SVM marks these entries as it marks all others. VT-x would refuse an entry with it.
const PDPTE_ACCESSED: u64 = 0x20;
const CR4_DE: u64 = 1 << 3;
const CR4_PAE: u64 = 1 << 5;
const CR4_OSXSAVE: u64 = 1 << 18;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// A move between a general and a special register, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub length: u64,
    pub register: u8,
    pub general: u8,
}

/// Decodes MOV to or from CRn or DRn: prefixes, 0F, 20h to 23h, ModRM (SDM vol. 2A). The mod field is ignored.
pub(super) fn decode_move(bytes: &[u8], long: bool) -> Option<Move> {
    let mut rex = 0;
    let mut lock = false;
    for (index, &byte) in bytes.iter().enumerate() {
        match byte {
            0xf0 => (lock, rex) = (true, 0),
            0x66 | 0x67 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65 | 0xf2 | 0xf3 => rex = 0,
            0x40..=0x4f if long => rex = byte,
            0x0f => {
                let (&opcode, &modrm) = (bytes.get(index + 1)?, bytes.get(index + 2)?);
                if opcode & 0xfc != 0x20 {
                    return None;
                }
                let high = rex & 4 != 0 || lock && opcode & 1 == 0;
                let register = modrm >> 3 & 7 | u8::from(high) << 3;
                let general = modrm & 7 | (rex & 1) << 3;
                return Some(Move { length: index as u64 + 3, register, general });
            }
            _ => return None,
        }
    }
    None
}

/// What the exit says about the move, or the instruction itself if the processor does not.
fn find_move(vm: &mut Vm<'_>) -> Option<Move> {
    let kind = vm.page.get(field::QUALIFICATION);
    let length = vm.page.get(field::LENGTH);
    let general = (kind >> control_write::GPR_SHIFT) as u8 & 15;
    if kind & control_write::UNDECODED == 0 && length != 0 {
        return Some(Move { length, register: (kind & control_write::REGISTER) as u8, general });
    }
    if !vm.needs(group::CONTROL) {
        return None;
    }
    let mode = decode::mode(vm);
    let bytes = decode::bytes(vm, mode)?;
    decode_move(bytes.bytes(), mode == Mode::Bits64)
}

/// MOV to or from a control register, CLTS or LMSW that the processor does not do by itself.
pub(super) fn control(vm: &mut Vm<'_>) -> Next {
    let kind = vm.page.get(field::QUALIFICATION);
    if !vm.needs(group::CONTROL) {
        return Next::Again;
    }
    let cr0 = vm.page.get(field::CR0);
    if kind & (control_write::CLTS | control_write::LMSW) != 0 {
        let Some(length) = decode::length(vm, Expected::ControlRegister) else { return Next::Again };
        let value = if kind & control_write::CLTS != 0 {
            cr0 & !CR0_TS
        } else {
            // LMSW sets PE but does not clear it (SDM vol. 2A).
            cr0 & !0xe | vm.page.get(field::ADDRESS) & 0xf
        };
        return set_cr0(vm, value, length);
    }
    let Some(found) = find_move(vm) else { return Next::Again };
    if kind & control_write::READ != 0 {
        let value = match found.register {
            0 => cr0,
            2 => vm.page.get(field::CR2),
            3 => vm.page.get(field::CR3),
            4 => vm.page.get(field::CR4),
            8 => vm.board().lapic(vm.index).map_or(0, |apic| apic.cr8().into()),
            _ => return vm.raise(vector::UNDEFINED, None),
        };
        vm.page.set_gpr(found.general.into(), value);
        vm.advance(found.length);
        return Next::Enter;
    }
    let value = vm.page.gpr(found.general.into());
    match found.register {
        0 => set_cr0(vm, value, found.length),
        4 => set_cr4(vm, value, found.length),
        8 => set_cr8(vm, value, found.length),
        _ => vm.raise(vector::UNDEFINED, None),
    }
}

fn set_cr8(vm: &mut Vm<'_>, value: u64, length: u64) -> Next {
    if value > 15 {
        return vm.raise(vector::PROTECTION, Some(0));
    }
    if let Some(apic) = vm.board().lapic(vm.index) {
        apic.set_cr8(value as u8);
    }
    vm.attention = true;
    vm.advance(length);
    Next::Enter
}

fn set_cr0(vm: &mut Vm<'_>, value: u64, length: u64) -> Next {
    let (efer, cr4) = (vm.page.get(field::EFER), vm.page.get(field::CR4));
    // SDM vol. 2, MOV to control registers: of what is reserved the upper half must be zero, the lower one stays so.
    let (too_high, value) = (value >> 32 != 0, value & CR0_DEFINED);
    let long = value & CR0_PG != 0 && efer & EFER_LME != 0;
    let wrong = too_high
        || value & CR0_PG != 0 && value & CR0_PE == 0
        || value & CR0_NW != 0 && value & CR0_CD == 0
        || long && cr4 & CR4_PAE == 0;
    if wrong {
        return vm.raise(vector::PROTECTION, Some(0));
    }
    if let Err(fault) = load_pdptes(vm, value, cr4, long) {
        return fault;
    }
    vm.page.set(field::CR0, value);
    // The kernel follows with LMA, as the processor would.
    vm.page.set(field::EFER, if long { efer | EFER_LMA } else { efer & !EFER_LMA });
    vm.changed |= group::CONTROL;
    vm.advance(length);
    Next::Enter
}

fn set_cr4(vm: &mut Vm<'_>, value: u64, length: u64) -> Next {
    let long = vm.page.get(field::EFER) & EFER_LMA != 0;
    if value & !vm.cr4 != 0 || long && value & CR4_PAE == 0 {
        return vm.raise(vector::PROTECTION, Some(0));
    }
    if let Err(fault) = load_pdptes(vm, vm.page.get(field::CR0), value, long) {
        return fault;
    }
    vm.page.set(field::CR4, value);
    vm.changed |= group::CONTROL;
    vm.advance(length);
    Next::Enter
}

/// A move to CR0 or CR4 loads the four entries of PAE paging (SDM 4.4.1): VT-x keeps them in the VMCS, and a move that exits leaves
/// them to the monitor. SVM with nested paging reads them from memory (APM 2 15.25.10).
fn load_pdptes(vm: &mut Vm<'_>, cr0: u64, cr4: u64, long: bool) -> Result<(), Next> {
    if cr0 & CR0_PG == 0 || cr4 & CR4_PAE == 0 || long {
        return Ok(());
    }
    let paging = decode::paging(vm);
    let reserved = PDPTE_RESERVED | u64::MAX << paging.physical_bits;
    let table = paging.cr3 & 0xffff_ffe0;
    // Where no memory is, ones are read.
    let entries = [0, 8, 16, 24].map(|at| vm.ram.word(table + at).unwrap_or(u64::MAX) & !PDPTE_ACCESSED);
    if entries.iter().any(|entry| entry & 1 != 0 && entry & reserved != 0) {
        return Err(vm.raise(vector::PROTECTION, Some(0)));
    }
    for (index, entry) in entries.into_iter().enumerate() {
        vm.page.set(field::PDPTE.plus(index), entry);
    }
    vm.changed |= group::PDPTE;
    Ok(())
}

/// MOV to or from a debug register. The kernel writes groups CONTROL and DEBUG with it.
pub(super) fn debug(vm: &mut Vm<'_>) -> Next {
    if !vm.needs(group::CONTROL | group::DEBUG) {
        return Next::Again;
    }
    let kind = vm.page.get(field::QUALIFICATION);
    let dr7 = vm.page.get(field::DR7);
    if dr7 & 1 << 13 != 0 {
        // General detect: the access itself is the trap (SDM 17.2.4).
        const BD: u64 = 1 << 13;
        return super::debug_exception(vm, BD);
    }
    let Some(found) = find_move(vm) else { return Next::Again };
    let register = match found.register {
        4 | 5 if vm.page.get(field::CR4) & CR4_DE != 0 => return vm.raise(vector::UNDEFINED, None),
        4 | 5 => found.register + 2,
        0..=3 | 6 | 7 => found.register,
        _ => return vm.raise(vector::UNDEFINED, None),
    };
    let word = match register {
        6 => field::DR6,
        7 => field::DR7,
        number => field::DR.plus(usize::from(number & 3)),
    };
    if kind & control_write::READ != 0 {
        vm.page.set_gpr(found.general.into(), vm.page.get(word));
    } else {
        let value = vm.page.gpr(found.general.into());
        let value = if decode::mode(vm) == Mode::Bits64 { value } else { value & 0xffff_ffff };
        let wrong = match register {
            6 | 7 => value >> 32 != 0,
            _ => !vmm_machine::msr::is_canonical(value),
        };
        if wrong {
            return vm.raise(vector::PROTECTION, Some(0));
        }
        // A debugger's registers stay as they are.
        if !vm.machine().debug().on() {
            vm.page.set(word, value);
            vm.changed |= group::DEBUG;
        }
    }
    vm.advance(found.length);
    Next::Enter
}

/// XSETBV, where the processor asks.
pub(super) fn xsetbv(vm: &mut Vm<'_>) -> Next {
    let Some(length) = decode::length(vm, Expected::Xsetbv) else { return Next::Again };
    if !vm.needs(group::CONTROL | group::TSC_XCR) {
        return Next::Again;
    }
    if vm.page.get(field::CR4) & CR4_OSXSAVE == 0 {
        return vm.raise(vector::UNDEFINED, None);
    }
    let value = vm.page.gpr(gpr::RAX) & 0xffff_ffff | vm.page.gpr(gpr::RDX) << 32;
    let avx512 = value & 0xe0;
    let legal = vm.page.get(field::CPL) == 0
        && vm.page.gpr(gpr::RCX) as u32 == 0
        && value & !vm.xcr0 == 0
        && value & 1 != 0
        && (value & 4 == 0 || value & 2 != 0)
        && (avx512 == 0 || avx512 == 0xe0 && value & 4 != 0);
    if !legal {
        return vm.raise(vector::PROTECTION, Some(0));
    }
    vm.page.set(field::XCR0, value);
    vm.changed |= group::TSC_XCR;
    vm.advance(length);
    Next::Enter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moves_of_special_registers_are_decoded() {
        let all = |length, register, general| Some(Move { length, register, general });
        assert_eq!(decode_move(&[0x0f, 0x22, 0xc0], true), all(3, 0, 0));
        // mov cr8, r9
        assert_eq!(decode_move(&[0x45, 0x0f, 0x22, 0xc1], true), all(4, 8, 9));
        // lock mov cr0 is AMD's CR8
        assert_eq!(decode_move(&[0xf0, 0x0f, 0x20, 0xc3], false), all(4, 8, 3));
        // mov dr7, rdi with a useless prefix
        assert_eq!(decode_move(&[0x66, 0x0f, 0x23, 0xff], true), all(4, 7, 7));
        assert_eq!(decode_move(&[0x0f, 0x30], true), None);
        assert_eq!(decode_move(&[0x0f, 0x22], true), None);
        assert_eq!(decode_move(&[0x66; 15], true), None);
    }
}
