//! Who can reach what: random sequences of copy, mint, move, delete and revoke on the kernel's own words and derivation list, against a model
//! that keeps nothing but parents. A capability never has more rights than the one it came from, a revoke takes exactly what came of it
//! wherever it went, and no task reaches an object that was not handed to it.

use moira_abi::{ObjectType, Rights};
use moira_kernel_core::{
    capword::CapWord,
    derivation::{self, Links},
};
use proptest::prelude::*;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

const TABLES: usize = 4;
const SLOTS: usize = 8;
const ALL: usize = TABLES * SLOTS;
const OBJECTS: usize = 3;

/// Slots as the kernel has them: links and word 0. Slot n is named n + 1.
struct Kernel {
    links: RefCell<Vec<(u64, u64, u16)>>,
    words: Vec<CapWord>,
}

impl Links for Kernel {
    fn next(&self, slot: u64) -> u64 {
        self.links.borrow()[slot as usize - 1].0
    }
    fn previous(&self, slot: u64) -> u64 {
        self.links.borrow()[slot as usize - 1].1
    }
    fn depth(&self, slot: u64) -> u16 {
        self.links.borrow()[slot as usize - 1].2
    }
    fn set_next(&self, slot: u64, next: u64) {
        self.links.borrow_mut()[slot as usize - 1].0 = next;
    }
    fn set_previous(&self, slot: u64, previous: u64) {
        self.links.borrow_mut()[slot as usize - 1].1 = previous;
    }
    fn set_depth(&self, slot: u64, depth: u16) {
        self.links.borrow_mut()[slot as usize - 1].2 = depth;
    }
}

fn name(slot: usize) -> u64 {
    slot as u64 + 1
}

impl Kernel {
    fn copy(&mut self, from: usize, to: usize, rights: Rights) -> bool {
        let word = self.words[from];
        if word.is_empty() || !self.words[to].is_empty() || self.depth(name(from)) >= derivation::MAX_DEPTH {
            return false;
        }
        derivation::insert_child(self, name(from), name(to));
        self.words[to] = word.with_rights(word.rights().and(rights));
        true
    }

    fn relocate(&mut self, from: usize, to: usize) -> bool {
        if self.words[from].is_empty() || !self.words[to].is_empty() {
            return false;
        }
        derivation::replace(self, name(from), name(to));
        self.words[to] = std::mem::replace(&mut self.words[from], CapWord::EMPTY);
        true
    }

    /// As `kernel/src/cap.rs::revoke_some`, at most so many removals at a time.
    fn revoke(&mut self, of: usize, mut removals: u32) -> bool {
        let mut at = name(of);
        loop {
            at = derivation::descend(self, at, &mut { derivation::MAX_DEPTH as u32 });
            if at == name(of) {
                return self.child(at).is_none();
            }
            if removals == 0 {
                return false;
            }
            removals -= 1;
            let before = self.previous(at);
            self.words[at as usize - 1] = CapWord::EMPTY;
            derivation::unlink(self, at);
            at = before;
        }
    }

    fn delete(&mut self, at: usize) {
        while !self.revoke(at, 2) {}
        self.words[at] = CapWord::EMPTY;
        derivation::unlink(self, name(at));
    }

    /// What a table's holder reaches: objects with rights.
    fn reach(&self, table: usize) -> BTreeSet<(u64, u8)> {
        let own = &self.words[table * SLOTS..(table + 1) * SLOTS];
        own.iter().filter(|word| !word.is_empty()).map(|word| (word.address(), word.rights().0)).collect()
    }
}

/// The model: what each slot holds, and from which one it came.
#[derive(Default)]
struct Model(BTreeMap<usize, (u64, u8, Option<usize>)>);

