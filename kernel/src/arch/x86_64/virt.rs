//! Hardware virtualization: one interface above [`svm`](super::svm) and [`vmx`](super::vmx).
//!
//! Order of use. Each CPU calls [`enable_cpu`] once, after its GDT, IDT, TR, GS base and SYSCALL MSRs stand. A vCPU's block
//! begins zeroed; [`VcpuHw::init`] gives it the state after reset. Then, on its home CPU with interrupts off:
//! [`load_state`] (decode), [`run`] (enter, exit, classify), [`store_state`] (more groups for the VMM).
//!
//! What the registers of a CPU hold between runs:
//!
//! | state | swapped |
//! | --- | --- |
//! | general registers, CR2, segments, SYSCALL MSRs that differ (VT-x: and that the guest can use), GDT limit, SPEC_CTRL | at each entry and exit |
//! | KERNEL_GS_BASE (VT-x), TSC_AUX | at entry of another vCPU, or by [`settle`]: nobody but the vCPU's own VMM may run before |
//! | XCR0, DR0–DR3, DR6 | at entry of another vCPU: no task can read or use them |
//! | vector registers | by the caller, with [`vector_save`] and [`vector_restore`] |
//!
//! KERNEL_GS_BASE belongs to this module from a [`run`] to the next [`settle`]: the kernel's SWAPGS at its entries and
//! exits is right with any value in it, and the VMM's GS base is its guest's meanwhile. FS base is zero after an exit.
mod block;
mod cpu;
mod page;
mod vector;

use core::sync::atomic::{AtomicU64, Ordering};

use moira_abi::vcpu::{Exit, Segment, seg};
use moira_kernel_core::vcpu_check::{self as check, Control};
use x86::msr;

use super::{
    mitigations::{self, measure},
    svm, vmx,
};
pub use block::VcpuHw;
pub(super) use block::{Block, Nmi, Shadow, slow};
pub use cpu::CpuVirt;
pub(super) use cpu::{Tags, leaf, read_cr0, read_cr2, read_cr4, write_cr0, write_cr2, write_cr4, write_spec_ctrl};
pub use page::{StatePage, report};
pub(super) use page::{
    get, put, put_segment, read_control, read_debug, read_inject, read_msrs, read_rip, read_segments, read_tables,
    read_tsc_xcr, set_slow, store_shadow,
};
pub use vector::{guest_xcr0, vector_restore, vector_save};
use vector::{read_xcr0, with_xsave, write_xcr0};

/// Calls the function of this name of the vendor's module.
macro_rules! by_vendor {
    ($vendor:expr, $function:ident($($argument:expr),*)) => {
        match $vendor {
            Vendor::Svm => svm::$function($($argument),*),
            Vendor::Vmx => vmx::$function($($argument),*),
        }
    };
}

/// Where the kernel maps physical memory.
const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
const PAGE: usize = 4096;

/// Bytes and alignment of a vCPU's block; the first page is the kernel object's.
pub const BLOCK_BYTES: usize = 32768;
/// Zeroed pages, physically contiguous, that [`enable_cpu`] takes.
pub const HOST_PAGES: usize = 6;

/// Whose virtualization extension this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Vendor {
    /// Intel VT-x with EPT and unrestricted guest.
    Vmx = 1,
    /// AMD SVM with nested paging.
    Svm = 2,
}

/// What `run` came back with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A host interrupt: [`taken_interrupt`].
    HostInterrupt,
    /// A machine check hit while the guest ran; the registers of the machine-check banks tell more.
    MachineCheck,
    /// For the VMM: the exit and the groups written to the state page.
    Guest {
        /// Why.
        exit: Exit,
        /// Groups now current in the page. As small as this the whole fits two registers.
        groups: u32,
    },
    /// Handled here (an NMI by the kernel's handler); enter again.
    Again,
}

