//! The two 8259A interrupt controllers and their edge/level registers (Intel 8259A data sheet; ICH9 section 13.4).

/// One 8259A.
#[derive(Clone, Debug, Default)]
struct Chip {
    irr: u8,
    isr: u8,
    imr: u8,
    /// Input levels, for edge detection.
    lines: u8,
    /// Inputs that are level-triggered.
    elcr: u8,
    base: u8,
    /// The input of lowest priority.
    lowest: u8,
    init: Init,
    needs_icw4: bool,
    single: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    fully_nested_special: bool,
    read_isr: bool,
    poll: bool,
}

/// Which initialisation word is expected next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Init {
    #[default]
    Done,
    Icw2,
    Icw3,
    Icw4,
}

impl Chip {
    fn set_line(&mut self, n: u8, level: bool) {
        let bit = 1 << (n & 7);
        if level {
            if self.elcr & bit != 0 || self.lines & bit == 0 {
                self.irr |= bit;
            }
            self.lines |= bit;
        } else {
            if self.elcr & bit != 0 {
                self.irr &= !bit;
            }
            self.lines &= !bit;
        }
    }

    /// How urgent the most urgent input of a mask is: 0 first, 8 for none.
    fn priority(&self, mask: u8) -> u8 {
        // Rotating right by `lowest + 1` brings the input of highest priority to bit 0.
        mask.rotate_right(u32::from(self.lowest) + 1).trailing_zeros() as u8
    }

    /// The input that deserves service now.
    fn pending(&self) -> Option<u8> {
        let wanted = self.priority(self.irr & !self.imr);
        if wanted == 8 {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        let input = (wanted + self.lowest + 1) & 7;
        // In special fully nested mode a slave may interrupt again while it is in service.
        if self.fully_nested_special && input == 2 {
            in_service &= !4;
        }
        (wanted < self.priority(in_service)).then_some(input)
    }

    fn acknowledge(&mut self, n: u8) {
        let bit = 1 << (n & 7);
        if self.auto_eoi {
            if self.rotate_on_auto_eoi {
                self.lowest = n & 7;
            }
        } else {
            self.isr |= bit;
        }
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
    }

    fn end_of_interrupt(&mut self, specific: Option<u8>, rotate: bool) {
        let in_service = if self.special_mask { self.isr & !self.imr } else { self.isr };
        let input = specific.or_else(|| {
            let p = self.priority(in_service);
            (p < 8).then(|| (p + self.lowest + 1) & 7)
        });
        if let Some(n) = input {
            self.isr &= !(1 << (n & 7));
            if rotate {
                self.lowest = n & 7;
            }
        }
    }

    fn write_command(&mut self, v: u8) {
        if v & 0x10 != 0 {
            // ICW1 starts over. Level mode for all inputs (bit 3) does not exist here: ELCR decides.
            *self = Self { lines: self.lines, elcr: self.elcr, base: self.base, lowest: 7, ..Self::default() };
            self.irr = self.lines & self.elcr;
            self.init = Init::Icw2;
            self.needs_icw4 = v & 1 != 0;
            self.single = v & 2 != 0;
        } else if v & 8 != 0 {
            if v & 4 != 0 {
                self.poll = true;
            }
            if v & 2 != 0 {
                self.read_isr = v & 1 != 0;
            }
            if v & 0x40 != 0 {
                self.special_mask = v & 0x20 != 0;
            }
        } else {
            let n = v & 7;
            match v >> 5 {
                0 => self.rotate_on_auto_eoi = false,
                4 => self.rotate_on_auto_eoi = true,
                1 => self.end_of_interrupt(None, false),
                5 => self.end_of_interrupt(None, true),
                3 => self.end_of_interrupt(Some(n), false),
                7 => self.end_of_interrupt(Some(n), true),
                6 => self.lowest = n,
                _ => {}
            }
        }
    }

    fn write_data(&mut self, v: u8) {
        match self.init {
            Init::Done => self.imr = v,
            Init::Icw2 => {
                self.base = v & 0xF8;
                self.init = match (self.single, self.needs_icw4) {
                    (false, _) => Init::Icw3,
                    (true, true) => Init::Icw4,
                    (true, false) => Init::Done,
                };
            }
            Init::Icw3 => self.init = if self.needs_icw4 { Init::Icw4 } else { Init::Done },
            Init::Icw4 => {
                self.fully_nested_special = v & 0x10 != 0;
                self.auto_eoi = v & 2 != 0;
                self.init = Init::Done;
            }
        }
    }
}

/// The pair: inputs 0 to 15, with the slave on input 2 of the master.
#[derive(Clone, Debug)]
pub struct Pic {
    chips: [Chip; 2],
    output: bool,
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// Both chips after power-on, edge-triggered. All inputs are masked until software initialises the chips: they
    /// have no vectors to give yet.
    #[must_use]
    pub fn new() -> Self {
        let chip = Chip { lowest: 7, imr: 0xFF, ..Chip::default() };
        Self { chips: [chip.clone(), chip], output: false }
    }

