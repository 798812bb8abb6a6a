//! The machine as guests use it: Linux' boot, step by step, and guests that mean no good.

use crate::board::{Action, Board, BoardConfig};
use crate::fabric::Interrupt;
use crate::lapic::CpuEvent;
use crate::platform as p;
use crate::test_memory::Ram;
use crate::traits::GuestMemory;
use crate::uart::tests::Loop;
use crate::virtio::{VirtioPci, console::Console};
use alloc::boxed::Box;
use proptest::prelude::*;
use std::vec::Vec;

const TSC_HZ: u64 = 2_400_000_000;
const LAPIC: u64 = p::LAPIC_BASE;

struct Machine {
    board: Board,
    ram: Ram,
    now: u64,
    console: Loop,
}

impl Machine {
    fn new(vcpus: u32, without_firmware: bool) -> Self {
        let console = Loop::default();
        let ids: Vec<u32> = (0..vcpus).collect();
        let mut board = Board::new(BoardConfig {
            apic_ids: &ids,
            apic_timer_hz: 1_000_000_000,
            tsc_hz: TSC_HZ,
            unix_ns: 1_700_000_000_000_000_000,
            memory_below_4g: 256 << 20,
            memory_above_4g: 1 << 32,
            without_firmware,
            console: Box::new(console.clone()),
        });
        for slot in 1..4 {
            board.plug(slot, Box::new(VirtioPci::new(Box::new(Console::new(Box::new(Loop::default()))))));
        }
        let mut m = Self { board, ram: Ram::new(1 << 20), now: 0, console };
        // A guest that talks here is not watched for text, which has times of its own.
        m.out(&[(0xE9, b'\n')]);
        *m.console.0.lock().unwrap() = Default::default();
        m
    }
    fn inb(&mut self, port: u16) -> u8 {
        self.now += 1000;
        self.board.port_read(port, 1, self.now, &self.ram) as u8
    }
    fn inl(&mut self, port: u16) -> u32 {
        self.now += 1000;
        self.board.port_read(port, 4, self.now, &self.ram)
    }
    fn outb(&mut self, port: u16, v: u8) -> Action {
        self.now += 1000;
        self.board.port_write(port, 1, u32::from(v), self.now, &self.ram)
    }
    fn outl(&mut self, port: u16, v: u32) -> Action {
        self.board.port_write(port, 4, v, self.now, &self.ram)
    }
    fn out(&mut self, list: &[(u16, u8)]) {
        for &(port, v) in list {
            assert_eq!(self.outb(port, v), Action::None);
        }
    }
    fn read(&mut self, cpu: usize, gpa: u64) -> u32 {
        self.board.mmio_read(cpu, gpa, 4, self.now, &self.ram) as u32
    }
    fn write(&mut self, cpu: usize, gpa: u64, v: u32) {
        self.board.mmio_write(cpu, gpa, 4, u64::from(v), self.now, &self.ram);
    }
    fn route(&mut self, pin: u32, low: u32, high: u32) {
        for (r, v) in [(0x11, high), (0x10, low)] {
            self.write(0, p::IOAPIC_BASE, r + 2 * pin);
            self.write(0, p::IOAPIC_BASE + 0x10, v);
        }
    }
    /// Time passes, and the monitor does what it must at each deadline; vectors taken by the boot processor.
    fn run_until(&mut self, end: u64) -> Vec<u8> {
        let mut taken = Vec::new();
        while let Some(at) = self.board.next_deadline().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            self.board.tick(self.now, &self.ram);
            while let Some(v) = self.board.accept(0) {
                taken.push(v);
                self.write(0, LAPIC + 0xB0, 0);
                if (0x30..0x40).contains(&v) {
                    self.out(&[(0x20, 0x20)]);
                }
            }
            assert!(taken.len() < 100_000);
        }
        self.now = end;
        taken
    }
    fn pci(&mut self, slot: u32, register: u32) -> u32 {
        let _ = self.outl(0xCF8, 0x8000_0000 | slot << 11 | register);
        self.inl(0xCFC)
    }
    fn init_pic(&mut self) {
        self.out(&[
            (0x21, 0xFF),
            (0x20, 0x11),
            (0x21, 0x30),
            (0x21, 4),
            (0x21, 1),
            (0xA0, 0x11),
            (0xA1, 0x38),
            (0xA1, 2),
            (0xA1, 1),
            (0x21, 0xFB),
            (0xA1, 0xFF),
        ]);
    }
}

