//! A whole monitor between exits and entries, with a processor whose exits, registers and memory are anything, and a debugger that says
//! anything.

use crate::Bytes;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use vmm_core::boot::Guest;
use vmm_core::disk::MemoryDisk;
use vmm_core::gdb::Gdb;
use vmm_core::history::History;
use vmm_core::machine::{Alone, Machine};
use vmm_core::ram::Ram;
use vmm_core::state::{Field, StatePage, WORDS, field, gpr};
use vmm_core::vm::{Ending, Orders, Parts, Processor, Vm, cr4_bits};
use vmm_devices::board::{Board, BoardConfig};
use vmm_devices::platform as p;
use vmm_devices::traits::{EntropyBackend, NullConsole};
use vmm_devices::virtio::{VirtioPci, block::Block, console::Console, entropy::Entropy};
use vmm_machine::cpuid::{CpuidConfig, CpuidTable, Leaf, Vendor};
use vmm_machine::memory_map::MemoryMap;
use vmm_machine::msr::{MsrConfig, efer_mask};

/// The least that a machine may have.
const RAM: usize = 2 << 20;
const ROM: usize = 64 << 10;
static DISK: [u8; 8192] = [0x5a; 8192];

/// Numbers of [`moira_abi::vcpu::Exit`], those most often that a guest can cause in more ways than one.
const EXITS: [u64; 32] =
    [2, 2, 2, 2, 3, 3, 3, 3, 3, 4, 6, 6, 7, 7, 8, 9, 0, 1, 5, 10, 11, 12, 13, 13, 14, 15, 16, 17, 18, 19, 20, 22];
const PORT: u64 = 2;
const MEMORY: u64 = 3;
const MSR_READ: u64 = 6;
const MSR_WRITE: u64 = 7;
/// Every group of the state page.
const ALL: u64 = (1 << 10) - 1;

struct Zeros;

impl EntropyBackend for Zeros {
    fn fill(&mut self, out: &mut [u8]) -> usize {
        out.fill(0);
        out.len()
    }
}

/// What decides of the next exit.
struct Anything<'a, 'b> {
    bytes: Bytes<'b>,
    page: StatePage<'a>,
    ram: &'a [AtomicU64],
    now: u64,
    gdb: Option<Gdb<'a>>,
}

/// Words that decide most often.
const FAVOURITES: [Field; 16] = [
    field::RIP,
    field::RFLAGS,
    field::QUALIFICATION,
    field::ADDRESS,
    field::LENGTH,
    field::DELIVERING,
    field::ERROR_CODE,
    field::INTERRUPTIBILITY,
    field::CR0,
    field::CR3,
    field::CR4,
    field::EFER,
    field::CPL,
    field::INJECT,
    field::FETCHED_COUNT,
    field::CODE_ROOT,
];

impl Anything<'_, '_> {
    /// A few bytes of code or of a table, a few of them at the instruction.
    fn poke(&mut self, kind: u8) {
        let word = if kind & 1 == 0 { self.page.get(field::RIP) } else { self.bytes.number(3) } / 8;
        let value = self.bytes.number(8).to_be();
        if let Some(place) = self.ram.get(word as usize) {
            place.store(value, Relaxed);
        }
    }

    /// A word of the state page.
    fn change(&mut self, which: u8) {
        let value = match which >> 6 {
            0 => self.bytes.number(2),
            1 => self.bytes.number(4),
            _ => self.bytes.number(8),
        };
        match FAVOURITES.get(usize::from(which & 63)) {
            Some(place) => self.page.set(*place, value),
            None if which & 63 < 32 => self.page.set_gpr(usize::from(which & 15), value),
            None => self.page.set(field::GPR.plus(usize::from(self.bytes.byte()) % WORDS), value),
        }
    }

