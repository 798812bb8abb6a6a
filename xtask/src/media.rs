//! `system`, `image` and `flash`: what is made for people to look at, to keep and to write to a device.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::build::{self, System};
use crate::cli::Global;
use crate::flash::{self, FlashArgs};
use crate::{hosttools, image, paths, system};

/// What to show of a system.
#[derive(clap::Args, Debug)]
pub struct SystemOptions {
    /// A file of initrd/systems, without `.toml`; all are checked where none is named
    name: Option<String>,
    /// Draw who may call, signal and share memory with whom, as SVG
    #[arg(long, requires = "name")]
    graph: bool,
    /// Where the picture goes [default: standard output]
    #[arg(long, short, value_name = "FILE", requires = "graph")]
    output: Option<PathBuf>,
}

/// Checks manifests and draws them.
pub fn system(options: &SystemOptions) -> Result<ExitCode> {
    let root = paths::root();
    let none = BTreeMap::new();
    match &options.name {
        None => {
            system::check_all(&root)?;
            println!("right: {}", system::names(&root)?.join(", "));
        }
        Some(name) if options.graph => {
            let picture = system::graph(&root, name, &none)?;
            match &options.output {
                None => print!("{picture}"),
                Some(path) => {
                    std::fs::write(path, picture).with_context(|| format!("cannot write {}", path.display()))?;
                }
            }
        }
        Some(name) => {
            system::describe(&root, name, &none)?;
            println!("{name} is right; its root and tasks run: {}", system::images(&root, name, &none)?.join(", "));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What an image holds.
#[derive(clap::Args, Debug)]
pub struct ImageOptions {
    /// A file of initrd/systems, without `.toml` [default: linux, or firmware with --firmware]
    #[arg(long)]
    system: Option<String>,
    /// Where the image goes [default: target/moira-SYSTEM.img]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Make a folder for booting by network (PXE over TFTP) in place of an image
    #[arg(long, value_name = "FOLDER", conflicts_with = "output")]
    network: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, default_value = "", hide_default_value = true)]
    cmdline: String,
    #[command(flatten)]
    guest: crate::guest::options::GuestOptions,
}

/// Makes an image that boots from BIOS and UEFI, as a disk, a stick or a CD.
pub fn image(options: &ImageOptions, global: &Global) -> Result<ExitCode> {
    let (name, system) = build_system(options, global)?;
    let out = match &options.network {
        Some(folder) => {
            image::build_network(&system.kernel, &system.initrd, &options.cmdline, folder)?;
            folder.clone()
        }
        None => image_of(options, &name, &system)?,
    };
    println!("{}", out.display());
    Ok(ExitCode::SUCCESS)
}

fn build_system(options: &ImageOptions, global: &Global) -> Result<(String, System)> {
    let name = options.system.clone().unwrap_or_else(|| options.guest.default_system());
    options.guest.check(&name)?;
    let values = options.guest.values()?;
    crate::guest::check::check(&system::settings(&paths::root(), &name, &values)?)?;
    let mut tools = vec![hosttools::GRUB];
    tools.extend(hosttools::of_system(&name));
    let images = build::with_tools(&tools, global)?;
    let system = build::system(&name, &images, &values)?;
    Ok((name, system))
}

fn image_of(options: &ImageOptions, name: &str, system: &System) -> Result<PathBuf> {
    let usual = || paths::target().join(format!("moira-{name}.img"));
    let out = options.output.clone().unwrap_or_else(usual);
    let step = crate::progress::step("making the image");
    image::build(&system.kernel, &system.initrd, &options.cmdline, &out)?;
    step.finish();
    Ok(out)
}

/// What to write where.
#[derive(clap::Args, Debug)]
pub struct FlashOptions {
    /// The device to overwrite, as /dev/sdX
    device: PathBuf,
    /// The same device again, where it does not call itself removable
    #[arg(long, value_name = "DEVICE")]
    yes_really: Option<PathBuf>,
    /// An image that is there already [default: one is built]
    #[arg(long, value_name = "FILE")]
    image: Option<PathBuf>,
    #[command(flatten)]
    build: ImageOptions,
}

/// Writes an image to a device.
pub fn flash(options: &FlashOptions, global: &Global) -> Result<ExitCode> {
    if options.build.network.is_some() {
        bail!("--network makes a folder, which no device takes");
    }
    let image = match &options.image {
        Some(image) => image.clone(),
        None => {
            flash::check(&options.device, options.yes_really.as_deref())?;
            let (name, system) = build_system(&options.build, global)?;
            image_of(&options.build, &name, &system)?
        }
    };
    flash::run(&FlashArgs { image, device: options.device.clone(), yes_really: options.yes_really.clone() })?;
    Ok(ExitCode::SUCCESS)
}
