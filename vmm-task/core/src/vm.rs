//! The virtual machine and its run loop.

use crate::boot::{self, BootError, Guest};
use crate::clock::TscClock;
use crate::event::{Both, Event, combine};
use crate::exits::{self, Answers, decode::CodePage};
use crate::history::History;
use crate::ram::Ram;
use crate::state::{StatePage, field};
use moira_abi::vcpu::{Exit, event, group, interruptibility, request};
use vmm_devices::board::Board;
use vmm_devices::fabric::Interrupt;
use vmm_machine::cpuid::{CpuidTable, Live};
use vmm_machine::memory_map::MemoryMap;
use vmm_machine::msr::{MsrConfig, MsrPolicy};

/// The kernel as the run loop sees it.
pub trait Processor {
    /// Enters the guest: groups changed (bits 0–31) and wanted (bits 32–63) of the state page, and when to come back at the
    /// latest (TSC; 0: whenever). Answers why it came back ([`Exit`] as a number) and which groups are current.
    ///
    /// # Errors
    /// Those of the kernel's `run`: the vCPU is gone or was never set up.
    fn run(&mut self, masks: u64, until: u64) -> Result<(u64, u64), moira_abi::Error>;
    /// The TSC.
    fn now(&self) -> u64;
    /// Waits for bits of the monitor's own notification, at most until then (TSC; 0: however long). Answers the bits.
    fn sleep(&mut self, until: u64) -> u64;
    /// Bits of the notification that are there now.
    fn poll(&mut self) -> u64;
    /// What the bits say: somebody wants the machine to do something.
    fn orders(&mut self, bits: u64) -> Orders;
}

/// What the outside wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// A back end has news: input, a finished request.
    pub poll: bool,
    /// Press the power button.
    pub power_button: bool,
    /// End the machine at once.
    pub kill: bool,
}

/// How a machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It switched itself off.
    PowerOff,
    /// A test payload ended with this value.
    DebugExit(u32),
    /// It wants to be reset: [`Vm::restart`].
    Reset,
    /// A triple fault.
    TripleFault,
    /// Somebody ended it.
    Killed,
    /// The guest did what cannot be emulated.
    Unsupported(&'static str),
    /// The processor refused the guest's state; the kernel's code for the check.
    InvalidState(u64),
    /// The kernel refused to run it.
    Kernel(moira_abi::Error),
}

/// What to do after an exit. It fits a register, because every exit makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Back into the guest.
    Enter,
    /// The same, but nothing was done: the guest executes the same instruction again.
    Again,
    /// Wait for an interrupt first.
    Halt,
    /// The machine ended: [`Vm::ending`] says how.
    End,
}

/// What a machine is made of.
pub struct Parts<'a> {
    /// Guest memory.
    pub ram: Ram<'a>,
    /// Where it lies.
    pub map: MemoryMap,
    /// The state page.
    pub page: StatePage<'a>,
    /// All devices.
    pub board: Board,
    /// Answers to CPUID.
    pub cpuid: CpuidTable,
    /// What the MSRs depend on.
    pub msr: MsrConfig,
    /// Frequency of the TSC.
    pub tsc_hz: u64,
    /// XCR0 bits that the guest may set.
    pub xcr0: u64,
    /// CR4 bits that the guest may set: [`cr4_bits`].
    pub cr4: u64,
}

/// CR4 bits that go with what CPUID shows (SDM 2.5); the kernel refuses others.
#[must_use]
pub fn cr4_bits(cpuid: &CpuidTable) -> u64 {
    // VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT: on every x86-64 processor.
    const ALWAYS: u64 = 0x7ff;
    let basic = cpuid.answer(1, 0, Live::default());
    let structured = cpuid.answer(7, 0, Live::default());
    [
        (structured.ecx, 2, 11),
        (structured.ebx, 0, 16),
        (basic.ecx, 17, 17),
        (basic.ecx, 26, 18),
        (structured.ebx, 7, 20),
        (structured.ebx, 20, 21),
    ]
    .into_iter()
    .filter(|(features, feature, _)| features >> feature & 1 != 0)
    .fold(ALWAYS, |bits, (_, _, bit)| bits | 1 << bit)
}

