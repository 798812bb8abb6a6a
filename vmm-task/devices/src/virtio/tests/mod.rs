//! A driver that does what Linux' virtio_pci_modern does, register by register; the tests use it rightly and wrongly.

mod block;
mod devices;
mod rules;

use super::{VirtioDevice, VirtioPci, feature};
use crate::board::{Board, BoardConfig};
use crate::platform as p;
use crate::test_memory::Ram;
use crate::traits::*;
use alloc::boxed::Box;
use std::sync::Arc;
use std::sync::Mutex;
use std::vec::Vec;

const QUEUE_AREA: u64 = 0x10_0000;
const MEMORY: usize = 4 << 20;

struct Counter(u8);
impl EntropyBackend for Counter {
    fn fill(&mut self, out: &mut [u8]) -> usize {
        for b in out.iter_mut() {
            self.0 = self.0.wrapping_add(1);
            *b = self.0;
        }
        out.len()
    }
}

/// The driver's side of one queue.
struct Ring {
    index: u16,
    size: u16,
    base: u64,
    avail: u16,
    used_seen: u16,
    next_desc: u16,
}

impl Ring {
    fn avail_gpa(&self) -> u64 {
        self.base + 0x4000
    }
    fn used_gpa(&self) -> u64 {
        self.base + 0x8000
    }
}

struct Guest {
    board: Board,
    ram: Ram,
    slot: u8,
    bar: u64,
    common: u64,
    /// Port and address of the notification structures.
    notify_port: u16,
    notify: u64,
    isr: u64,
    device: u64,
    msix_table: u64,
    now: u64,
    kicks: u32,
    /// Entries of each queue, taken without a look at what the device shows.
    entries: Option<u16>,
}

impl Guest {
    fn new(device: Box<dyn VirtioDevice>, slot: u8) -> Self {
        let mut board = Board::new(BoardConfig {
            apic_ids: &[0],
            apic_timer_hz: 1_000_000_000,
            tsc_hz: 1_000_000_000,
            unix_ns: 0,
            memory_below_4g: MEMORY as u64,
            memory_above_4g: 0,
            without_firmware: true,
            console: Box::new(NullConsole),
        });
        board.plug(slot, Box::new(VirtioPci::new(device)));
        let ram = Ram::new(MEMORY);
        // A guest that talks here is not watched for text, which has times of its own.
        let _ = board.port_write(0xE9, 1, b'\n'.into(), 0, &ram);
        let mut g = Self {
            board,
            ram,
            slot,
            bar: 0,
            common: 0,
            notify_port: 0,
            notify: 0,
            isr: 0,
            device: 0,
            msix_table: 0,
            now: 0,
            kicks: 0,
            entries: None,
        };
        g.write(p::LAPIC_BASE + 0xF0, 4, 0x1FF);
        g
    }

    fn read(&mut self, gpa: u64, size: u8) -> u64 {
        self.board.mmio_read(0, gpa, size, self.now, &self.ram)
    }
    fn write(&mut self, gpa: u64, size: u8, v: u64) {
        self.board.mmio_write(0, gpa, size, v, self.now, &self.ram);
    }
    /// Configuration space by CF8h, as Linux reads the first 256 bytes.
    fn config(&mut self, register: u8, size: u8) -> u32 {
        let address = 0x8000_0000 | u32::from(self.slot) << 11 | u32::from(register & 0xFC);
        let _ = self.board.port_write(0xCF8, 4, address, self.now, &self.ram);
        self.board.port_read(0xCFC + u16::from(register & 3), size, self.now, &self.ram)
    }
    fn set_config(&mut self, register: u8, size: u8, v: u32) {
        let address = 0x8000_0000 | u32::from(self.slot) << 11 | u32::from(register & 0xFC);
        let _ = self.board.port_write(0xCF8, 4, address, self.now, &self.ram);
        let _ = self.board.port_write(0xCFC + u16::from(register & 3), size, v, self.now, &self.ram);
    }

    /// Finds BAR and structures, and switches MSI-X on.
    fn probe(&mut self, msix: bool) {
        assert_eq!(self.config(0, 2), 0x1AF4);
        assert!(self.config(2, 2) >= 0x1040);
        assert_ne!(self.config(6, 2) & 0x10, 0);
        self.bar = u64::from(self.config(0x10, 4) & !0xF);
        assert!(self.bar >= p::PCI_MMIO_BASE && self.bar < p::PCI_MMIO_END);
        self.set_config(0x10, 4, u32::MAX);
        assert_eq!(self.config(0x10, 4), 0xFFFF_C000);
        self.set_config(0x10, 4, self.bar as u32);
        self.set_config(4, 2, 7);
        let mut at = self.config(0x34, 1) as u8;
        let mut seen = 0;
        while at != 0 {
            let offset = u64::from(self.config(at + 8, 4)) + self.bar;
            match (self.config(at, 1), self.config(at + 3, 1)) {
                (9, 1) => self.common = offset,
                (9, 2) if self.config(at + 4, 1) == 2 => self.notify_port = (self.config(0x18, 4) & !3) as u16,
                (9, 2) => self.notify = offset,
                (9, 3) => self.isr = offset,
                (9, 4) => self.device = offset,
                (0x11, _) => {
                    self.msix_table = u64::from(self.config(at + 4, 4) & !7) + self.bar;
                    if msix {
                        self.set_config(at + 2, 2, 0x8000);
                    }
                }
                _ => {}
            }
            seen += 1;
            assert!(seen < 20);
            at = self.config(at + 1, 1) as u8;
        }
        assert!(
            self.common != 0
                && self.notify != 0
                && self.notify_port != 0
                && self.isr != 0
                && self.device != 0
                && self.msix_table != 0
        );
    }

