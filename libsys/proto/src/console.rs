//! The console service: output, input, escape to another console. `docs/abi/console.md`.
//!
//! | label | request | answer |
//! | --- | --- | --- |
//! | [`WRITE`] | buffer: bytes | W0 bytes taken |
//! | [`READ`] | W0 most bytes wanted | buffer: bytes (none: nothing typed yet) |
//! | [`NOTIFY`] | one capability: a `Notification` with SIGNAL, signalled when input comes | |
//!
//! The badge of the client's capability says which console it is: the low 16 bits of the badge are its number, and its name comes from the manifest.

/// Write the message buffer's bytes.
pub const WRITE: u32 = 1;
/// Read what was typed, without waiting.
pub const READ: u32 = 2;
/// Register for input.
pub const NOTIFY: u32 = 3;
