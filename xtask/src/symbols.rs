//! Turns the addresses of a kernel's crash record into functions and lines.

use std::path::Path;

use addr2line::Loader;

/// The largest distance from a symbol at which an address is still said to belong to it.
const MOST: u64 = 0x4000;

/// Reads the debug information of one ELF, when first asked.
pub struct Symbols<'a> {
    elf: &'a Path,
    loader: Option<Option<Loader>>,
}

impl<'a> Symbols<'a> {
    /// Symbols of `elf`, which is opened when the first address is looked up.
    pub fn of(elf: &'a Path) -> Self {
        Self { elf, loader: None }
    }

    /// What stands at the address in `line`, if the line is one of a crash record: `  #N 0xffffffff8xxxxxxx`.
    pub fn of_line(&mut self, line: &str) -> Option<String> {
        // The last address of all is no code, and the reader of debug information counts one beyond what it is asked.
        self.of_address(place_in(line).filter(|address| *address != u64::MAX)?)
    }

    fn of_address(&mut self, address: u64) -> Option<String> {
        let loader = self.loader.get_or_insert_with(|| Loader::new(self.elf).ok()).as_ref()?;
        let mut parts = Vec::new();
        let mut frames = loader.find_frames(address).ok()?;
        while let Ok(Some(frame)) = frames.next() {
            let name = frame.function.and_then(|name| name.demangle().ok().map(|name| name.into_owned()));
            let place = frame.location.and_then(|place| Some(format!("{}:{}", place.file?, place.line?)));
            match (name, place) {
                (Some(name), Some(place)) => parts.push(format!("{name} at {place}")),
                (Some(name), None) => parts.push(name),
                (None, Some(place)) => parts.push(place),
                (None, None) => {}
            }
        }
        if parts.is_empty() {
            // Assembly has no debug information, but a symbol not far before.
            let symbol = loader.find_symbol_info(address)?;
            let offset = address.checked_sub(symbol.address()).filter(|offset| *offset < MOST)?;
            parts.push(format!("{}+{offset:#x}", symbol.name()));
        }
        Some(parts.join(", inlined into "))
    }
}

/// The code address of a crash-record line, which has blanks, `#`, a number, and an address. Number 0 is where the
/// processor stood. All others are return addresses: the call that did not return is the instruction before.
fn place_in(line: &str) -> Option<u64> {
    let rest = line.trim_start().strip_prefix('#')?;
    let (number, rest) = rest.split_once(' ')?;
    let number = number.parse::<u32>().ok()?;
    let digits = rest.trim_start().strip_prefix("0x")?;
    let end = digits.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digits.len());
    let address = u64::from_str_radix(&digits[..end], 16).ok()?;
    if number == 0 { Some(address) } else { address.checked_sub(1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_record_lines_carry_an_address() {
        assert_eq!(place_in("  #0 0xffffffff80101234\r"), Some(0xffff_ffff_8010_1234));
        assert_eq!(place_in("#12 0x10"), Some(0xf));
        assert_eq!(place_in("#1 0x0"), None);
        for other in ["  #x 0x10", "0xffffffff80101234", "  #0 zero", "# 0x10", "  #0 0xfffffffffffffffff"] {
            assert_eq!(place_in(other), None, "{other}");
        }
    }

    /// Where the first mapping of this program starts.
    fn load_address() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let own = std::env::current_exe().unwrap().to_string_lossy().into_owned();
        let line = maps.lines().find(|line| line.ends_with(&own)).unwrap();
        u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap()
    }

    #[test]
    fn an_own_function_is_found_by_its_address() {
        let own = std::env::current_exe().unwrap();
        let mut symbols = Symbols::of(&own);
        let address = load_address as fn() -> u64 as usize as u64 - load_address();
        let line = format!("  #0 {address:#x}");
        let found = symbols.of_line(&line).unwrap();
        assert!(found.contains("load_address") && found.contains("symbols.rs:"), "{found}");
        assert_eq!(symbols.of_line("moira: hello"), None);
        assert_eq!(symbols.of_line("  #0 0xffffffffffffffff"), None);
    }
}
