//! Where things are: the workspace, its build folders and the cache shared by all checkouts.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The workspace's root folder.
pub fn root() -> PathBuf {
    // Cargo sets the variable when it runs xtask; a copied binary falls back on where it was compiled.
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")));
    xtask.parent().map(Path::to_path_buf).unwrap_or(xtask)
}

/// The folder for everything that is built: `target`.
pub fn target() -> PathBuf {
    root().join("target")
}

/// The bare-metal build's own target folder, so that its flags and the host's do not evict each other.
pub fn bare_target() -> PathBuf {
    target().join("bare")
}

/// Where each test case leaves its logs.
pub fn test_logs() -> PathBuf {
    target().join("test-logs")
}

/// The folder of the test cases.
pub fn cases() -> PathBuf {
    root().join("tests/cases")
}

/// The manifest of the system called `name`.
pub fn system_manifest(name: &str) -> PathBuf {
    root().join("initrd/systems").join(format!("{name}.toml"))
}

/// What may be kept between checkouts: `$XDG_CACHE_HOME/moira` or `~/.cache/moira`. Not made yet when returned.
pub fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where a cache may be kept")?;
    Ok(base.join("moira"))
}

/// The path of the program `tool`, looked for in `PATH` and in the folders of system tools.
pub fn which(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(tool))
        .find(|candidate| is_executable(candidate))
}

/// Whether `path` is a file that may be executed by someone.
pub fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
