//! Word 0 of a capability slot: what it names and with which rights.
//!
//! | bits | field |
//! | --- | --- |
//! | 0–3 | object type; 0: the slot is empty |
//! | 4–5 | frame size |
//! | 6–45 | physical address of the object (objects are 64-byte aligned) |
//! | 46–53 | rights |
//! | 54–63 | generation: changes whenever the slot is written, so that a reader who sees the same word twice saw one capability |

use moira_abi::{FrameSize, ObjectType, Rights};

const ADDRESS: u64 = ((1 << 46) - 1) & !63;

/// Word 0 of a slot.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapWord(pub u64);

impl CapWord {
    /// The empty slot.
    pub const EMPTY: CapWord = CapWord(0);

    /// A word for an object at a physical address below 2^46.
    pub const fn new(kind: ObjectType, address: u64, rights: Rights, generation: u64) -> CapWord {
        CapWord(kind as u64 | address & ADDRESS | (rights.0 as u64) << 46 | generation << 54)
    }

    /// The same with a frame size.
    pub const fn with_frame_size(self, size: FrameSize) -> CapWord {
        CapWord(self.0 & !0x30 | (size as u64) << 4)
    }

    /// The same with other rights.
    pub const fn with_rights(self, rights: Rights) -> CapWord {
        CapWord(self.0 & !(0xff << 46) | (rights.0 as u64) << 46)
    }

    /// The same with another generation.
    pub const fn with_generation(self, generation: u64) -> CapWord {
        CapWord(self.0 & !(0x3ff << 54) | generation << 54)
    }

    /// Whether the slot holds nothing.
    pub const fn is_empty(self) -> bool {
        self.0 & 15 == 0
    }

    /// Object type number.
    pub const fn kind_code(self) -> u8 {
        (self.0 & 15) as u8
    }

    /// Object type.
    pub const fn kind(self) -> Option<ObjectType> {
        ObjectType::from_code(self.kind_code())
    }

    /// Whether it names an object of this type with at least these rights.
    pub const fn is(self, kind: ObjectType, rights: Rights) -> bool {
        self.0 & (15 | (rights.0 as u64) << 46) == kind as u64 | (rights.0 as u64) << 46
    }

    /// Physical address of the object or frame.
    pub const fn address(self) -> u64 {
        self.0 & ADDRESS
    }

    /// Rights.
    pub const fn rights(self) -> Rights {
        Rights((self.0 >> 46) as u8)
    }

    /// Generation, 10 bits.
    pub const fn generation(self) -> u64 {
        self.0 >> 54
    }

    /// Size of a frame.
    pub const fn frame_size(self) -> FrameSize {
        match self.0 >> 4 & 3 {
            0 => FrameSize::Small,
            1 => FrameSize::Large,
            _ => FrameSize::Huge,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fields_keep_apart(address in 0u64..1 << 46, rights: u8, generation in 0u64..1024, kind in 1u8..=14, size in 0u8..3) {
            let kind = ObjectType::from_code(kind).unwrap();
            let size = [FrameSize::Small, FrameSize::Large, FrameSize::Huge][size as usize];
            let word = CapWord::new(kind, address, Rights(rights), generation).with_frame_size(size);
            prop_assert_eq!(word.kind(), Some(kind));
            prop_assert_eq!(word.address(), address & !63);
            prop_assert_eq!(word.rights().0, rights);
            prop_assert_eq!(word.generation(), generation);
            prop_assert_eq!(word.frame_size(), size);
            prop_assert!(word.is(kind, Rights(rights)));
            for other in 0..=255u8 {
                prop_assert_eq!(word.is(kind, Rights(other)), rights & other == other);
            }
        }
    }
}
