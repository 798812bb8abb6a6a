//! The state page: reading each group once, with its checks, and what of writing is the same on both vendors.
use moira_abi::vcpu::{self, Exit, Segment, VcpuState, group};
use moira_kernel_core::vcpu_check::{self as check, Control, Debug, Event, Limits};
use x86::msr;

use super::block::{Shadow, VcpuHw, slow};
use super::cpu::CpuVirt;
use super::load_debug;
use super::vector::{read_xcr0, with_xsave, write_xcr0};

/// The state page as the kernel sees it: the VMM may write it at any time, from any CPU, so that each field is read once
/// and nothing read from it is trusted.
#[derive(Clone, Copy)]
pub struct StatePage(*mut VcpuState);

impl StatePage {
    /// The page at this address of the kernel's own mapping.
    ///
    /// # Safety
    /// `page` is the direct-map address of a frame that stays mapped there while the value is used.
    #[inline]
    #[must_use]
    pub const unsafe fn new(page: *mut VcpuState) -> StatePage {
        StatePage(page)
    }

    #[inline]
    pub(in super::super) fn pointer(self) -> *mut VcpuState {
        self.0
    }
}

/// Reads a field of the state page, once.
macro_rules! get {
    ($page:expr, $($field:tt)+) => {
        // SAFETY: `StatePage::new`'s contract; plain data, valid for every bit pattern.
        unsafe { core::ptr::addr_of!((*$page.pointer()).$($field)+).read_volatile() }
    };
}
/// Writes a field of the state page.
macro_rules! put {
    ($page:expr, $($field:ident).+ $([$index:expr])?, $value:expr) => {{
        let value = $value;
        // SAFETY: `StatePage::new`'s contract; plain data.
        unsafe { core::ptr::addr_of_mut!((*$page.pointer()).$($field).+ $([$index])?).write_volatile(value) }
    }};
}
pub(in super::super) use {get, put};

/// Reads group RIP: RFLAGS has only bits that exist.
#[inline]
pub(in super::super) fn read_rip(page: StatePage) -> (u64, u64) {
    (get!(page, rip), get!(page, rflags) & check::RFLAGS_DEFINED | 2)
}

/// Reads group CONTROL once and checks it.
pub(in super::super) fn read_control(page: StatePage, limits: &Limits) -> Result<Control, u64> {
    let raw = Control {
        cr0: get!(page, cr0),
        cr2: get!(page, cr2),
        cr3: get!(page, cr3),
        cr4: get!(page, cr4),
        efer: get!(page, efer),
    };
    raw.checked(limits)
}

/// Reads group SEGMENTS once and checks it; CPL goes with it.
pub(in super::super) fn read_segments(page: StatePage) -> Result<([Segment; 8], u8), u64> {
    let segments: [Segment; 8] = get!(page, segment);
    check::check_segments(&segments)?;
    Ok((segments, get!(page, cpl) as u8 & 3))
}

/// Group TABLES: (GDTR, IDTR), limits cut to 16 bits.
pub(in super::super) fn read_tables(page: StatePage) -> Result<[(u64, u16); 2], u64> {
    let (gdtr, idtr): (vcpu::Table, vcpu::Table) = (get!(page, gdtr), get!(page, idtr));
    if !check::canonical(gdtr.base) || !check::canonical(idtr.base) {
        return Err(vcpu::invalid::CANONICAL);
    }
    Ok([(gdtr.base, gdtr.limit as u16), (idtr.base, idtr.limit as u16)])
}

/// Group MSRS, checked.
pub(in super::super) struct Msrs {
    pub(in super::super) star: u64,
    pub(in super::super) lstar: u64,
    pub(in super::super) cstar: u64,
    pub(in super::super) sfmask: u64,
    pub(in super::super) kernel_gs_base: u64,
    pub(in super::super) sysenter: [u64; 3],
    pub(in super::super) pat: u64,
}

pub(in super::super) fn read_msrs(page: StatePage) -> Result<Msrs, u64> {
    let msrs = Msrs {
        star: get!(page, star),
        lstar: get!(page, lstar),
        cstar: get!(page, cstar),
        sfmask: get!(page, sfmask) & 0xffff_ffff,
        kernel_gs_base: get!(page, kernel_gs_base),
        sysenter: [get!(page, sysenter_cs) & 0xffff_ffff, get!(page, sysenter_esp), get!(page, sysenter_eip)],
        pat: get!(page, pat),
    };
    let addresses = [msrs.lstar, msrs.cstar, msrs.kernel_gs_base, msrs.sysenter[1], msrs.sysenter[2]];
    if !addresses.iter().all(|&address| check::canonical(address)) {
        return Err(vcpu::invalid::CANONICAL);
    }
    if !check::pat_valid(msrs.pat) {
        return Err(vcpu::invalid::RESERVED);
    }
    Ok(msrs)
}

