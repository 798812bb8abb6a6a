//! Systems: one manifest in `initrd/systems/NAME.toml` says what runs, on what, and who may talk to whom.
//!
//! [`check_all`] judges every manifest, [`pack`] makes the archive that the kernel is started with, [`graph`] draws it.

pub mod check;
mod compile;
mod diagnostic;
mod elf;
mod graph;
mod manifest;
mod options;
mod units;

use crate::cpio;
use anyhow::{Context, Result, anyhow, bail};
use check::Known;
pub use compile::is_monitor;
use diagnostic::Report;
pub use diagnostic::nearest;
use manifest::Manifest;
use moira_proto::system::System;
pub use options::Options;
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
pub use units::Size;

/// Where manifests live, from the repository's root.
const MANIFESTS: &str = "initrd/systems";

/// What [`pack`] needs beside the manifest and the images.
#[derive(Debug, Clone, Default)]
pub struct PackOptions {
    /// The repository's root.
    pub root: PathBuf,
    /// Where archives go; none: `target/systems` below the root.
    pub output: Option<PathBuf>,
    /// Where downloads are kept: see [`crate::guest`].
    pub cache: PathBuf,
    /// Values for the manifest's `[options]`.
    pub options: Options,
    /// What comes on top.
    pub addition: Addition,
}

/// What a tool adds to a manifest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addition {
    /// Text behind the manifest's own: further tasks.
    pub tasks: String,
    /// A task whose slice becomes so many thousandths of itself, to make room.
    pub squeezed: Option<(String, u64)>,
}

impl Addition {
    /// The manifest with it.
    fn to(&self, source: &str) -> String {
        let mut text = match &self.squeezed {
            Some((task, thousandths)) => squeeze(source, task, *thousandths),
            None => source.to_owned(),
        };
        text.push_str(&self.tasks);
        text
    }
}

/// A manifest in which the slice of one task is so many thousandths of what it was.
fn squeeze(source: &str, task: &str, thousandths: u64) -> String {
    const SLICE: &str = "slice = \"";
    let header = format!("[tasks.{task}]");
    let mut inside = false;
    let lines = source.split_inclusive('\n').map(|line| {
        if line.starts_with('[') {
            inside = line.trim_end() == header;
        }
        let parts = line.split_once(SLICE).filter(|_| inside && line.starts_with("time"));
        let Some((before, (slice, after))) = parts.and_then(|(before, rest)| Some((before, rest.split_once('"')?)))
        else {
            return line.to_owned();
        };
        let Some(units::Time(nanoseconds)) = units::Time::parse(slice) else { return line.to_owned() };
        format!("{before}{SLICE}{}ns\"{after}", nanoseconds / 1_000 * thousandths)
    });
    lines.collect()
}

