//! The high-precision event timer: a counter of 100 MHz and three timers (IA-PC HPET specification 1.0a).

use crate::time::earlier;

/// Nanoseconds of one tick.
const TICK_NS: u64 = 10;
/// The period in femtoseconds, as the capabilities tell it.
const PERIOD_FS: u64 = TICK_NS * 1_000_000;
/// Low half of the capabilities: vendor 8086h, legacy replacement, 64 bits, three timers, revision 1.
pub const ID: u32 = 0x8086_A201;
const TIMERS: usize = 3;
/// I/O APIC pins that a timer may be routed to: the PIT's, which a system that uses this timer leaves alone, and those that nothing
/// else uses.
const ROUTES: u64 = 1 << 2 | 1 << 14 | 1 << 15 | 0xF << 20;

const ENABLE: u64 = 1;
const LEGACY: u64 = 2;

const LEVEL: u64 = 1 << 1;
const INTERRUPT: u64 = 1 << 2;
const PERIODIC: u64 = 1 << 3;
const SET_VALUE: u64 = 1 << 6;
const NARROW: u64 = 1 << 8;
const ROUTE_SHIFT: u32 = 9;
/// What may be written: level, interrupt, periodic, set value, 32 bits, route.
const WRITABLE: u64 = LEVEL | INTERRUPT | PERIODIC | SET_VALUE | NARROW | 31 << ROUTE_SHIFT;
/// What is always there: periodic and 64 bits are possible, and the routes.
const FIXED: u64 = 1 << 4 | 1 << 5 | ROUTES << 32;

/// What a timer does to its interrupt line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Line {
    /// The GSI; 2 stands for the timer's, ISA interrupt 0.
    pub gsi: u8,
    /// A pulse, or the line's level.
    pub drive: Drive,
}

/// How a line is driven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drive {
    /// Up and down again.
    Pulse,
    /// To this level.
    Level(bool),
}

#[derive(Clone, Copy, Debug, Default)]
struct Timer {
    config: u64,
    comparator: u64,
    period: u64,
    /// Ticks since power-on at which it fires next.
    due: Option<u64>,
    /// An edge that nobody has carried on yet.
    edge: bool,
    /// The line that was last driven high.
    high: Option<u8>,
}

impl Timer {
    const fn mask(&self) -> u64 {
        if self.config & NARROW != 0 { 0xFFFF_FFFF } else { u64::MAX }
    }

    /// Finds out when the counter, which has this value at tick `now`, reaches the comparator again.
    fn arm(&mut self, counter: u64, now: u64) {
        let distance = self.comparator.wrapping_sub(counter) & self.mask();
        // Equal now: a whole turn of the counter.
        let distance = match (distance, self.config & NARROW != 0) {
            (0, true) => Some(1 << 32),
            (0, false) => None,
            (distance, _) => Some(distance),
        };
        self.due = distance.and_then(|distance| now.checked_add(distance));
    }

    /// Fires once for all that was due until tick `now`; whether it did.
    fn expire(&mut self, now: u64) -> bool {
        let Some(due) = self.due.filter(|due| *due <= now) else { return false };
        if self.config & PERIODIC != 0 && self.period != 0 {
            let passed = ((now - due) / self.period).saturating_add(1);
            let step = passed.saturating_mul(self.period);
            self.comparator = self.comparator.wrapping_add(step) & self.mask();
            self.due = due.checked_add(step);
        } else {
            self.due =
                if self.config & NARROW != 0 { now.checked_add((1 << 32) - (now - due) % (1 << 32)) } else { None };
        }
        true
    }
}

/// The timer block.
#[derive(Clone, Debug, Default)]
pub struct Hpet {
    config: u64,
    /// Level-triggered timers that wait for their handler.
    status: u64,
    /// The counter while it is halted; while it runs, what is added to the ticks since power-on.
    base: u64,
    timers: [Timer; TIMERS],
}

