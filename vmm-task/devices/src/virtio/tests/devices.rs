//! Console, entropy source, network card and balloon.

use super::*;
use crate::uart::tests::Loop;
use crate::virtio::console::Console;
use crate::virtio::entropy::Entropy;
use std::vec;

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
    ends.0.lock().unwrap().input.extend(b"ls\n");
    g.poll();
    assert_eq!((g.used(rx), g.interrupt()), (Some((0, 3)), Some(0x41)));
    assert_eq!(g.ram.bytes(0x5000, 3), b"ls\n");
    g.ram.write(0x6000, b"hello world").unwrap();
    ends.0.lock().unwrap().room = Some(4);
    g.offer(tx, &[(0x6000, 5, false), (0x6005, 6, false)]);
    g.kick(tx);
    assert_eq!(g.used(tx), None);
    ends.0.lock().unwrap().room = None;
    g.poll();
    assert_eq!((g.used(tx), g.interrupt()), (Some((0, 0)), Some(0x42)));
    assert_eq!(ends.0.lock().unwrap().out, b"hello world");
    g.write(g.device + 8, 4, u64::from(b'!'));
    assert_eq!(ends.0.lock().unwrap().out, b"hello world!");
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

#[derive(Default)]
pub(super) struct Wire {
    sent: Vec<Vec<u8>>,
    waiting: Vec<Vec<u8>>,
    full: bool,
    down: bool,
}

#[derive(Clone, Default)]
pub(super) struct Port(Arc<Mutex<Wire>>);

impl NetBackend for Port {
    fn send(&mut self, frame: &[Segment], memory: &dyn GuestMemory) -> bool {
        let mut w = self.0.lock().unwrap();
        let mut bytes = vec![0; crate::virtio::chain::total(frame) as usize];
        crate::virtio::chain::read(frame, 0, &mut bytes, memory).unwrap();
        if !w.full {
            w.sent.push(bytes);
        }
        !w.full
    }
    fn receive(&mut self, segments: &[Segment], memory: &dyn GuestMemory) -> Option<u32> {
        let frame = self.0.lock().unwrap().waiting.pop()?;
        crate::virtio::chain::write(segments, 0, &frame, memory).unwrap();
        Some(frame.len() as u32)
    }
    fn link(&self) -> bool {
        !self.0.lock().unwrap().down
    }
}

#[test]
fn network_card_sends_receives_and_sees_the_cable() {
    let port = Port::default();
    let mut g = Guest::new(Box::new(crate::virtio::net::Net::new(Box::new(port.clone()), [2, 0, 0, 0, 0, 9])), 4);
    let (_, mut rings) = g.start(true, !0);
    let [rx, tx] = rings.as_mut_slice() else { panic!() };
    assert_eq!(
        (g.read(g.device, 4), g.read(g.device + 4, 2), g.read(g.device + 6, 2), g.read(g.device + 10, 2)),
        (2, 0x900, 1, 1500)
    );
    g.ram.write(0x6000, &[0; 12]).unwrap();
    g.ram.write(0x600C, &[7; 60]).unwrap();
    port.0.lock().unwrap().full = true;
    g.offer(tx, &[(0x6000, 12, false), (0x600C, 20, false), (0x6020, 40, false)]);
    g.kick(tx);
    assert_eq!(g.used(tx), None);
    port.0.lock().unwrap().full = false;
    g.poll();
    assert!(g.used(tx).is_some());
    assert_eq!(port.0.lock().unwrap().sent, [vec![7; 60]]);
    g.offer(tx, &[(0x6000, 3000, false)]);
    g.kick(tx);
    assert!(g.used(tx).is_some());
    assert_eq!(port.0.lock().unwrap().sent.len(), 1, "too long");
    while g.interrupt().is_some() {}
    g.offer(rx, &[(0x7000, 12, true), (0x7100, 1518, true)]);
    g.kick(rx);
    port.0.lock().unwrap().waiting.push(vec![9; 64]);
    g.poll();
    assert_eq!((g.used(rx).map(|u| u.1), g.interrupt()), (Some(76), Some(0x41)));
    assert_eq!((g.ram.bytes(0x7000, 12)[10], g.ram.bytes(0x7100, 64)), (1, vec![9; 64]));
    let generation = g.read(g.common + 0x15, 1);
    port.0.lock().unwrap().down = true;
    g.poll();
    assert_eq!((g.interrupt(), g.read(g.device + 6, 2)), (Some(0x40), 0));
    assert_ne!(g.read(g.common + 0x15, 1), generation);
}

#[derive(Default)]
pub(super) struct Lender {
    target: u32,
    given: std::collections::BTreeSet<u64>,
    reached: u32,
}

#[derive(Clone, Default)]
pub(super) struct Lent(Arc<Mutex<Lender>>);

