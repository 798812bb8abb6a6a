//! Tests of the ELF-based loaders (PVH, flat, Multiboot), hostile images included.

use super::*;
use crate::boot::{Module, flat, multiboot, multiboot2};
use crate::test_ram::TestRam;
use proptest::prelude::*;
use std::vec;

const NOTE_AT: usize = 0x100;
const CODE_AT: usize = 0x200;

/// A 64-bit ELF with one loadable segment at `address` (entry there) and a PVH note.
fn elf64(address: u64, code: &[u8], memory: u64) -> Vec<u8> {
    let mut out = vec![0u8; CODE_AT];
    out[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &2u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &address.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    put(58, &64u16.to_le_bytes());
    let load = [(1u64 | 7 << 32), CODE_AT as u64, address, address, code.len() as u64, memory, 4096];
    let note = [(4u64 | 4 << 32), NOTE_AT as u64, 0, 0, 20, 20, 4];
    for (i, word) in load.iter().chain(&note).enumerate() {
        put(64 + 8 * i, &word.to_le_bytes());
    }
    for (i, word) in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), address as u32].iter().enumerate() {
        put(NOTE_AT + 4 * i, &word.to_le_bytes());
    }
    out.extend_from_slice(code);
    out
}

fn pvh(kernel: &[u8]) -> PvhGuest<'_> {
    PvhGuest { kernel, modules: &[], cmdline: b"quiet", rsdp: 0xE0000 }
}

fn machine(mib: u64) -> (TestRam, MemoryMap) {
    (TestRam::new(mib << 20), MemoryMap::new(mib << 20).unwrap())
}

#[test]
fn pvh_guest_gets_its_start_information() {
    let kernel = elf64(0x20_0000, b"\xf4code", 0x3000);
    let initrd = vec![9u8; 10_000];
    let (mut ram, map) = machine(64);
    ram.write(0x20_1000, &[0xFF; 16]).unwrap();
    let state =
        load(&mut ram, &map, &PvhGuest { modules: &[Module { bytes: &initrd, cmdline: b"disk" }], ..pvh(&kernel) })
            .unwrap();
    assert_eq!(state.rip, 0x20_0000);
    assert_eq!(state.gprs[state::RBX], layout::BOOT_INFO);
    assert_eq!(state.cr0 & 0x8000_0001, 1, "protected mode, no paging");
    assert_eq!(state.efer, 0);
    assert_eq!(ram.bytes(0x20_0000, 5), b"\xf4code");
    assert_eq!(ram.bytes(0x20_1000, 16), [0; 16], "memory past the file's bytes is cleared");
    let info = layout::BOOT_INFO;
    assert_eq!((ram.u32(info), ram.u32(info + 4), ram.u32(info + 12)), (0x336E_C578, 1, 1));
    let module = ram.u64(info + 16);
    assert_eq!(ram.bytes(ram.u64(module), 10_000), initrd);
    assert_eq!(ram.u64(module + 8), 10_000);
    assert_eq!(ram.bytes(ram.u64(module + 16), 5), b"disk\0");
    assert_eq!(ram.bytes(ram.u64(info + 24), 6), b"quiet\0");
    assert_eq!(ram.u64(info + 32), 0xE0000);
    let memmap = ram.u64(info + 40);
    assert_eq!(ram.u32(info + 48) as usize, map.e820().len());
    assert_eq!((ram.u64(memmap), ram.u64(memmap + 8), ram.u32(memmap + 16)), (0, layout::EBDA_BASE, 1));
}

#[test]
fn flat_guest_is_entered_in_64_bit_mode() {
    let image = elf64(0x10_0000, &[0xF4], 0x1000);
    let (mut ram, map) = machine(16);
    let guest = flat::FlatGuest { image: &image, cmdline: b"test=1", argument: 0x1234 };
    let state = flat::load(&mut ram, &map, &guest).unwrap();
    assert_eq!((state.rip, state.gprs[state::RDI]), (0x10_0000, 0x1234));
    assert_eq!(state.efer, 0x500);
    assert_eq!(ram.bytes(state.gprs[state::RSI], 7), b"test=1\0");
    assert_ne!(ram.u64(state.cr3), 0);
}

