//! Guests: a vCPU with its state page, its space and its memory, and a state that can be entered.

use crate::{
    Lab,
    lab::one,
    raw::{store, stored},
};
use core::mem::offset_of;
use moira_abi::vcpu::{VcpuState, seg};
use moira_sys::{Cpu, Error, Frame, FrameSize, GuestSpace, MapFlags, Rights, Slot, Space, Untyped, Vcpu};

/// A guest, and where the laboratory sees what belongs to it.
#[derive(Clone, Copy, Debug)]
pub struct Guest {
    /// Its vCPU.
    pub vcpu: Vcpu,
    /// Its space.
    pub space: GuestSpace,
    /// Its state page.
    pub state: Frame,
    /// Address of the state page.
    pub page: u64,
    /// Address of its memory, which it has at 0.
    pub memory: u64,
}

/// What [`Guest::furnish`] puts where: tables of long mode, in pages of 2 MiB for the first GiB of guest-linear addresses.
pub const TABLES: u64 = 0x1000;
/// Null, code and data of 64, 32 and 16 bits for both levels, a TSS at 40h.
pub const GDT: u64 = 0x4000;
/// A page for gates, left empty.
pub const IDT: u64 = 0x5000;
/// The TSS, with a map of ports; below [`STACK`] it may be used as a stack.
pub const TSS: u64 = 0x6000;
/// Where a stack begins.
pub const STACK: u64 = 0x7f00;
/// From here on all is free.
pub const CODE: u64 = 0x8000;

/// Modes that a state can be of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Real mode.
    Real,
    /// Protected mode without paging.
    Protected,
    /// 64-bit code.
    Long,
}

impl Lab {
    /// A guest with so many pages of memory, made from `from`, whose vCPU lives on `cpu` (slot [`Slot::NONE`]: here).
    ///
    /// # Errors
    /// Of retype, map and configure.
    pub fn guest(&mut self, from: Untyped, pages: u32, cpu: Cpu) -> Result<Guest, Error> {
        let s = self.slots(4);
        let vcpu = one(from.retype_vcpus(1, s)?)?;
        let space = from.retype_guest_space(s.plus(1))?;
        space.add_memory(one(from.retype_untypeds(15, 1, s.plus(2))?)?)?;
        let state = one(from.retype_frames(FrameSize::Small, 1, s.plus(3))?)?;
        vcpu.configure(state, space, cpu)?;
        let page = self.address(1);
        Lab::SPACE.map(state, page, MapFlags::READ_WRITE)?;
        let memory = self.address(u64::from(pages));
        let s = self.slots(pages * 2);
        for index in 0..pages {
            let (at, slot) = (u64::from(index) * 4096, s.plus(index * 2));
            let frame = one(from.retype_frames(FrameSize::Small, 1, slot)?)?;
            let copy = Lab::TABLE.copy(frame, slot.plus(1), Rights::ALL)?;
            Lab::SPACE.map(frame, memory + at, MapFlags::READ_WRITE)?;
            space.map(copy, at, MapFlags::GUEST_ALL)?;
        }
        Ok(Guest { vcpu, space, state, page, memory })
    }

    /// A guest of this processor.
    ///
    /// # Errors
    /// Of [`Lab::guest`].
    pub fn guest_here(&mut self, from: Untyped, pages: u32) -> Result<Guest, Error> {
        self.guest(from, pages, Cpu::new(Slot::NONE))
    }
}

impl Guest {
    /// The word of the state page at this offset.
    #[must_use]
    pub fn get(&self, offset: usize) -> u64 {
        stored(self.page + offset as u64)
    }

    /// Writes the word of the state page at this offset.
    pub fn set(&self, offset: usize, value: u64) {
        store(self.page + offset as u64, value);
    }

    /// Tables and descriptors in its memory.
    pub fn furnish(&self) {
        furnish(self.memory);
    }

    /// Sets its state page, all groups: in one mode, at `rip`, interrupts off.
    pub fn basis(&self, rip: u64, mode: Mode) {
        basis(self.page, rip, mode);
    }
}

/// [`Guest::furnish`] of memory that is seen at `base`.
pub fn furnish(base: u64) {
    store(base + TABLES, TABLES + 0x1007);
    store(base + TABLES + 0x1000, TABLES + 0x2007);
    for page in 0..512 {
        store(base + TABLES + 0x2000 + page * 8, page << 21 | 0x87);
    }
    let descriptors = [
        0,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00af_fb00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_9b00_0000_ffff,
        0x0000_9300_0000_ffff,
        0x0000_8900_0000_2067 | (TSS & 0xffff) << 16,
        0,
    ];
    for (index, descriptor) in descriptors.into_iter().enumerate() {
        store(base + GDT + index as u64 * 8, descriptor);
    }
}

fn segment(page: u64, index: usize, selector: u64, rights: u64, limit: u64) {
    let place = page + offset_of!(VcpuState, segment) as u64 + index as u64 * 24;
    store(place, selector | rights << 32);
    store(place + 8, limit);
    store(place + 16, if index == seg::TR { TSS } else { 0 });
}

macro_rules! set {
    ($page:expr, $($field:ident = $value:expr),+ $(,)?) => { $(store($page + offset_of!(VcpuState, $field) as u64, $value);)+ };
}

/// [`Guest::basis`] of a state page that is seen at `page`.
pub fn basis(page: u64, rip: u64, mode: Mode) {
    let (cr0, cr4, efer, code, data, limit) = match mode {
        Mode::Real => (0x10, 0, 0, 0x9b, 0x93, 0xffff),
        Mode::Protected => (0x11, 0, 0, 0xc09b, 0xc093, 0xffff_ffff),
        Mode::Long => (0x8000_0011, 0x20, 0x500, 0xa09b, 0xc093, 0xffff_ffff),
    };
    set!(page, rip = rip, rflags = 2, interruptibility = 0, inject = 0, inject_length = 0, request = 0);
    set!(page, cr0 = cr0, cr2 = 0, cr3 = TABLES, cr4 = cr4, efer = efer, cpl = 0);
    set!(page, star = 0, lstar = CODE, cstar = 0, sfmask = 0, kernel_gs_base = 0);
    set!(page, sysenter_cs = 8, sysenter_esp = 0x7000, sysenter_eip = CODE, pat = 0x0007_0406_0007_0406);
    set!(page, dr6 = 0xffff_0ff0, dr7 = 0x400, exceptions = 0, tsc_offset = 0, tsc_aux = 0, xcr0 = 1, spec_ctrl = 0);
    for index in 0..4 {
        store(page + offset_of!(VcpuState, dr) as u64 + index * 8, CODE + index * 0x100);
        store(page + offset_of!(VcpuState, pdpte) as u64 + index * 8, 0);
    }
    let table = |offset: usize, base: u64, limit: u64| {
        store(page + offset as u64, base);
        store(page + offset as u64 + 8, limit);
    };
    table(offset_of!(VcpuState, gdtr), GDT, 0x4f);
    table(offset_of!(VcpuState, idtr), IDT, if mode == Mode::Long { 0xfff } else { 0x7ff });
    for index in [seg::ES, seg::SS, seg::DS, seg::FS, seg::GS] {
        segment(page, index, if mode == Mode::Real { 0 } else { 0x10 }, data, limit);
    }
    segment(page, seg::CS, [0, 0x18, 8][mode as usize], code, limit);
    segment(page, seg::LDTR, 0, 0x1_0082, 0xffff);
    segment(page, seg::TR, 0x40, 0x8b, 0x2067);
}
