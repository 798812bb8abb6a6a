//! Intel VT-x (SDM volume 3, chapters 23–28), with EPT and unrestricted guest.
mod controls;
mod exit;
mod field;
mod state;
mod switch;

use core::mem::offset_of;

use moira_abi::vcpu::VcpuState;
use moira_kernel_core::vcpu_check::efer;
use x86::msr;

use super::virt::{
    self, CpuVirt, Outcome, Shadow, StatePage, Tags, VcpuHw, become_resident, read_cr2, slow, write_cr2,
    write_spec_ctrl,
};
use super::{mitigations, paging};
pub(super) use controls::{Caps, enable, usable};
pub(super) use exit::taken_interrupt;
use field::{self as vmcs, get_field, put_field, zero};
pub(super) use moira_kernel_core::vcpu_check::msr_bits_vmx as msr_bits;
pub(super) use state::{load_state, store_state};

/// VT-x's part of the kernel's copy of a vCPU.
#[repr(C)]
pub(super) struct Extra {
    /// The VMCS was initialised.
    ready: bool,
    /// Primary controls with the window bits as they stand in the VMCS.
    primary: u32,
    /// Host fields as they stand in the VMCS.
    host_rsp: u64,
    host_cr3: u64,
}

/// Nothing to write yet: the VMCS is made when it is first loaded, on the CPU that will use it.
pub(super) fn init(hw: VcpuHw) {
    hw.shadow().vmx.ready = false;
}

/// Makes the vCPU's VMCS current on this CPU, and initialises a fresh one.
#[inline]
fn make_current(cpu: &mut CpuVirt, hw: VcpuHw) {
    if cpu.current != hw.address() {
        load_vmcs(cpu, hw);
    }
}

#[cold]
#[inline(never)]
fn load_vmcs(cpu: &mut CpuVirt, hw: VcpuHw) {
    virt::settle(cpu);
    let fresh = !hw.shadow().vmx.ready;
    let phys = hw.control_phys();
    if fresh {
        // SAFETY: the page is this vCPU's; its first word is the revision (SDM 24.2).
        unsafe { hw.control().cast::<u32>().write_volatile(cpu.features.vmx.revision) };
        switch::vmclear(phys);
    }
    switch::vmptrld(phys);
    cpu.current = hw.address();
    if fresh {
        hw.shadow().vmx.ready = true;
        controls::write_controls(cpu, hw);
        state::reset();
        maps_changed_current(hw);
    }
    let here = core::ptr::from_ref(cpu) as u64;
    let shadow = hw.shadow();
    if shadow.cpu != here {
        shadow.cpu = here;
        shadow.generation = 0;
        controls::write_host(cpu);
        (shadow.vmx.host_rsp, shadow.vmx.host_cr3) = (0, 0);
        note_differences(cpu, shadow);
    }
}

/// Points the VMCS at the vCPU's own permission maps once it has any.
pub(super) fn maps_changed(cpu: &mut CpuVirt, hw: VcpuHw) {
    if hw.shadow().vmx.ready {
        make_current(cpu, hw);
        maps_changed_current(hw);
    }
}

fn maps_changed_current(hw: VcpuHw) {
    let (io, msr) = hw.maps();
    vmcs::IO_BITMAP_A.write(io);
    vmcs::IO_BITMAP_B.write(io + 4096);
    vmcs::MSR_BITMAPS.write(msr);
}

/// VMCLEAR: the VMCS is in memory and on no CPU.
pub(super) fn detach(cpu: &mut CpuVirt, hw: VcpuHw) {
    if hw.shadow().vmx.ready {
        switch::vmclear(hw.control_phys());
    }
    if cpu.current == hw.address() {
        virt::settle(cpu);
        cpu.current = 0;
    }
}

/// KERNEL_GS_BASE back to the host's.
pub(super) fn settle(shadow: &mut Shadow) {
    // SAFETY: the MSR exists; tasks have a GS base of 0.
    unsafe {
        shadow.kernel_gs_base = msr::rdmsr(msr::IA32_KERNEL_GSBASE);
        msr::wrmsr(msr::IA32_KERNEL_GSBASE, 0);
    }
}

/// Makes the vCPU resident, with a tag that is valid on this CPU and no stale translations.
#[cold]
#[inline(never)]
fn prepare(cpu: &mut CpuVirt, hw: VcpuHw) {
    make_current(cpu, hw);
    let shadow = hw.shadow();
    if cpu.resident != hw.address() {
        become_resident(cpu, hw);
        // SAFETY: the value is canonical: it was checked, or the guest's own.
        unsafe { msr::wrmsr(msr::IA32_KERNEL_GSBASE, shadow.kernel_gs_base) };
    }
    if shadow.generation != cpu.tags.generation {
        let (tag, flush) = cpu.tags.take();
        shadow.generation = cpu.tags.generation;
        let eptp = cpu.features.vmx.eptp(shadow.root);
        vmcs::EPTP.write(eptp);
        switch::invept(cpu.features.vmx.invept_single, eptp);
        if cpu.features.vmx.vpid {
            vmcs::VPID.write(tag as u16);
            if flush {
                switch::invvpid_all();
            }
        }
    }
}

