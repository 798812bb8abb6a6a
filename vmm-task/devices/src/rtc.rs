//! The MC146818 real-time clock with CMOS memory (Motorola MC146818A data sheet; ICH9 section 13.6).

use crate::time::{NS_PER_S, earlier};

const REG_A: usize = 0x0A;
const REG_B: usize = 0x0B;
const REG_C: usize = 0x0C;
const REG_D: usize = 0x0D;
/// Where the century lives; the FADT must say the same.
pub const CENTURY: usize = 0x32;

const B_SET: u8 = 0x80;
const B_PIE: u8 = 0x40;
const B_AIE: u8 = 0x20;
const B_UIE: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24H: u8 = 0x02;
const C_IRQ: u8 = 0x80;
const DAY: u64 = 86_400;
/// The update-in-progress bit is set for this long before the time changes.
const UIP_NS: u64 = 244_000;

/// Time and date in plain numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fields {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    year: u32,
}

impl Fields {
    /// Proleptic Gregorian calendar, days counted from 1970 (see "chrono-compatible low-level date algorithms", Hinnant).
    fn from_unix(seconds: u64) -> Self {
        let days = seconds / DAY;
        let tod = seconds % DAY;
        let z = days + 719_468;
        let era = z / 146_097;
        let doe = z % 146_097;
        let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
        let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
        let mp = (5 * doy + 2) / 153;
        let month = if mp < 10 { mp + 3 } else { mp - 9 };
        Self {
            second: (tod % 60) as u8,
            minute: (tod / 60 % 60) as u8,
            hour: (tod / 3600) as u8,
            weekday: ((days + 4) % 7 + 1) as u8,
            day: (doy - (153 * mp + 2) / 5 + 1) as u8,
            month: month as u8,
            year: (yoe + era * 400 + u64::from(month <= 2)) as u32,
        }
    }

    /// Values out of range carry over, years before 1970 give 1970.
    fn to_unix(self) -> u64 {
        let month = u64::from(self.month.clamp(1, 12));
        let y = u64::from(self.year.max(1970)) - u64::from(month <= 2);
        let yoe = y % 400;
        let mp = (month + 9) % 12;
        let doy = (153 * mp + 2) / 5 + u64::from(self.day.max(1)) - 1;
        let doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
        let days = (y / 400 * 146_097 + doe).saturating_sub(719_468);
        days * DAY + u64::from(self.hour) * 3600 + u64::from(self.minute) * 60 + u64::from(self.second)
    }
}

/// The clock.
#[derive(Clone, Debug)]
pub struct Rtc {
    index: u8,
    /// Registers 0 to 7Fh. Time and date are only in here while the guest holds them with SET.
    ram: [u8; 128],
    /// Unix time in nanoseconds at `now` = 0, modulo 2^64: it may lie "before" 1970.
    offset: u64,
    /// The second up to which UF and AF are accounted for.
    seen: u64,
    /// When the next periodic event is due.
    periodic_at: Option<u64>,
}

impl Rtc {
    /// A clock that shows `unix_ns`, nanoseconds since 1970, at `now` = 0.
    #[must_use]
    pub fn new(unix_ns: u64) -> Self {
        let mut ram = [0; 128];
        ram[REG_A] = 0x26;
        ram[REG_B] = B_24H;
        ram[REG_D] = 0x80;
        Self { index: 0, ram, offset: unix_ns, seen: unix_ns / NS_PER_S, periodic_at: None }
    }

