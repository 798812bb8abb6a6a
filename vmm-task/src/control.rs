//! Orders from the control task (`docs/abi/mailbox.md`): a mailbox, and a signal in each direction.

use crate::debugger::Debugger;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use moira_rt::Env;
use moira_rt::mapped::Shared;
use moira_rt::proto::mailbox::{self, Mailbox, machine, state};
use moira_rt::sys::Notification;
use vmm_core::history::History;
use vmm_core::vm::Orders;

/// Results of orders.
const DONE: u64 = 0;
const REFUSED: u64 = 1;

/// The monitor's end of the mailbox; without one, nobody orders anything. The main thread follows orders, all threads tell.
pub struct Control {
    region: Option<Shared<'static>>,
    door: Option<(Mailbox<'static>, Notification)>,
    cpus: usize,
    /// Number of the order for which processors tell of their exits, and how many have not yet.
    looking: AtomicU64,
    left: AtomicUsize,
}

impl Control {
    /// The mailbox of this machine of so many processors, if the manifest gives it one.
    pub fn new(env: &Env, cpus: usize) -> Control {
        let region = env.info.regions.iter().find(|region| region.name.ends_with(mailbox::SUFFIX));
        let region = region.and_then(|region| env.shared(&region.name)).filter(|region| region.writable());
        let mailbox = region.as_ref().and_then(|region| Mailbox::new(region.words64()));
        let door = mailbox.zip(env.capability("control-signal"));
        if let Some((mailbox, _)) = door {
            mailbox.begin();
        }
        Control { region, door, cpus, looking: AtomicU64::new(0), left: AtomicUsize::new(0) }
    }

    /// The region that holds the mailbox.
    pub fn region(&self) -> Option<Shared<'static>> {
        self.region
    }

    /// Tells the control task that there are bytes in the stream.
    pub fn signal(&self) {
        if let Some((_, signal)) = self.door {
            // A control task that is gone does not want to know.
            let _ = signal.signal();
        }
    }

    /// Tells how the machine is.
    pub fn state(&self, state: u64, resets: u64) {
        if let Some((mailbox, _)) = self.door {
            mailbox.set(mailbox::CPUS, self.cpus as u64);
            mailbox.set(mailbox::RESETS, resets);
            mailbox.set(mailbox::STATE, state);
        }
    }

    fn done(&self, number: u64, result: u64) {
        if let Some((mailbox, signal)) = self.door {
            mailbox.done(number, result);
            // A control task that is gone does not want to know.
            let _ = signal.signal();
        }
    }

    /// Carries out the order that waits, if one does.
    pub fn follow(&self, orders: &mut Orders, debugger: Option<&mut Debugger>) {
        let Some((mailbox, order)) = self.door.and_then(|(mailbox, _)| Some((mailbox, mailbox.order()?))) else {
            return;
        };
        let paused = mailbox.get(mailbox::STATE) == state::PAUSED;
        let mut result = DONE;
        match order.order {
            machine::LOOK => {
                // Bits that come again before all have told do not begin anew.
                if self.looking.swap(order.number, Ordering::Relaxed) != order.number {
                    self.left.store(self.cpus, Ordering::Release);
                    orders.look = true;
                }
                return;
            }
            machine::PAUSE => {
                mailbox.set(mailbox::STATE, state::PAUSED);
                orders.hold = Some(true);
            }
            machine::RESUME if paused => {
                mailbox.set(mailbox::STATE, state::RUNNING);
                orders.hold = Some(false);
            }
            machine::POWER_BUTTON if !paused => orders.power_button = true,
            machine::NMI if !paused => orders.nmi = true,
            machine::RESET => orders.reset = true,
            machine::DEBUG | machine::DEBUG_END => match debugger {
                Some(debugger) if order.order == machine::DEBUG => debugger.open(),
                Some(debugger) => debugger.close(),
                None => result = REFUSED,
            },
            _ => result = REFUSED,
        }
        self.done(order.number, result);
    }

    /// Writes the numbers of exits of one processor; the last one says that the order was carried out.
    pub fn tell(&self, cpu: usize, history: &History) {
        let Some((mailbox, _)) = self.door.filter(|_| cpu < mailbox::MOST_CPUS) else { return };
        for (word, count) in (mailbox::EXITS + cpu * mailbox::REASONS..).zip(history.counts()) {
            mailbox.set(word, count);
        }
        let left = self.left.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |left| left.checked_sub(1));
        if left == Ok(1) {
            self.done(self.looking.load(Ordering::Relaxed), DONE);
        }
    }
}