#[test]
fn multiboot_kernel_with_addresses_and_modules() {
    let mut kernel = vec![0x90u8; 0x400];
    let words = [
        0x1BAD_B002,
        0x1_0003,
        0u32.wrapping_sub(0x1BAD_B002 + 0x1_0003),
        0x10_0010,
        0x10_0000,
        0,
        0x10_2000,
        0x10_0040,
    ];
    for (i, word) in words.iter().enumerate() {
        kernel[0x10 + 4 * i..0x14 + 4 * i].copy_from_slice(&u32::to_le_bytes(*word));
    }
    let (mut ram, map) = machine(16);
    let modules = [Module { bytes: &[1; 5000], cmdline: b"first" }, Module { bytes: &[2; 10], cmdline: b"" }];
    let guest = multiboot::MultibootGuest { kernel: &kernel, cmdline: b"k", modules: &modules };
    let state = multiboot::load(&mut ram, &map, &guest).unwrap();
    assert_eq!((state.rip, state.gprs[0]), (0x10_0040, 0x2BAD_B002));
    assert_eq!(state.gprs[state::RSP], layout::BOOT_STACK_TOP);
    assert_eq!(ram.bytes(0x10_0000, kernel.len()), kernel);
    let info = state.gprs[state::RBX];
    assert_eq!(ram.u32(info + 20), 2);
    let list = u64::from(ram.u32(info + 24));
    let (start, end) = (u64::from(ram.u32(list)), u64::from(ram.u32(list + 4)));
    assert_eq!(ram.bytes(start, (end - start) as usize), [1; 5000]);
    assert_eq!(ram.bytes(u64::from(ram.u32(list + 8)), 6), b"first\0");
    let second = u64::from(ram.u32(list + 16));
    assert!(second + 10 <= start);
    assert_eq!(ram.bytes(second, 10), [2; 10]);
    let memmap = u64::from(ram.u32(info + 48));
    assert_eq!((ram.u32(memmap), ram.u64(memmap + 12), ram.u32(memmap + 20)), (20, layout::EBDA_BASE, 1));
}

/// A Multiboot 2 kernel: an ELF file linked high, or with the addresses in its header.
fn multiboot2_kernel(architecture: u32, by_header: bool) -> Vec<u8> {
    let tags: &[u32] = if by_header {
        &[2, 24, 0x10_0000 + CODE_AT as u32, 0x10_0000, 0, 0x10_2000, 3, 12, 0x10_0300, 0, 0, 8]
    } else {
        &[1, 12, 6, 0, 5 | 1 << 16, 20, 80, 25, 0, 0, 0, 8]
    };
    let length = 16 + 4 * tags.len() as u32;
    let sum = 0u32.wrapping_sub(0xE852_50D6).wrapping_sub(architecture).wrapping_sub(length);
    let words: Vec<u8> =
        [0xE852_50D6, architecture, length, sum].iter().chain(tags).flat_map(|word| word.to_le_bytes()).collect();
    let mut kernel = elf64(0x20_0000, &words, 0x3000);
    // Linked at 3 GiB and entered there.
    let high = 0xC020_0040u64.to_le_bytes();
    kernel[24..32].copy_from_slice(&high);
    kernel[64 + 16..64 + 24].copy_from_slice(&0xC020_0000u64.to_le_bytes());
    kernel.resize(CODE_AT + words.len() + if by_header { 0x1000 } else { 0 }, 0);
    kernel
}

#[test]
fn multiboot2_kernels_get_tags() {
    for by_header in [false, true] {
        let kernel = multiboot2_kernel(0, by_header);
        let (mut ram, map) = machine(16);
        let modules = [Module { bytes: &[1; 5000], cmdline: b"first" }];
        let guest = multiboot::MultibootGuest { kernel: &kernel, cmdline: b"k", modules: &modules };
        assert!(multiboot2::is_multiboot2(&kernel));
        let state = multiboot2::load(&mut ram, &map, &guest, b"RSD PTR ").unwrap();
        assert_eq!(state.rip, if by_header { 0x10_0300 } else { 0x20_0040 }, "the physical entry point");
        assert_eq!((state.gprs[state::RAX], state.gprs[state::RBX]), (0x36D7_6289, layout::BOOT_INFO));
        assert_eq!(state.gprs[state::RSP], layout::BOOT_STACK_TOP);
        let info = layout::BOOT_INFO;
        let end = info + u64::from(ram.u32(info));
        let (mut at, mut kinds) = (info + 8, vec![]);
        while at < end {
            let (kind, size) = (ram.u32(at), ram.u32(at + 4));
            kinds.push(kind);
            match kind {
                1 => assert_eq!(ram.bytes(at + 8, 2), b"k\0"),
                3 => {
                    let (from, to) = (u64::from(ram.u32(at + 8)), u64::from(ram.u32(at + 12)));
                    assert_eq!(ram.bytes(from, (to - from) as usize), [1; 5000]);
                    assert_eq!(ram.bytes(at + 16, 6), b"first\0");
                }
                6 => assert_eq!((ram.u32(at + 8), size as usize), (24, 16 + 24 * map.e820().len())),
                _ => {}
            }
            at += u64::from(size.next_multiple_of(8));
        }
        assert_eq!(kinds, [1, 2, 3, 4, 6, 14, 15, 0]);
    }
    let (mut ram, map) = machine(16);
    let kernel = multiboot2_kernel(4, false);
    let guest = multiboot::MultibootGuest { kernel: &kernel, cmdline: b"", modules: &[] };
    let error = multiboot2::load(&mut ram, &map, &guest, b"").unwrap_err();
    assert_eq!(error, multiboot::MultibootError::WrongMachine { architecture: 4 });
}

#[test]
fn headers_may_lie_in_the_page_before_an_image_at_1_mib() {
    let (mut ram, map) = machine(16);
    let before = layout::ONE_MIB - 0x1000;
    let mut load = |address| {
        let image = elf64(address, &[0xF4], 0x2000);
        flat::load(&mut ram, &map, &flat::FlatGuest { image: &image, cmdline: b"", argument: 0 }).map(|_| ())
    };
    assert_eq!(load(before), Ok(()));
    assert!(matches!(load(before - 0x1000), Err(ElfError::SegmentDoesNotFit { .. })), "tables may lie there");
}