    /// What goes with the exits that say where.
    fn detail(&mut self, exit: u64) {
        const PAGES: [u64; 8] = [
            p::LAPIC_BASE,
            p::IOAPIC_BASE,
            p::ECAM_BASE + 0x8000,
            p::HPET_BASE,
            p::PCI_MMIO_BASE,
            p::PCI_MMIO_BASE + 0x4000,
            p::PCI_MMIO_BASE + 0x8000,
            0xffff_f000,
        ];
        const PORTS: [u64; 16] =
            [0x20, 0xa1, 0x40, 0x43, 0x61, 0x64, 0x70, 0x71, 0x92, 0x3f8, 0xcf8, 0xcfc, 0x600, 0x604, 0x510, 0xcf9];
        const REGISTERS: [u64; 10] =
            [0x10, 0x1b, 0x277, 0x2ff, 0x6e0, 0x800, 0xc000_0080, 0xc000_0100, 0xc001_0015, 0x200];
        match exit {
            PORT => {
                let (kind, port) = (self.bytes.byte(), self.bytes.pick(&PORTS).unwrap_or(0));
                let size = 1 << (kind >> 4 & 3).min(2);
                let port = if kind & 2 == 0 { port } else { self.bytes.number(2) };
                self.page.set(field::QUALIFICATION, u64::from(kind & 0xd) | size << 4 | port << 16);
            }
            MEMORY => {
                let (page, offset) = (self.bytes.pick(&PAGES).unwrap_or(0), self.bytes.number(2));
                self.page.set(field::ADDRESS, page + offset % 0x1000);
                self.page.set(field::QUALIFICATION, offset >> 12);
            }
            MSR_READ | MSR_WRITE => {
                let register = self.bytes.pick(&REGISTERS).unwrap_or(0) + self.bytes.number(1);
                self.page.set_gpr(gpr::RCX, register);
            }
            _ => {}
        }
    }
}

impl Processor for Anything<'_, '_> {
    fn run(&mut self, masks: u64, _: u64) -> Result<(u64, u64), moira_abi::Error> {
        if self.bytes.is_empty() {
            return Err(moira_abi::Error::PeerGone);
        }
        let kind = self.bytes.byte();
        self.now += u64::from(self.bytes.byte()) << (kind & 31);
        let exit = self.bytes.pick(&EXITS).unwrap_or(0);
        let changes = self.bytes.byte();
        // Without a length an instruction is read and decoded.
        self.page.set(field::LENGTH, (changes >> 4 & 3).into());
        self.page.set(field::DELIVERING, 0);
        self.page.set(field::FETCHED_COUNT, 0);
        self.detail(exit);
        for _ in 0..changes & 7 {
            let which = self.bytes.byte();
            self.change(which);
        }
        if changes & 8 != 0 {
            self.poke(changes >> 6);
        }
        let groups = if kind & 0x80 == 0 { ALL } else { masks >> 32 | 1 };
        Ok((if kind & 0x60 == 0x60 { exit + u64::from(kind & 1) * 16 } else { exit }, groups))
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn sleep(&mut self, until: u64) -> u64 {
        self.now = self.now.saturating_add(1_000_000).max(until.min(1 << 50));
        u64::from(self.bytes.is_empty() || self.bytes.byte() & 1 != 0 || until == 0)
    }
    fn poll(&mut self) -> u64 {
        u64::from(self.bytes.is_empty()) | u64::from(self.bytes.byte() & 3)
    }
    fn orders(&mut self, _: u64) -> Orders {
        let orders = self.bytes.byte();
        Orders {
            poll: orders & 1 != 0,
            power_button: orders & 2 != 0,
            nmi: orders & 0x40 != 0,
            reset: orders & 4 != 0,
            look: orders & 8 != 0,
            hold: match orders >> 4 & 3 {
                1 => Some(true),
                2 => Some(false),
                _ => None,
            },
            kill: self.bytes.is_empty(),
        }
    }
    fn tell(&mut self, _: usize, history: &History) {
        assert!(history.last().count() <= 64, "a history is short");
    }
    fn debug(&mut self) {
        let Some(gdb) = &mut self.gdb else { return };
        gdb.poll();
        let shape = self.bytes.byte();
        if shape == 0xff {
            gdb.close();
            gdb.open();
        }
        let body = self.bytes.take(usize::from(shape & 0x3f));
        let sum = body.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        let packet = match shape >> 6 {
            // An acknowledgement, and a packet that is one; or anything.
            0..=2 => [b"+$", body, format!("#{sum:02x}").as_bytes()].concat(),
            _ => body.to_vec(),
        };
        for byte in packet {
            if gdb.listens() {
                gdb.feed(&[byte]);
            }
        }
        gdb.take_output();
    }
}

fn board(without_firmware: bool) -> Board {
    let mut board = Board::new(BoardConfig {
        apic_ids: &[0],
        apic_timer_hz: 1_000_000_000,
        tsc_hz: 1_000_000_000,
        unix_ns: 1_700_000_000_000_000_000,
        memory_below_4g: RAM as u64,
        memory_above_4g: 0,
        without_firmware,
        console: Box::new(NullConsole),
    });
    board.plug(p::SLOT_CONSOLE, Box::new(VirtioPci::new(Box::new(Console::new(Box::new(NullConsole))))));
    board.plug(
        p::SLOT_BLOCK,
        Box::new(VirtioPci::new(Box::new(Block::new(Box::new(MemoryDisk::new(&DISK, 4096).unwrap()), b"disk")))),
    );
    board.plug(p::SLOT_ENTROPY, Box::new(VirtioPci::new(Box::new(Entropy::new(Box::new(Zeros))))));
    board
}

fn words(count: usize) -> Vec<AtomicU64> {
    let mut words = Vec::new();
    words.resize_with(count, AtomicU64::default);
    words
}

/// Lets a monitor run until the bytes are used up.
pub fn run(data: &[u8]) {
    run_with(data, false);
}

/// The same under a debugger.
pub fn debug(data: &[u8]) {
    run_with(data, true);
}

fn run_with(data: &[u8], debugged: bool) {
    let mut bytes = Bytes::new(data);
    let kind = bytes.byte();
    let (firmware, vendor) = (kind & 1 != 0, if kind & 2 == 0 { Vendor::Amd } else { Vendor::Intel });
    let (memory, page, rom) = (words(RAM / 8), words(WORDS), words(if firmware { ROM / 8 } else { 0 }));
    let Ok(map) = MemoryMap::new(RAM as u64) else { return };
    let Some(state) = StatePage::new(&page) else { return };
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
    let cpuid = CpuidTable::new(&config, 0, &|_, _| Leaf::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX));
    let msr = MsrConfig {
        vendor,
        physical_bits: 40,
        speculation_control: true,
        arch_capabilities: None,
        efer_mask: efer_mask(u32::MAX),
    };
    let cr4 = cr4_bits(&cpuid);
    let ram = Ram::new(&memory, &[]).with_rom(&rom);
    let machine = Machine::new(ram, map, board(!firmware), 1_000_000_000, 1, &Alone);
    let mut vm = Vm::new(Parts { machine: &machine, index: 0, page: state, cpuid, msr, xcr0: 7, cr4 });
    let mut gdb = debugged.then(|| Gdb::new(&machine, vec![state]));
    if let Some(gdb) = &mut gdb {
        gdb.open();
    }
    let mut processor = Anything { bytes, page: state, ram: &memory, now: 0, gdb };
    let ending = loop {
        match vm.run(&mut processor) {
            end @ (Ending::Kernel(_) | Ending::Killed) => break end,
            // Any other ending lets the machine go on, to try more.
            Ending::Reset if kind & 4 != 0 => drop(vm.restart(&Guest::default())),
            _ => machine.go_on(),
        }
    };
    let mut lines = 0;
    vmm_core::report::write(&vm, &ending, |_| lines += 1);
    assert!(lines > 0, "a machine that ended has something to say");
}

