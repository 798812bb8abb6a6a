//! The protocols between CPUs, as the two-column comments of `kernel/src/smp.rs` and `object/notification.rs` have them, under
//! every interleaving. They are mirrors: the same loads, stores, fences and orders on loom's atomics, with the kernel's data taken
//! away. The structural lock is the kernel's own code.

use loom::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*, fence},
};
use loom::thread;
use moira_kernel_core::turns::{Turns, Word};

/// A signaller and a waiter: the waiter is woken, or sees the bits before it blocks.
#[test]
fn a_signal_is_never_lost() {
    loom::model(|| {
        let bits = Arc::new(AtomicU64::new(0));
        let waiter = Arc::new(AtomicU64::new(0));
        let (b, w) = (bits.clone(), waiter.clone());
        let signaller = thread::spawn(move || {
            b.fetch_or(1, SeqCst);
            fence(SeqCst);
            // Whether a wake is sent.
            w.load(Acquire) != 0
        });
        waiter.compare_exchange(0, 7, SeqCst, SeqCst).unwrap();
        fence(SeqCst);
        let blocked = bits.load(Acquire) == 0;
        let woken = signaller.join().unwrap();
        assert!(!blocked || woken, "asleep with bits pending");
    });
}

/// One node of a mailbox: its mask, its link (0: end; else index + 1).
#[derive(Default)]
struct Node {
    mask: AtomicU32,
    next: AtomicU64,
}

struct Mailbox {
    head: AtomicU64,
    accept: AtomicBool,
    interrupts: AtomicU32,
    nodes: [Node; 2],
}

impl Mailbox {
    fn new() -> Mailbox {
        Mailbox {
            head: AtomicU64::new(0),
            accept: AtomicBool::new(false),
            interrupts: AtomicU32::new(0),
            nodes: Default::default(),
        }
    }

    fn post(&self, node: usize, message: u32) {
        if self.nodes[node].mask.fetch_or(message, SeqCst) == 0 {
            let mut head = self.head.load(Relaxed);
            loop {
                self.nodes[node].next.store(head, Relaxed);
                match self.head.compare_exchange(head, node as u64 + 1, SeqCst, Relaxed) {
                    Ok(_) => break,
                    Err(other) => head = other,
                }
            }
        }
        fence(SeqCst);
        if self.accept.load(SeqCst) {
            self.interrupts.fetch_add(1, SeqCst);
        }
    }

    /// Answers the messages acted upon, by node.
    fn drain(&self) -> [u32; 2] {
        let mut got = [0; 2];
        let mut at = self.head.swap(0, SeqCst);
        while at != 0 {
            let node = at as usize - 1;
            at = self.nodes[node].next.load(Relaxed);
            got[node] |= self.nodes[node].mask.swap(0, SeqCst);
        }
        got
    }
}

/// Two senders, two objects: whatever was posted is drained, or an interrupt is on its way.
#[test]
fn a_message_is_drained_or_interrupts() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let mailbox = Arc::new(Mailbox::new());
        let senders: Vec<_> = [(0usize, 1u32), (1, 2)]
            .into_iter()
            .map(|(node, message)| {
                let mailbox = mailbox.clone();
                thread::spawn(move || mailbox.post(node, message))
            })
            .collect();
        // The receiver about to idle: drain, choose, say `accept`, look once more.
        let mut got = mailbox.drain();
        mailbox.accept.store(true, SeqCst);
        fence(SeqCst);
        if mailbox.head.load(SeqCst) != 0 {
            for (sum, more) in got.iter_mut().zip(mailbox.drain()) {
                *sum |= more;
            }
        }
        let asleep_with = got;
        for sender in senders {
            sender.join().unwrap();
        }
        let interrupted = mailbox.interrupts.load(SeqCst) > 0;
        assert!(asleep_with == [1, 2] || interrupted, "asleep without a message: {asleep_with:?}");
        for (sum, more) in got.iter_mut().zip(mailbox.drain()) {
            *sum |= more;
        }
        assert_eq!(got, [1, 2], "each message exactly where it belongs");
        assert_eq!(mailbox.head.load(SeqCst), 0);
    });
}

/// Two messages to the same object from two senders: pushed once at a time, none lost.
#[test]
fn messages_of_one_object_add_up() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new());
        let other = mailbox.clone();
        let sender = thread::spawn(move || other.post(0, 1));
        mailbox.post(0, 2);
        let first = mailbox.drain();
        sender.join().unwrap();
        let second = mailbox.drain();
        assert_eq!(first[0] | second[0], 3);
        assert_eq!(first[0] & second[0], 0, "acted upon twice");
    });
}

/// Grace: a slot is emptied, then the memory of what it named is reused after every CPU was seen outside of the kernel. A reader
/// that found the object uses it only until it leaves.
#[test]
fn memory_is_reused_after_grace_only() {
    loom::model(|| {
        let slot = Arc::new(AtomicU64::new(1));
        let epoch = Arc::new(AtomicU64::new(0));
        let memory = Arc::new(AtomicU64::new(42));
        let (s, e, m) = (slot.clone(), epoch.clone(), memory.clone());
        let reader = thread::spawn(move || {
            // Kernel entry: a locked instruction, which is a full fence on this processor.
            e.fetch_add(1, SeqCst);
            fence(SeqCst);
            if s.load(Acquire) != 0 {
                assert_eq!(m.load(Relaxed), 42, "reused while a CPU could see it");
            }
            // Kernel exit.
            let now = e.load(Relaxed);
            e.store(now + 1, Release);
        });
        slot.store(0, Release);
        fence(SeqCst);
        if epoch.load(SeqCst) & 1 == 0 {
            memory.store(0, Relaxed);
        }
        reader.join().unwrap();
    });
}

