//! Further threads of a task, which the manifest gives it: each lives on a processor of its own choosing, with time of its own.
//!
//! The root task starts them together with the main one. Each waits on its own notification until the main thread hands it
//! something to do ([`spawn`]).

use crate::{Env, end, mapped};
use alloc::boxed::Box;
use moira_proto::start::{THREAD_STARTS, THREADS, layout};
use moira_proto::system::MOST_THREADS;
use moira_sys::{Caps, Deadline, Notification, receive};

type Job = Box<dyn FnOnce() + Send>;

/// What each thread shall do next.
static JOBS: [spin::Mutex<Option<Job>>; MOST_THREADS] = [const { spin::Mutex::new(None) }; MOST_THREADS];

impl Env {
    /// Notifications of the further threads (number 1 is at index 0), each bound to its thread.
    #[must_use]
    pub fn threads(&self) -> Caps<Notification> {
        self.capabilities(THREADS).unwrap_or(Caps::new(moira_sys::Slot::NONE, 0))
    }

    /// Lets thread `number` (from 1 on) run `job`; when it returns, the thread waits for the next one. Answers whether there
    /// is such a thread, and one that has no job waiting yet.
    pub fn spawn(&self, number: usize, job: impl FnOnce() + Send + 'static) -> bool {
        let index = number.checked_sub(1).and_then(|index| u32::try_from(index).ok());
        let starts = self.capabilities::<Notification>(THREAD_STARTS);
        let Some(start) = index.and_then(|index| starts?.get(index)) else { return false };
        let Some(place) = JOBS.get(number) else { return false };
        {
            let mut place = place.lock();
            if place.is_some() {
                return false;
            }
            *place = Some(Box::new(job));
        }
        start.signal().is_ok()
    }
}

/// What a further thread does for its life: jobs.
pub(crate) fn main(number: usize, stack: u64) -> ! {
    let top = layout::stack_top(number);
    // SAFETY: the root task maps this stack and this buffer for this thread alone, for the task's life.
    #[allow(unsafe_code)]
    let known = unsafe { mapped::register_thread(top.saturating_sub(stack)..top, layout::buffer(number)) };
    // Without a place among the known threads it could not even say why it stops.
    while let Some(job) = if known { next_job(number) } else { None } {
        job();
    }
    end::finish()
}

/// Waits for thread `number`'s next job; none: it cannot wait.
fn next_job(number: usize) -> Option<Job> {
    loop {
        // Taken out of its place before it runs: it may hand this thread the next one.
        if let Some(job) = JOBS.get(number).and_then(|place| place.lock().take()) {
            return Some(job);
        }
        // Signals that came for a job that has ended wake it for nothing.
        receive(Deadline::NEVER).ok()?;
    }
}