/// A virtual machine with one processor.
pub struct Vm<'a> {
    pub(crate) ram: Ram<'a>,
    map: MemoryMap,
    pub(crate) page: StatePage<'a>,
    pub(crate) board: Board,
    pub(crate) cpuid: CpuidTable,
    pub(crate) msr: MsrPolicy,
    msr_config: MsrConfig,
    clock: TscClock,
    /// Groups of the page to load at the next entry.
    pub(crate) changed: u64,
    /// Groups that the next exit shall write.
    pub(crate) wanted: u64,
    /// Groups that the last exit wrote.
    pub(crate) groups: u64,
    /// To be injected at the next entry.
    pub(crate) event: Event,
    /// To be injected after that.
    later: Event,
    /// Window requests that the kernel holds.
    requested: u64,
    /// Something may be pending: look before the next entry.
    pub(crate) attention: bool,
    /// The kernel holds an event of its own since the last exit.
    shadow: Shadow,
    /// The board's next deadline in nanoseconds, all ones for none, and the same in TSC ticks, 0 for none.
    deadline: u64,
    until: u64,
    /// Least time between two deadlines of the board, in TSC ticks.
    least_run: u64,
    /// Added to the TSC for the guest.
    pub(crate) tsc_offset: u64,
    pub(crate) xcr0: u64,
    pub(crate) cr4: u64,
    pub(crate) code_page: CodePage<'a>,
    pub(crate) answers: Answers,
    /// Where the last exit came to nothing (RIP, number of the exit), and how many in a row did.
    stalled_at: (u64, u64),
    stalls: u32,
    /// How the machine ended, once it has.
    ending: Ending,
    pub(crate) history: History,
}

/// What is known of the guest's interrupt shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shadow {
    /// An instruction was completed: there is none.
    None,
    /// The state page tells.
    Page,
    /// Nothing is known; ask for a window.
    Unknown,
}

const IF: u64 = 1 << 9;
const NEVER: u64 = u64::MAX;
/// Least time that the guest runs between two timers' deadlines, in nanoseconds.
const LEAST_RUN_NS: u64 = 20_000;

impl<'a> Vm<'a> {
    /// A machine that has not been booted.
    #[must_use]
    pub fn new(parts: Parts<'a>) -> Vm<'a> {
        Vm {
            ram: parts.ram,
            map: parts.map,
            page: parts.page,
            board: parts.board,
            cpuid: parts.cpuid,
            msr: MsrPolicy::new(parts.msr),
            msr_config: parts.msr,
            clock: TscClock::new(parts.tsc_hz),
            changed: 0,
            wanted: 0,
            groups: 0,
            event: Event::NONE,
            later: Event::NONE,
            requested: 0,
            attention: true,
            shadow: Shadow::None,
            deadline: NEVER,
            until: 0,
            least_run: TscClock::new(parts.tsc_hz).tsc_at(LEAST_RUN_NS),
            tsc_offset: 0,
            xcr0: parts.xcr0,
            cr4: parts.cr4,
            code_page: CodePage::NONE,
            answers: Answers::default(),
            stalled_at: (0, 0),
            stalls: 0,
            ending: Ending::Killed,
            history: History::new(),
        }
    }

    /// Loads the guest and sets the processor to its first instruction.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn boot(&mut self, guest: &Guest<'_>) -> Result<(), BootError> {
        let signature = self.cpuid.answer(1, 0, Live::default()).eax;
        let initial = boot::load(&mut self.ram, &self.map, guest, signature)?;
        self.msr = MsrPolicy::new(self.msr_config);
        if guest.firmware.is_none() {
            self.msr.mtrr_mut().set_like_firmware();
        }
        self.changed = boot::fill(&self.page, &initial);
        (self.wanted, self.groups, self.requested, self.tsc_offset) = (0, group::ALL, 0, 0);
        (self.event, self.later, self.shadow) = (Event::NONE, Event::NONE, Shadow::None);
        self.attention = true;
        Ok(())
    }

