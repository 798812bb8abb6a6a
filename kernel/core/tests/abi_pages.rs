//! The pages of `docs/abi/` against the code: every method has exactly one entry with its number and a way to its code, every error its
//! row, and what a page's code can answer stands on that page. So a reader finds the code for an entry in one step, and the reverse.

use moira_abi::{Error, Method};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The pages, by name.
fn pages() -> BTreeMap<String, String> {
    fs::read_dir(root().join("docs/abi"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".md"))
        .map(|name| (name.clone(), read(&format!("docs/abi/{name}"))))
        .collect()
}

/// An entry: page, method, number, text up to the next heading.
fn entries() -> Vec<(String, String, u8, String)> {
    let mut found = Vec::new();
    for (page, text) in pages() {
        for section in text.split("\n## ").skip(1) {
            let (heading, body) = section.split_once('\n').unwrap_or((section, ""));
            // `name (`Method`, number)`
            let Some((_, rest)) = heading.split_once("(`") else { continue };
            let Some((method, number)) = rest.strip_suffix(')').and_then(|rest| rest.split_once("`, ")) else {
                continue;
            };
            let number = number.parse().unwrap_or_else(|_| panic!("{page}: no number in `{heading}`"));
            found.push((page.clone(), method.into(), number, body.into()));
        }
    }
    found
}

/// What stands in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The places that a text names as `path::function`.
fn places(text: &str) -> Vec<(String, String)> {
    let joined = text.split_whitespace().collect::<Vec<_>>().join(" ");
    quoted(&joined)
        .filter_map(|word| word.split_once(".rs::"))
        .map(|(path, name)| (format!("{path}.rs"), name.to_string()))
        .collect()
}

#[test]
fn every_method_has_one_entry_with_its_number() {
    let entries = entries();
    for method in Method::ALL {
        let name = format!("{method:?}");
        let own: Vec<_> = entries.iter().filter(|(_, entry, ..)| *entry == name).collect();
        assert_eq!(own.len(), 1, "{name} has {} entries in docs/abi", own.len());
        assert_eq!(own[0].2, *method as u8, "number of {name} in {}", own[0].0);
    }
    assert_eq!(entries.len(), Method::ALL.len(), "an entry in docs/abi is of no method");
}

#[test]
fn every_entry_leads_to_its_function() {
    for (page, method, _, body) in entries() {
        let places = places(&body);
        assert!(!places.is_empty(), "{page}: {method} names no `path.rs::function`");
        for (path, function) in places {
            let code = read(&path);
            let name = function.rsplit("::").next().unwrap();
            let there = ["fn ", "struct ", "mod ", "const "]
                .iter()
                .any(|kind| [" ", "<", "(", ":"].iter().any(|end| code.contains(&format!("{kind}{name}{end}"))));
            assert!(there, "{page}: {method} leads to `{path}::{function}`, which is not there");
        }
    }
}

#[test]
fn what_an_entry_calls_an_error_is_one() {
    let names: Vec<String> = Error::ALL.iter().map(|error| format!("{error:?}")).collect();
    for (page, method, _, body) in entries() {
        // Tables of errors: the first column.
        let rows = body.split("| error | when |").skip(1).flat_map(|table| {
            table
                .lines()
                .skip(2)
                .take_while(|line| line.starts_with('|'))
                .map(|line| line.split('|').nth(1).unwrap_or(""))
        });
        for word in rows.flat_map(quoted) {
            assert!(names.iter().any(|name| name == word), "{page}: {method} answers `{word}`, which is no error");
        }
    }
}

#[test]
fn every_error_has_its_row_and_number() {
    let page = read("docs/abi/errors.md");
    for error in Error::ALL {
        let row = format!("| `{error:?}` | {} |", *error as u8);
        assert_eq!(page.matches(&row).count(), 1, "docs/abi/errors.md has no row `{row}`");
    }
    assert_eq!(page.lines().filter(|line| line.starts_with("| `")).count(), Error::ALL.len(), "a row of no error");
}

/// The errors that a file of the kernel makes stand on the page that the file names.
#[test]
fn what_an_object_answers_stands_on_its_page() {
    let common = read("docs/abi/syscall.md");
    let mut seen = 0;
    for entry in fs::read_dir(root().join("kernel/src/object")).unwrap() {
        let path = entry.unwrap().path();
        let code = fs::read_to_string(&path).unwrap();
        let Some(page) = code.split("ABI: `").nth(1).and_then(|rest| rest.split('`').next()) else {
            assert!(path.ends_with("mod.rs"), "{} names no page", path.display());
            continue;
        };
        let text = read(page);
        // The way back: the page names the file.
        let file = format!("kernel/src/object/{}", path.file_name().unwrap().to_string_lossy());
        assert!(text.contains(&file), "{page} does not name {file}");
        for name in code.split("Error::").skip(1).map(|rest| rest.split(|c: char| !c.is_alphanumeric()).next().unwrap())
        {
            let known = Error::ALL.iter().any(|error| format!("{error:?}") == name);
            let word = format!("`{name}`");
            if known {
                seen += 1;
                assert!(
                    text.contains(&word) || common.contains(&word),
                    "{page} says nothing of {word}, which {file} answers"
                );
            }
        }
    }
    assert!(seen > 50, "only {seen} errors were looked at");
}

/// Every method number that the kernel acts upon is a method, and the reverse: none is forgotten in the dispatch.
#[test]
fn every_method_is_dispatched() {
    let code = read("kernel/src/syscall.rs");
    for method in Method::ALL {
        assert!(code.contains(&format!("Method::{method:?}")), "{method:?} is not in kernel/src/syscall.rs");
    }
}
