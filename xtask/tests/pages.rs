//! The pages against the tree: every link leads somewhere, every path that is named exists, and so does what the commands shown ask for.

use regex_lite::Regex;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Files that a reader of a how-to page makes.
const MADE_BY_THE_READER: &[&str] = &[
    "initrd/greeter",
    "initrd/systems/exp-turn.toml",
    "initrd/systems/greeter.toml",
    "initrd/systems/ping-pong.toml",
    "vmm-task/devices/src/scratch.rs",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Whether it is there, or a reader makes it, or a word in it stands for any name.
fn exists(path: &str) -> bool {
    let open = ["NAME", "CASE", "MACHINE"].iter().any(|word| path.contains(word));
    open || MADE_BY_THE_READER.iter().any(|made| path.starts_with(made)) || root().join(path).exists()
}

/// All files with this ending, by their paths from the root.
fn files(ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let (path, name) = (entry.path(), entry.file_name().into_string().unwrap_or_default());
            if name.starts_with('.') || name == "target" {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// A page without what stands between fences, and only that.
fn parts(page: &str) -> (String, String) {
    let (mut prose, mut code, mut fenced) = (String::new(), String::new(), false);
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let part = if fenced { &mut code } else { &mut prose };
        part.push_str(line);
        part.push('\n');
    }
    (prose, code)
}

/// The words by which a heading can be linked to.
fn anchors(page: &str) -> Vec<String> {
    let headings = parts(page).0;
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    let anchor = |line: &str| {
        let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
        line.trim_start_matches('#').trim().to_lowercase().chars().filter(kept).collect::<String>().replace(' ', "-")
    };
    headings.map(anchor).collect()
}

/// `a/b/../c` as `a/c`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            part => plain.push(part),
        }
    }
    plain
}

#[test]
fn every_link_leads_somewhere() {
    let (link, code) = (Regex::new(r"\]\(([^)\s]+)\)").unwrap(), Regex::new("`[^`]*`").unwrap());
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in files(".md") {
        let text = read(&page);
        let prose = parts(&text).0;
        for found in link.captures_iter(&code.replace_all(&prose, "`")) {
            let target = &found[1];
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let folder = Path::new(&page).parent().unwrap();
            let to = if path.is_empty() { PathBuf::from(&page) } else { plain(&folder.join(path)) };
            let there = root().join(&to).exists();
            let anchored = || anchor.is_empty() || anchors(&read(to.to_str().unwrap())).iter().any(|one| one == anchor);
            if !there || !anchored() {
                wrong.push(format!("{page}: {target}"));
            }
        }
    }
    assert!(seen > 100, "only {seen} links found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_path_exists() {
    let word = Regex::new("`([A-Za-z0-9_./:-]+)`").unwrap();
    let named = Regex::new(r"\bdocs/[a-z0-9/-]+\.md").unwrap();
    let folders = ["kernel", "libsys", "drivers", "vmm-task", "initrd", "xtask", "tests", "docs"];
    let sources = files(".rs");
    let (mut wrong, mut seen) = (Vec::new(), 0);
    let mut look = |page: &str, path: &str| {
        seen += 1;
        // A page about one crate may name a file of its tests from there.
        let within = || sources.iter().any(|source| source.ends_with(&format!("/{path}")));
        if !exists(path) && !within() {
            wrong.push(format!("{page}: {path}"));
        }
    };
    for page in files(".md") {
        for found in word.captures_iter(&parts(&read(&page)).0) {
            // `path::item` and `path:line`.
            let path = found[1].split(':').next().unwrap_or_default();
            if path.split_once('/').is_some_and(|(first, _)| folders.contains(&first)) {
                look(&page, path);
            }
        }
    }
    for source in sources.iter().cloned().chain(files(".toml")) {
        for found in named.find_iter(&read(&source)) {
            look(&source, found.as_str());
        }
    }
    assert!(seen > 100, "only {seen} paths found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn commands_ask_for_what_is_there() {
    let command = Regex::new(r"cargo xtask ([a-z-]+)([^`#\n]*)").unwrap();
    let name = Regex::new(r#"(?m)^name = "([^"]+)""#).unwrap();
    let cases: Vec<String> =
        files(".toml").iter().filter(|file| file.starts_with("tests/cases/")).map(|file| read(file)).collect();
    let cases: Vec<&str> =
        cases.iter().flat_map(|file| name.captures_iter(file)).map(|found| found.get(1).unwrap().as_str()).collect();
    let figures = parts(&read("docs/performance.md"));
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in files(".md") {
        for found in command.captures_iter(&read(&page)) {
            let words: Vec<&str> = found[2].split_whitespace().collect();
            let system = words.iter().position(|word| *word == "--system").and_then(|at| words.get(at + 1)).copied();
            let first = words.first().copied().filter(|word| !word.starts_with('-'));
            let there = match (&found[1], first) {
                ("test", Some("host" | "libfuzzer" | "experiment")) => true,
                ("fuzz", Some(name)) => {
                    matches!(name, "all" | "TARGET") || exists(&format!("tests/libfuzzer/src/bin/{name}.rs"))
                }
                // Each case brings one of these with it (`xtask/src/test/ledger.rs`).
                ("test", Some(pattern)) => {
                    cases.iter().any(|case| case.contains(pattern) || format!("ledger-of-{case}").contains(pattern))
                }
                ("bench", Some(pattern)) => figures.0.contains(pattern) || figures.1.contains(pattern),
                ("experiment" | "trace", Some(name)) => exists(&format!("initrd/systems/exp-{name}.toml")),
                ("system", Some(name)) => exists(&format!("initrd/systems/{name}.toml")),
                _ => true,
            };
            let described = |name: &str| exists(&format!("initrd/systems/{name}.toml"));
            seen += 1;
            if !there || !system.is_none_or(described) {
                wrong.push(format!("{page}: {}", &found[0]));
            }
        }
    }
    assert!(seen > 30, "only {seen} commands found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
