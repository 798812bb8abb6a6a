//! Object types, rights, sizes.

/// What a capability can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ObjectType {
    /// A power-of-two block of physical memory.
    Untyped = 1,
    /// A page of memory: 4 KiB, 2 MiB or 1 GiB.
    Frame = 2,
    /// A translation: task, guest or device.
    AddressSpace = 3,
    /// A table of capabilities.
    CapTable = 4,
    /// A thread.
    Thread = 5,
    /// An account of CPU time.
    SchedContext = 6,
    /// Where one server thread takes calls.
    Endpoint = 7,
    /// A word of bits.
    Notification = 8,
    /// One interrupt source.
    Interrupt = 9,
    /// A range of I/O ports.
    IoPorts = 10,
    /// A virtual processor.
    Vcpu = 11,
    /// Windows of one cycle for one CPU.
    Plan = 12,
    /// A processor.
    Cpu = 13,
    /// The machine: processors to start, interrupts and ports to name.
    Platform = 14,
}

impl ObjectType {
    /// The type with this number.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<ObjectType> {
        use ObjectType::*;
        Some(match code {
            1 => Untyped,
            2 => Frame,
            3 => AddressSpace,
            4 => CapTable,
            5 => Thread,
            6 => SchedContext,
            7 => Endpoint,
            8 => Notification,
            9 => Interrupt,
            10 => IoPorts,
            11 => Vcpu,
            12 => Plan,
            13 => Cpu,
            14 => Platform,
            _ => return None,
        })
    }

    /// log2 of the bytes that `retype` takes for one object, given the size argument of the call (only `Untyped`,
    /// `Frame`, `CapTable` and `Plan` look at it). `None`: not made by `retype`, or size out of range.
    ///
    /// `Untyped` and `Frame` take their memory from the upper end of the untyped, all others from its lower end; an
    /// `Untyped` also takes a 256-byte control block from the lower end.
    #[must_use]
    pub const fn size_bits(self, size: u8) -> Option<u8> {
        Some(match self {
            ObjectType::Untyped if size >= 12 && size < 48 => size,
            ObjectType::Frame if size == 12 || size == 21 || size == 30 => size,
            ObjectType::CapTable if size >= 7 && size <= 21 => size,
            ObjectType::Plan if size >= 8 && size <= 20 => size,
            ObjectType::AddressSpace => 8,
            ObjectType::Thread => 10,
            ObjectType::SchedContext => 9,
            ObjectType::Endpoint => 6,
            ObjectType::Notification => 7,
            ObjectType::Interrupt => 7,
            ObjectType::Vcpu => 15,
            _ => return None,
        })
    }
}

/// Usable slots of a `CapTable` of `2^size_bits` bytes: the first two slots' room is its header, and indices 0 and 1
/// name nothing.
#[must_use]
pub const fn cap_table_slots(size_bits: u8) -> u32 {
    (1u32 << (size_bits - 5)) - 2
}

/// The size of a `Frame`, as in the rights word of its capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameSize {
    /// 4 KiB.
    Small = 0,
    /// 2 MiB.
    Large = 1,
    /// 1 GiB.
    Huge = 2,
}

impl FrameSize {
    /// log2 of the bytes.
    #[must_use]
    pub const fn bits(self) -> u8 {
        12 + 9 * self as u8
    }

    /// Bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.bits()
    }

    /// From log2 of the bytes.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<FrameSize> {
        Some(match bits {
            12 => FrameSize::Small,
            21 => FrameSize::Large,
            30 => FrameSize::Huge,
            _ => return None,
        })
    }
}

/// Rights: one byte, its bits named by object type. A derived capability never has a bit that its parent lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rights(pub u8);

impl Rights {
    /// All rights of any type.
    pub const ALL: Rights = Rights(0xff);
    /// `Frame`: may be mapped for reading.
    pub const READ: Rights = Rights(1);
    /// `Frame`: may be mapped for writing.
    pub const WRITE: Rights = Rights(2);
    /// `Frame`: may be mapped for execution (never together with writing in a task space).
    pub const EXECUTE: Rights = Rights(4);
    /// `Endpoint`: may call.
    pub const CALL: Rights = Rights(1);
    /// `Endpoint`: may bind the server.
    pub const SERVE: Rights = Rights(2);
    /// `Notification`: may signal.
    pub const SIGNAL: Rights = Rights(1);
    /// `Notification`: may wait, poll, bind.
    pub const WAIT: Rights = Rights(2);
    /// `Cpu`: may install plans and register the scheduler.
    pub const PLAN: Rights = Rights(1);
    /// `Cpu`: may dispatch.
    pub const DISPATCH: Rights = Rights(2);
    /// All other types: may be used at all.
    pub const USE: Rights = Rights(1);

    /// Whether all of `other` is here.
    #[must_use]
    pub const fn contains(self, other: Rights) -> bool {
        self.0 & other.0 == other.0
    }

    /// Rights in both.
    #[must_use]
    pub const fn and(self, other: Rights) -> Rights {
        Rights(self.0 & other.0)
    }

    /// Rights in either.
    #[must_use]
    pub const fn or(self, other: Rights) -> Rights {
        Rights(self.0 | other.0)
    }
}

/// Kinds of address space, an argument of `retype`.
pub mod space_kind {
    /// A task's page table.
    pub const TASK: u8 = 0;
    /// A guest's nested page table: EPT or NPT.
    pub const GUEST: u8 = 1;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for code in 0..=255 {
            if let Some(kind) = ObjectType::from_code(code) {
                assert_eq!(kind as u8, code);
            }
        }
        assert_eq!(cap_table_slots(12), 126);
        assert_eq!(FrameSize::from_bits(21), Some(FrameSize::Large));
    }
}
