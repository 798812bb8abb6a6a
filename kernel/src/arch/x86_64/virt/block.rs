//! A vCPU's block of memory.
use core::mem::{offset_of, size_of};
use core::ptr::addr_of_mut;

use static_assertions::const_assert_eq;

use super::super::vmx;
use super::vector::VECTOR_BYTES;
use super::{BLOCK_BYTES, DIRECT_MAP, PAGE, closed_maps};

/// A vCPU's block. Page 0 belongs to the kernel object.
#[repr(C, align(32768))]
pub(in super::super) struct Block {
    object: [u8; PAGE],
    pub(in super::super) control: [u8; PAGE],
    pub(in super::super) msr_map: [u8; 2 * PAGE],
    pub(in super::super) io_map: [u8; 3 * PAGE],
    pub(in super::super) vector: Vector,
    pub(in super::super) shadow: Shadow,
}
const_assert_eq!(size_of::<Block>(), BLOCK_BYTES);
const_assert_eq!(offset_of!(Block, control), PAGE);
const_assert_eq!(offset_of!(Block, vector), 7 * PAGE);

#[repr(C, align(64))]
pub(in super::super) struct Vector([u8; VECTOR_BYTES]);

/// How far an NMI is (SVM only; VT-x has virtual NMIs).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(in super::super) enum Nmi {
    /// NMIs can be injected.
    Open = 0,
    /// Blocked; IRET is intercepted.
    Blocked = 1,
    /// IRET is being stepped over.
    Stepping = 2,
}

/// Bits of [`Shadow::slow`].
pub(in super::super) mod slow {
    /// `nmi` is not `Open`.
    pub(in super::super::super) const NMI: u32 = 1 << 0;
    /// RIP was advanced for a software event.
    pub(in super::super::super) const SOFT: u32 = 1 << 1;
    /// The VMM wants to know when an NMI can be injected.
    pub(in super::super::super) const NMI_WINDOW: u32 = 1 << 2;
    /// SPEC_CTRL is not zero.
    pub(in super::super::super) const SPEC_CTRL: u32 = 1 << 3;
    /// VT-x: STAR, LSTAR or SFMASK differs from the host's.
    pub(in super::super::super) const STAR: u32 = 1 << 4;
    pub(in super::super::super) const LSTAR: u32 = 1 << 5;
    pub(in super::super::super) const SFMASK: u32 = 1 << 6;
    /// SVM in QEMU: an interrupt is delivered once.
    pub(in super::super::super) const ONCE: u32 = 1 << 8;
    /// Measures against leaks are due at entry or exit.
    pub(in super::super::super) const HARDEN: u32 = 1 << 7;
}

/// What the kernel keeps of a vCPU outside the hardware's page.
#[repr(C, align(1024))]
pub(in super::super) struct Shadow {
    /// The `CpuVirt` on which its tag is valid, and the tag's generation there.
    pub(in super::super) cpu: u64,
    pub(in super::super) generation: u64,
    pub(in super::super) request: u32,
    /// Root of the guest's translation, physical.
    pub(in super::super) root: u64,
    /// Guest values of what is swapped by hand.
    pub(in super::super) star: u64,
    pub(in super::super) lstar: u64,
    pub(in super::super) cstar: u64,
    pub(in super::super) sfmask: u64,
    pub(in super::super) kernel_gs_base: u64,
    pub(in super::super) cr2: u64,
    pub(in super::super) dr: [u64; 4],
    pub(in super::super) dr6: u64,
    /// Exceptions that the VMM asked for, a bit for each vector.
    pub(in super::super) exceptions: u64,
    pub(in super::super) tsc_offset: u64,
    pub(in super::super) tsc_aux: u64,
    pub(in super::super) xcr0: u64,
    pub(in super::super) spec_ctrl: u64,
    pub(in super::super) nmi: Nmi,
    /// [`slow`] bits: what entry and exit have to look at besides the usual.
    pub(in super::super) slow: u32,
    /// SVM: bytes that RIP was advanced for an injected software event.
    pub(in super::super) soft_length: u32,
    /// SVM: guest's own TF and DR6, and RIP of the IRET, while stepping.
    pub(in super::super) stepped_flag: u64,
    pub(in super::super) stepped_dr6: u64,
    pub(in super::super) stepped_rip: u64,
    pub(in super::super) msr_open: bool,
    pub(in super::super) io_open: bool,
    /// Pages of the maps that are closed already, before the first opening.
    pub(in super::super) msr_closed: u8,
    pub(in super::super) io_closed: u8,
    /// VT-x only.
    pub(in super::super) vmx: vmx::Extra,
}
const_assert_eq!(size_of::<Shadow>(), 1024);

/// A vCPU's hardware part: its block of [`BLOCK_BYTES`].
///
/// Whoever holds one is on the vCPU's home CPU with interrupts off, or holds the inactive object's lock, so that nothing
/// else touches the block.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VcpuHw(pub(super) *mut Block);

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
    pub(in super::super) fn address(self) -> u64 {
        self.0 as u64
    }

    #[inline]
    pub(in super::super) fn phys(self, offset: usize) -> u64 {
        self.0 as u64 - DIRECT_MAP + offset as u64
    }

    /// The kernel's own copy.
    #[inline]
    pub(in super::super) fn shadow<'a>(self) -> &'a mut Shadow {
        // SAFETY: `from_block`'s contract: the block is valid and nobody else uses it. Callers keep one reference at a time.
        unsafe { &mut *addr_of_mut!((*self.0).shadow) }
    }

    #[inline]
    pub(in super::super) fn control(self) -> *mut u8 {
        // SAFETY: only the address is computed.
        unsafe { addr_of_mut!((*self.0).control).cast() }
    }

    pub(in super::super) fn msr_map<'a>(self) -> &'a mut [u8; 2 * PAGE] {
        // SAFETY: as for `shadow`.
        unsafe { &mut *addr_of_mut!((*self.0).msr_map) }
    }

    pub(in super::super) fn io_map<'a>(self) -> &'a mut [u8; 3 * PAGE] {
        // SAFETY: as for `shadow`.
        unsafe { &mut *addr_of_mut!((*self.0).io_map) }
    }

    /// Physical addresses of the maps of ports and MSRs in use: the vCPU's own once it has any.
    pub(in super::super) fn maps(self) -> (u64, u64) {
        let own = |open, offset| if open { self.phys(offset) } else { closed_maps() };
        let shadow = self.shadow();
        (own(shadow.io_open, offset_of!(Block, io_map)), own(shadow.msr_open, offset_of!(Block, msr_map)))
    }

    pub(in super::super) fn control_phys(self) -> u64 {
        self.phys(offset_of!(Block, control))
    }

    pub(super) fn vector(self) -> *mut u8 {
        // SAFETY: only the address is computed.
        unsafe { addr_of_mut!((*self.0).vector).cast() }
    }
}
