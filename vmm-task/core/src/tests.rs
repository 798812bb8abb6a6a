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
use std::vec;
use std::vec::Vec;
use vmm_devices::board::{Board, BoardConfig};
use vmm_devices::platform;
use vmm_devices::traits::{EntropyBackend, GuestMemory, NullConsole};
use vmm_devices::virtio::{VirtioPci, console::Console, entropy::Entropy};
use vmm_machine::cpuid::{CpuidConfig, CpuidTable, Leaf, Vendor};
use vmm_machine::memory_map::MemoryMap;
use vmm_machine::msr::{MsrConfig, efer_mask};

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

/// A processor that follows a script: each step may look at the page and change it, and says why it exits.
struct Script<'a> {
    page: StatePage<'a>,
    #[allow(clippy::type_complexity)]
    steps: Vec<Box<dyn FnMut(&StatePage<'_>, u64) -> (Exit, u64) + 'a>>,
    now: u64,
}

impl<'a> Script<'a> {
    fn new(memory: &'a Memory) -> Script<'a> {
        Script { page: memory.page(), steps: Vec::new(), now: 1_000_000 }
    }

    fn step(mut self, step: impl FnMut(&StatePage<'_>, u64) -> (Exit, u64) + 'a) -> Self {
        self.steps.push(Box::new(step));
        self
    }
}

impl Processor for Script<'_> {
    fn run(&mut self, masks: u64, _until: u64) -> Result<(u64, u64), Error> {
        if self.steps.is_empty() {
            return Err(Error::PeerGone);
        }
        let (exit, groups) = self.steps.remove(0)(&self.page, masks);
        self.now += 1000;
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
    let mut cpu = Script::new(&memory);
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe), (0x43, 0x34), (0x40, 0xe8), (0x40, 3)]
    {
        cpu = cpu.step(move |page, _| out8(page, port, value));
    }
    let mut cpu = cpu
        // A millisecond later, with interrupts off.
        .step(|page, _| {
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
    let result = vm.run(&mut Late(&mut cpu));
    assert_eq!(result, Ending::TripleFault);
}

/// A processor whose clock is two milliseconds ahead from the exit of the `Until` on.
struct Late<'a, 'b>(&'b mut Script<'a>);

impl Processor for Late<'_, '_> {
    fn run(&mut self, masks: u64, until: u64) -> Result<(u64, u64), Error> {
        let answer = self.0.run(masks, until);
        if self.0.steps.len() == 4 {
            self.0.now += 2_000_000;
        }
        answer
    }
    fn now(&self) -> u64 {
        self.0.now
    }
    fn sleep(&mut self, until: u64) -> u64 {
        self.0.sleep(until)
    }
    fn poll(&mut self) -> u64 {
        0
    }
    fn orders(&mut self, bits: u64) -> Orders {
        self.0.orders(bits)
    }
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
fn an_unknown_register_faults_and_an_instruction_that_cannot_be_read_ends_the_machine() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory)
        .step(|page, _| {
            at(page, 2);
            page.set_gpr(gpr::RCX, 0x1234_5678);
            (Exit::MsrRead, group::RIP)
        })
        .step(|page, masks| {
            assert_eq!(masks & (group::RIP | group::INJECT), group::RIP | group::INJECT);
            assert_eq!(page.get(field::INJECT), event::VALID | event::EXCEPTION | event::HAS_CODE | 13);
            assert_eq!((page.get(field::RIP), page.get(field::RFLAGS)), (0x1000, 0x1_0202), "a fault sets RF");
            at(page, 0);
            (Exit::Hypercall, group::RIP)
        });
    // No length, and zeroes at RIP: no hypercall.
    for _ in 0..1010 {
        cpu = cpu.step(|page, _| {
            at(page, 0);
            (Exit::Hypercall, group::RIP | group::CONTROL)
        });
    }
    assert!(matches!(vm.run(&mut cpu), Ending::Unsupported(_)));
}

#[test]
fn exits_of_several_kinds_that_come_to_nothing_end_the_machine() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for turn in 0..5000 {
        cpu = cpu.step(move |page, _| {
            at(page, 0);
            match turn % 4 {
                0 => (Exit::Until, group::RIP | group::INJECT | group::INTERRUPTIBILITY),
                2 => (Exit::InterruptWindow, group::RIP | group::INJECT | group::INTERRUPTIBILITY),
                // No length, and zeroes at RIP: no hypercall.
                _ => (Exit::Hypercall, group::RIP | group::CONTROL),
            }
        });
    }
    assert_eq!(vm.run(&mut cpu), Ending::Unsupported("an instruction that cannot be read"));
    // As many at an instruction that the guest comes to each time.
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for turn in 0..5000 {
        cpu = cpu.step(move |page, _| {
            at(page, if turn % 2 == 0 { 0 } else { 3 });
            (Exit::Hypercall, group::RIP | group::CONTROL)
        });
    }
    assert_eq!(vm.run(&mut cpu), Ending::Kernel(Error::PeerGone));
}

