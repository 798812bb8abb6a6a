//! General registers in hardware order.

/// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: the order of register numbers in instructions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gprs(pub [u64; 16]);

/// Index of RAX.
pub const RAX: u8 = 0;
/// Index of RCX.
pub const RCX: u8 = 1;
/// Index of RDX.
pub const RDX: u8 = 2;
/// Index of RSI.
pub const RSI: u8 = 6;
/// Index of RDI.
pub const RDI: u8 = 7;

/// A register, or part of one, that an instruction names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Register number, 0 to 15.
    pub index: u8,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// The second byte (AH, CH, DH, BH) instead of the first.
    pub high: bool,
}

/// All ones in the low `size` bytes.
#[inline]
pub(crate) const fn mask(size: u8) -> u64 {
    if size >= 8 { u64::MAX } else { (1 << (size as u32 * 8)) - 1 }
}

/// `value`'s low `size` bytes, extended with their sign to 64 bits.
#[inline]
pub(crate) const fn sign_extend(value: u64, size: u8) -> u64 {
    if size >= 8 || size == 0 {
        return value;
    }
    let shift = 64 - size as u32 * 8;
    (((value << shift) as i64) >> shift) as u64
}

impl Gprs {
    /// The whole register.
    #[must_use]
    #[inline]
    pub fn get(&self, index: u8) -> u64 {
        self.0[usize::from(index & 15)]
    }

    /// Sets the whole register.
    #[inline]
    pub fn set(&mut self, index: u8, value: u64) {
        self.0[usize::from(index & 15)] = value;
    }

    /// The named part, zero-extended.
    #[must_use]
    #[inline]
    pub fn read(&self, target: Target) -> u64 {
        let whole = self.get(target.index);
        if target.high { whole >> 8 & 0xFF } else { whole & mask(target.size) }
    }

    /// Writes the named part as the processor does: 32-bit writes clear the upper half, narrower ones keep the rest
    /// (SDM vol. 1, 3.4.1.1).
    #[inline]
    pub fn write(&mut self, target: Target, value: u64) {
        let whole = self.get(target.index);
        let new = if target.high {
            whole & !0xFF00 | (value & 0xFF) << 8
        } else {
            match target.size {
                8 => value,
                4 => value & mask(4),
                size => whole & !mask(size) | value & mask(size),
            }
        };
        self.set(target.index, new);
    }

    /// A register used as an address or count with `size` bytes.
    #[inline]
    pub(crate) fn address(&self, index: u8, size: u8) -> u64 {
        self.get(index) & mask(size)
    }

    /// Adds to an address or count register of `size` bytes; as with any write, 32 bits clear the upper half.
    #[inline]
    pub(crate) fn advance(&mut self, index: u8, size: u8, by: i64) {
        let value = self.get(index).wrapping_add_signed(by);
        self.write(Target { index, size, high: false }, value);
    }
}
