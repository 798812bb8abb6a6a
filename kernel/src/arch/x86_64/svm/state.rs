//! State page to VMCB and back.
use moira_abi::vcpu::{Segment, event, group, interruptibility, invalid, request, seg};
use moira_kernel_core::vcpu_check::{self as check, Event, cr4, efer};

use super::super::virt::{self, CpuVirt, Nmi, StatePage, VcpuHw, get, put, slow};
use super::super::{self as arch, apic};
use super::vmcb::{Clean, Intercept1, SvmSegment, Vmcb, vintr};
use super::{EXCEPTIONS, vmcb};

const SHADOW: u64 = 1;

/// The state after reset (APM 2 table 14-1).
pub(super) fn reset(vmcb: &mut Vmcb) {
    load_segments(vmcb, &virt::reset_segments());
    (vmcb.gdtr.limit, vmcb.idtr.limit) = (0xffff, 0xffff);
    (vmcb.cr0, vmcb.cr4) = (virt::reset_control().cr0, cr4::MCE);
    vmcb.efer = efer::SVME;
    (vmcb.dr6, vmcb.dr7) = (0xffff_0ff0, 0x400);
    (vmcb.rip, vmcb.rflags) = (0xfff0, 2);
    vmcb.pat = 0x0007_0406_0007_0406;
}

/// Loads the groups of `mask` after checking them.
#[inline(always)]
pub(in super::super) fn load_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) -> Result<(), u64> {
    if mask & group::RIP != 0 {
        let vmcb = vmcb(hw);
        (vmcb.rip, vmcb.rflags) = virt::read_rip(page);
        vmcb.interrupt_shadow = 0;
    }
    if mask & group::ALL & !group::RIP != 0 { load_more(cpu, hw, page, mask) } else { Ok(()) }
}

#[inline(never)]
fn load_more(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) -> Result<(), u64> {
    let vmcb = vmcb(hw);
    if mask & group::INTERRUPTIBILITY != 0 {
        load_interruptibility(hw, get!(page, interruptibility));
    }
    if mask & group::CONTROL != 0 {
        let control = virt::read_control(page, &cpu.limits)?;
        // QEMU's TCG (7.2) loses the host's paging at an exit from a guest with EFER.LME and without CR4.PAE and paging: it gives the host
        // its CR0 while the guest's CR4 and EFER still count, and refuses the change. Without paging PAE does nothing.
        let pae = if cpu.features.tcg && control.efer & efer::LME != 0 { cr4::PAE } else { 0 };
        (vmcb.cr0, vmcb.cr2, vmcb.cr3) = (control.cr0, control.cr2, control.cr3);
        (vmcb.cr4, vmcb.efer) = (control.cr4 | cr4::MCE | pae, control.efer | efer::SVME);
        vmcb.clean.remove(Clean::CONTROL | Clean::CR2);
        // The processor drops no translations for what its guest did not do itself (APM 2 15.16).
        virt::invalidate(hw);
    }
    if mask & group::SEGMENTS != 0 {
        let (segments, cpl) = virt::read_segments(page)?;
        load_segments(vmcb, &segments);
        vmcb.cpl = cpl;
        vmcb.clean.remove(Clean::SEGMENTS);
    }
    if mask & group::TABLES != 0 {
        let [gdtr, idtr] = virt::read_tables(page)?;
        (vmcb.gdtr.base, vmcb.gdtr.limit) = (gdtr.0, gdtr.1.into());
        (vmcb.idtr.base, vmcb.idtr.limit) = (idtr.0, idtr.1.into());
        vmcb.clean.remove(Clean::TABLES);
    }
    if mask & group::MSRS != 0 {
        let msrs = virt::read_msrs(page)?;
        (vmcb.star, vmcb.lstar, vmcb.cstar, vmcb.sfmask) = (msrs.star, msrs.lstar, msrs.cstar, msrs.sfmask);
        vmcb.kernel_gs_base = msrs.kernel_gs_base;
        [vmcb.sysenter_cs, vmcb.sysenter_esp, vmcb.sysenter_eip] = msrs.sysenter;
        vmcb.pat = msrs.pat;
        vmcb.clean.remove(Clean::NESTED);
    }
    if mask & group::DEBUG != 0 {
        let debug = virt::read_debug(cpu, hw, page)?;
        (vmcb.dr6, vmcb.dr7) = (debug.dr6, debug.dr7);
        vmcb.intercept_exceptions = EXCEPTIONS | debug.exceptions as u32;
        vmcb.clean.remove(Clean::DEBUG | Clean::INTERCEPTS);
    }
    if mask & group::TSC_XCR != 0 {
        virt::read_tsc_xcr(cpu, hw, page)?;
        vmcb.tsc_offset = hw.shadow().tsc_offset;
        vmcb.clean.remove(Clean::INTERCEPTS);
    }
    // Last: the event is taken out of the page only when all else was accepted.
    if mask & group::INJECT != 0 {
        let (event, request) = virt::read_inject(page)?;
        load_event(cpu, hw, event)?;
        load_request(hw, request);
    }
    Ok(())
}