#[test]
fn an_event_that_cannot_be_delivered_ends_the_machine() {
    let delivering = |vector: u64| event::VALID | event::EXCEPTION | vector;
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory).step(|page, _| {
        at(page, 0);
        page.set(field::DELIVERING, delivering(6));
        page.set(field::ADDRESS, 0xd000_0000);
        page.set(field::QUALIFICATION, moira_abi::vcpu::access::WRITE);
        (Exit::Memory, group::RIP | group::CONTROL)
    });
    assert!(matches!(vm.run(&mut cpu), Ending::Unsupported("an event whose table or stack is outside of memory")));
    // #AC for ever, as on a stack that is not aligned.
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for _ in 0..5000 {
        cpu = cpu.step(|page, _| {
            at(page, 0);
            page.set(field::DELIVERING, delivering(17));
            page.set(field::QUALIFICATION, 17);
            (Exit::Exception, group::RIP | group::CONTROL | group::DEBUG)
        });
    }
    assert_eq!(vm.run(&mut cpu), Ending::Unsupported("an event that cannot be delivered"));
}

#[test]
fn a_machine_that_halts_sleeps_until_its_timer() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe), (0x43, 0x30), (0x40, 0xe8), (0x40, 3)]
    {
        cpu = cpu.step(move |page, _| out8(page, port, value));
    }
    let mut cpu = cpu
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

/// A processor whose debugger is served a few times only.
struct Served<'a, 'b>(&'b mut Script<'a>, u32);

impl Processor for Served<'_, '_> {
    fn run(&mut self, masks: u64, until: u64) -> Result<(u64, u64), Error> {
        self.0.run(masks, until)
    }
    fn now(&self) -> u64 {
        self.0.now
    }
    fn sleep(&mut self, until: u64) -> u64 {
        self.0.sleep(until)
    }
    fn poll(&mut self) -> u64 {
        0
    }
    fn orders(&mut self, bits: u64) -> Orders {
        self.0.orders(bits)
    }
    fn debug(&mut self) {
        self.1 += 1;
        assert!(self.1 < 100, "it does not sleep");
    }
}

/// As with gdb's `set scheduler-locking on`: the one that goes on may halt.
#[test]
fn a_processor_that_halts_sleeps_although_another_one_is_held() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    vm.machine().debug_hold(!1, 0);
    let mut cpu = Script::new(&memory);
    for (port, value) in
        [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe), (0x43, 0x30), (0x40, 0xe8), (0x40, 3)]
    {
        cpu = cpu.step(move |page, _| out8(page, port, value));
    }
    let mut cpu = cpu
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
    assert_eq!(vm.run(&mut Served(&mut cpu, 0)), Ending::TripleFault);
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

