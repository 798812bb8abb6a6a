//! Boot media: one image for BIOS and UEFI, on disk, USB stick or CD, and a folder for network boot. GRUB does the work.
//!
//! `grub-mkrescue` writes an ISO 9660 file system that is also a disk with a GPT: its first sectors hold GRUB for BIOS,
//! an EFI system partition holds it for UEFI. So the same file is a CD and a disk, and nothing here needs to be root.

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's packages put GRUB, by firmware, with the package's name.
const PLATFORMS: &[(&str, &str)] = &[("i386-pc", "grub-pc-bin"), ("x86_64-efi", "grub-efi-amd64-bin")];
/// Folder of GRUB's platforms.
const GRUB: &str = "/usr/lib/grub";
/// Programs needed, with their packages.
const TOOLS: &[(&str, &str)] = &[("grub-mkrescue", "grub-common"), ("xorriso", "xorriso"), ("mformat", "mtools")];
/// All modules of GRUB that the image needs; its default is all there are, four times the size.
/// The partition tables of other worlds are only there because GRUB's loader on UEFI complains without them.
const MODULES: &str = "multiboot2 linux normal iso9660 fat serial terminal search search_fs_file configfile echo test all_video \
    part_gpt part_msdos part_acorn part_amiga part_apple part_bsd part_dfly part_dvh part_plan part_sun part_sunpc";
/// First word of a Multiboot2 header, which starts on eight bytes within the first 32 KiB of the kernel.
const MULTIBOOT2: u32 = 0xe852_50d6;

/// Makes the image `out` that boots `kernel` with `initrd` as its module and `command_line`.
///
/// Nothing is done if `out` was made from the same files before.
///
/// # Errors
/// Missing tools (named with their packages), a kernel without a Multiboot2 header, a command line that GRUB cannot take.
pub fn build(kernel: &Path, initrd: &Path, command_line: &str, out: &Path) -> Result<()> {
    make(&Files::read(kernel, initrd, command_line)?, out)
}

/// Makes the image `out` that boots Linux: a bzImage with an initial RAM disk.
///
/// # Errors
/// As for [`build`], but for the header.
pub fn build_linux(kernel: &Path, initrd: &Path, command_line: &str, out: &Path) -> Result<()> {
    make(&Files::read_linux(kernel, initrd, command_line)?, out)
}

fn make(files: &Files, out: &Path) -> Result<()> {
    let stamp = stamp_of(out);
    let seal = files.seal();
    if out.is_file() && fs::read_to_string(&stamp).is_ok_and(|old| old == seal) {
        return Ok(());
    }
    tools(TOOLS, Path::new(GRUB))?;
    // An interrupted run must not leave a stamp beside half an image.
    let _ = fs::remove_file(&stamp);
    let parent = out.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).with_context(|| format!("cannot make {}", parent.display()))?;
    let tree = tempfile::tempdir_in(parent).context("cannot make a temporary folder")?;
    files.lay_out(tree.path())?;
    run(Command::new("grub-mkrescue")
        .arg("--output")
        .arg(out)
        .args(["--fonts=", "--locales=", "--themes=", "--compress=xz"])
        .arg(format!("--install-modules={MODULES}"))
        .arg(tree.path()))?;
    fs::write(&stamp, seal).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Makes `folder` a TFTP root that boots the same by network: PXE from BIOS takes `boot/grub/i386-pc/core.0`, from
/// UEFI `boot/grub/x86_64-efi/core.efi`.
///
/// # Errors
/// As for [`build`].
pub fn build_network(kernel: &Path, initrd: &Path, command_line: &str, folder: &Path) -> Result<()> {
    let files = Files::read(kernel, initrd, command_line)?;
    tools(&[("grub-mknetdir", "grub-common")], Path::new(GRUB))?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (platform, _) in PLATFORMS {
        run(Command::new("grub-mknetdir")
            .arg(format!("--net-directory={}", folder.display()))
            .args(["--subdir=boot/grub", "--fonts=", "--locales=", "--themes="])
            .arg(format!("--install-modules={MODULES} tftp net"))
            .arg(format!("--directory={GRUB}/{platform}")))?;
    }
    files.lay_out(folder)
}

/// What goes into an image.
struct Files {
    kernel: Vec<u8>,
    initrd: Vec<u8>,
    config: String,
}

impl Files {
    fn read_linux(kernel: &Path, initrd: &Path, command_line: &str) -> Result<Files> {
        let config = config(command_line, &LINUX_COMMANDS)?;
        Ok(Files { kernel: contents(kernel)?, initrd: contents(initrd)?, config })
    }

    fn read(kernel: &Path, initrd: &Path, command_line: &str) -> Result<Files> {
        let config = config(command_line, &MULTIBOOT_COMMANDS)?;
        let files = Files { kernel: contents(kernel)?, initrd: contents(initrd)?, config };
        if !has_multiboot2_header(&files.kernel) {
            bail!("{} has no Multiboot2 header, so GRUB cannot boot it", kernel.display());
        }
        Ok(files)
    }

