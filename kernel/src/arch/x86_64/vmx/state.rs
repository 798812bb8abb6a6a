//! State page to VMCS and back.
use core::mem::offset_of;

use moira_abi::vcpu::{Segment, VcpuState, event, group, interruptibility, invalid, request, seg};
use moira_kernel_core::vcpu_check::{self as check, Event, efer};
use x86::vmx::vmcs::control::{EntryControls, PrimaryControls};

use super::super::virt::{self, CpuVirt, StatePage, VcpuHw, get, put};
use super::controls::{EXCEPTIONS, cr0_mask, cr0_real, cr4_mask, cr4_real};
use super::{get_field, kernel_gs_base, make_current, note_differences, put_field, set_kernel_gs_base, vmcs, zero};

const SHADOWS: u32 = (interruptibility::STI | interruptibility::MOV_SS) as u32;
const NMI_BLOCKED: u32 = interruptibility::NMI_BLOCKED as u32;
const TF: u64 = 1 << 8;
const PENDING_STEP: u64 = 1 << 14;
const PDPTES: [vmcs::Field<u64>; 4] = [vmcs::GUEST_PDPTE0, vmcs::GUEST_PDPTE1, vmcs::GUEST_PDPTE2, vmcs::GUEST_PDPTE3];

/// The state after reset (SDM table 9-1), control registers apart.
pub(super) fn reset() {
    virt::reset_segments().iter().enumerate().for_each(|(index, segment)| load_segment(index, segment));
    [vmcs::GUEST_GDTR_LIMIT, vmcs::GUEST_IDTR_LIMIT].iter().for_each(|field| field.write(0xffff));
    zero! {
        GUEST_INTERRUPTIBILITY GUEST_ACTIVITY GUEST_SYSENTER_CS GUEST_DEBUGCTL GUEST_EFER GUEST_CR3
        GUEST_GDTR_BASE GUEST_IDTR_BASE GUEST_PENDING_DEBUG GUEST_SYSENTER_ESP GUEST_SYSENTER_EIP
        GUEST_PDPTE0 GUEST_PDPTE1 GUEST_PDPTE2 GUEST_PDPTE3 GUEST_RSP
    }
    vmcs::GUEST_PAT.write(0x0007_0406_0007_0406);
    vmcs::GUEST_DR7.write(0x400);
    vmcs::GUEST_RIP.write(0xfff0);
    vmcs::GUEST_RFLAGS.write(2);
}

/// Loads the groups of `mask` after checking them.
#[inline(always)]
pub(in super::super) fn load_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) -> Result<(), u64> {
    if mask & group::RIP != 0 {
        make_current(cpu, hw);
        get_field!(page, rip, vmcs::GUEST_RIP);
        vmcs::GUEST_RFLAGS.write(get!(page, rflags) & check::RFLAGS_DEFINED | 2);
        // An instruction was completed: no STI or MOV SS shadow any more.
        let now = vmcs::GUEST_INTERRUPTIBILITY.read();
        if now & SHADOWS != 0 {
            vmcs::GUEST_INTERRUPTIBILITY.write(now & !SHADOWS);
        }
    }
    if mask & group::ALL & !group::RIP != 0 { load_more(cpu, hw, page, mask) } else { Ok(()) }
}