/// Finds out what the processor offers.
///
/// # Errors
/// Why there is nothing to use, for the boot log.
pub fn detect() -> Result<Vendor, &'static str> {
    if leaf(0x8000_0001, 0).ecx & 1 << 2 != 0 {
        svm::usable().map(|()| Vendor::Svm)
    } else if leaf(1, 0).ecx & 1 << 5 != 0 {
        vmx::usable().map(|()| Vendor::Vmx)
    } else {
        Err("no VT-x and no SVM")
    }
}

/// Physical address of three pages of ones: the permission maps of vCPUs that opened nothing.
static CLOSED_MAPS: AtomicU64 = AtomicU64::new(0);

fn closed_maps() -> u64 {
    CLOSED_MAPS.load(Ordering::Relaxed)
}

/// Turns virtualization on for this CPU. The result lives as long as the pages.
///
/// # Safety
/// Once per CPU, at boot, with interrupts off, on a processor for which [`detect`] named `vendor`. `pages_phys` is the
/// physical address of [`HOST_PAGES`] zeroed pages that are given away for good. GDT, IDT, TR, GS base (kernel's),
/// KERNEL_GS_BASE, STAR, LSTAR, SFMASK, CR0 and CR4 have their final values.
pub unsafe fn enable_cpu(vendor: Vendor, pages_phys: u64) -> Result<*mut CpuVirt, &'static str> {
    let pages = pages_phys + DIRECT_MAP;
    let place = (pages + 2 * PAGE as u64) as *mut CpuVirt;
    let ones = pages + 3 * PAGE as u64;
    // SAFETY: the pages are the caller's gift.
    unsafe { core::ptr::write_bytes(ones as *mut u8, 0xff, 3 * PAGE) };
    let _ = CLOSED_MAPS.compare_exchange(0, ones - DIRECT_MAP, Ordering::Relaxed, Ordering::Relaxed);
    let state = CpuVirt {
        vendor,
        resident: 0,
        current: 0,
        pages_phys,
        tags: Tags::new(1),
        limits: cpu::limits(vendor),
        features: cpu::features(),
        host: cpu::host_state(),
        init_vector: cpu::InitVector([0; 576]),
    };
    // SAFETY: the page is the caller's gift and aligned.
    let cpu_ref = unsafe {
        place.write(state);
        &mut *place
    };
    cpu_ref.init_vector.0[24..28].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    // SAFETY: the caller's contract.
    unsafe { by_vendor!(vendor, enable(cpu_ref))? };
    Ok(place)
}

/// Gives a fresh vCPU its state after reset: real mode at F000:FFF0, everything intercepted, maps closed. Any CPU.
pub fn init(vendor: Vendor, hw: VcpuHw) {
    let shadow = hw.shadow();
    shadow.dr6 = 0xffff_0ff0;
    shadow.xcr0 = 1;
    set_slow(shadow, slow::HARDEN, mitigations::has(measure::L1D | measure::VERW | measure::RSB));
    // SAFETY: inside the block.
    unsafe { hw.vector().add(24).cast::<u32>().write(MXCSR_RESET) };
    by_vendor!(vendor, init(hw))
}

const MXCSR_RESET: u32 = 0x1f80;

/// The state page's content after [`init`], for group [`group::ALL`].
#[must_use]
pub fn reset_control() -> Control {
    Control { cr0: 0x6000_0010, ..Control::default() }
}

/// Segment registers after reset (SDM table 9-1).
pub(super) fn reset_segments() -> [Segment; 8] {
    let mut segments = [Segment { rights: 0x93, limit: 0xffff, ..Segment::default() }; 8];
    let code = &mut segments[seg::CS];
    (code.selector, code.rights, code.base) = (0xf000, 0x9b, 0xffff_0000);
    (segments[seg::LDTR].rights, segments[seg::TR].rights) = (0x82, 0x8b);
    segments
}

/// Loads the groups of `mask` from the state page: each is read once, checked, and copied.
///
/// Group RIP without group INTERRUPTIBILITY also ends an STI or MOV SS shadow: the VMM completed an instruction.
///
/// # Errors
/// A [`vcpu::invalid`] code; groups before the refused one have been loaded.
#[inline(always)]
pub fn load_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) -> Result<(), u64> {
    by_vendor!(cpu.vendor, load_state(cpu, hw, page, mask))
}

