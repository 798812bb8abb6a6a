//! Which translations a processor may still use, and when it must flush. The kernel asks here before it flushes, or does not.
//!
//! A page-table entry is removed or narrowed at once; what processors have cached of it is not. A processor is told to flush only
//! if it has the space loaded; all others find out at their next load. Emulators drop translations at every load and cannot
//! show a mistake here; the tests below run the rules against processors that keep everything as long as they may. Large pages are never
//! split: a mapping is replaced or removed as it was made.
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

/// Why translations were dropped; the trace has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Another space was loaded, and there are no tags for tasks' spaces.
    Load = 1,
    /// An entry of a task's space changed: this page, on the processor that changed it.
    Page = 2,
    /// Another processor asked.
    Asked = 3,
    /// The space, or something about it, is not what the guest's tag has seen.
    Guest = 4,
    /// The space died.
    Dead = 5,
    /// Not a flush: another processor is asked for one.
    Asks = 6,
}

/// Before a processor uses `space` under a tag, whose generation it reads after it has published the space as loaded.
#[inline(always)]
#[must_use]
pub fn at_load(seen: Seen, space: u64, generation: u64) -> (Flush, Seen) {
    let now = Seen { space, generation };
    (if seen == now { Flush::Nothing } else { Flush::Tag }, now)
}

/// The same for spaces without tags: each load of the root drops everything by itself, and only staying in a space is free. Nothing
/// tells such a space's changes but the request to flush, which unloads it.
#[inline(always)]
#[must_use]
pub fn may_stay(loaded: u64, space: u64) -> bool {
    loaded == space
}

/// What the processor that changed an entry does itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// Drops this page's translation: the space is used without a tag.
    Page,
    /// Counts the generation up, for each tag to find at its next load.
    Generation,
}

/// After an entry changed: what is done here, before others are asked.
#[inline(always)]
#[must_use]
pub fn after_change(tagged: bool) -> Own {
    if tagged { Own::Generation } else { Own::Page }
}

/// After an entry of `space` changed: whether a processor that has `loaded` must be asked to flush.
#[inline(always)]
#[must_use]
pub fn must_ask(loaded: u64, space: u64) -> bool {
    loaded == space
}

/// Whether memory that was mapped may be used for something else: every processor that was asked has flushed.
#[inline(always)]
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
    const SPACES: u64 = 4;
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
        /// Spaces 1 and 3 are guests' and share a tag; spaces 2 and 4 are tasks' and have none (which is one for all of them).
        fn tag(space: u64) -> u64 {
            space % 2
        }

        fn tagged(space: u64) -> bool {
            space % 2 == 1
        }

        fn load(&mut self, cpu: usize, space: u64) {
            let generation = *self.generations.entry(space).or_default();
            let tag = Machine::tag(space);
            let me = &mut self.cpus[cpu];
            if !Machine::tagged(space) {
                if !may_stay(me.loaded, space) {
                    me.cached.retain(|key, _| key.0 != tag);
                }
                me.loaded = space;
                return;
            }
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
            match after_change(Machine::tagged(space)) {
                Own::Generation => {
                    *self.generations.entry(space).or_default() += 1;
                    // A guest's changer is its VMM, which does not run in the guest: the next entry is a load.
                    if self.cpus[cpu].loaded == space {
                        self.cpus[cpu].loaded = 0;
                    }
                }
                Own::Page => {
                    self.cpus[cpu].cached.remove(&(Machine::tag(space), page));
                }
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
