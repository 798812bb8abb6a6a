//! One processor of a virtual machine and its run loop.

use crate::boot::{self, BootError, Guest};
use crate::clock::TscClock;
use crate::debug::{BS, TF, Why};
use crate::event::{Both, Event, combine};
use crate::exits::{self, Answers, decode::CodePages};
use crate::history::History;
use crate::machine::{Devices, Machine, NEVER, Seat};
use crate::ram::Ram;
use crate::state::{StatePage, field};
use core::sync::atomic::Ordering::Relaxed;
use moira_abi::vcpu::{Exit, event, group, interruptibility, request};
use vmm_devices::board::Board;
use vmm_devices::fabric::Interrupt;
use vmm_devices::lapic::CpuEvent;
use vmm_machine::boot::InitialState;
use vmm_machine::cpuid::{CpuidTable, Live};
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
    /// Somebody wants to know of the exits so far; these are those of processor `cpu`.
    fn tell(&mut self, _cpu: usize, _history: &History) {}
    /// The first processor is out of the guest: time to hear a debugger.
    fn debug(&mut self) {}
}

/// What the outside wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Orders {
    /// A back end has news: input, a finished request.
    pub poll: bool,
    /// Press the power button.
    pub power_button: bool,
    /// Reset the machine.
    pub reset: bool,
    /// Every processor shall [`Processor::tell`] of its exits.
    pub look: bool,
    /// All processors of the guest shall stand still, or go on. Its clock runs on, as where a processor is stopped from outside.
    pub hold: Option<bool>,
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

/// What a processor is made of.
pub struct Parts<'a> {
    /// Its machine.
    pub machine: &'a Machine<'a>,
    /// Its number there: 0 is the boot processor.
    pub index: usize,
    /// The state page.
    pub page: StatePage<'a>,
    /// Answers to CPUID.
    pub cpuid: CpuidTable,
    /// What the MSRs depend on.
    pub msr: MsrConfig,
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

/// A virtual machine as one of its processors sees it. Its thread runs it.
pub struct Vm<'a> {
    machine: &'a Machine<'a>,
    pub(crate) index: usize,
    seat: &'a Seat,
    pub(crate) ram: Ram<'a>,
    pub(crate) page: StatePage<'a>,
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
    /// What waits was taken back by [`Vm::hold_back`]: a HLT looks again.
    held_back: bool,
    /// Waits for a start-up message.
    parked: bool,
    /// How often it was started since power-on.
    starts: u64,
    /// How often it told of its exits.
    looked: u64,
    /// Groups that every exit shall write: all of them for a debugger.
    least: u64,
    /// The debug registers are a debugger's.
    armed: bool,
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
    pub(crate) code_pages: CodePages<'a>,
    pub(crate) answers: Answers,
    /// Where the last exit came to nothing (RIP, number of the exit), and how many in a row did.
    stalled_at: (u64, u64),
    stalls: u32,
    /// How the machine ended, once it has.
    ending: Ending,
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
/// Least time that the guest runs between two timers' deadlines, in nanoseconds.
const LEAST_RUN_NS: u64 = 20_000;

impl<'a> Vm<'a> {
    /// A processor as after power-on: all but the boot processor wait for a start-up message.
    #[must_use]
    pub fn new(parts: Parts<'a>) -> Vm<'a> {
        let machine = parts.machine;
        let clock = machine.clock;
        Vm {
            machine,
            index: parts.index,
            seat: machine.seat(parts.index),
            ram: machine.ram,
            page: parts.page,
            cpuid: parts.cpuid,
            msr: MsrPolicy::new(parts.msr),
            msr_config: parts.msr,
            clock,
            changed: 0,
            wanted: 0,
            groups: 0,
            event: Event::NONE,
            later: Event::NONE,
            requested: 0,
            held_back: false,
            parked: parts.index != 0,
            starts: 0,
            looked: machine.looks(),
            least: 0,
            armed: false,
            attention: true,
            shadow: Shadow::None,
            deadline: NEVER,
            until: 0,
            least_run: clock.tsc_at(LEAST_RUN_NS),
            tsc_offset: 0,
            xcr0: parts.xcr0,
            cr4: parts.cr4,
            code_pages: CodePages::NONE,
            answers: Answers::default(),
            stalled_at: (0, 0),
            stalls: 0,
            ending: Ending::Killed,
        }
    }

    /// Loads the guest and sets the boot processor to its first instruction.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn boot(&mut self, guest: &Guest<'_>) -> Result<(), BootError> {
        let cpus = self.machine.cpus() as u32;
        let signature = self.signature();
        let initial = boot::load(&mut self.ram, &self.machine.map, cpus, guest, signature)?;
        self.power_on();
        self.start(&initial);
        Ok(())
    }