/// The names of all systems, sorted.
pub fn names(root: &Path) -> Result<Vec<String>> {
    let folder = root.join(MANIFESTS);
    let mut names = Vec::new();
    for entry in fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "toml")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(stem.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Checks every manifest. The error shows all findings of all of them.
pub fn check_all(root: &Path) -> Result<()> {
    let known = Known { images: workspace_images(root)? };
    let mut reports = String::new();
    for name in names(root)? {
        if let Err(error) = load(root, &name, &known, &Options::new(), &Addition::default()) {
            reports.push_str(&format!("{error:#}\n"));
        }
    }
    if reports.is_empty() { Ok(()) } else { bail!("{}", reports.trim_end()) }
}

/// Reads and checks the system `name` and compiles it.
pub fn describe(root: &Path, name: &str, options: &Options) -> Result<System> {
    let known = Known { images: workspace_images(root)? };
    Ok(compile::compile(name, &load(root, name, &known, options, &Addition::default())?))
}

/// Whether the system `name` has a control channel.
pub fn has_control(root: &Path, name: &str, options: &Options) -> Result<bool> {
    Ok(describe(root, name, options)?.tasks.iter().any(compile::is_control))
}

/// The binaries that a system's tasks run, without repetition; the root task's first.
pub fn images(root: &Path, name: &str, options: &Options) -> Result<Vec<String>> {
    let known = Known { images: workspace_images(root)? };
    let names = images_of(&load(root, name, &known, options, &Addition::default())?);
    Ok(names.iter().filter_map(|image| known.binary(image)).collect())
}

/// Packs the archive of the system `name`; its path. `images` gives each binary's file.
///
/// The archive holds the root task as `root`, the compiled manifest as `system`, each image once and the manifest's
/// files, all page-aligned. It is only written if its bytes changed.
pub fn pack(name: &str, images: &HashMap<String, PathBuf>, options: &PackOptions) -> Result<PathBuf> {
    let known = Known { images: workspace_images(&options.root)? };
    let manifest = load(&options.root, name, &known, &options.options, &options.addition)?;
    let bytes = archive(name, &manifest, &known, images, options)?;
    let folder = options.output.clone().unwrap_or_else(|| options.root.join("target/systems"));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let path = folder.join(file_name(name, &options.options, &options.addition));
    if fs::read(&path).ok().as_deref() != Some(&bytes) {
        // Whole or not at all: another xtask may be reading.
        let mut part = tempfile::NamedTempFile::new_in(&folder)
            .with_context(|| format!("cannot write to {}", folder.display()))?;
        part.write_all(&bytes)
            .and_then(|()| Ok(part.persist(&path)?))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

/// Systems with options get files of their own, so that runs side by side do not take each other's.
fn file_name(name: &str, options: &Options, addition: &Addition) -> String {
    if options.is_empty() && *addition == Addition::default() {
        return format!("{name}.cpio");
    }
    let hash = Sha256::digest(format!("{options:?}{addition:?}"));
    let short: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{name}-{short}.cpio")
}

/// Draws the system `name` as SVG.
pub fn graph(root: &Path, name: &str, options: &Options) -> Result<String> {
    let known = Known { images: workspace_images(root)? };
    let manifest = load(root, name, &known, options, &Addition::default())?;
    Ok(graph::draw(&compile::compile(name, &manifest), &manifest.system.description))
}

/// The `[options]` of the system `name`, each with its value: the manifest's own, or the one in `given`.
pub fn settings(root: &Path, name: &str, given: &Options) -> Result<Options> {
    let mut settings = options::own(&read(root, name)?).unwrap_or_default();
    settings.extend(given.clone());
    Ok(settings)
}

/// A manifest's path as it is shown.
fn shown(name: &str) -> PathBuf {
    Path::new(MANIFESTS).join(format!("{name}.toml"))
}

/// The text of a manifest.
fn read(root: &Path, name: &str) -> Result<String> {
    let shown = shown(name);
    fs::read_to_string(root.join(&shown)).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => anyhow!("{}", no_such_system(root, name)),
        _ => anyhow::Error::new(error).context(format!("cannot read {}", shown.display())),
    })
}

fn load(root: &Path, name: &str, known: &Known, options: &Options, addition: &Addition) -> Result<Manifest> {
    let shown = shown(name);
    let source = addition.to(&read(root, name)?);
    let text = options::substitute(&source, options).map_err(|finding| Report::new(&shown, &source, vec![finding]))?;
    Ok(check::check(&shown, &text, known)?)
}

fn no_such_system(root: &Path, name: &str) -> String {
    let all = names(root).unwrap_or_default();
    if let Some(bare) = name.strip_suffix(".toml") {
        let bare = bare.rsplit('/').next().unwrap_or_default();
        let there = if all.iter().any(|name| name == bare) { "" } else { ", and there is none of that name" };
        return format!("no system `{name}` in {MANIFESTS}; a system is named without .toml: `{bare}`{there}");
    }
    let hint = match nearest(name, all.iter().map(String::as_str)) {
        Some(close) => format!("did you mean `{close}`?"),
        None => format!("there are: {}", all.join(", ")),
    };
    format!("no system `{name}` in {MANIFESTS}; {hint}")
}

fn images_of(manifest: &Manifest) -> Vec<String> {
    let root = manifest.system.root.get_ref().clone();
    let tasks = manifest.tasks.iter().map(|(name, task)| check::image_of(name, task.get_ref()).to_owned());
    // The root task's file is called `root`, whatever its binary's name.
    let others: BTreeSet<String> = tasks.filter(|image| image != "root").collect();
    std::iter::once(root).chain(others).collect()
}

fn archive(
    name: &str,
    manifest: &Manifest,
    known: &Known,
    images: &HashMap<String, PathBuf>,
    options: &PackOptions,
) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::new();
    for (index, image) in images_of(manifest).iter().enumerate() {
        let path = images
            .get(&known.binary(image).unwrap_or_default())
            .with_context(|| format!("the image `{image}` was not built"))?;
        let bytes = fs::read(path).with_context(|| format!("cannot read the image {}", path.display()))?;
        let bytes = elf::loadable(&bytes).with_context(|| format!("{} is no ELF program", path.display()))?;
        archive.file(if index == 0 { "root" } else { image }, &bytes)?;
        if index == 0 {
            let system = compile::compile(name, manifest);
            archive.file("system", &postcard::to_allocvec(&system).context("cannot encode the manifest")?)?;
        }
    }
    for (file, path) in &manifest.files {
        let (file, path) = (file.get_ref(), path.get_ref());
        if path.is_empty() {
            continue;
        }
        let bytes = if let Some(size) = path.strip_prefix("zeros:") {
            zeros(size)?
        } else if let Some(list) = path.strip_prefix(MODULES) {
            modules(list, images, options).with_context(|| format!("cannot pack `{file}`"))?
        } else {
            let path = source_file(path, images, options)?;
            fs::read(&path).with_context(|| format!("cannot read `{file}` from {}", path.display()))?
        };
        archive.file(file, &bytes).with_context(|| format!("cannot pack `{file}`"))?;
    }
    Ok(archive.finish())
}

