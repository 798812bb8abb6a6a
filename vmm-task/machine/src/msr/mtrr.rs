//! The memory type range registers (SDM vol. 3, 12.11).
//!
//! They change nothing here: guest memory is write-back and devices are emulated whatever they say. But guests read them
//! to learn what RAM is and check that all processors agree, so they behave as registers do.

use crate::layout;

/// Pairs of variable range registers.
pub const VARIABLE_RANGES: usize = 8;
const FIRST_VARIABLE: u32 = 0x200;
const LAST_VARIABLE: u32 = FIRST_VARIABLE + 2 * VARIABLE_RANGES as u32 - 1;
const CAP: u32 = 0xFE;
const DEFAULT: u32 = 0x2FF;
/// One register of 64 KiB ranges, two of 16 KiB, eight of 4 KiB.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26A, 0x26B, 0x26C, 0x26D, 0x26E, 0x26F];

const CAP_FIXED: u64 = 1 << 8;
const CAP_WRITE_COMBINING: u64 = 1 << 10;
const DEFAULT_VALID: u64 = 0xFF | DEFAULT_FIXED | DEFAULT_ENABLE;
const DEFAULT_FIXED: u64 = 1 << 10;
const DEFAULT_ENABLE: u64 = 1 << 11;
const MASK_VALID: u64 = 1 << 11;

const UNCACHEABLE: u8 = 0;
const WRITE_BACK: u8 = 6;

const fn is_type(kind: u8) -> bool {
    matches!(kind, 0 | 1 | 4 | 5 | 6)
}

/// The MTRRs of one virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mtrr {
    physical_bits: u8,
    default: u64,
    /// Base and mask, in turn, as the register numbers go.
    variable: [u64; 2 * VARIABLE_RANGES],
    fixed: [u64; FIXED.len()],
}

impl Mtrr {
    /// After reset: all off, everything uncacheable.
    #[must_use]
    pub fn reset(physical_bits: u8) -> Self {
        Self {
            physical_bits: physical_bits.clamp(36, 52),
            default: 0,
            variable: [0; 2 * VARIABLE_RANGES],
            fixed: [0; FIXED.len()],
        }
    }

    /// Sets them as firmware would: write-back but for the VGA window and the hole below 4 GiB. For guests that are
    /// booted without firmware; the same on all processors.
    pub fn set_like_firmware(&mut self) {
        let all = |kind: u8| u64::from_le_bytes([kind; 8]);
        self.fixed = [all(WRITE_BACK); FIXED.len()];
        // The second 16 KiB register covers A0000h to BFFFFh.
        self.fixed[2] = all(UNCACHEABLE);
        let ranges = [
            (layout::ECAM_BASE, layout::ECAM_SIZE),
            (layout::PCI_WINDOW_BASE, layout::HIGH_RAM_BASE - layout::PCI_WINDOW_BASE),
        ];
        self.variable = [0; 2 * VARIABLE_RANGES];
        for (pair, (base, size)) in self.variable.as_chunks_mut::<2>().0.iter_mut().zip(ranges) {
            let mask = !(size - 1) & ((1 << self.physical_bits) - 1) & !0xFFF;
            *pair = [base | u64::from(UNCACHEABLE), mask | MASK_VALID];
        }
        self.default = u64::from(WRITE_BACK) | DEFAULT_FIXED | DEFAULT_ENABLE;
    }

    /// The value of register `msr`, `None` if it is no MTRR.
    #[must_use]
    pub fn read(&self, msr: u32) -> Option<u64> {
        match msr {
            CAP => Some(VARIABLE_RANGES as u64 | CAP_FIXED | CAP_WRITE_COMBINING),
            DEFAULT => Some(self.default),
            FIRST_VARIABLE..=LAST_VARIABLE => self.variable.get((msr - FIRST_VARIABLE) as usize).copied(),
            _ => FIXED.iter().position(|&m| m == msr).and_then(|i| self.fixed.get(i)).copied(),
        }
    }

    /// Writes register `msr`; false (`#GP`) if it is none, is read-only, or `value` has reserved bits or types.
    pub fn write(&mut self, msr: u32, value: u64) -> bool {
        match msr {
            DEFAULT => {
                let good = value & !DEFAULT_VALID == 0 && is_type(value as u8);
                if good {
                    self.default = value;
                }
                good
            }
            FIRST_VARIABLE..=LAST_VARIABLE => self.write_variable((msr - FIRST_VARIABLE) as usize, value),
            _ => {
                let register = FIXED.iter().position(|&m| m == msr).and_then(|i| self.fixed.get_mut(i));
                let good = value.to_le_bytes().iter().all(|&kind| is_type(kind));
                match register {
                    Some(register) if good => {
                        *register = value;
                        true
                    }
                    _ => false,
                }
            }
        }
    }

    fn write_variable(&mut self, index: usize, value: u64) -> bool {
        let address = ((1u64 << self.physical_bits) - 1) & !0xFFF;
        let good = if index.is_multiple_of(2) {
            value & !(address | 0xFF) == 0 && is_type(value as u8)
        } else {
            value & !(address | MASK_VALID) == 0
        };
        match self.variable.get_mut(index) {
            Some(register) if good => {
                *register = value;
                true
            }
            _ => false,
        }
    }

    /// The memory type of `address`, by the rules of overlap (SDM vol. 3, 12.11.4.1). What a guest computes.
    #[must_use]
    pub fn memory_type(&self, address: u64) -> u8 {
        if self.default & DEFAULT_ENABLE == 0 {
            return UNCACHEABLE;
        }
        if address < layout::ONE_MIB && self.default & DEFAULT_FIXED != 0 {
            let (register, size) = match address {
                0..0x8_0000 => (0, 0x1_0000),
                0x8_0000..0xC_0000 => (1 + ((address - 0x8_0000) >> 17) as usize, 0x4000),
                _ => (3 + ((address - 0xC_0000) >> 15) as usize, 0x1000),
            };
            let byte = (address / size % 8) as u32;
            return self.fixed.get(register).map_or(UNCACHEABLE, |f| (f >> (8 * byte)) as u8);
        }
        let mut found: Option<u8> = None;
        for [base, mask] in self.variable.as_chunks::<2>().0 {
            let mask_bits = mask & !0xFFF;
            if mask & MASK_VALID != 0 && address & mask_bits == base & mask_bits & !0xFFF {
                let kind = *base as u8;
                found = Some(match found {
                    None => kind,
                    Some(other) if other == kind => kind,
                    // Uncacheable wins; write-through beats write-back; the rest is undefined, and safest uncached.
                    Some(4 | WRITE_BACK) if matches!(kind, 4 | WRITE_BACK) => 4,
                    Some(_) => UNCACHEABLE,
                });
            }
        }
        found.unwrap_or(self.default as u8)
    }
}
