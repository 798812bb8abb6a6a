//! What a CPU keeps, and what its processor can do.
use core::mem::size_of;

use moira_kernel_core::vcpu_check::{Limits, cr4, efer};
use static_assertions::const_assert_eq;
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

/// The host's values that an exit has to put back.
#[repr(C)]
#[derive(Clone, Copy)]
pub(in super::super) struct Host {
    pub(in super::super) star: u64,
    pub(in super::super) lstar: u64,
    pub(in super::super) sfmask: u64,
    pub(in super::super) kernel_gs_base: u64,
    pub(in super::super) gs_base: u64,
    pub(in super::super) tr_base: u64,
    pub(in super::super) tr: u16,
    pub(in super::super) cs: u16,
    pub(in super::super) ss: u16,
    pub(in super::super) gdt: TableRegister,
    pub(in super::super) idt: TableRegister,
}

/// Operand of SGDT, SIDT and LGDT.
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub(in super::super) struct TableRegister {
    pub(in super::super) limit: u16,
    pub(in super::super) base: u64,
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
}

pub(in super::super) const IA32_SPEC_CTRL: u32 = 0x48;

/// SPEC_CTRL around the guest, where it exists and the guest uses it: the guest's value, or the host's.
pub(in super::super) fn write_spec_ctrl(value: u64) {
    // SAFETY: only called where the MSR exists, with bits that exist.
    unsafe { msr::wrmsr(IA32_SPEC_CTRL, value) };
}

pub(super) fn limits(vendor: Vendor) -> Limits {
    let basic = cpuid(1);
    let seven = if cpuid(0).eax >= 7 { cpuid_count(7, 0) } else { cpuid(0) };
    let has_seven = cpuid(0).eax >= 7;
    let extended = cpuid(0x8000_0001);
    let mut bits = cr4::BASE;
    let mut add = |present: bool, bit: u64| {
        if present {
            bits |= bit;
        }
    };
    add(has_seven && seven.ecx & 1 << 2 != 0, cr4::UMIP);
    add(has_seven && seven.ebx & 1 != 0, cr4::FSGSBASE);
    add(has_seven && seven.ebx & 1 << 7 != 0, cr4::SMEP);
    add(has_seven && seven.ebx & 1 << 20 != 0, cr4::SMAP);
    add(basic.ecx & 1 << 17 != 0, cr4::PCIDE);
    add(basic.ecx & 1 << 26 != 0, cr4::OSXSAVE);
    let mut efer_bits = efer::SCE | efer::LME | efer::LMA;
    if extended.edx & 1 << 20 != 0 {
        efer_bits |= efer::NXE;
    }
    // FFXSR and TCE, AMD only.
    if vendor == Vendor::Svm {
        efer_bits |= u64::from(extended.edx >> 25 & 1) << 14 | u64::from(extended.ecx >> 17 & 1) << 15;
    }
    let spec_ctrl = if features().spec_ctrl { 7 } else { 0 };
    let physical_bits = cpuid(0x8000_0008).eax & 0xff;
    Limits { cr4: bits, efer: efer_bits, xcr0: guest_xcr0(), spec_ctrl, physical_bits: physical_bits.clamp(32, 52) }
}

pub(super) fn features() -> Features {
    let has_seven = cpuid(0).eax >= 7;
    let intel_spec = has_seven && cpuid_count(7, 0).edx & 1 << 26 != 0;
    let amd_spec = cpuid(0x8000_0000).eax >= 0x8000_0008 && cpuid(0x8000_0008).ebx & 1 << 14 != 0;
    let xsave = cpuid_has_xsave();
    Features {
        xsave,
        xsaveopt: xsave && cpuid_count(0xd, 1).eax & 1 != 0,
        rdtscp: cpuid(0x8000_0001).edx & 1 << 27 != 0,
        // All three bits (IBRS, STIBP, SSBD) have to exist, so that any combination can be loaded.
        spec_ctrl: intel_spec
            && has_seven
            && cpuid_count(7, 0).edx & 1 << 27 != 0
            && cpuid_count(7, 0).edx & 1 << 31 != 0
            || amd_spec && cpuid(0x8000_0008).ebx & (1 << 15 | 1 << 24) == 1 << 15 | 1 << 24,
        ..Features::default()
    }
}

pub(super) fn host_state() -> Host {
    let (mut gdt, mut idt) = (TableRegister::default(), TableRegister::default());
    let (tr, cs, ss): (u16, u16, u16);
    // SAFETY: reads registers; the operands are ten bytes.
    unsafe {
        core::arch::asm!("sgdt [{}]", in(reg) &raw mut gdt, options(nostack, preserves_flags));
        core::arch::asm!("sidt [{}]", in(reg) &raw mut idt, options(nostack, preserves_flags));
        core::arch::asm!("str {:x}", "mov {:x}, cs", "mov {:x}, ss", out(reg) tr, out(reg) cs, out(reg) ss, options(nomem, nostack, preserves_flags));
    }
    let descriptor = (gdt.base + u64::from(tr & !7)) as *const [u64; 2];
    // SAFETY: TR was loaded from this GDT, so that its 16-byte descriptor lies there.
    let [low, high] = unsafe { descriptor.read_unaligned() };
    let tr_base = low >> 16 & 0xff_ffff | low >> 56 << 24 | high << 32;
    // SAFETY: MSRs of every x86-64 processor.
    let read = |number| unsafe { msr::rdmsr(number) };
    Host {
        star: read(msr::IA32_STAR),
        lstar: read(msr::IA32_LSTAR),
        sfmask: read(msr::IA32_FMASK),
        kernel_gs_base: read(msr::IA32_KERNEL_GSBASE),
        gs_base: read(msr::IA32_GS_BASE),
        tr_base,
        tr,
        cs,
        ss,
        gdt,
        idt,
    }
}

pub(in super::super) fn cpuid(leaf: u32) -> x86::cpuid::CpuIdResult {
    cpuid_count(leaf, 0)
}

pub(in super::super) fn cpuid_count(leaf: u32, subleaf: u32) -> x86::cpuid::CpuIdResult {
    x86::cpuid::native_cpuid::cpuid_count(leaf, subleaf)
}

pub(super) fn cpuid_has_xsave() -> bool {
    cpuid(1).ecx & 1 << 26 != 0
}

pub(in super::super) fn read_cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(in super::super) unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller's contract.
    unsafe { core::arch::asm!("mov cr0, {}", in(reg) value, options(nostack)) };
}

pub(in super::super) fn read_cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(in super::super) unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller's contract.
    unsafe { core::arch::asm!("mov cr4, {}", in(reg) value, options(nostack)) };
}