/// A 64-bit guest without tables to walk (paging off is what the page says), whose code at 1000h is `code`, at an access to `gpa`.
fn device_access(page: &StatePage<'_>, gpa: u64, kind: u64) -> (Exit, u64) {
    at(page, 0);
    page.set(field::ADDRESS, gpa);
    page.set(field::QUALIFICATION, kind);
    (Exit::Memory, group::RIP | group::CONTROL | group::SEGMENTS)
}

#[test]
fn instructions_on_device_memory_reach_device_and_memory_alike() {
    const DEVICE: u64 = vmm_devices::test_device::MEMORY;
    let memory = Memory::new();
    let code = |bytes: &[u8]| {
        let mut word = [0x90; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        memory.ram[0x1000 / 8].store(u64::from_le_bytes(word), Relaxed);
    };
    let mut vm = memory.vm();
    memory.ram[0x2000 / 8].store(0x8877_6655_4433_2211, Relaxed);
    // Ends in the last word of RAM, so that what follows it is no memory.
    let mut cpu = Script::new(&memory)
        .step(|page, _| {
            // A 32-bit code segment and no paging: linear addresses are physical.
            page.set(field::CR0, 1);
            page.set_segment(1, &moira_abi::vcpu::Segment { rights: 0xc09b, limit: u32::MAX, ..Default::default() });
            page.set_gpr(gpr::RAX, 0xddcc_bbaa);
            page.set_gpr(7, DEVICE + 0xffe);
            code(&[0x89, 0x07]); // mov [edi],eax, over the end of a page
            device_access(page, DEVICE + 0xffe, access::WRITE)
        })
        .step(|page, _| {
            assert_eq!(page.get(field::RIP), 0x1002);
            page.set_gpr(6, 0x2000);
            page.set_gpr(gpr::RCX, 2);
            page.set_gpr(7, DEVICE + 0x10);
            code(&[0xf3, 0xa5]); // rep movsd to the device
            device_access(page, DEVICE + 0x10, access::WRITE)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX)), (0x1000, 1));
            device_access(page, DEVICE + 0x14, access::WRITE)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX)), (0x1002, 0));
            page.set_gpr(6, DEVICE + 0x10);
            page.set_gpr(7, 0x2000);
            page.set_gpr(gpr::RCX, 5);
            code(&[0xf3, 0x66, 0xa7]); // repe cmpsw of device and memory
            device_access(page, DEVICE + 0x10, 0)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX), page.get(field::RFLAGS) & 0x40), (0x1000, 4, 0x40));
            memory.ram[0x2000 / 8].store(0, Relaxed);
            device_access(page, DEVICE + 0x12, 0)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX), page.get(field::RFLAGS) & 0x41), (0x1003, 3, 0));
            page.set_gpr(7, DEVICE + 0xffd);
            code(&[0x0b, 0x07]); // or eax,[edi], over the end of a page
            page.set_gpr(gpr::RAX, 0);
            device_access(page, DEVICE + 0xffd, 0)
        })
        .step(|page, _| {
            assert_eq!(page.gpr(gpr::RAX), 0xccbb_aa00);
            // insb from port E0h, which holds 5Ah, to the device.
            page.set_gpr(gpr::RAX, 0x5a);
            out8(page, 0xe0, 0x5a)
        })
        .step(|page, _| {
            at(page, 0);
            page.set_gpr(gpr::RDX, 0xe0);
            page.set_gpr(7, DEVICE + 0x1000);
            code(&[0x6c]);
            page.set(field::QUALIFICATION, PortIo::new(0xe0, 1, true, true, false).0);
            (Exit::Port, group::RIP | group::CONTROL | group::SEGMENTS)
        })
        .step(|page, _| {
            page.set_gpr(7, DEVICE + 0xfff);
            page.set_gpr(gpr::RAX, 0);
            code(&[0x66, 0x8b, 0x07]); // mov ax,[edi]
            device_access(page, DEVICE + 0xfff, 0)
        })
        .step(|page, _| {
            assert_eq!(page.gpr(gpr::RAX), 0x5abb);
            (Exit::Shutdown, group::ALL)
        });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}

