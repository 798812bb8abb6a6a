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
//! | general registers, CR2, segments, SYSCALL MSRs that differ, GDT limit, SPEC_CTRL | at each entry and exit |
//! | KERNEL_GS_BASE (VT-x), TSC_AUX | at entry of another vCPU, or by [`settle`]: nobody but the vCPU's own VMM may run before |
//! | XCR0, DR0–DR3, DR6 | at entry of another vCPU: no task can read or use them |
//! | vector registers | by the caller, with [`vector_save`] and [`vector_restore`] |
//!
//! KERNEL_GS_BASE belongs to this module from a [`run`] to the next [`settle`]: the kernel's SWAPGS at its entries and
//! exits is right with any value in it, and the VMM's GS base is its guest's meanwhile. FS base is zero after an exit.
use core::mem::{offset_of, size_of};
use core::ptr::{addr_of, addr_of_mut};
use core::sync::atomic::{AtomicU64, Ordering};

use moira_abi::vcpu::{self, Exit, Segment, VcpuState, group};
use moira_kernel_core::vcpu_check::{self as check, Control, Debug, Event, Limits, cr4, efer};
use static_assertions::const_assert_eq;
use x86::msr;

use super::{svm, vmx};

/// Where the kernel maps physical memory.
const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
const PAGE: usize = 4096;

/// Bytes and alignment of a vCPU's block; the first page is the kernel object's.
pub const BLOCK_BYTES: usize = 32768;
/// Zeroed pages, physically contiguous, that [`enable_cpu`] takes.
pub const HOST_PAGES: usize = 6;
/// Bytes of the vector save area.
const VECTOR_BYTES: usize = 3072;

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
    /// A host interrupt: its vector, acknowledged (VT-x); or `None`: if there is one, it is still pending, open a window with STI
    /// (SVM always; VT-x when the bound on a guest's run has passed).
    HostInterrupt(Option<u8>),
    /// An NMI; the kernel's handler has run already.
    HostNmi,
    /// A machine check hit while the guest ran; the registers of the machine-check banks tell more.
    MachineCheck,
    /// For the VMM: the exit and the groups written to the state page.
    Guest {
        /// Why.
        exit: Exit,
        /// Groups now current in the page.
        groups: u64,
    },
    /// Handled here; enter again.
    Again,
}

/// Finds out what the processor offers.
///
/// # Errors
/// Why there is nothing to use, for the boot log.
pub fn detect() -> Result<Vendor, &'static str> {
    if cpuid(0x8000_0000).eax >= 0x8000_0001 && cpuid(0x8000_0001).ecx & 1 << 2 != 0 {
        svm::usable().map(|()| Vendor::Svm)
    } else if cpuid(1).ecx & 1 << 5 != 0 {
        vmx::usable().map(|()| Vendor::Vmx)
    } else {
        Err("no VT-x and no SVM")
    }
}

/// Per-CPU state of this module: the third of the pages given to [`enable_cpu`].
#[repr(C, align(4096))]
pub struct CpuVirt {
    pub(super) vendor: Vendor,
    /// Block of the vCPU whose lazily swapped state this CPU's registers hold; 0: none.
    pub(super) resident: u64,
    /// VT-x: block of the vCPU whose VMCS is current on this CPU; 0: none.
    pub(super) current: u64,
    /// Physical address of this struct's first page (host save area or VMXON region).
    pub(super) pages_phys: u64,
    pub(super) tags: Tags,
    pub(super) limits: Limits,
    pub(super) features: Features,
    pub(super) host: Host,
    /// An XSAVE image whose header says that all components are in their initial state.
    init_vector: InitVector,
}
const_assert_eq!(size_of::<CpuVirt>(), PAGE);

/// The host's values that an exit has to put back.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Host {
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) sfmask: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) gs_base: u64,
    pub(super) tr_base: u64,
    pub(super) tr: u16,
    pub(super) cs: u16,
    pub(super) ss: u16,
    pub(super) gdt: TableRegister,
    pub(super) idt: TableRegister,
}

