//! What each CPU has to itself. The same structure is the `Cpu` object that capabilities name.

use crate::{
    cap::Slot,
    checks::Checks,
    memory::{Obj, Object, Page},
    object::{
        address_space::AddressSpace,
        interrupt::Interrupt,
        plan::Plan,
        sched_context::SchedContext,
        thread::{Dispatch, Thread},
        vcpu::Vcpu,
    },
    trace::Ring,
};
use core::{
    cell::Cell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::*},
};
use moira_abi::{ObjectType, time::STATUS_CONTEXTS};
use moira_kernel_core::{flush, plan::Position};

/// Bits of `Cpu::attention`.
pub mod attention {
    /// The trace is on.
    pub const TRACE: u8 = 1;
    /// A guest's state is still in registers that only its own VMM may run with.
    pub const GUEST: u8 = 2;
    /// Another space is loaded with measures against leaks.
    pub const HARDEN: u8 = 4;
}

/// Value of `Cpu::next_plan`: follow no plan.
pub const NO_PLAN: u64 = 1;
/// Most CPUs.
pub const MAX_CPUS: usize = 256;

static CPUS: [AtomicPtr<Cpu>; MAX_CPUS] = [const { AtomicPtr::new(core::ptr::null_mut()) }; MAX_CPUS];
static COUNT: AtomicUsize = AtomicUsize::new(0);

/// One CPU. `entry.s` knows the first page; where tasks run on tables without the kernel, it is what they keep of this.
#[repr(C, align(4096))]
pub struct Cpu {
    /// Its own address.
    pub me: Cell<u64>,
    /// User stack pointer while entering.
    pub scratch: Cell<u64>,
    /// Where the entry code pushes the running thread's registers from.
    pub regs_end: Cell<u64>,
    /// Top of the kernel stack.
    pub stack: Cell<u64>,
    /// Odd while in the kernel.
    pub epoch: AtomicU64,
    /// Saved words of the interrupt entry.
    pub save: [Cell<u64>; 3],
    /// What CR3 gets in the kernel; 0: it stays.
    pub kernel_cr3: Cell<u64>,
    /// What CR3 gets for the loaded space, where the other is not 0.
    pub task_cr3: Cell<u64>,
    /// Measures against leaks that the entry code knows; above them a selector for VERW.
    pub measures: Cell<u64>,
    /// What interrupts of tasks begin on.
    entry_stack: [Cell<u64>; 501],

    /// Index.
    pub index: u32,
    /// Local APIC id.
    pub apic_id: Cell<u32>,
    /// Whether it runs.
    pub online: AtomicBool,

    /// The thread that runs, or ran last.
    pub current: Cell<Option<Obj<Thread>>>,
    /// The context that is charged.
    pub chosen: Cell<Option<Obj<SchedContext>>>,
    /// Whose request the chosen context's time is for; `None`: nobody's who lives.
    pub beneficiary: Cell<Option<Obj<SchedContext>>>,
    /// Whether the chosen context owns the current window.
    pub in_window: Cell<bool>,
    /// Whether the chosen context runs on slack, by the scheduler's dispatch.
    pub in_dispatch: Cell<bool>,
    /// Ticks that the dispatched context was charged so far.
    pub dispatched: Cell<u64>,
    /// Whether the kernel has to choose before it returns.
    pub must_choose: Cell<bool>,
    /// Physical address of the loaded task space; other CPUs read it to know whom to flush.
    pub loaded_space: AtomicU64,
    /// The same for the guest space of the vCPU that was entered last.
    pub loaded_guest: AtomicU64,
    /// The vCPU whose vector state is in the registers.
    pub vector_owner: Cell<Option<Obj<Vcpu>>>,

