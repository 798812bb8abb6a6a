//! Plans as a hostile planner appends them, and how a CPU follows them.

use crate::Words;
use core::cell::Cell;
use moira_kernel_core::plan::{LONGEST, Position, SHORTEST, Window, advance, may_append, valid_length};

/// Most windows of a plan here.
const MOST: usize = 64;

/// Appends what is accepted, and then looks at the plan at one moment after another.
pub fn run(data: &[u8]) {
    let mut words = Words::new(data);
    let length = words.any();
    if !valid_length(length) {
        assert!(!(SHORTEST..=LONGEST).contains(&length), "{length}");
        return;
    }
    let (mut windows, mut previous) = (Vec::<Window>::new(), 0);
    for owner in 1..=words.number(1) {
        let (start, end) = if words.number(1) & 1 == 0 {
            // Next to the last one, so that many fit.
            let start = previous + words.number(2);
            (start, start + SHORTEST + words.number(2))
        } else {
            (words.any(), words.any())
        };
        if windows.len() < MOST && may_append(length, previous, start, end) {
            assert!(previous <= start && start + SHORTEST <= end && end <= length, "{start} {end}");
            windows.push(Window { start, end, owner, reserved: 0 });
            previous = end;
        }
    }
    let cells: Vec<_> = windows.iter().copied().map(Cell::new).collect();
    let begin = words.any() & (1 << 62) - 1;
    let (mut position, mut now) = (Position { index: 0, cycle_start: begin }, begin);
    while !words.is_empty() {
        now = now.saturating_add(words.any()).min((1 << 62) + LONGEST);
        let stretch = advance(&mut position, length, &cells, now);
        let at = |moment: u64| {
            let offset = (moment - begin) % length;
            windows.iter().find(|window| window.start <= offset && offset < window.end).map(|window| window.owner)
        };
        assert_eq!(stretch.owner, at(now));
        assert!(stretch.until > now, "a stretch lasts");
        assert_eq!(at(stretch.until - 1), stretch.owner, "nothing changes within it");
        assert!(stretch.until - now <= length, "no longer than a cycle");
    }
}

/// A plan of three windows that is followed for some cycles.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    // 100,000 ticks; three windows, each behind a gap; looks 20,000 ticks apart.
    let mut bytes = vec![2, 0xa0, 0x86, 1, 0, 3];
    for _ in 0..3 {
        bytes.extend([0, 0x10, 0x27, 0x10, 0x27]);
    }
    bytes.extend([3, 0, 0, 0, 0, 1, 0, 0, 0]);
    for _ in 0..16 {
        bytes.extend([1, 0x20, 0x4e]);
    }
    vec![bytes]
}
