//! The derivation list: all capabilities derived from one ancestor stand behind it, each with its depth; the descendants
//! of a slot are the run of slots behind it with a greater depth. Insert, unlink and move are O(1).

/// Greatest depth of a derivation; bounds the search for a leaf.
pub const MAX_DEPTH: u16 = 55;

/// Where the links of slots live. A slot is named by a number that is never 0.
pub trait Links {
    /// The next slot, or 0.
    fn next(&self, slot: u64) -> u64;
    /// The previous slot, or 0.
    fn previous(&self, slot: u64) -> u64;
    /// Depth of a slot.
    fn depth(&self, slot: u64) -> u16;
    /// The next slot, if it is deeper: then it is derived from this one.
    fn child(&self, slot: u64) -> Option<u64> {
        let next = self.next(slot);
        (next != 0 && self.depth(next) > self.depth(slot)).then_some(next)
    }
    /// Sets the next slot.
    fn set_next(&self, slot: u64, next: u64);
    /// Sets the previous slot.
    fn set_previous(&self, slot: u64, previous: u64);
    /// Sets the depth.
    fn set_depth(&self, slot: u64, depth: u16);
}

/// Makes two slots neighbours; either may be 0, the list's end. The links of a slot in no list are 0.
#[inline(always)]
fn join<L: Links>(links: &L, previous: u64, next: u64) {
    if previous != 0 {
        links.set_next(previous, next);
    }
    if next != 0 {
        links.set_previous(next, previous);
    }
}

/// Puts `child` behind `parent`, one deeper. The caller has checked `depth(parent) < MAX_DEPTH`.
pub fn insert_child<L: Links>(links: &L, parent: u64, child: u64) {
    links.set_depth(child, links.depth(parent) + 1);
    join(links, child, links.next(parent));
    links.set_next(parent, child);
    links.set_previous(child, parent);
}

/// Takes a slot out of its list. The caller has seen that it has no descendants: left behind, they could come to stand behind an
/// elder sibling of less depth and be counted as that one's (see `docs/decisions/0003-delete-ends-the-derived.md`).
pub fn unlink<L: Links>(links: &L, slot: u64) {
    join(links, links.previous(slot), links.next(slot));
    links.set_next(slot, 0);
    links.set_previous(slot, 0);
}

/// `to` takes the place of `from`.
pub fn replace<L: Links>(links: &L, from: u64, to: u64) {
    links.set_depth(to, links.depth(from));
    join(links, links.previous(from), to);
    join(links, to, links.next(from));
    links.set_next(from, 0);
    links.set_previous(from, 0);
}

/// Goes down from a slot to a leaf below it, along first descendants and at most `steps` of them, which it counts down. Answers where it
/// came to.
pub fn descend<L: Links>(links: &L, mut slot: u64, steps: &mut u32) -> u64 {
    while *steps > 0
        && let Some(child) = links.child(slot)
    {
        *steps -= 1;
        slot = child;
    }
    slot
}

#[cfg(test)]
// Slots index several arrays at once.
#[allow(clippy::needless_range_loop)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    /// Links in a vector; slot n is entry n - 1.
    struct Table(RefCell<Vec<(u64, u64, u16)>>);

    impl Links for Table {
        fn next(&self, slot: u64) -> u64 {
            self.0.borrow()[slot as usize - 1].0
        }
        fn previous(&self, slot: u64) -> u64 {
            self.0.borrow()[slot as usize - 1].1
        }
        fn depth(&self, slot: u64) -> u16 {
            self.0.borrow()[slot as usize - 1].2
        }
        fn set_next(&self, slot: u64, next: u64) {
            self.0.borrow_mut()[slot as usize - 1].0 = next;
        }
        fn set_previous(&self, slot: u64, previous: u64) {
            self.0.borrow_mut()[slot as usize - 1].1 = previous;
        }
        fn set_depth(&self, slot: u64, depth: u16) {
            self.0.borrow_mut()[slot as usize - 1].2 = depth;
        }
    }

    fn descendants(table: &Table, slot: u64) -> Vec<u64> {
        let (mut found, mut at) = (Vec::new(), table.next(slot));
        while at != 0 && table.depth(at) > table.depth(slot) {
            found.push(at);
            at = table.next(at);
        }
        found.sort_unstable();
        found
    }

    proptest! {
        /// Against a model that keeps parents: the run behind a slot is exactly its transitive children.
        #[test]
        fn descendants_are_the_run(ops in prop::collection::vec((0u8..4, 0usize..24, 0usize..24), 1..200)) {
            const SLOTS: usize = 24;
            let table = Table(RefCell::new(vec![(0, 0, 0); SLOTS]));
            // parent[i]: Some(parent slot) or None for the root (slot 1) and for empty slots.
            let mut used = [false; SLOTS];
            let mut parent = [None::<usize>; SLOTS];
            used[0] = true;
            for (op, a, b) in ops {
                match op {
                    0 | 1 if used[a] && !used[b] => {
                        insert_child(&table, a as u64 + 1, b as u64 + 1);
                        used[b] = true;
                        parent[b] = Some(a);
                    }
                    2 if a != 0 && used[a] && table.child(a as u64 + 1).is_none() => {
                        unlink(&table, a as u64 + 1);
                        used[a] = false;
                        parent[a] = None;
                    }
                    3 if used[a] && !used[b] => {
                        replace(&table, a as u64 + 1, b as u64 + 1);
                        for slot in 0..SLOTS {
                            if parent[slot] == Some(a) {
                                parent[slot] = Some(b);
                            }
                        }
                        parent[b] = parent[a];
                        parent[a] = None;
                        used[b] = true;
                        used[a] = false;
                    }
                    _ => {}
                }
                for slot in 0..SLOTS {
                    if !used[slot] {
                        continue;
                    }
                    let model: Vec<u64> = (0..SLOTS).filter(|other| {
                        let mut at = parent[*other];
                        while let Some(up) = at {
                            if up == slot { return true; }
                            at = parent[up];
                        }
                        false
                    }).map(|other| other as u64 + 1).collect();
                    prop_assert_eq!(descendants(&table, slot as u64 + 1), model);
                }
            }
        }
    }
}
