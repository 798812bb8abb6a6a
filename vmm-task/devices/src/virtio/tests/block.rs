//! The disk.

use super::*;
use crate::virtio::block::Block;
use std::vec;

#[derive(Default)]
pub(super) struct DiskState {
    pub image: Vec<u8>,
    log: Vec<&'static str>,
    pub deferred: bool,
    busy: bool,
    pending: Vec<(u16, BlockStatus)>,
    read_only: bool,
    cancelled: usize,
}

#[derive(Clone, Default)]
pub(super) struct Disk(pub(super) Arc<Mutex<DiskState>>);

impl BlockBackend for Disk {
    fn capacity(&self) -> u64 {
        self.0.lock().unwrap().image.len() as u64
    }
    fn read_only(&self) -> bool {
        self.0.lock().unwrap().read_only
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn submit(&mut self, tag: u16, op: BlockOp<'_>, memory: &dyn GuestMemory) -> Submit {
        let mut d = self.0.lock().unwrap();
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
        let mut d = self.0.lock().unwrap();
        if d.deferred { None } else { d.pending.pop() }
    }
    fn cancel_all(&mut self) {
        let mut d = self.0.lock().unwrap();
        d.pending.clear();
        d.cancelled += 1;
    }
}

pub(super) fn disk(sectors: usize) -> (Disk, Guest) {
    let d = Disk::default();
    d.0.lock().unwrap().image = (0..sectors * 512).map(|i| (i / 512) as u8).collect();
    let g = Guest::new(Box::new(Block::new(Box::new(d.clone()), b"disk-one")), p::SLOT_BLOCK);
    (d, g)
}

pub(super) fn request(g: &Guest, kind: u32, sector: u64) {
    g.ram.store_u32(0x1000, kind).unwrap();
    g.ram.store_u32(0x1004, 0).unwrap();
    g.ram.store_u64(0x1008, sector).unwrap();
    g.ram.write(0x1FFF, &[0xEE]).unwrap();
}

pub(super) const HEADER: (u64, u32, bool) = (0x1000, 16, false);
pub(super) const STATUS: (u64, u32, bool) = (0x1FFF, 1, true);

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
    assert_eq!(
        (g.ram.bytes(0x8000, 512), g.ram.bytes(0x9200, 512), g.ram.bytes(0x1FFF, 1)),
        (vec![5; 512], vec![7; 512], vec![0])
    );
    request(&g, 1, 10);
    g.ram.write(0x8000, &[0xAB; 512]).unwrap();
    g.offer(r, &[HEADER, (0x8000, 512, false), STATUS]);
    g.kick(r);
    assert_eq!(g.used(r).map(|u| u.1), Some(1));
    assert_eq!(d.0.lock().unwrap().image[5120], 0xAB);
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
    assert_eq!(d.0.lock().unwrap().log, ["read", "write", "flush"]);
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
    d.0.lock().unwrap().deferred = true;
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
    d.0.lock().unwrap().deferred = false;
    g.poll();
    assert_eq!(g.ram.bytes(0x2000, 4), [0; 4]);
    assert_eq!((0..4).map(|_| g.used(r).unwrap().0).collect::<Vec<_>>(), [9, 6, 3, 0]);
    assert_eq!((g.interrupt(), g.interrupt()), (Some(0x41), None), "one for all four");
    d.0.lock().unwrap().busy = true;
    g.offer(r, &[HEADER, (0x8000, 512, true), STATUS]);
    g.kick(r);
    assert!(g.board.next_deadline().is_some_and(|t| t > g.now));
    d.0.lock().unwrap().busy = false;
    g.poll();
    assert!(g.used(r).is_some());
    assert_eq!(g.board.next_deadline(), None);
    g.set_status(0);
    assert!(d.0.lock().unwrap().cancelled > 0);
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
    let image = d.0.lock().unwrap().image.clone();
    assert_eq!((g.ram.bytes(0x1FFF, 1), image[8 * 512], image[10 * 512]), (vec![0], 0, 10));
    let (d, mut g) = disk(4);
    d.0.lock().unwrap().read_only = true;
    let (features, mut rings) = g.start(true, !0);
    assert_eq!(features & (1 << 5 | 1 << 13), 1 << 5);
    request(&g, 1, 0);
    g.offer(&mut rings[0], &[HEADER, (0x8000, 512, false), STATUS]);
    g.kick(&rings[0]);
    assert_eq!(g.ram.bytes(0x1FFF, 1), [1]);
    assert!(d.0.lock().unwrap().log.is_empty());
}
