//! Capabilities, VMXON, and the control and host fields of a VMCS.
use moira_kernel_core::vcpu_check::{cr0, cr4};
use x86::dtables::{DescriptorTablePointer, sidt};
use x86::msr;
use x86::vmx::vmcs::control::{EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls};

use super::super::tables;
use super::super::virt::{CpuVirt, VcpuHw, leaf, read_cr0, read_cr4, write_cr0, write_cr4};
use super::{switch, tags, vmcs, zero};

const LOCKED: u64 = 1 << 0;
const VMX_OUTSIDE_SMX: u64 = 1 << 2;
/// IA32_VMX_EPT_VPID_CAP.
const EPT_WALK_4: u64 = 1 << 6;
const EPT_WRITE_BACK: u64 = 1 << 14;
const INVEPT: u64 = 1 << 20;
const INVEPT_SINGLE: u64 = 1 << 25;
const INVVPID: u64 = 1 << 32;
const INVVPID_ALL: u64 = 1 << 42;

/// Most TSC ticks that a guest runs without an exit. Host interrupts end a guest whatever its IF says, but Bochs 2.7 does not
/// look for them again when a guest is entered with IF = 0: without this bound, CLI and a loop would stop the CPU there.
const GUEST_TICKS: u32 = 1 << 20;

/// Exceptions that always exit: #DB, #AC, #MC.
pub(super) const EXCEPTIONS: u32 = 1 << 1 | 1 << 17 | 1 << 18;

/// What this processor's VT-x has, and the control words that follow from it.
#[derive(Clone, Copy, Default)]
pub struct Caps {
    pub(super) revision: u32,
    pub(super) vpid: bool,
    pub(super) invept_single: bool,
    pin: u32,
    pub(super) primary: u32,
    secondary: u32,
    exit: u32,
    entry: u32,
    /// Value of the preemption timer; 0: there is none.
    preemption: u32,
    /// CR0 bits that have to be one (without PE and PG: unrestricted guest).
    pub(super) cr0_fixed: u64,
    pub(super) cr4_fixed: u64,
}

impl Caps {
    /// EPT pointer: write-back, four levels (SDM 24.6.11).
    pub(super) fn eptp(&self, root: u64) -> u64 {
        root | 6 | 3 << 3
    }
}

fn read(number: u32) -> u64 {
    // SAFETY: only called for MSRs that exist where CPUID says VMX and the earlier capability MSRs say so.
    unsafe { msr::rdmsr(number) }
}

/// A control word with the bits that it must have, those that it may have, and those that must be one (SDM A.2).
fn control(number: u32, must: u32, may: u32, why: &'static str) -> Result<u32, &'static str> {
    let allowed = read(number);
    let value = (must | may | allowed as u32) & (allowed >> 32) as u32;
    if value & must == must { Ok(value) } else { Err(why) }
}

/// What VT-x must have, or why it is of no use.
pub(in super::super) fn usable() -> Result<(), &'static str> {
    let feature = read(msr::IA32_FEATURE_CONTROL);
    if feature & LOCKED != 0 && feature & VMX_OUTSIDE_SMX == 0 {
        return Err("VT-x locked off by firmware");
    }
    caps().map(|_| ())
}