#[inline(never)]
fn load_more(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) -> Result<(), u64> {
    make_current(cpu, hw);
    if mask & group::INTERRUPTIBILITY != 0 {
        vmcs::GUEST_INTERRUPTIBILITY.write(get!(page, interruptibility) as u32 & (SHADOWS | NMI_BLOCKED));
    }
    if mask & (group::INTERRUPTIBILITY | group::DEBUG) != 0 {
        // SDM 26.3.1.5: in a shadow the pending single step has to agree with TF. Elsewhere none is pending: the VMM has told of it.
        let step = vmcs::GUEST_INTERRUPTIBILITY.read() & SHADOWS != 0 && vmcs::GUEST_RFLAGS.read() & TF != 0;
        vmcs::GUEST_PENDING_DEBUG.write(if step { PENDING_STEP } else { 0 });
    }
    if mask & group::CONTROL != 0 {
        load_control(cpu, hw, page)?;
        // An entry drops no translations of this VPID for what its guest did not do itself (SDM 29.4.3.1).
        virt::invalidate(hw);
    }
    if mask & group::SEGMENTS != 0 {
        let (segments, _) = virt::read_segments(page)?;
        segments.iter().enumerate().for_each(|(index, segment)| load_segment(index, segment));
    }
    if mask & group::TABLES != 0 {
        let [gdtr, idtr] = virt::read_tables(page)?;
        vmcs::GUEST_GDTR_BASE.write(gdtr.0);
        vmcs::GUEST_GDTR_LIMIT.write(gdtr.1.into());
        vmcs::GUEST_IDTR_BASE.write(idtr.0);
        vmcs::GUEST_IDTR_LIMIT.write(idtr.1.into());
    }
    if mask & group::MSRS != 0 {
        let msrs = virt::read_msrs(page)?;
        let shadow = hw.shadow();
        (shadow.star, shadow.lstar, shadow.cstar, shadow.sfmask) = (msrs.star, msrs.lstar, msrs.cstar, msrs.sfmask);
        note_differences(cpu, shadow);
        set_kernel_gs_base(cpu, hw, msrs.kernel_gs_base);
        vmcs::GUEST_SYSENTER_CS.write(msrs.sysenter[0] as u32);
        vmcs::GUEST_SYSENTER_ESP.write(msrs.sysenter[1]);
        vmcs::GUEST_SYSENTER_EIP.write(msrs.sysenter[2]);
        vmcs::GUEST_PAT.write(msrs.pat);
    }
    if mask & group::DEBUG != 0 {
        let debug = virt::read_debug(cpu, hw, page)?;
        vmcs::GUEST_DR7.write(debug.dr7);
        vmcs::EXCEPTION_BITMAP.write(EXCEPTIONS | debug.exceptions as u32);
    }
    if mask & group::TSC_XCR != 0 {
        virt::read_tsc_xcr(cpu, hw, page)?;
        vmcs::TSC_OFFSET.write(hw.shadow().tsc_offset);
    }
    if mask & group::PDPTE != 0 {
        PDPTES.iter().zip(get!(page, pdpte)).for_each(|(field, entry)| field.write(entry));
    }
    // Last: the event is taken out of the page only when all else was accepted.
    if mask & group::INJECT != 0 {
        let (event, bits) = virt::read_inject(page)?;
        // The processor refuses it, too (SDM 26.3.1.5); Bochs (2.7) does not.
        if event.is_nmi() && vmcs::GUEST_INTERRUPTIBILITY.read() & NMI_BLOCKED != 0 {
            return Err(invalid::EVENT);
        }
        arm(event);
        load_request(hw, bits);
    }
    Ok(())
}

fn load_control(cpu: &CpuVirt, hw: VcpuHw, page: StatePage) -> Result<(), u64> {
    let control = virt::read_control(page, &cpu.limits)?;
    let caps = &cpu.features.vmx;
    vmcs::GUEST_CR0.write(cr0_real(caps, control.cr0));
    vmcs::CR0_SHADOW.write(control.cr0);
    vmcs::GUEST_CR3.write(control.cr3);
    vmcs::GUEST_CR4.write(cr4_real(caps, control.cr4));
    vmcs::CR4_SHADOW.write(control.cr4);
    vmcs::GUEST_EFER.write(control.efer);
    // The entry control has to agree with LMA.
    let (now, long) = (vmcs::ENTRY_CONTROLS.read(), EntryControls::IA32E_MODE_GUEST.bits());
    vmcs::ENTRY_CONTROLS.write(if control.efer & efer::LMA != 0 { now | long } else { now & !long });
    note_differences(cpu, hw.shadow());
    hw.shadow().cr2 = control.cr2;
    Ok(())
}

