//! Which MSRs exist for a guest, and what reading and writing them does.
//!
//! [`MsrPolicy`] is the state of one virtual CPU. Registers that the processor itself uses (EFER, PAT, the SYSCALL group,
//! segment bases) are held by the kernel; here their values are checked and the access is passed on
//! ([`Read::Kernel`], [`Write::Kernel`]). APIC registers are passed on to the APIC model. Everything that is not named
//! does not exist: `#GP`, and [`MsrPolicy::first_sight`] tells which of those were not seen before, for the log.

mod mtrr;

pub use mtrr::{Mtrr, VARIABLE_RANGES};

use crate::cpuid::Vendor;

/// MSR numbers (SDM vol. 4; APM vol. 2, appendix A).
pub mod number {
    #![allow(missing_docs)]
    pub const TSC: u32 = 0x10;
    pub const PLATFORM_ID: u32 = 0x17;
    pub const APIC_BASE: u32 = 0x1B;
    pub const FEATURE_CONTROL: u32 = 0x3A;
    pub const TSC_ADJUST: u32 = 0x3B;
    pub const SPEC_CTRL: u32 = 0x48;
    pub const PRED_CMD: u32 = 0x49;
    pub const MICROCODE_REVISION: u32 = 0x8B;
    pub const ARCH_CAPABILITIES: u32 = 0x10A;
    pub const SYSENTER_CS: u32 = 0x174;
    pub const SYSENTER_ESP: u32 = 0x175;
    pub const SYSENTER_EIP: u32 = 0x176;
    pub const MCG_CAP: u32 = 0x179;
    pub const MCG_STATUS: u32 = 0x17A;
    pub const MISC_ENABLE: u32 = 0x1A0;
    pub const DEBUGCTL: u32 = 0x1D9;
    pub const PAT: u32 = 0x277;
    pub const TSC_DEADLINE: u32 = 0x6E0;
    pub const X2APIC_FIRST: u32 = 0x800;
    pub const X2APIC_LAST: u32 = 0x83F;
    pub const EFER: u32 = 0xC000_0080;
    pub const STAR: u32 = 0xC000_0081;
    pub const LSTAR: u32 = 0xC000_0082;
    pub const CSTAR: u32 = 0xC000_0083;
    pub const FMASK: u32 = 0xC000_0084;
    pub const FS_BASE: u32 = 0xC000_0100;
    pub const GS_BASE: u32 = 0xC000_0101;
    pub const KERNEL_GS_BASE: u32 = 0xC000_0102;
    pub const TSC_AUX: u32 = 0xC000_0103;
    pub const K7_PERFORMANCE_FIRST: u32 = 0xC001_0000;
    pub const K7_PERFORMANCE_LAST: u32 = 0xC001_0007;
    pub const SYSCFG: u32 = 0xC001_0010;
    pub const HWCR: u32 = 0xC001_0015;
    pub const NB_CFG: u32 = 0xC001_001F;
    pub const INT_PENDING: u32 = 0xC001_0055;
    pub const MMIO_CONF_BASE: u32 = 0xC001_0058;
    pub const SMM_ADDRESS: u32 = 0xC001_0112;
    pub const SMM_MASK: u32 = 0xC001_0113;
    pub const DC_CFG: u32 = 0xC001_1022;
    pub const BU_CFG: u32 = 0xC001_1023;
    pub const BU_CFG2: u32 = 0xC001_102A;
    pub const SEV_STATUS: u32 = 0xC001_0131;
    pub const DE_CFG: u32 = 0xC001_1029;
}
use number::*;