/// An exit of each kind.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let each =
        (0..EXITS.len() as u8).map(|exit| vec![0, 0, 1, exit, 0x12, 1, 3, 0, 0x40, 0x10, 0, 0, 0, 0, 0x20, 0xff]);
    let mut seeds: Vec<Vec<u8>> = each.collect();
    seeds.push(seeds.concat());
    seeds
}

/// Packets of a debugger, and the exits that answer them.
#[must_use]
pub fn debug_seeds() -> Vec<Vec<u8>> {
    const PACKETS: [&str; 18] = [
        "qSupported:multiprocess+;swbreak+;hwbreak+;vContSupported+",
        "?",
        "g",
        "Hg1",
        "m0,40",
        "M10,4:00010203",
        "X10,2:ab",
        "Z0,10,1",
        "z0,10,1",
        "Z1,10,1",
        "z1,10,1",
        "vCont?",
        "vCont;s:1",
        "vCont;c",
        "qfThreadInfo",
        "P10=0000000000000000",
        "k",
        "D",
    ];
    // An exit first: what a debugger sees has to be on the page.
    const EXIT: [u8; 5] = [0, 1, 16, 0, 0];
    let packet = |text: &str| [&[text.len() as u8 & 0x3f], text.as_bytes()].concat();
    let mut seeds: Vec<Vec<u8>> =
        PACKETS.iter().map(|text| [&[0], EXIT.as_slice(), &packet(text), &EXIT, &packet("?")].concat()).collect();
    let session = ["?", "Z0,10,1", "vCont;s:1", "g", "z0,10,1", "vCont;c", "?"];
    let session: Vec<Vec<u8>> = session.iter().map(|text| [packet(text), EXIT.to_vec()].concat()).collect();
    seeds.push([&[0], EXIT.as_slice(), &session.concat()].concat());
    seeds
}