    /// The plan that is followed.
    pub plan: Cell<Option<Obj<Plan>>>,
    /// Where in it.
    pub position: Cell<Position>,
    /// Owner of the stretch of the plan that was looked up last (as its window names it; 0: slack), and when that stretch ends; 0: look
    /// again.
    pub stretch: Cell<(u64, u64)>,
    /// What replaces it at the next cycle: 0 nothing, [`NO_PLAN`], or the plan's physical address. Set by any CPU.
    pub next_plan: AtomicU64,
    /// Root's window of the boot plan: kept while no plan was ever installed.
    pub boot_context: Cell<Option<Obj<SchedContext>>>,
    /// A scheduler's context that is to be registered: its physical address. Set by any CPU.
    pub next_scheduler: AtomicU64,
    /// The scheduler's context.
    pub scheduler: Cell<Option<Obj<SchedContext>>>,
    /// The capability to its status page: gone when the frame's memory is revoked.
    pub status: Slot,
    /// The sequence of the status page (the kernel's own copy).
    pub sequence: Cell<u64>,
    /// TSC value the timer is set to.
    pub timer: Cell<u64>,

    /// TSC since when the current account runs.
    pub account_since: Cell<u64>,
    /// TSC when the ledger began.
    pub ledger_start: Cell<u64>,
    /// Idle ticks.
    pub idle: Cell<u64>,
    /// Ticks of contexts, living and dead.
    pub charged: Cell<u64>,
    /// Ticks of interrupt handling.
    pub interrupt_time: Cell<u64>,
    /// Ticks that were charged here to contexts that died, or moved away: other CPUs add what they take along.
    pub gone: AtomicU64,
    /// Times Choose ran.
    pub choices: Cell<u64>,

    /// Contexts with a word on the status page: physical addresses. Set by any CPU.
    pub contexts: [AtomicU64; STATUS_CONTEXTS],
    /// Interrupt sources by vector: physical addresses.
    vectors: [AtomicU64; 256],
    /// Those that are in use, bit by bit (structural lock).
    vectors_used: [Cell<u64>; 4],

    /// Mailbox: threads with messages (a stack).
    pub mailbox: AtomicU64,
    /// What was taken out of it and not acted upon yet.
    pub backlog: Cell<u64>,
    /// Messages to the CPU itself.
    pub mail: AtomicU32,
    /// Whether a wake from another CPU may interrupt.
    pub accept: AtomicBool,
    /// Flush that is wanted, and the last one done.
    pub flush_wanted: AtomicU64,
    /// See `flush_wanted`.
    pub flush_done: AtomicU64,

    /// Trace.
    pub trace: Ring,
    /// What the short paths must not be taken for: [`attention`] bits.
    pub attention: AtomicU8,
    /// The virtualization hardware's part; null: none.
    pub virt: Cell<*mut crate::arch::virt::CpuVirt>,
    /// Physical address of pages for the virtualization hardware.
    pub virt_pages: Cell<u64>,
    /// What a checking kernel saw.
    pub checks: Checks,
}

static_assertions::const_assert_eq!(core::mem::offset_of!(Cpu, save), 40);
static_assertions::const_assert_eq!(core::mem::offset_of!(Cpu, index), 4096);

impl Object for Cpu {
    const KIND: ObjectType = ObjectType::Cpu;
}

/// Registers a CPU structure.
pub fn register(cpu: &'static Cpu) {
    CPUS[cpu.index as usize].store(core::ptr::from_ref(cpu).cast_mut(), Release);
    COUNT.fetch_max(cpu.index as usize + 1, SeqCst);
}

/// CPUs there are structures for.
pub fn count() -> usize {
    COUNT.load(Acquire)
}

/// The CPU with an index that exists.
#[inline(always)]
pub fn by_index(index: u32) -> &'static Cpu {
    get(index).unwrap_or_else(|| panic!("no CPU {index}"))
}

/// The CPU with an index.
pub fn get(index: u32) -> Option<&'static Cpu> {
    let cpu = CPUS.get(index as usize)?.load(Acquire);
    // SAFETY: only `register` stores here, and CPU structures live for ever.
    unsafe { cpu.as_ref() }
}

/// All CPUs that run.
pub fn online() -> impl Iterator<Item = &'static Cpu> {
    (0..count() as u32).filter_map(get).filter(|cpu| cpu.online.load(Acquire))
}

impl Cpu {
    /// A free index on the status page.
    pub fn take_index(&self, context: Obj<SchedContext>) -> u32 {
        let take = |word: &AtomicU64| word.compare_exchange(0, context.physical(), AcqRel, Relaxed).is_ok();
        self.contexts.iter().position(take).map_or(u32::MAX, |index| index as u32)
    }