impl Hpet {
    /// Halted at 0.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether timers 0 and 1 stand in for the PIT's and the RTC's interrupts.
    #[must_use]
    pub const fn replaces_legacy(&self) -> bool {
        self.config & LEGACY != 0
    }

    const fn running(&self) -> bool {
        self.config & ENABLE != 0
    }

    const fn counter(&self, now: u64) -> u64 {
        if self.running() { self.base.wrapping_add(now) } else { self.base }
    }

    /// The GSI of timer `index`, if it has one.
    fn gsi(&self, index: usize) -> Option<u8> {
        let timer = self.timers.get(index)?;
        match index {
            0 if self.replaces_legacy() => return Some(crate::platform::PIT_GSI),
            1 if self.replaces_legacy() => return Some(crate::platform::RTC_IRQ),
            _ => {}
        }
        let route = (timer.config >> ROUTE_SHIFT & 31) as u8;
        (ROUTES >> route & 1 != 0).then_some(route)
    }

    fn arm_all(&mut self, now: u64) {
        let counter = self.counter(now);
        let running = self.running();
        for timer in &mut self.timers {
            timer.due = None;
            if running {
                timer.arm(counter, now);
            }
        }
    }

    /// Lets everything happen that is due; `ns` in nanoseconds.
    pub fn poll(&mut self, ns: u64) {
        let now = ns / TICK_NS;
        for (index, timer) in self.timers.iter_mut().enumerate() {
            if timer.expire(now) {
                if timer.config & LEVEL != 0 {
                    self.status |= 1 << index;
                } else if timer.config & INTERRUPT != 0 {
                    timer.edge = true;
                }
            }
        }
    }