/// Writes the groups of `mask` to the state page. After a host interrupt that becomes an exit for the VMM (`Until`,
/// `Kicked`), ask for [`check::default_groups`] of it.
pub fn store_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    by_vendor!(cpu.vendor, store_state(cpu, hw, page, mask))
}

/// Turns a run that nothing in the guest ended into an exit (`Until`, `Kicked`): writes what every exit writes, and its groups.
pub fn end_run(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, exit: Exit, out: u64) -> u64 {
    page::report(page, exit, 0, 0);
    put!(page, delivering, 0);
    let groups = check::default_groups(exit) | out & moira_abi::vcpu::group::ALL;
    store_state(cpu, hw, page, groups);
    groups
}

/// Enters the guest, comes back and classifies. `out`: groups that the VMM wants beyond the default of the exit.
///
/// # Safety
/// Interrupts are off, this is the vCPU's home CPU and `cpu` is this CPU's; [`set_space`] named a translation that stays
/// valid; no other vCPU's vector state is in the registers.
#[inline(always)]
pub unsafe fn run(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    // SAFETY: handed on.
    unsafe { by_vendor!(cpu.vendor, run(cpu, hw, page, out)) }
}

/// After [`Outcome::HostInterrupt`]: the vector of the interrupt that the exit acknowledged (VT-x), or `None`: if there is one, it is
/// still pending, open a window with STI (SVM always; VT-x when the bound on a guest's run has passed).
#[must_use]
pub fn taken_interrupt(cpu: &CpuVirt) -> Option<u8> {
    if cpu.vendor == Vendor::Vmx { vmx::taken_interrupt() } else { None }
}

/// Names the root table of the guest's translation (EPT or nested page table, four levels) and drops what was cached.
///
/// # Safety
/// The table is a valid one of this machine's format, and maps only memory the VMM holds.
pub unsafe fn set_space(hw: VcpuHw, root_phys: u64) {
    hw.shadow().root = root_phys;
    invalidate(hw);
}

/// Drops all cached translations of this vCPU before its next entry. The vCPU's home CPU, or the vCPU is inactive.
pub fn invalidate(hw: VcpuHw) {
    hw.shadow().generation = 0;
}

/// Puts back what [`run`] leaves in the registers for its vCPU's own VMM: call before anything else runs on this CPU.
/// Two instructions if there is nothing to do.
#[inline(always)]
pub fn settle(cpu: &mut CpuVirt) {
    if cpu.resident != 0 {
        settle_resident(cpu);
    }
}

#[cold]
#[inline(never)]
fn settle_resident(cpu: &mut CpuVirt) {
    let shadow = VcpuHw(cpu.resident as *mut Block).shadow();
    cpu.resident = 0;
    if cpu.features.rdtscp && shadow.tsc_aux != 0 {
        // SAFETY: the MSR exists; the host does not use it.
        unsafe { msr::wrmsr(msr::IA32_TSC_AUX, 0) };
    }
    if cpu.features.xsave {
        // A guest may have changed it without an exit: TCG does not intercept XSETBV.
        shadow.xcr0 = with_xsave(true, read_xcr0);
    }
    if cpu.vendor == Vendor::Vmx {
        vmx::settle(shadow);
    }
}

/// Loads the lazily swapped state of a vCPU that becomes resident.
pub(super) fn become_resident(cpu: &mut CpuVirt, hw: VcpuHw) {
    settle(cpu);
    mitigations::barrier();
    cpu.resident = hw.address();
    let shadow = hw.shadow();
    load_debug(shadow);
    if cpu.features.rdtscp && shadow.tsc_aux != 0 {
        // SAFETY: the MSR exists and any 32-bit value is allowed.
        unsafe { msr::wrmsr(msr::IA32_TSC_AUX, shadow.tsc_aux) };
    }
    if cpu.features.xsave {
        let value = if check::xcr0_valid(shadow.xcr0, &cpu.limits) { shadow.xcr0 } else { 1 };
        with_xsave(true, || write_xcr0(value));
    }
}