/// Operand of SGDT, SIDT and LGDT.
#[repr(C, packed)]
#[derive(Clone, Copy, Default)]
pub(super) struct TableRegister {
    pub(super) limit: u16,
    pub(super) base: u64,
}

/// What this processor has beyond the minimum.
#[derive(Clone, Copy, Default)]
pub(super) struct Features {
    pub(super) xsave: bool,
    pub(super) xsaveopt: bool,
    pub(super) rdtscp: bool,
    pub(super) spec_ctrl: bool,
    /// SVM: next RIP is saved.
    pub(super) next_rip: bool,
    /// SVM: decode assists.
    pub(super) decode: bool,
    /// SVM: what to write to the clean bits after an exit.
    pub(super) clean: u32,
    /// VT-x: see [`vmx`].
    pub(super) vmx: vmx::Caps,
}

#[repr(C, align(64))]
struct InitVector([u8; 576]);

/// ASIDs or VPIDs of this CPU. A tag is valid while its generation is the CPU's; when none is left, a new generation begins
/// with a flush of all.
#[derive(Clone, Copy)]
pub(super) struct Tags {
    pub(super) generation: u64,
    next: u32,
    last: u32,
}

impl Tags {
    pub(super) const fn new(last: u32) -> Tags {
        Tags { generation: 1, next: 1, last }
    }
    /// The next tag, and whether everything has to be flushed before it is used.
    pub(super) fn take(&mut self) -> (u32, bool) {
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

/// A vCPU's block. Page 0 belongs to the kernel object.
#[repr(C, align(32768))]
pub(super) struct Block {
    object: [u8; PAGE],
    pub(super) control: [u8; PAGE],
    pub(super) msr_map: [u8; 2 * PAGE],
    pub(super) io_map: [u8; 3 * PAGE],
    pub(super) vector: Vector,
    pub(super) shadow: Shadow,
}
const_assert_eq!(size_of::<Block>(), BLOCK_BYTES);
const_assert_eq!(offset_of!(Block, control), PAGE);
const_assert_eq!(offset_of!(Block, vector), 7 * PAGE);

#[repr(C, align(64))]
pub(super) struct Vector([u8; VECTOR_BYTES]);

/// How far an NMI is (SVM only; VT-x has virtual NMIs).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(super) enum Nmi {
    /// NMIs can be injected.
    Open = 0,
    /// Blocked; IRET is intercepted.
    Blocked = 1,
    /// IRET is being stepped over.
    Stepping = 2,
}

/// Bits of [`Shadow::slow`].
pub(super) mod slow {
    /// `nmi` is not `Open`.
    pub(in super::super) const NMI: u32 = 1 << 0;
    /// RIP was advanced for a software event.
    pub(in super::super) const SOFT: u32 = 1 << 1;
    /// The VMM wants to know when an NMI can be injected.
    pub(in super::super) const NMI_WINDOW: u32 = 1 << 2;
    /// SPEC_CTRL is not zero.
    pub(in super::super) const SPEC_CTRL: u32 = 1 << 3;
    /// VT-x: STAR, LSTAR or SFMASK differs from the host's.
    pub(in super::super) const STAR: u32 = 1 << 4;
    pub(in super::super) const LSTAR: u32 = 1 << 5;
    pub(in super::super) const SFMASK: u32 = 1 << 6;
}

/// What the kernel keeps of a vCPU outside the hardware's page.
#[repr(C, align(1024))]
pub(super) struct Shadow {
    /// The `CpuVirt` on which the tag below is valid.
    pub(super) cpu: u64,
    pub(super) generation: u64,
    pub(super) tag: u32,
    pub(super) request: u32,
    /// Root of the guest's translation, physical.
    pub(super) root: u64,
    /// Guest values of what is swapped by hand.
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) cstar: u64,
    pub(super) sfmask: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) cr2: u64,
    pub(super) dr: [u64; 4],
    pub(super) dr6: u64,
    pub(super) tsc_offset: u64,
    pub(super) tsc_aux: u64,
    pub(super) xcr0: u64,
    pub(super) spec_ctrl: u64,
    pub(super) nmi: Nmi,
    /// [`slow`] bits: what entry and exit have to look at besides the usual.
    pub(super) slow: u32,
    /// SVM: bytes that RIP was advanced for an injected software event.
    pub(super) soft_length: u32,
    /// SVM: guest's own TF, and RIP of the IRET, while stepping.
    pub(super) stepped_flag: u64,
    pub(super) stepped_rip: u64,
    pub(super) msr_open: bool,
    pub(super) io_open: bool,
    /// VT-x only.
    pub(super) vmx: vmx::Extra,
}
const_assert_eq!(size_of::<Shadow>(), 1024);