    /// When [`Self::poll`] has an interrupt to make, in nanoseconds.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let loud = self.timers.iter().filter(|timer| timer.config & INTERRUPT != 0);
        loud.fold(None, |at, timer| earlier(at, timer.due.and_then(|due| due.checked_mul(TICK_NS))))
    }

    /// What timer `index` (0 to 2) does to interrupt lines since the last call: at most lets one go and drives another.
    pub fn take_lines(&mut self, index: usize) -> [Option<Line>; 2] {
        let gsi = self.gsi(index);
        let asserted = self.status >> index & 1 != 0;
        let Some(timer) = self.timers.get_mut(index) else { return [None; 2] };
        let edge = core::mem::take(&mut timer.edge);
        let wanted = gsi.filter(|_| asserted && timer.config & (LEVEL | INTERRUPT) == LEVEL | INTERRUPT);
        let was = core::mem::replace(&mut timer.high, wanted);
        let release = was.filter(|was| Some(*was) != wanted).map(|gsi| Line { gsi, drive: Drive::Level(false) });
        let drive = match (wanted, gsi) {
            (Some(gsi), _) => Some(Line { gsi, drive: Drive::Level(true) }),
            (None, Some(gsi)) if edge => Some(Line { gsi, drive: Drive::Pulse }),
            _ => None,
        };
        [release, drive]
    }

    fn register(&self, offset: u64, now: u64) -> u64 {
        match offset {
            0x00 => PERIOD_FS << 32 | u64::from(ID),
            0x10 => self.config,
            0x20 => self.status,
            0xF0 => self.counter(now),
            0x100.. => {
                let Some(timer) = self.timers.get(((offset - 0x100) / 0x20) as usize) else { return 0 };
                match offset & 0x1F {
                    0x00 => timer.config | FIXED,
                    0x08 => timer.comparator,
                    _ => 0,
                }
            }
            _ => 0,
        }
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at an offset of the registers.
    pub fn read(&mut self, offset: u64, size: u8, ns: u64) -> u64 {
        self.poll(ns);
        let value = self.register(offset & !7, ns / TICK_NS) >> (8 * (offset & 7));
        if size >= 8 { value } else { value & ((1 << (8 * u64::from(size))) - 1) }
    }

    /// Writes 4 or 8 aligned bytes at an offset of the registers; others have no effect (2.3.1).
    pub fn write(&mut self, offset: u64, size: u8, value: u64, ns: u64) {
        self.poll(ns);
        let now = ns / TICK_NS;
        let register = offset & !7;
        let (mask, value) = match (size, offset & 7) {
            (8, 0) => (u64::MAX, value),
            (4, 0) => (0xFFFF_FFFF, value & 0xFFFF_FFFF),
            (4, 4) => (0xFFFF_FFFF << 32, value << 32),
            _ => return,
        };
        let merged = |old: u64| old & !mask | value;
        match register {
            0x10 => self.configure(merged(self.config) & (ENABLE | LEGACY), now),
            0x20 => self.status &= !value,
            0xF0 if !self.running() => self.base = merged(self.base),
            0x100.. => self.write_timer(register, mask, value, now),
            _ => {}
        }
    }

    fn configure(&mut self, config: u64, now: u64) {
        let counter = self.counter(now);
        self.config = config;
        self.base = if self.running() { counter.wrapping_sub(now) } else { counter };
        self.arm_all(now);
    }

    fn write_timer(&mut self, register: u64, mask: u64, value: u64, now: u64) {
        let (counter, running) = (self.counter(now), self.running());
        let index = ((register - 0x100) / 0x20) as usize;
        let Some(timer) = self.timers.get_mut(index) else { return };
        match register & 0x1F {
            0x00 => {
                timer.config = (timer.config & !mask | value) & WRITABLE;
                timer.comparator &= timer.mask();
                if timer.config & LEVEL == 0 {
                    self.status &= !(1 << index);
                }
            }
            0x08 => {
                let periodic = timer.config & PERIODIC != 0;
                if periodic {
                    timer.period = (timer.period & !mask | value) & timer.mask();
                }
                // In periodic mode the comparator follows the period alone, unless its value is to be set as well.
                if !periodic || timer.config & SET_VALUE != 0 {
                    timer.comparator = (timer.comparator & !mask | value) & timer.mask();
                }
                // The upper half of a 64-bit value belongs to the same write.
                if mask & 0xFFFF_FFFF == 0 || mask == u64::MAX || timer.config & NARROW != 0 {
                    timer.config &= !SET_VALUE;
                }
            }
            _ => return,
        }
        timer.due = None;
        if running {
            timer.arm(counter, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: u64 = 1_000_000;

    fn running() -> Hpet {
        let mut hpet = Hpet::new();
        hpet.write(0x10, 4, ENABLE | LEGACY, 0);
        hpet
    }

    #[test]
    fn the_counter_runs_while_it_is_enabled() {
        let mut hpet = Hpet::new();
        assert_eq!((hpet.read(0, 8, 0), hpet.read(0xF0, 8, MS)), (0x0098_9680_8086_A201, 0));
        hpet.write(0x10, 4, ENABLE, MS);
        assert_eq!((hpet.read(0xF0, 8, 2 * MS), hpet.read(0xF0, 4, 3 * MS)), (100_000, 200_000));
        hpet.write(0xF0, 8, 7, 3 * MS);
        hpet.write(0x10, 4, 0, 3 * MS);
        assert_eq!(hpet.read(0xF0, 8, 9 * MS), 200_000);
        hpet.write(0xF0, 8, 7, 9 * MS);
        hpet.write(0x10, 4, ENABLE, 10 * MS);
        assert_eq!(hpet.read(0xF0, 8, 11 * MS), 100_007);
    }

    #[test]
    fn a_timer_goes_where_it_is_routed() {
        let mut hpet = Hpet::new();
        hpet.write(0x10, 4, ENABLE, 0);
        let routes = hpet.read(0x104, 4, 0);
        for gsi in 0..32u8 {
            hpet.write(0x100, 4, INTERRUPT | u64::from(gsi) << ROUTE_SHIFT, 0);
            let now = hpet.read(0xF0, 8, 0);
            hpet.write(0x108, 8, now + 100, 0);
            hpet.poll(u64::from(gsi) * MS + MS);
            let expected = (routes >> gsi & 1 != 0).then_some(Line { gsi, drive: Drive::Pulse });
            assert_eq!(hpet.take_lines(0), [None, expected]);
            hpet = Hpet::new();
            hpet.write(0x10, 4, ENABLE, 0);
        }
        // The timer's own line, where systems with a fixed idea of the machine want it.
        assert_eq!(routes >> 2 & 1, 1);
    }

    #[test]
    fn one_shot_fires_once() {
        let mut hpet = running();
        hpet.write(0x100, 4, INTERRUPT | NARROW, 0);
        hpet.write(0x108, 4, 100_000, 0);
        assert_eq!(hpet.next_deadline(), Some(MS));
        hpet.poll(MS - 10);
        assert_eq!(hpet.take_lines(0), [None; 2]);
        hpet.poll(MS + 500);
        assert_eq!(hpet.take_lines(0), [None, Some(Line { gsi: 2, drive: Drive::Pulse })]);
        assert_eq!(hpet.take_lines(0), [None; 2]);
        // The next one is a whole turn of 32 bits later.
        assert_eq!(hpet.next_deadline(), Some(MS + (TICK_NS << 32)));
    }

    #[test]
    fn periodic_as_linux_sets_it_and_missed_periods_are_one_interrupt() {
        let mut hpet = running();
        hpet.write(0x100, 4, INTERRUPT | PERIODIC | SET_VALUE | NARROW, 0);
        hpet.write(0x108, 4, 50_000, 0);
        hpet.write(0x108, 4, 100_000, 0);
        assert_eq!(hpet.next_deadline(), Some(MS / 2));
        for turn in 0..3 {
            hpet.poll(MS / 2 + turn * MS);
            assert_eq!(hpet.take_lines(0)[1], Some(Line { gsi: 2, drive: Drive::Pulse }));
            assert_eq!(hpet.next_deadline(), Some(MS / 2 + (turn + 1) * MS));
        }
        hpet.poll(10 * MS);
        assert!(hpet.take_lines(0)[1].is_some() && hpet.take_lines(0)[1].is_none());
        assert_eq!((hpet.next_deadline(), hpet.read(0x108, 4, 10 * MS)), (Some(10 * MS + MS / 2), 1_050_000));
    }

    #[test]
    fn a_level_stays_until_the_status_is_cleared_and_follows_its_route() {
        let mut hpet = Hpet::new();
        hpet.write(0x10, 4, ENABLE, 0);
        hpet.write(0x140, 4, LEVEL | INTERRUPT | 14 << ROUTE_SHIFT, 0);
        hpet.write(0x148, 8, 100, 0);
        hpet.poll(1000);
        let level = |gsi, level| Some(Line { gsi, drive: Drive::Level(level) });
        assert_eq!((hpet.read(0x20, 4, 1000), hpet.take_lines(2)), (4, [None, level(14, true)]));
        hpet.write(0x140, 4, LEVEL | INTERRUPT | 15 << ROUTE_SHIFT, 1000);
        assert_eq!(hpet.take_lines(2), [level(14, false), level(15, true)]);
        hpet.write(0x20, 4, 4, 1000);
        assert_eq!(hpet.take_lines(2), [level(15, false), None]);
        // A route that it does not have reaches nobody.
        hpet.write(0x140, 4, INTERRUPT | 3 << ROUTE_SHIFT, 1000);
        hpet.write(0x148, 8, 200, 1000);
        hpet.poll(3000);
        assert_eq!(hpet.take_lines(2), [None; 2]);
    }

    proptest! {
        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((any::<bool>(), 0u64..0x170, 0u8..9, any::<u64>(), 0u64..1 << 44), 0..150)) {
            let mut hpet = Hpet::new();
            let mut now = 0u64;
            for (write, offset, size, value, time) in ops {
                now += time;
                if write { hpet.write(offset, size, value, now); } else { hpet.read(offset, size, now); }
                hpet.poll(now);
                for index in 0..4 { hpet.take_lines(index); }
                prop_assert!(hpet.next_deadline().is_none_or(|at| at > now));
            }
            hpet.poll(u64::MAX);
        }
    }
}