/// DR0–DR3 and DR6 into the registers; the host's DR7 is 0, so that they do nothing in it.
fn load_debug(shadow: &Shadow) {
    let [dr0, dr1, dr2, dr3] = shadow.dr;
    // SAFETY: breakpoints are off in the host; the values were checked.
    unsafe {
        core::arch::asm!("mov dr0, {}", "mov dr1, {}", "mov dr2, {}", "mov dr3, {}", "mov dr6, {}",
            in(reg) dr0, in(reg) dr1, in(reg) dr2, in(reg) dr3, in(reg) shadow.dr6, options(nostack, preserves_flags));
    }
}

/// Takes the vCPU off this CPU: nothing of it stays in registers or caches. Call on its home CPU before it becomes
/// inactive, moves, or dies.
pub fn detach(cpu: &mut CpuVirt, hw: VcpuHw) {
    if cpu.resident == hw.address() {
        settle(cpu);
    }
    if cpu.vendor == Vendor::Vmx {
        vmx::detach(cpu, hw);
    }
    hw.shadow().cpu = 0;
    hw.shadow().generation = 0;
}

/// Closes a map, a page for each call. Answers whether all of it is closed: `pages` counts those that are.
fn close(map: &mut [u8], pages: &mut u8) -> bool {
    match map.chunks_mut(4096).nth(*pages as usize) {
        Some(page) => {
            page.fill(0xff);
            *pages += 1;
            false
        }
        None => true,
    }
}

/// Lets the guest reach an MSR without an exit, or takes that back. Answers whether it is done; else it is called again. The VMM still has to handle the exit: the kernel opens
/// as much as it can switch.
///
/// # Errors
/// The MSR is none of those that can be opened.
pub fn allow_msr(cpu: &mut CpuVirt, hw: VcpuHw, msr: u32, read: bool, write: bool) -> Result<bool, ()> {
    let most = check::msr_openable(msr, cpu.vendor == Vendor::Svm).ok_or(())?;
    let shadow = hw.shadow();
    if !shadow.msr_open {
        shadow.msr_open = close(hw.msr_map(), &mut shadow.msr_closed);
        return Ok(false);
    }
    let (read_bit, write_bit) = by_vendor!(cpu.vendor, msr_bits(msr)).ok_or(())?;
    set_bit(hw.msr_map(), read_bit, !(read && most.read));
    set_bit(hw.msr_map(), write_bit, !(write && most.write));
    by_vendor!(cpu.vendor, maps_changed(cpu, hw));
    Ok(true)
}

/// Lets the guest reach these ports without an exit. Both ends included. Answers whether it is done; else it is called again.
pub fn allow_ports(cpu: &mut CpuVirt, hw: VcpuHw, first: u16, last: u16) -> bool {
    let shadow = hw.shadow();
    if !shadow.io_open {
        shadow.io_open = close(hw.io_map(), &mut shadow.io_closed);
        return false;
    }
    // Whole bytes at once: a range may be all of the 65,536 ports.
    let (mut at, end) = (first as usize, last as usize + 1);
    while at < end {
        if at % 8 == 0 && end - at >= 8 {
            if let Some(bytes) = hw.io_map().get_mut(at / 8..end / 8) {
                bytes.fill(0);
            }
            at = end / 8 * 8;
        } else {
            set_bit(hw.io_map(), at, false);
            at += 1;
        }
    }
    by_vendor!(cpu.vendor, maps_changed(cpu, hw));
    true
}

fn set_bit(map: &mut [u8], bit: usize, value: bool) {
    if let Some(byte) = map.get_mut(bit / 8) {
        *byte = *byte & !(1 << (bit % 8)) | u8::from(value) << (bit % 8);
    }
}
