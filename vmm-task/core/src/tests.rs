//! Whole machines with a processor of our own: a scripted guest, and one that does anything.

use crate::boot::Guest;
use crate::machine::{Alone, Machine};
use crate::ram::Ram;
use crate::state::{StatePage, WORDS, field, gpr};
use crate::vm::{Ending, Orders, Parts, Processor, Vm, cr4_bits};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use moira_abi::Error;
use moira_abi::vcpu::{Exit, PortIo, access, control_write, event, group, interruptibility, request};
use proptest::prelude::*;
use std::boxed::Box;
use std::collections::VecDeque;
use std::vec;
use std::vec::Vec;
use vmm_devices::board::{Board, BoardConfig};
use vmm_devices::platform;
use vmm_devices::traits::{EntropyBackend, GuestMemory, NullConsole};
use vmm_devices::virtio::{VirtioPci, console::Console, entropy::Entropy};
use vmm_machine::cpuid::{CpuidConfig, CpuidTable, Leaf, Vendor};
use vmm_machine::memory_map::MemoryMap;
use vmm_machine::msr::{MsrConfig, efer_mask};

mod device_memory;
mod endings;
mod paging;
mod random;

const RAM: usize = 4 << 20;

struct Zeros;

impl EntropyBackend for Zeros {
    fn fill(&mut self, out: &mut [u8]) -> usize {
        out.fill(0);
        out.len()
    }
}

/// Memory of a machine: RAM and the state page.
struct Memory {
    ram: Vec<AtomicU64>,
    page: Vec<AtomicU64>,
}

impl Memory {
    fn new() -> Memory {
        let words = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Memory { ram: words(RAM / 8), page: words(WORDS) }
    }

    fn page(&self) -> StatePage<'_> {
        StatePage::new(&self.page).unwrap()
    }

    fn vm(&self) -> Vm<'_> {
        self.with_rom(&[])
    }

    /// A machine that starts with firmware if there is any.
    fn with_rom<'a>(&'a self, rom: &'a [AtomicU64]) -> Vm<'a> {
        let config = CpuidConfig {
            cpus: 1,
            xcr0: 7,
            tsc_khz: 1_000_000,
            apic_timer_hz: 1_000_000_000,
            physical_bits: 40,
            speculation_control: true,
            arch_capabilities: None,
            pcid: false,
        };
        let host = |_, _| Leaf::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX);
        let cpuid = CpuidTable::new(&config, 0, &host);
        let msr = MsrConfig {
            vendor: Vendor::Amd,
            physical_bits: 40,
            speculation_control: true,
            arch_capabilities: None,
            efer_mask: efer_mask(u32::MAX),
        };
        let mut board = Board::new(BoardConfig {
            apic_ids: &[0],
            apic_timer_hz: 1_000_000_000,
            tsc_hz: 1_000_000_000,
            unix_ns: 0,
            memory_below_4g: RAM as u64,
            memory_above_4g: 0,
            without_firmware: rom.is_empty(),
            console: Box::new(NullConsole),
        });
        board.plug(platform::SLOT_CONSOLE, Box::new(VirtioPci::new(Box::new(Console::new(Box::new(NullConsole))))));
        board.plug(platform::SLOT_ENTROPY, Box::new(VirtioPci::new(Box::new(Entropy::new(Box::new(Zeros))))));
        let cr4 = cr4_bits(&cpuid);
        let map = MemoryMap::new(RAM as u64).unwrap();
        let ram = Ram::new(&self.ram, &[]).with_rom(rom);
        let machine = Box::leak(Box::new(Machine::new(ram, map, board, 1_000_000_000, 1, &Alone)));
        Vm::new(Parts { machine, index: 0, page: self.page(), cpuid, msr, xcr0: 7, cr4 })
    }
}

/// What a step does: it may look at the page and change it, and says why the guest exits and with which groups.
type Act<'a> = Box<dyn FnMut(&StatePage<'_>, u64) -> (Exit, u64) + 'a>;