/// An object dies while a signaller on another CPU is about to post to it: after grace its mask tells whether its node is still in
/// a mailbox, and the memory waits for that.
#[test]
fn no_mailbox_leads_to_reused_memory() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new());
        let waiter = Arc::new(AtomicU64::new(1));
        let epoch = Arc::new(AtomicU64::new(0));
        let (m, w, e) = (mailbox.clone(), waiter.clone(), epoch.clone());
        let signaller = thread::spawn(move || {
            e.fetch_add(1, SeqCst);
            fence(SeqCst);
            if w.load(Acquire) != 0 {
                m.post(0, 1);
            }
            let now = e.load(Relaxed);
            e.store(now + 1, Release);
        });
        // The home CPU lets go of the thread, then the revoke waits for grace and looks at the mask.
        mailbox.drain();
        waiter.store(0, Release);
        fence(SeqCst);
        let grace = epoch.load(SeqCst) & 1 == 0;
        let reusable = grace && mailbox.nodes[0].mask.load(Acquire) == 0;
        signaller.join().unwrap();
        if reusable {
            assert_eq!(mailbox.head.load(SeqCst), 0, "the mailbox leads to reused memory");
        }
    });
}

/// Flush or generation: the CPU that loads a guest's space sees the new generation, or the changer sees the space loaded.
#[test]
fn a_change_is_seen_or_asked_for() {
    loom::model(|| {
        let loaded = Arc::new(AtomicU64::new(0));
        let generation = Arc::new(AtomicU64::new(0));
        let (l, g) = (loaded.clone(), generation.clone());
        let loader = thread::spawn(move || {
            l.store(5, SeqCst);
            fence(SeqCst);
            g.load(Acquire)
        });
        generation.fetch_add(1, SeqCst);
        fence(SeqCst);
        let asked = loaded.load(SeqCst) == 5;
        let seen = loader.join().unwrap();
        assert!(asked || seen == 1, "old translations, and nobody says so");
    });
}

/// Loom's word for the structural lock.
struct Tried(AtomicU64);

impl Word for Tried {
    fn load(&self) -> u64 {
        self.0.load(Acquire)
    }
    fn clear(&self) {
        self.0.store(0, Release);
    }
    fn set(&self, bits: u64) {
        self.0.fetch_or(bits, SeqCst);
    }
    fn take(&self, bits: u64) -> u64 {
        self.0.fetch_and(!bits, SeqCst)
    }
    fn claim(&self) -> bool {
        self.0.compare_exchange(0, 1, SeqCst, Relaxed).is_ok()
    }
    fn add(&self, number: u64) {
        self.0.fetch_add(number, SeqCst);
    }
}

struct Locked {
    lock: Turns<Tried, 1>,
    inside: AtomicU32,
    done: AtomicU32,
}

impl Locked {
    fn new() -> Arc<Locked> {
        let word = || Tried(AtomicU64::new(0));
        Arc::new(Locked {
            lock: Turns::new(word(), word(), [word()]),
            inside: AtomicU32::new(0),
            done: AtomicU32::new(0),
        })
    }

    fn work(&self, me: u32) {
        // Relaxed: only the lock orders these.
        assert_eq!(self.inside.load(Relaxed), 0, "two hold it");
        self.inside.store(1, Relaxed);
        self.done.store(self.done.load(Relaxed) + 1, Relaxed);
        self.inside.store(0, Relaxed);
        let _ = self.lock.give(me);
    }

    /// Tries, waits for a while, and is called away if it takes longer.
    fn turn(&self, me: u32, patience: u32) -> bool {
        let mut held = self.lock.try_take();
        if !held {
            self.lock.want(me);
            for _ in 0..patience {
                held = self.lock.poll(me);
                if held {
                    break;
                }
                thread::yield_now();
            }
            held = held || self.lock.cancel(me);
        }
        if held {
            self.work(me);
        }
        held
    }
}

/// One holder at a time, whoever is called away when; and afterwards it is free.
#[test]
fn the_structural_lock_has_one_holder_and_is_never_lost() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let locked = Locked::new();
        let others: Vec<_> = [1, 2]
            .into_iter()
            .map(|me| {
                let locked = locked.clone();
                thread::spawn(move || u32::from(locked.turn(me, 1)))
            })
            .collect();
        let mut turns = u32::from(locked.turn(0, 0));
        for other in others {
            turns += other.join().unwrap();
        }
        assert_eq!(locked.done.load(Relaxed), turns);
        assert!(turns > 0, "nobody had it");
        assert!(locked.lock.try_take(), "handed to somebody who does not know");
    });
}

/// Whoever waits for it gets it: a hand-over is never missed.
#[test]
fn the_structural_lock_comes_to_whoever_waits() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let locked = Locked::new();
        let other = locked.clone();
        let waiter = thread::spawn(move || {
            if !other.lock.try_take() {
                other.lock.want(1);
                while !other.lock.poll(1) {
                    thread::yield_now();
                }
            }
            other.work(1);
        });
        locked.turn(0, 0);
        waiter.join().unwrap();
        assert!(locked.lock.try_take());
    });
}
