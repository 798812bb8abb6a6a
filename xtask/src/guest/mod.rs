//! Guests that xtask knows by name (`guest:NAME`): Debian's unmodified kernels, each with an initramfs made of Debian's
//! BusyBox and that kernel's virtio modules, and a few other systems. Packages are downloaded into a cache and unpacked
//! there, never installed.

pub mod check;
mod debian;
mod initramfs;
mod modules;
pub mod options;
mod others;

use crate::hosttools;
use crate::system::nearest;
use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Kernel modules that the initramfs loads, with whatever they depend on.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_console", "virtio_blk", "virtio_rng", "virtio_net", "virtio_balloon", "button", "evdev"];

/// The two files of a Linux guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// The bzImage.
    pub kernel: PathBuf,
    /// The initramfs, an uncompressed cpio archive.
    pub initrd: PathBuf,
}

/// The kinds of Debian's kernel: the name of their folder, and where they come from.
const CLOUD: (&str, debian::Source) = ("", debian::Source { package: "linux-image-cloud-amd64", architecture: None });
const GENERIC: (&str, debian::Source) =
    ("generic", debian::Source { package: "linux-image-amd64", architecture: None });
const I386: (&str, debian::Source) =
    ("i386", debian::Source { package: "linux-image-686-pae", architecture: Some("i386") });

/// What `guest:NAME` may mean.
const NAMES: [&str; 14] = [
    "kernel",
    "initrd",
    "vmlinux",
    "generic",
    "generic-initrd",
    "i386",
    "i386-initrd",
    "memtest",
    "memtest-i386",
    "mach",
    "grub-pvh",
    "disk",
    "seabios",
    "ovmf",
];

/// Refuses what is no name of a guest; nothing is fetched for that.
///
/// # Errors
/// Nothing has that name.
pub fn is_known(part: &str) -> Result<()> {
    if NAMES.contains(&part) {
        return Ok(());
    }
    let hint = match nearest(part, NAMES) {
        Some(close) => format!("did you mean `guest:{close}`?"),
        None => format!("there are {}", NAMES.join(", ")),
    };
    bail!("`guest:{part}` is unknown; {hint}")
}

/// The file that `guest:part` names, fetched and built below `cache` if it is not there yet.
///
/// # Errors
/// Nothing has that name, or as for [`linux`].
pub fn file(cache: &Path, part: &str) -> Result<PathBuf> {
    is_known(part)?;
    match part {
        "kernel" => Ok(linux(cache)?.kernel),
        "initrd" => Ok(linux(cache)?.initrd),
        "disk" => disk(cache),
        "seabios" | "ovmf" => firmware_image(part),
        "vmlinux" => others::vmlinux(cache, &linux(cache)?.kernel),
        "generic" => Ok(debian_linux(cache, GENERIC)?.kernel),
        "generic-initrd" => Ok(debian_linux(cache, GENERIC)?.initrd),
        "i386" => Ok(debian_linux(cache, I386)?.kernel),
        "i386-initrd" => Ok(debian_linux(cache, I386)?.initrd),
        _ => others::file(cache, part)?.with_context(|| format!("nobody fetches `guest:{part}`")),
    }
}

/// The usual Linux guest: Debian's cloud kernel.
///
/// # Errors
/// No apt or dpkg on this machine, or no way to the packages; the message says what one can do instead.
pub fn linux(cache: &Path) -> Result<Guest> {
    debian_linux(cache, CLOUD)
}

