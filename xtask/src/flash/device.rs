//! What the system knows of a block device: sysfs, the mount table, swap.

use anyhow::{Context, Result, bail};
use indicatif::HumanBytes;
use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Unit of sysfs' sizes, whatever the device's own sectors are.
const SECTOR: u64 = 512;

/// Where the facts come from; tests give folders of their own.
#[derive(Debug, Clone)]
pub struct Machine {
    /// `/sys/class/block`
    blocks: PathBuf,
    /// `/proc/self/mountinfo`
    mounts: PathBuf,
    /// `/proc/swaps`
    swaps: PathBuf,
    /// Whether a file is a block device.
    is_block: fn(&Metadata) -> bool,
    /// Ends a write: all data on the device, none of it in memory, so that reading asks the device.
    pub settle: fn(&File) -> io::Result<()>,
}

/// A whole device.
#[derive(Debug, Clone)]
pub struct Device {
    /// Its node, links resolved.
    pub path: PathBuf,
    /// The kernel's name, `sdb`.
    pub name: String,
    /// Vendor and model as it gives them.
    pub model: String,
    /// Bytes.
    pub size: u64,
    /// Whether it says that its medium, or itself, can be taken out.
    pub removable: bool,
    /// Why it is in use; none: it is not.
    in_use: Option<String>,
}

impl Machine {
    /// The machine this runs on.
    pub fn this() -> Machine {
        Machine {
            blocks: "/sys/class/block".into(),
            mounts: "/proc/self/mountinfo".into(),
            swaps: "/proc/swaps".into(),
            is_block: |metadata| metadata.file_type().is_block_device(),
            settle,
        }
    }

    /// A machine described by the folder `root`, whose devices are ordinary files.
    #[cfg(test)]
    pub fn fake(root: &Path) -> Machine {
        Machine {
            blocks: root.join("block"),
            mounts: root.join("mountinfo"),
            swaps: root.join("swaps"),
            is_block: Metadata::is_file,
            settle,
        }
    }

    /// The same, with devices that lose what they were given.
    #[cfg(test)]
    pub fn forgetful(mut self) -> Machine {
        self.settle = |file| file.set_len(100);
        self
    }

    /// Looks the device behind `path` up.
    pub fn device(&self, path: &Path) -> Result<Device> {
        let real = fs::canonicalize(path).with_context(|| format!("no device {}", path.display()))?;
        let metadata = fs::metadata(&real).with_context(|| format!("cannot look at {}", real.display()))?;
        if !(self.is_block)(&metadata) {
            bail!("{} is not a block device", path.display());
        }
        let name = real.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let folder = self.blocks.join(&name);
        if folder.join("partition").exists() {
            bail!("{} is a partition; name the whole device", path.display());
        }
        let sectors: u64 = number(&folder.join("size"))
            .with_context(|| format!("the system does not know the size of {}", path.display()))?;
        let in_use = self.in_use(&folder, &name)?;
        Ok(Device {
            model: model(&folder),
            size: sectors.saturating_mul(SECTOR),
            removable: number(&folder.join("removable")) == Some(1),
            path: real,
            name,
            in_use,
        })
    }

    /// Why the device or one of its partitions is in use. A table that cannot be read is an error, not a no.
    fn in_use(&self, folder: &Path, name: &str) -> Result<Option<String>> {
        let mounts = fs::read_to_string(&self.mounts).context("cannot read the mount table")?;
        // A kernel without swap has no such file.
        let swaps = fs::read_to_string(&self.swaps).unwrap_or_default();
        let mut parts = vec![(name.to_owned(), folder.to_path_buf())];
        for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
            let entry = entry?;
            if entry.path().join("partition").exists() {
                parts.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
            }
        }
        for (part, folder) in parts {
            let numbers = fs::read_to_string(folder.join("dev")).unwrap_or_default();
            if let Some(place) = mounted(&mounts, numbers.trim(), &part) {
                return Ok(Some(format!("{part} is mounted on {place}")));
            }
            if swaps.lines().skip(1).any(|line| node_name(line.split_whitespace().next()) == Some(&part)) {
                return Ok(Some(format!("{part} is swap space")));
            }
            let mut holders = fs::read_dir(folder.join("holders")).into_iter().flatten().flatten();
            if let Some(holder) = holders.next() {
                return Ok(Some(format!("{part} is part of {}", holder.file_name().to_string_lossy())));
            }
        }
        Ok(None)
    }
}

impl Device {
    /// Refuses a device in use, too small for `bytes`, or not removable unless it was `named_twice`.
    pub fn may_be_overwritten(&self, bytes: u64, named_twice: bool) -> Result<()> {
        let path = self.path.display();
        if let Some(reason) = &self.in_use {
            bail!("{path} is in use: {reason}; unmount it first, if it is the right one");
        }
        if self.size < bytes {
            bail!("{path} is too small: {} for an image of {}", HumanBytes(self.size), HumanBytes(bytes));
        }
        if !self.removable && !named_twice {
            bail!(
                "{path} ({}, {}) is not removable; if you mean it, add --yes-really {path}",
                self.model,
                HumanBytes(self.size)
            );
        }
        Ok(())
    }
}

fn settle(file: &File) -> io::Result<()> {
    file.sync_all()?;
    Ok(rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?)
}

/// The mount point of the device `numbers` (major:minor) or of the node `part`, by proc(5)'s mountinfo.
fn mounted<'a>(mounts: &'a str, numbers: &str, part: &str) -> Option<&'a str> {
    mounts.lines().find_map(|line| {
        let (fields, rest) = line.split_once(" - ")?;
        let mut fields = fields.split(' ');
        let device = fields.nth(2)?;
        let place = fields.nth(1)?;
        // Some file systems have device numbers of their own; they still name the node.
        let node = node_name(rest.split(' ').nth(1));
        (device == numbers || node == Some(part)).then_some(place)
    })
}

/// `sdb1` of `/dev/sdb1`.
fn node_name(node: Option<&str>) -> Option<&str> {
    node.and_then(|node| node.strip_prefix("/dev/"))
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn model(folder: &Path) -> String {
    let read = |file: &str| fs::read_to_string(folder.join("device").join(file)).unwrap_or_default();
    let words = format!("{} {}", read("vendor"), read("model"));
    let model = words.split_whitespace().collect::<Vec<_>>().join(" ");
    if model.is_empty() { "unknown model".to_owned() } else { model }
}
