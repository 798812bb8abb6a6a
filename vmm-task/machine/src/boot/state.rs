//! Processor state a guest starts with, in no vendor's format.

/// A segment register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Access rights as in bits 55:40 of a descriptor with bits 11:8 zero: type 3:0, S 4, DPL 6:5, P 7, AVL 12, L 13,
    /// D/B 14, G 15 (SDM vol. 3, 25.4.1). A VMCB wants bits 15:12 moved down to 11:8.
    pub access: u16,
}

impl Segment {
    /// 64-bit code.
    pub const fn code64(selector: u16) -> Self {
        Self { selector, base: 0, limit: 0xFFFF_FFFF, access: 0xA09B }
    }
    /// Flat 32-bit code.
    pub const fn code32(selector: u16) -> Self {
        Self { selector, base: 0, limit: 0xFFFF_FFFF, access: 0xC09B }
    }
    /// Flat data.
    pub const fn data(selector: u16) -> Self {
        Self { selector, base: 0, limit: 0xFFFF_FFFF, access: 0xC093 }
    }
    /// Real-mode code, base 16 times the selector.
    pub const fn real_code(selector: u16) -> Self {
        Self { selector, base: (selector as u64) << 4, limit: 0xFFFF, access: 0x009B }
    }
    /// Real-mode data.
    pub const fn real_data() -> Self {
        Self { selector: 0, base: 0, limit: 0xFFFF, access: 0x0093 }
    }
    /// A busy task state segment at 0. VM entry wants TR usable and busy, whatever the guest means to do with it.
    pub const fn tss(limit: u32) -> Self {
        Self { selector: 0, base: 0, limit, access: 0x008B }
    }
    /// An empty local descriptor table.
    pub const fn ldt() -> Self {
        Self { selector: 0, base: 0, limit: 0xFFFF, access: 0x0082 }
    }
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableRegister {
    /// Linear address.
    pub base: u64,
    /// Limit.
    pub limit: u16,
}

/// Everything a processor starts with that its reset state does not settle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InitialState {
    /// General registers in hardware order: rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15.
    pub gprs: [u64; 16],
    /// Instruction pointer, relative to CS.
    pub rip: u64,
    /// Flags; bit 1 is always set.
    pub rflags: u64,
    /// Control register 0.
    pub cr0: u64,
    /// Control register 3.
    pub cr3: u64,
    /// Control register 4.
    pub cr4: u64,
    /// Extended feature enable register.
    pub efer: u64,
    /// Code segment.
    pub cs: Segment,
    /// Data segment.
    pub ds: Segment,
    /// Extra segment.
    pub es: Segment,
    /// F segment.
    pub fs: Segment,
    /// G segment.
    pub gs: Segment,
    /// Stack segment.
    pub ss: Segment,
    /// Task register.
    pub tr: Segment,
    /// Local descriptor table register.
    pub ldtr: Segment,
    /// Global descriptor table register.
    pub gdtr: TableRegister,
    /// Interrupt descriptor table register.
    pub idtr: TableRegister,
}

/// Index of RAX in [`InitialState::gprs`].
pub const RAX: usize = 0;
/// Index of RBX.
pub const RBX: usize = 3;
/// Index of RDX.
pub const RDX: usize = 2;
/// Index of RSP.
pub const RSP: usize = 4;
/// Index of RSI.
pub const RSI: usize = 6;
/// Index of RDI.
pub const RDI: usize = 7;

pub(crate) const CR0_PE: u64 = 1;
pub(crate) const CR0_ET: u64 = 1 << 4;
pub(crate) const CR0_NE: u64 = 1 << 5;
pub(crate) const CR0_PG: u64 = 1 << 31;
pub(crate) const CR4_PAE: u64 = 1 << 5;
pub(crate) const EFER_LME_LMA: u64 = (1 << 8) | (1 << 10);
const RFLAGS_FIXED: u64 = 2;

impl InitialState {
    fn real_mode(cs: Segment, rip: u64) -> Self {
        let data = Segment::real_data();
        Self {
            gprs: [0; 16],
            rip,
            rflags: RFLAGS_FIXED,
            // CD and NW, as after reset (SDM vol. 3, table 10-1).
            cr0: 0x6000_0010,
            cr3: 0,
            cr4: 0,
            efer: 0,
            cs,
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment::tss(0xFFFF),
            ldtr: Segment::ldt(),
            gdtr: TableRegister { base: 0, limit: 0xFFFF },
            idtr: TableRegister { base: 0, limit: 0xFFFF },
        }
    }

