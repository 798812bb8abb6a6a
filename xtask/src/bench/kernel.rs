//! What is measured of the kernel itself: its size, and how long it holds its lock and keeps interrupts out.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Figure, follow};
use crate::build::{self, Images};
use crate::console::End;
use crate::emulator::Machine;
use crate::paths;
use crate::progress;

/// What a checking kernel is run under: the system, its command line.
const RUNS: [(&str, &str); 2] = [("conformance", "clock=counted"), ("fuzz", "seed=1 count=200000")];
/// The figure of each word that a checking kernel prints.
pub const CHECKED: [(&str, &str); 2] = [("hold", "kernel.structural_hold"), ("stretch", "kernel.longest_stretch")];
/// Names of the sizes.
pub const SIZES: [&str; 2] = ["kernel.lines", "kernel.text_bytes"];

fn figure(name: &str, unit: &str, value: f64, samples: u64) -> Figure {
    Figure { name: name.into(), unit: unit.into(), minimum: value, median: value, maximum: value, samples }
}

/// Lines of the kernel's code, and bytes of its image that are not written.
pub fn sizes(images: &Images) -> Result<Vec<Figure>> {
    let (mut lines, mut files) = (0, 0);
    for folder in ["kernel/src", "kernel/core/src"] {
        count_folder(&paths::root().join(folder), &mut lines, &mut files)?;
    }
    let image = fs::read(&images.kernel)?;
    let (bytes, sections) = read_only(&image).context("the kernel is no ELF64 file")?;
    Ok(vec![figure(SIZES[0], "lines", lines as f64, files), figure(SIZES[1], "bytes", bytes as f64, sections)])
}

fn count_folder(folder: &Path, lines: &mut usize, files: &mut u64) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            count_folder(&path, lines, files)?;
        } else if path.extension().is_some_and(|end| end == "rs" || end == "s")
            && path.file_stem() != Some("tests".as_ref())
        {
            *lines += code_lines(&fs::read_to_string(&path)?, path.extension() == Some("s".as_ref()));
            *files += 1;
        }
    }
    Ok(())
}

/// Lines with something on them, without comments and without what is for tests only.
fn code_lines(text: &str, assembly: bool) -> usize {
    let bare = if assembly { without_hash_comments(text) } else { without_tests(&without_comments(text)) };
    bare.lines().filter(|line| !line.trim().is_empty()).count()
}