fn caps() -> Result<Caps, &'static str> {
    let basic = read(msr::IA32_VMX_BASIC);
    if basic >> 55 & 1 == 0 {
        return Err("VT-x without the true capability MSRs");
    }
    let primary = PrimaryControls::USE_TSC_OFFSETTING
        | PrimaryControls::HLT_EXITING
        | PrimaryControls::MWAIT_EXITING
        | PrimaryControls::RDPMC_EXITING
        | PrimaryControls::CR8_LOAD_EXITING
        | PrimaryControls::CR8_STORE_EXITING
        | PrimaryControls::MOV_DR_EXITING
        | PrimaryControls::USE_IO_BITMAPS
        | PrimaryControls::USE_MSR_BITMAPS
        | PrimaryControls::MONITOR_EXITING
        | PrimaryControls::SECONDARY_CONTROLS;
    let primary = control(msr::IA32_VMX_TRUE_PROCBASED_CTLS, primary.bits(), 0, "VT-x lacks a processor control")?;
    let must =
        SecondaryControls::ENABLE_EPT | SecondaryControls::UNRESTRICTED_GUEST | SecondaryControls::WBINVD_EXITING;
    let may = SecondaryControls::ENABLE_RDTSCP | SecondaryControls::ENABLE_VPID | SecondaryControls::ENABLE_INVPCID;
    let why = "VT-x without EPT, unrestricted guest or WBINVD exiting";
    let mut secondary = control(msr::IA32_VMX_PROCBASED_CTLS2, must.bits(), may.bits(), why)?;
    let translation = read(msr::IA32_VMX_EPT_VPID_CAP);
    if !translation & (EPT_WALK_4 | EPT_WRITE_BACK | INVEPT) != 0 {
        return Err("EPT without four levels, write-back or INVEPT");
    }
    if !translation & (INVVPID | INVVPID_ALL) != 0 {
        secondary &= !SecondaryControls::ENABLE_VPID.bits();
    }
    let pin =
        PinbasedControls::EXTERNAL_INTERRUPT_EXITING | PinbasedControls::NMI_EXITING | PinbasedControls::VIRTUAL_NMIS;
    let timer = PinbasedControls::VMX_PREEMPTION_TIMER.bits();
    let pin = control(msr::IA32_VMX_TRUE_PINBASED_CTLS, pin.bits(), timer, "VT-x without virtual NMIs")?;
    let exit = ExitControls::SAVE_DEBUG_CONTROLS
        | ExitControls::HOST_ADDRESS_SPACE_SIZE
        | ExitControls::ACK_INTERRUPT_ON_EXIT
        | ExitControls::SAVE_IA32_PAT
        | ExitControls::LOAD_IA32_PAT
        | ExitControls::SAVE_IA32_EFER
        | ExitControls::LOAD_IA32_EFER;
    let entry = EntryControls::LOAD_DEBUG_CONTROLS | EntryControls::LOAD_IA32_PAT | EntryControls::LOAD_IA32_EFER;
    let why = "VT-x cannot switch PAT and EFER";
    Ok(Caps {
        revision: basic as u32 & 0x7fff_ffff,
        vpid: secondary & SecondaryControls::ENABLE_VPID.bits() != 0,
        invept_single: translation & INVEPT_SINGLE != 0,
        pin,
        preemption: if pin & timer != 0 { GUEST_TICKS >> (read(msr::IA32_VMX_MISC) & 31) } else { 0 },
        primary,
        secondary,
        exit: control(msr::IA32_VMX_TRUE_EXIT_CTLS, exit.bits(), 0, why)?,
        entry: control(msr::IA32_VMX_TRUE_ENTRY_CTLS, entry.bits(), 0, why)?,
        cr0_fixed: read(msr::IA32_VMX_CR0_FIXED0) & !(cr0::PE | cr0::PG),
        cr4_fixed: read(msr::IA32_VMX_CR4_FIXED0),
    })
}

/// Turns VMX operation on. Page 0 of the host's pages is the VMXON region.
///
/// # Safety
/// As for `virt::enable_cpu`.
pub(in super::super) unsafe fn enable(cpu: &mut CpuVirt) -> Result<(), &'static str> {
    usable()?;
    let caps = caps()?;
    cpu.features.vmx = caps;
    cpu.features.rdtscp = cpu.features.rdtscp && caps.secondary & SecondaryControls::ENABLE_RDTSCP.bits() != 0;
    if caps.secondary & SecondaryControls::ENABLE_INVPCID.bits() == 0 && leaf(7, 0).ebx & 1 << 10 != 0 {
        cpu.limits.cr4 &= !cr4::PCIDE;
    }
    cpu.tags = tags(caps.vpid);
    if read(msr::IA32_FEATURE_CONTROL) & LOCKED == 0 {
        // SAFETY: unlocked, so that firmware left the choice to us.
        unsafe { msr::wrmsr(msr::IA32_FEATURE_CONTROL, LOCKED | VMX_OUTSIDE_SMX) };
    }
    let region = cpu.pages_phys;
    // SAFETY: the page is this module's; CR0.NE and CR4.VMXE are what VMXON asks for and change nothing else.
    unsafe {
        ((core::ptr::from_mut(cpu) as u64 - 2 * 4096) as *mut u32).write_volatile(caps.revision);
        write_cr0(read_cr0() | caps.cr0_fixed);
        write_cr4(read_cr4() | caps.cr4_fixed | cr4::VMXE);
        if !switch::vmxon(region) {
            return Err("VMXON failed");
        }
    }
    switch::invept(false, 0);
    if caps.vpid {
        switch::invvpid_all();
    }
    Ok(())
}

