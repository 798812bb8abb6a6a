//! Which translations a processor may still use, and when it must flush.
//!
//! A page-table entry is removed or narrowed at once; what processors have cached of it is not. A processor is told to flush only
//! if it has the space loaded; all others find out at their next load. Emulators drop translations at every load and cannot
//! show a mistake here; the tests below run the rules against processors that keep everything as long as they may.
//!
//! ```text
//! CPU that changes an entry                CPU that loads a space
//! entry = new                              loaded = space
//! generation += 1                          fence
//! fence                                    read generation
//! read every `loaded`: ask for a flush     differs from what the tag saw: flush the tag
//! ```
//! Either the changer sees the space loaded and asks, or the loader sees the new generation.

/// What a tag (PCID, VPID, ASID) of one processor was last flushed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Number of the space; numbers are never used twice without a flush of everything. 0: none.
    pub space: u64,
    /// The space's generation then.
    pub generation: u64,
}

/// What has to be flushed before a space is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// Nothing.
    Nothing,
    /// All translations of this tag.
    Tag,
}

/// Before a processor uses `space`, whose generation it reads after it has published the space as loaded. Without tags each load of
/// the page-table root flushes by itself, so only staying in a space is free.
#[must_use]
pub fn at_load(seen: Seen, space: u64, generation: u64) -> (Flush, Seen) {
    let now = Seen { space, generation };
    (if seen == now { Flush::Nothing } else { Flush::Tag }, now)
}

/// After an entry of `space` changed: whether a processor that has `loaded` must be asked to flush.
#[must_use]
pub fn must_ask(loaded: u64, space: u64) -> bool {
    loaded == space
}

/// Whether memory that was mapped may be used for something else: every processor that was asked has flushed.
#[must_use]
pub fn settled(wanted: u64, done: u64) -> bool {
    wanted <= done
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const CPUS: usize = 3;
    const SPACES: u64 = 3;
    const PAGES: u64 = 3;

    /// A processor that never forgets a translation by itself.
    #[derive(Default)]
    struct Cpu {
        loaded: u64,
        seen: HashMap<u64, Seen>,
        /// (tag, page) to the version of the entry that it was read from.
        cached: HashMap<(u64, u64), u64>,
        wanted: u64,
        done: u64,
    }

    #[derive(Default)]
    struct Machine {
        cpus: [Cpu; CPUS],
        generations: HashMap<u64, u64>,
        /// (space, page) to the version of its entry.
        entries: HashMap<(u64, u64), u64>,
        /// Versions below this are settled: (space, page) to version.
        oldest: HashMap<(u64, u64), u64>,
        /// Changes whose flushes are under way: space, page, version, number of the flush.
        pending: Vec<(u64, u64, u64, u64)>,
        flushes: u64,
    }

    impl Machine {
        fn tag(space: u64) -> u64 {
            space % 2
        }

        fn load(&mut self, cpu: usize, space: u64) {
            let generation = *self.generations.entry(space).or_default();
            let tag = Machine::tag(space);
            let me = &mut self.cpus[cpu];
            me.loaded = space;
            let (flush, now) = at_load(me.seen.get(&tag).copied().unwrap_or_default(), space, generation);
            if flush == Flush::Tag {
                me.cached.retain(|key, _| key.0 != tag);
            }
            me.seen.insert(tag, now);
        }

        fn touch(&mut self, cpu: usize, page: u64) -> Result<(), TestCaseError> {
            let space = self.cpus[cpu].loaded;
            if space == 0 {
                return Ok(());
            }
            let current = *self.entries.entry((space, page)).or_default();
            let used = *self.cpus[cpu].cached.entry((Machine::tag(space), page)).or_insert(current);
            let oldest = self.oldest.get(&(space, page)).copied().unwrap_or_default();
            prop_assert!(used >= oldest, "CPU {cpu} used version {used} of a page settled at {oldest}");
            Ok(())
        }

        fn change(&mut self, cpu: usize, space: u64, page: u64) {
            let version = self.entries.entry((space, page)).or_default();
            *version += 1;
            let version = *version;
            *self.generations.entry(space).or_default() += 1;
            // This processor's own translation goes at once.
            let tag = Machine::tag(space);
            if self.cpus[cpu].loaded == space {
                self.cpus[cpu].cached.remove(&(tag, page));
            }
            self.flushes += 1;
            for (index, other) in self.cpus.iter_mut().enumerate() {
                if index != cpu && must_ask(other.loaded, space) {
                    other.wanted = self.flushes;
                }
            }
            self.pending.push((space, page, version, self.flushes));
            self.settle();
        }

        fn flush(&mut self, cpu: usize) {
            let me = &mut self.cpus[cpu];
            if me.wanted > me.done {
                me.done = me.wanted;
                me.loaded = 0;
            }
            self.settle();
        }

        /// What the kernel answers: all flushes so far are done.
        fn settle(&mut self) {
            if self.cpus.iter().all(|cpu| settled(cpu.wanted, cpu.done)) {
                for (space, page, version, _) in self.pending.drain(..) {
                    let oldest = self.oldest.entry((space, page)).or_default();
                    *oldest = version.max(*oldest);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn nobody_uses_what_was_taken_back(steps in prop::collection::vec((0u8..5, 0usize..CPUS, 1..=SPACES, 0..PAGES), 0..200)) {
            let mut machine = Machine::default();
            for (step, cpu, space, page) in steps {
                match step {
                    0 => machine.load(cpu, space),
                    1 => machine.change(cpu, space, page),
                    2 => machine.flush(cpu),
                    _ => machine.touch(cpu, page)?,
                }
            }
        }
    }

    #[test]
    fn a_forgotten_generation_would_be_found() {
        // The same machine without the generation: the check above does fail where it should.
        let mut machine = Machine::default();
        machine.load(0, 1);
        machine.touch(0, 0).unwrap();
        machine.load(0, 2);
        machine.change(1, 1, 0);
        machine.generations.insert(1, 0);
        machine.load(0, 1);
        assert!(machine.touch(0, 0).is_err());
    }
}