/// Tags for this processor.
fn tags(vpid: bool) -> Tags {
    Tags::new(if vpid { 0xffff } else { 1 })
}

/// Enters the guest and classifies its exit.
///
/// # Safety
/// As for `virt::run`.
#[inline(always)]
pub(super) unsafe fn run(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    let shadow = hw.shadow();
    // Resident implies current: `load_vmcs` settles.
    if cpu.resident != hw.address() || shadow.generation != cpu.tags.generation {
        prepare(cpu, hw);
    }
    let cr3 = paging::loaded();
    if cr3 != shadow.vmx.host_cr3 {
        shadow.vmx.host_cr3 = cr3;
        vmcs::HOST_CR3.write(cr3);
    }
    get_field!(page, gpr[4], vmcs::GUEST_RSP);
    if read_cr2() != shadow.cr2 {
        // SAFETY: the register has no effect.
        unsafe { write_cr2(shadow.cr2) };
    }
    if shadow.slow != 0 {
        swap_in(shadow);
    }
    // SAFETY: the caller's contract; the VMCS is current, its controls and host fields are this module's.
    let reason = unsafe { switch::enter(page.pointer(), hw) };
    let shadow = hw.shadow();
    shadow.cr2 = read_cr2();
    if shadow.slow != 0 {
        swap_out(cpu, shadow.slow);
    }
    // An exit leaves the GDT's limit at 64 KiB (SDM 27.5.2): what lies behind it must not be read as descriptors.
    switch::load_gdt(cpu);
    put_field!(page, gpr[4], vmcs::GUEST_RSP);
    exit::classify(cpu, hw, page, out, reason)
}

/// The guest's SYSCALL MSRs and SPEC_CTRL, as far as they differ from the host's. The VMM makes system calls between two
/// exits, so that they cannot wait for `settle`. Of a Linux guest it is LSTAR alone.
#[inline(always)]
fn swap_in(shadow: &Shadow) {
    if shadow.slow == slow::LSTAR {
        switch::write_if(true, msr::IA32_LSTAR, shadow.lstar);
    } else {
        swap_in_all(shadow);
    }
}

#[inline(always)]
fn swap_out(cpu: &CpuVirt, differs: u32) {
    if differs == slow::LSTAR {
        switch::write_if(true, msr::IA32_LSTAR, cpu.host.lstar);
    } else {
        swap_out_all(cpu, differs);
    }
}

#[cold]
#[inline(never)]
fn swap_in_all(shadow: &Shadow) {
    let differs = shadow.slow;
    switch::write_if(differs & slow::STAR != 0, msr::IA32_STAR, shadow.star);
    switch::write_if(differs & slow::LSTAR != 0, msr::IA32_LSTAR, shadow.lstar);
    switch::write_if(differs & slow::SFMASK != 0, msr::IA32_FMASK, shadow.sfmask);
    if differs & slow::SPEC_CTRL != 0 {
        write_spec_ctrl(shadow.spec_ctrl);
    }
    if differs & slow::HARDEN != 0 {
        mitigations::before_entry();
    }
}

#[cold]
#[inline(never)]
fn swap_out_all(cpu: &CpuVirt, differs: u32) {
    if differs & slow::SPEC_CTRL != 0 {
        write_spec_ctrl(mitigations::host_spec_ctrl());
    }
    switch::write_if(differs & slow::STAR != 0, msr::IA32_STAR, cpu.host.star);
    switch::write_if(differs & slow::LSTAR != 0, msr::IA32_LSTAR, cpu.host.lstar);
    switch::write_if(differs & slow::SFMASK != 0, msr::IA32_FMASK, cpu.host.sfmask);
}

/// Notes which SYSCALL MSRs [`run`] has to swap: none for a guest that has SYSCALL off, and to which reads of them exit.
/// The VMCS is current.
fn note_differences(cpu: &CpuVirt, shadow: &mut Shadow) {
    let (host, on) = (&cpu.host, vmcs::GUEST_EFER.read() & efer::SCE != 0);
    virt::set_slow(shadow, slow::STAR, on && shadow.star != host.star);
    virt::set_slow(shadow, slow::LSTAR, on && shadow.lstar != host.lstar);
    virt::set_slow(shadow, slow::SFMASK, on && shadow.sfmask != host.sfmask);
}

/// The value group MSRS has for KERNEL_GS_BASE: in the register while the vCPU is resident.
fn kernel_gs_base(cpu: &CpuVirt, hw: VcpuHw) -> u64 {
    if cpu.resident == hw.address() {
        // SAFETY: the MSR exists.
        hw.shadow().kernel_gs_base = unsafe { msr::rdmsr(msr::IA32_KERNEL_GSBASE) };
    }
    hw.shadow().kernel_gs_base
}

fn set_kernel_gs_base(cpu: &CpuVirt, hw: VcpuHw, value: u64) {
    hw.shadow().kernel_gs_base = value;
    if cpu.resident == hw.address() {
        // SAFETY: the MSR exists; the value was checked to be canonical.
        unsafe { msr::wrmsr(msr::IA32_KERNEL_GSBASE, value) };
    }
}
