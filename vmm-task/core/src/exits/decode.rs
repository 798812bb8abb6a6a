//! Lengths and bytes of instructions that exits do not carry.

use crate::state::field;
use crate::vm::Vm;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_abi::vcpu::{group, seg};
use vmm_decode::{Access, Expected, Fetched, Mode, Paging, fetch, length_at, walk};

const CR0_PE: u64 = 1;
const EFER_LMA: u64 = 1 << 10;
const RFLAGS_VM: u64 = 1 << 17;
const CS_LONG: u32 = 1 << 13;
const CS_BIG: u32 = 1 << 14;

/// Physical address bits that the page-table walk allows; CPUID shows at most these.
const PHYSICAL_BITS: u8 = 52;

/// Mode of the code that runs; needs group CONTROL, with which the kernel writes CS.
#[inline]
pub(super) fn mode(vm: &Vm<'_>) -> Mode {
    let rights = vm.page.segment_rights(seg::CS);
    if vm.page.get(field::EFER) & EFER_LMA != 0 && rights & CS_LONG != 0 {
        return Mode::Bits64;
    }
    if vm.page.get(field::CR0) & CR0_PE == 0 || vm.page.get(field::RFLAGS) & RFLAGS_VM != 0 || rights & CS_BIG == 0 {
        Mode::Bits16
    } else {
        Mode::Bits32
    }
}

/// How linear addresses are translated; needs groups RIP and CONTROL.
#[inline]
pub(super) fn paging(vm: &Vm<'_>) -> Paging {
    Paging {
        cr0: vm.page.get(field::CR0),
        cr3: vm.page.get(field::CR3),
        cr4: vm.page.get(field::CR4),
        efer: vm.page.get(field::EFER),
        rflags: vm.page.get(field::RFLAGS),
        physical_bits: PHYSICAL_BITS,
    }
}

/// Linear address of the instruction.
#[inline]
fn linear_rip(vm: &Vm<'_>, mode: Mode) -> u64 {
    let rip = vm.page.get(field::RIP);
    match mode {
        Mode::Bits64 => rip,
        _ => rip.wrapping_add(vm.page.segment_base(seg::CS)) & 0xffff_ffff,
    }
}

/// Pages on which instructions of unknown length were found.
///
/// The exit itself says which instruction it was; what is in doubt is only whether it has prefixes. So the bytes are
/// compared at each exit, but the page tables need not be walked again: should the page be another one by now, the bytes
/// there are those of the instruction without prefixes by chance at most. For accesses to devices, whose bytes say what to
/// do, the tables are walked every time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodePages<'a>([CodePage<'a>; CodePages::KEPT]);

/// A page of 64-bit code.
#[derive(Clone, Copy, Debug)]
struct CodePage<'a> {
    cr3: u64,
    /// Linear address of the page.
    page: u64,
    words: &'a [AtomicU64; PAGE_WORDS],
}

/// Quadwords of a page.
pub(crate) const PAGE_WORDS: usize = 512;
static NOTHING: [AtomicU64; PAGE_WORDS] = [const { AtomicU64::new(0) }; PAGE_WORDS];

impl<'a> CodePages<'a> {
    /// A power of two: a timer's interrupt alone has two such instructions, on two pages.
    const KEPT: usize = 4;

    /// No page: the addresses are none that code can have.
    pub(crate) const NONE: CodePages<'static> =
        CodePages([CodePage { cr3: u64::MAX, page: 1 << 63, words: &NOTHING }; CodePages::KEPT]);

    #[inline(always)]
    const fn place(rip: u64) -> usize {
        (rip >> 12) as usize % CodePages::KEPT
    }
}

/// The encoding without prefixes, as a little-endian number, and its length.
const fn plain(expected: Expected) -> Option<(u64, u32)> {
    Some(match expected {
        Expected::Cpuid => (0xa2_0f, 2),
        Expected::Hlt => (0xf4, 1),
        Expected::Rdmsr => (0x32_0f, 2),
        Expected::Wrmsr => (0x30_0f, 2),
        // AMD's; on Intel's processors the exit carries the length.
        Expected::Hypercall => (0xd9_01_0f, 3),
        _ => return None,
    })
}

/// Length of the instruction that exited as `expected`; `None`: let the guest execute it again.
#[inline(always)]
pub(super) fn length(vm: &mut Vm<'_>, expected: Expected) -> Option<u64> {
    let length = vm.page.get(field::LENGTH);
    if length != 0 {
        return Some(length);
    }
    if let Some((pattern, bytes)) = plain(expected)
        && is_at_rip(vm, pattern, bytes)
    {
        return Some(bytes.into());
    }
    find_length(vm, expected)
}

/// Whether the instruction on a known page has these bytes.
#[inline(always)]
fn is_at_rip(vm: &Vm<'_>, pattern: u64, bytes: u32) -> bool {
    let rip = vm.page.get(field::RIP);
    let known = &vm.code_pages.0[CodePages::place(rip)];
    let offset = rip ^ known.page;
    // At the end of the page the instruction may go on in the next one.
    if vm.page.get(field::CODE_ROOT) != known.cr3 || offset > 4096 - 16 {
        return false;
    }
    let (index, skip) = ((offset >> 3) as usize % PAGE_WORDS, 8 * (offset & 7) as u32);
    let mut found = known.words[index].load(Relaxed) >> skip;
    if skip + 8 * bytes > 64 {
        found |= known.words[(index + 1) % PAGE_WORDS].load(Relaxed) << (64 - skip);
    }
    (found ^ pattern) & ((1 << (8 * bytes)) - 1) == 0
}

/// The processor did not tell, and it is on no known page.
#[inline(never)]
fn find_length(vm: &mut Vm<'_>, expected: Expected) -> Option<u64> {
    if !vm.needs(group::CONTROL) {
        return None;
    }
    let mode = mode(vm);
    let (paging, rip, ram) = (paging(vm), linear_rip(vm, mode), vm.ram);
    let length = length_at(&paging, rip, mode, expected, &mut |gpa| ram.word(gpa)).ok()?;
    let access = Access { write: false, user: vm.page.get(field::CPL) == 3, fetch: true };
    if mode == Mode::Bits64
        && let Ok(place) = walk(&paging, rip, access, &mut |gpa| ram.word(gpa))
        && let Some(words) = ram.page(place.gpa)
    {
        vm.code_pages.0[CodePages::place(rip)] = CodePage { cr3: vm.page.get(field::CR3), page: rip & !0xfff, words };
    }
    Some(length.into())
}

/// Bytes of the instruction that exited, as far as they can be read; needs groups RIP and CONTROL. `None`: let
/// the guest execute it again.
#[inline]
pub(super) fn bytes(vm: &Vm<'_>, mode: Mode) -> Option<Fetched> {
    let (paging, rip, ram) = (paging(vm), linear_rip(vm, mode), vm.ram);
    fetch(&paging, rip, &mut |gpa| ram.word(gpa)).ok()
}
