//! A processor is made, powered on, started and reset.

use super::{Ending, Shadow, Vm};
use crate::boot::{self, BootError, Guest};
use crate::event::Event;
use crate::exits::{Answers, decode::CodePages};
use crate::machine::{Machine, NEVER};
use crate::state::StatePage;
use moira_abi::vcpu::group;
use vmm_machine::boot::InitialState;
use vmm_machine::cpuid::{CpuidTable, Live};
use vmm_machine::msr::{MsrConfig, MsrPolicy};

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
        let leaf = self.cpuid.answer(1, 0, Live { apic: true, ..Live::default() });
        let initial = boot::load(&mut self.ram, &self.machine.map, cpus, guest, (leaf.eax, leaf.edx))?;
        self.power_on();
        self.start(&initial);
        Ok(())
    }

    /// CPUID leaf 1's EAX, which reset leaves in EDX.
    pub(super) fn signature(&self) -> u32 {
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
    pub(super) fn start(&mut self, initial: &InitialState) {
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
}
