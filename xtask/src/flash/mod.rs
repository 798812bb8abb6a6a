//! Writes an image to a USB stick or disk, carefully: it refuses what is in use, asks, and reads back what it wrote.

mod device;
mod write;

use anyhow::{Context, Result, bail};
use device::Device;
pub use device::Machine;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// `O_EXCL` of Linux: without `O_CREAT`, on a block device, the kernel refuses one that is mounted or otherwise held.
const EXCLUSIVE: i32 = 0o200;

/// What to write, and where.
#[derive(Debug, Clone)]
pub struct FlashArgs {
    /// The image.
    pub image: PathBuf,
    /// The device, `/dev/sdX`.
    pub device: PathBuf,
    /// The same device again, for one that does not call itself removable.
    pub yes_really: Option<PathBuf>,
}

/// Writes `args.image` to `args.device` after asking on the terminal.
///
/// # Errors
/// A device that is no whole block device, in use, not removable, too small or not confirmed; a write that fails, or
/// content that does not read back the same.
pub fn run(args: &FlashArgs) -> Result<()> {
    flash(args, &Machine::this(), &mut std::io::stdin().lock(), &mut std::io::stderr())
}

/// What can be said against a device before there is an image, whose building takes minutes.
///
/// # Errors
/// As for [`run`], but for its size.
pub fn check(device: &Path, yes_really: Option<&Path>) -> Result<()> {
    check_on(&Machine::this(), device, yes_really)
}

fn check_on(machine: &Machine, device: &Path, yes_really: Option<&Path>) -> Result<()> {
    machine.device(device)?.may_be_overwritten(0, named_twice(device, yes_really))
}

/// [`run`] on any machine and any terminal.
fn flash(args: &FlashArgs, machine: &Machine, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<()> {
    let size = size_of_bootable(&args.image).with_context(|| args.image.display().to_string())?;
    let device = machine.device(&args.device)?;
    device.may_be_overwritten(size, named_twice(&args.device, args.yes_really.as_deref()))?;
    confirm(&device, size, input, output)?;
    let mut image = File::open(&args.image).with_context(|| format!("cannot read {}", args.image.display()))?;
    let mut target = open(&device, true)?;
    let bar = progress("writing", size);
    let written = write::copy(&mut image, &mut target, &mut |bytes| bar.inc(bytes))
        .with_context(|| format!("writing to {} failed", device.path.display()))?;
    bar.set_message("waiting for the device");
    (machine.settle)(&target)
        .with_context(|| format!("{} did not take all that was written", device.path.display()))?;
    bar.finish_and_clear();
    if written.length != size {
        bail!("{} changed while it was written: {} of {size} bytes", args.image.display(), written.length);
    }
    drop(target);
    let bar = progress("reading back", size);
    let read = write::digest(&mut open(&device, false)?, size, &mut |bytes| bar.inc(bytes))
        .with_context(|| format!("reading back from {} failed", device.path.display()))?;
    bar.finish_and_clear();
    if read != written {
        bail!("{} does not give back what was written to it; do not trust it", device.path.display());
    }
    writeln!(output, "{} written to {} and read back the same", HumanBytes(size), device.path.display())?;
    Ok(())
}

/// Bytes of an image, which begins as firmware expects it of a disk: with a boot sector, a GPT, or an ISO 9660 file system.
fn size_of_bootable(image: &Path) -> Result<u64> {
    const SIGNATURES: [(usize, &[u8]); 3] = [(510, b"\x55\xaa"), (512, b"EFI PART"), (0x8001, b"CD001")];
    let file = File::open(image)?;
    let size = file.metadata()?.len();
    let mut start = Vec::new();
    file.take(0x9000).read_to_end(&mut start)?;
    if SIGNATURES.iter().any(|(at, signature)| start.get(*at..).is_some_and(|rest| rest.starts_with(signature))) {
        return Ok(size);
    }
    bail!("it is no image that boots: it begins with no boot sector, GPT or ISO 9660 file system");
}

/// Whether `--yes-really` names the device that is to be written.
fn named_twice(device: &Path, yes_really: Option<&Path>) -> bool {
    let same = |path: &Path| fs::canonicalize(path).unwrap_or(path.to_path_buf());
    yes_really.is_some_and(|again| same(again) == same(device))
}

/// Shows what would be lost and asks for the device's name.
fn confirm(device: &Device, size: u64, input: &mut dyn BufRead, output: &mut dyn Write) -> Result<()> {
    writeln!(output, "device  {}", device.path.display())?;
    writeln!(output, "model   {}", device.model)?;
    writeln!(output, "size    {}", HumanBytes(device.size))?;
    writeln!(output, "kind    {}", if device.removable { "removable" } else { "NOT removable" })?;
    writeln!(output, "image   {}", HumanBytes(size))?;
    write!(output, "All data on it will be lost. Type the device's name ({}) to go on: ", device.name)?;
    output.flush()?;
    let mut answer = String::new();
    input.read_line(&mut answer).context("cannot read the answer")?;
    let answer = answer.trim();
    if answer != device.name && Path::new(answer) != device.path {
        bail!("not confirmed, nothing was written");
    }
    Ok(())
}

fn open(device: &Device, write: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(!write).write(write);
    if write {
        options.custom_flags(EXCLUSIVE);
    }
    let path = device.path.display();
    options.open(&device.path).map_err(|error| match error.kind() {
        ErrorKind::PermissionDenied => {
            anyhow::anyhow!("no right to open {path}: run this as root, or join the group that owns it (`disk`)")
        }
        ErrorKind::ResourceBusy => anyhow::anyhow!("{path} is in use by the system"),
        _ => anyhow::Error::new(error).context(format!("cannot open {path}")),
    })
}

fn progress(what: &'static str, size: u64) -> ProgressBar {
    let bar = ProgressBar::new(size).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}") {
        bar.set_style(style);
    }
    bar
}

#[cfg(test)]
mod tests;