    fn lay_out(&self, root: &Path) -> Result<()> {
        let parts: [(&str, &[u8]); 3] = [
            ("boot/kernel", &self.kernel),
            ("boot/initrd", &self.initrd),
            ("boot/grub/grub.cfg", self.config.as_bytes()),
        ];
        fs::create_dir_all(root.join("boot/grub")).with_context(|| format!("cannot make {}", root.display()))?;
        for (name, bytes) in parts {
            let path = root.join(name);
            fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Tells this content from any other.
    fn seal(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.kernel[..], &self.initrd, self.config.as_bytes(), MODULES.as_bytes()] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

fn contents(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn stamp_of(out: &Path) -> PathBuf {
    let mut name = out.as_os_str().to_owned();
    name.push(".stamp");
    PathBuf::from(name)
}

/// What GRUB calls a kernel and its module, and the terminals it talks to.
struct Commands {
    kernel: &'static str,
    module: &'static str,
    terminals: &'static str,
    graphics: &'static str,
}

const MULTIBOOT_COMMANDS: Commands = Commands {
    kernel: "multiboot2",
    module: "module2",
    terminals: "console serial",
    graphics: "if [ \"$grub_platform\" = efi ]; then insmod all_video; fi",
};
/// A guest has no screen; its firmware shows its own on the same serial line.
const LINUX_COMMANDS: Commands =
    Commands { kernel: "linux", module: "initrd", terminals: "serial", graphics: "set gfxpayload=text" };

/// GRUB's configuration. Both consoles, since a box may have only one of them. UEFI has no text screen, so GRUB wants
/// a graphics mode there; on a BIOS it would take the text screen away.
fn config(command_line: &str, commands: &Commands) -> Result<String> {
    if let Some(bad) = command_line.chars().find(|c| c.is_control() || matches!(c, '\'' | '"' | '\\')) {
        bail!("the command line holds {bad:?}, which GRUB's configuration cannot carry");
    }
    let words: Vec<String> = command_line.split_whitespace().map(|word| format!(" '{word}'")).collect();
    let Commands { kernel, module, terminals, graphics } = commands;
    Ok(format!(
        "serial --unit=0 --speed=115200\n\
         terminal_input {terminals}\n\
         terminal_output {terminals}\n\
         set timeout=0\n\
         {graphics}\n\
         {kernel} /boot/kernel{}\n\
         {module} /boot/initrd\n\
         boot\n",
        words.concat()
    ))
}

fn has_multiboot2_header(kernel: &[u8]) -> bool {
    let window = kernel.get(..kernel.len().min(32 << 10)).unwrap_or(&[]);
    window.chunks_exact(8).any(|chunk| {
        let word: Option<[u8; 4]> = chunk.get(..4).and_then(|word| word.try_into().ok());
        word.map(u32::from_le_bytes) == Some(MULTIBOOT2)
    })
}

/// One message that names everything missing.
fn tools(programs: &[(&str, &str)], grub: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for (program, package) in programs {
        if !on_path(program) {
            missing.push(format!("{program} (package {package})"));
        }
    }
    for (platform, package) in PLATFORMS {
        if !grub.join(platform).join("multiboot2.mod").exists() {
            missing.push(format!("GRUB for {platform} (package {package})"));
        }
    }
    if missing.is_empty() { Ok(()) } else { bail!("an image cannot be made without: {}", missing.join(", ")) }
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

/// Runs a tool that talks a lot; its last line is the error if it fails.
fn run(command: &mut Command) -> Result<()> {
    let name = Path::new(command.get_program()).file_name().unwrap_or(OsStr::new("?")).to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("cannot run {name}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("without a word");
        bail!("{name} failed: {last}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least that GRUB takes for a Multiboot2 kernel: it is made, not booted, here.
    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0_u8; 64];
        kernel[16..20].copy_from_slice(&MULTIBOOT2.to_le_bytes());
        kernel
    }

    #[test]
    fn the_header_is_found_where_it_may_stand() {
        assert!(has_multiboot2_header(&kernel()));
        let mut late = vec![0; 32 << 10];
        late.extend_from_slice(&kernel());
        assert!(!has_multiboot2_header(&late));
        let mut askew = vec![0; 4];
        askew.extend_from_slice(&kernel());
        assert!(!has_multiboot2_header(&askew));
        assert!(!has_multiboot2_header(b""));
    }

    #[test]
    fn the_command_line_is_quoted_or_refused() {
        assert!(config("a=1 $b;c", &MULTIBOOT_COMMANDS).unwrap().contains("multiboot2 /boot/kernel 'a=1' '$b;c'\n"));
        assert!(config("", &MULTIBOOT_COMMANDS).unwrap().contains("multiboot2 /boot/kernel\n"));
        assert!(
            config("quiet", &LINUX_COMMANDS).unwrap().contains("linux /boot/kernel 'quiet'\ninitrd /boot/initrd\n")
        );
        for bad in ["it's", "a\nb", "\"", "\\"] {
            assert!(config(bad, &MULTIBOOT_COMMANDS).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_seal_tells_contents_apart() {
        let files = |initrd: &[u8]| Files { kernel: kernel(), initrd: initrd.to_vec(), config: String::new() };
        assert_eq!(files(b"a").seal(), files(b"a").seal());
        assert_ne!(files(b"a").seal(), files(b"b").seal());
    }

    #[test]
    fn missing_tools_are_all_named_with_their_packages() {
        let empty = tempfile::tempdir().unwrap();
        let error = tools(&[("no-such-tool", "some-package")], empty.path()).unwrap_err().to_string();
        for word in ["no-such-tool", "some-package", "i386-pc", "grub-pc-bin", "grub-efi-amd64-bin"] {
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_kernel_grub_cannot_boot_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel");
        fs::write(&path, b"no kernel").unwrap();
        let error = build(&path, &path, "", &folder.path().join("out")).unwrap_err();
        assert!(error.to_string().contains("no Multiboot2 header"), "{error}");
    }
}
