//! What others know a task by, and what it keeps when it is made anew: its endpoint, its notification, its scheduling context and
//! its interrupts. They are made from the root task's memory, so that clients' capabilities, windows of plans and the
//! scheduler's list stay good when the task behind them is replaced.

use crate::{Doing, Failure, PLATFORM, Root, no_slots};
use alloc::{format, string::String, vec::Vec};
use moira_proto::system::{Grant, Time};
use moira_root::restart::Deaths;
use moira_rt::sys::{Endpoint, Frame, Interrupt, InterruptFlags, IoPorts, Notification, Rights, SchedContext, Slot};

/// One task's.
pub struct Identity {
    /// Where it is called, if it serves.
    pub endpoint: Option<Endpoint>,
    /// Its notification.
    pub notification: Notification,
    /// Its time, if it has any of its own.
    pub context: Option<SchedContext>,
    /// What tells the root task that it stopped.
    pub stopped: Notification,
    /// Its further threads, from number 1 on.
    pub threads: Vec<ThreadIdentity>,
    /// Devices by the names of the grants.
    pub devices: Vec<(String, Device)>,
    /// What it was lent when it was made last, by the names of the grants: log2 of the bytes of each memory.
    pub lent: Vec<(String, Vec<u8>)>,
    /// How often it died in a row.
    pub deaths: Deaths,
}

/// What a further thread keeps.
pub struct ThreadIdentity {
    /// Bound to the thread.
    pub notification: Notification,
    /// Its time, if it has any of its own.
    pub context: Option<SchedContext>,
}

/// A device's part.
pub enum Device {
    /// An interrupt line.
    Interrupt(Interrupt),
    /// Ports.
    Ports(IoPorts),
    /// Registers: frames in the order of their addresses.
    Frames(Vec<Frame>),
}

impl Root {
    pub(crate) fn slot(&mut self) -> Result<Slot, Failure> {
        self.memory.slots.take(1).ok_or_else(no_slots)
    }

    fn make_context(&mut self, time: &Time) -> Result<Option<SchedContext>, Failure> {
        if !time.context {
            return Ok(None);
        }
        let slot = self.slot()?;
        self.memory.untyped.retype_contexts(1, slot).doing(|| "making it".into())?;
        Ok(Some(SchedContext::new(slot)))
    }

    /// Makes task number `index` known, before it exists.
    pub fn make_identity(&mut self, index: usize) -> Result<(), Failure> {
        let spec = self.system.tasks[index].clone();
        let own = self.memory.untyped;
        let what = |what| format!("the {what} of task {}", spec.name);
        let slot = self.slot()?;
        own.retype_notifications(1, slot).doing(|| what("notification"))?;
        let notification = Notification::new(slot);
        let mut endpoint = None;
        if spec.serves {
            let slot = self.slot()?;
            own.retype_endpoints(1, slot).doing(|| what("endpoint"))?;
            endpoint = Some(Endpoint::new(slot));
        }
        let context = self.make_context(&spec.time).doing(|| what("scheduling context"))?;
        let mut threads = Vec::new();
        for thread in &spec.threads {
            let slot = self.slot()?;
            own.retype_notifications(1, slot).doing(|| what("notification of a thread"))?;
            let context = self.make_context(&thread.time).doing(|| what("scheduling context of a thread"))?;
            threads.push(ThreadIdentity { notification: Notification::new(slot), context });
        }
        let slot = self.slot()?;
        let stopped = crate::TABLE
            .mint(self.stopped, slot, Rights::SIGNAL, 1 << (index % crate::orders::TASK_BITS))
            .doing(|| what("fault notification"))?;
        let mut devices = Vec::new();
        for (name, grant) in &spec.grants {
            let doing = || format!("{name} of task {}", spec.name);
            let device = match *grant {
                Grant::Ports { first, last } => {
                    let slot = self.slot()?;
                    Device::Ports(PLATFORM.make_ports(first, last, slot).doing(doing)?)
                }
                Grant::Interrupt { gsi, level, active_low, bits } => {
                    self.machine.need_io_apics()?;
                    let slot = self.slot()?;
                    own.retype_interrupts(1, slot).doing(doing)?;
                    let (interrupt, slot) = (Interrupt::new(slot), self.slot()?);
                    let target = crate::TABLE.mint(notification, slot, Rights::SIGNAL, bits).doing(doing)?;
                    let flags = InterruptFlags { level, active_low };
                    PLATFORM.make_line(interrupt, gsi, flags, self.machine.cpu(spec.cpu)?, target).doing(doing)?;
                    Device::Interrupt(interrupt)
                }
                Grant::Device { physical, length } => {
                    let mut frames = Vec::new();
                    for offset in (0..length).step_by(4096) {
                        let slot = self.slot()?;
                        let size = moira_abi::FrameSize::Small;
                        frames.push(PLATFORM.make_frame(physical.saturating_add(offset), size, slot).doing(doing)?);
                    }
                    Device::Frames(frames)
                }
                _ => continue,
            };
            devices.push((name.clone(), device));
        }
        let (lent, deaths) = (Vec::new(), Deaths::default());
        self.identities.push(Identity { endpoint, notification, context, stopped, threads, devices, lent, deaths });
        Ok(())
    }
}