impl Model {
    fn children(&self, of: usize) -> Vec<usize> {
        let mut found: Vec<usize> = Vec::new();
        let mut todo = vec![of];
        while let Some(at) = todo.pop() {
            let own: Vec<usize> = self.0.iter().filter(|(_, cap)| cap.2 == Some(at)).map(|(slot, _)| *slot).collect();
            todo.extend(&own);
            found.extend(own);
        }
        found
    }

    fn reach(&self, table: usize) -> BTreeSet<(u64, u8)> {
        self.0.iter().filter(|(slot, _)| **slot / SLOTS == table).map(|(_, cap)| (cap.0, cap.1)).collect()
    }
}

fn start() -> (Kernel, Model) {
    let mut kernel = Kernel { links: RefCell::new(vec![(0, 0, 0); ALL]), words: vec![CapWord::EMPTY; ALL] };
    let mut model = Model::default();
    // Each object's first capability is in another task's table.
    for object in 0..OBJECTS {
        let (slot, address) = (object * SLOTS, (object as u64 + 1) * 4096);
        kernel.words[slot] = CapWord::new(ObjectType::Notification, address, Rights::ALL, 0);
        model.0.insert(slot, (address, Rights::ALL.0, None));
    }
    (kernel, model)
}

proptest! {
    #[test]
    fn everybody_reaches_what_the_model_says(
        steps in prop::collection::vec((0u8..6, 0usize..ALL, 0usize..ALL, any::<u8>()), 1..300)
    ) {
        let (mut kernel, mut model) = start();
        for (step, from, to, rights) in steps {
            match step {
                0..3 => {
                    let done = kernel.copy(from, to, Rights(rights));
                    let cap = model.0.get(&from).copied().filter(|_| !model.0.contains_key(&to));
                    if let (Some((object, own, _)), true) = (cap, done) {
                        model.0.insert(to, (object, own & rights, Some(from)));
                    }
                    // The chains here are too short for the bound on depth.
                    prop_assert_eq!(done, cap.is_some());
                }
                3 => {
                    let done = kernel.relocate(from, to);
                    let can = model.0.contains_key(&from) && !model.0.contains_key(&to);
                    prop_assert_eq!(done, can);
                    if let (Some(cap), true) = (model.0.get(&from).copied(), can) {
                        model.0.remove(&from);
                        model.0.insert(to, cap);
                        for other in model.0.values_mut().filter(|other| other.2 == Some(from)) {
                            other.2 = Some(to);
                        }
                    }
                }
                4 if model.0.contains_key(&from) => {
                    while !kernel.revoke(from, u32::from(rights % 4) + 1) {}
                    for gone in model.children(from) {
                        model.0.remove(&gone);
                    }
                }
                // The objects' first capabilities stay, or there would soon be nothing left to try.
                5 if model.0.get(&from).is_some_and(|cap| cap.2.is_some()) => {
                    kernel.delete(from);
                    for gone in model.children(from) {
                        model.0.remove(&gone);
                    }
                    model.0.remove(&from);
                }
                _ => {}
            }
            for table in 0..TABLES {
                prop_assert_eq!(kernel.reach(table), model.reach(table), "table {}", table);
            }
            for (slot, (_, rights, parent)) in &model.0 {
                if let Some(parent) = parent {
                    let above = model.0.get(parent).map_or(0, |cap| cap.1);
                    prop_assert_eq!(rights & !above, 0, "slot {} has more rights than what it came from", slot);
                }
            }
        }
    }
}

/// The check can fail: a capability that is left behind by a revoke is found.
#[test]
fn what_is_left_behind_is_found() {
    let (mut kernel, mut model) = start();
    assert!(kernel.copy(0, 9, Rights::ALL));
    model.0.insert(9, (4096, Rights::ALL.0, Some(0)));
    assert_eq!(kernel.reach(1), model.reach(1));
    for gone in model.children(0) {
        model.0.remove(&gone);
    }
    assert_ne!(kernel.reach(1), model.reach(1));
    assert!(kernel.revoke(0, 10));
    assert_eq!(kernel.reach(1), model.reach(1));
}
