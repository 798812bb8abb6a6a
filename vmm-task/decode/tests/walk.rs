//! Page walks against a model that was built alongside the tables.

use proptest::prelude::*;
use std::collections::BTreeMap;
use vmm_decode::{Access, Expected, LengthError, Mode, Paging, Translation, WalkError, fetch, length_at, walk};

const PG: u64 = 1 << 31;
const WP: u64 = 1 << 16;
const PSE: u64 = 1 << 4;
const PAE: u64 = 1 << 5;
const SMEP: u64 = 1 << 20;
const SMAP: u64 = 1 << 21;
const LMA: u64 = 1 << 10;
const NXE: u64 = 1 << 11;
const NX: u64 = 1 << 63;
const READ: Access = Access { write: false, user: false, fetch: false };

fn long(cr3: u64) -> Paging {
    Paging { cr0: PG | WP | 1, cr3, cr4: PAE, efer: LMA | NXE | 1 << 8, rflags: 2, physical_bits: 40 }
}

#[derive(Default, Clone)]
struct Memory(BTreeMap<u64, u64>);

impl Memory {
    fn read(&self, gpa: u64) -> Option<u64> {
        assert_eq!(gpa % 8, 0, "reads are aligned");
        if gpa < 1 << 40 { Some(self.0.get(&gpa).copied().unwrap_or(0)) } else { None }
    }

    fn walk(&self, paging: &Paging, linear: u64, access: Access) -> Result<Translation, WalkError> {
        walk(paging, linear, access, &mut |gpa| self.read(gpa))
    }

    /// Writes a 32-bit entry.
    fn put32(&mut self, at: u64, value: u32) {
        let word = self.0.entry(at & !7).or_default();
        let shift = (at & 4) * 8;
        *word = *word & !(0xFFFF_FFFF << shift) | u64::from(value) << shift;
    }
}

/// A mapping: level 1 to 3 is the page size, rights as in the entry.
#[derive(Clone, Copy, Debug)]
struct Page {
    level: u32,
    frame: u64,
    bits: u64,
}

/// Builds 4-level tables: each virtual page from the table, intermediate entries with all rights.
fn build(pages: &BTreeMap<u64, Page>) -> Memory {
    let mut memory = Memory::default();
    let mut next = 0x10_0000;
    for (&linear, page) in pages {
        let mut table = 0x1000;
        for level in (page.level + 1..=4).rev() {
            let at = table + (linear >> (12 + 9 * (level - 1)) & 511) * 8;
            table = *memory.0.entry(at).or_insert_with(|| {
                next += 0x1000;
                next | 7
            }) & !0xFFF;
        }
        let at = table + (linear >> (12 + 9 * (page.level - 1)) & 511) * 8;
        let large = if page.level > 1 { 1 << 7 } else { 0 };
        memory.0.insert(at, page.frame | page.bits | large | 1);
    }
    memory
}

/// What a processor answers, from the mapping alone.
fn model(pages: &BTreeMap<u64, Page>, paging: &Paging, linear: u64, access: Access) -> Result<u64, u32> {
    let found = pages.iter().find(|(base, page)| {
        let size = 1u64 << (12 + 9 * (page.level - 1));
        linear & !(size - 1) == **base
    });
    let code = |protection: bool| {
        u32::from(protection)
            | u32::from(access.write) << 1
            | u32::from(access.user) << 2
            | u32::from(access.fetch) << 4
    };
    let Some((base, page)) = found else { return Err(code(false)) };
    let (write, user, nx) = (page.bits & 2 != 0, page.bits & 4 != 0, page.bits & NX != 0);
    let mut good = !(access.fetch && nx);
    if access.user {
        good &= user && (write || !access.write);
    } else {
        good &= write || !access.write || paging.cr0 & WP == 0;
        good &= !(user && access.fetch && paging.cr4 & SMEP != 0);
        good &= !(user && !access.fetch && paging.cr4 & SMAP != 0 && paging.rflags & 1 << 18 == 0);
    }
    if good { Ok(page.frame + (linear - base)) } else { Err(code(true)) }
}

fn page() -> impl Strategy<Value = (u64, Page)> {
    (0u64..16, 0u64..8, 0u64..8, 1u32..=3, any::<u16>(), any::<[bool; 3]>()).prop_map(
        |(a, b, c, level, frame, bits)| {
            let linear = match level {
                1 => a << 39 | b << 30 | c << 21 | u64::from(frame & 7) << 12,
                2 => a << 39 | b << 30 | (c + 8) << 21,
                _ => a << 39 | (b + 8) << 30,
            };
            let linear = if a >= 8 { linear | 0xFFFF_8000_0000_0000 | 0x7000_0000_0000 } else { linear };
            let shift = 12 + 9 * (level - 1);
            let frame = u64::from(frame) << shift & ((1 << 40) - 1);
            let bits = u64::from(bits[0]) << 1 | u64::from(bits[1]) << 2 | if bits[2] { NX } else { 0 };
            (linear, Page { level, frame, bits })
        },
    )
}

