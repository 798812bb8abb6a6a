//! Guest page tables (SDM vol. 3, chapter 4): 32-bit, PAE and 4-level paging.
//!
//! [`walk`] reads entries and checks rights; it sets no accessed or dirty bits. The addresses it is asked for belong to
//! an instruction that the processor has just executed and translated, which has set them.
//! Instruction bytes themselves are fetched by [`crate::fetch()`], which needs less.

const CR0_WP: u64 = 1 << 16;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PSE: u64 = 1 << 4;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const CR4_LA57: u64 = 1 << 12;
const CR4_SMEP: u64 = 1 << 20;
const CR4_SMAP: u64 = 1 << 21;
pub(crate) const EFER_LMA: u64 = 1 << 10;
const EFER_NXE: u64 = 1 << 11;
const RFLAGS_AC: u64 = 1 << 18;

pub(crate) const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
pub(crate) const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;
pub(crate) const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;

/// Control registers that decide how a linear address is translated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Paging {
    /// CR0.
    pub cr0: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4.
    pub cr4: u64,
    /// EFER.
    pub efer: u64,
    /// RFLAGS, for AC with SMAP.
    pub rflags: u64,
    /// Physical address bits that CPUID shows the guest; higher ones are reserved in entries.
    pub physical_bits: u8,
}

/// What the translation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Writes.
    pub write: bool,
    /// At privilege level 3.
    pub user: bool,
    /// Fetches instructions.
    pub fetch: bool,
}

/// Where a linear address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes from there to the end of the page.
    pub left: u64,
}

/// Why a linear address leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalkError {
    /// A page fault with this error code (SDM vol. 3, figure 4-12).
    PageFault {
        /// Error code.
        code: u32,
    },
    /// Not canonical: a general protection or stack fault.
    NonCanonical,
    /// A table lies where there is no memory.
    NoMemory {
        /// Guest-physical address of the entry.
        gpa: u64,
    },
    /// 5-level paging, which the guest was not offered.
    Unsupported,
}

impl Paging {
    fn nx(&self) -> bool {
        self.efer & EFER_NXE != 0
    }

    /// Bits that must be zero in any 64-bit entry.
    fn reserved(&self) -> u64 {
        let above = ADDRESS & !((1u64 << self.physical_bits.clamp(32, 52)) - 1);
        if self.nx() { above } else { above | NO_EXECUTE }
    }

    #[cold]
    pub(crate) fn fault(&self, access: Access, protection: bool, reserved: bool) -> WalkError {
        // The fetch bit exists only where fetching can be forbidden.
        let fetch = access.fetch && (self.nx() && self.cr4 & CR4_PAE != 0 || self.cr4 & CR4_SMEP != 0);
        let bits = [protection || reserved, access.write, access.user, reserved, fetch];
        let code = bits.iter().rev().fold(0, |code, &bit| code << 1 | u32::from(bit));
        WalkError::PageFault { code }
    }

    /// The fault of an entry that is absent or has reserved bits set.
    #[cold]
    fn bad_entry(&self, entry: u64, access: Access) -> WalkError {
        let present = entry & PRESENT != 0;
        self.fault(access, present, present)
    }

    /// Checks the rights in `all` entries and-ed and `any` of them or-ed.
    #[inline]
    fn check(&self, all: u64, any: u64, access: Access) -> Result<(), WalkError> {
        let (writable, user) = (all & WRITABLE != 0, all & USER != 0);
        let refused = if access.user {
            !user || access.write && !writable
        } else {
            let smep = access.fetch && user && self.cr4 & CR4_SMEP != 0;
            let smap = !access.fetch && user && self.cr4 & CR4_SMAP != 0 && self.rflags & RFLAGS_AC == 0;
            smep || smap || access.write && !writable && self.cr0 & CR0_WP != 0
        };
        if refused || access.fetch && any & NO_EXECUTE != 0 { Err(self.fault(access, true, false)) } else { Ok(()) }
    }
}

