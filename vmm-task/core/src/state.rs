//! The state page as the monitor sees it.
//!
//! The kernel writes the page during `run` and reads it at the next one, both on the monitor's own processor, so relaxed
//! accesses of single words are all that is needed.

use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_abi::vcpu::{Segment, VcpuState};

/// Words of the page.
pub const WORDS: usize = 512;

/// A word of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field(usize);

impl Field {
    const fn at(offset: usize) -> Field {
        Field(offset / 8)
    }

    /// The word `index` further on, for arrays.
    #[must_use]
    pub const fn plus(self, index: usize) -> Field {
        Field(self.0 + index)
    }
}

macro_rules! fields {
    ($($(#[$doc:meta])* $name:ident = $field:ident;)*) => {
        $($(#[$doc])* pub const $name: Field = Field::at(offset_of!(VcpuState, $field));)*
    };
}

/// The page's words; their meaning stands at [`VcpuState`].
pub mod field {
    #![allow(missing_docs)]
    use super::*;
    fields! {
        GPR = gpr; RIP = rip; RFLAGS = rflags; REASON = reason; QUALIFICATION = qualification; ADDRESS = address;
        LENGTH = length; FETCHED = fetched; FETCHED_COUNT = fetched_count; DELIVERING = delivering; CODE_ROOT = code_root;
        ERROR_CODE = error_code; INTERRUPTIBILITY = interruptibility; INJECT = inject; INJECT_LENGTH = inject_length;
        REQUEST = request; CR0 = cr0; CR2 = cr2; CR3 = cr3; CR4 = cr4; EFER = efer; CPL = cpl; SEGMENT = segment;
        GDTR = gdtr; IDTR = idtr; STAR = star; LSTAR = lstar; CSTAR = cstar; SFMASK = sfmask;
        KERNEL_GS_BASE = kernel_gs_base; SYSENTER_CS = sysenter_cs; SYSENTER_ESP = sysenter_esp;
        SYSENTER_EIP = sysenter_eip; PAT = pat; DR = dr; DR6 = dr6; DR7 = dr7; EXCEPTIONS = exceptions; TSC_OFFSET = tsc_offset;
        TSC_AUX = tsc_aux; XCR0 = xcr0; SPEC_CTRL = spec_ctrl; PDPTE = pdpte;
    }
}

/// General registers by their number in instructions.
pub mod gpr {
    /// RAX.
    pub const RAX: usize = 0;
    /// RCX.
    pub const RCX: usize = 1;
    /// RDX.
    pub const RDX: usize = 2;
    /// RBX.
    pub const RBX: usize = 3;
    /// RSP.
    pub const RSP: usize = 4;
}

const SEGMENT_WORDS: usize = size_of::<Segment>() / 8;

/// The state page of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct StatePage<'a>(&'a [AtomicU64; WORDS]);

impl<'a> StatePage<'a> {
    /// The page made of these words; `None` unless there are [`WORDS`] of them.
    #[must_use]
    pub fn new(words: &'a [AtomicU64]) -> Option<StatePage<'a>> {
        words.try_into().ok().map(StatePage)
    }

    /// Reads a word.
    #[must_use]
    #[inline(always)]
    pub fn get(&self, field: Field) -> u64 {
        self.0[field.0 % WORDS].load(Relaxed)
    }

    /// Writes a word.
    #[inline(always)]
    pub fn set(&self, field: Field, value: u64) {
        self.0[field.0 % WORDS].store(value, Relaxed);
    }

    /// A general register; only the low four bits of `index` count.
    #[must_use]
    #[inline(always)]
    pub fn gpr(&self, index: usize) -> u64 {
        self.get(field::GPR.plus(index & 15))
    }

    /// Sets a general register.
    #[inline(always)]
    pub fn set_gpr(&self, index: usize, value: u64) {
        self.set(field::GPR.plus(index & 15), value);
    }

    /// All general registers.
    #[must_use]
    #[inline]
    pub fn gprs(&self) -> [u64; 16] {
        core::array::from_fn(|index| self.gpr(index))
    }

    /// Sets all general registers.
    #[inline]
    pub fn set_gprs(&self, values: &[u64; 16]) {
        for (index, value) in values.iter().enumerate() {
            self.set_gpr(index, *value);
        }
    }

    /// A segment register, by [`moira_abi::vcpu::seg`].
    #[must_use]
    pub fn segment(&self, index: usize) -> Segment {
        let first = field::SEGMENT.plus(SEGMENT_WORDS * (index & 7));
        let (low, limit) = (self.get(first), self.get(first.plus(1)));
        Segment {
            selector: low as u16,
            rights: (low >> 32) as u32,
            limit: limit as u32,
            base: self.get(first.plus(2)),
            ..Segment::default()
        }
    }

    /// Base of a segment register.
    #[must_use]
    #[inline(always)]
    pub fn segment_base(&self, index: usize) -> u64 {
        self.get(field::SEGMENT.plus(SEGMENT_WORDS * (index & 7) + 2))
    }

    /// Sets the base of a segment register.
    pub fn set_segment_base(&self, index: usize, base: u64) {
        self.set(field::SEGMENT.plus(SEGMENT_WORDS * (index & 7) + 2), base);
    }

    /// Access rights of a segment register.
    #[must_use]
    #[inline(always)]
    pub fn segment_rights(&self, index: usize) -> u32 {
        (self.get(field::SEGMENT.plus(SEGMENT_WORDS * (index & 7))) >> 32) as u32
    }

    /// Sets a segment register.
    pub fn set_segment(&self, index: usize, value: &Segment) {
        let first = field::SEGMENT.plus(SEGMENT_WORDS * (index & 7));
        self.set(first, u64::from(value.selector) | u64::from(value.rights) << 32);
        self.set(first.plus(1), u64::from(value.limit));
        self.set(first.plus(2), value.base);
    }

    /// GDTR or IDTR: base and limit.
    #[must_use]
    pub fn table(&self, field: Field) -> (u64, u64) {
        (self.get(field), self.get(field.plus(1)))
    }

    /// Sets GDTR or IDTR.
    pub fn set_table(&self, field: Field, base: u64, limit: u64) {
        self.set(field, base);
        self.set(field.plus(1), limit);
    }
}
