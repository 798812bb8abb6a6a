//! A value of AML, whoever computed it: what two interpreters must agree on.

use alloc::{format, string::String, vec::Vec};
use core::fmt;

/// Deepest package that is looked into.
pub const MOST_DEPTH: usize = 8;

/// A value (ACPI 6.5, 19.3.5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Integer(u64),
    /// Text; also a name.
    String(String),
    /// Bytes.
    Buffer(Vec<u8>),
    /// Values.
    Package(Vec<Value>),
    /// Something that no question here is about.
    Other,
}

impl Value {
    /// The number.
    #[must_use]
    pub fn integer(&self) -> Option<u64> {
        match self {
            Value::Integer(value) => Some(*value),
            _ => None,
        }
    }

    /// The elements.
    #[must_use]
    pub fn package(&self) -> Option<&[Value]> {
        match self {
            Value::Package(values) => Some(values),
            _ => None,
        }
    }

    /// A hardware id: text, or a compressed EISA id (ACPI 6.5, 19.3.4).
    #[must_use]
    pub fn hardware_id(&self) -> Option<String> {
        match self {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => {
                let swapped = u32::try_from(*number).ok()?.swap_bytes();
                let letter = |shift: u32| char::from(b'@' + (swapped >> shift & 31) as u8);
                let vendor = [letter(26), letter(21), letter(16)];
                let vendor = vendor.iter().collect::<String>();
                Some(format!("{vendor}{:04X}", swapped & 0xffff))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Integer(value) => write!(f, "{value:#x}"),
            Value::String(text) => write!(f, "{text:?}"),
            Value::Buffer(bytes) => write!(f, "{bytes:02x?}"),
            Value::Package(values) => f.debug_list().entries(values.iter().map(|value| format!("{value}"))).finish(),
            Value::Other => f.write_str("something else"),
        }
    }
}