    fn status(&mut self) -> u8 {
        self.read(self.common + 0x14, 1) as u8
    }
    fn set_status(&mut self, v: u8) {
        self.write(self.common + 0x14, 1, u64::from(v));
    }

    /// Reset, features, queues, driver ok. Vector 0x40 is configuration, 0x41 + n queue n.
    fn start(&mut self, msix: bool, wanted: u64) -> (u64, Vec<Ring>) {
        self.probe(msix);
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        let mut offered = 0;
        for i in 0..2 {
            self.write(self.common, 4, i);
            offered |= self.read(self.common + 4, 4) << (32 * i);
        }
        assert_ne!(offered & feature::VERSION_1, 0);
        let features = offered & wanted | feature::VERSION_1;
        for i in 0..2 {
            self.write(self.common + 8, 4, i);
            self.write(self.common + 0xC, 4, features >> (32 * i) & 0xFFFF_FFFF);
        }
        self.set_status(0xB);
        assert_eq!(self.status(), 0xB);
        let queues = self.read(self.common + 0x12, 2) as u16;
        if msix {
            for v in 0..=u64::from(queues) {
                self.write(self.msix_table + 16 * v, 4, 0xFEE0_0000);
                self.write(self.msix_table + 16 * v + 8, 4, 0x40 + v);
                self.write(self.msix_table + 16 * v + 12, 4, 0);
            }
            self.write(self.common + 0x10, 2, 0);
            assert_eq!(self.read(self.common + 0x10, 2), 0);
        }
        let rings = (0..queues).map(|q| self.set_up_queue(q, msix)).collect();
        self.set_status(0xF);
        assert_eq!(self.status(), 0xF);
        (features, rings)
    }

    fn set_up_queue(&mut self, index: u16, msix: bool) -> Ring {
        let c = self.common;
        self.write(c + 0x16, 2, u64::from(index));
        if let Some(entries) = self.entries {
            self.write(c + 0x18, 2, u64::from(entries));
        }
        let size = self.read(c + 0x18, 2) as u16;
        assert!(size.is_power_of_two());
        assert_eq!(self.read(c + 0x1C, 2), 0);
        let ring =
            Ring { index, size, base: QUEUE_AREA + 0x1_0000 * u64::from(index), avail: 0, used_seen: 0, next_desc: 0 };
        for (register, gpa) in [(0x20, ring.base), (0x28, ring.avail_gpa()), (0x30, ring.used_gpa())] {
            self.write(c + register, 4, gpa & 0xFFFF_FFFF);
            self.write(c + register + 4, 4, gpa >> 32);
        }
        if msix {
            self.write(c + 0x1A, 2, u64::from(index) + 1);
            assert_eq!(self.read(c + 0x1A, 2), u64::from(index) + 1);
        }
        self.write(c + 0x1C, 2, 1);
        assert_eq!(self.read(c + 0x1C, 2), 1);
        ring
    }

    fn descriptor(&self, table: u64, i: u16, gpa: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(i);
        self.ram.store_u64(at, gpa).unwrap();
        self.ram.store_u32(at + 8, len).unwrap();
        self.ram.store_u16(at + 12, flags).unwrap();
        self.ram.store_u16(at + 14, next).unwrap();
    }

    /// Offers a chain of (address, length, device writes).
    fn offer(&self, r: &mut Ring, parts: &[(u64, u32, bool)]) -> u16 {
        let head = r.next_desc % r.size;
        for (i, &(gpa, len, write)) in parts.iter().enumerate() {
            let last = i + 1 == parts.len();
            let n = (r.next_desc + i as u16) % r.size;
            self.descriptor(r.base, n, gpa, len, u16::from(!last) | u16::from(write) << 1, (n + 1) % r.size);
        }
        r.next_desc += parts.len() as u16;
        self.publish(r, head);
        head
    }

    fn publish(&self, r: &mut Ring, head: u16) {
        self.ram.store_u16(r.avail_gpa() + 4 + 2 * u64::from(r.avail % r.size), head).unwrap();
        r.avail = r.avail.wrapping_add(1);
        self.ram.store_u16(r.avail_gpa() + 2, r.avail).unwrap();
    }

    fn kick(&mut self, r: &Ring) {
        // Both ways in turn.
        self.kicks += 1;
        if self.kicks.is_multiple_of(2) {
            self.write(self.notify + 4 * u64::from(r.index), 2, u64::from(r.index));
        } else {
            let _ = self.board.port_write(self.notify_port + 4 * r.index, 2, u32::from(r.index), self.now, &self.ram);
        }
    }

    fn used(&self, r: &mut Ring) -> Option<(u32, u32)> {
        if self.ram.load_u16(r.used_gpa() + 2).unwrap() == r.used_seen {
            return None;
        }
        let at = r.used_gpa() + 4 + 8 * u64::from(r.used_seen % r.size);
        r.used_seen = r.used_seen.wrapping_add(1);
        Some((self.ram.load_u32(at).unwrap(), self.ram.load_u32(at + 4).unwrap()))
    }

    fn interrupt(&mut self) -> Option<u8> {
        let v = self.board.accept(0)?;
        self.write(p::LAPIC_BASE + 0xB0, 4, 0);
        Some(v)
    }

    fn poll(&mut self) {
        self.now += 2_000_000;
        self.board.poll(self.now, &self.ram);
    }
}
