//! Stand-in for the real front end: enough to call the modules of this crate.

mod cpio;
mod flash;
mod guest;
mod image;
mod system;

use anyhow::Result;
use clap::Parser;
use std::collections::HashMap;
use std::path::PathBuf;

#[derive(Parser)]
enum Command {
    /// Check all manifests
    Check,
    /// Draw one system
    Graph { name: String },
    /// Pack one system from already built binaries in a folder
    Pack { name: String, folder: PathBuf },
    /// Fetch the guest
    Guest,
    /// Make an image
    Image {
        kernel: PathBuf,
        initrd: PathBuf,
        command_line: String,
        out: PathBuf,
    },
    /// Make a folder for network boot
    Network {
        kernel: PathBuf,
        initrd: PathBuf,
        command_line: String,
        out: PathBuf,
    },
    /// Write an image
    Flash {
        image: PathBuf,
        device: PathBuf,
        #[arg(long)]
        yes_really: Option<PathBuf>,
    },
}

fn main() -> Result<()> {
    let root = std::env::var_os("ROOT").map_or(
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".."),
        PathBuf::from,
    );
    let cache = root.join("target/cache");
    match Command::parse() {
        Command::Check => system::check_all(&root)?,
        Command::Graph { name } => print!("{}", system::graph(&root, &name, &Default::default())?),
        Command::Pack { name, folder } => {
            let images = system::images(&root, &name, &Default::default())?;
            let images: HashMap<_, _> = images
                .into_iter()
                .map(|i| (i.clone(), folder.join(i)))
                .collect();
            let options = system::PackOptions {
                root,
                cache,
                ..Default::default()
            };
            println!("{}", system::pack(&name, &images, &options)?.display());
        }
        Command::Image {
            kernel,
            initrd,
            command_line,
            out,
        } => image::build(&kernel, &initrd, &command_line, &out)?,
        Command::Network {
            kernel,
            initrd,
            command_line,
            out,
        } => {
            image::build_network(&kernel, &initrd, &command_line, &out)?;
        }
        Command::Flash {
            image,
            device,
            yes_really,
        } => flash::run(&flash::FlashArgs {
            image,
            device,
            yes_really,
        })?,
        Command::Guest => println!("{:?}", guest::linux(&cache)?),
    }
    Ok(())
}
