//! What the control task orders: a mailbox in a shared region, and a bit of the notification that also tells of tasks that stop.

use crate::{Doing, Failure, Root, TABLE, build::Life, failure};
use alloc::{boxed::Box, format};
use log::info;
use moira_abi::FrameSize;
use moira_proto::mailbox::{self, Mailbox, root};
use moira_rt::{
    memory::Mapping,
    sys::{Capability, Rights},
};

/// Tasks share so many bits of the notification.
pub const TASK_BITS: usize = 63;
/// An order waits.
pub const BIT: u64 = 1 << TASK_BITS;

impl Root {
    /// Maps the mailbox, if this system has one.
    pub fn open_orders(&mut self) -> Result<(), Failure> {
        let Some(part) = self.store.regions.get(mailbox::ROOT).and_then(|region| region.parts.first().copied()) else {
            return Ok(());
        };
        let doing = || failure("mapping the mailbox of the root task");
        let copy = self.copy(part.frame, Rights::READ.or(Rights::WRITE))?;
        let view: &Mapping = Box::leak(Box::new(self.memory.view(copy, FrameSize::Small).doing(doing)?));
        self.orders = Mailbox::new(view.shared().words64());
        Ok(())
    }

    /// A task is gone: whoever orders things of it shall know.
    pub fn tell_end(&mut self, name: &str) -> Result<(), Failure> {
        let region = self.store.regions.get(&format!("{name}{}", mailbox::SUFFIX));
        let Some(part) = region.and_then(|region| region.parts.first().copied()) else {
            return Ok(());
        };
        let doing = || format!("the mailbox of task {name}");
        let copy = self.copy(part.frame, Rights::READ.or(Rights::WRITE))?;
        let view = self.memory.view(copy, FrameSize::Small).doing(doing)?;
        if let Some(mailbox) = Mailbox::new(view.shared().words64()) {
            mailbox.set(mailbox::STATE, mailbox::state::ENDED);
        }
        self.memory.release(view).doing(doing)?;
        TABLE.delete_fully(copy.slot()).doing(doing)?;
        self.memory.slots.give(copy.slot(), 1);
        Ok(())
    }

    /// Carries out the order that waits, if one does.
    pub fn follow_orders(&mut self) -> Result<(), Failure> {
        let Some((mailbox, order)) = self.orders.and_then(|mailbox| Some((mailbox, mailbox.order()?))) else {
            return Ok(());
        };
        let index = usize::try_from(order.argument).unwrap_or(usize::MAX);
        let done = match order.order {
            root::KILL => self.kill(index)?,
            _ => false,
        };
        mailbox.set(mailbox::FREE, self.pool.free());
        mailbox.done(order.number, u64::from(!done));
        Ok(())
    }

    /// Ends a task because it was ordered; its restart rule does not count. Answers whether there was one.
    fn kill(&mut self, index: usize) -> Result<bool, Failure> {
        let alive = self.tasks.get(index).is_some_and(|built| matches!(built.life, Life::Running | Life::Resting(_)));
        let Some(name) = self.system.tasks.get(index).filter(|_| alive).map(|task| task.name.clone()) else {
            return Ok(false);
        };
        let before = self.pool.free();
        self.remove(index, Life::Finished).map_err(|why| format!("task {name}: {why}"))?;
        info!("root: task {name}: ended by order, {} KiB of memory came back", (self.pool.free() - before) >> 10);
        Ok(true)
    }
}