/// A register that the kernel keeps in the vCPU's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelMsr {
    /// Page attribute table.
    Pat,
    /// Extended feature enables.
    Efer,
    /// SYSENTER code segment.
    SysenterCs,
    /// SYSENTER stack.
    SysenterEsp,
    /// SYSENTER entry point.
    SysenterEip,
    /// SYSCALL segments and 32-bit entry.
    Star,
    /// SYSCALL entry.
    Lstar,
    /// SYSCALL entry from compatibility mode.
    Cstar,
    /// Flags that SYSCALL clears.
    Fmask,
    /// FS base.
    FsBase,
    /// GS base.
    GsBase,
    /// What SWAPGS exchanges GS base with.
    KernelGsBase,
    /// What RDTSCP and RDPID return.
    TscAux,
    /// Speculation control.
    SpecCtrl,
    /// Prediction command (write only).
    PredCmd,
}

/// What to do for a RDMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// Answer this.
    Value(u64),
    /// Answer the guest's TSC: the host's, with the vCPU's offset.
    Tsc,
    /// Ask the local APIC for its base register.
    ApicBase,
    /// Ask the local APIC for its TSC deadline.
    TscDeadline,
    /// Ask the local APIC for x2APIC register (number − 800h); it faults if not in x2APIC mode.
    X2Apic(u32),
    /// Read this from the vCPU's state.
    Kernel(KernelMsr),
    /// Inject `#GP(0)`.
    Fault,
}

/// What to do for a WRMSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Nothing more: stored here, or accepted without effect.
    Done,
    /// Add this to the guest's TSC offset (a write to TSC_ADJUST).
    AdjustTsc(i64),
    /// Make the guest's TSC this now (and call [`MsrPolicy::tsc_was_set`] with the change of the offset).
    SetTsc(u64),
    /// Give this to the local APIC's base register.
    ApicBase(u64),
    /// Give this to the local APIC's TSC deadline.
    TscDeadline(u64),
    /// Give this to x2APIC register (number − 800h).
    X2Apic(u32, u64),
    /// Put this value, which has been checked, into the vCPU's state.
    Kernel(KernelMsr, u64),
    /// Inject `#GP(0)`.
    Fault,
}

/// What the VM is promised; the same values its CPUID was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrConfig {
    /// Whose registers there are.
    pub vendor: Vendor,
    /// Physical address bits, for the MTRRs.
    pub physical_bits: u8,
    /// Whether SPEC_CTRL and PRED_CMD exist.
    pub speculation_control: bool,
    /// IA32_ARCH_CAPABILITIES, if it exists.
    pub arch_capabilities: Option<u64>,
    /// EFER bits that may be set: the features CPUID shows. See [`efer_mask`].
    pub efer_mask: u64,
}

/// EFER: SYSCALL.
pub const EFER_SCE: u64 = 1;
/// EFER: long mode enable.
pub const EFER_LME: u64 = 1 << 8;
/// EFER: long mode active, the processor's own.
pub const EFER_LMA: u64 = 1 << 10;
/// EFER: no execute.
pub const EFER_NXE: u64 = 1 << 11;
/// EFER: fast FXSAVE.
pub const EFER_FFXSR: u64 = 1 << 14;
const CR0_PG: u64 = 1 << 31;

/// The EFER bits that CPUID leaf 80000001h EDX of the guest allows.
#[must_use]
pub const fn efer_mask(leaf_80000001_edx: u32) -> u64 {
    let mut mask = 0;
    if leaf_80000001_edx & 1 << 11 != 0 {
        mask |= EFER_SCE;
    }
    if leaf_80000001_edx & 1 << 29 != 0 {
        // SYSCALL bit 11 reads as 0 outside 64-bit mode on Intel; a long-mode processor always has it.
        mask |= EFER_LME | EFER_LMA | EFER_SCE;
    }
    if leaf_80000001_edx & 1 << 20 != 0 {
        mask |= EFER_NXE;
    }
    if leaf_80000001_edx & 1 << 25 != 0 {
        mask |= EFER_FFXSR;
    }
    mask
}

/// State of the virtual CPU that decides whether a write is legal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuState {
    /// CR0.
    pub cr0: u64,
    /// EFER.
    pub efer: u64,
}