proptest! {
    #[test]
    fn four_level_walk_agrees_with_the_model(
        pages in prop::collection::btree_map(any::<u64>(), page(), 1..12), offset in any::<u64>(), stray in any::<u64>(),
        access in any::<[bool; 2]>(), kind in 0u8..3, wp in any::<bool>(), smep in any::<bool>(), smap in any::<bool>(), ac in any::<bool>(),
    ) {
        let pages: BTreeMap<u64, Page> = pages.into_values().collect();
        let memory = build(&pages);
        let access = Access { write: kind == 1, user: access[0], fetch: kind == 2 };
        let mut paging = long(0x1000);
        paging.cr0 = PG | if wp { WP } else { 0 };
        paging.cr4 |= if smep { SMEP } else { 0 } | if smap { SMAP } else { 0 };
        paging.rflags = if ac { 1 << 18 } else { 2 };
        for (&base, page) in &pages {
            let size = 1u64 << (12 + 9 * (page.level - 1));
            let linear = base + offset % size;
            let found = memory.walk(&paging, linear, access);
            match model(&pages, &paging, linear, access) {
                Ok(gpa) => prop_assert_eq!(found, Ok(Translation { gpa, left: size - offset % size })),
                Err(code) => prop_assert_eq!(found, Err(WalkError::PageFault { code })),
            }
        }
        let stray = ((stray as i64) << 16 >> 16) as u64;
        match model(&pages, &paging, stray, access) {
            Ok(gpa) => prop_assert_eq!(memory.walk(&paging, stray, access).map(|t| t.gpa), Ok(gpa)),
            Err(code) => prop_assert_eq!(memory.walk(&paging, stray, access), Err(WalkError::PageFault { code })),
        }
    }

    /// Any registers and any memory: an answer, after at most five reads.
    #[test]
    fn hostile_tables_are_bounded(cr0 in any::<u64>(), cr3 in any::<u64>(), cr4 in any::<u64>(), efer in any::<u64>(),
                                  linear in any::<u64>(), words in prop::collection::vec(any::<u64>(), 5), bits in any::<u8>(), access in any::<[bool; 3]>()) {
        let access = Access { write: access[0], user: access[1], fetch: access[2] };
        for force in [0, PG] {
            let paging = Paging { cr0: cr0 | force, cr3, cr4, efer, rflags: 2, physical_bits: bits };
            let mut reads = 0;
            let _ = walk(&paging, linear, access, &mut |gpa| {
                reads += 1;
                assert_eq!(gpa % 8, 0);
                words.get(reads - 1).map(|w| w | 1)
            });
            prop_assert!(reads <= 4);
            let mut reads = 0;
            let fetched = fetch(&paging, linear, &mut |_| {
                reads += 1;
                words.get(reads % 6).map(|w| w | 1)
            });
            prop_assert!(reads <= 16);
            if let Ok(f) = fetched {
                prop_assert!(f.bytes().len() <= 15);
            }
        }
    }
}

#[test]
fn without_paging_addresses_are_physical() {
    let paging = Paging { cr0: 1, ..long(0) };
    let found = Memory::default().walk(&paging, 0xFFFF_FFFF_0000_1234, READ);
    assert_eq!(found, Ok(Translation { gpa: 0x1234, left: 0x1000 - 0x234 }));
}

#[test]
fn what_no_guest_was_offered_is_refused() {
    let memory = Memory::default();
    assert_eq!(memory.walk(&Paging { cr4: PAE | 1 << 12, ..long(0x1000) }, 0, READ), Err(WalkError::Unsupported));
    assert_eq!(memory.walk(&long(0x1000), 1 << 47, READ), Err(WalkError::NonCanonical));
    assert_eq!(memory.walk(&long(1 << 45), 0, READ), Err(WalkError::NoMemory { gpa: 1 << 45 }));
}