    /// CPUID leaf 1's EAX, which reset leaves in EDX.
    fn signature(&self) -> u32 {
        self.cpuid.answer(1, 0, Live::default()).eax
    }

    /// As after power-on.
    pub fn power_on(&mut self) {
        self.msr = MsrPolicy::new(self.msr_config);
        if self.ram.rom().is_empty() {
            self.msr.mtrr_mut().set_like_firmware();
        }
        self.tsc_offset = 0;
        (self.parked, self.starts, self.attention) = (self.index != 0, 0, true);
    }

    /// Sets the processor to an initial state. The first time all of its state is set, later what INIT sets (SDM 9.1.1).
    fn start(&mut self, initial: &InitialState) {
        const BY_INIT: u64 = group::RIP
            | group::INTERRUPTIBILITY
            | group::INJECT
            | group::CONTROL
            | group::SEGMENTS
            | group::TABLES
            | group::DEBUG;
        let all = boot::fill(&self.page, initial);
        self.changed = if self.starts != 0 { BY_INIT } else { all };
        (self.wanted, self.groups, self.requested) = (self.least, self.changed, 0);
        (self.event, self.later, self.shadow) = (Event::NONE, Event::NONE, Shadow::None);
        (self.parked, self.attention) = (false, true);
        self.starts = self.starts.wrapping_add(1);
    }

    /// Resets all devices and boots again. Memory keeps what the loader does not write. All other processors have left.
    ///
    /// # Errors
    /// [`BootError`].
    pub fn restart(&mut self, guest: &Guest<'_>) -> Result<(), BootError> {
        self.machine.begin_again();
        self.boot(guest)
    }