    /// Drives input `irq` (0 to 15; 2 is the cascade and is ignored).
    pub fn set_line(&mut self, irq: u8, level: bool) {
        if irq != 2 && irq < 16 {
            self.chips[usize::from(irq >= 8)].set_line(irq & 7, level);
            self.update();
        }
    }

    fn update(&mut self) {
        let slave = self.chips[1].pending().is_some();
        self.chips[0].set_line(2, slave);
        if !slave {
            // A slave that no longer asks must not leave a request behind: that would be a spurious interrupt.
            self.chips[0].irr &= !4;
        }
        self.output = self.chips[0].pending().is_some();
    }

    /// The INTR output.
    #[must_use]
    #[inline]
    pub fn interrupt(&self) -> bool {
        self.output
    }

    /// The processor's acknowledge cycle: the vector to take. Without a pending input it is the spurious one, IR7.
    pub fn acknowledge(&mut self) -> u8 {
        let Some(n) = self.chips[0].pending() else {
            return self.chips[0].base | 7;
        };
        self.chips[0].acknowledge(n);
        let vector = if n == 2 {
            let vector = match self.chips[1].pending() {
                Some(m) => {
                    self.chips[1].acknowledge(m);
                    self.chips[1].base | m
                }
                None => self.chips[1].base | 7,
            };
            // The slave drops its output during the acknowledge cycle, so that a more urgent request of the slave
            // makes a new edge at the master.
            self.chips[0].set_line(2, false);
            vector
        } else {
            self.chips[0].base | n
        };
        self.update();
        vector
    }

    fn read_chip(&mut self, index: usize, data: bool) -> u8 {
        let chip = &mut self.chips[index & 1];
        if chip.poll {
            chip.poll = false;
            let answer = match chip.pending() {
                Some(n) => {
                    chip.acknowledge(n);
                    0x80 | n
                }
                None => 0,
            };
            if index == 1 && answer != 0 {
                self.chips[0].set_line(2, false);
            }
            self.update();
            return answer;
        }
        if data {
            chip.imr
        } else if chip.read_isr {
            chip.isr
        } else {
            chip.irr
        }
    }

    /// Reads one of the ports 20h, 21h, A0h, A1h, 4D0h, 4D1h.
    pub fn read(&mut self, port: u16) -> u8 {
        match port {
            0x20 => self.read_chip(0, false),
            0x21 => self.read_chip(0, true),
            0xA0 => self.read_chip(1, false),
            0xA1 => self.read_chip(1, true),
            0x4D0 => self.chips[0].elcr,
            0x4D1 => self.chips[1].elcr,
            _ => 0xFF,
        }
    }

    /// Writes one of the ports that [`Self::read`] names.
    pub fn write(&mut self, port: u16, v: u8) {
        match port {
            0x20 => self.chips[0].write_command(v),
            0x21 => self.chips[0].write_data(v),
            0xA0 => self.chips[1].write_command(v),
            0xA1 => self.chips[1].write_data(v),
            // IRQ 0, 1, 2, 8 and 13 are always edge-triggered (ICH9 13.4.12).
            0x4D0 => self.set_elcr(0, v & 0xF8),
            0x4D1 => self.set_elcr(1, v & 0xDE),
            _ => {}
        }
        self.update();
    }

