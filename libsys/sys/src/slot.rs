//! Slots of the caller's capability table, and what all typed capabilities have in common.

use core::marker::PhantomData;
use moira_abi::ObjectType;

/// Index of a slot in a capability table: the caller's own where nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// The slot that names nothing; methods take it for "none" where their documentation says so.
    pub const NONE: Slot = Slot(0);

    /// The slot `distance` further on; saturates, and the kernel then answers `NoSlot`.
    #[must_use]
    pub const fn plus(self, distance: u32) -> Slot {
        Slot(self.0.saturating_add(distance))
    }

    /// As a message word.
    #[must_use]
    pub(crate) const fn word(self) -> u64 {
        self.0 as u64
    }
}

mod sealed {
    pub trait Sealed {}
}

pub(crate) use sealed::Sealed;

/// A typed handle: the number of a slot and the claim what kind of object it names. The kernel checks the claim at each
/// use (`WrongType`), so a wrong handle is an error, never a danger. Dropping a handle does nothing: capabilities
/// are removed with [`CapTable::delete`](crate::CapTable::delete).
pub trait Capability: Copy + Sealed {
    /// The kind of object.
    const TYPE: ObjectType;

    /// The handle for a slot that holds (or will hold) a capability of this kind.
    fn at(slot: Slot) -> Self;

    /// Its slot.
    fn slot(self) -> Slot;
}

macro_rules! capability {
    ($(#[$doc:meta])* $name:ident, $kind:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name($crate::Slot);

        impl $crate::slot::Sealed for $name {}

        impl $crate::Capability for $name {
            const TYPE: moira_abi::ObjectType = moira_abi::ObjectType::$kind;

            #[inline(always)]
            fn at(slot: $crate::Slot) -> Self {
                $name(slot)
            }

            #[inline(always)]
            fn slot(self) -> $crate::Slot {
                self.0
            }
        }

        impl $name {
            /// The handle for a slot, in constants.
            #[must_use]
            pub const fn new(slot: $crate::Slot) -> Self {
                $name(slot)
            }
        }
    };
}

pub(crate) use capability;

/// Capabilities of one kind in consecutive slots, as `retype` makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps<T> {
    first: Slot,
    count: u32,
    kind: PhantomData<T>,
}

impl<T: Capability> Caps<T> {
    /// `count` capabilities from `first` on.
    #[must_use]
    pub const fn new(first: Slot, count: u32) -> Caps<T> {
        Caps { first, count, kind: PhantomData }
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.count
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Number `index`, if there are so many.
    #[must_use]
    pub fn get(&self, index: u32) -> Option<T> {
        (index < self.count).then(|| T::at(self.first.plus(index)))
    }

    /// All of them, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<T> {
        let first = self.first;
        (0..self.count).map(move |index| T::at(first.plus(index)))
    }
}