/// Group DEBUG, checked; DR0–DR3 and DR6 go to the shadow, and to the registers if the vCPU is resident.
pub(in super::super) fn read_debug(cpu: &CpuVirt, hw: VcpuHw, page: StatePage) -> Result<Debug, u64> {
    let raw =
        Debug { dr: get!(page, dr), dr6: get!(page, dr6), dr7: get!(page, dr7), exceptions: get!(page, exceptions) };
    let debug = raw.checked()?;
    let shadow = hw.shadow();
    (shadow.dr, shadow.dr6, shadow.exceptions) = (debug.dr, debug.dr6, debug.exceptions);
    if cpu.resident == hw.address() {
        load_debug(shadow);
    }
    Ok(debug)
}

/// Group TSC_XCR into the shadow (and the registers if the vCPU is resident); the vendor loads the TSC offset.
pub(in super::super) fn read_tsc_xcr(cpu: &CpuVirt, hw: VcpuHw, page: StatePage) -> Result<(), u64> {
    let (tsc_aux, xcr0, spec_ctrl): (u64, u64, u64) = (get!(page, tsc_aux), get!(page, xcr0), get!(page, spec_ctrl));
    if tsc_aux >> 32 != 0 || !check::xcr0_valid(xcr0, &cpu.limits) || spec_ctrl & !cpu.limits.spec_ctrl != 0 {
        return Err(vcpu::invalid::RESERVED);
    }
    let shadow = hw.shadow();
    let resident = cpu.resident == hw.address();
    if resident && cpu.features.rdtscp && shadow.tsc_aux != tsc_aux {
        // SAFETY: the MSR exists; a 32-bit value.
        unsafe { msr::wrmsr(msr::IA32_TSC_AUX, tsc_aux) };
    }
    if resident && cpu.features.xsave {
        with_xsave(true, || write_xcr0(xcr0));
    }
    shadow.tsc_offset = get!(page, tsc_offset);
    (shadow.tsc_aux, shadow.xcr0, shadow.spec_ctrl) = (tsc_aux, xcr0, spec_ctrl);
    set_slow(shadow, slow::SPEC_CTRL, spec_ctrl != 0);
    Ok(())
}

/// Sets or clears a bit of [`Shadow::slow`].
pub(in super::super) fn set_slow(shadow: &mut Shadow, bit: u32, value: bool) {
    shadow.slow = if value { shadow.slow | bit } else { shadow.slow & !bit };
}

/// Group INJECT: the event, checked, and the request bits. The page's event is taken out of it.
#[inline(always)]
pub(in super::super) fn read_inject(page: StatePage) -> Result<(Event, u32), u64> {
    let event = Event::checked(get!(page, inject), get!(page, inject_length))?;
    put!(page, inject, 0);
    Ok((event, get!(page, request) as u32 & 3))
}

/// Writes a segment register: three words, rather than six fields.
#[inline(always)]
pub(in super::super) fn put_segment(page: StatePage, index: usize, selector: u16, rights: u32, limit: u32, base: u64) {
    const _: () = assert!(size_of::<Segment>() == 24 && core::mem::offset_of!(Segment, rights) == 4);
    let words = [u64::from(selector) | u64::from(rights) << 32, u64::from(limit), base];
    // SAFETY: `StatePage::new`'s contract; the index is below eight, and a `Segment` is these three words.
    unsafe {
        let first = core::ptr::addr_of_mut!((*page.pointer()).segment).cast::<[u64; 3]>().add(index & 7).cast::<u64>();
        (0..3).for_each(|word| first.add(word).write_volatile(words[word]));
    }
}

/// What of groups DEBUG and TSC_XCR is the same on both vendors.
pub(in super::super) fn store_shadow(cpu: &CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    let shadow = hw.shadow();
    if mask & group::DEBUG != 0 {
        put!(page, dr, shadow.dr);
        put!(page, exceptions, shadow.exceptions);
    }
    if mask & group::TSC_XCR != 0 {
        if cpu.resident == hw.address() && cpu.features.xsave {
            shadow.xcr0 = with_xsave(true, read_xcr0);
        }
        put!(page, tsc_offset, shadow.tsc_offset);
        put!(page, tsc_aux, shadow.tsc_aux);
        put!(page, xcr0, shadow.xcr0);
        put!(page, spec_ctrl, shadow.spec_ctrl);
    }
}

/// An exit for the VMM with these details; `delivering` is an event that it has to inject again.
#[inline(always)]
pub fn report(page: StatePage, exit: Exit, qualification: u64, length: u64) {
    put!(page, reason, exit as u64);
    put!(page, qualification, qualification);
    put!(page, length, length);
}
