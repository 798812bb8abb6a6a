//! The machine, taken over.

use crate::{
    Check,
    ledger::{Audit, Sums},
    raw,
};
use alloc::vec::Vec;
use core::cell::RefCell;
use moira_abi::{
    boot::{BootInfo, slot, untyped_kind},
    time::StatusPage,
};
use moira_rt::{
    logging::{PlatformSink, set_sink},
    memory::Addresses,
};
use moira_sys::{
    AddressSpace, CapTable, Capability, Caps, Cpu, Deadline, Dispatched, Error, Frame, FrameSize, MapFlags,
    MessageBuffer, Notification, Outcome, Platform, Rights, SchedContext, Slot, Space, Thread, Untyped,
};

/// log2 of the bytes of the arena.
pub const ARENA_BITS: u8 = 21;
/// log2 of the bytes of what the laboratory keeps.
const HOME_BITS: u8 = 21;

static SINK: PlatformSink = PlatformSink(Platform::new(Slot(slot::PLATFORM)));

/// The laboratory.
pub struct Lab {
    /// Boot information.
    pub info: &'static BootInfo,
    /// The root thread's message buffer.
    pub buffer: MessageBuffer,
    /// What experiments make things from: clean, and whole before each.
    pub arena: Untyped,
    /// What lasts: page tables, the status page, stacks.
    pub home: Untyped,
    /// An untyped that was never cleaned, too large for anything else.
    pub dirty: Untyped,
    /// Its size, log2.
    pub dirty_bits: u8,
    /// Where puppets' faults are signalled.
    pub faults: Notification,
    addresses: Addresses,
    status: u64,
    status_frame: Frame,
    next: u32,
    keep: u32,
    kept_addresses: Addresses,
    arena_free: u64,
    passed: u32,
    failed: u32,
    pub(crate) audit: Option<Audit>,
    pub(crate) audits: Sums,
    /// Contexts that were run since the comparison of ledger and trace began.
    pub(crate) ran: RefCell<Vec<SchedContext>>,
}

/// Names of what the kernel gave the root task.
impl Lab {
    /// Microseconds that [`Lab::run`] gives to what ends by itself: a busy host may take the processor away for long.
    pub const PATIENCE: u64 = 20_000_000;
    /// Its table.
    pub const TABLE: CapTable = CapTable::new(Slot(slot::TABLE));
    /// Its space.
    pub const SPACE: AddressSpace = AddressSpace::new(Slot(slot::SPACE));
    /// Its thread.
    pub const THREAD: Thread = Thread::new(Slot(slot::THREAD));
    /// Its context.
    pub const CONTEXT: SchedContext = SchedContext::new(Slot(slot::CONTEXT));
    /// The boot processor.
    pub const CPU: Cpu = Cpu::new(Slot(slot::CPU));
    /// The machine.
    pub const PLATFORM: Platform = Platform::new(Slot(slot::PLATFORM));
}

impl Lab {
    /// Takes the machine over. On failure the run ends.
    pub fn new(info: &'static BootInfo, buffer: MessageBuffer) -> Lab {
        set_sink(&SINK, log::LevelFilter::Info);
        let mut lab = Lab {
            info,
            buffer,
            arena: Untyped::new(Slot::NONE),
            home: Untyped::new(Slot::NONE),
            dirty: Untyped::new(Slot::NONE),
            dirty_bits: 0,
            faults: Notification::new(Slot::NONE),
            addresses: Addresses::new(),
            status: 0,
            status_frame: Frame::new(Slot::NONE),
            next: info.free_slot,
            keep: info.free_slot,
            kept_addresses: Addresses::new(),
            arena_free: 0,
            passed: 0,
            failed: 0,
            audit: None,
            audits: Sums::default(),
            ran: RefCell::default(),
        };
        if let Err(error) = lab.furnish() {
            lab.fail(&alloc::format!("the laboratory cannot be set up: {error:?}"));
        }
        lab
    }