/// Translates `linear` for `access`. `read` returns the aligned quadword at a guest-physical address, `None` where there
/// is no memory.
///
/// # Errors
/// [`WalkError`].
#[inline]
pub fn walk(
    paging: &Paging,
    linear: u64,
    access: Access,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Translation, WalkError> {
    if paging.cr0 & CR0_PG == 0 {
        let gpa = linear & 0xFFFF_FFFF;
        return Ok(Translation { gpa, left: 4096 - gpa % 4096 });
    }
    if paging.efer & EFER_LMA != 0 {
        if paging.cr4 & CR4_LA57 != 0 {
            return Err(WalkError::Unsupported);
        }
        if ((linear as i64) << 16 >> 16) as u64 != linear {
            return Err(WalkError::NonCanonical);
        }
        return levels::<4>(paging, paging.cr3 & ADDRESS, linear, access, read);
    }
    let linear = linear & 0xFFFF_FFFF;
    if paging.cr4 & CR4_PAE != 0 {
        return pae(paging, linear, access, read);
    }
    legacy(paging, linear, access, read)
}

/// The tables of 64-bit entries from level `TOP` down.
///
/// On the way only what ends the walk is tested; rights are gathered by and-ing and or-ing entries and looked at once.
#[inline]
fn levels<const TOP: u32>(
    paging: &Paging,
    mut table: u64,
    linear: u64,
    access: Access,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Translation, WalkError> {
    let reserved = paging.reserved();
    let (mut all, mut any) = (u64::MAX, 0);
    for level in (1..=TOP).rev() {
        let shift = 12 + 9 * (level - 1);
        let at = table + (linear >> shift & 511) * 8;
        let entry = read(at).ok_or(WalkError::NoMemory { gpa: at })?;
        // No large pages at level 4.
        let forbidden = if level == 4 { reserved | LARGE } else { reserved };
        if entry & (forbidden | PRESENT) != PRESENT {
            return Err(paging.bad_entry(entry, access));
        }
        (all, any) = (all & entry, any | entry);
        if level == 1 || entry & LARGE != 0 {
            let page = (1u64 << shift) - 1;
            // A large page's address bits below its size are reserved, but for PAT at bit 12.
            if level > 1 && entry & page & ADDRESS & !(1 << 12) != 0 {
                return Err(paging.bad_entry(entry, access));
            }
            paging.check(all, any, access)?;
            let offset = linear & page;
            return Ok(Translation { gpa: entry & ADDRESS & !page | offset, left: page + 1 - offset });
        }
        table = entry & ADDRESS;
    }
    // The last level is always a leaf.
    Err(WalkError::Unsupported)
}

/// PAE: four page-directory pointers without rights of their own, then two levels.
fn pae(
    paging: &Paging,
    linear: u64,
    access: Access,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Translation, WalkError> {
    let at = (paging.cr3 & 0xFFFF_FFE0) + (linear >> 30) * 8;
    let entry = read(at).ok_or(WalkError::NoMemory { gpa: at })?;
    if entry & PRESENT == 0 {
        return Err(paging.fault(access, false, false));
    }
    levels::<2>(paging, entry & ADDRESS, linear, access, read)
}

/// 32-bit paging: two levels of 32-bit entries, 4 MiB pages with PSE.
fn legacy(
    paging: &Paging,
    linear: u64,
    access: Access,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Translation, WalkError> {
    let mut read32 = |at: u64| {
        let word = read(at & !7).ok_or(WalkError::NoMemory { gpa: at })?;
        Ok(if at & 4 != 0 { word >> 32 } else { word & 0xFFFF_FFFF })
    };
    let directory = read32((paging.cr3 & 0xFFFF_F000) + (linear >> 22) * 4)?;
    if directory & PRESENT == 0 {
        return Err(paging.fault(access, false, false));
    }
    if directory & LARGE != 0 && paging.cr4 & CR4_PSE != 0 {
        // Bits 20:13 are address bits 39:32, of which the guest has only some; bit 21 is reserved.
        let high = directory >> 13 & 0xFF;
        if directory & 1 << 21 != 0 || high >> (paging.physical_bits.clamp(32, 40) - 32) != 0 {
            return Err(paging.fault(access, true, true));
        }
        paging.check(directory, 0, access)?;
        let offset = linear & 0x3F_FFFF;
        return Ok(Translation { gpa: high << 32 | directory & 0xFFC0_0000 | offset, left: 0x40_0000 - offset });
    }
    let entry = read32((directory & 0xFFFF_F000) + (linear >> 12 & 1023) * 4)?;
    if entry & PRESENT == 0 {
        return Err(paging.fault(access, false, false));
    }
    paging.check(directory & entry, 0, access)?;
    let offset = linear & 0xFFF;
    Ok(Translation { gpa: entry & 0xFFFF_F000 | offset, left: 4096 - offset })
}
