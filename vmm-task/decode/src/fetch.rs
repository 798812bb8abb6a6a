//! Fetching the bytes of an instruction that the processor has just executed.
//!
//! The processor translated the address and checked every right on the way, so nothing of that is repeated: only
//! where the page lies is looked up. If another processor has changed the tables since, what is found is still the
//! guest's own memory, and the decoder is told what to expect; at worst the guest is run again.

use crate::walk::{ADDRESS, CR0_PG, CR4_LA57, CR4_PAE, CR4_PSE, EFER_LMA, LARGE, PRESENT};
use crate::{Access, Expected, Mode, Paging, Translation, WalkError, exit_length, mmio::DecodeError};

/// Bytes of an instruction, as far as they can be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fetched {
    bytes: [u8; 16],
    len: u8,
}

impl Fetched {
    /// The bytes: 15, or fewer where the next page cannot be read.
    #[must_use]
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

/// Longest instruction.
const MAX_LEN: u64 = 15;
const FETCH: Access = Access { write: false, user: false, fetch: true };

#[cold]
fn absent(paging: &Paging) -> WalkError {
    paging.fault(FETCH, false, false)
}

/// Where `linear` lies, without looking at rights or reserved bits.
#[inline]
fn locate(paging: &Paging, linear: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<Translation, WalkError> {
    if paging.efer & EFER_LMA != 0 && paging.cr0 & CR0_PG != 0 {
        if paging.cr4 & CR4_LA57 != 0 {
            return Err(WalkError::Unsupported);
        }
        return descend::<4>(paging, paging.cr3 & ADDRESS, linear, read);
    }
    locate32(paging, linear & 0xFFFF_FFFF, read)
}

/// Outside long mode.
#[inline(never)]
fn locate32(paging: &Paging, linear: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<Translation, WalkError> {
    if paging.cr0 & CR0_PG == 0 {
        return Ok(Translation { gpa: linear, left: 4096 - linear % 4096 });
    }
    if paging.cr4 & CR4_PAE != 0 {
        let at = (paging.cr3 & 0xFFFF_FFE0) + (linear >> 30) * 8;
        let entry = read(at).ok_or(WalkError::NoMemory { gpa: at })?;
        return if entry & PRESENT == 0 {
            Err(absent(paging))
        } else {
            descend::<2>(paging, entry & ADDRESS, linear, read)
        };
    }
    let mut entry32 = |at: u64| {
        let word = read(at & !7).ok_or(WalkError::NoMemory { gpa: at })?;
        let entry = word >> (8 * (at & 4)) & 0xFFFF_FFFF;
        if entry & PRESENT == 0 { Err(absent(paging)) } else { Ok(entry) }
    };
    let directory = entry32((paging.cr3 & 0xFFFF_F000) + (linear >> 22) * 4)?;
    if directory & LARGE != 0 && paging.cr4 & CR4_PSE != 0 {
        let offset = linear & 0x3F_FFFF;
        let high = directory >> 13 & 0xFF;
        return Ok(Translation { gpa: high << 32 | directory & 0xFFC0_0000 | offset, left: 0x40_0000 - offset });
    }
    let entry = entry32((directory & 0xFFFF_F000) + (linear >> 12 & 1023) * 4)?;
    let offset = linear & 0xFFF;
    Ok(Translation { gpa: entry & 0xFFFF_F000 | offset, left: 4096 - offset })
}

#[inline(always)]
fn descend<const TOP: u32>(
    paging: &Paging,
    mut table: u64,
    linear: u64,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<Translation, WalkError> {
    for level in (1..=TOP).rev() {
        let shift = 12 + 9 * (level - 1);
        let at = table + (linear >> shift & 511) * 8;
        let Some(entry) = read(at) else { return Err(WalkError::NoMemory { gpa: at }) };
        if entry & PRESENT == 0 {
            return Err(absent(paging));
        }
        if level == 1 || entry & LARGE != 0 {
            let page = (1u64 << shift) - 1;
            let offset = linear & page;
            return Ok(Translation { gpa: entry & ADDRESS & !page | offset, left: page + 1 - offset });
        }
        table = entry & ADDRESS;
    }
    Err(WalkError::Unsupported)
}

/// Fetches up to 15 bytes at the linear address `rip` (CS base added already, if the mode has one), where the
/// processor has just executed an instruction. `read` is as for [`crate::walk()`].
///
/// The second page is only looked at if the instruction could reach it, and what cannot be fetched there is left out:
/// most instructions end before.
///
/// # Errors
/// [`WalkError`] for the first page: the tables have changed since; run the guest again.
#[inline]
pub fn fetch(paging: &Paging, rip: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Result<Fetched, WalkError> {
    let first = locate(paging, rip, read)?;
    let here = first.left.min(MAX_LEN);
    let bytes = window(first.gpa, here, read).ok_or(WalkError::NoMemory { gpa: first.gpa })?;
    if here == MAX_LEN {
        return Ok(Fetched { bytes: bytes.to_le_bytes(), len: MAX_LEN as u8 });
    }
    Ok(fetch_rest(paging, rip, bytes, here, read))
}

/// The bytes on the second page.
#[inline(never)]
fn fetch_rest(paging: &Paging, rip: u64, bytes: u128, here: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Fetched {
    let next = rip.wrapping_add(here);
    let rest = locate(paging, next, read).ok().and_then(|second| window(second.gpa, MAX_LEN - here, read));
    // Bytes that are not there end the instruction early, no more.
    match rest {
        Some(rest) => Fetched { bytes: (bytes | rest << (8 * here)).to_le_bytes(), len: MAX_LEN as u8 },
        None => Fetched { bytes: bytes.to_le_bytes(), len: here as u8 },
    }
}

/// The `count` bytes (1 to 15) at `gpa`, which do not cross a page, as a number; zeros above.
#[inline]
fn window(gpa: u64, count: u64, read: &mut impl FnMut(u64) -> Option<u64>) -> Option<u128> {
    let (base, skip) = (gpa & !7, gpa & 7);
    let mut bytes = u128::from(read(base)?) >> (8 * skip);
    if skip + count > 8 {
        bytes |= u128::from(read(base + 8)?) << (64 - 8 * skip);
    }
    if skip + count > 16 {
        bytes |= u128::from(read(base + 16)?) << (128 - 8 * skip);
    }
    Some(bytes & ((1 << (8 * count)) - 1))
}

/// Why an instruction's length is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LengthError {
    /// The bytes cannot be fetched.
    Walk(WalkError),
    /// They are not what the exit was for.
    Decode(DecodeError),
}

/// Length of the instruction at the linear address `rip` that exited as `expected`: [`fetch`] and [`exit_length`] in
/// one, with a short cut for encodings without prefixes.
///
/// # Errors
/// [`LengthError`]: the guest has changed the instruction or its tables since. Run it again.
#[inline]
pub fn length_at(
    paging: &Paging,
    rip: u64,
    mode: Mode,
    expected: Expected,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<u8, LengthError> {
    if let Some((pattern, len)) = expected.pattern()
        && let Ok(place) = locate(paging, rip, read)
        && let skip = place.gpa & 7
        && skip + u64::from(len) <= 8
        && let Some(word) = read(place.gpa & !7)
        && word >> (8 * skip) & ((1 << (8 * len)) - 1) == pattern
    {
        return Ok(len);
    }
    length_slowly(paging, rip, mode, expected, read)
}

#[inline(never)]
fn length_slowly(
    paging: &Paging,
    rip: u64,
    mode: Mode,
    expected: Expected,
    read: &mut impl FnMut(u64) -> Option<u64>,
) -> Result<u8, LengthError> {
    let fetched = fetch(paging, rip, read).map_err(LengthError::Walk)?;
    exit_length(fetched.bytes(), mode, expected).map_err(LengthError::Decode)
}
