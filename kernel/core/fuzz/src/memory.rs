//! Untyped memory as tasks take it apart.

use crate::Words;
use moira_kernel_core::untyped::{Free, first_block};

/// Does to an untyped memory what the words say; nothing that was taken may overlap.
pub fn run(data: &[u8]) {
    let mut words = Words::new(data);
    let (base, end) = (words.any(), words.any());
    let (mut at, mut blocks) = (base, 0);
    while let Some((address, bits)) = first_block(at, end) {
        assert!(address >= at && address & ((1 << bits) - 1) == 0 && address + (1 << bits) <= end);
        at = address + (1 << bits);
        blocks += 1;
        // They grow up to 2^47 bytes; enough of those have been seen.
        if blocks == 256 {
            break;
        }
    }
    let Some(end) = base.checked_add(1 << (words.number(1) % 48)) else { return };
    let mut free = Free { low: base, high: end };
    let mut taken = Vec::<(u64, u64)>::new();
    while !words.is_empty() && taken.len() < 64 {
        let (kind, bits, count) = (words.number(1), words.number(1) as u8, words.any());
        let answer = if kind & 1 == 0 { free.take_low(bits, count) } else { free.take_high(bits, count) };
        let Some((first, left)) = answer else { continue };
        let bytes = count << bits;
        assert_eq!(bytes >> bits, count, "no bit was lost");
        assert!(first >= base && first + bytes <= end && first.trailing_zeros() >= u32::from(bits).min(64));
        assert!(taken.iter().all(|(from, to)| bytes == 0 || first + bytes <= *from || first >= *to), "an overlap");
        assert!(left.low <= left.high && left.high - left.low + bytes <= free.high - free.low);
        taken.push((first, first + bytes));
        free = left;
    }
}

/// A memory of 1 MiB from which both ends are taken.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut bytes = vec![1, 0, 0x10, 1, 0, 0x40, 20];
    for turn in 0..8 {
        bytes.extend([turn, 6 + turn, 0, 1 + turn / 3]);
    }
    vec![bytes]
}
