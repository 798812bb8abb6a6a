//! The remote protocol of gdb for a machine: registers, memory, break points, single steps, one thread for each processor.
//!
//! The thread of the first processor serves it ([`Gdb::feed`], [`Gdb::poll`]) while it is out of the guest or between two entries. Vector and x87
//! registers are shown as zero: a monitor never sees them.

use crate::debug::Why;
use crate::machine::Machine;
use crate::state::{StatePage, field};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::num::NonZeroUsize;
use gdbstub::common::{Signal, Tid};
use gdbstub::conn::Connection;
use gdbstub::stub::GdbStub;
use gdbstub::stub::MultiThreadStopReason as Stop;
use gdbstub::stub::state_machine::GdbStubStateMachine as State;
use gdbstub::target::ext::base::BaseOps;
use gdbstub::target::ext::base::multithread::{
    MultiThreadBase, MultiThreadResume, MultiThreadResumeOps, MultiThreadSchedulerLocking,
    MultiThreadSchedulerLockingOps, MultiThreadSingleStep, MultiThreadSingleStepOps,
};
use gdbstub::target::ext::breakpoints::{
    Breakpoints, BreakpointsOps, HwBreakpoint, HwBreakpointOps, SwBreakpoint, SwBreakpointOps,
};
use gdbstub::target::{Target, TargetError, TargetResult};
use gdbstub_arch::x86::X86_64_SSE;
use gdbstub_arch::x86::reg::X86_64CoreRegs;
use moira_abi::vcpu::{group, seg};
use spin::mutex::SpinMutex;
use vmm_decode::{Access, Paging, walk};
use vmm_devices::traits::GuestMemory;

/// Bytes of the longest packet.
const PACKET: usize = 4096;
/// gdb's order of general registers, in numbers of instructions.
const ORDER: [usize; 16] = [0, 3, 1, 2, 6, 7, 5, 4, 8, 9, 10, 11, 12, 13, 14, 15];
const SEGMENTS: [usize; 6] = [seg::CS, seg::SS, seg::DS, seg::ES, seg::FS, seg::GS];

/// What goes to gdb, kept until somebody takes it.
#[derive(Clone, Default)]
struct Out(Arc<SpinMutex<Vec<u8>>>);

impl Connection for Out {
    type Error = Infallible;

    fn write(&mut self, byte: u8) -> Result<(), Infallible> {
        self.0.lock().push(byte);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The machine as gdb sees it.
struct Guest<'a> {
    machine: &'a Machine<'a>,
    pages: Vec<StatePage<'a>>,
    /// Processors with an order of their own at the next resume, and whether the others stay.
    acted: u64,
    locked: bool,
    /// The processor that stopped last: break points are set where its tables lead.
    looks_at: usize,
}

/// A session, or the wait for one.
pub struct Gdb<'a> {
    guest: Guest<'a>,
    out: Out,
    state: Option<State<'a, Guest<'a>, Out>>,
}

