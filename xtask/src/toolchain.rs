//! The compiler for `x86_64-unknown-none`: rustup's target, or Debian's compiler with a core built once.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::hosttools::{self, Install};
use crate::{paths, process, progress};

/// The target of the kernel and of every task.
pub const TARGET: &str = "x86_64-unknown-none";
/// The one set of code generation flags of the kernel, all tasks and a core built here.
pub const RUSTFLAGS: [&str; 4] = ["-C", "relocation-model=static", "-C", "force-frame-pointers=no"];

/// Which compiler may be used for bare metal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Choice {
    /// rustup's target where it is or can be had, else Debian's packages
    Auto,
    /// only rustup's target
    Rustup,
    /// only Debian's rustc-web, cargo-web and rust-web-src
    Debian,
}

/// A compiler that can build for bare metal.
#[derive(Clone, Debug)]
pub struct Toolchain {
    /// What was taken and why, for people.
    pub origin: String,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Rustup,
    Debian { sysroot: PathBuf, linker: PathBuf },
}

impl Toolchain {
    /// Finds a compiler, adds rustup's target or installs and prepares Debian's if need be. Says what it does
    /// where that takes time.
    pub fn find(choice: Choice, install: Install) -> Result<Self> {
        let mut why = String::new();
        if choice != Choice::Debian {
            if rustup_has_target() {
                return Ok(Self::rustup("installed"));
            }
            // Once Debian's fallback has been prepared, asking rustup's server each time would only cost time.
            let prepared = choice == Choice::Auto && cached_sysroot().is_ok_and(|path| path.exists());
            if prepared {
                why = "rustup has no such target".into();
            } else {
                match rustup_add_target(install) {
                    Ok(()) => return Ok(Self::rustup("added just now")),
                    Err(error) if choice == Choice::Rustup => return Err(error),
                    Err(error) => why = format!("{error:#}"),
                }
                eprintln!("{why}; taking Debian's compiler");
            }
        }
        Self::debian(&why, install)
    }

    fn rustup(how: &str) -> Self {
        Self { origin: format!("rustup's target {TARGET} ({how})"), kind: Kind::Rustup }
    }

    fn debian(why: &str, install: Install) -> Result<Self> {
        let rust_lld = rustup_lld();
        let mut tools = vec![hosttools::DEBIAN_RUST];
        if rust_lld.is_none() {
            tools.push(hosttools::LLD);
        }
        hosttools::require(&tools, install)?;
        let version = debian_version()?;
        let sysroot = cached_sysroot()?;
        let how = if sysroot.exists() { "cached" } else { "built just now" };
        if !sysroot.exists() {
            build_sysroot(&sysroot)?;
        }
        let linker = rust_lld.or_else(|| paths::which("ld.lld")).context("no lld")?;
        let because = if why.is_empty() { String::new() } else { format!("; {why}") };
        Ok(Self {
            origin: format!("Debian's rustc {} with its own core ({how}){because}", version.release),
            kind: Kind::Debian { sysroot, linker },
        })
    }

    /// A call of cargo for bare metal, with flags and environment set, up to and including `subcommand`.
    pub fn cargo(&self, subcommand: &str) -> Command {
        let mut flags: Vec<String> = RUSTFLAGS.iter().map(|flag| flag.to_string()).collect();
        let mut command = match &self.kind {
            Kind::Rustup => rustup_cargo(),
            Kind::Debian { sysroot, linker } => {
                flags.extend(["--sysroot".into(), sysroot.to_string_lossy().into_owned()]);
                flags.extend(["-C".into(), format!("linker={}", linker.display())]);
                debian_cargo()
            }
        };
        command
            .arg(subcommand)
            .args(["--target", TARGET, "--target-dir"])
            .arg(self.target_dir())
            // With `--target`, these flags reach the images only, not build scripts and macros.
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            // The crates `acpi` and `aml` ask for `allocator_api`; no other crate may use unstable features.
            .env("RUSTC_BOOTSTRAP", "acpi,aml")
            .current_dir(paths::root());
        command
    }

