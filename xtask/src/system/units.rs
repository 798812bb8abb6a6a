//! Sizes and times as people write them: `"64KiB"`, `"500us"`.

use serde::de::{self, Deserialize, Deserializer, Visitor};
use std::fmt;

/// A number of bytes. Written as `"4KiB"`, `"1MiB"`, `"2GiB"` or a plain integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Size(pub u64);

/// A length of time in nanoseconds. Written as `"250ns"`, `"100us"`, `"2ms"` or `"1s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Time(pub u64);

const SIZES: &[(&str, u64)] = &[("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)];
const TIMES: &[(&str, u64)] = &[("ns", 1), ("us", 1_000), ("ms", 1_000_000), ("s", 1_000_000_000)];

/// Splits `text` into a whole number and one of `units`; the product, or none if either is wrong or too big.
fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.checked_mul(*factor)
}

impl Size {
    /// Reads `"64KiB"`, `"64K"` and the like; also a bare number of bytes.
    pub fn parse(text: &str) -> Option<Size> {
        moira_proto::units::bytes(text).map(Size)
    }
}

impl Time {
    /// Reads `"2ms"` and the like; a bare number has no meaning here.
    pub fn parse(text: &str) -> Option<Time> {
        parse(text, TIMES).map(Time)
    }
}

/// The largest unit that divides `value`, so that what was written comes back.
fn show(value: u64, units: &[(&str, u64)], none: &str) -> String {
    match units.iter().rev().find(|(_, factor)| value != 0 && value.is_multiple_of(*factor)) {
        Some((name, factor)) => format!("{} {name}", value / factor),
        None => format!("{value} {none}"),
    }
}

impl fmt::Display for Size {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&show(self.0, SIZES, "bytes"))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&show(self.0, TIMES, "ns"))
    }
}

struct SizeVisitor;
struct TimeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a size such as \"64KiB\", \"1MiB\" or a number of bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Size, E> {
        Size::parse(text).ok_or_else(|| E::custom(format!("bad size `{text}`")))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Size, E> {
        u64::try_from(bytes).map(Size).map_err(|_| E::custom(format!("bad size `{bytes}`")))
    }
}

impl Visitor<'_> for TimeVisitor {
    type Value = Time;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a time such as \"250ns\", \"100us\", \"2ms\" or \"1s\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
        Time::parse(text).ok_or_else(|| E::custom(format!("bad time `{text}`")))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Size, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Time, D::Error> {
        deserializer.deserialize_any(TimeVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_people_write() {
        assert_eq!(Size::parse("64KiB"), Some(Size(65536)));
        assert_eq!(Size::parse("1 MiB"), Some(Size(1 << 20)));
        assert_eq!(Size::parse("512M"), Some(Size(512 << 20)));
        assert_eq!(Size::parse("4096"), Some(Size(4096)));
        assert_eq!(Time::parse("2ms"), Some(Time(2_000_000)));
        assert_eq!(Time::parse("1s"), Some(Time(1_000_000_000)));
    }

    #[test]
    fn refuses_the_rest() {
        for text in ["", "KiB", "1KB", "-1KiB", "1.5MiB", "99999999999GiB", "1 kib"] {
            assert_eq!(Size::parse(text), None, "{text}");
        }
        for text in ["", "5", "ms", "5min", "-2ms", "99999999999999s"] {
            assert_eq!(Time::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn shown_values_read_back(value in any::<u64>()) {
            if let Some(text) = Size(value).to_string().strip_suffix(" bytes") {
                prop_assert_eq!(Size::parse(text), Some(Size(value)));
            } else {
                prop_assert_eq!(Size::parse(&Size(value).to_string()), Some(Size(value)));
            }
            prop_assert_eq!(Time::parse(&Time(value).to_string()), Some(Time(value)));
        }

        #[test]
        fn any_text_is_judged_without_a_panic(text in ".*") {
            let _ = (Size::parse(&text), Time::parse(&text));
        }
    }
}
