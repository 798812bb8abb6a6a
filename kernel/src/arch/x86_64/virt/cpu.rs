//! What a CPU keeps, and what its processor can do.
use core::mem::size_of;

use moira_kernel_core::vcpu_check::{Limits, cr4, efer};
use static_assertions::const_assert_eq;
use x86::cpuid::{CpuIdResult, native_cpuid::cpuid_count};
use x86::dtables::{DescriptorTablePointer, sgdt};
use x86::msr;

use super::super::vmx;
use super::vector::guest_xcr0;
use super::{PAGE, Vendor};

/// Per-CPU state of this module: the third of the pages given to [`enable_cpu`].
#[repr(C, align(4096))]
pub struct CpuVirt {
    pub(in super::super) vendor: Vendor,
    /// Block of the vCPU whose lazily swapped state this CPU's registers hold; 0: none.
    pub(in super::super) resident: u64,
    /// VT-x: block of the vCPU whose VMCS is current on this CPU; 0: none.
    pub(in super::super) current: u64,
    /// Physical address of this struct's first page (host save area or VMXON region).
    pub(in super::super) pages_phys: u64,
    pub(in super::super) tags: Tags,
    pub(in super::super) limits: Limits,
    pub(in super::super) features: Features,
    pub(in super::super) host: Host,
    /// An XSAVE image whose header says that all components are in their initial state.
    pub(super) init_vector: InitVector,
}
const_assert_eq!(size_of::<CpuVirt>(), PAGE);

/// The host's values that an exit has to put back, beside those that are the same on every processor (`tables.rs`).
pub(in super::super) struct Host {
    pub(in super::super) star: u64,
    pub(in super::super) lstar: u64,
    pub(in super::super) sfmask: u64,
    pub(in super::super) gdt: DescriptorTablePointer<u64>,
}

/// What this processor has beyond the minimum.
#[derive(Clone, Copy, Default)]
pub(in super::super) struct Features {
    pub(in super::super) xsave: bool,
    pub(in super::super) xsaveopt: bool,
    pub(in super::super) rdtscp: bool,
    pub(in super::super) spec_ctrl: bool,
    /// SVM: next RIP is saved.
    pub(in super::super) next_rip: bool,
    /// SVM: decode assists.
    pub(in super::super) decode: bool,
    /// SVM: the processor is QEMU's TCG ([`svm`]).
    pub(in super::super) tcg: bool,
    /// SVM: what to write to the clean bits after an exit.
    pub(in super::super) clean: u32,
    /// VT-x: see [`vmx`].
    pub(in super::super) vmx: vmx::Caps,
}

#[repr(C, align(64))]
pub(super) struct InitVector(pub(super) [u8; 576]);

/// ASIDs or VPIDs of this CPU. A tag is valid while its generation is the CPU's; when none is left, a new generation begins
/// with a flush of all.
#[derive(Clone, Copy)]
pub(in super::super) struct Tags {
    pub(in super::super) generation: u64,
    next: u32,
    last: u32,
}

impl Tags {
    pub(in super::super) const fn new(last: u32) -> Tags {
        Tags { generation: 1, next: 1, last }
    }
    /// The next tag, and whether everything has to be flushed before it is used.
    pub(in super::super) fn take(&mut self) -> (u32, bool) {
        let wrap = self.next > self.last;
        if wrap {
            self.generation += 1;
            self.next = 1;
        }
        let tag = self.next;
        self.next += 1;
        (tag, wrap)
    }

    /// The entry that was to flush did not come about: the next tag begins a new generation, with a flush.
    pub(in super::super) fn flush_again(&mut self) {
        self.next = self.last + 1;
    }
}

pub(in super::super) const IA32_SPEC_CTRL: u32 = 0x48;

/// SPEC_CTRL around the guest, where it exists and the guest uses it: the guest's value, or the host's.
pub(in super::super) fn write_spec_ctrl(value: u64) {
    // SAFETY: only called where the MSR exists, with bits that exist.
    unsafe { msr::wrmsr(IA32_SPEC_CTRL, value) };
}