/// A vCPU's hardware part: its block of [`BLOCK_BYTES`].
///
/// Whoever holds one is on the vCPU's home CPU with interrupts off, or holds the inactive object's lock, so that nothing
/// else touches the block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VcpuHw(*mut Block);

impl VcpuHw {
    /// The handle of the block at this address.
    ///
    /// # Safety
    /// `block` is the direct-map address of a vCPU object's memory, [`BLOCK_BYTES`] long and aligned, kernel memory until
    /// [`detach`] was called for it, and used by one CPU at a time.
    #[inline]
    #[must_use]
    pub const unsafe fn from_block(block: u64) -> VcpuHw {
        VcpuHw(block as *mut Block)
    }

    #[inline]
    pub(super) fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline]
    pub(super) fn phys(self, offset: usize) -> u64 {
        self.0 as u64 - DIRECT_MAP + offset as u64
    }

    /// The kernel's own copy.
    #[inline]
    pub(super) fn shadow<'a>(self) -> &'a mut Shadow {
        // SAFETY: `from_block`'s contract: the block is valid and nobody else uses it. Callers keep one reference at a time.
        unsafe { &mut *addr_of_mut!((*self.0).shadow) }
    }

    #[inline]
    pub(super) fn control(self) -> *mut u8 {
        // SAFETY: only the address is computed.
        unsafe { addr_of_mut!((*self.0).control).cast() }
    }

    pub(super) fn msr_map<'a>(self) -> &'a mut [u8; 2 * PAGE] {
        // SAFETY: as for `shadow`.
        unsafe { &mut *addr_of_mut!((*self.0).msr_map) }
    }

    pub(super) fn io_map<'a>(self) -> &'a mut [u8; 3 * PAGE] {
        // SAFETY: as for `shadow`.
        unsafe { &mut *addr_of_mut!((*self.0).io_map) }
    }

    pub(super) fn msr_map_phys(self) -> u64 {
        self.phys(offset_of!(Block, msr_map))
    }

    pub(super) fn io_map_phys(self) -> u64 {
        self.phys(offset_of!(Block, io_map))
    }

    pub(super) fn control_phys(self) -> u64 {
        self.phys(offset_of!(Block, control))
    }

    fn vector(self) -> *mut u8 {
        // SAFETY: only the address is computed.
        unsafe { addr_of_mut!((*self.0).vector).cast() }
    }
}

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
    pub(super) fn pointer(self) -> *mut VcpuState {
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
pub(super) use {get, put};

/// Physical address of three pages of ones: the permission maps of vCPUs that opened nothing.
static CLOSED_MAPS: AtomicU64 = AtomicU64::new(0);

pub(super) fn closed_maps() -> u64 {
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
    let cpu = (pages + 2 * PAGE as u64) as *mut CpuVirt;
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
        limits: limits(vendor),
        features: features(),
        host: host_state(),
        init_vector: InitVector([0; 576]),
    };
    // SAFETY: the page is the caller's gift and aligned.
    let cpu_ref = unsafe {
        cpu.write(state);
        &mut *cpu
    };
    cpu_ref.init_vector.0[24..28].copy_from_slice(&MXCSR_RESET.to_le_bytes());
    // SAFETY: the caller's contract.
    unsafe {
        match vendor {
            Vendor::Svm => svm::enable(cpu_ref),
            Vendor::Vmx => vmx::enable(cpu_ref)?,
        }
    }
    Ok(cpu)
}

