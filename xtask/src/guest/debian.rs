//! Fetches Debian's packages with apt, without being root and without installing anything.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A BusyBox that needs no libraries.
const BUSYBOX: &str = "busybox-static";

/// A kernel of Debian's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// A package that always names the newest kernel of its kind as what it depends on.
    pub package: &'static str,
    /// Debian's name of the processor where that is not this machine's own.
    pub architecture: Option<&'static str>,
}

/// What the packages gave.
#[derive(Debug)]
pub struct Packages {
    /// The kernel's bzImage.
    pub kernel: PathBuf,
    /// The folder `lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// The BusyBox program.
    pub busybox: PathBuf,
}

/// Holds the release of a tree that was unpacked whole.
const MARK: &str = "release";

/// A kernel's package and BusyBox', unpacked below `folder`: what is there already, else what apt brings. `say` is told
/// each step.
pub fn packages(folder: &Path, source: Source, say: &dyn Fn(&str)) -> Result<Packages> {
    let mark = folder.join(MARK);
    if let Ok(release) = fs::read_to_string(&mark)
        && let Ok(packages) = find(&folder.join("unpacked"), &release)
    {
        return Ok(packages);
    }
    let release = fetch(folder, source, say)?;
    let packages = find(&folder.join("unpacked"), &release)?;
    fs::write(&mark, &release).with_context(|| format!("cannot write {}", mark.display()))?;
    // They take more room than all the rest, and are not looked at again.
    for folder in [folder.join("packages"), folder.join("apt")] {
        let _ = fs::remove_dir_all(folder);
    }
    Ok(packages)
}

/// Downloads and unpacks both packages; the kernel's release.
fn fetch(folder: &Path, source: Source, say: &dyn Fn(&str)) -> Result<String> {
    let apt = apt(folder, source.package, source.architecture, say)?;
    let name = source.package;
    let kernel =
        apt.kernel_behind(name)?.with_context(|| format!("apt knows no package {name} or none that it depends on"))?;
    unpack(folder, &apt, &[&kernel, BUSYBOX], say)?;
    Ok(kernel.trim_start_matches("linux-image-").to_owned())
}

/// One package, unpacked; the folder with its files. Kept in `folder`.
pub fn package(folder: &Path, package: &str, say: &dyn Fn(&str)) -> Result<PathBuf> {
    let unpacked = folder.join("unpacked");
    let mark = folder.join(MARK);
    if !mark.exists() {
        let apt = apt(folder, package, None, say)?;
        unpack(folder, &apt, &[package], say)?;
        fs::write(&mark, package).with_context(|| format!("cannot write {}", mark.display()))?;
        for folder in [folder.join("packages"), folder.join("apt")] {
            let _ = fs::remove_dir_all(folder);
        }
    }
    Ok(unpacked)
}

/// An apt that knows `package`: the machine's own, or one with its own lists below `folder`.
fn apt(folder: &Path, package: &str, architecture: Option<&str>, say: &dyn Fn(&str)) -> Result<Apt> {
    for (tool, package) in [("apt-get", "apt"), ("apt-cache", "apt"), ("dpkg-deb", "dpkg")] {
        if Command::new(tool).arg("--version").output().is_err() {
            bail!("`{tool}` is not on this machine (package {package})");
        }
    }
    let own = Apt { options: Vec::new() };
    if architecture.is_none() && own.knows(package)? {
        return Ok(own);
    }
    say("reading Debian's package lists (a private copy, this may take a minute)");
    Apt::private(folder, architecture, package)
}

/// Downloads packages and unpacks them into `folder/unpacked`.
fn unpack(folder: &Path, apt: &Apt, packages: &[&str], say: &dyn Fn(&str)) -> Result<()> {
    let downloads = folder.join("packages");
    // A download that broke off leaves nothing of use.
    let _ = fs::remove_dir_all(&downloads);
    fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
    for package in packages {
        say(&format!("downloading {package}"));
        apt.download(package, &downloads)?;
    }
    let unpacked = folder.join("unpacked");
    let _ = fs::remove_dir_all(&unpacked);
    for entry in fs::read_dir(&downloads)? {
        let file = entry?.path();
        say(&format!("unpacking {}", file.file_name().unwrap_or_default().to_string_lossy()));
        run(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&unpacked))?;
    }
    Ok(())
}

