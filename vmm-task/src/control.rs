//! Orders from the control task (`docs/abi/mailbox.md`): a mailbox, and a signal in each direction.

use moira_rt::Env;
use moira_rt::proto::mailbox::{self, Mailbox, machine, state};
use moira_rt::sys::Notification;
use vmm_core::history::History;
use vmm_core::vm::Orders;

/// Results of orders.
const DONE: u64 = 0;
const REFUSED: u64 = 1;

/// The monitor's end of the mailbox; without one, nobody orders anything.
#[derive(Default)]
pub struct Control {
    door: Option<(Mailbox<'static>, Notification)>,
    /// The order that waits for [`Control::tell`].
    looking: u64,
}

impl Control {
    /// The mailbox of this machine, if the manifest gives it one.
    pub fn new(env: &Env) -> Control {
        let region = env.info.regions.iter().find(|region| region.name.ends_with(mailbox::SUFFIX));
        let mailbox =
            region.and_then(|region| Mailbox::new(env.shared(&region.name).filter(|it| it.writable())?.words64()));
        let door = mailbox.zip(env.capability("control-signal"));
        if let Some((mailbox, _)) = door {
            mailbox.begin();
            mailbox.set(mailbox::RESETS, 0);
        }
        Control { door, looking: 0 }
    }

    /// Tells how the machine is.
    pub fn state(&self, state: u64, cpus: u64, resets: u64) {
        if let Some((mailbox, _)) = self.door {
            mailbox.set(mailbox::CPUS, cpus);
            mailbox.set(mailbox::RESETS, resets);
            mailbox.set(mailbox::STATE, state);
        }
    }

    /// Carries out the order that waits, if one does.
    pub fn follow(&mut self, orders: &mut Orders) {
        let Some((mailbox, signal)) = self.door else { return };
        if let Some(order) = mailbox.order() {
            let paused = mailbox.get(mailbox::STATE) == state::PAUSED;
            let mut result = DONE;
            match order.order {
                machine::LOOK => {
                    orders.look = true;
                    self.looking = order.number;
                }
                machine::PAUSE => mailbox.set(mailbox::STATE, state::PAUSED),
                machine::RESUME if paused => mailbox.set(mailbox::STATE, state::RUNNING),
                machine::POWER_BUTTON if !paused => orders.power_button = true,
                machine::RESET => {
                    mailbox.set(mailbox::STATE, state::RUNNING);
                    orders.reset = true;
                }
                _ => result = REFUSED,
            }
            if !orders.look {
                mailbox.done(order.number, result);
                // A control task that is gone does not want to know.
                let _ = signal.signal();
            }
        }
        orders.pause = mailbox.get(mailbox::STATE) == state::PAUSED;
    }

    /// Writes the numbers of exits.
    pub fn tell(&mut self, history: &History) {
        let Some((mailbox, signal)) = self.door else { return };
        for (word, count) in (mailbox::EXITS..).zip(history.counts()) {
            mailbox.set(word, *count);
        }
        mailbox.done(self.looking, DONE);
        let _ = signal.signal();
    }
}