#[test]
fn reserved_bits_fault_with_their_own_code() {
    let pages = BTreeMap::from([
        (0x1000, Page { level: 1, frame: 0x5000, bits: 6 }),
        (0x40_0000, Page { level: 2, frame: 0x60_0000, bits: 6 }),
    ]);
    let good = build(&pages);
    let leaves: Vec<u64> = good
        .0
        .iter()
        .filter(|(_, v)| **v & 0xFFFF_F000 == 0x5000 || **v & 0xFFF0_0000 == 0x60_0000)
        .map(|(k, _)| *k)
        .collect();
    assert_eq!(leaves.len(), 2);
    let reserved = Err(WalkError::PageFault { code: 0b1001 });
    let with = |at: u64, bit: u64, paging: &Paging, linear| {
        let mut memory = good.clone();
        *memory.0.get_mut(&at).unwrap() |= bit;
        memory.walk(paging, linear, READ)
    };
    for &leaf in &leaves {
        let linear = if good.0[&leaf] & 0x80 != 0 { 0x40_0000 } else { 0x1000 };
        assert!(with(leaf, 0, &long(0x1000), linear).is_ok());
        assert_eq!(with(leaf, 1 << 41, &long(0x1000), linear), reserved, "beyond the physical width");
        assert_eq!(with(leaf, NX, &Paging { efer: LMA, ..long(0x1000) }, linear), reserved, "NX without NXE");
        assert!(with(leaf, NX, &long(0x1000), linear).is_ok());
    }
    let large = *leaves.iter().find(|l| good.0[l] & 0x80 != 0).unwrap();
    assert_eq!(with(large, 1 << 13, &long(0x1000), 0x40_0000), reserved, "low bits of a large page");
    assert!(with(large, 1 << 12, &long(0x1000), 0x40_0000).is_ok(), "but PAT may be set");
    assert_eq!(with(0x1000, 0x80, &long(0x1000), 0x1000), reserved, "no large page at level 4");
}

#[test]
fn rights_of_all_levels_count() {
    let pages = BTreeMap::from([(0x1000, Page { level: 1, frame: 0x5000, bits: 6 })]);
    let mut memory = build(&pages);
    // Take user and write away at the top.
    *memory.0.get_mut(&0x1000).unwrap() &= !6;
    let user = Access { user: true, ..READ };
    assert_eq!(memory.walk(&long(0x1000), 0x1000, user), Err(WalkError::PageFault { code: 5 }));
    let write = Access { write: true, ..READ };
    assert_eq!(memory.walk(&long(0x1000), 0x1000, write), Err(WalkError::PageFault { code: 3 }));
    *memory.0.get_mut(&0x1000).unwrap() |= NX;
    let fetch = Access { fetch: true, ..READ };
    assert_eq!(memory.walk(&long(0x1000), 0x1000, fetch), Err(WalkError::PageFault { code: 0x11 }));
}

#[test]
fn pae_has_three_levels() {
    let mut memory = Memory::default();
    memory.0.extend([
        (0x1020 + 3 * 8, 0x2001),
        (0x2000 + 8, 0x3000 | 7),
        (0x3000 + 16, 0x9_8765_4000 | 7),
        (0x2000, 0x80_0000 | 0x87),
    ]);
    let paging = Paging { cr3: 0x1020, efer: NXE, ..long(0) };
    let found = memory.walk(&paging, 0xC020_2345, READ);
    assert_eq!(found, Ok(Translation { gpa: 0x9_8765_4345, left: 0xCBB }));
    let found = memory.walk(&paging, 0xFFFF_FFFF_C012_3456, READ);
    assert_eq!(found, Ok(Translation { gpa: 0x92_3456, left: 0x20_0000 - 0x12_3456 }), "upper half ignored");
    assert_eq!(memory.walk(&paging, 0, READ), Err(WalkError::PageFault { code: 0 }));
}

#[test]
fn legacy_paging_has_32_bit_entries_and_4_mib_pages() {
    let mut memory = Memory::default();
    memory.put32(0x1000 + 4, 0x2007);
    memory.put32(0x2000 + 12, 0xABCD_E005);
    memory.put32(0x1000 + 8, 0x00C0_0087 | 0x12 << 13);
    let paging = Paging { cr3: 0x1000, cr4: PSE, efer: 0, ..long(0) };
    assert_eq!(memory.walk(&paging, 0x40_3123, READ), Ok(Translation { gpa: 0xABCD_E123, left: 0xEDD }));
    let write = Access { write: true, ..READ };
    assert_eq!(memory.walk(&paging, 0x40_3123, write), Err(WalkError::PageFault { code: 3 }));
    assert!(memory.walk(&Paging { cr0: PG, ..paging }, 0x40_3123, write).is_ok(), "without WP the kernel may");
    assert_eq!(memory.walk(&paging, 0x80_0010, READ), Ok(Translation { gpa: 0x12_00C0_0010, left: 0x40_0000 - 0x10 }));
    assert_eq!(
        memory.walk(&Paging { physical_bits: 36, ..paging }, 0x80_0010, READ),
        Err(WalkError::PageFault { code: 9 })
    );
    let fetch = Access { fetch: true, ..READ };
    assert_eq!(
        memory.walk(&paging, 0, fetch),
        Err(WalkError::PageFault { code: 0 }),
        "no fetch bit where none can be forbidden"
    );
}