/// A processor that follows a script.
struct Script<'a> {
    page: StatePage<'a>,
    /// Each with the cycles that it takes.
    steps: VecDeque<(u64, Act<'a>)>,
    now: u64,
    served: u32,
}

impl<'a> Script<'a> {
    fn new(memory: &'a Memory) -> Script<'a> {
        Script { page: memory.page(), steps: VecDeque::new(), now: 1_000_000, served: 0 }
    }

    fn step(self, step: impl FnMut(&StatePage<'_>, u64) -> (Exit, u64) + 'a) -> Self {
        self.step_of(1000, step)
    }

    fn step_of(mut self, cycles: u64, step: impl FnMut(&StatePage<'_>, u64) -> (Exit, u64) + 'a) -> Self {
        self.steps.push_back((cycles, Box::new(step)));
        self
    }

    /// The guest sets up the legacy interrupt controller at vector 20h and its timer, in this mode, to 1,000 ticks.
    fn starts_the_legacy_timer(self, mode: u8) -> Self {
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe), (0x43, mode), (0x40, 0xe8), (0x40, 3)]
            .into_iter()
            .fold(self, |cpu, (port, value)| cpu.step(move |page, _| out8(page, port, value)))
    }
}

impl Processor for Script<'_> {
    fn run(&mut self, masks: u64, _until: u64) -> Result<(u64, u64), Error> {
        let (cycles, mut act) = self.steps.pop_front().ok_or(Error::PeerGone)?;
        let (exit, groups) = act(&self.page, masks);
        self.now += cycles;
        Ok((exit as u64, groups))
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn sleep(&mut self, until: u64) -> u64 {
        if until == 0 {
            return 1;
        }
        self.now = self.now.max(until);
        0
    }
    fn poll(&mut self) -> u64 {
        0
    }
    fn orders(&mut self, _bits: u64) -> Orders {
        Orders { kill: true, ..Orders::default() }
    }
    fn debug(&mut self) {
        self.served += 1;
        assert!(self.served < 100, "it does not sleep");
    }
}

/// What each exit has in common: an instruction of this length at 1000h, in 64-bit mode without paging tables to walk.
fn at(page: &StatePage<'_>, length: u64) {
    page.set(field::RIP, 0x1000);
    page.set(field::RFLAGS, 0x202);
    page.set(field::LENGTH, length);
    page.set(field::DELIVERING, 0);
    page.set(field::INJECT, 0);
}

fn out8(page: &StatePage<'_>, port: u16, value: u8) -> (Exit, u64) {
    at(page, 1);
    page.set(field::QUALIFICATION, PortIo::new(port, 1, false, false, false).0);
    page.set_gpr(gpr::RAX, value.into());
    (Exit::Port, group::RIP)
}

#[test]
fn an_interrupt_waits_for_its_window_and_is_not_lost() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    // The timer of the legacy controller, with the APIC still off.
    let mut cpu = Script::new(&memory)
        .starts_the_legacy_timer(0x34)
        // Two milliseconds later, with interrupts off.
        .step_of(2_000_000, |page, _| {
            at(page, 0);
            page.set(field::RFLAGS, 2);
            page.set(field::INTERRUPTIBILITY, 0);
            (Exit::Until, group::RIP | group::INTERRUPTIBILITY | group::INJECT)
        })
        .step(|page, masks| {
            assert!(masks & group::INJECT != 0);
            assert_eq!(page.get(field::INJECT), 0);
            assert_eq!(page.get(field::REQUEST), request::INTERRUPT_WINDOW);
            at(page, 0);
            // The window opens, but in the shadow of STI: not yet.
            page.set(field::INTERRUPTIBILITY, interruptibility::STI);
            (Exit::InterruptWindow, group::RIP | group::INTERRUPTIBILITY | group::INJECT)
        })
        .step(|page, _| {
            assert_eq!(page.get(field::INJECT), 0);
            assert_eq!(page.get(field::REQUEST), request::INTERRUPT_WINDOW);
            at(page, 0);
            page.set(field::INTERRUPTIBILITY, 0);
            (Exit::InterruptWindow, group::RIP | group::INTERRUPTIBILITY | group::INJECT)
        })
        .step(|page, masks| {
            assert!(masks & group::INJECT != 0);
            assert_eq!(page.get(field::INJECT), event::VALID | event::INTERRUPT | 0x20);
            // The delivery met an exit: the event comes back, and must go in again first.
            at(page, 0);
            page.set(field::DELIVERING, event::VALID | event::INTERRUPT | 0x20);
            page.set(field::ADDRESS, 0);
            page.set(field::QUALIFICATION, 0);
            (Exit::Pause, group::RIP | group::CONTROL)
        })
        .step(|page, masks| {
            assert!(masks & group::INJECT != 0);
            assert_eq!(page.get(field::INJECT), event::VALID | event::INTERRUPT | 0x20);
            at(page, 0);
            (Exit::Shutdown, group::ALL)
        });
    cpu.now = 0;
    let result = vm.run(&mut cpu);
    assert_eq!(result, Ending::TripleFault);
}