impl BalloonBackend for Lent {
    fn target(&self) -> u32 {
        self.0.lock().unwrap().target
    }
    fn give(&mut self, gpa: u64) {
        self.0.lock().unwrap().given.insert(gpa);
    }
    fn take_back(&mut self, gpa: u64) {
        self.0.lock().unwrap().given.remove(&gpa);
    }
    fn reached(&mut self, pages: u32) {
        self.0.lock().unwrap().reached = pages;
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().given.clear();
    }
}

#[test]
fn balloon_takes_pages_and_gives_them_back() {
    let lent = Lent::default();
    let mut g = Guest::new(Box::new(crate::virtio::balloon::Balloon::new(Box::new(lent.clone()))), 4);
    let (_, mut rings) = g.start(true, !0);
    lent.0.lock().unwrap().target = 3;
    g.poll();
    assert_eq!((g.interrupt(), g.read(g.device, 4)), (Some(0x40), 3));
    // The last page is not RAM.
    for (i, page) in [0x200u32, 0x201, 0x3FF, 0x400].into_iter().enumerate() {
        g.ram.store_u32(0x6000 + 4 * i as u64, page).unwrap();
    }
    for (queue, left) in [(0, 3), (1, 0)] {
        let r = &mut rings[queue];
        g.offer(r, &[(0x6000, 16, false)]);
        g.kick(r);
        assert!(g.used(r).is_some());
        assert_eq!(lent.0.lock().unwrap().given.len(), left);
    }
    g.write(g.device + 4, 4, 3);
    assert_eq!(lent.0.lock().unwrap().reached, 3);
    // A list that is longer than one call may take goes on in the next.
    for _ in 0..64 {
        g.offer(&mut rings[0], &[(0x6000, 4096, false)]);
    }
    g.kick(&rings[0]);
    let mut n = 0;
    while g.board.next_deadline() == Some(0) {
        let now = g.now;
        g.board.tick(now, &g.ram);
        n += 1;
        assert!(n < 100);
    }
    assert!(n > 5);
    assert_eq!((0..64).filter(|_| g.used(&mut rings[0]).is_some()).count(), 64);
}

type Packet = ([u8; VSOCK_HEADER], Vec<u8>);

/// Sends every packet back to where it came from.
#[derive(Clone, Default)]
pub(super) struct Echo(Arc<Mutex<Vec<Packet>>>);

impl VsockBackend for Echo {
    fn send(&mut self, header: &[u8; VSOCK_HEADER], payload: &[Segment], memory: &dyn GuestMemory) -> bool {
        let mut bytes = vec![0; crate::virtio::chain::total(payload) as usize];
        crate::virtio::chain::read(payload, 0, &mut bytes, memory).unwrap();
        self.0.lock().unwrap().push((*header, bytes));
        true
    }
    fn receive(
        &mut self,
        header: &mut [u8; VSOCK_HEADER],
        segments: &[Segment],
        memory: &dyn GuestMemory,
    ) -> Option<u32> {
        let (h, bytes) = self.0.lock().unwrap().pop()?;
        header[..8].copy_from_slice(&h[8..16]);
        header[16..20].copy_from_slice(&h[20..24]);
        header[20..24].copy_from_slice(&h[16..20]);
        Some(crate::virtio::chain::write(segments, 0, &bytes, memory).unwrap() as u32)
    }
    fn reset(&mut self) {
        self.0.lock().unwrap().clear();
    }
}

#[test]
fn sockets_carry_packets_under_their_own_name_only() {
    let echo = Echo::default();
    let mut g = Guest::new(Box::new(crate::virtio::vsock::Vsock::new(Box::new(echo.clone()), 42)), 5);
    let (_, mut rings) = g.start(true, !0);
    assert_eq!((g.read(g.device, 8), rings.len()), (42, 3));
    let [rx, tx, _] = rings.as_mut_slice() else { panic!() };
    g.offer(rx, &[(0x7000, 44, true), (0x7100, 100, true)]);
    for (source, length, carried) in [(43u64, 5u32, false), (42, 6, false), (42, 5, true)] {
        g.ram.store_u64(0x6000, source).unwrap();
        g.ram.store_u64(0x6008, 2).unwrap();
        g.ram.store_u32(0x6010, 1000).unwrap();
        g.ram.store_u32(0x6014, 2000).unwrap();
        g.ram.store_u32(0x6018, length).unwrap();
        g.ram.write(0x602C, b"hello").unwrap();
        g.offer(tx, &[(0x6000, 49, false)]);
        g.kick(tx);
        assert!(g.used(tx).is_some());
        g.poll();
        assert_eq!(g.used(rx).map(|u| u.1), carried.then_some(49));
    }
    assert_eq!(
        (g.ram.load_u64(0x7000), g.ram.load_u64(0x7008), g.ram.load_u32(0x7010), g.ram.load_u32(0x7018)),
        (Ok(2), Ok(42), Ok(2000), Ok(5))
    );
    assert_eq!(g.ram.bytes(0x7100, 5), b"hello");
}