fn debian_linux(cache: &Path, (name, source): (&str, debian::Source)) -> Result<Guest> {
    let folder = cache.join("guest").join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let kernel = folder.join("vmlinuz");
    let initrd = folder.join(format!("initramfs-{}.cpio", recipe()));
    let guest = Guest { kernel, initrd };
    if guest.kernel.is_file() && guest.initrd.is_file() {
        return Ok(guest);
    }
    // Cases of the test run side by side; one of them builds, the others wait and find it done.
    let _lock = lock(&folder)?;
    if guest.kernel.is_file() && guest.initrd.is_file() {
        return Ok(guest);
    }
    let spinner = spinner();
    let packages = debian::packages(&folder, source, &|text| announce(&spinner, text)).context(ELSEWHERE)?;
    announce(&spinner, "building the guest's initramfs");
    let archive = initramfs::build(&packages, MODULES)?;
    write_whole(&guest.initrd, &archive)?;
    // The kernel comes last: both files are there once it is.
    let image = fs::read(&packages.kernel).with_context(|| format!("cannot read {}", packages.kernel.display()))?;
    write_whole(&guest.kernel, &image)?;
    spinner.finish_and_clear();
    Ok(guest)
}

/// The disk image below `cache` that boots the Debian guest by BIOS or UEFI, made if it is not there yet.
///
/// # Errors
/// As for [`linux`]; GRUB's tools are missing.
pub fn disk(cache: &Path) -> Result<PathBuf> {
    let guest = linux(cache)?;
    let image = cache.join("guest").join(format!("disk-{}.img", recipe()));
    let _lock = lock(&cache.join("guest"))?;
    crate::image::build_linux(&guest.kernel, &guest.initrd, DISK_CMDLINE, &image)?;
    Ok(image)
}

/// What GRUB on the disk tells Linux.
const DISK_CMDLINE: &str = "console=ttyS0";

/// The firmware images that Debian's packages bring.
pub fn firmware(name: &str) -> Option<&'static hosttools::Tool> {
    match name {
        "seabios" => hosttools::SEABIOS.first(),
        "ovmf" => hosttools::OVMF_WHOLE.first(),
        _ => None,
    }
}

fn firmware_image(name: &str) -> Result<PathBuf> {
    let image = firmware(name).with_context(|| format!("there is no firmware `{name}`"))?;
    if !image.is_there() {
        bail!("{} is not there; it comes with Debian's package {}", image.name, image.package);
    }
    Ok(PathBuf::from(image.name))
}

/// Keeps others out of a folder of the cache until it is dropped.
fn lock(folder: &Path) -> Result<fs::File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let lock = fs::File::create(folder.join("lock")).context("cannot make the cache's lock")?;
    lock.lock().context("cannot lock the cache")?;
    Ok(lock)
}

/// What to do where Debian's packages cannot be had.
const ELSEWHERE: &str = "this guest comes from Debian's packages, which cannot be fetched here; \
    name files of your own with --guest-kernel PATH and --guest-initrd PATH";

/// Changes whenever what is built into the initramfs changes, so that a cache never serves an old one.
fn recipe() -> String {
    let mut hash = Sha256::new();
    hash.update(initramfs::INIT);
    for (name, script) in initramfs::SCRIPTS {
        hash.update(name);
        hash.update(script);
    }
    for module in MODULES {
        hash.update(module);
    }
    hash.update(include_bytes!("initramfs.rs"));
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Writes beside the target and renames, so that an interrupted run leaves no half of a file.
fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let partial = path.with_extension("partial");
    fs::write(&partial, bytes).with_context(|| format!("cannot write {}", partial.display()))?;
    fs::rename(&partial, path).with_context(|| format!("cannot write {}", path.display()))
}

fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(200));
    spinner
}

/// Says what goes on: on a terminal beside the spinner, else as a line.
fn announce(spinner: &ProgressBar, text: &str) {
    if spinner.is_hidden() {
        eprintln!("{text}");
    }
    spinner.set_message(text.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_guest_is_refused_by_its_name_alone() {
        is_known("generic").unwrap();
        assert_eq!(
            is_known("genric").unwrap_err().to_string(),
            "`guest:genric` is unknown; did you mean `guest:generic`?"
        );
        assert!(is_known("zebra-crossing").unwrap_err().to_string().contains("there are kernel, initrd, "));
    }
}
