//! Sizes as people write them, in manifests, on command lines and in the arguments of tasks.

/// A number of bytes: `65536`, `64KiB` or `64K`, and so on with M and G; a space may stand before the unit. None: it is no such text, or
/// more than 64 bits hold.
#[must_use]
pub fn bytes(text: &str) -> Option<u64> {
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let digits = text.strip_suffix(unit)?;
    let shift = match unit.trim_start() {
        "" if unit.is_empty() => 0,
        "K" | "KiB" => 10,
        "M" | "MiB" => 20,
        "G" | "GiB" => 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, value) in [("0", 0), ("512", 512), ("64K", 65_536), ("64 MiB", 64 << 20), ("2G", 2 << 30)] {
            assert_eq!(bytes(text), Some(value), "{text}");
        }
        for text in ["", "M", "-1", "+1", "1.5M", "64MB", "64 ", " 64", "99999999999G", "0x10"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