    fn furnish(&mut self) -> Result<(), Error> {
        let all = self.info.untyped.iter().take(self.info.untyped_count as usize);
        let largest = all.enumerate().filter(|(_, u)| u.kind == untyped_kind::DIRTY).max_by_key(|(_, u)| u.size_bits);
        let (index, largest) = largest.ok_or(Error::NoMemory)?;
        self.dirty = Untyped::new(Slot(slot::UNTYPED + index as u32));
        self.dirty_bits = largest.size_bits as u8;
        let arena = self.slots(1);
        self.arena = one(self.dirty.retype_untypeds(ARENA_BITS, 1, arena)?)?;
        let home = self.slots(1);
        self.home = one(self.dirty.retype_untypeds(HOME_BITS, 1, home)?)?;
        self.arena.revoke_fully()?;
        self.home.revoke_fully()?;
        self.arena_free = self.arena.info()?.free;
        let tables = self.slots(1);
        Lab::SPACE.add_memory(one(self.home.retype_untypeds(18, 1, tables)?)?)?;
        let notification = self.slots(2);
        let whole = one(self.home.retype_notifications(1, notification)?)?;
        self.faults = Lab::TABLE.mint(whole, notification.plus(1), Rights::ALL, 1)?;
        let status = self.slots(2);
        let frame = one(self.home.retype_frames(FrameSize::Small, 1, status)?)?;
        let shown = Lab::TABLE.copy(frame, status.plus(1), Rights::READ)?;
        self.status = self.address(1);
        Lab::SPACE.map(shown, self.status, MapFlags::READ)?;
        self.status_frame = frame;
        self.register()?;
        self.keep();
        Ok(())
    }

    /// Makes the laboratory the scheduler, with its own status page.
    ///
    /// # Errors
    /// Of `set_scheduler`.
    pub fn register(&self) -> Result<(), Error> {
        Lab::CPU.set_scheduler(Lab::CONTEXT, self.status_frame)
    }

    /// The next `count` slots; those an experiment takes are emptied after it.
    pub fn slots(&mut self, count: u32) -> Slot {
        let first = self.next;
        self.next += count;
        Slot(first)
    }

    /// Addresses for so many pages, aligned to 2 MiB, where nothing is mapped.
    pub fn address(&mut self, pages: u64) -> u64 {
        self.addresses.take(pages.max(1) * 4096, 1 << 21).unwrap_or(0)
    }

    /// Keeps what was made since the last experiment.
    pub fn keep(&mut self) {
        self.keep = self.next;
        self.kept_addresses = self.addresses.clone();
    }

    /// Gives out the addresses that were taken since [`Lab::keep`] once more, for a caller who knows that nothing is mapped there any
    /// longer: the page tables are there already, so a long run takes no more memory for them.
    pub fn reuse_addresses(&mut self) {
        self.addresses = self.kept_addresses.clone();
    }

    /// Mapped zeroed memory that lasts; answers the address and its frames.
    ///
    /// # Errors
    /// Of retype and map.
    pub fn memory(&mut self, pages: u32) -> Result<(u64, Vec<Frame>), Error> {
        let (address, mut frames) = (self.address(u64::from(pages)), Vec::new());
        for page in 0..pages {
            let slot = self.slots(1);
            let frame = one(self.home.retype_frames(FrameSize::Small, 1, slot)?)?;
            Lab::SPACE.map(frame, address + u64::from(page) * 4096, MapFlags::READ_WRITE)?;
            frames.push(frame);
        }
        Ok((address, frames))
    }

    /// The value of `name=` on the kernel's command line.
    #[must_use]
    pub fn option(&self, name: &str) -> Option<&str> {
        let line = self.info.command_line.get(..self.info.command_line_length as usize)?;
        let line = core::str::from_utf8(line).ok()?;
        line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// TSC ticks of so many microseconds.
    #[must_use]
    pub fn micros(&self, count: u64) -> u64 {
        count * (self.info.tsc_hz / 1_000_000).max(1)
    }

    /// The sequence of the status page.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        raw::stored(self.status)
    }

    /// Entry `sequence` of the news log.
    #[must_use]
    pub fn news(&self, sequence: u64) -> u32 {
        let offset = core::mem::offset_of!(StatusPage, log) as u64 + sequence % 256 * 4;
        (raw::stored(self.status + (offset & !7)) >> ((offset & 4) * 8)) as u32
    }