    /// Gives an index back.
    pub fn drop_index(&self, context: Obj<SchedContext>) {
        if let Some(word) = self.contexts.get(context.index.get() as usize) {
            let _ = word.compare_exchange(context.physical(), 0, AcqRel, Relaxed);
        }
    }

    /// The context that a window names, if it still lives here.
    #[inline(always)]
    pub fn window_owner(&self, owner: u64) -> Option<Obj<SchedContext>> {
        let (address, index) = (owner & !511, owner as usize & 511);
        let living = address != 0 && self.contexts.get(index)?.load(Acquire) == address;
        // SAFETY: contexts are taken out of the list on this CPU before they die.
        living.then(|| unsafe { Obj::at(address) })
    }

    /// The plan that replaces the current one.
    pub fn next_plan(&self) -> Option<Obj<Plan>> {
        let next = self.next_plan.load(Acquire);
        // SAFETY: a plan that dies is taken out here first.
        (next > NO_PLAN).then(|| unsafe { Obj::at(next) })
    }

    /// A context dies: nothing on this CPU refers to it afterwards.
    pub fn cut_context(&self, context: Obj<SchedContext>) {
        self.drop_index(context);
        if self.chosen.get() == Some(context) || self.beneficiary.get() == Some(context) {
            crate::sched::charge(self);
            self.beneficiary.set(None);
            if self.chosen.get() == Some(context) {
                self.chosen.set(None);
            }
            crate::trace::account(self, None);
        }
        self.gone.fetch_add(context.leave(), Relaxed);
        for cell in [&self.scheduler, &self.boot_context] {
            if cell.get() == Some(context) {
                cell.set(None);
            }
        }
        let _ = self.next_scheduler.compare_exchange(context.physical(), 0, AcqRel, Relaxed);
        if let Some(thread) = self.scheduler.get().and_then(|scheduler| scheduler.thread.get())
            && thread.dispatch.get().context == Some(context)
        {
            thread.dispatch.set(Dispatch { context: None, ..thread.dispatch.get() });
        }
        self.must_choose.set(true);
    }

    /// A plan dies.
    pub fn drop_plan(&self, plan: Obj<Plan>) {
        if self.plan.get() == Some(plan) {
            self.plan.set(None);
            self.stretch.set((0, 0));
            self.must_choose.set(true);
        }
        let _ = self.next_plan.compare_exchange(plan.physical(), 0, AcqRel, Relaxed);
    }

    /// The scheduler's status page (`moira_abi::time::StatusPage`).
    pub fn status_page(&self) -> Option<Page> {
        let word = self.status.word();
        (!word.is_empty()).then(|| Page(word.address()))
    }

    /// The interrupt source on a vector.
    pub fn source(&self, vector: u8) -> Option<Obj<Interrupt>> {
        let address = self.vectors[vector as usize].load(Acquire);
        // SAFETY: cut when the source dies.
        (address != 0).then(|| unsafe { Obj::at(address) })
    }

    /// Gives a source a vector that no other one has, from 48 to 239 (structural lock held).
    pub fn take_vector(&self, source: Obj<Interrupt>) -> Option<u8> {
        const USABLE: [u64; 4] = [u64::MAX << 48, u64::MAX, u64::MAX, u64::MAX >> 16];
        let (word, used, free) = (0..4).find_map(|word| {
            let used = self.vectors_used[word].get();
            Some((word, used, USABLE[word] & !used)).filter(|(_, _, free)| *free != 0)
        })?;
        let vector = word * 64 + free.trailing_zeros() as usize;
        self.vectors_used[word].set(used | free & free.wrapping_neg());
        self.vectors[vector].store(source.physical(), Release);
        Some(vector as u8)
    }

    /// Takes it back (structural lock held).
    pub fn drop_vector(&self, vector: u8) {
        let used = &self.vectors_used[vector as usize / 64];
        used.set(used.get() & !(1 << (vector % 64)));
        self.vectors[vector as usize].store(0, Release);
    }

    /// Whether a space is loaded here.
    pub fn has_loaded(&self, space: Obj<AddressSpace>) -> bool {
        flush::must_ask(self.loaded_space.load(SeqCst), space.physical())
            || flush::must_ask(self.loaded_guest.load(SeqCst), space.physical())
    }
}