impl<'a> Gdb<'a> {
    /// For a machine with these state pages, in the order of its processors.
    #[must_use]
    pub fn new(machine: &'a Machine<'a>, pages: Vec<StatePage<'a>>) -> Gdb<'a> {
        let guest = Guest { machine, pages, acted: 0, locked: false, looks_at: 0 };
        Gdb { guest, out: Out::default(), state: None }
    }

    /// A debugger comes: the guest stops, and a session begins.
    pub fn open(&mut self) {
        self.out.0.lock().clear();
        self.guest.machine.attach(true, 0);
        let stub = GdbStub::builder(self.out.clone()).packet_buffer_size(PACKET).build();
        self.state = stub.ok().and_then(|stub| stub.run_state_machine(&mut self.guest).ok());
    }

    /// The debugger is gone: the guest goes on.
    pub fn close(&mut self) {
        self.state = None;
        self.guest.machine.attach(false, 0);
    }

    /// Takes bytes from gdb. Before all processors are out of the guest only an interrupt is of use: answers whether bytes are taken now.
    pub fn feed(&mut self, bytes: &[u8]) {
        for byte in bytes {
            let guest = &mut self.guest;
            self.state = match self.state.take() {
                Some(State::Idle(inner)) => inner.incoming_data(guest, *byte).ok(),
                Some(State::Running(inner)) => inner.incoming_data(guest, *byte).ok(),
                other => other,
            };
            self.poll();
        }
    }

    /// Whether bytes are of use now: not while the guest is about to stop.
    #[must_use]
    pub fn listens(&self) -> bool {
        match &self.state {
            Some(State::Idle(_)) => self.guest.machine.debug().all_out(self.guest.machine.cpus()),
            Some(State::Running(_)) => true,
            _ => false,
        }
    }

    /// Tells gdb that the guest stopped, when it has.
    pub fn poll(&mut self) {
        let guest = &mut self.guest;
        let (machine, debug) = (guest.machine, guest.machine.debug());
        let all_out = debug.all_out(machine.cpus());
        self.state = match self.state.take() {
            Some(State::CtrlCInterrupt(inner)) if all_out => {
                let reason = Stop::SignalWithThread { tid: tid(0), signal: Signal::SIGINT };
                let _ = debug.take_stop();
                inner.interrupt_handled(guest, Some(reason)).ok()
            }
            Some(State::CtrlCInterrupt(inner)) => {
                machine.debug_hold(!0, 0);
                Some(State::CtrlCInterrupt(inner))
            }
            Some(State::Running(inner)) if all_out => match debug.take_stop() {
                Some((cpu, why)) => {
                    guest.looks_at = cpu;
                    let reason = match why {
                        Why::Step => Stop::SignalWithThread { tid: tid(cpu), signal: Signal::SIGTRAP },
                        Why::Break => Stop::HwBreak(tid(cpu)),
                        Why::Planted => Stop::SwBreak(tid(cpu)),
                    };
                    inner.report_stop(guest, reason).ok()
                }
                None => Some(State::Running(inner)),
            },
            Some(State::Disconnected(inner)) => {
                machine.attach(false, 0);
                Some(inner.return_to_idle())
            }
            other => other,
        };
    }

    /// Takes what goes to gdb.
    pub fn take_output(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.out.0.lock())
    }
}

/// gdb counts threads from 1.
fn tid(cpu: usize) -> Tid {
    NonZeroUsize::MIN.saturating_add(cpu)
}

impl<'a> Guest<'a> {
    fn page(&self, tid: Tid) -> Result<(usize, StatePage<'a>), TargetError<Infallible>> {
        let cpu = tid.get() - 1;
        self.pages.get(cpu).map(|page| (cpu, *page)).ok_or(TargetError::NonFatal)
    }

    /// Where a linear address leads, and how many bytes of the page are left. A debugger is not kept from what the guest's kernel may not
    /// touch.
    fn find(&self, page: &StatePage<'_>, linear: u64, write: bool) -> Option<(u64, usize)> {
        const WP: u64 = 1 << 16;
        const SMEP_SMAP: u64 = 3 << 20;
        let paging = Paging {
            cr0: page.get(field::CR0) & !WP,
            cr3: page.get(field::CR3),
            cr4: page.get(field::CR4) & !SMEP_SMAP,
            efer: page.get(field::EFER),
            rflags: page.get(field::RFLAGS),
            physical_bits: 52,
        };
        let access = Access { write, user: false, fetch: false };
        let ram = self.machine.ram;
        // Nothing is said of pages that a debugger touched: reading alone does not mark them.
        let found = walk(&paging, linear, access, &mut |gpa| ram.word(gpa)).ok()?;
        Some((found.gpa, usize::try_from(found.left).ok()?))
    }

    fn set_point(&mut self, address: u64) -> TargetResult<bool, Self> {
        Ok(self.machine.debug().add(address))
    }

    fn clear_point(&mut self, address: u64) -> TargetResult<bool, Self> {
        Ok(self.machine.debug().remove(address))
    }
}