#[test]
fn a_debug_exception_clears_the_points_of_earlier_ones() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory)
        .step(|page, _| {
            at(page, 0);
            page.set(field::QUALIFICATION, 1);
            page.set(field::ADDRESS, 1);
            page.set(field::DR6, 0xffff_4ff2);
            (Exit::Exception, group::ALL)
        })
        .step(|page, _| {
            assert_eq!(page.get(field::INJECT), event::VALID | event::EXCEPTION | 1);
            assert_eq!(page.get(field::DR6), 0xffff_4ff1);
            (Exit::Shutdown, group::ALL)
        });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}

#[test]
fn reading_cr8_for_ever_is_progress() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for _ in 0..2_000 {
        cpu = cpu.step(|page, _| {
            at(page, 4);
            page.set(field::QUALIFICATION, 8 | control_write::READ);
            (Exit::ControlWrite, group::RIP | group::CONTROL)
        });
    }
    let mut cpu = cpu.step(|_, _| (Exit::Shutdown, group::ALL));
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}

#[test]
fn what_an_exit_did_not_bring_the_next_one_brings() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory)
        .step(|page, _| {
            at(page, 2);
            page.set_gpr(gpr::RAX, 1);
            (Exit::Cpuid, group::RIP)
        })
        .step(|page, masks| {
            // Nothing was changed, and CR4 and XCR0 are asked for.
            assert_eq!(masks & 0xffff_ffff & group::RIP, 0);
            assert_eq!(masks >> 32, group::CONTROL | group::TSC_XCR);
            assert_eq!(page.gpr(gpr::RAX), 1);
            at(page, 2);
            page.set(field::CR4, 1 << 18);
            (Exit::Cpuid, group::RIP | group::CONTROL | group::TSC_XCR)
        })
        .step(|page, masks| {
            assert!(masks & group::RIP != 0);
            assert_eq!(page.get(field::RIP), 0x1002);
            assert!(page.gpr(gpr::RCX) >> 27 & 1 != 0, "OSXSAVE follows CR4");
            at(page, 0);
            (Exit::Shutdown, group::ALL)
        });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}

#[test]
fn a_machine_that_halts_sleeps_until_its_timer() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory)
        .starts_the_legacy_timer(0x30)
        .step(|page, _| {
            at(page, 1);
            page.set(field::INTERRUPTIBILITY, 0);
            (Exit::Halt, group::RIP | group::INTERRUPTIBILITY | group::INJECT)
        })
        .step(|page, _| {
            assert_eq!(page.get(field::INJECT), event::VALID | event::INTERRUPT | 0x20);
            assert_eq!(page.get(field::RIP), 0x1001);
            at(page, 1);
            page.set(field::RFLAGS, 2);
            (Exit::Halt, group::RIP | group::INTERRUPTIBILITY | group::INJECT)
        });
    // With interrupts off nothing wakes it but an order from outside.
    assert_eq!(vm.run(&mut cpu), Ending::Killed);
}

