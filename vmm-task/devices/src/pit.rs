//! The 8254 interval timer and system control port B (Intel 8254 data sheet; ICH9 sections 13.3 and 13.7).
//!
//! Counters are not counted: what they hold follows from when they were started. Channel 0 drives the timer interrupt,
//! channel 2 the speaker, whose output port 61h shows; both gates but channel 2's are tied high.

#[cfg(test)]
mod tests;

use crate::platform::PIT_HZ;
use crate::time::Rate;

const CLOCK: Rate = Rate::new(PIT_HZ);

/// What a read of a counter's port gives next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Latch {
    #[default]
    None,
    /// Two bytes, low first.
    Both(u16),
    /// One byte.
    One(u8),
}

#[derive(Clone, Debug)]
struct Channel {
    mode: u8,
    bcd: bool,
    /// 1 low byte, 2 high byte, 3 low then high.
    access: u8,
    /// Counts in one run, 1 to 65536.
    reload: u32,
    /// The raw value last written, for the status byte's sake.
    loaded: bool,
    gate: bool,
    /// Clock tick at which the count was `reload`; `None`: has not been started.
    start: Option<u64>,
    /// Ticks already counted when the gate stopped a counter of mode 0 or 4.
    frozen: Option<u64>,
    low_written: Option<u8>,
    read_high: bool,
    count_latch: Latch,
    status_latch: Option<u8>,
}

impl Channel {
    const fn new(gate: bool) -> Self {
        Self {
            mode: 0,
            bcd: false,
            access: 3,
            reload: 0x1_0000,
            loaded: false,
            gate,
            start: None,
            frozen: None,
            low_written: None,
            read_high: false,
            count_latch: Latch::None,
            status_latch: None,
        }
    }

    /// Counts in one run. Never 0: the compiler sees that divisions by it cannot fail.
    fn reload(&self) -> u64 {
        u64::from(self.reload.max(1))
    }

    /// Ticks counted since the start.
    fn elapsed(&self, tick: u64) -> Option<u64> {
        self.frozen.or_else(|| self.start.map(|s| tick.saturating_sub(s)))
    }

    fn count(&self, tick: u64) -> u16 {
        let reload = self.reload();
        let wrap = if self.bcd { 10_000 } else { 0x1_0000 };
        let value = match self.elapsed(tick) {
            None => reload,
            Some(d) => match self.mode {
                2 => reload - d % reload,
                // Counts down by two, twice a period.
                3 => (reload - (2 * d) % reload) & !1,
                _ => (reload + wrap - d % wrap) % wrap,
            },
        } % wrap;
        if self.bcd { to_bcd(value as u16) } else { value as u16 }
    }

    fn output(&self, tick: u64) -> bool {
        let reload = self.reload();
        let Some(d) = self.elapsed(tick) else { return self.mode != 0 };
        match self.mode {
            0 | 1 => d >= reload,
            2 => d % reload != reload - 1,
            3 => d % reload < reload.div_ceil(2),
            _ => d != reload,
        }
    }

    fn control(&mut self, v: u8) {
        // Modes 6 and 7 are 2 and 3.
        let mode = (v >> 1) & 7;
        *self = Self {
            mode: if mode > 5 { mode & 3 } else { mode },
            bcd: v & 1 != 0,
            access: (v >> 4) & 3,
            ..Self::new(self.gate)
        };
    }

    fn write(&mut self, v: u8, tick: u64) -> bool {
        let raw = match (self.access, self.low_written.take()) {
            (1, _) => u16::from(v),
            (2, _) => u16::from(v) << 8,
            (_, Some(low)) => u16::from(v) << 8 | u16::from(low),
            (_, None) => {
                self.low_written = Some(v);
                // In mode 0 the first byte stops the counter.
                if self.mode == 0 {
                    self.start = None;
                    self.frozen = None;
                    return true;
                }
                return false;
            }
        };
        let value = if self.bcd { from_bcd(raw) } else { raw };
        self.reload = match (value, self.bcd) {
            (0, false) => 0x1_0000,
            (0, true) => 10_000,
            (n, _) => u32::from(n),
        };
        self.loaded = true;
        // Modes 1 and 5 wait for the gate.
        if !matches!(self.mode, 1 | 5) {
            self.start = Some(tick);
            self.frozen = (!self.gate).then_some(0);
        }
        true
    }

    fn latch_count(&mut self, tick: u64) {
        if self.count_latch == Latch::None {
            let c = self.count(tick);
            self.count_latch = match self.access {
                1 => Latch::One(c as u8),
                2 => Latch::One((c >> 8) as u8),
                _ => Latch::Both(c),
            };
        }
    }

