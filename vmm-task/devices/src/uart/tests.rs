//! The serial port as Linux finds and uses it, and a back end to test with.

use super::*;
use alloc::collections::VecDeque;
use proptest::prelude::*;
use std::sync::Arc;
use std::sync::Mutex;
use std::vec::Vec;

#[derive(Default)]
pub(crate) struct Ends {
    pub out: Vec<u8>,
    pub calls: usize,
    pub input: VecDeque<u8>,
    pub room: Option<usize>,
}

#[derive(Clone, Default)]
pub(crate) struct Loop(pub Arc<Mutex<Ends>>);

impl ConsoleBackend for Loop {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut e = self.0.lock().unwrap();
        e.calls += 1;
        let n = e.room.map_or(bytes.len(), |r| r.min(bytes.len()));
        e.out.extend_from_slice(&bytes[..n]);
        if let Some(r) = &mut e.room {
            *r -= n;
        }
        n
    }
    fn read(&mut self, out: &mut [u8]) -> usize {
        let mut e = self.0.lock().unwrap();
        let n = out.len().min(e.input.len());
        for b in &mut out[..n] {
            *b = e.input.pop_front().unwrap();
        }
        n
    }
}

fn port() -> (Uart, Loop) {
    let l = Loop::default();
    (Uart::new(Box::new(l.clone())), l)
}

/// The probe of Linux' `autoconfig`, step by step.
#[test]
fn linux_finds_a_16550a_and_nothing_else() {
    let (mut u, _) = port();
    u.write(1, 0, 0);
    assert_eq!(u.read(1, 0) & 0x0F, 0);
    u.write(1, 0x0F, 0);
    assert_eq!(u.read(1, 0) & 0x0F, 0x0F);
    u.write(1, 0, 0);
    u.write(4, MCR_LOOP | 0x0A, 0);
    assert_eq!(u.read(6, 0) & 0xF0, 0x90);
    u.write(4, 0, 0);
    u.write(2, 1, 0);
    assert_eq!(u.read(2, 0) >> 6, 3);
    u.write(3, 0x80, 0);
    assert_ne!(u.read(2, 0), 0, "no EFR");
    u.write(3, 0xBF, 0);
    assert_ne!(u.read(2, 0), 0, "no EFR");
    u.write(3, 0xE0, 0);
    let status2 = u.read(2, 0);
    u.write(3, 0, 0);
    let mcr = u.read(4, 0);
    u.write(4, mcr ^ MCR_LOOP, 0);
    u.write(3, 0xE0, 0);
    assert_eq!((u.read(2, 0) ^ status2) & MCR_LOOP, 0, "no NatSemi superchip");
    u.write(3, 0, 0);
    u.write(4, mcr, 0);
    u.write(2, 0, 0);
    u.write(3, 0x80, 0);
    u.write(2, 0x21, 0);
    assert_eq!(u.read(2, 0) >> 5, 6, "no 64-byte FIFO");
    u.write(3, 0, 0);
    u.write(1, 0x40, 0);
    assert_eq!(u.read(1, 0) & 0x40, 0, "no XScale");
}

#[test]
fn thre_interrupt_comes_with_each_enable_and_goes_with_iir() {
    let (mut u, _) = port();
    for _ in 0..2 {
        u.write(1, IER_THRE, 0);
        assert!(u.irq());
        assert_eq!(u.read(2, 0) & 0x0F, 2);
        assert!(!u.irq());
        assert_eq!(u.read(2, 0) & 0x0F, 1);
        u.write(1, 0, 0);
    }
    u.write(1, IER_THRE, 0);
    u.read(2, 0);
    u.write(0, b'x', 0);
    assert!(u.irq(), "sent: empty again");
}

#[test]
fn output_goes_in_batches() {
    let (mut u, l) = port();
    for b in b"Linux version 6.1\nsecond" {
        assert_ne!(u.read(5, 0) & LSR_THRE, 0);
        u.write(0, *b, 0);
    }
    assert_eq!(l.0.lock().unwrap().out, b"Linux version 6.1\n");
    assert_eq!(l.0.lock().unwrap().calls, 1);
    let at = u.next_deadline().unwrap();
    u.poll(at);
    assert_eq!(l.0.lock().unwrap().out, b"Linux version 6.1\nsecond");
    assert_eq!(u.next_deadline(), None);
}

#[test]
fn a_full_back_end_loses_nothing() {
    let (mut u, l) = port();
    l.0.lock().unwrap().room = Some(10);
    let mut now = 0;
    let mut sent = Vec::new();
    for i in 0..600u32 {
        while u.read(5, now) & LSR_THRE == 0 {
            now += 100_000;
            l.0.lock().unwrap().room = Some(3);
        }
        u.write(0, i as u8, now);
        sent.push(i as u8);
    }
    l.0.lock().unwrap().room = None;
    u.poll(now + TX_DELAY_NS);
    assert_eq!(l.0.lock().unwrap().out, sent);
}

#[test]
fn input_interrupts_by_level_and_timeout() {
    let (mut u, l) = port();
    u.write(2, 0x81, 0);
    u.write(1, IER_RDA, 0);
    l.0.lock().unwrap().input.extend(b"hello, world: more than sixteen");
    u.poll(0);
    assert_eq!(u.read(2, 0), 0xC4);
    let mut got = Vec::new();
    while u.read(5, 0) & LSR_READY != 0 {
        got.push(u.read(0, 0));
    }
    assert_eq!(got, b"hello, world: more than sixteen");
    assert!(!u.irq());
    l.0.lock().unwrap().input.extend(b"x");
    u.poll(0);
    assert_eq!(u.read(2, 0), 0xCC);
    assert!(u.irq());
}

proptest! {
    #[test]
    fn storms_do_not_panic(ops in proptest::collection::vec((0u8..4, 0u16..9, any::<u8>(), 0u64..4_000_000), 0..400), room in 0usize..500) {
        let (mut u, l) = port();
        l.0.lock().unwrap().room = Some(room);
        let mut now = 0;
        for (op, r, v, dt) in ops {
            now += dt;
            match op {
                0 => { u.read(r, now); }
                1 => u.write(r, v, now),
                2 => { l.0.lock().unwrap().input.push_back(v); u.poll(now); }
                _ => { u.poll(now); prop_assert!(u.next_deadline().is_none_or(|d| d > now)); }
            }
        }
    }
}
