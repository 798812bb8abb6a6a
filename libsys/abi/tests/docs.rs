//! `docs/abi/` and the code say the same: every method stands in one page with its number and a way to its code, every error in `errors.md`,
//! every place in the code that a page names is there, and what the code of a page can answer stands on that page.
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

/// Entries: page, method, text up to the next heading.
fn entries() -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for (page, text) in pages() {
        for section in text.split("\n## ").skip(1) {
            let (line, body) = section.split_once('\n').unwrap_or((section, ""));
            if let Some((method, _)) = heading(&format!("## {line}")) {
                found.push((page.clone(), method.into(), body.into()));
            }
        }
    }
    found
}

#[test]
fn every_entry_leads_to_its_function() {
    let entries = entries();
    assert_eq!(entries.len(), Method::ALL.len());
    for (page, method, body) in entries {
        // Whether the place is there is asked below.
        let joined = body.split_whitespace().collect::<Vec<_>>().join(" ");
        let places = joined.split('`').skip(1).step_by(2).filter(|word| word.contains(".rs::")).count();
        assert!(places > 0, "{page}: {method} names no `path.rs::function`");
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
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
