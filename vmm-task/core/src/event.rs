//! Events on their way into the guest, in the state page's format ([`moira_abi::vcpu::event`]).

use moira_abi::vcpu::event;

/// Exception vectors (SDM 6.3.1).
pub mod vector {
    #![allow(missing_docs)]
    pub const DEBUG: u8 = 1;
    pub const UNDEFINED: u8 = 6;
    pub const DOUBLE_FAULT: u8 = 8;
    pub const PROTECTION: u8 = 13;
    pub const PAGE_FAULT: u8 = 14;
    pub const ALIGNMENT: u8 = 17;
}

/// An event, packed as the state page wants it. 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event(pub u64);

impl Event {
    /// No event.
    pub const NONE: Event = Event(0);

    /// A hardware exception, with its error code where it has one.
    #[must_use]
    pub const fn exception(vector: u8, code: Option<u32>) -> Event {
        let base = event::VALID | event::EXCEPTION | vector as u64;
        match code {
            Some(code) => Event(base | event::HAS_CODE | (code as u64) << 32),
            None => Event(base),
        }
    }

    /// An external interrupt.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Event {
        Event(event::VALID | event::INTERRUPT | vector as u64)
    }

    /// An NMI.
    #[must_use]
    pub const fn nmi() -> Event {
        Event(event::VALID | event::NMI | 2)
    }

    /// What the processor handed back; anything invalid is none.
    #[must_use]
    #[inline(always)]
    pub const fn from_page(word: u64) -> Event {
        if word & event::VALID == 0 { Event::NONE } else { Event(word) }
    }

    /// Whether there is none.
    #[must_use]
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }

    /// Whether it is an NMI.
    #[must_use]
    pub const fn is_nmi(self) -> bool {
        self.0 & (event::VALID | event::TYPE) == event::VALID | event::NMI
    }

    /// The vector.
    #[must_use]
    pub const fn vector(self) -> u8 {
        self.0 as u8
    }

    const fn is_exception(self) -> bool {
        self.0 & (event::VALID | event::TYPE) == event::VALID | event::EXCEPTION
    }

    /// SDM table 6-4.
    const fn class(self) -> Class {
        if !self.is_exception() {
            return Class::Benign;
        }
        match self.vector() {
            0 | 10..=13 | 21 => Class::Contributory,
            14 | 20 => Class::PageFault,
            vector::DOUBLE_FAULT => Class::DoubleFault,
            _ => Class::Benign,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

/// What becomes of an exception that comes while another event is being delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Both {
    /// This one goes first; the other one waits for its turn (none: it is lost, as on the processor).
    First(Event, Event),
    /// The machine shuts down.
    TripleFault,
}

/// Combines an event in delivery with a new exception (SDM table 6-5).
///
/// An interrupt or NMI in delivery was taken from its controller already, so it is kept for afterwards. A benign
/// exception that was interrupted by another one is not: its instruction will raise it again.
#[must_use]
pub const fn combine(first: Event, second: Event) -> Both {
    if first.is_none() {
        return Both::First(second, Event::NONE);
    }
    let double = Event::exception(vector::DOUBLE_FAULT, Some(0));
    match (first.class(), second.class()) {
        (Class::DoubleFault, Class::Contributory | Class::PageFault) => Both::TripleFault,
        (Class::Contributory, Class::Contributory) | (Class::PageFault, Class::Contributory | Class::PageFault) => {
            Both::First(double, Event::NONE)
        }
        _ if first.is_exception() => Both::First(second, Event::NONE),
        _ => Both::First(second, first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GP: Event = Event::exception(vector::PROTECTION, Some(0));
    const PF: Event = Event::exception(vector::PAGE_FAULT, Some(2));
    const DF: Event = Event::exception(vector::DOUBLE_FAULT, Some(0));
    const DB: Event = Event::exception(vector::DEBUG, None);

    #[test]
    fn follows_the_table_of_double_faults() {
        let alone = |event| Both::First(event, Event::NONE);
        assert_eq!(combine(Event::NONE, GP), alone(GP));
        assert_eq!(combine(GP, GP), alone(DF));
        assert_eq!(combine(GP, PF), alone(PF));
        assert_eq!(combine(PF, PF), alone(DF));
        assert_eq!(combine(PF, GP), alone(DF));
        assert_eq!(combine(DF, PF), Both::TripleFault);
        assert_eq!(combine(DF, DB), alone(DB));
        assert_eq!(combine(DB, PF), alone(PF));
    }

    #[test]
    fn interrupts_in_delivery_are_never_lost() {
        for event in [Event::interrupt(0x41), Event::nmi()] {
            assert_eq!(combine(event, GP), Both::First(GP, event));
        }
    }

    #[test]
    fn packs_as_the_page_wants_it() {
        assert_eq!(PF.0, 0x2_8000_0b0e);
        assert_eq!(Event::nmi().0, 0x8000_0202);
        assert!(Event::from_page(0x0000_0b0e).is_none());
    }
}
