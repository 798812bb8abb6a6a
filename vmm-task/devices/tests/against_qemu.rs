//! Plays the same random register accesses to this machine and to QEMU's q35, over its qtest protocol, and compares
//! every answer. Needs `qemu-system-x86_64`:
//!
//! `cargo test -p vmm-devices --test against_qemu -- --ignored`
//!
//! QEMU's processor does not run, so its clocks stand still: only what does not depend on time can be compared.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use vmm_devices::board::{Board, BoardConfig};
use vmm_devices::traits::{GuestMemory, NullConsole, OutOfRange};

struct NoMemory;
impl GuestMemory for NoMemory {
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), OutOfRange> {
        Err(OutOfRange)
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), OutOfRange> {
        Err(OutOfRange)
    }
    fn contains(&self, _: u64, _: u64) -> bool {
        false
    }
}

/// Both machines.
struct Pair {
    qemu: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    board: Board,
    script: Vec<String>,
    compared: usize,
    random: u64,
}

impl Pair {
    fn new(seed: u64) -> Self {
        let args = "-M q35 -nodefaults -display none -serial null -m 128 -S -qtest stdio -qtest-log /dev/null -rtc base=2023-11-14T22:13:20,clock=vm";
        let mut qemu = Command::new("qemu-system-x86_64")
            .args(args.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("qemu-system-x86_64 is needed");
        let board = Board::new(BoardConfig {
            apic_ids: &[0],
            apic_timer_hz: 1_000_000_000,
            tsc_hz: 1_000_000_000,
            unix_ns: 1_700_000_000_000_000_000,
            memory_below_4g: 128 << 20,
            memory_above_4g: 0,
            without_firmware: false,
            console: Box::new(NullConsole),
        });
        let (to, from) = (qemu.stdin.take().unwrap(), BufReader::new(qemu.stdout.take().unwrap()));
        Self { qemu, to, from, board, script: Vec::new(), compared: 0, random: seed | 1 }
    }

    fn ask(&mut self, command: String) -> u32 {
        writeln!(self.to, "{command}").unwrap();
        self.script.push(command);
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "QEMU has gone");
            if let Some(rest) = line.trim().strip_prefix("OK") {
                return rest.trim().strip_prefix("0x").map_or(0, |v| u32::from_str_radix(v, 16).unwrap());
            }
        }
    }

    fn out(&mut self, port: u16, v: u8) {
        self.ask(format!("outb {port:#x} {v:#x}"));
        let _ = self.board.port_write(port, 1, u32::from(v), 0, &NoMemory);
    }

    /// Reads on both sides; the bits of `mask` must agree.
    fn check(&mut self, port: u16, mask: u8) {
        let theirs = self.ask(format!("inb {port:#x}")) as u8;
        let ours = self.board.port_read(port, 1, 0, &NoMemory) as u8;
        let before = &self.script[self.script.len().saturating_sub(12)..];
        assert_eq!(ours & mask, theirs & mask, "after {before:?}");
        self.compared += 1;
    }

    fn check_memory(&mut self, gpa: u64, mask: u32) {
        let theirs = self.ask(format!("readl {gpa:#x}"));
        let ours = self.board.mmio_read(0, gpa, 4, 0, &NoMemory) as u32;
        assert_eq!(ours & mask, theirs & mask, "{gpa:#x} after {:?}", self.script.last());
        self.compared += 1;
    }

    fn put_memory(&mut self, gpa: u64, v: u32) {
        self.ask(format!("writel {gpa:#x} {v:#x}"));
        self.board.mmio_write(0, gpa, 4, u64::from(v), 0, &NoMemory);
    }

    fn pick(&mut self, n: usize) -> usize {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) as usize % n
    }

    fn byte(&mut self) -> u8 {
        self.pick(256) as u8
    }

    fn init_pic(&mut self) {
        for (port, v) in
            [(0x20, 0x11), (0x21, 0x30), (0x21, 4), (0x21, 1), (0xA0, 0x11), (0xA1, 0x38), (0xA1, 2), (0xA1, 1)]
        {
            self.out(port, v);
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

#[test]
#[ignore = "needs qemu-system-x86_64"]
fn pic() {
    let mut p = Pair::new(11);
    p.init_pic();
    for _ in 0..1500 {
        let port = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1][p.pick(6)];
        let v = p.byte();
        if p.pick(2) == 0 { p.out(port, v) } else { p.check(port, 0xFF) }
    }
    assert!(p.compared > 500);
}

/// The transmitter's interrupt, as the PIC sees it. (Without special mask mode: there QEMU lets a non-specific end of
/// interrupt clear a masked input, which the data sheet forbids.)
#[test]
#[ignore = "needs qemu-system-x86_64"]
fn pic_with_a_device() {
    let mut p = Pair::new(12);
    p.init_pic();
    p.out(0x3FC, 0x0B);
    p.out(0x3F9, 2);
    for _ in 0..800 {
        match p.pick(10) {
            0 => {
                p.out(0x3F9, 0);
                p.out(0x3F9, 2);
            }
            1 => p.check(0x3FA, 0xFF),
            2 => p.out(0x3F8, b'A'),
            3 => p.out(0x20, 0x20),
            4 => {
                let n = p.pick(8) as u8;
                p.out(0x20, 0x60 | n);
            }
            5 => {
                let n = p.pick(8) as u8;
                p.out(0x20, 0xE0 | n);
            }
            6 => {
                let v = p.byte();
                p.out(0x21, v);
            }
            how => {
                p.out(0x20, [0x0A, 0x0B, 0x0C][how - 7]);
                p.check(0x20, 0xFF);
            }
        }
    }
    assert!(p.compared > 100);
}

#[test]
#[ignore = "needs qemu-system-x86_64"]
fn serial_port() {
    let mut p = Pair::new(13);
    for _ in 0..300 {
        let divisor = [0x03, 0x83][p.pick(2)];
        p.out(0x3FB, divisor);
        for _ in 0..8 {
            // All but the modem control register: QEMU has no modem status changes in loopback mode.
            let port = [0x3F8, 0x3F9, 0x3FA, 0x3FB, 0x3FD, 0x3FE, 0x3FF][p.pick(7)];
            let v = p.byte();
            if p.pick(2) == 0 { p.out(port, v) } else { p.check(port, 0xFF) }
        }
    }
    assert!(p.compared > 500);
}

#[test]
#[ignore = "needs qemu-system-x86_64"]
fn clock() {
    let mut p = Pair::new(14);
    for i in [0u8, 2, 4, 6, 7, 8, 9, 0x0A, 0x0B, 0x0D, 0x32, 0x34, 0x35, 0x5B, 0x5F] {
        p.out(0x70, i);
        p.check(0x71, 0xFF);
    }
    for _ in 0..600 {
        let i = [1, 3, 5, 0x0A, 0x0B, 0x0E, 0x20, 0x40, 0x0D][p.pick(9)];
        p.out(0x70, i);
        let v = p.byte() & 0x7F;
        if p.pick(2) == 0 { p.out(0x71, v) } else { p.check(0x71, 0xFF) }
    }
    assert!(p.compared > 200);
}

#[test]
#[ignore = "needs qemu-system-x86_64"]
fn io_apic_and_bridges() {
    let mut p = Pair::new(15);
    for _ in 0..800 {
        let r = [0, 1, 2].into_iter().chain(0x10..0x42).nth(p.pick(53)).unwrap();
        p.put_memory(0xFEC0_0000, r);
        // Reserved bits read as 0 here; delivery status and remote IRR belong to the device.
        let mask = match r {
            0..=2 => u32::MAX,
            r if r & 1 == 0 => 0x0001_AFFF,
            _ => 0xFF00_0000,
        };
        if p.pick(2) == 0 {
            let v = (p.random as u32) | 0x1_0000;
            p.put_memory(0xFEC0_0010, v);
        } else {
            p.check_memory(0xFEC0_0010, mask);
        }
    }
    for (address, v) in [(0x8000_0060u32, 0xB000_0001u32), (0x8000_F840, 0x601)] {
        for (port, v) in [(0xCF8u16, address), (0xCFC, v)] {
            p.ask(format!("outl {port:#x} {v:#x}"));
            let _ = p.board.port_write(port, 4, v, 0, &NoMemory);
        }
    }
    for register in [0, 8, 0x2C, 0x60, 0x64, 0x90, 0x94, 0x9C, 0x100] {
        p.check_memory(0xB000_0000 + register, u32::MAX);
    }
    for register in [0, 8, 0x40, 0x60, 0x68] {
        p.check_memory(0xB00F_8000 + register, u32::MAX);
    }
    // An empty slot, and an empty bus.
    p.check_memory(0xB000_8000, u32::MAX);
    p.check_memory(0xB010_0000, u32::MAX);
}