/// What a list of modules begins with, and what stands between two of them: `modules:FILE[:COMMAND LINE]|FILE…`.
pub const MODULES: &str = "modules:";
/// See [`MODULES`].
pub const NEXT_MODULE: char = '|';

/// An archive of modules for a guest, whose names are their command lines.
fn modules(list: &str, images: &HashMap<String, PathBuf>, options: &PackOptions) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::new();
    for module in list.split(NEXT_MODULE).filter(|module| !module.is_empty()) {
        let (file, cmdline) = split_module(module);
        let path = source_file(file, images, options)?;
        let bytes = fs::read(&path).with_context(|| format!("cannot read the module {}", path.display()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(cmdline.unwrap_or(&name), &bytes)?;
    }
    Ok(archive.finish())
}

/// A module's file and command line. The colon of `guest:` and `image:` belongs to the file.
pub fn split_module(module: &str) -> (&str, Option<&str>) {
    let skip = ["guest:", "image:"].iter().find(|prefix| module.starts_with(**prefix)).map_or(0, |prefix| prefix.len());
    match module[skip..].find(':') {
        Some(at) => (&module[..skip + at], Some(&module[skip + at + 1..])),
        None => (module, None),
    }
}

/// An empty disk of so many MiB.
fn zeros(mebibytes: &str) -> Result<Vec<u8>> {
    let size: usize = mebibytes
        .parse()
        .ok()
        .filter(|size| (1..=1024).contains(size))
        .with_context(|| format!("`zeros:{mebibytes}` is no number of MiB from 1 to 1024"))?;
    Ok(vec![0; size << 20])
}

/// The file behind a value of `[files]`: Debian's guest, a binary of the workspace, or a path from the repository's root.
fn source_file(path: &str, images: &HashMap<String, PathBuf>, options: &PackOptions) -> Result<PathBuf> {
    if let Some(name) = path.strip_prefix("image:") {
        return images.get(name).cloned().with_context(|| format!("the image `{name}` was not built"));
    }
    match path.strip_prefix("guest:") {
        Some(part) => crate::guest::file(&options.cache, part),
        None => Ok(options.root.join(path)),
    }
}

/// Names of all binaries that run on the kernel: those of members with `[package.metadata.moira] image = true`.
fn workspace_images(root: &Path) -> Result<BTreeSet<String>> {
    let read = |path: PathBuf| -> Result<toml::Table> {
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    };
    let strings = |list: Option<&toml::Value>| -> Vec<String> {
        let items = list.and_then(toml::Value::as_array).into_iter().flatten();
        items.filter_map(toml::Value::as_str).map(str::to_owned).collect()
    };
    let workspace = read(root.join("Cargo.toml"))?;
    let members = workspace.get("workspace").and_then(|table| table.get("members"));
    let mut images = BTreeSet::new();
    for member in strings(members) {
        let folder = root.join(member);
        let manifest = read(folder.join("Cargo.toml"))?;
        let package = manifest.get("package");
        let marked = package.and_then(|package| package.get("metadata")?.get("moira")?.get("image")?.as_bool());
        if marked != Some(true) {
            continue;
        }
        let binaries = manifest.get("bin").and_then(toml::Value::as_array);
        let named = binaries.into_iter().flatten().chain(package.filter(|_| binaries.is_none()));
        images.extend(named.filter_map(|table| Some(table.get("name")?.as_str()?.to_owned())));
        // Further programs by cargo's rule: each file of src/bin.
        for entry in fs::read_dir(folder.join("src/bin")).into_iter().flatten().flatten() {
            let path = entry.path();
            images.extend(path.file_stem().and_then(|stem| stem.to_str()).map(str::to_owned));
        }
    }
    Ok(images)
}

#[cfg(test)]
mod tests;