/// Puts an event into the entry fields.
pub(super) fn arm(event: Event) {
    vmcs::ENTRY_EVENT.write(event.info);
    if event.info != 0 {
        vmcs::ENTRY_EVENT_CODE.write(event.code);
        vmcs::ENTRY_EVENT_LENGTH.write(event.length);
    }
}

/// Window exits.
pub(super) fn load_request(hw: VcpuHw, bits: u32) {
    let shadow = hw.shadow();
    shadow.request = bits;
    let (interrupt, nmi) =
        (PrimaryControls::INTERRUPT_WINDOW_EXITING.bits(), PrimaryControls::NMI_WINDOW_EXITING.bits());
    let mut primary = shadow.vmx.primary & !(interrupt | nmi);
    if u64::from(bits) & request::INTERRUPT_WINDOW != 0 {
        primary |= interrupt;
    }
    if u64::from(bits) & request::NMI_WINDOW != 0 {
        primary |= nmi;
    }
    if primary != shadow.vmx.primary {
        shadow.vmx.primary = primary;
        vmcs::PRIMARY_CONTROLS.write(primary);
    }
}

fn load_segment(index: usize, segment: &Segment) {
    vmcs::GUEST_SELECTOR.of_segment(index).write(segment.selector);
    vmcs::GUEST_RIGHTS.of_segment(index).write(segment.rights);
    vmcs::GUEST_LIMIT.of_segment(index).write(segment.limit);
    vmcs::GUEST_BASE.of_segment(index).write(segment.base);
}

/// Writes the groups of `mask` to the state page.
pub(in super::super) fn store_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    make_current(cpu, hw);
    store_current(cpu, hw, page, mask);
}

/// The same where the VMCS is known to be current.
#[inline(always)]
pub(super) fn store_current(cpu: &CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    if mask & group::RIP != 0 {
        put_field!(page, rip, vmcs::GUEST_RIP);
        put_field!(page, rflags, vmcs::GUEST_RFLAGS);
    }
    if mask & group::ALL & !group::RIP != 0 {
        if mask & group::CONTROL != 0 {
            store_control(cpu, hw, page);
        }
        if mask & group::ALL & !(group::RIP | group::CONTROL) != 0 {
            store_more(cpu, hw, page, mask);
        }
    }
}

/// Group CONTROL, and what goes with it.
#[inline]
fn store_control(cpu: &CpuVirt, hw: VcpuHw, page: StatePage) {
    put!(page, cr0, cr0_view(cpu));
    put!(page, cr2, hw.shadow().cr2);
    put_field!(page, cr3, vmcs::GUEST_CR3);
    put!(page, cr4, cr4_view(cpu));
    put_field!(page, efer, vmcs::GUEST_EFER);
    store_code(page);
}

#[inline(never)]
fn store_more(cpu: &CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    if mask & group::INTERRUPTIBILITY != 0 {
        put!(page, interruptibility, u64::from(vmcs::GUEST_INTERRUPTIBILITY.read() & (SHADOWS | NMI_BLOCKED)));
    }
    if mask & group::INJECT != 0 {
        let event = armed();
        put!(page, inject, event.packed());
        put!(page, inject_length, u64::from(event.length));
        put!(page, request, u64::from(hw.shadow().request));
    }
    if mask & group::SEGMENTS != 0 {
        store_segments(page);
    }
    if mask & group::TABLES != 0 {
        put_field!(page, gdtr.base, vmcs::GUEST_GDTR_BASE);
        put_field!(page, gdtr.limit, vmcs::GUEST_GDTR_LIMIT);
        put_field!(page, idtr.base, vmcs::GUEST_IDTR_BASE);
        put_field!(page, idtr.limit, vmcs::GUEST_IDTR_LIMIT);
    }
    if mask & group::MSRS != 0 {
        store_msrs(cpu, hw, page);
    }
    if mask & group::DEBUG != 0 {
        put!(page, dr6, hw.shadow().dr6);
        put_field!(page, dr7, vmcs::GUEST_DR7);
    }
    if mask & (group::DEBUG | group::TSC_XCR) != 0 {
        virt::store_shadow(cpu, hw, page, mask);
    }
    if mask & group::PDPTE != 0 {
        put!(page, pdpte, PDPTES.map(vmcs::Field::read));
    }
}

