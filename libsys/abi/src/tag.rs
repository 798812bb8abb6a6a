//! The tag: the word in `rax` that goes with every system call and every answer.
//!
//! | bits | call | answer |
//! | --- | --- | --- |
//! | 0–7 | method | status: 0, or an [`Error`](crate::Error) |
//! | 8–10 | capabilities sent, 0–4 | capabilities received |
//! | 12–24 | bytes of the message buffer, 0–4096 | the same |
//! | 32–63 | label, chosen by the protocol | the same |

/// A tag, on its way in or out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Tag(pub u64);

impl Tag {
    /// A tag with a label, message-buffer bytes (at most 4096) and capabilities (at most 4); larger values are cut off
    /// to the field and then refused by the kernel.
    #[must_use]
    pub const fn new(label: u32, bytes: usize, caps: usize) -> Tag {
        Tag((label as u64) << 32 | ((bytes as u64) & 0x1fff) << 12 | ((caps as u64) & 7) << 8)
    }

    /// Low eight bits: method (call) or status (answer).
    #[must_use]
    pub const fn low(self) -> u8 {
        self.0 as u8
    }

    /// The same tag with other low bits.
    #[must_use]
    pub const fn with_low(self, low: u8) -> Tag {
        Tag(self.0 & !0xff | low as u64)
    }

    /// Capabilities in the message.
    #[must_use]
    pub const fn caps(self) -> usize {
        (self.0 >> 8 & 7) as usize
    }

    /// Bytes in the message buffer.
    #[must_use]
    pub const fn bytes(self) -> usize {
        (self.0 >> 12 & 0x1fff) as usize
    }

    /// The protocol's label.
    #[must_use]
    pub const fn label(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether anything but register words travels.
    #[must_use]
    pub const fn is_long(self) -> bool {
        self.0 & (0x1fff << 12 | 7 << 8) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_apart() {
        let tag = Tag::new(0xdead_beef, 4096, 4).with_low(0x42);
        assert_eq!((tag.label(), tag.bytes(), tag.caps(), tag.low()), (0xdead_beef, 4096, 4, 0x42));
        assert!(tag.is_long());
        assert!(!Tag::new(u32::MAX, 0, 0).is_long());
    }
}