    /// A processor after reset, about to fetch at FFFFFFF0h. `signature` is leaf 1 EAX, which reset leaves in EDX.
    #[must_use]
    pub fn reset(signature: u32) -> Self {
        let cs = Segment { selector: 0xF000, base: 0xFFFF_0000, limit: 0xFFFF, access: 0x009B };
        let mut state = Self::real_mode(cs, 0xFFF0);
        state.gprs[RDX] = u64::from(signature);
        state
    }

    /// A processor that a start-up IPI with `vector` has released: real mode at `vector` pages.
    #[must_use]
    pub fn startup(vector: u8, signature: u32) -> Self {
        let mut state = Self::real_mode(Segment::real_code(u16::from(vector) << 8), 0);
        state.gprs[RDX] = u64::from(signature);
        state
    }

    /// Flat 32-bit protected mode without paging at `eip`, interrupts off.
    #[must_use]
    pub(crate) fn flat32(eip: u32) -> Self {
        let data = Segment::data(gdt::DATA);
        Self {
            rip: u64::from(eip),
            cr0: CR0_PE | CR0_ET,
            cs: Segment::code32(gdt::CODE32),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            tr: Segment::tss(0x67),
            gdtr: gdt::REGISTER,
            idtr: TableRegister { base: 0, limit: 0 },
            ..Self::real_mode(data, 0)
        }
    }

    /// As [`Self::flat32`], with code at the selector that Linux' 32-bit boot protocol wants.
    #[must_use]
    pub(crate) fn linux32(eip: u32) -> Self {
        Self { cs: Segment::code32(gdt::CODE64), ..Self::flat32(eip) }
    }

    /// 64-bit mode at `rip` with the page tables at `cr3`, interrupts off.
    #[must_use]
    pub(crate) fn long(rip: u64, cr3: u64) -> Self {
        Self {
            rip,
            cr0: CR0_PE | CR0_ET | CR0_NE | CR0_PG,
            cr3,
            cr4: CR4_PAE,
            efer: EFER_LME_LMA,
            cs: Segment::code64(gdt::CODE64),
            ..Self::flat32(0)
        }
    }
}

/// The GDT that loaders write at [`crate::layout::BOOT_GDT`].
pub(crate) mod gdt {
    use super::TableRegister;
    use crate::{GuestRam, OutOfRange, layout};

    /// 32-bit code.
    pub const CODE32: u16 = 0x08;
    /// 64-bit code: Linux's `__BOOT_CS`.
    pub const CODE64: u16 = 0x10;
    /// Data: Linux's `__BOOT_DS`.
    pub const DATA: u16 = 0x18;

    const CODE32_ENTRY: u64 = 0x00CF_9B00_0000_FFFF;
    const CODE64_ENTRY: u64 = 0x00AF_9B00_0000_FFFF;
    const DATA_ENTRY: u64 = 0x00CF_9300_0000_FFFF;

    /// What GDTR holds.
    pub const REGISTER: TableRegister = TableRegister { base: layout::BOOT_GDT, limit: 4 * 8 - 1 };

    /// Writes the table.
    pub fn write(ram: &mut dyn GuestRam) -> Result<(), OutOfRange> {
        write_entries(ram, [0, CODE32_ENTRY, CODE64_ENTRY, DATA_ENTRY])
    }

    /// Writes the table for Linux' 32-bit protocol: 32-bit code at both selectors.
    pub fn write_linux32(ram: &mut dyn GuestRam) -> Result<(), OutOfRange> {
        write_entries(ram, [0, CODE32_ENTRY, CODE32_ENTRY, DATA_ENTRY])
    }

    fn write_entries(ram: &mut dyn GuestRam, entries: [u64; 4]) -> Result<(), OutOfRange> {
        for (i, entry) in entries.iter().enumerate() {
            ram.write(layout::BOOT_GDT + 8 * i as u64, &entry.to_le_bytes())?;
        }
        Ok(())
    }
}
