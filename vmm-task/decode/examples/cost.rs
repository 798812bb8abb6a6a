//! What one device access costs: fetch through four levels of page tables, decode, complete.
//!
//! Run it under an instruction counter with two counts and divide the difference:
//!
//! ```text
//! cargo build --release -p vmm-decode --example cost
//! for n in 1000 2000; do
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/examples/cost load $n
//! done
//! ```
//!
//! `load`, `store`, `movzx` and `immediate` take the hand path, the others the general one; `walk` only fetches, and
//! `length` finds the length of a CPUID.

use std::hint::black_box;
use vmm_decode::{Expected, Gprs, Mode, Paging, fetch, length_at, mmio};

fn main() {
    let form = std::env::args().nth(1).unwrap_or_default();
    let only_length = form == "length";
    let count: u32 = std::env::args().nth(2).and_then(|n| n.parse().ok()).unwrap_or(1000);
    let (bytes, only_walk): (&[u8], bool) = match form.as_str() {
        "length" => (&[0x0F, 0xA2], false),
        "walk" => (&[0x8B, 0x07], true),
        "load" => (&[0x8B, 0x07], false),
        "store" => (&[0x41, 0x89, 0x44, 0x24, 0x10], false),
        "movzx" => (&[0x0F, 0xB6, 0x05, 1, 2, 3, 4], false),
        "immediate" => (&[0xC7, 0x87, 0xB0, 0, 0, 0, 0, 0, 0, 0], false),
        "and" => (&[0x21, 0x07], false),
        "gs" => (&[0x65, 0x8B, 0x07], false),
        "movs" => (&[0xF3, 0xA5], false),
        "or_immediate" => (&[0x81, 0x8F, 0xF0, 0, 0, 0, 0, 1, 0, 0], false),
        _ => panic!("usage: cost length|walk|load|store|movzx|immediate|and|gs|movs|or_immediate COUNT"),
    };
    let mut memory = vec![0u64; 0x6000 / 8];
    for (level, table) in [0x1000u64, 0x2000, 0x3000, 0x4000].into_iter().enumerate() {
        memory[(table / 8) as usize] = if level == 3 { 0x5000 | 3 } else { table + 0x1000 + 3 };
    }
    for (i, byte) in bytes.iter().enumerate() {
        memory[0x5000 / 8 + i / 8] |= u64::from(*byte) << (8 * (i % 8));
    }
    let paging = Paging { cr0: 0x8001_0001, cr3: 0x1000, cr4: 0x20, efer: 0xD00, rflags: 2, physical_bits: 40 };
    let mut gprs = Gprs([3; 16]);
    let mut rflags = 2;
    let mut rip = 0;
    for _ in 0..count {
        let paging = black_box(&paging);
        if only_length {
            let read = &mut |gpa| memory.get((gpa / 8) as usize).copied();
            let _ = black_box(length_at(paging, black_box(0), black_box(Mode::Bits64), Expected::Cpuid, read));
            continue;
        }
        let fetched = fetch(paging, black_box(0), &mut |gpa| memory.get((gpa / 8) as usize).copied());
        let Ok(fetched) = fetched else { panic!("the walk failed") };
        if only_walk {
            black_box(fetched.bytes());
            continue;
        }
        let Ok(op) = mmio(fetched.bytes(), black_box(Mode::Bits64), &gprs, rflags) else { panic!("not decoded") };
        let back = op.complete_read(black_box(5), &mut gprs, &mut rflags);
        black_box(back);
        rip = op.retire(&mut gprs, rflags, rip);
    }
    black_box((rip, rflags, gprs));
}
