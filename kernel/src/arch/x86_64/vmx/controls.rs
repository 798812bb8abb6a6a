//! Capabilities, VMXON, and the control and host fields of a VMCS.
use moira_kernel_core::vcpu_check::{cr0, cr4};
use x86::msr;
use x86::vmx::vmcs::control::{EntryControls, ExitControls, PinbasedControls, PrimaryControls, SecondaryControls};

use super::super::virt::{CpuVirt, VcpuHw, cpuid, read_cr0, read_cr4, write_cr0, write_cr4};
use super::{switch, tags, vmcs};

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

/// Bits that may be one are kept from `wanted`, bits that must be one are added (SDM A.2).
fn adjust(number: u32, wanted: u32) -> u32 {
    let value = read(number);
    (wanted | value as u32) & (value >> 32) as u32
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
    let primary = primary_wanted().bits();
    let caps_primary = adjust(msr::IA32_VMX_TRUE_PROCBASED_CTLS, primary);
    if caps_primary & primary != primary {
        return Err("VT-x lacks a processor control");
    }
    let must =
        SecondaryControls::ENABLE_EPT | SecondaryControls::UNRESTRICTED_GUEST | SecondaryControls::WBINVD_EXITING;
    let may = SecondaryControls::ENABLE_RDTSCP | SecondaryControls::ENABLE_VPID | SecondaryControls::ENABLE_INVPCID;
    let secondary = SecondaryControls::from_bits_truncate(adjust(msr::IA32_VMX_PROCBASED_CTLS2, (must | may).bits()));
    if !secondary.contains(SecondaryControls::ENABLE_EPT) {
        return Err("VT-x without EPT");
    }
    if !secondary.contains(SecondaryControls::UNRESTRICTED_GUEST) {
        return Err("VT-x without unrestricted guest");
    }
    if !secondary.contains(must) {
        return Err("VT-x without WBINVD exiting");
    }
    let translation = read(msr::IA32_VMX_EPT_VPID_CAP);
    if translation & (EPT_WALK_4 | EPT_WRITE_BACK | INVEPT) != EPT_WALK_4 | EPT_WRITE_BACK | INVEPT {
        return Err("EPT without four levels, write-back or INVEPT");
    }
    let vpid = secondary.contains(SecondaryControls::ENABLE_VPID)
        && translation & INVVPID != 0
        && translation & INVVPID_ALL != 0;
    let pin =
        PinbasedControls::EXTERNAL_INTERRUPT_EXITING | PinbasedControls::NMI_EXITING | PinbasedControls::VIRTUAL_NMIS;
    let timer = PinbasedControls::VMX_PREEMPTION_TIMER;
    let pin_value = adjust(msr::IA32_VMX_TRUE_PINBASED_CTLS, (pin | timer).bits());
    let preemption = if pin_value & timer.bits() != 0 { GUEST_TICKS >> (read(msr::IA32_VMX_MISC) & 31) } else { 0 };
    let exit = exit_wanted().bits();
    let entry =
        (EntryControls::LOAD_DEBUG_CONTROLS | EntryControls::LOAD_IA32_PAT | EntryControls::LOAD_IA32_EFER).bits();
    let caps = Caps {
        revision: basic as u32 & 0x7fff_ffff,
        vpid,
        invept_single: translation & INVEPT_SINGLE != 0,
        pin: pin_value,
        preemption,
        primary: caps_primary,
        secondary: if vpid { secondary } else { secondary - SecondaryControls::ENABLE_VPID }.bits(),
        exit: adjust(msr::IA32_VMX_TRUE_EXIT_CTLS, exit),
        entry: adjust(msr::IA32_VMX_TRUE_ENTRY_CTLS, entry),
        cr0_fixed: read(msr::IA32_VMX_CR0_FIXED0) & !(cr0::PE | cr0::PG),
        cr4_fixed: read(msr::IA32_VMX_CR4_FIXED0),
    };
    if caps.pin & pin.bits() != pin.bits() {
        return Err("VT-x without virtual NMIs");
    }
    if caps.exit & exit != exit || caps.entry & entry != entry {
        return Err("VT-x cannot switch PAT and EFER");
    }
    Ok(caps)
}

fn primary_wanted() -> PrimaryControls {
    PrimaryControls::USE_TSC_OFFSETTING
        | PrimaryControls::HLT_EXITING
        | PrimaryControls::MWAIT_EXITING
        | PrimaryControls::RDPMC_EXITING
        | PrimaryControls::CR8_LOAD_EXITING
        | PrimaryControls::CR8_STORE_EXITING
        | PrimaryControls::MOV_DR_EXITING
        | PrimaryControls::USE_IO_BITMAPS
        | PrimaryControls::USE_MSR_BITMAPS
        | PrimaryControls::MONITOR_EXITING
        | PrimaryControls::SECONDARY_CONTROLS
}

fn exit_wanted() -> ExitControls {
    ExitControls::SAVE_DEBUG_CONTROLS
        | ExitControls::HOST_ADDRESS_SPACE_SIZE
        | ExitControls::ACK_INTERRUPT_ON_EXIT
        | ExitControls::SAVE_IA32_PAT
        | ExitControls::LOAD_IA32_PAT
        | ExitControls::SAVE_IA32_EFER
        | ExitControls::LOAD_IA32_EFER
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
    if caps.secondary & SecondaryControls::ENABLE_INVPCID.bits() == 0 && cpuid(7).ebx & 1 << 10 != 0 {
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
    let zero = [
        vmcs::PAGE_FAULT_MASK,
        vmcs::PAGE_FAULT_MATCH,
        vmcs::CR3_TARGETS,
        vmcs::EXIT_MSR_STORES,
        vmcs::EXIT_MSR_LOADS,
        vmcs::ENTRY_MSR_LOADS,
        vmcs::ENTRY_EVENT,
        vmcs::ENTRY_EVENT_CODE,
        vmcs::ENTRY_EVENT_LENGTH,
    ];
    zero.iter().for_each(|field| field.write(0));
    vmcs::TSC_OFFSET.write(0);
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
    let host = &cpu.host;
    [vmcs::HOST_ES, vmcs::HOST_DS, vmcs::HOST_FS, vmcs::HOST_GS].iter().for_each(|field| field.write(0));
    [vmcs::HOST_FS_BASE, vmcs::HOST_SYSENTER_ESP, vmcs::HOST_SYSENTER_EIP].iter().for_each(|field| field.write(0));
    vmcs::HOST_SYSENTER_CS.write(0);
    vmcs::HOST_CS.write(host.cs);
    vmcs::HOST_SS.write(host.ss);
    vmcs::HOST_TR.write(host.tr);
    vmcs::HOST_PAT.write(read(msr::IA32_PAT));
    vmcs::HOST_EFER.write(read(msr::IA32_EFER));
    vmcs::HOST_CR0.write(read_cr0());
    vmcs::HOST_CR4.write(read_cr4());
    vmcs::HOST_GS_BASE.write(host.gs_base);
    vmcs::HOST_TR_BASE.write(host.tr_base);
    vmcs::HOST_GDTR_BASE.write(host.gdt.base);
    vmcs::HOST_IDTR_BASE.write(host.idt.base);
}