    /// Sets a byte of CMOS memory (0Eh to 7Fh but the century), as firmware expects to find it. Others are ignored.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        let i = usize::from(index);
        if i > REG_D
            && i != CENTURY
            && let Some(cell) = self.ram.get_mut(i)
        {
            *cell = value;
        }
    }

    /// What a reset of the machine does: interrupts off, the rest goes on from the battery.
    pub fn reset(&mut self) {
        self.index = 0;
        self.ram[REG_B] &= !(B_PIE | B_AIE | B_UIE);
        self.ram[REG_C] = 0;
    }

    fn unix_ns(&self, now: u64) -> u64 {
        now.wrapping_add(self.offset)
    }

    fn running(&self) -> bool {
        self.ram[REG_B] & B_SET == 0 && self.ram[REG_A] & 0x70 < 0x60
    }

    fn encode(&self, v: u8) -> u8 {
        if self.ram[REG_B] & B_BINARY != 0 { v } else { ((v / 10 % 10) << 4) | (v % 10) }
    }

    fn decode(&self, v: u8) -> u8 {
        if self.ram[REG_B] & B_BINARY != 0 { v } else { (v >> 4).wrapping_mul(10).wrapping_add(v & 15) }
    }

    fn encode_hour(&self, h: u8) -> u8 {
        if self.ram[REG_B] & B_24H != 0 {
            self.encode(h)
        } else {
            self.encode(if h.is_multiple_of(12) { 12 } else { h % 12 }) | if h >= 12 { 0x80 } else { 0 }
        }
    }

    fn decode_hour(&self, v: u8) -> u8 {
        if self.ram[REG_B] & B_24H != 0 {
            self.decode(v)
        } else {
            self.decode(v & 0x7F) % 12 + if v & 0x80 != 0 { 12 } else { 0 }
        }
    }

    /// Writes the running time into the registers.
    fn store(&mut self, now: u64) {
        let f = Fields::from_unix(self.unix_ns(now) / NS_PER_S);
        self.ram[0] = self.encode(f.second);
        self.ram[2] = self.encode(f.minute);
        self.ram[4] = self.encode_hour(f.hour);
        self.ram[6] = self.encode(f.weekday);
        self.ram[7] = self.encode(f.day);
        self.ram[8] = self.encode(f.month);
        self.ram[9] = self.encode((f.year % 100) as u8);
        self.ram[CENTURY] = self.encode((f.year / 100) as u8);
    }

    /// Makes the registers the running time; the fraction of the second becomes `fraction` if given.
    fn load(&mut self, now: u64, fraction: Option<u64>) {
        let f = Fields {
            second: self.decode(self.ram[0]),
            minute: self.decode(self.ram[2]),
            hour: self.decode_hour(self.ram[4]),
            weekday: 0,
            day: self.decode(self.ram[7]),
            month: self.decode(self.ram[8]),
            year: u32::from(self.decode(self.ram[CENTURY])) * 100 + u32::from(self.decode(self.ram[9])),
        };
        let fraction = fraction.unwrap_or(self.unix_ns(now) % NS_PER_S);
        let seconds = f.to_unix();
        self.offset = seconds.wrapping_mul(NS_PER_S).wrapping_add(fraction).wrapping_sub(now);
        self.seen = self.unix_ns(now) / NS_PER_S;
    }

    fn period_ns(&self) -> Option<u64> {
        let rs = self.ram[REG_A] & 15;
        if rs == 0 || self.ram[REG_A] & 0x70 != 0x20 {
            return None;
        }
        let shift = if rs < 3 { rs + 6 } else { rs - 1 };
        Some((NS_PER_S << shift) / 32_768)
    }

    /// The first second after `after` at which the alarm's three fields match; within a day if ever.
    fn next_alarm(&self, after: u64) -> Option<u64> {
        let field = |raw: u8, decoded: u8| (raw < 0xC0).then_some(u64::from(decoded));
        let s = field(self.ram[1], self.decode(self.ram[1]));
        let m = field(self.ram[3], self.decode(self.ram[3]));
        // In 12-hour mode the PM bit is not a wildcard.
        let wild_hour = self.ram[5] & 0xC0 == 0xC0;
        let h = (!wild_hour).then(|| u64::from(self.decode_hour(self.ram[5])));
        if s.is_some_and(|s| s > 59) || m.is_some_and(|m| m > 59) || h.is_some_and(|h| h > 23) {
            return None;
        }
        let matches = |want: Option<u64>, v: u64| want.is_none_or(|w| w == v);
        let mut t = after + 1;
        // Each step skips to the next hour, minute or second: at most 24 + 60 + 60 of them, twice for the wrap.
        for _ in 0..300 {
            let tod = t % DAY;
            if !matches(h, tod / 3600) {
                t += 3600 - tod % 3600;
            } else if !matches(m, tod / 60 % 60) {
                t += 60 - tod % 60;
            } else if !matches(s, tod % 60) {
                t += 1;
            } else {
                return Some(t);
            }
        }
        None
    }

    /// Brings the flags of register C up to date.
    fn advance(&mut self, now: u64) {
        if self.running() {
            let second = self.unix_ns(now) / NS_PER_S;
            if second > self.seen {
                self.ram[REG_C] |= B_UIE;
                if self.next_alarm(self.seen).is_some_and(|a| a <= second) {
                    self.ram[REG_C] |= B_AIE;
                }
            }
            self.seen = second;
        }
        if let (Some(at), Some(period)) = (self.periodic_at, self.period_ns())
            && now >= at
        {
            self.ram[REG_C] |= B_PIE;
            self.periodic_at = Some(at + ((now - at) / period + 1) * period);
        }
    }

    /// Whether IRQ 8 is requested.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.ram[REG_B] & self.ram[REG_C] & (B_PIE | B_AIE | B_UIE) != 0
    }

    /// Brings interrupts up to date; afterwards look at [`Self::irq`].
    pub fn poll(&mut self, now: u64) {
        self.advance(now);
    }

    /// When [`Self::irq`] may rise next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        let b = self.ram[REG_B];
        if b & (B_PIE | B_AIE | B_UIE) == 0 || self.irq() {
            return None;
        }
        let mut at = None;
        let to_now = |second: u64| second.wrapping_mul(NS_PER_S).wrapping_sub(self.offset);
        if self.running() {
            if b & B_UIE != 0 {
                at = Some(to_now(self.seen + 1));
            }
            if b & B_AIE != 0 {
                at = earlier(at, self.next_alarm(self.seen).map(to_now));
            }
        }
        if b & B_PIE != 0 {
            at = earlier(at, self.periodic_at);
        }
        at
    }

    /// Reads port 70h (`data` false) or 71h.
    pub fn read(&mut self, data: bool, now: u64) -> u8 {
        if !data {
            return 0xFF;
        }
        let i = usize::from(self.index & 0x7F);
        self.advance(now);
        match i {
            0 | 2 | 4 | 6..=9 | CENTURY => {
                if self.running() {
                    self.store(now);
                }
                self.ram[i]
            }
            REG_A => {
                let uip = self.running() && self.unix_ns(now) % NS_PER_S >= NS_PER_S - UIP_NS;
                self.ram[REG_A] & 0x7F | u8::from(uip) << 7
            }
            REG_C => {
                let c = self.ram[REG_C] | if self.irq() { C_IRQ } else { 0 };
                self.ram[REG_C] = 0;
                c
            }
            _ => self.ram[i],
        }
    }

    /// Writes port 70h (`data` false) or 71h.
    pub fn write(&mut self, data: bool, v: u8, now: u64) {
        if !data {
            self.index = v & 0x7F;
            return;
        }
        let i = usize::from(self.index & 0x7F);
        self.advance(now);
        match i {
            0 | 2 | 4 | 6..=9 | CENTURY => {
                if self.running() {
                    self.store(now);
                    self.ram[i] = v;
                    self.load(now, None);
                } else {
                    self.ram[i] = v;
                }
            }
            REG_A => {
                let was = self.running();
                let period = self.period_ns();
                let held = self.ram[REG_A] & 0x70 >= 0x60;
                if was && v & 0x70 >= 0x60 {
                    self.store(now);
                }
                self.ram[REG_A] = v & 0x7F;
                if !was && self.running() {
                    // Released from reset, the divider makes its first update half a second later.
                    self.load(now, held.then_some(NS_PER_S / 2));
                }
                if self.period_ns() != period {
                    self.periodic_at = self.period_ns().map(|p| now + p);
                }
            }
            REG_B => {
                let was = self.running();
                if was {
                    self.store(now);
                }
                // SET clears the update interrupt enable.
                self.ram[REG_B] = if v & B_SET != 0 { v & !B_UIE } else { v };
                if !was && self.running() {
                    self.load(now, None);
                }
                if self.periodic_at.is_none() {
                    self.periodic_at = self.period_ns().map(|p| now + p);
                }
            }
            REG_C | REG_D => {}
            _ => self.ram[i] = v,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const T0: u64 = 1_700_000_000 * NS_PER_S; // 2023-11-14 22:13:20

    fn get(r: &mut Rtc, i: u8, now: u64) -> u8 {
        r.write(false, i, now);
        r.read(true, now)
    }
    fn put(r: &mut Rtc, i: u8, v: u8, now: u64) {
        r.write(false, i, now);
        r.write(true, v, now);
    }

    #[test]
    fn shows_the_time_in_every_format() {
        let mut r = Rtc::new(T0);
        let at = |r: &mut Rtc| [0u8, 2, 4, 7, 8, 9, 0x32, 6].map(|i| get(r, i, 0));
        assert_eq!(at(&mut r), [0x20, 0x13, 0x22, 0x14, 0x11, 0x23, 0x20, 3]);
        put(&mut r, 0x0B, B_24H | B_BINARY, 0);
        assert_eq!(at(&mut r), [20, 13, 22, 14, 11, 23, 20, 3]);
        put(&mut r, 0x0B, 0, 0);
        assert_eq!(get(&mut r, 4, 0), 0x90);
    }

    #[test]
    fn update_in_progress_just_before_the_second() {
        let mut r = Rtc::new(T0);
        assert_eq!(get(&mut r, 0x0A, 500_000_000) & 0x80, 0);
        assert_eq!(get(&mut r, 0x0A, NS_PER_S - 100_000) & 0x80, 0x80);
        assert_eq!(get(&mut r, 0x0A, NS_PER_S) & 0x80, 0);
        assert_eq!(get(&mut r, 0, NS_PER_S), 0x21);
    }

    #[test]
    fn the_guest_sets_the_time_the_way_linux_does() {
        let mut r = Rtc::new(T0);
        let now = 123_456_789;
        put(&mut r, 0x0B, B_SET | B_24H, now);
        put(&mut r, 0x0A, 0x76, now);
        for (i, v) in [(9, 0x31), (8, 0x12), (7, 0x31), (4, 0x23), (2, 0x59), (0, 0x58), (0x32, 0x20)] {
            put(&mut r, i, v, now);
        }
        put(&mut r, 0x0B, B_24H, now);
        put(&mut r, 0x0A, 0x26, now);
        assert_eq!(get(&mut r, 0, now + 499_000_000), 0x58);
        assert_eq!(get(&mut r, 0, now + 501_000_000), 0x59);
        let later = now + 1_501_000_000;
        assert_eq!([9u8, 8, 7, 4, 2, 0].map(|i| get(&mut r, i, later)), [0x32, 1, 1, 0, 0, 0]);
    }

    #[test]
    fn alarm_update_and_periodic_interrupts() {
        let mut r = Rtc::new(T0);
        for (i, v) in [(1, 0x25), (3, 0x13), (5, 0x22), (0x0B, B_24H | B_AIE)] {
            put(&mut r, i, v, 0);
        }
        assert_eq!(r.next_deadline(), Some(5 * NS_PER_S));
        r.poll(5 * NS_PER_S - 1);
        assert!(!r.irq());
        r.poll(5 * NS_PER_S);
        assert!(r.irq());
        assert_eq!(get(&mut r, 0x0C, 5 * NS_PER_S), 0xF0);
        assert!(!r.irq());
        put(&mut r, 0x0B, B_24H | B_UIE, 5 * NS_PER_S);
        assert_eq!(r.next_deadline(), Some(6 * NS_PER_S));
        put(&mut r, 0x0B, B_24H | B_PIE, 5 * NS_PER_S);
        let mut now = 5 * NS_PER_S;
        let mut n = 0;
        while let Some(d) = r.next_deadline() {
            if d > 6 * NS_PER_S {
                break;
            }
            now = now.max(d);
            r.poll(now);
            n += u32::from(get(&mut r, 0x0C, now) & 0xC0 == 0xC0);
        }
        assert!((1023..=1025).contains(&n), "{n}");
    }

    proptest! {
        #[test]
        fn dates_go_round(s in 0u64..40_000_000_000) {
            prop_assert_eq!(Fields::from_unix(s).to_unix(), s);
        }

        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((0u8..3, any::<u8>(), any::<u8>(), 0u64..1 << 36), 0..200)) {
            let mut r = Rtc::new(T0);
            let mut now = 0;
            for (op, i, v, dt) in ops {
                now += dt;
                match op {
                    0 => { get(&mut r, i, now); }
                    1 => put(&mut r, i, v, now),
                    _ => { r.poll(now); let _ = r.next_deadline(); }
                }
            }
        }
    }
}
