//! Numbers out of bytes, and bytes out of a seed.

/// Takes numbers from bytes; zeros once they are used up.
#[derive(Debug)]
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    /// All of `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Bytes(bytes)
    }

    /// Whether all are used up.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    /// A number of so many bytes, at most eight.
    pub fn number(&mut self, bytes: u32) -> u64 {
        (0..bytes.min(8)).fold(0, |number, _| number << 8 | u64::from(self.byte()))
    }

    /// One of these.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        of.get(usize::from(self.byte()) % of.len().max(1)).copied()
    }

    /// The next so many, or as many as there are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// What is left.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }
}

/// Numbers from a seed (xorshift64*).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Random(seed << 1 | 1)
    }

    /// The next number.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.word() % limit.max(1) as u64) as usize
    }

    /// So many bytes.
    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| (self.word() >> 32) as u8).collect()
    }

    /// Changes some of `bytes`: single bits, whole numbers with favourites, the length.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(6) {
            let at = self.below(bytes.len());
            match self.below(5) {
                0 => {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 1 << self.below(8);
                    }
                }
                1 => bytes.truncate(at.max(1)),
                2 => bytes.extend_from_within(at..),
                kind => {
                    let favourites = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX, 1 << 63];
                    let value = if kind == 3 { self.word() } else { favourites[self.below(favourites.len())] };
                    for (byte, new) in
                        bytes.iter_mut().skip(at).zip(value.to_le_bytes()).take([1, 2, 4, 8][self.below(4)])
                    {
                        *byte = new;
                    }
                }
            }
            bytes.truncate(1 << 16);
        }
    }
}