#[test]
fn timer_interrupts_by_pic_then_by_ioapic() {
    let mut m = Machine::new(1, true);
    m.init_pic();
    m.out(&[(0x43, 0x34), (0x40, 4773u16 as u8), (0x40, (4773u16 >> 8) as u8), (0x21, 0xFA)]);
    let start = m.now;
    let ticks = m.run_until(start + 1_000_000_000);
    assert!((249..=250).contains(&ticks.len()), "{}", ticks.len());
    assert!(ticks.iter().all(|&v| v == 0x30), "through LINT0");
    // Linux masks the PIC and takes the timer from pin 2.
    m.out(&[(0x21, 0xFF)]);
    m.write(0, LAPIC + 0xF0, 0x1FF);
    m.write(0, LAPIC + 0x350, 0x1_0700);
    m.write(0, LAPIC + 0xD0, 1 << 24);
    m.route(2, 0x0000_0830, 1 << 24);
    let start = m.now;
    let ticks = m.run_until(start + 1_000_000_000);
    assert!((249..=251).contains(&ticks.len()), "{}", ticks.len());
}

#[test]
fn lint0_takes_the_pics_edge_as_a_vector_of_its_own_or_as_an_nmi() {
    let mut m = Machine::new(1, true);
    m.init_pic();
    m.write(0, LAPIC + 0xF0, 0x1FF);
    let _ = m.board.take_kicks();
    // As Linux tries its timer last: one shot of the PIT, through the PIC, to a vector of the local APIC.
    m.write(0, LAPIC + 0x350, 0x45);
    m.out(&[(0x21, 0xFA), (0x43, 0x30), (0x40, 100), (0x40, 0)]);
    let end = m.now + 1_000_000;
    assert_eq!(m.run_until(end), [0x45]);
    assert_eq!((m.board.take_kicks(), m.board.pending(0)), (1, None), "nobody acknowledges at the PIC");
    m.out(&[(0x20, 0x0A)]);
    assert_eq!(m.inb(0x20), 1);
    // What is up already is no edge; what comes after an acknowledgement is.
    m.write(0, LAPIC + 0x350, 0x400);
    assert_eq!(m.board.pending(0), None);
    m.out(&[(0x20, 0x0C)]);
    assert_eq!(m.inb(0x20), 0x80);
    m.out(&[(0x20, 0x20), (0x40, 100), (0x40, 0)]);
    let end = m.now + 1_000_000;
    assert_eq!(m.run_until(end), []);
    assert_eq!(m.board.pending(0), Some(Interrupt::Nmi));
    assert!(m.board.take_nmi(0) && m.board.take_kicks() == 1);
}

#[test]
fn three_clocks_agree() {
    let mut m = Machine::new(1, true);
    m.out(&[(0x61, 1), (0x43, 0xB0), (0x42, 0xFF), (0x42, 0xFF)]);
    m.write(0, LAPIC + 0xF0, 0x1FF);
    m.write(0, LAPIC + 0x3E0, 3);
    m.write(0, LAPIC + 0x320, 0x1_00EC);
    m.write(0, LAPIC + 0x380, u32::MAX);
    let (t0, pm0) = (m.now, m.inl(0x608));
    m.now = t0 + 50_000_000;
    let elapsed_pm = f64::from(m.inl(0x608).wrapping_sub(pm0)) / 3_579_545.0;
    let elapsed_apic = f64::from(u32::MAX - m.read(0, LAPIC + 0x390)) * 16.0 / 1e9;
    m.out(&[(0x43, 0x80)]);
    let (lo, hi) = (m.inb(0x42), m.inb(0x42));
    let elapsed_pit = f64::from(0xFFFF - u16::from_le_bytes([lo, hi])) / 1_193_182.0;
    for e in [elapsed_pm, elapsed_apic, elapsed_pit] {
        assert!((e - 0.05).abs() < 0.000_05, "{elapsed_pm} {elapsed_apic} {elapsed_pit}");
    }
}