/// The three things in the unpacked tree; paths differ between a merged and an unmerged `/usr`.
fn find(unpacked: &Path, release: &str) -> Result<Packages> {
    let first = |candidates: &[String]| -> Result<PathBuf> {
        let mut paths = candidates.iter().map(|candidate| unpacked.join(candidate));
        paths.find(|path| path.exists()).with_context(|| format!("the packages have no {}", candidates.join(" or ")))
    };
    Ok(Packages {
        kernel: first(&[format!("boot/vmlinuz-{release}")])?,
        modules: first(&[format!("lib/modules/{release}"), format!("usr/lib/modules/{release}")])?,
        busybox: first(&["bin/busybox".to_owned(), "usr/bin/busybox".to_owned()])?,
    })
}

/// apt with options of ours.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    /// Lists of our own below `folder`, which need no rights; for a machine whose lists are empty or old, and for packages of
    /// another architecture, which the machine itself is not to know.
    fn private(folder: &Path, architecture: Option<&str>, package: &str) -> Result<Apt> {
        let state = folder.join("apt");
        for sub in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(state.join(sub)).with_context(|| format!("cannot make {}", state.display()))?;
        }
        let state = fs::canonicalize(&state).with_context(|| format!("cannot find {}", state.display()))?;
        let set = |key: &str, value: String| format!("-o{key}={value}");
        let mut options = vec![
            set("Dir::State::lists", state.join("lists").display().to_string()),
            set("Dir::Cache", state.display().to_string()),
            set("Dir::Cache::archives", state.join("archives").display().to_string()),
        ];
        if let Some(architecture) = architecture {
            options.push(set("APT::Architecture", architecture.to_owned()));
            options.push(set("APT::Architectures", architecture.to_owned()));
            // What is installed here is of another architecture.
            options.push(set("Dir::State::status", "/dev/null".to_owned()));
        }
        let apt = Apt { options };
        // One list of several may fail; what counts is whether the package is known afterwards.
        let updated = run(apt.command("apt-get").arg("update"));
        if !apt.knows(package)? {
            updated?;
            bail!("Debian's lists have no package {package}");
        }
        Ok(apt)
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        // Without the sandbox's other user, which could not write into our folder.
        command.arg("-qq").arg("-oAPT::Sandbox::User=root").args(&self.options).env("LC_ALL", "C");
        command
    }

    /// The newest description of a package, empty if there is none.
    fn show(&self, package: &str) -> Result<String> {
        let output = self.command("apt-cache").arg("show").arg("--no-all-versions").arg(package).output();
        let output = output.context("cannot run apt-cache")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn knows(&self, package: &str) -> Result<bool> {
        Ok(self.show(package)?.lines().any(|line| line.starts_with("Filename:")))
    }

    /// The real kernel package behind the one that only depends on it.
    fn kernel_behind(&self, package: &str) -> Result<Option<String>> {
        Ok(kernel_dependency(&self.show(package)?))
    }

    fn download(&self, package: &str, folder: &Path) -> Result<()> {
        run(self.command("apt-get").arg("download").arg(package).current_dir(folder))?;
        Ok(())
    }
}

/// The first dependency named `linux-image-…` in a package's description.
fn kernel_dependency(description: &str) -> Option<String> {
    let line = description.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    let names = line.split(',').filter_map(|dependency| dependency.split_whitespace().next());
    let mut names = names.filter(|name| name.starts_with("linux-image-"));
    names.next().map(str::to_owned)
}

/// Runs a command; its last words are the error if it fails.
pub fn run(command: &mut Command) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
        bail!("{name} failed: {}", last.last().unwrap_or(&"without a word"));
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_real_package() {
        let text =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-1-cloud-amd64 (= 6.1.1-1), x\nSize: 1\n";
        assert_eq!(kernel_dependency(text).as_deref(), Some("linux-image-6.1.0-1-cloud-amd64"));
        assert_eq!(kernel_dependency("Depends: busybox\n"), None);
        assert_eq!(kernel_dependency(""), None);
    }

    #[test]
    fn a_failing_command_says_why() {
        let error = run(Command::new("sh").args(["-c", "echo first >&2; echo 'E: broken' >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh failed: E: broken");
        let error = run(&mut Command::new("no-such-tool-anywhere")).unwrap_err();
        assert_eq!(error.to_string(), "cannot run no-such-tool-anywhere");
    }
}