    /// The folder that this compiler builds in. One for each, so that changing between them rebuilds nothing.
    pub fn target_dir(&self) -> PathBuf {
        match self.kind {
            Kind::Rustup => paths::bare_target(),
            Kind::Debian { .. } => paths::bare_target().join("debian"),
        }
    }

    /// Whether `cargo clippy` works with this compiler, after what is missing was installed.
    pub fn prepare_clippy(&self, install: Install) -> Result<()> {
        match self.kind {
            Kind::Rustup => rustup_component("clippy", install),
            Kind::Debian { .. } => hosttools::require(&[hosttools::DEBIAN_CLIPPY], install),
        }
    }
}

/// Cargo of the toolchain that runs xtask.
pub fn rustup_cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    process::clean_cargo_environment(&mut command, true);
    command
}

fn debian_cargo() -> Command {
    let mut command = Command::new("/usr/bin/cargo");
    process::clean_cargo_environment(&mut command, false);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("RUSTC", "/usr/bin/rustc").env("PATH", format!("/usr/bin:/bin:{path}"));
    command
}

fn rustup_rustc() -> Command {
    let mut command = Command::new("rustc");
    process::clean_cargo_environment(&mut command, true);
    command
}

/// The target that rustup's compiler builds for by itself: this machine.
pub fn host() -> Result<String> {
    let output = process::output(rustup_rustc().arg("-vV"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let host = text.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc does not tell its host")?;
    Ok(host.trim().to_string())
}

fn sysroot_of_rustup() -> Option<PathBuf> {
    let output = process::output(rustup_rustc().args(["--print", "sysroot"])).ok()?;
    Some(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}

/// Whether the compiler that built xtask has `core` for bare metal.
pub fn rustup_has_target() -> bool {
    let Some(sysroot) = sysroot_of_rustup() else {
        return false;
    };
    let folder = sysroot.join("lib/rustlib").join(TARGET).join("lib");
    fs::read_dir(folder)
        .is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libcore-")))
}

fn rustup_lld() -> Option<PathBuf> {
    let path = sysroot_of_rustup()?.join("lib/rustlib/x86_64-unknown-linux-gnu/bin/rust-lld");
    path.exists().then_some(path)
}

fn rustup_add_target(install: Install) -> Result<()> {
    if install == Install::Forbidden {
        bail!("--no-install forbids rustup to add the target {TARGET}");
    }
    rustup(&["target", "add", TARGET], "rustup adds the target x86_64-unknown-none")
}

/// Adds a component such as clippy or rustfmt, unless it is there.
pub fn rustup_component(name: &str, install: Install) -> Result<()> {
    let present = process::output(rustup_cargo().args([if name == "rustfmt" { "fmt" } else { name }, "--version"]));
    if present.is_ok() {
        return Ok(());
    }
    if install == Install::Forbidden {
        bail!("rustup's component {name} is missing, and --no-install forbids to add it");
    }
    eprintln!("adding rustup's component {name}");
    rustup(&["component", "add", name], &format!("rustup adds the component {name}"))
}

/// Runs rustup under a time limit: where it can reach nothing, a fallback is waiting.
fn rustup(arguments: &[&str], message: &str) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(240);
    let program = paths::which("rustup").context("there is no rustup")?;
    let step = progress::step(message.to_string());
    let mut command = Command::new(program);
    process::clean_cargo_environment(&mut command, true);
    let log = tempfile::tempfile()?;
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log.try_clone()?);
    let mut child = process::Guarded::spawn(&mut command)?;
    let status = child.wait(LIMIT)?;
    step.finish();
    match status {
        Some(status) if status.success() => Ok(()),
        Some(_) => bail!("rustup {} failed: {}", arguments.join(" "), last_line(log)),
        None => bail!("rustup {} did not end within {} s", arguments.join(" "), LIMIT.as_secs()),
    }
}

fn last_line(mut log: fs::File) -> String {
    use std::io::{Seek, SeekFrom};
    let mut text = Vec::new();
    let _ = log.seek(SeekFrom::Start(0));
    let _ = log.read_to_end(&mut text);
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it said nothing");
    line.to_string()
}

struct Version {
    release: String,
    /// Names the compiler build: release and commit.
    key: String,
}

fn debian_version() -> Result<Version> {
    let mut command = Command::new("/usr/bin/rustc");
    process::clean_cargo_environment(&mut command, false);
    let output = process::output(command.arg("-vV"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_string());
    let release = field("release:").context("rustc does not tell its release")?;
    let commit = field("commit-hash:").unwrap_or_default();
    let least = env!("CARGO_PKG_RUST_VERSION");
    if numbers(&release) < numbers(least) {
        bail!("Debian's rustc is {release}, Moira needs {least}; `rustup target add {TARGET}` is the other way");
    }
    let commit: String = commit.chars().take(12).collect();
    Ok(Version { key: format!("{release}-{commit}"), release })
}

/// The numbers of a version, to be compared.
fn numbers(version: &str) -> Vec<u32> {
    version.split(['.', '-']).map_while(|part| part.parse().ok()).collect()
}

/// Where the core for Debian's compiler is kept. The name carries what it depends on.
fn cached_sysroot() -> Result<PathBuf> {
    Ok(paths::cache()?.join(format!("sysroot-{}", debian_version()?.key)))
}

/// Builds `core`, `alloc` and `compiler_builtins` with Debian's compiler and keeps them at `place`.
fn build_sysroot(place: &Path) -> Result<()> {
    let start = Instant::now();
    let step = progress::step("building core and alloc for bare metal, once for this compiler");
    let cache = place.parent().context("the cache has no folder")?;
    fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
    // In the cache's own file system, so that the finished sysroot can be moved in one step.
    let work = tempfile::Builder::new().prefix("sysroot-build-").tempdir_in(cache)?;
    let manifest = "[package]\nname = \"empty\"\nversion = \"0.0.0\"\nedition = \"2021\"\n[lib]\n[workspace]\n\
                    [profile.release]\npanic = \"abort\"\n";
    fs::write(work.path().join("Cargo.toml"), manifest)?;
    fs::create_dir(work.path().join("src"))?;
    fs::write(work.path().join("src/lib.rs"), "#![no_std]\n")?;
    let mut flags = RUSTFLAGS.to_vec();
    flags.extend(["-C", "embed-bitcode=yes"]);
    process::output(
        debian_cargo()
            .args(["build", "--release", "--target", TARGET])
            .args(["-Z", "build-std=core,alloc,compiler_builtins"])
            .args(["-Z", "build-std-features=compiler-builtins-mem"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
            .current_dir(work.path()),
    )
    .context("cannot build core with Debian's compiler")?;

    let finished = work.path().join("sysroot");
    let libraries = finished.join("lib/rustlib").join(TARGET).join("lib");
    fs::create_dir_all(&libraries)?;
    let built = work.path().join("target").join(TARGET).join("release/deps");
    for entry in fs::read_dir(&built)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let wanted = ["libcore-", "liballoc-", "libcompiler_builtins-"];
        if name.ends_with(".rlib") && wanted.iter().any(|prefix| name.starts_with(prefix)) {
            fs::copy(entry.path(), libraries.join(name))?;
        }
    }
    match fs::rename(&finished, place) {
        Ok(()) => {}
        // Another xtask was faster, and its result is as good.
        Err(_) if place.exists() => {}
        Err(error) => return Err(error).context("cannot keep the built core"),
    }
    drop(step);
    eprintln!("built core and alloc in {:.0} s, kept in {}", start.elapsed().as_secs_f64(), place.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("1.96.0") > numbers("1.95"));
        assert!(numbers("1.100.0") > numbers("1.95"));
        assert!(numbers("1.85.1-nightly") < numbers("1.95"));
    }
}
