//! Leaf 0Dh, computed from the XCR0 bits a guest may set (SDM vol. 1, 13.2).

use super::Leaf;

/// Legacy region and XSAVE header.
const HEADER_END: u32 = 576;
/// Components 2 to 62 have a leaf; those above 18 are not known to anyone yet.
const COMPONENTS: usize = 19;
/// x87 and SSE, which live in the legacy region.
const LEGACY: u64 = 0b11;
/// AVX.
pub const AVX: u64 = 1 << 2;
/// Opmask, upper halves, high registers: only together.
pub const AVX512: u64 = 0b111 << 5;
/// MPX bounds (hidden), PKRU (hidden) and the like are never in here.
const SUPPORTED: u64 = LEGACY | AVX | AVX512;

/// Where each allowed component lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Areas {
    allowed: u64,
    /// (size, offset in the standard form, aligned to 64 in the compacted form)
    components: [(u32, u32, bool); COMPONENTS],
}

impl Areas {
    /// What of `xcr0` is usable: nothing at all without x87, which XCR0 cannot lack, and sensible combinations only.
    pub fn new(xcr0: u64, host: &dyn Fn(u32, u32) -> Leaf) -> Self {
        let host_xcr0 = {
            let l = host(0xD, 0);
            u64::from(l.eax) | u64::from(l.edx) << 32
        };
        let mut allowed = xcr0 & host_xcr0 & SUPPORTED;
        if allowed & LEGACY != LEGACY {
            allowed &= 1;
        }
        if allowed & AVX == 0 || allowed & AVX512 != AVX512 {
            allowed &= !AVX512;
        }
        let mut components = [(0, 0, false); COMPONENTS];
        for (i, component) in components.iter_mut().enumerate().skip(2) {
            if allowed >> i & 1 == 1 {
                let leaf = host(0xD, i as u32);
                *component = (leaf.eax, leaf.ebx, leaf.ecx & 0b10 != 0);
            }
        }
        Self { allowed, components }
    }

    /// The XCR0 bits a guest may set.
    pub fn allowed(&self) -> u64 {
        self.allowed
    }

    /// Bytes of an XSAVE area in the standard form that holds the components in `xcr0`.
    fn standard_size(&self, xcr0: u64) -> u32 {
        self.in_use(xcr0).map(|(size, offset, _)| offset.saturating_add(size)).fold(HEADER_END, u32::max)
    }

    /// The same in the compacted form.
    fn compacted_size(&self, xcr0: u64) -> u32 {
        self.in_use(xcr0).fold(HEADER_END, |end, (size, _, aligned)| {
            let at = if aligned { end.checked_next_multiple_of(64).unwrap_or(end) } else { end };
            at.saturating_add(size)
        })
    }

    fn in_use(&self, xcr0: u64) -> impl Iterator<Item = (u32, u32, bool)> {
        let used = xcr0 & self.allowed;
        self.components.iter().copied().enumerate().filter(move |(i, _)| used >> i & 1 == 1).map(|(_, c)| c)
    }

    /// The subleaves of 0Dh; sizes for the XCR0 in force are put in at each answer.
    pub fn leaves(&self, host: &dyn Fn(u32, u32) -> Leaf, features: u32) -> [Leaf; COMPONENTS] {
        let mut out = [Leaf::default(); COMPONENTS];
        if self.allowed == 0 {
            return out;
        }
        out[0] =
            Leaf::new(self.allowed as u32, HEADER_END, self.standard_size(self.allowed), (self.allowed >> 32) as u32);
        out[1] = Leaf::new(host(0xD, 1).eax & features, 0, 0, 0);
        for (leaf, &(size, offset, aligned)) in out.iter_mut().zip(&self.components).skip(2) {
            *leaf = Leaf::new(size, offset, if size > 0 && aligned { 0b10 } else { 0 }, 0);
        }
        out
    }

    /// Puts the sizes for the XCR0 in force into subleaf 0 (standard) or 1 (compacted).
    pub fn set_current_size(&self, answer: &mut Leaf, subleaf: u32, xcr0: u64) {
        match subleaf {
            0 if self.allowed != 0 => answer.ebx = self.standard_size(xcr0),
            // Meaningful with XSAVEC alone too.
            1 if answer.eax & 0b10 != 0 => answer.ebx = self.compacted_size(xcr0),
            _ => {}
        }
    }
}