    /// Word `index` (0–3) of a context on the status page.
    #[must_use]
    pub fn context_word(&self, context: u32, index: u64) -> u64 {
        raw::stored(
            self.status + core::mem::offset_of!(StatusPage, context) as u64 + u64::from(context) * 32 + index * 8,
        )
    }

    /// Dispatches, without the account of what it cost.
    pub fn dispatch(context: Option<SchedContext>, until: Deadline, token: u64) -> Result<Dispatched, Error> {
        Lab::CPU.dispatch(context, until, token).map(|(answer, _)| answer)
    }

    /// Gives a context the CPU until it blocks or so many microseconds passed; news on the way are taken note of and passed over.
    pub fn run(&self, context: SchedContext, micros: u64) -> Result<Dispatched, Error> {
        if self.audit.is_some() && !self.ran.borrow().iter().any(|one| one.slot() == context.slot()) {
            self.ran.borrow_mut().push(context);
        }
        let until = Deadline::after(self.micros(micros));
        loop {
            match Lab::dispatch(Some(context), until, self.sequence())? {
                Dispatched::News | Dispatched::Stale if moira_sys::now() < until.0 => {}
                other => return Ok(other),
            }
        }
    }

    /// Does one experiment, then ends all it made and sees that nothing is missing.
    pub fn experiment(&mut self, name: &str, work: impl FnOnce(&mut Lab, &mut Check)) {
        self.experiment_of_its_own(name, |lab, check| {
            lab.begin_audit(&[], check);
            work(lab, check);
            lab.end_audit(true, check);
        });
    }

    /// One that needs the trace for itself, or says itself when ledger and trace are compared.
    pub fn experiment_of_its_own(&mut self, name: &str, work: impl FnOnce(&mut Lab, &mut Check)) {
        let mut check = Check::default();
        work(self, &mut check);
        let cleaned = self.clean();
        check.good("cleaning up", cleaned);
        if let Some(info) = check.good("info", self.arena.info()) {
            check.equal("free memory afterwards", info.free, self.arena_free);
        }
        let pending = check.good("poll", self.faults.poll());
        let _ = pending;
        if check.found.is_empty() && check.made > 2 {
            self.passed += 1;
            log::info!("conformance: {name} ok");
            return;
        }
        self.failed += 1;
        if check.found.is_empty() {
            log::info!("conformance: {name} FAILED: nothing was checked");
        }
        for finding in &check.found {
            log::info!("conformance: {name} FAILED: {finding}");
        }
    }

    /// Ends everything made from the arena and empties the slots since.
    ///
    /// # Errors
    /// Of revoke and delete.
    pub fn clean(&mut self) -> Result<(), Error> {
        self.arena.revoke_fully()?;
        for index in self.keep..self.next {
            match Lab::TABLE.delete_fully(Slot(index)) {
                Ok(()) | Err(Error::Empty) => {}
                Err(error) => return Err(error),
            }
        }
        self.next = self.keep;
        Ok(())
    }

    /// Prints the sum and ends the run.
    pub fn finish(mut self, what: &str) -> ! {
        if self.option("ledger").is_some() {
            let Sums { agreed, too_long } = self.audits;
            log::info!("ledger: compared with the trace {agreed} times, {too_long} times too long for it");
        }
        log::info!("{what}: {} passed, {} failed", self.passed, self.failed);
        if self.failed > 0 || self.passed == 0 {
            self.fail(&alloc::format!("{what}: {} failed", self.failed));
        }
        Lab::PLATFORM.end(&mut self.buffer, Outcome::Success, b"");
        moira_rt::end::finish()
    }

    /// Ends the run as failed.
    pub fn fail(&mut self, why: &str) -> ! {
        log::error!("{why}");
        Lab::PLATFORM.end(&mut self.buffer, Outcome::Failure, why.as_bytes());
        moira_rt::end::finish()
    }
}

/// The first of what retype made.
pub(crate) fn one<T: Capability>(made: Caps<T>) -> Result<T, Error> {
    made.get(0).ok_or(Error::NoSlot)
}