    /// Resets all devices and boots again. Memory keeps what the loader does not write.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn restart(&mut self, guest: &Guest<'_>) -> Result<(), BootError> {
        self.board.reset();
        self.boot(guest)
    }

    /// The devices.
    pub fn board(&mut self) -> &mut Board {
        &mut self.board
    }

    /// The last exits.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.history
    }

    /// The state page.
    #[must_use]
    pub fn page(&self) -> &StatePage<'a> {
        &self.page
    }

    /// Nanoseconds at a TSC value.
    #[inline(always)]
    pub(crate) fn ns(&self, tsc: u64) -> u64 {
        self.clock.ns(tsc)
    }

    /// Runs the guest until it ends.
    pub fn run(&mut self, cpu: &mut impl Processor) -> Ending {
        loop {
            self.prepare(cpu);
            let exit = match cpu.run(self.changed | self.wanted << 32, self.until) {
                Ok((exit, groups)) => {
                    self.groups = groups;
                    exit
                }
                Err(error) => return Ending::Kernel(error),
            };
            self.changed = 0;
            let page = self.page;
            self.history.add(exit, page.get(field::RIP), page.get(field::QUALIFICATION));
            const PORT: u64 = Exit::Port as u64;
            const HYPERCALL: u64 = Exit::Hypercall as u64;
            const CPUID: u64 = Exit::Cpuid as u64;
            let next = match exit {
                // These cannot exit during the delivery of an event, and completing them ends an interrupt shadow.
                PORT => exits::port(self, cpu.now()),
                HYPERCALL => exits::hypercall(self),
                CPUID => exits::cpuid(self),
                _ => self.other_exit(cpu, Exit::from_code(exit).unwrap_or(Exit::Other)),
            };
            match next {
                Next::Enter => {}
                Next::Again => {
                    if let Some(ending) = self.again() {
                        return ending;
                    }
                }
                Next::Halt => {
                    if let Some(ending) = self.halt(cpu) {
                        return ending;
                    }
                }
                Next::End => return self.ending,
            }
        }
    }

    /// An exit came to nothing. What the guest does to its code or its tables meanwhile can do that, but not for ever.
    #[inline(never)]
    fn again(&mut self) -> Option<Ending> {
        /// Most exits in a row at one instruction.
        const MOST: u32 = 1000;
        let rip = self.page.get(field::RIP);
        let in_a_row = self.stalled_at == (rip, self.history.total().wrapping_sub(1));
        self.stalls = if in_a_row { self.stalls + 1 } else { 0 };
        self.stalled_at = (rip, self.history.total());
        (self.stalls > MOST).then_some(Ending::Unsupported("an instruction that cannot be read"))
    }

    /// Ends the machine.
    #[cold]
    pub(crate) fn end(&mut self, ending: Ending) -> Next {
        self.ending = ending;
        self.board.flush(0);
        Next::End
    }

    /// An event whose delivery the exit interrupted goes in again.
    #[inline(always)]
    fn take_delivering(&mut self) {
        let delivering = Event::from_page(self.page.get(field::DELIVERING));
        if !delivering.is_none() {
            self.event = delivering;
            self.attention = true;
        }
    }

    /// All exits but the hottest. Handlers that complete the instruction end its interrupt shadow; else nothing is known of it.
    #[inline(always)]
    fn other_exit(&mut self, cpu: &mut impl Processor, exit: Exit) -> Next {
        self.shadow = Shadow::Unknown;
        match exit {
            Exit::Until | Exit::Kicked => return self.interrupted(cpu),
            Exit::InterruptWindow => self.window(request::INTERRUPT_WINDOW),
            Exit::NmiWindow => self.window(request::NMI_WINDOW),
            _ => {}
        }
        self.take_delivering();
        exits::other(self, exit, cpu)
    }

    fn window(&mut self, request: u64) {
        self.requested &= !request;
        self.shadow = Shadow::Page;
        self.attention = true;
    }

    /// The run ended from outside.
    #[inline(never)]
    fn interrupted(&mut self, cpu: &mut impl Processor) -> Next {
        self.shadow = Shadow::Page;
        self.attention = true;
        self.take_armed();
        let bits = cpu.poll();
        match self.news(cpu, bits) {
            Some(ending) => self.end(ending),
            None => Next::Enter,
        }
    }

    /// After an exit that was none of the guest's doing, the kernel still holds what it did not get to inject.
    fn take_armed(&mut self) {
        let armed = Event::from_page(self.page.get(field::INJECT));
        if self.groups & group::INJECT == 0 || armed.is_none() {
            return;
        }
        self.event = armed;
        if armed.is_nmi() {
            // The kernel counts it as delivered; it has to be let in once more.
            let blocked = self.page.get(field::INTERRUPTIBILITY);
            self.page.set(field::INTERRUPTIBILITY, blocked & !interruptibility::NMI_BLOCKED);
            self.changed |= group::INTERRUPTIBILITY;
        }
    }

    /// Follows the bits of the notification.
    fn news(&mut self, cpu: &mut impl Processor, bits: u64) -> Option<Ending> {
        if bits == 0 {
            return None;
        }
        let orders = cpu.orders(bits);
        if orders.kill {
            return Some(Ending::Killed);
        }
        if orders.power_button {
            self.board.press_power_button();
        }
        if orders.poll {
            let now = self.ns(cpu.now());
            self.board.poll(now, &self.ram);
        }
        self.attention = true;
        None
    }

    /// Makes everything ready for the next entry: due work of devices, events, the deadline.
    #[inline(always)]
    fn prepare(&mut self, cpu: &impl Processor) {
        let deadline = self.board.next_deadline().unwrap_or(NEVER);
        if deadline != self.deadline {
            self.set_deadline(deadline);
        }
        if self.attention || self.board.take_kicks() != 0 {
            self.attend(cpu.now());
        }
    }

    #[inline(never)]
    fn set_deadline(&mut self, deadline: u64) {
        self.deadline = deadline;
        self.until = if deadline == NEVER { 0 } else { self.clock.tsc_at(deadline).max(1) };
    }

    /// Lets devices work and finds out what to inject.
    #[inline(never)]
    fn attend(&mut self, now: u64) {
        self.attention = false;
        if self.until != 0 && now >= self.until {
            let nanoseconds = self.ns(now);
            self.board.tick(nanoseconds, &self.ram);
            let deadline = self.board.next_deadline().unwrap_or(NEVER);
            self.set_deadline(deadline);
            if self.until != 0 {
                // Whatever period the guest gave a timer, it is left some time of its own.
                self.until = self.until.max(now.saturating_add(self.least_run));
            }
        }
        let _ = self.board.take_kicks();
        self.choose_event();
    }

    /// Whether a maskable interrupt can be delivered at the next entry.
    fn interruptible(&self) -> bool {
        let shadowed = match self.shadow {
            Shadow::None => false,
            Shadow::Page => {
                self.page.get(field::INTERRUPTIBILITY) & (interruptibility::STI | interruptibility::MOV_SS) != 0
            }
            Shadow::Unknown => true,
        };
        self.page.get(field::RFLAGS) & IF != 0 && !shadowed
    }

    /// What waits and cannot go in now asks for a window.
    fn choose_event(&mut self) {
        if self.event.is_none() && !self.later.is_none() {
            let is_interrupt = self.later.0 & event::TYPE == event::INTERRUPT;
            if !is_interrupt || self.interruptible() {
                self.event = core::mem::take(&mut self.later);
            }
        }
        if self.event.is_none() && self.board.maskable_pending(0) && self.interruptible() {
            self.event = self.board.accept(0).map_or(Event::NONE, Event::interrupt);
        }
        let mut request = 0;
        if self.board.maskable_pending(0) || !self.later.is_none() {
            request |= request::INTERRUPT_WINDOW;
        }
        if self.board.pending(0) == Some(Interrupt::Nmi) {
            request |= request::NMI_WINDOW;
        }
        if !self.event.is_none() || request != self.requested {
            self.page.set(field::INJECT, self.event.0);
            self.page.set(field::INJECT_LENGTH, 0);
            self.page.set(field::REQUEST, request);
            self.changed |= group::INJECT;
            self.requested = request;
            self.event = Event::NONE;
        }
    }

    /// The guest executed HLT: sleeps until it can go on.
    #[inline(never)]
    fn halt(&mut self, cpu: &mut impl Processor) -> Option<Ending> {
        loop {
            self.attend(cpu.now());
            let interrupts = self.page.get(field::RFLAGS) & IF != 0;
            let wakes = self.changed & group::INJECT != 0 && self.page.get(field::INJECT) & event::VALID != 0
                || self.requested & request::NMI_WINDOW != 0
                || interrupts && self.requested != 0;
            if wakes {
                return None;
            }
            let bits = cpu.sleep(self.until);
            if let Some(ending) = self.news(cpu, bits) {
                return Some(ending);
            }
        }
    }

    /// Injects an exception at the next entry.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, code: Option<u32>) -> Next {
        self.wanted = 0;
        match combine(self.event, Event::exception(vector, code)) {
            Both::First(first, later) => {
                self.event = first;
                if !later.is_none() {
                    self.later = later;
                }
                self.attention = true;
                Next::Enter
            }
            Both::TripleFault => self.end(Ending::TripleFault),
        }
    }

    /// Goes on behind an instruction of `length` bytes.
    #[inline(always)]
    pub(crate) fn advance(&mut self, length: u64) {
        self.set_rip(self.page.get(field::RIP).wrapping_add(length));
    }

    /// An instruction was completed and the guest goes on here.
    #[inline(always)]
    pub(crate) fn set_rip(&mut self, rip: u64) {
        const RF: u64 = 1 << 16;
        const TF: u64 = 1 << 8;
        let page = self.page;
        let flags = page.get(field::RFLAGS);
        page.set(field::RIP, rip);
        page.set(field::RFLAGS, flags & !RF);
        self.changed |= group::RIP;
        self.wanted = 0;
        self.shadow = Shadow::None;
        if flags & TF != 0 {
            exits::single_step(self);
        }
    }

    /// Whether the last exit wrote these groups. If not, the next one will: the caller then answers [`Next::Again`] without
    /// having changed anything, and the guest executes the same instruction again.
    #[inline(always)]
    pub(crate) fn needs(&mut self, groups: u64) -> bool {
        let there = self.groups & groups == groups;
        if !there {
            self.wanted |= groups;
            self.shadow = Shadow::Unknown;
        }
        there
    }
}