const FEATURE_CONTROL_LOCKED: u64 = 1;
/// Bits 63:32 of 8Bh hold the revision on Intel, bits 31:0 on AMD. Zero would mean "never updated" and makes guests
/// switch features off.
const MICROCODE: u64 = 0xFFFF_FFFF;
/// Fast strings; no branch trace store, no PEBS.
const MISC_ENABLE_RESET: u64 = 1 | 1 << 11 | 1 << 12;
/// Fast strings, thermal control, SpeedStep, MONITOR, limit of CPUID, xTPR, disable NX: what a guest may write, without effect.
const MISC_ENABLE_WRITABLE: u64 = 1 | 1 << 3 | 1 << 16 | 1 << 18 | 1 << 22 | 1 << 23 | 1 << 34;
/// LBR and BTF are accepted and do nothing: guests write them without asking.
const DEBUGCTL_IGNORED: u64 = 0b11;
/// The TSC counts at the P0 frequency; Linux calls a processor without it a firmware bug.
const HWCR_TSC_FREQ_SEL: u64 = 1 << 24;
/// LFENCE serialises.
const DE_CFG_LFENCE: u64 = 1 << 1;
/// SYSCFG: the MTRR enables (fixed DRAM, fixed modify, variable DRAM, TOM2, force write-back).
const SYSCFG_WRITABLE: u64 = 0x7C_0000;
/// IBRS, STIBP, SSBD.
const SPEC_CTRL_VALID: u64 = 0b111;
/// IBPB.
const PRED_CMD_VALID: u64 = 1;
/// Numbers remembered as already reported; more than any guest has been seen to try.
const SEEN: usize = 64;

/// The MSRs of one virtual CPU.
#[derive(Clone, Debug)]
pub struct MsrPolicy {
    config: MsrConfig,
    mtrr: Mtrr,
    tsc_adjust: u64,
    misc_enable: u64,
    mcg_status: u64,
    syscfg: u64,
    hwcr: u64,
    nb_cfg: u64,
    seen: [u32; SEEN],
    seen_count: usize,
}

/// Whether `address` is canonical for 48 linear bits; 5-level paging is never offered.
#[must_use]
pub const fn is_canonical(address: u64) -> bool {
    ((address as i64) << 16 >> 16) as u64 == address
}

/// Whether `value` holds eight valid memory types for the PAT (SDM vol. 3, 12.12.2).
#[must_use]
pub fn is_valid_pat(value: u64) -> bool {
    value.to_le_bytes().iter().all(|kind| matches!(kind, 0 | 1 | 4..=7))
}

impl MsrPolicy {
    /// A processor after reset.
    #[must_use]
    pub fn new(config: MsrConfig) -> Self {
        Self {
            config,
            mtrr: Mtrr::reset(config.physical_bits),
            tsc_adjust: 0,
            misc_enable: MISC_ENABLE_RESET,
            mcg_status: 0,
            syscfg: 0,
            hwcr: HWCR_TSC_FREQ_SEL,
            nb_cfg: 0,
            seen: [0; SEEN],
            seen_count: 0,
        }
    }

    /// The MTRRs: to set them as firmware would for a guest booted without any ([`Mtrr::set_like_firmware`]).
    pub fn mtrr_mut(&mut self) -> &mut Mtrr {
        &mut self.mtrr
    }

    fn intel(&self) -> bool {
        self.config.vendor == Vendor::Intel
    }