    /// The devices, for as long as the answer is kept: other processors wait for it.
    #[inline(always)]
    pub fn board(&self) -> Devices<'a> {
        self.machine.board(self.index)
    }

    /// Its number in the machine.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &'a Machine<'a> {
        self.machine
    }

    /// The last exits.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.seat.history
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

    /// Runs the guest until the machine ends, by this processor or another one.
    pub fn run(&mut self, cpu: &mut impl Processor) -> Ending {
        let ending = self.run_on(cpu);
        self.machine.end(ending, self.index);
        self.machine.ending().map_or(ending, |(first, _)| first)
    }

    fn run_on(&mut self, cpu: &mut impl Processor) -> Ending {
        loop {
            if let Some(ending) = self.prepare(cpu) {
                return ending;
            }
            let exit = match cpu.run(self.changed | self.wanted << 32, self.until) {
                Ok((exit, groups)) => {
                    self.groups = groups;
                    exit
                }
                Err(error) => return Ending::Kernel(error),
            };
            self.changed = 0;
            let page = self.page;
            self.seat.history.add(exit, page.get(field::RIP), page.get(field::QUALIFICATION));
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
        let in_a_row = self.stalled_at == (rip, self.seat.history.total().wrapping_sub(1));
        self.stalls = if in_a_row { self.stalls + 1 } else { 0 };
        self.stalled_at = (rip, self.seat.history.total());
        (self.stalls > MOST).then_some(Ending::Unsupported("an instruction that cannot be read"))
    }

    /// Ends the machine.
    #[cold]
    pub(crate) fn end(&mut self, ending: Ending) -> Next {
        self.ending = ending;
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
        let mut board = self.board();
        let orders = cpu.orders(bits);
        if orders.kill {
            return Some(Ending::Killed);
        }
        if orders.power_button {
            board.press_power_button();
        }
        if orders.poll {
            board.poll(self.ns(cpu.now()), &self.ram);
        }
        drop(board);
        if orders.reset {
            return Some(Ending::Reset);
        }
        if let Some(hold) = orders.hold {
            self.machine.hold(hold, self.index);
        }
        if orders.look {
            self.machine.look(self.index);
        }
        self.attention = true;
        None
    }

    /// Tells of the exits if somebody has asked since.
    #[cold]
    fn show(&mut self, cpu: &mut impl Processor) {
        let looks = self.machine.looks();
        if looks != self.looked {
            self.looked = looks;
            cpu.tell(self.index, &self.seat.history);
        }
    }

    /// Makes everything ready for the next entry: due work of devices, events, the deadline. Answers if there is none.
    #[inline(always)]
    fn prepare(&mut self, cpu: &mut impl Processor) -> Option<Ending> {
        let deadline = self.seat.deadline.load(Relaxed);
        if deadline != self.deadline {
            self.set_deadline(deadline);
        }
        if self.attention || self.seat.news.load(Relaxed) {
            self.attend(cpu.now());
            if self.parked || self.machine.stands() {
                if self.shows_too_little() {
                    return None;
                }
                return self.stay_out(cpu);
            }
            if self.machine.looks() != self.looked {
                self.show(cpu);
            }
        }
        None
    }

    /// A debugger has come, and the page does not show all of the processor: enters the guest once more, only to leave it at once.
    #[cold]
    fn shows_too_little(&mut self) -> bool {
        let too_little =
            self.machine.debug().on() && self.least == 0 && !self.parked && self.machine.ending().is_none();
        if too_little {
            self.least = group::ALL;
            self.wanted = group::ALL;
            self.until = 1;
        }
        too_little
    }

    /// Sleeps while the processor waits for a start-up message, or is held. Answers if the machine ends.
    #[cold]
    fn stay_out(&mut self, cpu: &mut impl Processor) -> Option<Ending> {
        loop {
            if let Some((ending, _)) = self.machine.ending() {
                self.machine.debug_out(self.index, false);
                return Some(ending);
            }
            self.show(cpu);
            if self.machine.holds(self.index) && self.machine.debug().take_step(self.index) {
                // Another one stopped first.
                self.set_trap(false);
            }
            self.machine.debug_out(self.index, true);
            if self.index == 0 {
                cpu.debug();
            }
            if !self.parked && !self.machine.holds(self.index) {
                self.machine.debug_out(self.index, false);
                self.arm();
                return None;
            }
            if let Some(ending) = self.sleep(cpu) {
                return Some(ending);
            }
            self.attend(cpu.now());
        }
    }

    /// Takes over what a debugger changed while the processor was out.
    fn arm(&mut self) {
        let debug = self.machine.debug();
        let on = debug.on();
        if !on && !self.armed {
            return;
        }
        self.changed |= debug.take_loaded(self.index) | group::DEBUG;
        debug.arm(&self.page);
        if debug.steps(self.index) {
            self.set_trap(true);
        }
        self.armed = on;
        self.least = if on { group::ALL } else { 0 };
        self.wanted |= self.least;
    }

    fn set_trap(&mut self, on: bool) {
        let flags = self.page.get(field::RFLAGS);
        self.page.set(field::RFLAGS, if on { flags | TF } else { flags & !TF });
        self.changed |= group::RIP;
    }

    /// A debug exception with these conditions (DR6): whether it is a debugger's business.
    #[cold]
    pub(crate) fn trapped(&mut self, conditions: u64) -> bool {
        let debug = self.machine.debug();
        if !debug.on() {
            return false;
        }
        let why = if conditions & BS != 0 && debug.take_step(self.index) {
            self.set_trap(false);
            Why::Step
        } else if debug.hit(conditions) {
            Why::Break
        } else {
            return false;
        };
        self.machine.debug_stop(self.index, why);
        self.attention = true;
        true
    }

    /// Sleeps until there may be something to do, and does what the outside wants.
    fn sleep(&mut self, cpu: &mut impl Processor) -> Option<Ending> {
        let deadline = self.seat.deadline.load(Relaxed);
        if deadline != self.deadline {
            self.set_deadline(deadline);
        }
        let bits = self.seat.while_asleep(|| cpu.sleep(self.until));
        self.news(cpu, bits)
    }

    #[inline(never)]
    fn set_deadline(&mut self, deadline: u64) {
        self.deadline = deadline;
        self.until = if deadline == NEVER { 0 } else { self.clock.tsc_at(deadline).max(1) };
    }

    /// Lets the guest execute its instruction again without asking for a window for what waits.
    #[cold]
    pub(crate) fn hold_back(&mut self) -> Next {
        self.page.set(field::INJECT, 0);
        self.page.set(field::REQUEST, 0);
        self.changed |= group::INJECT;
        self.requested = 0;
        self.held_back = true;
        Next::Again
    }

    /// Lets devices work and finds out what to inject.
    #[inline(never)]
    fn attend(&mut self, now: u64) {
        self.seat.take_news();
        self.attention = false;
        let ticks = self.until != 0 && now >= self.until;
        let mut board = self.board();
        if ticks {
            board.tick(self.ns(now), &self.ram);
        }
        while let Some(event) = board.take_event(self.index) {
            self.take_event(event);
        }
        self.choose_event(&mut board);
        // This processor has just looked.
        board.forget_kick(self.index);
        drop(board);
        let deadline = self.seat.deadline.load(Relaxed);
        if ticks || deadline != self.deadline {
            self.set_deadline(deadline);
        }
        if ticks && self.until != 0 {
            // Whatever period the guest gave a timer, it is left some time of its own.
            self.until = self.until.max(now.saturating_add(self.least_run));
        }
    }

    /// INIT or a start-up message.
    #[cold]
    fn take_event(&mut self, event: CpuEvent) {
        match event {
            // The boot processor would start at the reset vector, as after a reset of the machine.
            CpuEvent::Init if self.index == 0 => self.machine.end(Ending::Reset, self.index),
            CpuEvent::Init => self.parked = true,
            CpuEvent::Startup(vector) => {
                self.start(&InitialState::startup(vector, self.signature()));
            }
        }
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
    fn choose_event(&mut self, board: &mut Board) {
        if self.changed & group::INJECT != 0 && self.event.is_none() {
            // News came after an event was chosen and before the entry: it is in service already, and must not be dropped.
            self.event = Event::from_page(self.page.get(field::INJECT));
        }
        if self.event.is_none() && !self.later.is_none() {
            let is_interrupt = self.later.0 & event::TYPE == event::INTERRUPT;
            if !is_interrupt || self.interruptible() {
                self.event = core::mem::take(&mut self.later);
            }
        }
        if self.event.is_none() && board.maskable_pending(self.index) && self.interruptible() {
            self.event = board.accept(self.index).map_or(Event::NONE, Event::interrupt);
        }
        let mut request = 0;
        if board.maskable_pending(self.index) || !self.later.is_none() {
            request |= request::INTERRUPT_WINDOW;
        }
        if board.pending(self.index) == Some(Interrupt::Nmi) {
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
        let starts = self.starts;
        let mut look = false;
        loop {
            // Usually nothing came since the last look: then the first one is spared.
            if look || self.attention || core::mem::take(&mut self.held_back) || self.seat.news.load(Relaxed) {
                self.attend(cpu.now());
            }
            look = true;
            if self.machine.looks() != self.looked {
                self.show(cpu);
            }
            if self.parked || self.machine.stands() {
                let parked = self.parked;
                let ending = self.stay_out(cpu);
                if parked || ending.is_some() {
                    return ending;
                }
                // It was only held: it still waits for an interrupt.
                continue;
            }
            if self.starts != starts {
                return None;
            }
            let interrupts = self.page.get(field::RFLAGS) & IF != 0;
            let wakes = self.changed & group::INJECT != 0 && self.page.get(field::INJECT) & event::VALID != 0
                || self.requested & request::NMI_WINDOW != 0
                || interrupts && self.requested != 0;
            if wakes {
                return None;
            }
            if let Some(ending) = self.sleep(cpu) {
                return Some(ending);
            }
        }
    }

    /// Injects an exception at the next entry.
    #[cold]
    pub(crate) fn raise(&mut self, vector: u8, code: Option<u32>) -> Next {
        self.wanted = self.least;
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
        self.wanted = self.least;
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