pub(super) fn limits(vendor: Vendor) -> Limits {
    let (basic, seven, extended) = (leaf(1, 0), leaf(7, 0), leaf(0x8000_0001, 0));
    let add = |bits: u64, (features, feature, bit): (u32, u32, u64)| bits | u64::from(features >> feature & 1) * bit;
    let cr4_bits = [
        (seven.ecx, 2, cr4::UMIP),
        (seven.ebx, 0, cr4::FSGSBASE),
        (seven.ebx, 7, cr4::SMEP),
        (seven.ebx, 20, cr4::SMAP),
        (basic.ecx, 17, cr4::PCIDE),
        (basic.ecx, 26, cr4::OSXSAVE),
    ];
    // FFXSR and TCE, AMD only.
    let amd = u32::from(vendor == Vendor::Svm);
    let efer_bits =
        [(extended.edx, 20, efer::NXE), (extended.edx * amd, 25, 1 << 14), (extended.ecx * amd, 17, 1 << 15)];
    Limits {
        cr4: cr4_bits.into_iter().fold(cr4::BASE, add),
        efer: efer_bits.into_iter().fold(efer::SCE | efer::LME | efer::LMA, add),
        xcr0: guest_xcr0(),
        spec_ctrl: if features().spec_ctrl { 7 } else { 0 },
        physical_bits: (leaf(0x8000_0008, 0).eax & 0xff).clamp(32, 52),
    }
}

pub(super) fn features() -> Features {
    /// What says that IBRS, STIBP and SSBD exist: all of them, so that any combination can be loaded.
    const INTEL: u32 = 1 << 26 | 1 << 27 | 1 << 31;
    const AMD: u32 = 1 << 14 | 1 << 15 | 1 << 24;
    let xsave = leaf(1, 0).ecx & 1 << 26 != 0;
    Features {
        xsave,
        xsaveopt: xsave && leaf(0xd, 1).eax & 1 != 0,
        rdtscp: leaf(0x8000_0001, 0).edx & 1 << 27 != 0,
        spec_ctrl: !leaf(7, 0).edx & INTEL == 0 || !leaf(0x8000_0008, 0).ebx & AMD == 0,
        ..Features::default()
    }
}

pub(super) fn host_state() -> Host {
    let mut gdt = DescriptorTablePointer::default();
    // SAFETY: reads registers that every x86-64 processor has.
    unsafe {
        sgdt(&mut gdt);
        let read = |number| msr::rdmsr(number);
        Host { star: read(msr::IA32_STAR), lstar: read(msr::IA32_LSTAR), sfmask: read(msr::IA32_FMASK), gdt }
    }
}

/// A leaf of CPUID; all zero if there is none of this number.
pub(in super::super) fn leaf(number: u32, sub: u32) -> CpuIdResult {
    let exists = number <= cpuid_count(number & 0xc000_0000, 0).eax;
    if exists { cpuid_count(number, sub) } else { CpuIdResult { eax: 0, ebx: 0, ecx: 0, edx: 0 } }
}

/// Accessors of control registers.
macro_rules! control_registers {
    ($($read:ident, $write:ident: $name:literal;)*) => { $(
        #[inline(always)]
        pub(in super::super) fn $read() -> u64 {
            let value;
            // SAFETY: reads a register.
            unsafe { core::arch::asm!(concat!("mov {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }

        /// # Safety
        /// What the value does to the kernel is the caller's matter.
        #[inline(always)]
        pub(in super::super) unsafe fn $write(value: u64) {
            // SAFETY: the caller's contract.
            unsafe { core::arch::asm!(concat!("mov ", $name, ", {}"), in(reg) value, options(nostack)) };
        }
    )* };
}
control_registers! {
    read_cr0, write_cr0: "cr0";
    read_cr2, write_cr2: "cr2";
    read_cr4, write_cr4: "cr4";
}