impl Target for Guest<'_> {
    type Arch = X86_64_SSE;
    type Error = Infallible;

    fn base_ops(&mut self) -> BaseOps<'_, X86_64_SSE, Infallible> {
        BaseOps::MultiThread(self)
    }

    fn support_breakpoints(&mut self) -> Option<BreakpointsOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadBase for Guest<'_> {
    fn read_registers(&mut self, registers: &mut X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let (_, page) = self.page(tid)?;
        for (value, number) in registers.regs.iter_mut().zip(ORDER) {
            *value = page.gpr(number);
        }
        registers.rip = page.get(field::RIP);
        registers.eflags = page.get(field::RFLAGS) as u32;
        let [cs, ss, ds, es, fs, gs] = SEGMENTS.map(|index| u32::from(page.segment(index).selector));
        let segments = &mut registers.segments;
        (segments.cs, segments.ss, segments.ds) = (cs, ss, ds);
        (segments.es, segments.fs, segments.gs) = (es, fs, gs);
        Ok(())
    }

    fn write_registers(&mut self, registers: &X86_64CoreRegs, tid: Tid) -> TargetResult<(), Self> {
        let (cpu, page) = self.page(tid)?;
        for (value, number) in registers.regs.iter().zip(ORDER) {
            page.set_gpr(number, *value);
        }
        page.set(field::RIP, registers.rip);
        page.set(field::RFLAGS, u64::from(registers.eflags));
        self.machine.debug().load(cpu, group::RIP);
        Ok(())
    }

    fn read_addrs(&mut self, start: u64, data: &mut [u8], tid: Tid) -> TargetResult<usize, Self> {
        let (_, page) = self.page(tid)?;
        let mut done = 0;
        while done < data.len() {
            let Some((gpa, left)) = self.find(&page, start.wrapping_add(done as u64), false) else { break };
            let end = (done + left.max(1)).min(data.len());
            let Some(part) = data.get_mut(done..end) else { break };
            if self.machine.ram.read(gpa, part).is_err() {
                break;
            }
            self.machine.debug().show(gpa, part);
            done = end;
        }
        if done == 0 && !data.is_empty() { Err(TargetError::NonFatal) } else { Ok(done) }
    }

    fn write_addrs(&mut self, start: u64, data: &[u8], tid: Tid) -> TargetResult<(), Self> {
        let (_, page) = self.page(tid)?;
        let mut done = 0;
        while done < data.len() {
            let (gpa, left) = self.find(&page, start.wrapping_add(done as u64), true).ok_or(TargetError::NonFatal)?;
            let end = (done + left.max(1)).min(data.len());
            let mut part = data.get(done..end).unwrap_or_default().to_vec();
            self.machine.debug().cover(gpa, &mut part);
            self.machine.ram.write(gpa, &part).map_err(|_| TargetError::NonFatal)?;
            done = end;
        }
        Ok(())
    }

    fn list_active_threads(&mut self, register: &mut dyn FnMut(Tid)) -> Result<(), Infallible> {
        (0..self.pages.len()).for_each(|cpu| register(tid(cpu)));
        Ok(())
    }

    fn support_resume(&mut self) -> Option<MultiThreadResumeOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadResume for Guest<'_> {
    fn resume(&mut self) -> Result<(), Infallible> {
        let held = if self.locked { !self.acted } else { 0 };
        self.machine.debug_hold(held, 0);
        Ok(())
    }

    fn clear_resume_actions(&mut self) -> Result<(), Infallible> {
        (self.acted, self.locked) = (0, false);
        Ok(())
    }

    fn set_resume_action_continue(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.acted |= 1u64.checked_shl(tid.get() as u32 - 1).unwrap_or(0);
        Ok(())
    }

    fn support_single_step(&mut self) -> Option<MultiThreadSingleStepOps<'_, Self>> {
        Some(self)
    }

    fn support_scheduler_locking(&mut self) -> Option<MultiThreadSchedulerLockingOps<'_, Self>> {
        Some(self)
    }
}

impl MultiThreadSingleStep for Guest<'_> {
    fn set_resume_action_step(&mut self, tid: Tid, _: Option<Signal>) -> Result<(), Infallible> {
        self.acted |= 1u64.checked_shl(tid.get() as u32 - 1).unwrap_or(0);
        self.machine.debug().set_step(tid.get() - 1);
        Ok(())
    }
}

impl MultiThreadSchedulerLocking for Guest<'_> {
    fn set_resume_action_scheduler_lock(&mut self) -> Result<(), Infallible> {
        self.locked = true;
        Ok(())
    }
}

impl Breakpoints for Guest<'_> {
    fn support_sw_breakpoint(&mut self) -> Option<SwBreakpointOps<'_, Self>> {
        Some(self)
    }

    fn support_hw_breakpoint(&mut self) -> Option<HwBreakpointOps<'_, Self>> {
        Some(self)
    }
}

impl SwBreakpoint for Guest<'_> {
    /// In memory, or where that cannot be written (firmware) in a debug register.
    fn add_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        let page = self.pages.get(self.looks_at).copied().ok_or(TargetError::NonFatal)?;
        let found = self.find(&page, address, true);
        let planted = found.is_some_and(|(gpa, _)| self.machine.debug().plant(address, gpa, &self.machine.ram));
        if planted { Ok(true) } else { self.set_point(address) }
    }

    fn remove_sw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        if self.machine.debug().uproot(address, &self.machine.ram) { Ok(true) } else { self.clear_point(address) }
    }
}

impl HwBreakpoint for Guest<'_> {
    fn add_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.set_point(address)
    }

    fn remove_hw_breakpoint(&mut self, address: u64, _: usize) -> TargetResult<bool, Self> {
        self.clear_point(address)
    }
}
