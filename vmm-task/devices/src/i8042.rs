//! The keyboard controller, with nothing plugged in.
//!
//! Guests probe it, and reset the machine through it. A command to the absent keyboard is answered at once with a
//! timeout (status bit 6 and FEh), as real controllers do, so that no probe waits for half a second.

const STATUS_FULL: u8 = 0x01;
const STATUS_SYSTEM: u8 = 0x04;
const STATUS_COMMAND: u8 = 0x08;
const STATUS_UNLOCKED: u8 = 0x10;
const STATUS_TIMEOUT: u8 = 0x40;
const CONFIG_IRQ1: u8 = 0x01;
const CONFIG_SYSTEM: u8 = 0x04;
const CONFIG_KBD_OFF: u8 = 0x10;
const CONFIG_AUX_OFF: u8 = 0x20;

/// What a write asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing.
    None,
    /// Reset the processor.
    Reset,
}

/// The controller.
#[derive(Clone, Debug)]
pub struct I8042 {
    output: Option<u8>,
    /// The waiting byte came with a timeout from the keyboard, and may interrupt.
    from_keyboard: bool,
    last_was_command: bool,
    config: u8,
    output_port: u8,
    /// A command that waits for its data byte.
    expects: Option<u8>,
    ram: [u8; 31],
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// The controller as firmware leaves it: self-test passed, both channels off, A20 open.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            output: None,
            from_keyboard: false,
            last_was_command: false,
            config: CONFIG_SYSTEM | CONFIG_KBD_OFF | CONFIG_AUX_OFF,
            output_port: 0x03,
            expects: None,
            ram: [0; 31],
        }
    }

    fn answer(&mut self, v: u8) {
        self.output = Some(v);
        self.from_keyboard = false;
    }

    /// Level of IRQ 1.
    #[must_use]
    pub fn irq(&self) -> bool {
        self.from_keyboard && self.output.is_some() && self.config & CONFIG_IRQ1 != 0
    }

    /// Reads port 60h (`status` false) or 64h.
    pub fn read(&mut self, status: bool) -> u8 {
        if status {
            let full = if self.output.is_some() { STATUS_FULL } else { 0 };
            let timeout = if self.output.is_some() && self.from_keyboard { STATUS_TIMEOUT } else { 0 };
            let command = if self.last_was_command { STATUS_COMMAND } else { 0 };
            STATUS_UNLOCKED | self.config & STATUS_SYSTEM | full | timeout | command
        } else {
            self.output.take().unwrap_or(0)
        }
    }

    /// Writes port 60h (`command` false) or 64h.
    pub fn write(&mut self, command: bool, v: u8) -> Effect {
        self.last_was_command = command;
        if command { self.command(v) } else { self.data(v) }
    }

    fn command(&mut self, v: u8) -> Effect {
        self.expects = None;
        match v {
            0x20 => self.answer(self.config),
            0x21..=0x3F => self.answer(self.ram.get(usize::from(v - 0x21)).copied().unwrap_or(0)),
            0x60..=0x7F | 0xD1..=0xD4 => self.expects = Some(v),
            0xA7 => self.config |= CONFIG_AUX_OFF,
            0xA8 => self.config &= !CONFIG_AUX_OFF,
            // There is no second channel: its clock line is stuck.
            0xA9 => self.answer(1),
            0xAA => {
                self.config |= CONFIG_SYSTEM;
                self.answer(0x55);
            }
            0xAB => self.answer(0),
            0xAD => self.config |= CONFIG_KBD_OFF,
            0xAE => self.config &= !CONFIG_KBD_OFF,
            0xC0 => self.answer(0x80),
            0xD0 => self.answer(self.output_port),
            // A pulse on output bit 0 is the processor's reset.
            0xF0..=0xFF if v & 1 == 0 => return Effect::Reset,
            _ => {}
        }
        Effect::None
    }

    fn data(&mut self, v: u8) -> Effect {
        match self.expects.take() {
            Some(0x60) => self.config = v & 0x77,
            Some(c @ 0x61..=0x7F) => {
                if let Some(cell) = self.ram.get_mut(usize::from(c - 0x61)) {
                    *cell = v;
                }
            }
            Some(0xD1) => {
                self.output_port = v;
                if v & 1 == 0 {
                    return Effect::Reset;
                }
            }
            Some(0xD2) => {
                self.output = Some(v);
                self.from_keyboard = false;
            }
            // Looped back, but not marked as coming from the second channel, because there is none.
            Some(0xD3) => self.answer(v),
            Some(_) | None => {
                self.output = Some(0xFE);
                self.from_keyboard = true;
            }
        }
        Effect::None
    }

    /// Whether address line 20 is open.
    #[must_use]
    pub fn a20(&self) -> bool {
        self.output_port & 2 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn probe_is_answered_at_once() {
        let mut k = I8042::new();
        k.write(true, 0xAA);
        assert_eq!(k.read(true) & STATUS_FULL, STATUS_FULL);
        assert_eq!(k.read(false), 0x55);
        k.write(true, 0x60);
        k.write(false, 0x47);
        k.write(true, 0x20);
        assert_eq!(k.read(false), 0x47);
        k.write(false, 0xF2);
        assert!(k.irq());
        assert_eq!(k.read(true) & (STATUS_FULL | STATUS_TIMEOUT), STATUS_FULL | STATUS_TIMEOUT);
        assert_eq!(k.read(false), 0xFE);
        assert!(!k.irq());
        k.write(true, 0xA9);
        assert_eq!(k.read(false), 1);
    }

    #[test]
    fn reset_by_pulse_and_by_output_port() {
        let mut k = I8042::new();
        assert_eq!(k.write(true, 0xFE), Effect::Reset);
        assert_eq!(k.write(true, 0xFF), Effect::None);
        k.write(true, 0xD1);
        assert_eq!(k.write(false, 0xDF), Effect::None);
        k.write(true, 0xD1);
        assert_eq!(k.write(false, 0x02), Effect::Reset);
    }

    proptest! {
        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((any::<bool>(), any::<bool>(), any::<u8>()), 0..300)) {
            let mut k = I8042::new();
            for (w, c, v) in ops {
                if w { k.write(c, v); } else { k.read(c); }
            }
        }
    }
}
