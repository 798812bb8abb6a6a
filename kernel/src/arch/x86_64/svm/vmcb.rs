//! The virtual-machine control block (APM 2 appendix B): 1 KiB of controls, then the state-save area.
use core::mem::{offset_of, size_of};

use bitflags::bitflags;
use static_assertions::const_assert_eq;

bitflags! {
    /// Intercepts of the word at 00Ch.
    #[derive(Clone, Copy, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Intercept1: u32 {
        /// INTR, NMI, SMI, INIT.
        const SIGNALS = 15;
        const VINTR = 1 << 4;
        /// RDPMC, CPUID, RSM.
        const READS = 1 << 15 | 3 << 18;
        const IRET = 1 << 20;
        /// INVD, HLT, INVLPGA, ports, MSRs, task switch, shutdown.
        const OTHERS = 1 << 22 | 1 << 24 | 15 << 26 | 1 << 31;
    }
}

/// Intercepts of the word at 010h: VMRUN, VMMCALL, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, ICEBP, WBINVD, MONITOR, MWAIT in both
/// forms, XSETBV, RDPRU.
pub const INTERCEPT2: u32 = 0x7f7f;
/// Intercepts of the word at 014h, only on processors that have the instructions: INVLPGB, also illegal, and TLBSYNC; MCOMMIT.
pub const INTERCEPT3: [u32; 2] = [1 | 1 << 1 | 1 << 4, 1 << 3];

bitflags! {
    /// Clean bits at 0C0h (APM 2 15.15): a set bit says that the processor may use what it cached of the group.
    #[derive(Clone, Copy, PartialEq, Eq)]
    #[repr(transparent)]
    pub struct Clean: u32 {
        /// Intercepts, TSC offset.
        const INTERCEPTS = 1 << 0;
        /// Map addresses.
        const MAPS = 1 << 1;
        const ASID = 1 << 2;
        /// Virtual interrupt.
        const VINTR = 1 << 3;
        const NESTED = 1 << 4;
        /// CR0, CR3, CR4, EFER.
        const CONTROL = 1 << 5;
        /// DR6, DR7.
        const DEBUG = 1 << 6;
        /// GDT, IDT.
        const TABLES = 1 << 7;
        /// CS, DS, SS, ES, CPL.
        const SEGMENTS = 1 << 8;
        const CR2 = 1 << 9;
    }
}

/// V_IRQ and its companions at 060h.
pub mod vintr {
    /// A virtual interrupt is pending.
    pub const IRQ: u64 = 1 << 8;
    /// It ignores the virtual TPR.
    pub const IGNORE_TPR: u64 = 1 << 20;
    /// Where its vector begins.
    pub const VECTOR_SHIFT: u32 = 32;
    /// The host's IF decides about physical interrupts, the guest's about virtual ones.
    pub const MASKING: u64 = 1 << 24;
}

/// A segment register.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct SvmSegment {
    pub selector: u16,
    pub attributes: u16,
    pub limit: u32,
    pub base: u64,
}

/// The block. Only the owner of the vCPU writes it, and the processor between VMRUN and the exit.
#[repr(C, align(4096))]
pub struct Vmcb {
    pub intercept_cr: u32,
    pub intercept_dr: u32,
    pub intercept_exceptions: u32,
    pub intercept1: Intercept1,
    pub intercept2: u32,
    pub intercept3: u32,
    reserved0: [u8; 0x40 - 0x18],
    pub io_map: u64,
    pub msr_map: u64,
    pub tsc_offset: u64,
    pub asid: u32,
    pub tlb_control: u32,
    pub virtual_interrupt: u64,
    pub interrupt_shadow: u64,
    pub exit_code: u64,
    pub exit_info1: u64,
    pub exit_info2: u64,
    pub exit_int_info: u64,
    pub nested_control: u64,
    reserved1: [u8; 0xa8 - 0x98],
    pub event_inject: u64,
    pub nested_cr3: u64,
    pub lbr_control: u64,
    pub clean: Clean,
    reserved2: u32,
    pub next_rip: u64,
    pub fetched_count: u8,
    pub fetched: [u8; 15],
    reserved3: [u8; 0x400 - 0xe0],
    /// ES, CS, SS, DS, FS, GS.
    pub segments: [SvmSegment; 6],
    pub gdtr: SvmSegment,
    pub ldtr: SvmSegment,
    pub idtr: SvmSegment,
    pub tr: SvmSegment,
    reserved4: [u8; 0xcb - 0xa0],
    pub cpl: u8,
    reserved5: u32,
    pub efer: u64,
    reserved6: [u8; 0x148 - 0xd8],
    pub cr4: u64,
    pub cr3: u64,
    pub cr0: u64,
    pub dr7: u64,
    pub dr6: u64,
    pub rflags: u64,
    pub rip: u64,
    reserved7: [u8; 0x1d8 - 0x180],
    pub rsp: u64,
    reserved8: [u8; 0x1f8 - 0x1e0],
    pub rax: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub cr2: u64,
    reserved9: [u8; 0x268 - 0x248],
    pub pat: u64,
    pub debug_control: u64,
    reserved10: [u8; 0xc00 - 0x278],
}

const_assert_eq!(size_of::<Vmcb>(), 4096);
const_assert_eq!(offset_of!(Vmcb, asid), 0x58);
const_assert_eq!(offset_of!(Vmcb, exit_code), 0x70);
const_assert_eq!(offset_of!(Vmcb, nested_control), 0x90);
const_assert_eq!(offset_of!(Vmcb, event_inject), 0xa8);
const_assert_eq!(offset_of!(Vmcb, clean), 0xc0);
const_assert_eq!(offset_of!(Vmcb, next_rip), 0xc8);
const_assert_eq!(offset_of!(Vmcb, fetched), 0xd1);
const_assert_eq!(offset_of!(Vmcb, segments), 0x400);
const_assert_eq!(offset_of!(Vmcb, cpl), 0x4cb);
const_assert_eq!(offset_of!(Vmcb, efer), 0x4d0);
const_assert_eq!(offset_of!(Vmcb, cr4), 0x548);
const_assert_eq!(offset_of!(Vmcb, rflags), 0x570);
const_assert_eq!(offset_of!(Vmcb, rsp), 0x5d8);
const_assert_eq!(offset_of!(Vmcb, rax), 0x5f8);
const_assert_eq!(offset_of!(Vmcb, cr2), 0x640);
const_assert_eq!(offset_of!(Vmcb, pat), 0x668);