    /// What RDMSR of `msr` does.
    #[must_use]
    pub fn read(&self, msr: u32) -> Read {
        if let Some(kept) = self.kernel_held(msr) {
            return if kept == KernelMsr::PredCmd { Read::Fault } else { Read::Kernel(kept) };
        }
        let value = match msr {
            TSC => return Read::Tsc,
            APIC_BASE => return Read::ApicBase,
            TSC_DEADLINE => return Read::TscDeadline,
            X2APIC_FIRST..=X2APIC_LAST => return Read::X2Apic(msr - X2APIC_FIRST),
            TSC_ADJUST => Some(self.tsc_adjust),
            MICROCODE_REVISION => Some(if self.intel() { MICROCODE << 32 } else { MICROCODE }),
            // No machine-check banks.
            MCG_CAP => Some(0),
            MCG_STATUS => Some(self.mcg_status),
            DEBUGCTL => Some(0),
            PLATFORM_ID if self.intel() => Some(0),
            FEATURE_CONTROL if self.intel() => Some(FEATURE_CONTROL_LOCKED),
            // Not on AMD's processors, but test payloads for virtual machines touch it on both.
            MISC_ENABLE => Some(self.misc_enable),
            ARCH_CAPABILITIES if self.intel() => self.config.arch_capabilities,
            SYSCFG if !self.intel() => Some(self.syscfg),
            HWCR if !self.intel() => Some(self.hwcr),
            NB_CFG if !self.intel() => Some(self.nb_cfg),
            // Every AMD processor has these four counters, and guests touch them unasked: they never count.
            K7_PERFORMANCE_FIRST..=K7_PERFORMANCE_LAST if !self.intel() => Some(0),
            // No C1E by SMI, no memory encryption.
            INT_PENDING | SEV_STATUS if !self.intel() => Some(0),
            // The ECAM is where the tables say, there is no SMM, and caches have no errata: looked at by number of family.
            MMIO_CONF_BASE | SMM_ADDRESS | SMM_MASK | DC_CFG | BU_CFG | BU_CFG2 if !self.intel() => Some(0),
            DE_CFG if !self.intel() => Some(DE_CFG_LFENCE),
            _ => self.mtrr.read(msr),
        };
        value.map_or(Read::Fault, Read::Value)
    }

    /// What WRMSR of `value` to `msr` does. State kept here is changed at once.
    pub fn write(&mut self, msr: u32, value: u64, cpu: CpuState) -> Write {
        if let Some(kept) = self.kernel_held(msr) {
            return self.write_kernel_held(kept, value, cpu);
        }
        let accepted = match msr {
            TSC => return Write::SetTsc(value),
            TSC_ADJUST => {
                let change = value.wrapping_sub(self.tsc_adjust) as i64;
                self.tsc_adjust = value;
                return Write::AdjustTsc(change);
            }
            APIC_BASE => return Write::ApicBase(value),
            TSC_DEADLINE => return Write::TscDeadline(value),
            X2APIC_FIRST..=X2APIC_LAST => return Write::X2Apic(msr - X2APIC_FIRST, value),
            // Guests clear it before they read the revision.
            MICROCODE_REVISION => true,
            MCG_STATUS => store(&mut self.mcg_status, value, 0b111),
            DEBUGCTL => value & !DEBUGCTL_IGNORED == 0,
            MISC_ENABLE => {
                let fixed = MISC_ENABLE_RESET & !MISC_ENABLE_WRITABLE;
                store(&mut self.misc_enable, value | fixed, MISC_ENABLE_WRITABLE | fixed)
            }
            SYSCFG if !self.intel() => store(&mut self.syscfg, value, SYSCFG_WRITABLE),
            // Real processors ignore what they do not have here, and guests set errata bits freely.
            HWCR if !self.intel() => {
                self.hwcr = value & 0xFFFF_FFFF | HWCR_TSC_FREQ_SEL;
                true
            }
            NB_CFG if !self.intel() => {
                self.nb_cfg = value;
                true
            }
            DE_CFG | INT_PENDING | K7_PERFORMANCE_FIRST..=K7_PERFORMANCE_LAST if !self.intel() => true,
            MMIO_CONF_BASE | SMM_ADDRESS | SMM_MASK | DC_CFG | BU_CFG | BU_CFG2 if !self.intel() => value == 0,
            _ => self.mtrr.write(msr, value),
        };
        if accepted { Write::Done } else { Write::Fault }
    }

