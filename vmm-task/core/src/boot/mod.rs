//! From an image to the first instruction: the registers on the state page.

use crate::state::{StatePage, field};
use alloc::vec::Vec;
use moira_abi::vcpu::{self, group, seg};
use vmm_machine::boot::{self, InitialState};
pub use vmm_machine::boot::{BootError, Found, Guest, Module, load};

/// The files of an archive of modules ("newc" cpio); their names are their command lines.
#[must_use]
pub fn modules(archive: &[u8]) -> Vec<Module<'_>> {
    let files = cpio_reader::iter_files(archive);
    files.map(|file| Module { bytes: file.file(), cmdline: file.name().trim_end_matches('\0').as_bytes() }).collect()
}

/// PAT after reset (SDM 12.12.4).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// Fills the state page for a processor that starts in `initial`; answers the groups to load.
#[must_use]
pub fn fill(page: &StatePage<'_>, initial: &InitialState) -> u64 {
    page.set_gprs(&initial.gprs);
    for (word, value) in [
        (field::RIP, initial.rip),
        (field::RFLAGS, initial.rflags),
        (field::INTERRUPTIBILITY, 0),
        (field::INJECT, 0),
        (field::INJECT_LENGTH, 0),
        (field::REQUEST, 0),
        (field::CR0, initial.cr0),
        (field::CR2, 0),
        (field::CR3, initial.cr3),
        (field::CR4, initial.cr4),
        (field::EFER, initial.efer),
        (field::CPL, 0),
        (field::STAR, 0),
        (field::LSTAR, 0),
        (field::CSTAR, 0),
        (field::SFMASK, 0),
        (field::KERNEL_GS_BASE, 0),
        (field::SYSENTER_CS, 0),
        (field::SYSENTER_ESP, 0),
        (field::SYSENTER_EIP, 0),
        (field::PAT, PAT_RESET),
        (field::DR, 0),
        (field::DR.plus(1), 0),
        (field::DR.plus(2), 0),
        (field::DR.plus(3), 0),
        (field::DR6, 0xffff_0ff0),
        (field::DR7, 0x400),
        (field::TSC_OFFSET, 0),
        (field::TSC_AUX, 0),
        (field::XCR0, 1),
        (field::SPEC_CTRL, 0),
    ] {
        page.set(word, value);
    }
    for (index, segment) in [
        (seg::ES, &initial.es),
        (seg::CS, &initial.cs),
        (seg::SS, &initial.ss),
        (seg::DS, &initial.ds),
        (seg::FS, &initial.fs),
        (seg::GS, &initial.gs),
        (seg::LDTR, &initial.ldtr),
        (seg::TR, &initial.tr),
    ] {
        page.set_segment(index, &convert(segment));
    }
    page.set_table(field::GDTR, initial.gdtr.base, initial.gdtr.limit.into());
    page.set_table(field::IDTR, initial.idtr.base, initial.idtr.limit.into());
    group::ALL & !group::PDPTE
}

fn convert(segment: &boot::Segment) -> vcpu::Segment {
    vcpu::Segment {
        selector: segment.selector,
        rights: segment.access.into(),
        limit: segment.limit,
        base: segment.base,
        ..vcpu::Segment::default()
    }
}
