//! Bootable images with GRUB, the kernel and one module, made again only when one of these changed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Firmware, Machine, Module};
use crate::build::System;
use crate::process;

const NAME: &str = "boot.iso";
/// All of GRUB that a CD needs.
const MODULES: &str = "--install-modules=multiboot2 normal iso9660 biosdisk configfile";

/// Makes the image that `machine` starts `system` from in `folder`.
pub fn make(system: &System, cmdline: &str, machine: &Machine, folder: &Path) -> Result<PathBuf> {
    match machine.firmware {
        Firmware::Pvh | Firmware::Disk => bail!("this machine boots without an image of ours"),
        // BIOS only: Bochs knows nothing else, and without the rest the image is small and quickly made.
        Firmware::Grub => cd(system, cmdline, machine.module, folder),
        // The image that `cargo xtask image` makes for people: what is tested is what they get.
        Firmware::Seabios | Firmware::Ovmf => {
            let disk = folder.join("disk.img");
            crate::image::build(&system.kernel, &system.initrd, cmdline, &disk)?;
            Ok(disk)
        }
    }
}

/// The menu of GRUB that starts the kernel at once.
fn grub_menu(cmdline: &str, module: Module) -> Result<String> {
    if cmdline.contains(['\'', '\n', '\\', '"', '$', ';', '{', '}']) {
        bail!("GRUB would not pass this command line on as it is: {cmdline}");
    }
    let module = if module == Module::None { "" } else { "module2 /moira/initrd\n" };
    Ok(format!("set timeout=0\nmultiboot2 /moira/kernel {cmdline}\n{module}boot\n"))
}

/// Makes the image with GRUB's own tool, unless the one that is there is still right.
fn cd(system: &System, cmdline: &str, module: Module, folder: &Path) -> Result<PathBuf> {
    let menu = grub_menu(cmdline, module)?;
    let image = folder.join(NAME);
    let tree = folder.join("tree");
    let stamp = folder.join("boot.inputs");
    let inputs = format!("{menu}{module:?}\n{}\n{}\n", identity(&system.kernel)?, identity(&system.initrd)?);
    if image.is_file() && fs::read_to_string(&stamp).is_ok_and(|old| old == inputs) {
        return Ok(image);
    }
    // An interrupted call leaves no stamp, and cannot be taken for a finished one.
    let _ = fs::remove_file(&stamp);
    let _ = fs::remove_dir_all(&tree);
    fs::create_dir_all(tree.join("boot/grub"))?;
    fs::create_dir_all(tree.join("moira"))?;
    fs::write(tree.join("boot/grub/grub.cfg"), menu)?;
    copy(&system.kernel, &tree.join("moira/kernel"))?;
    if let Some(module) = module.of(&system.initrd, folder)? {
        copy(&module, &tree.join("moira/initrd"))?;
    }
    process::output(
        Command::new("grub-mkrescue")
            .args(["--locales=", "--themes=", "--fonts="])
            .args(["-d", "/usr/lib/grub/i386-pc", MODULES])
            .arg("-o")
            .arg(&image)
            .arg(&tree),
    )?;
    fs::write(&stamp, inputs).with_context(|| format!("cannot write {}", stamp.display()))?;
    Ok(image)
}

/// What tells a file from every other one and from itself before a change: one that is older than the image may be another one.
fn identity(path: &Path) -> Result<String> {
    let data = path.metadata().with_context(|| format!("cannot read {}", path.display()))?;
    let changed = data.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok(format!("{} {} {}", path.display(), data.len(), changed.as_nanos()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_file_is_another_one_however_old() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let (one, other) = (file("one", "same"), file("other", "same"));
        assert_ne!(identity(&one).unwrap(), identity(&other).unwrap());
        let before = identity(&one).unwrap();
        assert_eq!(before, identity(&one).unwrap());
        fs::write(&one, "longer").unwrap();
        assert_ne!(before, identity(&one).unwrap());
        assert!(identity(&folder.path().join("nothing")).is_err());
    }

    #[test]
    fn the_menu_takes_plain_command_lines_only() {
        assert!(
            grub_menu("exit=debug selftest=panic", Module::Whole)
                .unwrap()
                .contains("kernel exit=debug selftest=panic\n")
        );
        assert!(grub_menu("a; reboot", Module::Whole).is_err());
        assert!(grub_menu("$root", Module::Whole).is_err());
    }
}
