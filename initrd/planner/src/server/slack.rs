//! Who takes slack where a scheduler hands it out: the scheduler is given the contexts, in slots of its table that are there for it.
//!
//! What is put there derives from the planner's own capability: letting go of the one takes the other back, and a context that dies is gone from
//! both. A scheduler that is made anew has an empty table, so the planner looks now and then, while there is anything to look for.

use super::Planner;
use alloc::vec::Vec;
use moira_rt::{
    proto::planner::MOST_NEWCOMERS,
    sys::{CapTable, ObjectType, Rights, SchedContext, Slot},
};

/// The slack scheduler of a CPU.
#[derive(Clone, Copy)]
pub struct Scheduler {
    /// Its capability table.
    pub table: CapTable,
    /// First of the slots for newcomers.
    pub first: Slot,
}

impl Scheduler {
    /// Puts a context into a place. Answers false if it is taken, or if there is no scheduler just now.
    fn put(self, context: SchedContext, place: u32) -> bool {
        self.table.copy(context, self.first.plus(place), Rights::ALL).is_ok()
    }

    /// Whether a place is empty.
    fn lacks(self, place: u32) -> bool {
        let kind = self.table.inspect(self.first.plus(place)).map(|found| found.kind);
        kind != Ok(Some(ObjectType::SchedContext))
    }
}

impl Planner {
    /// Sees to it that the context of holder number `index` takes slack, if its contract says so. Answers whether it does.
    pub(super) fn takes_slack(&mut self, index: usize) -> bool {
        let Some((id, context)) = self.holders.get(index).and_then(|holder| Some((holder.id, holder.context?))) else {
            return false;
        };
        let Some(cpu) = self.cpu_of(id) else { return false };
        let contract = self.admission.members(cpu).find(|member| member.0 == id).map(|member| member.1);
        // As where slack is handed out in windows: who is promised nothing lives on slack.
        if !contract.is_some_and(|contract| contract.extra || !contract.promises()) {
            return false;
        }
        let Some(scheduler) = self.processors.get(cpu).and_then(|one| one.scheduler) else {
            return true;
        };
        let here = |id| self.admission.members(cpu).any(|member| member.0 == id);
        let taken = |place| self.holders.iter().any(|holder| holder.place == Some(place) && here(holder.id));
        let place = (0..MOST_NEWCOMERS).find(|place| !taken(*place));
        if let Some(place) = place {
            // If there is no scheduler just now: when there is one again.
            scheduler.put(context, place);
        }
        if let Some(holder) = self.holders.get_mut(index) {
            holder.place = place;
        }
        place.is_some()
    }

    /// Schedulers that were made anew know nothing of those that came later than the manifest.
    pub(super) fn tell_again(&mut self) {
        let (mut failed, mut told) = (false, Vec::new());
        for holder in &self.holders {
            let (Some(context), Some(place)) = (holder.context, holder.place) else { continue };
            let Some(cpu) = self.cpu_of(holder.id) else { continue };
            let scheduler = self.processors.get(cpu).and_then(|one| one.scheduler);
            if let Some(scheduler) = scheduler.filter(|scheduler| scheduler.lacks(place)) {
                if scheduler.put(context, place) {
                    told.push(cpu);
                } else {
                    failed = true;
                }
            }
        }
        // The same plan once more: when it comes in force the scheduler looks who is there.
        for cpu in told {
            self.changed(cpu);
            self.install(cpu);
        }
        if failed {
            // There is no scheduler just now, or the context died.
            self.bury();
        }
    }
}