/// CR0 bits that a guest cannot change by itself: those the hardware fixes, and CD and NW, which an exit leaves as the guest
/// had them (SDM 27.5.1): the host would run without caches.
pub(super) fn cr0_mask(caps: &Caps) -> u64 {
    caps.cr0_fixed | cr0::CD | cr0::NW | !cr0::DEFINED
}

/// CR0 in force for the CR0 a guest sees.
pub(super) fn cr0_real(caps: &Caps, view: u64) -> u64 {
    view & !(cr0::CD | cr0::NW) | caps.cr0_fixed
}

/// CR4 in force for the CR4 a guest sees: machine checks stay on, whose guest so ever runs.
pub(super) fn cr4_real(caps: &Caps, view: u64) -> u64 {
    view | caps.cr4_fixed | cr4::MCE
}

/// CR4 bits that a guest cannot change by itself.
pub(super) fn cr4_mask(cpu: &CpuVirt) -> u64 {
    cpu.features.vmx.cr4_fixed | cr4::MCE | !cpu.limits.cr4
}

/// The control fields of a fresh VMCS, which is current.
pub(super) fn write_controls(cpu: &CpuVirt, hw: VcpuHw) {
    let caps = &cpu.features.vmx;
    vmcs::PIN_CONTROLS.write(caps.pin);
    vmcs::PRIMARY_CONTROLS.write(caps.primary);
    hw.shadow().vmx.primary = caps.primary;
    vmcs::SECONDARY_CONTROLS.write(caps.secondary);
    vmcs::EXIT_CONTROLS.write(caps.exit);
    vmcs::ENTRY_CONTROLS.write(caps.entry);
    if caps.preemption != 0 {
        vmcs::PREEMPTION_TIMER.write(caps.preemption);
    }
    vmcs::EXCEPTION_BITMAP.write(EXCEPTIONS);
    // VMCLEAR promises nothing about fields that were never written (SDM 24.11.3), not even zero.
    zero! {
        PAGE_FAULT_MASK PAGE_FAULT_MATCH CR3_TARGETS EXIT_MSR_STORES EXIT_MSR_LOADS ENTRY_MSR_LOADS
        ENTRY_EVENT ENTRY_EVENT_CODE ENTRY_EVENT_LENGTH TSC_OFFSET
    }
    vmcs::CR0_MASK.write(cr0_mask(caps));
    vmcs::CR4_MASK.write(cr4_mask(cpu));
    vmcs::GUEST_LINK.write(u64::MAX);
    vmcs::GUEST_CR0.write(cr0_real(caps, 0x6000_0010));
    vmcs::CR0_SHADOW.write(0x6000_0010);
    vmcs::GUEST_CR4.write(cr4_real(caps, 0));
    vmcs::CR4_SHADOW.write(0);
}

/// The host fields, which are this CPU's. The kernel uses no DS, ES, FS, nor SYSENTER.
pub(super) fn write_host(cpu: &CpuVirt) {
    zero! { HOST_ES HOST_DS HOST_FS HOST_GS HOST_FS_BASE HOST_SYSENTER_CS HOST_SYSENTER_ESP HOST_SYSENTER_EIP }
    vmcs::HOST_CS.write(tables::KERNEL_CODE);
    vmcs::HOST_SS.write(tables::KERNEL_DATA);
    vmcs::HOST_TR.write(tables::TSS);
    vmcs::HOST_PAT.write(read(msr::IA32_PAT));
    vmcs::HOST_EFER.write(read(msr::IA32_EFER));
    vmcs::HOST_CR0.write(read_cr0());
    vmcs::HOST_CR4.write(read_cr4());
    vmcs::HOST_GS_BASE.write(read(msr::IA32_GS_BASE));
    let (gdt, mut idt) = (cpu.host.gdt.base as u64, DescriptorTablePointer::<u64>::default());
    // SAFETY: TR was loaded from this GDT, so that its 16-byte descriptor lies there; reads a register.
    let [low, high] = unsafe {
        sidt(&mut idt);
        ((gdt + u64::from(tables::TSS)) as *const [u64; 2]).read_unaligned()
    };
    vmcs::HOST_TR_BASE.write(low >> 16 & 0xff_ffff | low >> 56 << 24 | high << 32);
    vmcs::HOST_GDTR_BASE.write(gdt);
    vmcs::HOST_IDTR_BASE.write(idt.base as u64);
}
