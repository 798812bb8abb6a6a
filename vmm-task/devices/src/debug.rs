//! Ports that firmware and test payloads talk through: POST codes (80h), debug consoles (E9h, 402h), exit (F4h).

/// Bytes a debug console keeps until the monitor takes them.
const LOG: usize = 256;
/// Where SeaBIOS and OVMF look for a debug console.
const FIRMWARE: u16 = 0x402;

/// The debug ports.
#[derive(Clone, Debug)]
pub struct DebugPorts {
    post: u8,
    log: [u8; LOG],
    len: usize,
    lost: u64,
    /// Nobody listens at 402h.
    mute: bool,
}

impl Default for DebugPorts {
    fn default() -> Self {
        Self::new()
    }
}

impl DebugPorts {
    /// Nothing written yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { post: 0, log: [0; LOG], len: 0, lost: 0, mute: false }
    }

    /// Takes firmware's own debug console (402h) away, on which it talks a lot.
    pub fn mute_firmware(&mut self) {
        self.mute = true;
    }

    /// Reads port 80h, E9h or 402h; the consoles answer E9h, which says that they are there.
    #[must_use]
    pub fn read(&self, port: u16) -> u8 {
        match port {
            0x80 => self.post,
            FIRMWARE if self.mute => 0xFF,
            _ => 0xE9,
        }
    }

    /// Writes port 80h, E9h or 402h.
    pub fn write(&mut self, port: u16, v: u8) {
        if port == 0x80 {
            self.post = v;
        } else if port == FIRMWARE && self.mute {
            // Nobody listens.
        } else if let Some(cell) = self.log.get_mut(self.len) {
            *cell = v;
            self.len += 1;
        } else {
            self.lost += 1;
        }
    }

    /// Whether the monitor should take the log now: it is half full or a line is complete.
    #[must_use]
    pub fn wants_drain(&self) -> bool {
        self.len >= LOG / 2 || self.len > 0 && self.log.get(self.len - 1) == Some(&b'\n')
    }

    /// What was written to the debug consoles since the last call. The bytes are the guest's: show them to nobody
    /// but its owner.
    pub fn drain(&mut self) -> &[u8] {
        let n = core::mem::take(&mut self.len);
        self.log.get(..n).unwrap_or(&[])
    }

    /// Bytes that found no room.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_fits_and_counts_the_rest() {
        let mut d = DebugPorts::new();
        for _ in 0..300 {
            d.write(0xE9, b'a');
        }
        assert!(d.wants_drain());
        assert_eq!(d.drain().len(), LOG);
        assert_eq!(d.lost(), 300 - LOG as u64);
        assert!(d.drain().is_empty());
        d.write(0x402, b'\n');
        assert!(d.wants_drain());
        assert_eq!((d.read(0xE9), d.read(0x402), d.drain().len()), (0xE9, 0xE9, 1));
        d.mute_firmware();
        d.write(0x402, b'\n');
        assert_eq!((d.wants_drain(), d.read(0xE9), d.read(0x402)), (false, 0xE9, 0xFF));
    }
}