fn without_hash_comments(text: &str) -> String {
    text.lines().map(|line| line.split('#').next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Rust without comments; what strings hold is left out as well, so that braces can be counted.
fn without_comments(text: &str) -> String {
    let mut bare = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(next) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if next == '"' {
            bare.push_str("\"\"");
            string_length(rest)
        } else if next == '\'' && char_length(rest) > 0 {
            bare.push('0');
            char_length(rest)
        } else {
            bare.push(next);
            next.len_utf8()
        };
        // What is left out keeps its line ends, and with them the lines' count.
        if !rest.starts_with(next) || matches!(next, '"') || rest.starts_with("/*") {
            bare.extend(rest[..length].chars().filter(|&char| char == '\n'));
        }
        rest = &rest[length..];
    }
    bare
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, char) in text.char_indices().skip(1) {
        match char {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    text.len()
}

/// Length of a character literal; 0 if this is a lifetime.
fn char_length(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match chars.next() {
        Some((_, '\\')) => text[2..].find('\'').map_or(0, |end| if end == 0 { 4 } else { end + 3 }),
        Some(_) => chars.next().filter(|(_, char)| *char == '\'').map_or(0, |(at, _)| at + 1),
        None => 0,
    }
}

/// Without the items behind `#[cfg(test)]`.
fn without_tests(text: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let (mut kept, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(MARK) {
        kept.push_str(&rest[..at]);
        let item = &rest[at + MARK.len()..];
        let mut depth = 0u32;
        let end = item.char_indices().find_map(|(at, char)| {
            match char {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            (depth == 0 && matches!(char, '}' | ';')).then_some(at + 1)
        });
        rest = &item[end.unwrap_or(item.len())..];
    }
    kept + rest
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    Some(bytes.get(at..at.checked_add(N)?)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

/// Bytes of the sections that are loaded and not written, and how many there are.
fn read_only(image: &[u8]) -> Option<(u64, u64)> {
    const ALLOCATED: u64 = 2;
    const EXECUTED: u64 = 4;
    const BITS: u64 = 1;
    if image.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let (table, size, count) = (number::<8>(image, 40)?, number::<2>(image, 58)?, number::<2>(image, 60)?);
    // By name, too: the linker may call constants writable that the kernel maps read-only.
    let names = usize::try_from(table + number::<2>(image, 62)? * size).ok()?;
    let names = usize::try_from(number::<8>(image, names + 24)?).ok()?;
    let (mut bytes, mut sections) = (0, 0);
    for index in 0..count {
        let at = usize::try_from(table + index * size).ok()?;
        let (kind, flags) = (number::<4>(image, at + 4)?, number::<8>(image, at + 8)?);
        let name = names.checked_add(number::<4>(image, at)? as usize)?;
        let is_constants = image.get(name..).is_some_and(|name| name.starts_with(b".rodata"));
        if kind == BITS && flags & ALLOCATED != 0 && (flags & EXECUTED != 0 || is_constants) {
            bytes += number::<8>(image, at + 32)?;
            sections += 1;
        }
    }
    (sections > 0).then_some((bytes, sections))
}

/// Runs the conformance suite and the fuzzer on a kernel that looks at itself: its longest hold of the structural lock and its longest
/// stretch with interrupts off.
pub fn checked(images: &Images, kernel: &Path, machine: &Machine) -> Result<Vec<Figure>> {
    let mut longest: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for (name, cmdline) in RUNS {
        let mut system = build::system(name, images, &BTreeMap::new())?;
        system.kernel = kernel.to_path_buf();
        let folder = paths::target().join("bench").join(machine.label()).join(format!("{name}-checked"));
        let step = progress::step(format!("{name}, checked, in {}", machine.label()));
        let watch = follow(machine, &system, cmdline, &folder)?;
        step.finish();
        let log = folder.join("serial.log");
        fs::write(&log, watch.text())?;
        if !matches!(watch.end, Some(End::Ok)) {
            bail!("{name} did not end as it should; the log is {}", log.display());
        }
        for (word, _) in CHECKED {
            let (most, count) =
                judge(watch.text(), word).with_context(|| format!("no `checks: {word}` in {}", log.display()))?;
            let all = longest.entry(word).or_default();
            *all = (all.0.max(most), all.1 + count);
        }
    }
    Ok(CHECKED
        .iter()
        .map(|(word, name)| {
            let (most, count) = longest.get(word).copied().unwrap_or_default();
            figure(name, "instructions", most as f64, count)
        })
        .collect())
}

/// The greatest number of a word in a checking kernel's report, and how many were looked at.
fn judge(log: &str, word: &str) -> Option<(u64, u64)> {
    let lines = || {
        log.lines().filter_map(|line| Some(line.split_once("checks: ")?.1.trim_end().split(' ').collect::<Vec<_>>()))
    };
    let most = lines()
        .filter(|fields| fields.len() == 3 && fields[0] == word)
        .filter_map(|fields| fields[2].parse().ok())
        .max()?;
    let plural = if word == "stretch" { "stretchs" } else { "holds" };
    let count = lines().find(|fields| fields.len() == 2 && fields[0] == plural)?[1].parse().ok()?;
    Some((most, count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_tests_and_empty_lines_do_not_count() {
        let text = "//! About.\n\n/* of\n two */\nfn a<'a>() {\n    b('\\'', \"// no { comment\"); // yes\n}\n#[cfg(test)]\nmod tests {\n    fn c() { let d = '}'; }\n}\nfn e() {}\n";
        assert_eq!(code_lines(text, false), 4);
        assert_eq!(code_lines("# about\n    nop # does nothing\n\n", true), 1);
    }

    #[test]
    fn what_a_checking_kernel_prints_is_read() {
        let log = "[ 1.0] checks: hold 16 900\n[ 1.0] checks: hold 40 1200\n[ 1.0] checks: holds 77\nchecks: stretch 1 5\nchecks: stretchs 6\n";
        assert_eq!(judge(log, "hold"), Some((1200, 77)));
        assert_eq!(judge(log, "stretch"), Some((5, 6)));
        assert_eq!(judge("nothing", "hold"), None);
    }

    #[test]
    fn code_and_constants_count_and_data_does_not() {
        const NAMES: &[u8] = b"\0.text\0.rodata\0.data\0";
        let mut image = vec![0u8; 64 + 4 * 64];
        let names = image.len();
        image.extend(NAMES);
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (image[40], image[58], image[60], image[62]) = (64, 64, 4, 3);
        for (index, flags, size) in [(0, 6, 10), (1, 3, 5), (2, 3, 100)] {
            let at = 64 + index * 64;
            (image[at], image[at + 4], image[at + 8], image[at + 32]) = ([1, 7, 15][index], 1, flags, size);
        }
        image[64 + 3 * 64 + 24..][..2].copy_from_slice(&(names as u16).to_le_bytes());
        assert_eq!(read_only(&image), Some((15, 2)));
        assert_eq!(read_only(b"no"), None);
    }
}