fn load_interruptibility(hw: VcpuHw, value: u64) {
    let in_shadow = value & (interruptibility::STI | interruptibility::MOV_SS) != 0;
    vmcb(hw).interrupt_shadow = if in_shadow { SHADOW } else { 0 };
    let blocked = value & interruptibility::NMI_BLOCKED != 0;
    set_nmi(hw, if blocked { Nmi::Blocked } else { Nmi::Open });
}

/// Moves the NMI state: SVM has no virtual NMIs (before VNMI), so the end of a handler is found by its IRET.
pub(super) fn set_nmi(hw: VcpuHw, nmi: Nmi) {
    let shadow = hw.shadow();
    let vmcb = vmcb(hw);
    shadow.nmi = nmi;
    virt::set_slow(shadow, slow::NMI, nmi != Nmi::Open);
    vmcb.intercept1.set(Intercept1::IRET, nmi == Nmi::Blocked);
    vmcb.clean.remove(Clean::INTERCEPTS);
}

/// Arms an event. The RIP pushed for a software event is the one behind the instruction.
fn load_event(cpu: &CpuVirt, hw: VcpuHw, event: Event) -> Result<(), u64> {
    let shadow = hw.shadow();
    let vmcb = vmcb(hw);
    if event.is_nmi() {
        if shadow.nmi != Nmi::Open {
            return Err(invalid::EVENT);
        }
        set_nmi(hw, Nmi::Blocked);
    }
    if event.is_software() {
        let rip = vmcb.rip.wrapping_add(event.length.into());
        vmcb.rip = rip;
        if cpu.features.next_rip {
            vmcb.next_rip = rip;
        }
        shadow.soft_length = event.length;
        shadow.slow |= slow::SOFT;
    }
    arm(cpu, hw, event);
    Ok(())
}

/// Stands for delivery at the next entry.
pub(super) fn arm(cpu: &CpuVirt, hw: VcpuHw, event: Event) {
    vmcb(hw).event_inject = event.to_svm();
    let interrupt = event.info as u64 & (event::VALID | event::TYPE) == event::VALID | event::INTERRUPT;
    virt::set_slow(hw.shadow(), slow::ONCE, interrupt && cpu.features.tcg);
}

/// Before an entry in QEMU's TCG (7.2), which keeps an interrupt of EVENTINJ as an exception of its own: should it leave its loop before
/// the next exit, it delivers the interrupt a second time, whatever IF is. It does not keep a virtual interrupt; where one is needed for
/// a window, the guest exits right behind the delivery. So it does where this CPU's timer is overdue: on a wall clock QEMU may lose an
/// interrupt of the host at such an entry, and tells of it with the next one.
pub(super) fn deliver_once(hw: VcpuHw) {
    let (vmcb, shadow) = (vmcb(hw), hw.shadow());
    if shadow.request | shadow.slow & slow::NMI != 0 || arch::cpu().timer.get() < arch::now() {
        return apic::interrupt_this();
    }
    let irq = vintr::MASKING | vintr::IGNORE_TPR | vintr::IRQ;
    vmcb.virtual_interrupt = irq | (vmcb.event_inject & 0xff) << vintr::VECTOR_SHIFT;
    vmcb.event_inject = 0;
}

/// After the exit: the event that was not delivered, as EXITINTINFO tells it, or as the virtual interrupt that still stands there.
pub(super) fn undelivered(hw: VcpuHw) -> Event {
    let (vmcb, shadow) = (vmcb(hw), hw.shadow());
    shadow.slow &= !slow::ONCE;
    let left = vmcb.virtual_interrupt;
    // With a request it would be the window's.
    if shadow.request == 0 && left & vintr::IRQ != 0 {
        vmcb.virtual_interrupt = vintr::MASKING;
        return Event::from_svm(event::VALID | left >> vintr::VECTOR_SHIFT);
    }
    Event::from_svm(vmcb.exit_int_info)
}

/// Window requests: an interrupt window is a virtual interrupt whose delivery is intercepted.
pub(super) fn load_request(hw: VcpuHw, bits: u32) {
    let shadow = hw.shadow();
    let vmcb = vmcb(hw);
    shadow.request = bits;
    let interrupt = u64::from(bits) & request::INTERRUPT_WINDOW != 0;
    vmcb.virtual_interrupt = vintr::MASKING | if interrupt { vintr::IRQ | vintr::IGNORE_TPR } else { 0 };
    vmcb.intercept1.set(Intercept1::VINTR, interrupt);
    vmcb.clean.remove(Clean::VINTR | Clean::INTERCEPTS);
    virt::set_slow(shadow, slow::NMI_WINDOW, u64::from(bits) & request::NMI_WINDOW != 0);
}

