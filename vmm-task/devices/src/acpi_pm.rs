//! ACPI fixed hardware: PM1a event and control registers and the PM timer (ACPI 6.5, 4.8.3), and the reset register.

use crate::platform::{PM_TIMER_HZ, RESET_VALUE, SLP_TYP_S5};
use crate::time::Rate;

const CLOCK: Rate = Rate::new(PM_TIMER_HZ);
const STS_TIMER: u16 = 1;
const STS_POWER_BUTTON: u16 = 1 << 8;
const STS_WAKE: u16 = 1 << 15;
/// Status bits that are here at all.
const STS_ALL: u16 = STS_TIMER | STS_POWER_BUTTON | STS_WAKE;
/// Enable bits: timer, global lock, power button, RTC.
const EN_ALL: u16 = 0x0521;
const CNT_SCI: u16 = 1;
const CNT_SLEEP: u16 = 1 << 13;
/// The timer's status bit is set each time its top bit, bit 31, changes.
const HALF: u64 = 1 << 31;

/// What a write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Off: the guest entered S5.
    PowerOff,
    /// Reset.
    Reset,
}

/// The registers at PMBASE.
#[derive(Clone, Debug)]
pub struct AcpiPm {
    status: u16,
    enable: u16,
    control: u16,
    /// Half periods of the timer that the status bit accounts for.
    halves: u64,
    gpe: [u8; 16],
    reset_control: u8,
}

impl Default for AcpiPm {
    fn default() -> Self {
        Self::new()
    }
}

impl AcpiPm {
    /// ACPI mode is always on: there is no SMI command port and no legacy mode to come from.
    #[must_use]
    pub const fn new() -> Self {
        Self { status: 0, enable: 0, control: CNT_SCI, halves: 0, gpe: [0; 16], reset_control: 0 }
    }

    /// Presses the fixed power button.
    pub fn press_power_button(&mut self) {
        self.status |= STS_POWER_BUTTON;
    }

    /// Level of the SCI.
    #[must_use]
    pub fn sci(&self) -> bool {
        self.status & self.enable & (STS_TIMER | STS_POWER_BUTTON) != 0
    }

    fn advance(&mut self, now: u64) {
        let halves = CLOCK.ticks(now) / HALF;
        if halves > self.halves {
            self.halves = halves;
            self.status |= STS_TIMER;
        }
    }

