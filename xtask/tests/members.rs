//! Host tests that no command runs are no tests: `cargo test` runs those of the default members.

use std::fs;
use std::path::Path;

/// Whether a source below this folder has a test.
fn tested(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    entries.flatten().map(|entry| entry.path()).any(|path| {
        let test = |text: String| text.lines().any(|line| line.trim() == "#[test]");
        tested(&path)
            || path.extension().is_some_and(|ending| ending == "rs") && fs::read_to_string(&path).is_ok_and(test)
    })
}

#[test]
fn every_crate_with_host_tests_is_a_default_member() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest: toml::Table = fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let list = |key: &str| -> Vec<&str> {
        manifest["workspace"][key].as_array().unwrap().iter().map(|member| member.as_str().unwrap()).collect()
    };
    let mut with_tests = list("members");
    with_tests.retain(|member| ["src", "tests"].iter().any(|folder| tested(&root.join(member).join(folder))));
    assert!(with_tests.len() > 10, "too few: {with_tests:?}");
    let default = list("default-members");
    with_tests.retain(|member| !default.contains(member));
    assert!(with_tests.is_empty(), "host tests that `cargo test` does not run: {with_tests:?}");
}