#[test]
fn rtc_alarm_and_deadline_timer_wake_the_guest() {
    let mut m = Machine::new(1, true);
    m.write(0, LAPIC + 0xF0, 0x1FF);
    m.route(8, 0x28, 0);
    // Update-ended interrupts for three seconds.
    m.out(&[(0x70, 0x0B), (0x71, 0x12)]);
    let mut n = 0;
    for _ in 0..3 {
        let at = m.board.next_deadline().unwrap();
        n += m.run_until(at).len();
        m.out(&[(0x70, 0x0C)]);
        assert_eq!(m.inb(0x71) & 0x90, 0x90);
    }
    assert_eq!((n, m.now / 1_000_000_000), (3, 3));
    m.out(&[(0x70, 0x0B), (0x71, 0x02)]);
    m.write(0, LAPIC + 0x320, 0x4_00EC);
    let now = m.now;
    m.board.msr_write(0, 0x6E0, 10 * TSC_HZ, now).unwrap();
    let at = m.board.next_deadline().unwrap();
    assert!(at.abs_diff(10_000_000_000) < 5);
    m.board.set_tsc_offset(0, TSC_HZ, now);
    assert!(m.board.next_deadline().unwrap().abs_diff(9_000_000_000) < 5, "the guest's TSC is a second ahead");
    assert_eq!(m.run_until(20_000_000_000), [0xEC]);
    // A guest's TSC may be anywhere, its upper half too.
    const TSC: u64 = 0xF000_0000_0000_0000;
    let now = m.now;
    m.board.set_tsc_offset(0, TSC - 20 * TSC_HZ, now);
    m.board.msr_write(0, 0x6E0, TSC + TSC_HZ, now).unwrap();
    assert!(m.board.next_deadline().unwrap().abs_diff(21_000_000_000) < 5);
    m.board.msr_write(0, 0x6E0, TSC - 1, now).unwrap();
    assert_eq!(m.board.next_deadline(), Some(now), "has passed");
    m.board.msr_write(0, 0x6E0, 1, now).unwrap();
    assert_eq!(m.run_until(now), [0xEC], "and so has this one, long ago");
    assert_eq!(m.board.msr_read(0, 0x6E0, now), Ok(0));
}

#[test]
fn pci_looks_like_a_q35() {
    for preset in [true, false] {
        let mut m = Machine::new(1, preset);
        // Linux' test for configuration mechanism 1.
        let _ = m.outb(0xCFB, 1);
        let old = m.inl(0xCF8);
        let _ = m.outl(0xCF8, 0x8000_0000);
        assert_eq!(m.inl(0xCF8), 0x8000_0000);
        let _ = m.outl(0xCF8, old);
        assert_eq!(m.pci(0, 0), 0x29C0_8086);
        assert_eq!(m.pci(31, 0), 0x2918_8086);
        assert_eq!(m.pci(31, 8) >> 8, 0x06_0100);
        assert_eq!(m.pci(5, 0), u32::MAX);
        assert_eq!(m.read(0, p::ECAM_BASE) == 0x29C0_8086, preset);
        // Firmware turns the ECAM on, elsewhere.
        let _ = m.outl(0xCF8, 0x8000_0060);
        let _ = m.outl(0xCFC, 0xE000_0001);
        assert_eq!(m.read(0, 0xE000_0000 | 31 << 15), 0x2918_8086);
        assert_eq!(m.read(0, 0xE000_0000 | 1 << 20), u32::MAX, "bus 1 is empty");
        let bar = m.pci(1, 0x10);
        assert_eq!(bar != 0, preset);
        let _ = m.outl(0xCF8, 0x8000_0810);
        let _ = m.outl(0xCFC, 0xC123_4000);
        let _ = m.outl(0xCF8, 0x8000_0804);
        let _ = m.outl(0xCFC, 2);
        assert_eq!(m.read(0, 0xC123_4012) & 0xFFFF, 2, "two queues");
        let _ = m.outl(0xCFC, 0);
        assert_eq!(m.read(0, 0xC123_4012), u32::MAX, "decoding is off");
    }
}