/// Gives a fresh vCPU its state after reset: real mode at F000:FFF0, everything intercepted, maps closed. Any CPU.
pub fn init(vendor: Vendor, hw: VcpuHw) {
    let shadow = hw.shadow();
    shadow.dr6 = 0xffff_0ff0;
    shadow.xcr0 = 1;
    // SAFETY: inside the block.
    unsafe { hw.vector().add(24).cast::<u32>().write(MXCSR_RESET) };
    match vendor {
        Vendor::Svm => svm::init(hw),
        Vendor::Vmx => vmx::init(hw),
    }
}

const MXCSR_RESET: u32 = 0x1f80;

/// The state page's content after [`init`], for group [`group::ALL`].
#[must_use]
pub fn reset_control() -> Control {
    Control { cr0: 0x6000_0010, ..Control::default() }
}

/// Loads the groups of `mask` from the state page: each is read once, checked, and copied.
///
/// Group RIP without group INTERRUPTIBILITY also ends an STI or MOV SS shadow: the VMM completed an instruction.
///
/// # Errors
/// A [`vcpu::invalid`] code; groups before the refused one have been loaded.
#[inline]
pub fn load_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) -> Result<(), u64> {
    match cpu.vendor {
        Vendor::Svm => svm::load_state(cpu, hw, page, mask),
        Vendor::Vmx => vmx::load_state(cpu, hw, page, mask),
    }
}

/// Writes the groups of `mask` to the state page. After a host interrupt that becomes an exit for the VMM (`Until`,
/// `Kicked`), ask for [`check::default_groups`] of it.
pub fn store_state(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    match cpu.vendor {
        Vendor::Svm => svm::store_state(cpu, hw, page, mask),
        Vendor::Vmx => vmx::store_state(cpu, hw, page, mask),
    }
}

/// Enters the guest, comes back and classifies. `out`: groups that the VMM wants beyond the default of the exit.
///
/// # Safety
/// Interrupts are off, this is the vCPU's home CPU and `cpu` is this CPU's; [`set_space`] named a translation that stays
/// valid; no other vCPU's vector state is in the registers.
#[inline]
pub unsafe fn run(cpu: &mut CpuVirt, hw: VcpuHw, page: StatePage, out: u64) -> Outcome {
    // SAFETY: handed on.
    unsafe {
        match cpu.vendor {
            Vendor::Svm => svm::run(cpu, hw, page, out),
            Vendor::Vmx => vmx::run(cpu, hw, page, out),
        }
    }
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
#[inline]
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
        vmx::settle(cpu, shadow);
    }
}