#[test]
fn fetching_crosses_pages_where_it_can() {
    let pages = BTreeMap::from([
        (0x1000, Page { level: 1, frame: 0x5000, bits: 0 }),
        (0x2000, Page { level: 1, frame: 0x9000, bits: 0 }),
    ]);
    let mut memory = build(&pages);
    for i in 0..1024u64 {
        memory.0.insert(0x5000 + 8 * i, 0x0706_0504_0302_0100 + 0x1010_1010_1010_1010 * (i % 15));
        memory.0.insert(0x9000 + 8 * i, 0xF7F6_F5F4_F3F2_F1F0);
    }
    let get = |memory: &Memory, rip| fetch(&long(0x1000), rip, &mut |gpa| memory.read(gpa)).map(|f| f.bytes().to_vec());
    assert_eq!(
        get(&memory, 0x1003).unwrap(),
        [3, 4, 5, 6, 7, 0x10, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x20, 0x21]
    );
    let crossing = get(&memory, 0x1FFD).unwrap();
    assert_eq!((crossing.len(), &crossing[3..7]), (15, &[0xF0, 0xF1, 0xF2, 0xF3][..]));
    assert_eq!(get(&memory, 0x2FFD).unwrap().len(), 3, "nothing follows");
    assert_eq!(get(&memory, 0x3000), Err(WalkError::PageFault { code: 0x10 }));
}

/// Fetching finds what a full walk finds, wherever the walk is allowed to go.
#[test]
fn fetching_agrees_with_walking_in_every_mode() {
    let mut memory = Memory::default();
    memory.0.extend([
        (0x1020 + 3 * 8, 0x2001),
        (0x2000 + 8, 0x3000 | 7),
        (0x3000 + 16, 0x9_8765_4000 | 7),
        (0x2000, 0x80_0000 | 0x87),
    ]);
    memory.put32(0x5000 + 4, 0x6007);
    memory.put32(0x6000 + 12, 0xABCD_E005);
    memory.put32(0x5000 + 8, 0x00C0_0087 | 0x12 << 13);
    let pae = Paging { cr3: 0x1020, efer: NXE, ..long(0) };
    let legacy = Paging { cr3: 0x5000, cr4: PSE, efer: 0, ..long(0) };
    let off = Paging { cr0: 1, ..legacy };
    for (paging, linear) in
        [(pae, 0xC020_2345), (pae, 0xC012_3456), (legacy, 0x40_3123), (legacy, 0x80_0010), (off, 0x1234)]
    {
        let place = memory.walk(&paging, linear, READ).unwrap();
        let mut marked = memory.clone();
        let word = 0x8877_6655_4433_2211u64;
        marked.0.insert(place.gpa & !7, word);
        let fetched = fetch(&paging, linear, &mut |gpa| marked.read(gpa)).unwrap();
        let expected = &word.to_le_bytes()[(place.gpa & 7) as usize..];
        assert_eq!(&fetched.bytes()[..expected.len()], expected, "{linear:#x}");
    }
    assert_eq!(fetch(&Paging { cr4: PAE | 1 << 12, ..long(0x1000) }, 0, &mut |_| None), Err(WalkError::Unsupported));
}

#[test]
fn lengths_at_an_address() {
    let pages = BTreeMap::from([(0x1000, Page { level: 1, frame: 0x5000, bits: 0 })]);
    let mut memory = build(&pages);
    let mut put = |at: u64, bytes: &[u8]| {
        for (i, &byte) in bytes.iter().enumerate() {
            let at = at + i as u64;
            *memory.0.entry(at & !7).or_default() |= u64::from(byte) << (8 * (at & 7));
        }
    };
    put(0x5000, &[0x0F, 0xA2]);
    put(0x5007, &[0x0F, 0xA2]);
    put(0x5010, &[0x66, 0x0F, 0xA2]);
    put(0x5FFF, &[0x0F]);
    let at = |rip| length_at(&long(0x1000), rip, Mode::Bits64, Expected::Cpuid, &mut |gpa| memory.read(gpa));
    assert_eq!(at(0x1000), Ok(2));
    assert_eq!(at(0x1007), Ok(2), "across two words");
    assert_eq!(at(0x1010), Ok(3), "with a prefix");
    assert!(matches!(at(0x1020), Err(LengthError::Decode(_))), "another instruction");
    assert!(matches!(at(0x1FFF), Err(LengthError::Decode(_))), "cut off by a page that is not there");
    assert!(matches!(at(0x2000), Err(LengthError::Walk(_))));
}