    /// When the SCI may rise by itself.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        (self.enable & STS_TIMER != 0 && self.status & STS_TIMER == 0).then(|| CLOCK.ns_at((self.halves + 1) * HALF))
    }

    /// Brings [`Self::sci`] up to date.
    pub fn poll(&mut self, now: u64) {
        self.advance(now);
    }

    /// The PM timer's value.
    #[must_use]
    #[inline]
    pub fn timer(now: u64) -> u32 {
        CLOCK.ticks(now) as u32
    }

    /// Reads one byte at `offset` from PMBASE.
    fn read_byte(&self, offset: u16, timer: u32) -> u8 {
        let of = |v: u16, o: u16| (v >> (8 * (o & 1))) as u8;
        match offset {
            0 | 1 => of(self.status, offset),
            2 | 3 => of(self.enable, offset),
            4 | 5 => of(self.control, offset),
            8..=11 => (timer >> (8 * (offset & 3))) as u8,
            // SMI_EN: the APM command already makes an SMI, which tells firmware not to set up system management mode.
            0x30 => 0x20,
            0x20..=0x2F => self.gpe.get(usize::from(offset - 0x20)).copied().unwrap_or(0),
            _ => 0,
        }
    }

    /// Reads `size` bytes (1, 2 or 4) at `offset` from PMBASE.
    pub fn read(&mut self, offset: u16, size: u8, now: u64) -> u32 {
        if offset == 8 && size == 4 {
            return Self::timer(now);
        }
        self.advance(now);
        let timer = Self::timer(now);
        (0..u16::from(size.min(4)))
            .fold(0, |v, i| v | u32::from(self.read_byte(offset.wrapping_add(i), timer)) << (8 * i))
    }

    /// Writes `size` bytes (1, 2 or 4) at `offset` from PMBASE.
    pub fn write(&mut self, offset: u16, size: u8, value: u32, now: u64) -> Effect {
        self.advance(now);
        let mut effect = Effect::None;
        for i in 0..u16::from(size.min(4)) {
            let v = (value >> (8 * i)) as u8;
            let o = offset.wrapping_add(i);
            let shift = 8 * (o & 1);
            let put = |old: u16| old & !(0xFF << shift) | u16::from(v) << shift;
            match o {
                0 | 1 => self.status &= !(u16::from(v) << shift & STS_ALL),
                2 | 3 => self.enable = put(self.enable) & EN_ALL,
                4 | 5 => {
                    self.control = put(self.control) & !CNT_SLEEP | CNT_SCI;
                    if o == 5 && v & 0x20 != 0 {
                        let typ = (v >> 2) & 7;
                        // Small kernels write QEMU's value for it, 0, without a look at the tables. No other sleep state has it here.
                        if typ == SLP_TYP_S5 || typ == 0 {
                            effect = Effect::PowerOff;
                        }
                    }
                }
                // General-purpose events: no source is wired, enables are remembered.
                0x28..=0x2F => {
                    if let Some(cell) = self.gpe.get_mut(usize::from(o - 0x20)) {
                        *cell = v;
                    }
                }
                _ => {}
            }
        }
        effect
    }

    /// Reads the reset control register (CF9h).
    #[must_use]
    pub fn read_reset(&self) -> u8 {
        self.reset_control
    }

    /// Writes the reset control register (CF9h): bit 2 set is a reset.
    pub fn write_reset(&mut self, v: u8) -> Effect {
        self.reset_control = v & 0x0A;
        if v & RESET_VALUE & 4 != 0 { Effect::Reset } else { Effect::None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn timer_counts_at_its_rate() {
        let mut p = AcpiPm::new();
        assert_eq!(p.read(8, 4, 1_000_000_000), 3_579_545);
        assert_eq!(p.read(8, 4, 60_000_000_000), 60 * 3_579_545);
    }

    #[test]
    fn power_button_raises_the_sci_until_it_is_cleared() {
        let mut p = AcpiPm::new();
        p.write(2, 2, 0x0100, 0);
        p.press_power_button();
        assert!(p.sci());
        assert_eq!(p.read(0, 2, 0), 0x0100);
        p.write(0, 2, 0x0100, 0);
        assert!(!p.sci());
    }

    #[test]
    fn s5_and_reset() {
        let mut p = AcpiPm::new();
        let typ = u32::from(SLP_TYP_S5) << 10;
        assert_eq!(p.write(4, 2, typ, 0), Effect::None);
        assert_eq!(p.write(4, 2, typ | 1 << 13, 0), Effect::PowerOff);
        assert_eq!(p.write(4, 2, 0x2000, 0), Effect::PowerOff);
        assert_eq!(p.write(4, 2, 0x2400, 0), Effect::None);
        assert_eq!(p.write_reset(2), Effect::None);
        assert_eq!(p.write_reset(6), Effect::Reset);
        assert_eq!(p.read(4, 2, 0) & 1, 1);
    }

    #[test]
    fn timer_status_when_the_top_bit_changes() {
        let mut p = AcpiPm::new();
        p.write(2, 2, 1, 0);
        let d = p.next_deadline().unwrap();
        assert_eq!(d / 1_000_000_000, HALF / PM_TIMER_HZ);
        p.poll(d - 1000);
        assert!(!p.sci());
        p.poll(d);
        assert!(p.sci());
    }

    proptest! {
        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((any::<bool>(), 0u16..0x90, 0u8..5, any::<u32>(), 0u64..1 << 40), 0..100)) {
            let mut p = AcpiPm::new();
            let mut now = 0;
            for (w, o, s, v, dt) in ops {
                now += dt;
                if w { p.write(o, s, v, now); } else { p.read(o, s, now); }
                p.poll(now);
                prop_assert!(p.next_deadline().is_none_or(|d| d > now));
            }
        }
    }
}
