//! A driver that does what Linux' virtio_pci_modern does, register by register, and some that do not.

use super::block::Block;
use super::console::Console;
use super::entropy::Entropy;
use super::{Chain, Queue, VirtioDevice, VirtioPci, feature};
use crate::board::{Board, BoardConfig};
use crate::platform as p;
use crate::test_memory::Ram;
use crate::traits::*;
use crate::uart::tests::Loop;
use alloc::boxed::Box;
use alloc::rc::Rc;
use core::cell::RefCell;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

const QUEUE_AREA: u64 = 0x10_0000;
const MEMORY: usize = 4 << 20;

#[derive(Default)]
struct DiskState {
    image: Vec<u8>,
    log: Vec<&'static str>,
    deferred: bool,
    busy: bool,
    pending: Vec<(u16, BlockStatus)>,
    read_only: bool,
    cancelled: usize,
}

#[derive(Clone, Default)]
struct Disk(Rc<RefCell<DiskState>>);

impl BlockBackend for Disk {
    fn capacity(&self) -> u64 {
        self.0.borrow().image.len() as u64
    }
    fn read_only(&self) -> bool {
        self.0.borrow().read_only
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn submit(&mut self, tag: u16, op: BlockOp<'_>, memory: &dyn GuestMemory) -> Submit {
        let mut d = self.0.borrow_mut();
        if d.busy {
            return Submit::Busy;
        }
        match op {
            BlockOp::Read { mut offset, segments } => {
                d.log.push("read");
                for s in segments {
                    assert!(s.writable);
                    memory.write(s.gpa, &d.image[offset as usize..][..s.len as usize]).unwrap();
                    offset += u64::from(s.len);
                }
            }
            BlockOp::Write { mut offset, segments } => {
                d.log.push("write");
                for s in segments {
                    assert!(!s.writable);
                    memory.read(s.gpa, &mut d.image[offset as usize..][..s.len as usize]).unwrap();
                    offset += u64::from(s.len);
                }
            }
            BlockOp::Flush => d.log.push("flush"),
            BlockOp::Discard { .. } => d.log.push("discard"),
            BlockOp::WriteZeroes { offset, len } => {
                d.log.push("zero");
                d.image[offset as usize..][..len as usize].fill(0);
            }
        }
        if d.deferred {
            d.pending.push((tag, BlockStatus::Ok));
            Submit::Pending
        } else {
            Submit::Done(BlockStatus::Ok)
        }
    }
    fn completion(&mut self, _memory: &dyn GuestMemory) -> Option<(u16, BlockStatus)> {
        // Last in, first out: the device must not care.
        let mut d = self.0.borrow_mut();
        if d.deferred { None } else { d.pending.pop() }
    }
    fn cancel_all(&mut self) {
        let mut d = self.0.borrow_mut();
        d.pending.clear();
        d.cancelled += 1;
    }
}

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
    notify: u64,
    isr: u64,
    device: u64,
    msix_table: u64,
    now: u64,
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
        let mut g = Self { board, ram: Ram::new(MEMORY), slot, bar: 0, common: 0, notify: 0, isr: 0, device: 0, msix_table: 0, now: 0 };
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
        self.set_config(4, 2, 6);
        let mut at = self.config(0x34, 1) as u8;
        let mut seen = 0;
        while at != 0 {
            let offset = u64::from(self.config(at + 8, 4)) + self.bar;
            match (self.config(at, 1), self.config(at + 3, 1)) {
                (9, 1) => self.common = offset,
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
        assert!(self.common != 0 && self.notify != 0 && self.isr != 0 && self.device != 0 && self.msix_table != 0);
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
        let size = self.read(c + 0x18, 2) as u16;
        assert!(size.is_power_of_two());
        assert_eq!(self.read(c + 0x1C, 2), 0);
        let ring = Ring { index, size, base: QUEUE_AREA + 0x1_0000 * u64::from(index), avail: 0, used_seen: 0, next_desc: 0 };
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
        self.write(self.notify + 4 * u64::from(r.index), 2, u64::from(r.index));
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

fn disk(sectors: usize) -> (Disk, Guest) {
    let d = Disk::default();
    d.0.borrow_mut().image = (0..sectors * 512).map(|i| (i / 512) as u8).collect();
    let g = Guest::new(Box::new(Block::new(Box::new(d.clone()), b"disk-one")), p::SLOT_BLOCK);
    (d, g)
}

fn request(g: &Guest, kind: u32, sector: u64) {
    g.ram.store_u32(0x1000, kind).unwrap();
    g.ram.store_u32(0x1004, 0).unwrap();
    g.ram.store_u64(0x1008, sector).unwrap();
    g.ram.write(0x1FFF, &[0xEE]).unwrap();
}

const HEADER: (u64, u32, bool) = (0x1000, 16, false);
const STATUS: (u64, u32, bool) = (0x1FFF, 1, true);

#[test]
fn disk_reads_writes_flushes_and_names_itself() {
    let (d, mut g) = disk(64);
    let (_, mut rings) = g.start(true, !0);
    let r = &mut rings[0];
    assert_eq!((g.read(g.device, 4), g.read(g.device + 12, 4), g.read(g.device + 20, 4)), (64, 126, 512));
    request(&g, 0, 5);
    let head = g.offer(r, &[HEADER, (0x8000, 512, true), (0x9000, 1024, true), STATUS]);
    g.kick(r);
    assert_eq!(g.used(r), Some((u32::from(head), 1537)));
    assert_eq!(g.interrupt(), Some(0x41));
    assert_eq!((g.ram.bytes(0x8000, 512), g.ram.bytes(0x9200, 512), g.ram.bytes(0x1FFF, 1)), (vec![5; 512], vec![7; 512], vec![0]));
    request(&g, 1, 10);
    g.ram.write(0x8000, &[0xAB; 512]).unwrap();
    g.offer(r, &[HEADER, (0x8000, 512, false), STATUS]);
    g.kick(r);
    assert_eq!(g.used(r).map(|u| u.1), Some(1));
    assert_eq!(d.0.borrow().image[5120], 0xAB);
    for (kind, parts, status) in [
        (4, &[HEADER, STATUS][..], 0u8),
        (8, &[HEADER, (0x8000, 20, true), STATUS][..], 0),
        (99, &[HEADER, STATUS][..], 2),
        (0, &[HEADER, (0x8000, 100, true), STATUS][..], 1),
    ] {
        request(&g, kind, 0);
        g.offer(r, parts);
        g.kick(r);
        assert!(g.used(r).is_some());
        assert_eq!(g.ram.bytes(0x1FFF, 1), [status], "type {kind}");
    }
    assert_eq!(&g.ram.bytes(0x8000, 9), b"disk-one\0");
    for sector in [64, 63, u64::MAX, u64::MAX / 512] {
        request(&g, 0, sector);
        g.offer(r, &[HEADER, (0x8000, 1024, true), STATUS]);
        g.kick(r);
        assert_eq!(g.used(r).map(|u| u.1), Some(1));
        assert_eq!(g.ram.bytes(0x1FFF, 1), [1], "past the end");
    }
    assert_eq!(g.status(), 0xF);
    assert_eq!(d.0.borrow().log, ["read", "write", "flush"]);
}

#[test]
fn disk_by_indirect_descriptors_and_intx() {
    let (_, mut g) = disk(64);
    let (features, mut rings) = g.start(false, !0);
    assert_ne!(features & feature::INDIRECT_DESC, 0);
    // Pin of slot 2 to vector 60h, level-triggered.
    let gsi = u64::from(p::intx_gsi(p::SLOT_BLOCK, 0));
    g.write(p::IOAPIC_BASE, 4, 0x10 + 2 * gsi);
    g.write(p::IOAPIC_BASE + 0x10, 4, 0x8060);
    let r = &mut rings[0];
    request(&g, 0, 3);
    let table = 0x2000;
    for (i, (gpa, len, w)) in [HEADER, (0x8000, 512, true), STATUS].into_iter().enumerate() {
        g.descriptor(table, i as u16, gpa, len, u16::from(i < 2) | u16::from(w) << 1, i as u16 + 1);
    }
    g.descriptor(r.base, 7, table, 48, 4, 0);
    g.publish(r, 7);
    g.kick(r);
    assert_eq!(g.used(r), Some((7, 513)));
    assert_eq!(g.board.accept(0), Some(0x60));
    assert_eq!(g.config(6, 2) & 8, 8);
    assert_eq!(g.read(g.isr, 1), 1);
    assert_eq!(g.read(g.isr, 1), 0);
    g.write(p::LAPIC_BASE + 0xB0, 4, 0);
    assert_eq!(g.board.accept(0), None, "the line fell with the read");
}

#[test]
fn requests_may_finish_later_and_in_any_order() {
    let (d, mut g) = disk(64);
    d.0.borrow_mut().deferred = true;
    let (_, mut rings) = g.start(true, !0);
    let r = &mut rings[0];
    for i in 0..4u64 {
        request(&g, 0, i);
        g.ram.write(0x2000 + i, &[0xEE]).unwrap();
        g.offer(r, &[HEADER, (0x8000 + 512 * i, 512, true), (0x2000 + i, 1, true)]);
        g.kick(r);
    }
    assert_eq!((g.used(r), g.interrupt()), (None, None));
    assert_eq!(g.ram.bytes(0x2000, 4), [0xEE; 4]);
    d.0.borrow_mut().deferred = false;
    g.poll();
    assert_eq!(g.ram.bytes(0x2000, 4), [0; 4]);
    assert_eq!((0..4).map(|_| g.used(r).unwrap().0).collect::<Vec<_>>(), [9, 6, 3, 0]);
    assert_eq!((g.interrupt(), g.interrupt()), (Some(0x41), None), "one for all four");
    d.0.borrow_mut().busy = true;
    g.offer(r, &[HEADER, (0x8000, 512, true), STATUS]);
    g.kick(r);
    assert!(g.board.next_deadline().is_some_and(|t| t > g.now));
    d.0.borrow_mut().busy = false;
    g.poll();
    assert!(g.used(r).is_some());
    assert_eq!(g.board.next_deadline(), None);
    g.set_status(0);
    assert!(d.0.borrow().cancelled > 0);
}

#[test]
fn read_only_disk_discard_and_zeroing() {
    let (d, mut g) = disk(64);
    let (_, mut rings) = g.start(true, !0);
    let r = &mut rings[0];
    request(&g, 13, 0);
    g.ram.store_u64(0x1010, 8).unwrap();
    g.ram.store_u32(0x1018, 2).unwrap();
    g.ram.store_u32(0x101C, 1).unwrap();
    g.offer(r, &[(0x1000, 32, false), STATUS]);
    g.kick(r);
    assert_eq!((g.ram.bytes(0x1FFF, 1), d.0.borrow().image[8 * 512], d.0.borrow().image[10 * 512]), (vec![0], 0, 10));
    let (d, mut g) = disk(4);
    d.0.borrow_mut().read_only = true;
    let (features, mut rings) = g.start(true, !0);
    assert_eq!(features & (1 << 5 | 1 << 13), 1 << 5);
    request(&g, 1, 0);
    g.offer(&mut rings[0], &[HEADER, (0x8000, 512, false), STATUS]);
    g.kick(&rings[0]);
    assert_eq!(g.ram.bytes(0x1FFF, 1), [1]);
    assert!(d.0.borrow().log.is_empty());
}

#[test]
fn console_carries_both_ways_and_waits_for_a_full_back_end() {
    let ends = Loop::default();
    let mut g = Guest::new(Box::new(Console::new(Box::new(ends.clone()))), p::SLOT_CONSOLE);
    let (_, mut rings) = g.start(true, !0);
    let [rx, tx] = rings.as_mut_slice() else { panic!() };
    g.offer(rx, &[(0x5000, 64, true)]);
    g.offer(rx, &[(0x5100, 64, true)]);
    g.kick(rx);
    assert_eq!(g.used(rx), None);
    ends.0.borrow_mut().input.extend(b"ls\n");
    g.poll();
    assert_eq!((g.used(rx), g.interrupt()), (Some((0, 3)), Some(0x41)));
    assert_eq!(g.ram.bytes(0x5000, 3), b"ls\n");
    g.ram.write(0x6000, b"hello world").unwrap();
    ends.0.borrow_mut().room = Some(4);
    g.offer(tx, &[(0x6000, 5, false), (0x6005, 6, false)]);
    g.kick(tx);
    assert_eq!(g.used(tx), None);
    ends.0.borrow_mut().room = None;
    g.poll();
    assert_eq!((g.used(tx), g.interrupt()), (Some((0, 0)), Some(0x42)));
    assert_eq!(ends.0.borrow().out, b"hello world");
    g.write(g.device + 8, 4, u64::from(b'!'));
    assert_eq!(ends.0.borrow().out, b"hello world!");
}

#[test]
fn entropy_fills_buffers_forever() {
    let mut g = Guest::new(Box::new(Entropy::new(Box::new(Counter(0)))), p::SLOT_ENTROPY);
    // Without EVENT_IDX: every completion interrupts.
    let (_, mut rings) = g.start(true, feature::VERSION_1);
    let r = &mut rings[0];
    let mut next = 0u8;
    for _ in 0..100_000 / 64 {
        g.offer(r, &[(0x5000, 64, true)]);
        g.kick(r);
        assert_eq!(g.used(r).map(|u| u.1), Some(64));
        assert_eq!(g.interrupt(), Some(0x41));
        for b in g.ram.bytes(0x5000, 64) {
            next = next.wrapping_add(1);
            assert_eq!(b, next);
        }
    }
}

#[test]
fn event_index_suppresses_interrupts_and_notifications() {
    let mut g = Guest::new(Box::new(Entropy::new(Box::new(Counter(0)))), p::SLOT_ENTROPY);
    let (_, mut rings) = g.start(true, !0);
    let r = &mut rings[0];
    // used_event = 2: not before the third is used.
    g.ram.store_u16(r.avail_gpa() + 4 + 2 * u64::from(r.size), 2).unwrap();
    for (i, wanted) in [(1u16, None), (2, None), (3, Some(0x41)), (4, None)] {
        g.offer(r, &[(0x5000, 8, true)]);
        g.kick(r);
        assert_eq!(g.interrupt(), wanted, "{i}");
        assert_eq!(g.ram.load_u16(r.used_gpa() + 4 + 8 * u64::from(r.size)).unwrap(), i, "avail_event");
    }
}

#[test]
fn what_a_driver_may_not_do_needs_a_reset() {
    type Sin = fn(&Guest, &mut Ring);
    let sins: &[(Sin, super::QueueError)] = &[
        (|g, r| g.ram.store_u16(r.avail_gpa() + 2, 2000).unwrap(), super::QueueError::AvailableIndex),
        (|g, r| g.publish(r, r.size), super::QueueError::DescriptorIndex),
        (
            |g, r| {
                g.descriptor(r.base, 0, 0x5000, 4, 3, 0);
                g.publish(r, 0);
            },
            super::QueueError::ChainTooLong,
        ),
        (
            |g, r| {
                g.offer(r, &[(MEMORY as u64 - 4, 8, true)]);
            },
            super::QueueError::Memory,
        ),
        (
            |g, r| {
                g.offer(r, &[(u64::MAX - 4, 8, true)]);
            },
            super::QueueError::Memory,
        ),
        (
            |g, r| {
                g.offer(r, &[(0x5000, 8, true), (0x5000, 8, false)]);
            },
            super::QueueError::Order,
        ),
        (
            |g, r| {
                g.descriptor(r.base, 0, 0x5000, 24, 4, 0);
                g.publish(r, 0);
            },
            super::QueueError::Indirect,
        ),
        (
            |g, r| {
                g.descriptor(r.base, 0, 0x5000, 16, 4, 0);
                g.descriptor(0x5000, 0, 0x5000, 16, 4, 0);
                g.publish(r, 0);
            },
            super::QueueError::Indirect,
        ),
    ];
    for (n, (sin, error)) in sins.iter().enumerate() {
        let mut g = Guest::new(Box::new(Entropy::new(Box::new(Counter(0)))), p::SLOT_ENTROPY);
        let (_, mut rings) = g.start(true, !0);
        sin(&g, &mut rings[0]);
        let r = &rings[0];
        let mut alone = Queue::new(r.size);
        (alone.descriptors, alone.available, alone.used, alone.indirect) = (r.base, r.avail_gpa(), r.used_gpa(), true);
        alone.enable(&g.ram).unwrap();
        assert_eq!(alone.pop(&g.ram, &mut Chain::new()), Err(*error), "sin {n}");
        g.kick(&rings[0]);
        assert_eq!(g.status(), 0x4F, "sin {n}");
        assert_eq!(g.interrupt(), Some(0x40), "sin {n}: the configuration interrupt tells");
        // Forgiven after a reset.
        let (_, mut rings) = g.start(true, !0);
        let head = g.offer(&mut rings[0], &[(0x5000, 8, true)]);
        g.ram.store_u16(rings[0].used_gpa() + 2, 0).unwrap();
        g.kick(&rings[0]);
        assert_eq!(g.used(&mut rings[0]), Some((u32::from(head), 8)), "sin {n}");
    }
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let (_, mut g) = disk(4);
    g.probe(true);
    for features in [0u64, feature::VERSION_1 | 1 << 60, feature::VERSION_1 | 1 << 40] {
        g.set_status(0);
        g.set_status(3);
        for i in 0..2 {
            g.write(g.common + 8, 4, i);
            g.write(g.common + 0xC, 4, features >> (32 * i) & 0xFFFF_FFFF);
        }
        g.set_status(0xB);
        assert_eq!(g.status(), 3);
        g.set_status(0xF);
        assert_eq!(g.status() & 4, 0);
    }
}

#[test]
fn nothing_moves_without_bus_mastering_and_all_of_it_after() {
    let mut g = Guest::new(Box::new(Entropy::new(Box::new(Counter(0)))), p::SLOT_ENTROPY);
    let (_, mut rings) = g.start(true, !0);
    g.set_config(4, 2, 2);
    g.offer(&mut rings[0], &[(0x5000, 8, true)]);
    g.kick(&rings[0]);
    g.poll();
    assert_eq!(g.used(&mut rings[0]), None);
    g.set_config(4, 2, 6);
    assert_eq!(g.board.next_deadline(), Some(0));
    g.poll();
    assert!(g.used(&mut rings[0]).is_some());
}

#[test]
fn the_configuration_window_reaches_the_bar() {
    let (_, mut g) = disk(77);
    g.probe(true);
    let mut at = g.config(0x34, 1) as u8;
    while (g.config(at, 1), g.config(at + 3, 1)) != (9, 5) {
        at = g.config(at + 1, 1) as u8;
    }
    g.set_config(at + 4, 1, 0);
    g.set_config(at + 8, 4, 0x1000);
    g.set_config(at + 12, 4, 4);
    assert_eq!(g.config(at + 16, 4), 77);
    g.set_config(at + 8, 4, 0x14);
    g.set_config(at + 12, 4, 1);
    g.set_config(at + 16, 1, 3);
    assert_eq!(g.status(), 3);
}

#[test]
fn reset_of_the_machine_is_like_new() {
    let (_, mut g) = disk(4);
    let (_, _) = g.start(true, !0);
    g.board.reset();
    g.write(p::LAPIC_BASE + 0xF0, 4, 0x1FF);
    let (_, mut rings) = g.start(true, !0);
    g.ram.store_u16(rings[0].used_gpa() + 2, 0).unwrap();
    request(&g, 4, 0);
    g.offer(&mut rings[0], &[HEADER, STATUS]);
    g.kick(&rings[0]);
    assert!(g.used(&mut rings[0]).is_some());
    assert_eq!(g.interrupt(), Some(0x41));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A driver that writes anything anywhere: rings full of noise, registers in any order and size.
    #[test]
    fn hostile_driver(seed in any::<u64>(), ops in proptest::collection::vec((0u8..6, any::<u16>(), any::<u64>()), 0..300), which in 0u8..3) {
        let device: Box<dyn VirtioDevice> = match which {
            0 => {
                let d = Disk::default();
                d.0.borrow_mut().image = std::vec![0; 512 * 64];
                d.0.borrow_mut().deferred = seed & 1 != 0;
                Box::new(Block::new(Box::new(d), b"x"))
            }
            1 => Box::new(Console::new(Box::new(Loop::default()))),
            _ => Box::new(Entropy::new(Box::new(Counter(0)))),
        };
        let mut g = Guest::new(device, 4);
        let (_, rings) = g.start(seed & 2 != 0, !0);
        let mut x = seed | 1;
        let mut noise = || { x ^= x << 13; x ^= x >> 7; x ^= x << 17; x };
        for (op, at, v) in ops {
            match op {
                0 => g.write(g.bar + u64::from(at & 0x3FFF), 1 << (v & 3), v >> 2),
                1 => { g.read(g.bar + u64::from(at & 0x3FFF), 1 << (v & 3)); }
                2 => {
                    // Plausible descriptors: small lengths, any flags, addresses mostly in memory.
                    let r = &rings[usize::from(at) % rings.len()];
                    for i in 0..16 {
                        let n = noise();
                        g.descriptor(r.base, i, n & 0x5F_FFFF, (n >> 32) as u32 & 0x1FFF, (n >> 48) as u16 & 7, (n >> 56) as u16 & 31);
                        let _ = g.ram.store_u16(r.avail_gpa() + 4 + 2 * u64::from(i), (n >> 40) as u16 & 15);
                    }
                }
                3 => {
                    let r = &rings[usize::from(at) % rings.len()];
                    let old = g.ram.load_u16(r.avail_gpa() + 2).unwrap();
                    g.ram.store_u16(r.avail_gpa() + 2, old.wrapping_add(v as u16 & 7)).unwrap();
                    g.kick(r);
                }
                4 => g.set_config(at as u8 & 0xFC, 4, v as u32),
                _ => if v & 15 == 0 { g.set_status(0); g.set_config(0x10, 4, g.bar as u32); g.start(seed & 2 != 0, !0); } else { g.poll(); },
            }
        }
        let _ = g.board.next_deadline();
    }
}