/// As with gdb's `set scheduler-locking on`: the one that goes on may halt.
#[test]
fn a_processor_that_halts_sleeps_although_another_one_is_held() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    vm.machine().debug_hold(!1, 0);
    let mut cpu = Script::new(&memory)
        .starts_the_legacy_timer(0x30)
        .step(|page, _| {
            at(page, 1);
            page.set(field::INTERRUPTIBILITY, 0);
            (Exit::Halt, group::RIP | group::INTERRUPTIBILITY | group::INJECT)
        })
        .step(|page, _| {
            assert_eq!(page.get(field::INJECT), event::VALID | event::INTERRUPT | 0x20);
            at(page, 0);
            (Exit::Shutdown, group::ALL)
        });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}

#[test]
fn firmware_starts_in_real_mode_runs_from_its_rom_and_cannot_write_it() {
    let image: Vec<u8> = (0..64 << 10).map(|at| if at % 16 == 0 { 0x0f } else { 0xa2 }).collect();
    let rom: Vec<AtomicU64> =
        image.as_chunks::<8>().0.iter().map(|word| AtomicU64::new(u64::from_le_bytes(*word))).collect();
    let memory = Memory::new();
    let mut vm = memory.with_rom(&rom);
    let firmware = Guest { firmware: Some(&image), ..Guest::default() };
    vm.boot(&firmware).unwrap();
    let mut cpu = Script::new(&memory)
        .step(|page, masks| {
            assert_eq!(masks & 0xffff_ffff, group::ALL & !group::PDPTE);
            assert_eq!((page.segment_base(1), page.get(field::RIP)), (0xffff_0000, 0xfff0));
            assert_eq!((page.get(field::CR0) & 1, page.get(field::EFER)), (0, 0));
            // CPUID (0F A2) at the reset vector, without a length: it is found in the ROM.
            page.set_gpr(gpr::RAX, 0);
            page.set(field::LENGTH, 0);
            page.set(field::DELIVERING, 0);
            (Exit::Cpuid, group::RIP | group::CONTROL)
        })
        .step(|page, masks| {
            assert!(masks & group::RIP != 0);
            assert_eq!(page.get(field::RIP), 0xfff2);
            // mov [di], al, in RAM at 7C00h, to the ROM's last byte.
            page.set_segment_base(1, 0x7c00);
            page.set(field::RIP, 0);
            page.set(field::ADDRESS, 0xffff_ffff);
            page.set(field::QUALIFICATION, access::WRITE | access::PRESENT);
            (Exit::Memory, group::RIP | group::CONTROL)
        })
        .step(|page, _| {
            assert_eq!(page.get(field::RIP), 2);
            // xchg [di], al: reads what stands there.
            page.set(field::RIP, 2);
            page.set(field::ADDRESS, 0xffff_fff0);
            page.set(field::QUALIFICATION, access::WRITE | access::PRESENT);
            (Exit::Memory, group::RIP | group::CONTROL)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RAX) & 0xff), (4, 0x0f));
            (Exit::Shutdown, group::ALL)
        });
    memory.ram[0x7c00 / 8].store(u64::from_le_bytes([0x88, 0x05, 0x86, 0x05, 0, 0, 0, 0]), Relaxed);
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
    let word = |at: usize| u64::from_le_bytes(image[at..at + 8].try_into().unwrap());
    assert_eq!(rom.last().unwrap().load(Relaxed), word(image.len() - 8));
    // The copy below 1 MiB comes back with a restart.
    memory.ram[0xf_fff8 / 8].store(0, Relaxed);
    vm.restart(&firmware).unwrap();
    assert_eq!(memory.ram[0xf_fff8 / 8].load(Relaxed), word(image.len() - 8));
}

#[test]
fn memory_of_a_machine_is_all_of_it() {
    let memory = Memory::new();
    let ram = Ram::new(&memory.ram, &[]);
    assert!(ram.contains(0, RAM as u64) && !ram.contains(1, RAM as u64));
}