fn store_msrs(cpu: &CpuVirt, hw: VcpuHw, page: StatePage) {
    let shadow = hw.shadow();
    put!(page, star, shadow.star);
    put!(page, lstar, shadow.lstar);
    put!(page, cstar, shadow.cstar);
    put!(page, sfmask, shadow.sfmask);
    put!(page, kernel_gs_base, kernel_gs_base(cpu, hw));
    put_field!(page, sysenter_cs, vmcs::GUEST_SYSENTER_CS);
    put_field!(page, sysenter_esp, vmcs::GUEST_SYSENTER_ESP);
    put_field!(page, sysenter_eip, vmcs::GUEST_SYSENTER_EIP);
    put_field!(page, pat, vmcs::GUEST_PAT);
}

/// CS and CPL: what goes with group CONTROL.
fn store_code(page: StatePage) {
    store_segment(page, seg::CS);
    put!(page, cpl, u64::from(vmcs::GUEST_RIGHTS.of_segment(seg::SS).read() >> 5 & 3));
}

fn store_segments(page: StatePage) {
    (0..8).for_each(|index| store_segment(page, index));
    put!(page, cpl, u64::from(vmcs::GUEST_RIGHTS.of_segment(seg::SS).read() >> 5 & 3));
}

#[inline(always)]
fn store_segment(page: StatePage, index: usize) {
    let (selector, rights) = (vmcs::GUEST_SELECTOR.of_segment(index), vmcs::GUEST_RIGHTS.of_segment(index));
    let (limit, base) = (vmcs::GUEST_LIMIT.of_segment(index), vmcs::GUEST_BASE.of_segment(index));
    virt::put_segment(page, index, selector.read(), rights.read(), limit.read(), base.read());
}

/// CR0 as the guest sees it.
fn cr0_view(cpu: &CpuVirt) -> u64 {
    let mask = cr0_mask(&cpu.features.vmx);
    vmcs::GUEST_CR0.read() & !mask | vmcs::CR0_SHADOW.read() & mask
}

/// CR4 as the guest sees it.
fn cr4_view(cpu: &CpuVirt) -> u64 {
    let mask = cr4_mask(cpu);
    vmcs::GUEST_CR4.read() & !mask | vmcs::CR4_SHADOW.read() & mask
}

/// The event that stands in the entry fields: armed and not delivered yet.
fn armed() -> Event {
    let info = vmcs::ENTRY_EVENT.read();
    if u64::from(info) & event::VALID == 0 {
        return Event::NONE;
    }
    let code = if u64::from(info) & event::HAS_CODE != 0 { vmcs::ENTRY_EVENT_CODE.read() } else { 0 };
    Event { info, code, length: vmcs::ENTRY_EVENT_LENGTH.read() }
}

/// An event from IDT-vectoring information, for handing back or injecting again; software events run again by themselves.
pub(super) fn interrupted_delivery() -> Event {
    let info = vmcs::VECTORING.read();
    if u64::from(info) & event::VALID == 0 {
        return Event::NONE;
    }
    let info = info & (event::VALID | event::HAS_CODE | event::TYPE | 0xff) as u32;
    let code = if u64::from(info) & event::HAS_CODE != 0 { vmcs::VECTORING_CODE.read() } else { 0 };
    let event = check::Event { info, code, length: 0 };
    if event.is_software() { Event::NONE } else { event }
}

/// Sets or clears NMI blocking.
pub(super) fn block_nmi(blocked: bool) {
    let now = vmcs::GUEST_INTERRUPTIBILITY.read();
    vmcs::GUEST_INTERRUPTIBILITY.write(if blocked { now | NMI_BLOCKED } else { now & !NMI_BLOCKED });
}
