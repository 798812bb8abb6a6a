//! `docs/abi/` and the code say the same: every method stands in one page with its number, every error in `errors.md`, and
//! every place in the code that a page names is there.
use moira_abi::{Error, Method};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The pages by file name.
fn pages() -> BTreeMap<String, String> {
    let mut pages = BTreeMap::new();
    for entry in fs::read_dir(root().join("docs/abi")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.insert(path.file_name().unwrap().to_string_lossy().into_owned(), fs::read_to_string(&path).unwrap());
        }
    }
    pages
}

/// Headings end in (`Name`, number).
fn heading(line: &str) -> Option<(&str, u32)> {
    let (_, rest) = line.strip_prefix("## ")?.split_once("(`")?;
    let (name, number) = rest.strip_suffix(')')?.split_once("`, ")?;
    Some((name, number.parse().ok()?))
}

#[test]
fn every_method_has_one_entry_with_its_number() {
    let pages = pages();
    let mut found: BTreeMap<&str, Vec<(u32, &str)>> = BTreeMap::new();
    for (page, text) in &pages {
        for (name, number) in text.lines().filter_map(heading) {
            found.entry(name).or_default().push((number, page));
        }
    }
    for method in Method::ALL {
        let name = format!("{method:?}");
        let entries = found.remove(name.as_str()).unwrap_or_default();
        assert_eq!(entries.len(), 1, "{name} has entries in {entries:?}");
        assert_eq!(entries[0].0, *method as u32, "{name} has another number in {}", entries[0].1);
    }
    assert!(found.is_empty(), "no such methods: {found:?}");
}

#[test]
fn every_error_is_explained() {
    let text = &pages()["errors.md"];
    let mut rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    for error in Error::ALL {
        let start = format!("| `{error:?}` | {} | ", *error as u8);
        let before = rows.len();
        rows.retain(|row| !row.starts_with(&start));
        assert_eq!(before - rows.len(), 1, "errors.md has no single row that begins {start:?}");
    }
    assert!(rows.is_empty(), "no such errors: {rows:?}");
}

#[test]
fn entries_name_only_errors_that_exist() {
    let known: Vec<String> = Error::ALL.iter().map(|error| format!("{error:?}")).collect();
    for (page, text) in pages() {
        let mut table = false;
        for line in text.lines() {
            table = if line.starts_with("| error |") { true } else { table && line.starts_with('|') };
            if table && line.starts_with("| `") {
                let cell = line.split('|').nth(1).unwrap();
                for name in cell.split('`').skip(1).step_by(2) {
                    assert!(known.iter().any(|error| error == name), "{page}: no error {name}");
                }
            }
        }
    }
}

/// `path` or `path::function` in backquotes, for paths in the tree.
#[test]
fn the_code_that_pages_name_exists() {
    let mut checked = 0;
    for (page, text) in pages() {
        for quoted in text.split('`').skip(1).step_by(2) {
            if !["kernel/", "libsys/", "initrd/"].iter().any(|folder| quoted.starts_with(folder)) {
                continue;
            }
            let (path, function) = quoted.split_once("::").map_or((quoted, None), |(path, name)| (path, Some(name)));
            if function.is_none() && root().join(path).is_dir() {
                continue;
            }
            let code = fs::read_to_string(root().join(path)).unwrap_or_else(|_| panic!("{page}: no file {path}"));
            if let Some(name) = function {
                let defined = [format!("fn {name}("), format!("fn {name}<")].iter().any(|text| code.contains(text));
                assert!(defined, "{page}: no function {name} in {path}");
            }
            checked += 1;
        }
    }
    assert!(checked > 50, "only {checked} places found: is the pattern still right?");
}

/// Every page of the book, and the front pages.
fn book(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            book(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn links_lead_to_files() {
    let mut found = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    book(&root().join("docs"), &mut found);
    for page in found {
        let text = fs::read_to_string(&page).unwrap();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap();
            if !file.is_empty() && !file.contains("://") {
                assert!(page.parent().unwrap().join(file).exists(), "{}: {link} leads nowhere", page.display());
            }
        }
    }
}