#[test]
fn wrong_images_have_errors() {
    let (mut ram, map) = machine(16);
    let mut try_pvh = |kernel: &[u8]| load(&mut ram, &map, &pvh(kernel)).unwrap_err();
    assert_eq!(try_pvh(b"MZ"), ElfError::NotElf);
    let good = elf64(0x20_0000, &[0xF4], 0x1000);
    let mut bad = good.clone();
    bad[18] = 3;
    assert_eq!(try_pvh(&bad), ElfError::WrongKind { kind: 2, machine: 3 });
    let mut bad = good.clone();
    bad[NOTE_AT + 8] = 1;
    assert_eq!(try_pvh(&bad), ElfError::NoPvhNote);
    let mut bad = good.clone();
    bad[NOTE_AT + 18] = 0xFF;
    assert!(matches!(try_pvh(&bad), ElfError::EntryOutside { .. }));
    assert!(matches!(try_pvh(&elf64(0xF00, &[0xF4], 0x1000)), ElfError::SegmentDoesNotFit { .. }));
    assert!(matches!(try_pvh(&elf64(0x7_0000, &[0xF4], 0x2_0000)), ElfError::SegmentDoesNotFit { .. }));
    assert!(matches!(try_pvh(&elf64(0x20_0000, &[0xF4], 1 << 40)), ElfError::SegmentDoesNotFit { .. }));
    assert!(matches!(try_pvh(&elf64(u64::MAX, &[0xF4], 2)), ElfError::SegmentDoesNotFit { .. }));
    assert_eq!(try_pvh(&elf64(0x20_0000, &[0xF4, 0xF4], 1)), ElfError::SegmentOutsideFile { index: 0 });
    let mut bad = good.clone();
    // Make the note a second loadable segment over the first.
    let first = bad[64..120].to_vec();
    bad[120..176].copy_from_slice(&first);
    assert_eq!(
        flat::load(&mut TestRam::new(16 << 20), &map, &flat::FlatGuest { image: &bad, cmdline: b"", argument: 0 }),
        Err(ElfError::SegmentsOverlap { index: 1 })
    );
    let mut many = good;
    many[56..58].copy_from_slice(&100u16.to_le_bytes());
    assert_eq!(try_pvh(&many), ElfError::NotElf, "the table ends outside the file");
    many.resize(64 + 100 * 56, 0);
    assert_eq!(try_pvh(&many), ElfError::TooManySegments { count: 100 });
}

proptest! {
    #[test]
    fn hostile_elf_never_panics(changes in prop::collection::vec((0usize..CODE_AT, any::<u8>()), 0..16), cut in 0usize..0x400) {
        let mut kernel = elf64(0x20_0000, &[0xF4; 256], 0x1000);
        for (at, byte) in changes {
            kernel[at] = byte;
        }
        if cut < kernel.len() {
            kernel.truncate(kernel.len() - cut);
        }
        let (mut ram, map) = machine(8);
        let _ = load(&mut ram, &map, &pvh(&kernel));
        let _ = flat::load(&mut ram, &map, &flat::FlatGuest { image: &kernel, cmdline: b"", argument: 0 });
    }

    #[test]
    fn hostile_multiboot_never_panics(words in prop::collection::vec(any::<u32>(), 6), flags in any::<u32>(), at in 0usize..64) {
        let mut kernel = vec![0u8; 1024];
        let flags = flags & 0x1_0003;
        let header = [0x1BAD_B002, flags, 0u32.wrapping_sub(flags.wrapping_add(0x1BAD_B002))];
        for (i, word) in header.iter().chain(&words).enumerate() {
            kernel[4 * at + 4 * i..4 * at + 4 * i + 4].copy_from_slice(&word.to_le_bytes());
        }
        let (mut ram, map) = machine(8);
        let _ = multiboot::load(&mut ram, &map, &multiboot::MultibootGuest { kernel: &kernel, cmdline: b"", modules: &[] });
    }

    #[test]
    fn hostile_multiboot2_never_panics(tags in prop::collection::vec(any::<u32>(), 0..20), small in any::<u32>(), at in 0usize..64, length in any::<u16>()) {
        let mut kernel = vec![0u8; 2048];
        let length = u32::from(length) >> (small & 15);
        let header = [0xE852_50D6, 0, length, 0u32.wrapping_sub(length).wrapping_sub(0xE852_50D6)];
        let tags = tags.iter().enumerate().map(|(i, tag)| if small >> i & 1 != 0 { tag & 31 } else { *tag });
        for (i, word) in header.into_iter().chain(tags).enumerate() {
            kernel[8 * at + 4 * i..8 * at + 4 * i + 4].copy_from_slice(&word.to_le_bytes());
        }
        let (mut ram, map) = machine(8);
        let _ = multiboot2::load(&mut ram, &map, &multiboot::MultibootGuest { kernel: &kernel, cmdline: b"", modules: &[] }, b"");
    }
}