/// A processor that does anything: page and RAM are random, exits and groups too.
struct Anything<'a> {
    memory: &'a Memory,
    numbers: Vec<(u8, u16, u64)>,
    next: usize,
    now: u64,
}

impl Processor for Anything<'_> {
    fn run(&mut self, masks: u64, _until: u64) -> Result<(u64, u64), Error> {
        let Some(&(exit, word, value)) = self.numbers.get(self.next) else { return Err(Error::PeerGone) };
        self.next += 1;
        self.now = self.now.wrapping_add(value >> 40);
        let page = self.memory.page();
        // A few words at a time, those that decide most often.
        let favourites = [
            field::RIP,
            field::QUALIFICATION,
            field::ADDRESS,
            field::LENGTH,
            field::RFLAGS,
            field::DELIVERING,
            field::CR3,
            field::CR0,
        ];
        page.set(favourites[usize::from(word) % favourites.len()], value);
        self.memory.page[usize::from(word) % WORDS].store(value.rotate_left(7), Relaxed);
        self.memory.ram[usize::from(word) * 3 % self.memory.ram.len()].store(value.rotate_left(23), Relaxed);
        let groups = if value & 1 != 0 { group::ALL } else { masks >> 32 | group::RIP };
        Ok((u64::from(exit), groups))
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn sleep(&mut self, _until: u64) -> u64 {
        self.next += 1;
        self.now = self.now.wrapping_add(1_000_000);
        u64::from(self.next >= self.numbers.len())
    }
    fn poll(&mut self) -> u64 {
        0
    }
    fn orders(&mut self, _bits: u64) -> Orders {
        Orders { kill: true, ..Orders::default() }
    }
}

fn exits() -> impl Strategy<Value = Vec<(u8, u16, u64)>> {
    // Now and then one that no kernel gives, and seldom those that end a machine at once.
    let exit = prop_oneof![8 => prop::sample::select(vec![0u8, 2, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8, 9, 10, 11, 13, 14, 15, 16, 22]), 1 => 0u8..30];
    let value = prop_oneof![
        any::<u64>(),
        (any::<u16>(), 0u64..1 << 20).prop_map(|(port, low)| u64::from(port) << 16 | low & 0xff7d),
        (0u64..0x4000).prop_map(|low| 0xfee0_0000 + low),
        (0u64..0x400).prop_map(|low| 0xfed0_0000 + low),
        (0u64..0x2_0000).prop_map(|low| 0xffff_0000 + low),
        (0u64..RAM as u64)
    ];
    prop::collection::vec((exit, any::<u16>(), value), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_that_a_guest_does_panics(numbers in exits(), restart: bool, firmware: bool) {
        let memory = Memory::new();
        let rom: Vec<AtomicU64> = (0..8192u64 * u64::from(firmware)).map(AtomicU64::new).collect();
        let mut vm = memory.with_rom(&rom);
        let mut cpu = Anything { memory: &memory, numbers, next: 0, now: 0 };
        // Each ending but the last two lets the machine go on, to try more.
        while !matches!(vm.run(&mut cpu), Ending::Kernel(_) | Ending::Killed) {
            if restart {
                let _ = vm.restart(&Guest::default());
            } else {
                vm.machine().go_on();
            }
        }
        let mut lines = 0;
        crate::report::write(&vm, &Ending::TripleFault, |_| lines += 1);
        prop_assert!(lines > 5);
    }
}

#[test]
fn memory_of_a_machine_is_all_of_it() {
    let memory = Memory::new();
    let ram = Ram::new(&memory.ram, &[]);
    assert!(ram.contains(0, RAM as u64) && !ram.contains(1, RAM as u64));
}
