//! Why an invocation was refused. One meaning each; `docs/abi/errors.md` lists where each comes from.

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// The answer's low eight bits when an invocation is refused. Zero means success.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Error { $($(#[$doc])* $name = $value,)* }

        impl Error {
            /// Every error, in the order of its number.
            pub const ALL: &'static [Error] = &[$(Error::$name,)*];

            /// The error with this number, if there is one.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Error> {
                match code { $($value => Some(Error::$name),)* _ => None }
            }
        }
    };
}

errors! {
    /// The slot holds no capability (or was being written at that moment).
    Empty = 1,
    /// The slot index lies outside the capability table.
    NoSlot = 2,
    /// The capability names an object of another type than the method needs.
    WrongType = 3,
    /// The capability lacks a right that the method needs.
    NoRight = 4,
    /// No such method.
    NoMethod = 5,
    /// An argument is outside its range or not aligned as documented.
    BadArgument = 6,
    /// The destination slot is in use.
    SlotInUse = 7,
    /// The untyped memory (or the space's donated memory) has no room for what was asked.
    NoMemory = 8,
    /// The untyped is being revoked or was not zeroed yet: call `revoke` until it succeeds.
    Revoking = 9,
    /// Progress was made and stored; the same call goes on where this one stopped.
    Again = 10,
    /// Another CPU still uses what was removed; come back.
    Retiring = 11,
    /// The object is active on another CPU.
    WrongCpu = 12,
    /// Calls go to a strictly higher level only.
    WrongLevel = 13,
    /// The other side of this call is dead or was never bound.
    PeerGone = 14,
    /// The caller to be answered is dead; the reply was dropped.
    CallerGone = 15,
    /// There is no caller to answer.
    NoCaller = 16,
    /// The object is active; the method needs an inactive one.
    Active = 17,
    /// The object is inactive or incompletely configured.
    Inactive = 18,
    /// Something is already bound, mapped or registered there.
    InUse = 19,
    /// Nothing is mapped or bound there.
    NotMapped = 20,
    /// The capability cannot be copied: an `Untyped` that something was made of, or that is lent already.
    NotCopyable = 21,
    /// A dispatch token is older than the CPU's sequence.
    Stale = 22,
    /// The receiver has no empty slots for the capabilities of the message.
    PeerSlots = 23,
    /// The hardware lacks what the method needs (for example no VT-x and no SVM).
    NoHardware = 24,
    /// The derivation depth or another fixed bound of the object is reached.
    TooDeep = 25,
    /// The deadline of a `receive` or `wait` passed.
    Timeout = 26,
    /// A `receive` ended because the bound notification has bits; word 0 holds them.
    Notified = 27,
    /// Windows overlap, are out of order, or lie outside the cycle.
    BadPlan = 28,
}