/// Loads the lazily swapped state of a vCPU that becomes resident.
pub(super) fn become_resident(cpu: &mut CpuVirt, hw: VcpuHw) {
    settle(cpu);
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

/// Lets the guest reach an MSR without an exit, or takes that back. The VMM still has to handle the exit: the kernel opens
/// as much as it can switch.
///
/// # Errors
/// The MSR is none of those that can be opened.
pub fn allow_msr(cpu: &mut CpuVirt, hw: VcpuHw, msr: u32, read: bool, write: bool) -> Result<(), ()> {
    let most = check::msr_openable(msr, cpu.vendor == Vendor::Svm).ok_or(())?;
    let shadow = hw.shadow();
    if !shadow.msr_open {
        hw.msr_map().fill(0xff);
        shadow.msr_open = true;
    }
    let bits = match cpu.vendor {
        Vendor::Svm => check::msr_bit_svm(msr).map(|bit| (bit, bit + 1)),
        Vendor::Vmx => check::msr_bits_vmx(msr),
    };
    let (read_bit, write_bit) = bits.ok_or(())?;
    set_bit(hw.msr_map(), read_bit, !(read && most.read));
    set_bit(hw.msr_map(), write_bit, !(write && most.write));
    match cpu.vendor {
        Vendor::Svm => svm::maps_changed(hw),
        Vendor::Vmx => vmx::maps_changed(cpu, hw),
    }
    Ok(())
}

/// Lets the guest reach these ports without an exit. Both ends included; up to 8 KiB of map are written the first time.
pub fn allow_ports(cpu: &mut CpuVirt, hw: VcpuHw, first: u16, last: u16) {
    let shadow = hw.shadow();
    if !shadow.io_open {
        hw.io_map().fill(0xff);
        shadow.io_open = true;
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
    match cpu.vendor {
        Vendor::Svm => svm::maps_changed(hw),
        Vendor::Vmx => vmx::maps_changed(cpu, hw),
    }
}

fn set_bit(map: &mut [u8], bit: usize, value: bool) {
    if let Some(byte) = map.get_mut(bit / 8) {
        *byte = *byte & !(1 << (bit % 8)) | u8::from(value) << (bit % 8);
    }
}

/// XCR0 components that the save area can hold on this processor: never more than x87, SSE, AVX and AVX-512.
#[must_use]
pub fn guest_xcr0() -> u64 {
    if cpuid(1).ecx & 1 << 26 == 0 {
        return 3;
    }
    let leaf = cpuid_count(0xd, 0);
    let supported = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
    let fits = |component: u32| {
        let part = cpuid_count(0xd, component);
        supported >> component & 1 != 0 && (part.eax as usize + part.ebx as usize) <= VECTOR_BYTES
    };
    let mut value = supported & 3;
    if fits(2) {
        value |= 4;
        if fits(5) && fits(6) && fits(7) {
            value |= 0xe0;
        }
    }
    value
}

/// Saves the vector registers of the vCPU that owns them and clears them.
///
/// # Safety
/// The registers hold this vCPU's state, on this CPU; interrupts are off.
pub unsafe fn vector_save(cpu: &mut CpuVirt, hw: VcpuHw) {
    let area = hw.vector();
    let clean = addr_of!(cpu.init_vector).cast::<u8>();
    let features = cpu.features;
    with_vector(cpu, |mask| {
        let (low, high) = (mask as u32, (mask >> 32) as u32);
        // SAFETY: the area is 64-byte aligned and large enough for the components of `mask`; the vector unit is on. XSAVEOPT
        // may leave out what is unchanged since the XRSTOR from the same area.
        unsafe {
            if !features.xsave {
                core::arch::asm!("fxsave64 [{}]", "fxrstor64 [{}]", in(reg) area, in(reg) clean, options(nostack));
            } else {
                if features.xsaveopt {
                    core::arch::asm!("xsaveopt64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack));
                } else {
                    core::arch::asm!("xsave64 [{}]", in(reg) area, in("eax") low, in("edx") high, options(nostack));
                }
                core::arch::asm!("xrstor64 [{}]", in(reg) clean, in("eax") low, in("edx") high, options(nostack));
            }
        }
    });
}

/// Loads the vector registers with this vCPU's saved state.
///
/// # Safety
/// The registers hold nobody's state that is still needed; interrupts are off.
pub unsafe fn vector_restore(cpu: &mut CpuVirt, hw: VcpuHw) {
    let area = hw.vector();
    let features = cpu.features;
    with_vector(cpu, |mask| {
        // SAFETY: the area was zeroed or written by XSAVE with the same mask, and only by the kernel, so that it is well-formed.
        unsafe {
            if features.xsave {
                core::arch::asm!("xrstor64 [{}]", in(reg) area, in("eax") mask as u32, in("edx") (mask >> 32) as u32, options(nostack));
            } else {
                core::arch::asm!("fxrstor64 [{}]", in(reg) area, options(nostack));
            }
        }
    });
}

/// Runs `body` with the vector unit on and XCR0 at all components a guest may have: a guest that cleared a bit of its XCR0
/// keeps the registers behind it.
fn with_vector(cpu: &CpuVirt, body: impl FnOnce(u64)) {
    let all = cpu.limits.xcr0;
    let cr0 = read_cr0();
    // SAFETY: TS and EM off, nothing else changes; put back below.
    unsafe { write_cr0(cr0 & !0xc) };
    if cpu.features.xsave {
        with_xsave(true, || {
            let before = read_xcr0();
            if before != all {
                write_xcr0(all);
            }
            body(all);
            if before != all {
                write_xcr0(before);
            }
        });
    } else {
        with_xsave(false, || body(3));
    }
    // SAFETY: the value that was there.
    unsafe { write_cr0(cr0) };
}

/// Runs `body` with CR4.OSXSAVE (where it exists) and OSFXSR on: both are off while tasks run.
fn with_xsave<T>(exists: bool, body: impl FnOnce() -> T) -> T {
    let before = read_cr4();
    let osxsave = if exists { cr4::OSXSAVE } else { 0 };
    // SAFETY: enables instructions, changes no translation; put back below.
    unsafe { write_cr4(before | osxsave | 0x600) };
    let result = body();
    // SAFETY: the value that was there.
    unsafe { write_cr4(before) };
    result
}

/// Reads group RIP: RFLAGS has only bits that exist.
#[inline]
pub(super) fn read_rip(page: StatePage) -> (u64, u64) {
    (get!(page, rip), get!(page, rflags) & check::RFLAGS_DEFINED | 2)
}

/// Reads group CONTROL once and checks it.
pub(super) fn read_control(page: StatePage, limits: &Limits) -> Result<Control, u64> {
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
pub(super) fn read_segments(page: StatePage) -> Result<([Segment; 8], u8), u64> {
    let segments: [Segment; 8] = get!(page, segment);
    check::check_segments(&segments)?;
    Ok((segments, get!(page, cpl) as u8 & 3))
}

/// Group TABLES: (GDTR, IDTR), limits cut to 16 bits.
pub(super) fn read_tables(page: StatePage) -> Result<[(u64, u16); 2], u64> {
    let (gdtr, idtr): (vcpu::Table, vcpu::Table) = (get!(page, gdtr), get!(page, idtr));
    if !check::canonical(gdtr.base) || !check::canonical(idtr.base) {
        return Err(vcpu::invalid::CANONICAL);
    }
    Ok([(gdtr.base, gdtr.limit as u16), (idtr.base, idtr.limit as u16)])
}

/// Group MSRS, checked.
pub(super) struct Msrs {
    pub(super) star: u64,
    pub(super) lstar: u64,
    pub(super) cstar: u64,
    pub(super) sfmask: u64,
    pub(super) kernel_gs_base: u64,
    pub(super) sysenter: [u64; 3],
    pub(super) pat: u64,
}

pub(super) fn read_msrs(page: StatePage) -> Result<Msrs, u64> {
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
pub(super) fn read_debug(cpu: &CpuVirt, hw: VcpuHw, page: StatePage) -> Result<Debug, u64> {
    let raw = Debug { dr: get!(page, dr), dr6: get!(page, dr6), dr7: get!(page, dr7) };
    let debug = raw.checked()?;
    let shadow = hw.shadow();
    (shadow.dr, shadow.dr6) = (debug.dr, debug.dr6);
    if cpu.resident == hw.address() {
        load_debug(shadow);
    }
    Ok(debug)
}

/// Group TSC_XCR into the shadow (and the registers if the vCPU is resident); the vendor loads the TSC offset.
pub(super) fn read_tsc_xcr(cpu: &CpuVirt, hw: VcpuHw, page: StatePage) -> Result<(), u64> {
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
pub(super) fn set_slow(shadow: &mut Shadow, bit: u32, value: bool) {
    shadow.slow = if value { shadow.slow | bit } else { shadow.slow & !bit };
}

/// Group INJECT: the event, checked, and the request bits. The page's event is taken out of it.
pub(super) fn read_inject(page: StatePage) -> Result<(Event, u32), u64> {
    let event = Event::checked(get!(page, inject), get!(page, inject_length))?;
    put!(page, inject, 0);
    Ok((event, get!(page, request) as u32 & 3))
}

/// What of groups DEBUG and TSC_XCR is the same on both vendors.
pub(super) fn store_shadow(cpu: &CpuVirt, hw: VcpuHw, page: StatePage, mask: u64) {
    let shadow = hw.shadow();
    if mask & group::DEBUG != 0 {
        put!(page, dr, shadow.dr);
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
pub(super) fn report(page: StatePage, exit: Exit, qualification: u64, length: u64) {
    put!(page, reason, exit as u64);
    put!(page, qualification, qualification);
    put!(page, length, length);
}

pub(super) const IA32_SPEC_CTRL: u32 = 0x48;

/// SPEC_CTRL around the guest, where it exists and the guest uses it.
pub(super) fn write_spec_ctrl(value: u64) {
    // SAFETY: only called where the MSR exists, with bits that exist.
    unsafe { msr::wrmsr(IA32_SPEC_CTRL, value) };
}

fn limits(vendor: Vendor) -> Limits {
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

fn features() -> Features {
    let has_seven = cpuid(0).eax >= 7;
    let intel_spec = has_seven && cpuid_count(7, 0).edx & 1 << 26 != 0;
    let amd_spec = cpuid(0x8000_0000).eax >= 0x8000_0008 && cpuid(0x8000_0008).ebx & 1 << 14 != 0;
    let xsave = cpuid_has_xsave();
    Features {
        xsave,
        xsaveopt: xsave && cpuid_count(0xd, 1).eax & 1 != 0,
        rdtscp: cpuid(0x8000_0001).edx & 1 << 27 != 0,
        // All three bits (IBRS, STIBP, SSBD) have to exist, so that any combination can be loaded.
        spec_ctrl: intel_spec && has_seven && cpuid_count(7, 0).edx & 1 << 27 != 0 && cpuid_count(7, 0).edx & 1 << 31 != 0
            || amd_spec && cpuid(0x8000_0008).ebx & (1 << 15 | 1 << 24) == 1 << 15 | 1 << 24,
        ..Features::default()
    }
}

fn host_state() -> Host {
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

pub(super) fn cpuid(leaf: u32) -> x86::cpuid::CpuIdResult {
    cpuid_count(leaf, 0)
}

pub(super) fn cpuid_count(leaf: u32, subleaf: u32) -> x86::cpuid::CpuIdResult {
    x86::cpuid::native_cpuid::cpuid_count(leaf, subleaf)
}

fn cpuid_has_xsave() -> bool {
    cpuid(1).ecx & 1 << 26 != 0
}

fn read_xcr0() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: only called under `with_xsave`.
    unsafe { core::arch::asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(low) | u64::from(high) << 32
}

fn write_xcr0(value: u64) {
    // SAFETY: only called under `with_xsave`, with values that `xcr0_valid` accepted or the register held.
    unsafe {
        core::arch::asm!("xsetbv", in("ecx") 0, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nomem, nostack));
    }
}

pub(super) fn read_cr0() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr0", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) unsafe fn write_cr0(value: u64) {
    // SAFETY: the caller's contract.
    unsafe { core::arch::asm!("mov cr0, {}", in(reg) value, options(nostack)) };
}

pub(super) fn read_cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { core::arch::asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

pub(super) unsafe fn write_cr4(value: u64) {
    // SAFETY: the caller's contract.
    unsafe { core::arch::asm!("mov cr4, {}", in(reg) value, options(nostack)) };
}