#[test]
fn secondary_processors_start() {
    let mut m = Machine::new(4, true);
    m.write(0, LAPIC + 0xF0, 0x1FF);
    for cpu in 1..4u32 {
        m.write(0, LAPIC + 0x310, cpu << 24);
        for (icr, event) in
            [(0xC500, Some(CpuEvent::Init)), (0x8500, None), (0x608, Some(CpuEvent::Startup(8))), (0x608, None)]
        {
            m.write(0, LAPIC + 0x300, icr);
            assert_eq!(m.board.take_event(cpu as usize), event);
        }
        assert_eq!(m.board.take_kicks(), 1 << cpu);
    }
    for cpu in 1..4 {
        m.write(cpu, LAPIC + 0xF0, 0x1FF);
    }
    m.write(2, LAPIC + 0x300, 0x000C_00FB);
    assert_eq!(m.board.take_kicks(), 0b1011);
    assert_eq!((m.board.accept(0), m.board.accept(2), m.board.accept(3)), (Some(0xFB), None, Some(0xFB)));
    m.write(1, LAPIC + 0x310, 0);
    m.write(1, LAPIC + 0x300, 0x400);
    assert_eq!(m.board.pending(0), Some(Interrupt::Nmi));
    assert!(m.board.take_nmi(0));
}

#[test]
fn debug_consoles_print_whole_lines_and_the_rest_at_the_end() {
    let mut m = Machine::new(1, true);
    for byte in b"a line\nthe rest" {
        let _ = m.outb(if byte % 2 == 0 { 0xE9 } else { 0x402 }, *byte);
    }
    assert_eq!(m.console.0.lock().unwrap().out, b"a line\n");
    assert_eq!((m.inb(0xE9), m.inb(0x402), m.inb(0xF4)), (0xE9, 0xE9, 0));
    assert_eq!(m.outl(0xF4, 0x1_0010), Action::DebugExit(0x1_0010));
    assert_eq!(m.console.0.lock().unwrap().out, b"a line\nthe rest");
}

#[test]
fn ways_out() {
    let mut m = Machine::new(1, true);
    assert_eq!(m.outb(0xCF9, 2), Action::None);
    assert_eq!(m.outb(0xCF9, 6), Action::Reset);
    assert_eq!(m.outb(0x64, 0xFE), Action::Reset);
    assert_eq!(m.outb(0x92, 1), Action::Reset);
    assert_eq!(m.outb(0xF4, 42), Action::DebugExit(42));
    let ram = m.ram.clone();
    assert_eq!(m.board.port_write(0x604, 2, u32::from(p::SLP_TYP_S5) << 10 | 1 << 13, 0, &ram), Action::PowerOff);
    // The power button, heard through pin 9.
    m.write(0, LAPIC + 0xF0, 0x1FF);
    m.route(9, 0x8029, 0);
    let _ = m.board.port_write(0x602, 2, 0x100, 0, &ram);
    m.board.press_power_button();
    assert_eq!(m.board.accept(0), Some(0x29));
    let _ = m.board.port_write(0x600, 2, 0x100, 0, &ram);
    m.write(0, LAPIC + 0xB0, 0);
    assert_eq!(m.board.accept(0), None);
}

#[test]
fn console_types_both_ways() {
    let mut m = Machine::new(1, true);
    m.write(0, LAPIC + 0xF0, 0x1FF);
    m.route(4, 0x24, 0);
    m.out(&[(0x3FC, 0x0B), (0x3FA, 0x81), (0x3F9, 1)]);
    m.console.0.lock().unwrap().input.extend(b"id\n");
    m.board.poll(m.now, &m.ram);
    assert_eq!(m.board.accept(0), Some(0x24));
    m.write(0, LAPIC + 0xB0, 0);
    let mut line = Vec::new();
    while m.inb(0x3FD) & 1 != 0 {
        let b = m.inb(0x3F8);
        line.push(b);
        let _ = m.outb(0x3F8, b);
    }
    assert_eq!(line, b"id\n");
    assert_eq!(m.console.0.lock().unwrap().out, b"id\n");
    assert_eq!(m.board.accept(0), None);
    m.console.0.lock().unwrap().input.extend(b"x");
    m.board.poll(m.now, &m.ram);
    assert_eq!(m.board.accept(0), Some(0x24), "the line fell and rose: a new edge");
}

#[test]
fn each_byte_sent_is_an_edge_even_if_nobody_read_the_cause() {
    let mut m = Machine::new(1, true);
    m.write(0, LAPIC + 0xF0, 0x1FF);
    m.route(4, 0x24, 0);
    m.out(&[(0x3FC, 0x0B), (0x3F9, 2)]);
    for b in b"abc" {
        assert_eq!(m.board.accept(0), Some(0x24));
        m.write(0, LAPIC + 0xB0, 0);
        assert_eq!(m.board.accept(0), None);
        m.out(&[(0x3F8, *b)]);
    }
}