    fn set_elcr(&mut self, index: usize, v: u8) {
        let chip = &mut self.chips[index & 1];
        chip.elcr = v;
        // A level-triggered input requests for as long as it is high, and no longer.
        chip.irr = (chip.irr & !v) | (chip.lines & v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn linux_style() -> Pic {
        let mut p = Pic::new();
        for (cmd, base, icw3) in [(0x20, 0x30, 4), (0xA0, 0x38, 2)] {
            p.write(cmd, 0x11);
            p.write(cmd + 1, base);
            p.write(cmd + 1, icw3);
            p.write(cmd + 1, 1);
        }
        p
    }

    #[test]
    fn edge_is_taken_once_and_eoi_allows_the_next() {
        let mut p = linux_style();
        p.set_line(0, true);
        assert!(p.interrupt());
        assert_eq!(p.acknowledge(), 0x30);
        assert!(!p.interrupt());
        p.set_line(0, false);
        p.set_line(0, true);
        assert!(!p.interrupt(), "in service");
        p.write(0x20, 0x60);
        assert!(p.interrupt());
    }

    #[test]
    fn slave_goes_through_the_cascade_and_needs_two_eois() {
        let mut p = linux_style();
        p.set_line(12, true);
        assert_eq!(p.acknowledge(), 0x3C);
        p.set_line(8, true);
        assert!(!p.interrupt(), "the master's input 2 is in service");
        p.write(0xA0, 0x64);
        p.write(0x20, 0x62);
        assert_eq!(p.acknowledge(), 0x38);
    }

    #[test]
    fn level_input_asks_again_until_it_falls() {
        let mut p = linux_style();
        p.write(0x4D1, 0x02);
        p.set_line(9, true);
        assert_eq!(p.acknowledge(), 0x39);
        p.write(0xA0, 0x20);
        p.write(0x20, 0x20);
        assert!(p.interrupt());
        p.set_line(9, false);
        assert!(!p.interrupt());
    }

    #[test]
    fn priority_mask_poll_spurious_auto_eoi() {
        let mut p = linux_style();
        p.set_line(5, true);
        p.set_line(3, true);
        assert_eq!(p.acknowledge(), 0x33);
        assert!(!p.interrupt());
        p.write(0x20, 0x20);
        p.write(0x21, 1 << 5);
        assert!(!p.interrupt());
        assert_eq!(p.acknowledge(), 0x37, "spurious");
        p.write(0x21, 0);
        p.write(0x20, 0x0C);
        assert_eq!(p.read(0x20), 0x85);
        p.write(0x20, 0x0B);
        assert_eq!(p.read(0x20), 1 << 5);
        p.write(0x20, 0x11);
        p.write(0x21, 0x20);
        p.write(0x21, 4);
        p.write(0x21, 3);
        p.set_line(1, true);
        assert_eq!(p.acknowledge(), 0x21);
        p.set_line(1, false);
        p.set_line(1, true);
        assert!(p.interrupt(), "auto EOI leaves nothing in service");
    }

    #[test]
    fn special_mask_mode_lets_lower_inputs_through() {
        let mut p = linux_style();
        p.set_line(1, true);
        p.acknowledge();
        p.set_line(6, true);
        assert!(!p.interrupt());
        p.write(0x20, 0x68);
        p.write(0x21, 1 << 1);
        assert!(p.interrupt());
    }

    proptest! {
        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((0u8..4, any::<u8>(), any::<u8>()), 0..400)) {
            let ports = [0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1];
            let mut p = Pic::new();
            for (op, a, b) in ops {
                match op {
                    0 => p.set_line(a & 31, b & 1 != 0),
                    1 => { p.read(ports[a as usize % 6]); }
                    2 => p.write(ports[a as usize % 6], b),
                    _ => { p.acknowledge(); }
                }
            }
        }
    }
}
