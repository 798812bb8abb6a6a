//! One processor of a virtual machine and its run loop.
//!
//! | file | what it holds |
//! | --- | --- |
//! | here | the structure, the run loop, what handlers of exits say |
//! | `processor` | what the run loop asks of the outside |
//! | `start` | power-on, start-up, reset |
//! | `events` | what goes into the guest next |
//! | `sleep` | a guest that halted, waits to be started or is held |
//! | `debugging` | a debugger's stops and steps |

mod debugging;
mod events;
mod processor;
mod sleep;
mod start;

pub use processor::{Orders, Processor};
pub use start::{Parts, cr4_bits};

use crate::clock::TscClock;
use crate::event::Event;
use crate::exits::{self, Answers, decode::CodePages};
use crate::history::History;
use crate::machine::{Devices, Machine, Seat};
use crate::ram::Ram;
use crate::state::{StatePage, field};
use core::sync::atomic::Ordering::Relaxed;
use events::RF;
use moira_abi::vcpu::{Exit, access, group, request};
use vmm_machine::cpuid::CpuidTable;
use vmm_machine::msr::{MsrConfig, MsrPolicy};

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

impl<'a> Vm<'a> {
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

    /// Shows what the guest has written to text memory and was not shown; for the end of the machine.
    pub fn show_text(&self) {
        self.board().show_text(0, &self.ram);
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
        self.stalled().then_some(Ending::Unsupported("an instruction that cannot be read"))
    }

    /// The guest executed nothing since its last exit but one; answers whether that was so too often in a row.
    fn stalled(&mut self) -> bool {
        /// Most exits in a row at one instruction.
        const MOST: u32 = 1000;
        let (rip, total) = (self.page.get(field::RIP), self.seat.history.total());
        if self.stalled_at != (rip, total) {
            let in_a_row = self.stalled_at == (rip, total.wrapping_sub(1));
            self.stalls = if in_a_row { self.stalls + 1 } else { 0 };
            self.stalled_at = (rip, total);
        }
        self.stalls > MOST
    }

    /// An exit that came from outside, or that a window asked for: it says nothing of the guest's progress, and ends no row of exits without any.
    pub(super) fn no_exit_of_the_guest(&mut self) {
        if self.stalled_at.1 == self.seat.history.total().wrapping_sub(1) {
            self.stalled_at.1 = self.seat.history.total();
        }
    }

    /// The exit came while an event was being delivered.
    #[cold]
    fn undelivered(&mut self, exit: Exit) -> Option<Next> {
        let elsewhere = access::FETCH | access::WALK;
        if exit == Exit::Memory && self.page.get(field::QUALIFICATION) & elsewhere == 0 {
            // All RAM is mapped: no table and no stack is where this one went.
            return Some(self.end(Ending::Unsupported("an event whose table or stack is outside of memory")));
        }
        // An exception in the delivery of an exception, again and again.
        self.stalled().then(|| self.end(Ending::Unsupported("an event that cannot be delivered")))
    }

    /// Ends the machine.
    #[cold]
    pub(crate) fn end(&mut self, ending: Ending) -> Next {
        self.ending = ending;
        Next::End
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
        if self.take_delivering()
            && let Some(next) = self.undelivered(exit)
        {
            return next;
        }
        exits::other(self, exit, cpu)
    }

    /// The run ended from outside.
    #[inline(never)]
    fn interrupted(&mut self, cpu: &mut impl Processor) -> Next {
        self.no_exit_of_the_guest();
        self.shadow = Shadow::Page;
        self.attention = true;
        self.take_armed();
        let bits = cpu.poll();
        match self.news(cpu, bits) {
            Some(ending) => self.end(ending),
            None => Next::Enter,
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

    /// Goes on behind an instruction of `length` bytes.
    #[inline(always)]
    pub(crate) fn advance(&mut self, length: u64) {
        self.set_rip(self.page.get(field::RIP).wrapping_add(length));
    }

    /// An instruction was completed and the guest goes on here.
    #[inline(always)]
    pub(crate) fn set_rip(&mut self, rip: u64) {
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