    /// A write to the TSC itself also moves TSC_ADJUST by as much (SDM vol. 3, 18.17.3).
    pub fn tsc_was_set(&mut self, offset_change: i64) {
        self.tsc_adjust = self.tsc_adjust.wrapping_add_signed(offset_change);
    }

    /// Whether `msr` is reported for the first time: log it then, and never again.
    pub fn first_sight(&mut self, msr: u32) -> bool {
        if self.seen.iter().take(self.seen_count).any(|&s| s == msr) {
            return false;
        }
        // A guest that tries them all gets the first few into the log and no more.
        let Some(free) = self.seen.get_mut(self.seen_count) else { return false };
        *free = msr;
        self.seen_count += 1;
        true
    }

    fn kernel_held(&self, msr: u32) -> Option<KernelMsr> {
        Some(match msr {
            PAT => KernelMsr::Pat,
            EFER => KernelMsr::Efer,
            SYSENTER_CS => KernelMsr::SysenterCs,
            SYSENTER_ESP => KernelMsr::SysenterEsp,
            SYSENTER_EIP => KernelMsr::SysenterEip,
            STAR => KernelMsr::Star,
            LSTAR => KernelMsr::Lstar,
            CSTAR => KernelMsr::Cstar,
            FMASK => KernelMsr::Fmask,
            FS_BASE => KernelMsr::FsBase,
            GS_BASE => KernelMsr::GsBase,
            KERNEL_GS_BASE => KernelMsr::KernelGsBase,
            TSC_AUX => KernelMsr::TscAux,
            SPEC_CTRL if self.config.speculation_control => KernelMsr::SpecCtrl,
            PRED_CMD if self.config.speculation_control => KernelMsr::PredCmd,
            _ => return None,
        })
    }

    fn write_kernel_held(&self, kept: KernelMsr, value: u64, cpu: CpuState) -> Write {
        let legal = match kept {
            KernelMsr::Pat => is_valid_pat(value),
            KernelMsr::Efer => return self.write_efer(value, cpu),
            KernelMsr::SysenterEsp
            | KernelMsr::SysenterEip
            | KernelMsr::Lstar
            | KernelMsr::Cstar
            | KernelMsr::FsBase
            | KernelMsr::GsBase
            | KernelMsr::KernelGsBase => is_canonical(value),
            KernelMsr::TscAux | KernelMsr::Fmask => value <= u64::from(u32::MAX),
            // Only 32 bits of it exist; more is dropped, not refused.
            KernelMsr::SysenterCs => return Write::Kernel(kept, value & 0xFFFF_FFFF),
            KernelMsr::Star => true,
            KernelMsr::SpecCtrl => value & !SPEC_CTRL_VALID == 0,
            KernelMsr::PredCmd => value & !PRED_CMD_VALID == 0,
        };
        if legal { Write::Kernel(kept, value) } else { Write::Fault }
    }

    /// LMA follows LME and CR0.PG by itself; LME may not change while paging is on (SDM vol. 3, 2.2.1).
    fn write_efer(&self, value: u64, cpu: CpuState) -> Write {
        let changed_while_paging = cpu.cr0 & CR0_PG != 0 && (value ^ cpu.efer) & EFER_LME != 0;
        if value & !(self.config.efer_mask | EFER_LMA) != 0 || changed_while_paging {
            return Write::Fault;
        }
        Write::Kernel(KernelMsr::Efer, value & !EFER_LMA | cpu.efer & EFER_LMA)
    }
}

/// Stores `value` unless it has bits outside `valid`.
fn store(register: &mut u64, value: u64, valid: u64) -> bool {
    let good = value & !valid == 0;
    if good {
        *register = value;
    }
    good
}

#[cfg(test)]
mod tests;
