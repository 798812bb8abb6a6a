//! Building the kernel and every task, and putting a system together from them.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::cli::Global;
use crate::hosttools::{self, Install, Tool};
use crate::system::{Addition, PackOptions};
use crate::toolchain::{self, Toolchain};
use crate::{paths, process};

/// The package and the binary of the kernel.
pub const KERNEL: &str = "moira-kernel";

/// What a build left behind.
#[derive(Clone, Debug)]
pub struct Images {
    /// The kernel as it boots, without debug information.
    pub kernel: PathBuf,
    /// The kernel with its debug information, for symbols and gdb.
    pub kernel_symbols: PathBuf,
    /// Each task's image without debug information, by the name of its binary.
    pub tasks: HashMap<String, PathBuf>,
}

/// A system that can be booted.
#[derive(Clone, Debug)]
pub struct System {
    /// The kernel as it boots.
    pub kernel: PathBuf,
    /// The kernel with debug information.
    pub kernel_symbols: PathBuf,
    /// The one module: the packed tasks and their manifest.
    pub initrd: PathBuf,
    /// Whether it has a control channel on a second serial port.
    pub control: bool,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
struct Package {
    name: String,
    #[serde(default)]
    metadata: serde_json::Value,
}

/// The names of the packages that are images for bare metal: the kernel, and every package that says so with
/// `[package.metadata.moira] image = true`.
pub fn image_packages() -> Result<Vec<String>> {
    let output = process::output(
        toolchain::rustup_cargo().args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(paths::root()),
    )?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cannot read cargo's metadata")?;
    Ok(metadata
        .packages
        .into_iter()
        .filter(|package| package.name == KERNEL || package.metadata["moira"]["image"] == true)
        .map(|package| package.name)
        .collect())
}

#[derive(Deserialize)]
struct Message {
    reason: String,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Installs what is missing of `tools`, finds a compiler for the bare machine, says which, and builds the kernel and all tasks.
pub fn with_tools(tools: &[&[Tool]], global: &Global) -> Result<Images> {
    hosttools::require(&[tools, &[hosttools::BINUTILS]].concat(), global.install())?;
    let toolchain = Toolchain::find(global.toolchain, global.install())?;
    eprintln!("compiler: {}", toolchain.origin);
    images(&toolchain, global.install())
}

/// Builds the kernel and all tasks in one call of cargo.
pub fn images(toolchain: &Toolchain, install: Install) -> Result<Images> {
    let mut command = toolchain.cargo("build");
    command.args(["--release", "--message-format=json-render-diagnostics"]);
    for package in image_packages()? {
        command.args(["-p", &package]);
    }
    let mut built = run_cargo(&mut command)?;
    let kernel_symbols = built.remove(KERNEL).context("the build made no kernel")?;
    hosttools::require(&[hosttools::BINUTILS], install)?;
    let folder = toolchain.target_dir().join("images");
    fs::create_dir_all(&folder)?;
    let mut tasks = HashMap::new();
    for (name, path) in &built {
        tasks.insert(name.clone(), without_debug_information(path, &folder)?);
    }
    let kernel = without_debug_information(&kernel_symbols, &folder)?;
    Ok(Images { kernel, kernel_symbols, tasks })
}

/// Builds the kernel with a feature that the one that is shipped does not have; its image.
pub fn kernel_with(feature: &str, toolchain: &Toolchain, install: Install) -> Result<PathBuf> {
    let mut command = toolchain.cargo("build");
    command.args(["--release", "--message-format=json-render-diagnostics", "-p", KERNEL, "--features"]);
    command.arg(format!("{KERNEL}/{feature}"));
    let built = run_cargo(&mut command)?.remove(KERNEL).context("the build made no kernel")?;
    hosttools::require(&[hosttools::BINUTILS], install)?;
    let folder = toolchain.target_dir().join("images").join(feature);
    fs::create_dir_all(&folder)?;
    without_debug_information(&built, &folder)
}

/// Runs cargo, lets its progress and complaints through, and returns its executables by name.
pub fn run_cargo(command: &mut Command) -> Result<HashMap<String, PathBuf>> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let mut built = HashMap::new();
    let stdout = child.stdout.take().context("cargo has no output")?;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        // Build scripts may print lines of their own; only cargo's messages are JSON objects.
        let Ok(message) = serde_json::from_str::<Message>(&line) else {
            continue;
        };
        if let ("compiler-artifact", Some(target), Some(path)) =
            (message.reason.as_str(), message.target, message.executable)
        {
            built.insert(target.name, path);
        }
    }
    if !child.wait()?.success() {
        bail!("the build failed");
    }
    Ok(built)
}

/// A copy of `image` without debug information in `folder`, made again only when the image is newer.
fn without_debug_information(image: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join(image.file_name().context("an image has no name")?);
    if !is_newer(image, &copy) {
        return Ok(copy);
    }
    // Under its final name only when complete: a second xtask may be reading.
    let part = tempfile::Builder::new().prefix(".strip-").tempfile_in(folder)?;
    process::output(Command::new("objcopy").arg("--strip-debug").arg(image).arg(part.path()))?;
    part.persist(&copy).with_context(|| format!("cannot write {}", copy.display()))?;
    Ok(copy)
}

/// Whether `source` was written after `made`, or `made` is not there.
pub fn is_newer(source: &Path, made: &Path) -> bool {
    let time = |path: &Path| path.metadata().and_then(|data| data.modified()).ok();
    match (time(source), time(made)) {
        (Some(source), Some(made)) => source > made,
        _ => true,
    }
}

/// Puts the system `name` together: checks its manifest and packs one initrd.
///
/// `options` are values for the manifest's `[options]`.
pub fn system(name: &str, images: &Images, options: &BTreeMap<String, String>) -> Result<System> {
    system_with(name, images, options, &Addition::default())
}

/// [`system`], with something added to its manifest.
pub fn system_with(
    name: &str,
    images: &Images,
    options: &BTreeMap<String, String>,
    addition: &Addition,
) -> Result<System> {
    let options = PackOptions {
        root: paths::root(),
        output: Some(paths::target().join("systems")),
        cache: paths::cache()?,
        options: options.clone(),
        addition: addition.clone(),
    };
    let initrd = crate::system::pack(name, &images.tasks, &options)?;
    let control = crate::system::has_control(&options.root, name, &options.options)?;
    Ok(System { kernel: images.kernel.clone(), kernel_symbols: images.kernel_symbols.clone(), initrd, control })
}