#[test]
fn enough_ranges_for_an_honest_lookup_and_a_small_board() {
    let m = Machine::new(1, true);
    let (ports, memory) = m.board.ranges();
    assert!(ports >= 20 && memory >= 4, "{ports} {memory}");
    assert!(size_of::<Board>() < 16 * 1024);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// Any access, anywhere, in any size and order: nothing panics, deadlines are ahead after a tick, and every vector
    /// that is offered can be taken.
    #[test]
    fn storms(firmware in any::<bool>(), ops in proptest::collection::vec((0u8..12, any::<u32>(), any::<u64>(), 0u64..1 << 30), 0..400)) {
        const PORTS: [u16; 30] = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x40, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x80, 0x92, 0xB2, 0x3F8,
            0x3F9, 0x3FA, 0x3FB, 0x3FC, 0xCF8, 0xCF9, 0xCFC, 0xCFE, 0x600, 0x604, 0x402, 0x510, 0x514];
        const PAGES: [u64; 5] = [p::LAPIC_BASE, p::IOAPIC_BASE, p::ECAM_BASE, p::PCI_MMIO_BASE, p::PCI_MMIO_BASE + 0x4000];
        let mut m = Machine::new(2, !firmware);
        for (op, a, v, dt) in ops {
            m.now += dt;
            let (now, ram) = (m.now, m.ram.clone());
            let cpu = v as usize & 1;
            let port = if a & 0x8000_0000 != 0 { PORTS[a as usize % PORTS.len()] } else { a as u16 };
            let gpa = PAGES[(a >> 16) as usize % PAGES.len()] + u64::from(a & 0x3FFF) + if op == 11 { u64::from(a >> 27) << 15 } else { 0 };
            let size = [1u8, 2, 4, 8][(v >> 62) as usize];
            match op {
                0 | 1 => { m.board.port_read(port, size.min(4), now, &ram); }
                2 | 3 => if m.board.port_write(port, size.min(4), v as u32, now, &ram) == Action::Reset { m.board.reset(); },
                4 => { m.board.mmio_read(cpu, gpa, size, now, &ram); }
                5 | 6 | 11 => m.board.mmio_write(cpu, gpa, size, v, now, &ram),
                7 => { let _ = m.board.msr_read(cpu, 0x800 | a & 0xFF, now); let _ = m.board.msr_write(cpu, 0x800 | a & 0xFF, v, now); }
                8 => { let _ = m.board.msr_write(cpu, if a & 1 == 0 { 0x1B } else { 0x6E0 }, v, now); }
                9 => {
                    m.board.tick(now, &ram);
                    let again = m.board.next_deadline();
                    prop_assert!(again.is_none_or(|d| d > now || d == 0), "{again:?} at {now}");
                }
                _ => {
                    m.board.poll(now, &ram);
                    for cpu in 0..2 {
                        for _ in 0..20 {
                            if !m.board.maskable_pending(cpu) { break; }
                            prop_assert!(m.board.accept(cpu).is_some());
                        }
                        while m.board.take_event(cpu).is_some() {}
                    }
                }
            }
        }
    }
}

#[test]
fn text_is_shown_of_a_guest_that_says_nothing_elsewhere() {
    let hello = |m: &Machine| m.ram.write(0xB8000, b"H i ").unwrap();
    let mut m = Machine::new(1, true);
    hello(&m);
    m.run_until(8_000_000_000);
    m.board.show_text(m.now, &m.ram);
    assert_eq!(m.console.0.lock().unwrap().out[..], *b"", "it talked at port E9h");
    m.board = Board::new(BoardConfig {
        apic_ids: &[0],
        apic_timer_hz: 1_000_000_000,
        tsc_hz: TSC_HZ,
        unix_ns: 0,
        memory_below_4g: 1 << 20,
        memory_above_4g: 0,
        without_firmware: true,
        console: Box::new(m.console.clone()),
    });
    let at = m.board.next_deadline().unwrap();
    m.run_until(at.max(m.now));
    assert_eq!(m.console.0.lock().unwrap().out[..], *b"screen: Hi\r\n");
    m.ram.write(0xB80A0, b"o k ").unwrap();
    m.board.show_text(m.now, &m.ram);
    assert_eq!(m.console.0.lock().unwrap().out[..], *b"screen: Hi\r\nscreen: ok\r\n");
}