    fn latch_status(&mut self, tick: u64) {
        if self.status_latch.is_none() {
            let out = u8::from(self.output(tick)) << 7;
            let null = u8::from(!self.loaded) << 6;
            self.status_latch = Some(out | null | self.access << 4 | self.mode << 1 | u8::from(self.bcd));
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(s) = self.status_latch.take() {
            return s;
        }
        match self.count_latch {
            Latch::Both(c) => {
                self.count_latch = Latch::One((c >> 8) as u8);
                return c as u8;
            }
            Latch::One(b) => {
                self.count_latch = Latch::None;
                return b;
            }
            Latch::None => {}
        }
        let c = self.count(tick);
        let high = match self.access {
            1 => false,
            2 => true,
            _ => {
                self.read_high = !self.read_high;
                !self.read_high
            }
        };
        if high { (c >> 8) as u8 } else { c as u8 }
    }

    fn set_gate(&mut self, gate: bool, tick: u64) {
        if gate == self.gate {
            return;
        }
        self.gate = gate;
        match self.mode {
            0 | 4 if gate => {
                if let Some(d) = self.frozen.take() {
                    self.start = Some(tick.saturating_sub(d));
                }
            }
            0 | 4 => self.frozen = self.elapsed(tick),
            1 | 5 if gate && self.loaded => self.start = Some(tick),
            2 | 3 if gate && self.loaded => {
                self.start = Some(tick);
                self.frozen = None;
            }
            // A low gate holds the output high.
            2 | 3 if self.loaded => self.frozen = Some(0),
            _ => {}
        }
    }

    /// When, after its start, the output rises: the first time, and whether it does so every `reload` ticks.
    fn first_edge(&self) -> Option<u64> {
        let s = self.start.filter(|_| self.frozen.is_none())?;
        let reload = self.reload();
        Some(match self.mode {
            0 | 2 | 3 => s + reload,
            4 => s + reload + 1,
            _ => return None,
        })
    }
}

fn to_bcd(v: u16) -> u16 {
    (v / 1000 % 10) << 12 | (v / 100 % 10) << 8 | (v / 10 % 10) << 4 | (v % 10)
}

fn from_bcd(v: u16) -> u16 {
    (v >> 12 & 15) * 1000 + (v >> 8 & 15) * 100 + (v >> 4 & 15) * 10 + (v & 15)
}

/// The timer chip with port 61h.
#[derive(Clone, Debug)]
pub struct Pit {
    channels: [Channel; 3],
    /// Port 61h's writable bits.
    port_b: u8,
    /// Tick of the next rising edge of channel 0's output.
    next_edge: Option<u64>,
    /// The same in nanoseconds.
    deadline: Option<u64>,
    /// Edges that nobody will see.
    missed: u64,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// Three stopped counters.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            port_b: 0,
            next_edge: None,
            deadline: None,
            missed: 0,
        }
    }

    /// Reads one of the ports 40h to 43h and 61h.
    pub fn read(&mut self, port: u16, now: u64) -> u8 {
        let tick = CLOCK.ticks(now);
        match port {
            0x40 => self.channels[0].read(tick),
            0x41 => self.channels[1].read(tick),
            0x42 => self.channels[2].read(tick),
            0x61 => {
                // Bit 4 toggles with each memory refresh, every 15.085 microseconds, as channel 1 would drive it.
                let refresh = ((now / 15_085) as u8 & 1) << 4;
                let speaker = u8::from(self.channels[2].output(tick)) << 5;
                self.port_b | refresh | speaker
            }
            _ => 0xFF,
        }
    }

    /// Writes one of the ports 40h to 43h and 61h.
    pub fn write(&mut self, port: u16, v: u8, now: u64) {
        let tick = CLOCK.ticks(now);
        match port {
            0x40 if self.channels[0].write(v, tick) => {
                self.arm();
            }
            0x41 => {
                self.channels[1].write(v, tick);
            }
            0x42 => {
                self.channels[2].write(v, tick);
            }
            0x43 => self.control(v, tick),
            0x61 => {
                self.port_b = v & 0x0F;
                self.channels[2].set_gate(v & 1 != 0, tick);
            }
            _ => {}
        }
    }

    fn control(&mut self, v: u8, tick: u64) {
        let select = v >> 6;
        if select == 3 {
            for (i, c) in self.channels.iter_mut().enumerate() {
                if v & 2 << i != 0 {
                    if v & 0x20 == 0 {
                        c.latch_count(tick);
                    }
                    if v & 0x10 == 0 {
                        c.latch_status(tick);
                    }
                }
            }
        } else if let Some(c) = self.channels.get_mut(usize::from(select)) {
            if v & 0x30 == 0 {
                c.latch_count(tick);
            } else {
                c.control(v);
                if select == 0 {
                    self.arm();
                }
            }
        }
    }

    fn arm(&mut self) {
        self.next_edge = self.channels[0].first_edge();
        self.deadline = self.next_edge.map(|t| CLOCK.ns_at(t));
    }

    /// When channel 0's output rises next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadline
    }

    /// Whether channel 0's output has risen since the last poll: the caller then gives IRQ 0 an edge.
    ///
    /// A guest that did not run for a while is owed ticks, and old systems keep time by counting them: it gets them
    /// one by one, at most four times as fast as it asked for. More than a second of them is dropped
    /// ([`Self::missed`]).
    pub fn poll(&mut self, now: u64) -> bool {
        let Some(edge) = self.next_edge else { return false };
        if self.deadline.is_some_and(|d| now < d) {
            return false;
        }
        let tick = CLOCK.ticks(now).max(edge);
        let c = &self.channels[0];
        if matches!(c.mode, 2 | 3) {
            let reload = c.reload();
            let dropped = (tick - edge).saturating_sub(PIT_HZ) / reload;
            self.missed += dropped;
            let next = edge + (dropped + 1) * reload;
            self.next_edge = Some(next);
            // A guest that asks for ticks faster than a VM can be entered only hurts itself, but must be left some
            // time to run.
            let spacing = (CLOCK.ns(reload) / 4).max(10_000);
            self.deadline = Some(CLOCK.ns_at(next).max(now + spacing));
        } else {
            self.next_edge = None;
            self.deadline = None;
        }
        true
    }

    /// Timer ticks that were dropped since the VM was made.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }
}