fn load_segments(vmcb: &mut Vmcb, segments: &[Segment; 8]) {
    let [usual @ .., ldtr, tr] = segments;
    for (to, from) in vmcb.segments.iter_mut().zip(usual) {
        *to = convert(from, check::rights_to_svm(from.rights));
    }
    vmcb.ldtr = convert(ldtr, check::rights_to_svm(ldtr.rights));
    vmcb.tr = convert(tr, check::task_rights_to_svm(tr.rights));
}

#[inline(always)]
fn convert(from: &Segment, attributes: u16) -> SvmSegment {
    SvmSegment { selector: from.selector, attributes, limit: from.limit, base: from.base }
}

/// Writes the groups of `mask` to the state page.
#[inline(always)]
pub(in super::super) fn store_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    if mask & group::RIP != 0 {
        let vmcb = vmcb(hw);
        put!(page, rip, vmcb.rip);
        put!(page, rflags, vmcb.rflags);
    }
    if mask & group::ALL & !group::RIP != 0 {
        if mask & group::CONTROL != 0 {
            store_control(hw, page);
        }
        if mask & group::ALL & !(group::RIP | group::CONTROL) != 0 {
            store_more(cpu, hw, page, mask);
        }
    }
}

/// Group CONTROL, and what goes with it.
#[inline]
fn store_control(hw: VcpuHw, page: StatePage) {
    let vmcb = vmcb(hw);
    put!(page, cr0, vmcb.cr0);
    put!(page, cr2, vmcb.cr2);
    put!(page, cr3, vmcb.cr3);
    put!(page, cr4, vmcb.cr4);
    put!(page, efer, vmcb.efer & !efer::SVME);
    store_code(vmcb, page);
}

#[inline(never)]
fn store_more(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    let vmcb = vmcb(hw);
    let shadow = hw.shadow();
    if mask & group::INTERRUPTIBILITY != 0 {
        let blocked = if shadow.nmi == Nmi::Open { 0 } else { interruptibility::NMI_BLOCKED };
        put!(page, interruptibility, vmcb.interrupt_shadow & SHADOW | blocked);
    }
    if mask & group::INJECT != 0 {
        put!(page, inject, armed(hw).packed());
        put!(page, inject_length, u64::from(shadow.soft_length));
        put!(page, request, u64::from(shadow.request));
    }
    if mask & group::SEGMENTS != 0 {
        store_segments(vmcb, page);
    }
    if mask & group::TABLES != 0 {
        put!(page, gdtr.base, vmcb.gdtr.base);
        put!(page, gdtr.limit, u64::from(vmcb.gdtr.limit));
        put!(page, idtr.base, vmcb.idtr.base);
        put!(page, idtr.limit, u64::from(vmcb.idtr.limit));
    }
    if mask & group::MSRS != 0 {
        put!(page, star, vmcb.star);
        put!(page, lstar, vmcb.lstar);
        put!(page, cstar, vmcb.cstar);
        put!(page, sfmask, vmcb.sfmask);
        put!(page, kernel_gs_base, vmcb.kernel_gs_base);
        put!(page, sysenter_cs, vmcb.sysenter_cs);
        put!(page, sysenter_esp, vmcb.sysenter_esp);
        put!(page, sysenter_eip, vmcb.sysenter_eip);
        put!(page, pat, vmcb.pat);
    }
    if mask & group::DEBUG != 0 {
        put!(page, dr6, vmcb.dr6);
        put!(page, dr7, vmcb.dr7);
    }
    if mask & (group::DEBUG | group::TSC_XCR) != 0 {
        virt::store_shadow(cpu, hw, page, mask);
    }
}

/// The event that stands in EVENTINJ: armed and not delivered yet.
fn armed(hw: VcpuHw) -> Event {
    Event::from_svm(vmcb(hw).event_inject)
}

/// CS and CPL: what goes with group CONTROL.
#[inline(always)]
fn store_code(vmcb: &Vmcb, page: StatePage) {
    store_segment(page, seg::CS, &vmcb.segments[seg::CS], 0);
    put!(page, cpl, u64::from(vmcb.cpl));
}

fn store_segments(vmcb: &Vmcb, page: StatePage) {
    vmcb.segments.iter().enumerate().for_each(|(index, from)| store_segment(page, index, from, 0));
    store_segment(page, seg::LDTR, &vmcb.ldtr, 0);
    store_segment(page, seg::TR, &vmcb.tr, check::task_rights_from_svm(0) & !check::UNUSABLE);
    put!(page, cpl, u64::from(vmcb.cpl));
}

#[inline(always)]
fn store_segment(page: StatePage, index: usize, from: &SvmSegment, more: u32) {
    let rights = check::rights_from_svm(from.attributes) | more;
    virt::put_segment(page, index, from.selector, rights, from.limit, from.base);
}
