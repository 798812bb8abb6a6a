//! What goes into a system's virtual machine, as it is said on the command line.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::cli::parse_memory;
use crate::{paths, system};

/// What goes into the system's virtual machine.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Options for systems with a guest")]
pub struct GuestOptions {
    /// The guest's kernel: a Linux bzImage, an ELF file with a PVH note, a Multiboot kernel, any other 64-bit ELF file; or
    /// guest:NAME for one that xtask fetches (docs/guests.md). Without --guest-initrd it gets no RAM disk
    #[arg(long, value_name = "FILE")]
    guest_kernel: Option<PathBuf>,
    /// The guest's initial RAM disk
    #[arg(long, value_name = "FILE")]
    guest_initrd: Option<PathBuf>,
    /// A module for the guest's kernel, with its command line; may be given several times
    #[arg(long, value_name = "FILE[:TEXT]")]
    guest_module: Vec<String>,
    /// The guest's disk image
    #[arg(long, value_name = "FILE")]
    guest_disk: Option<PathBuf>,
    /// Firmware that starts the guest from its disk: seabios, ovmf, or an image
    #[arg(long, value_name = "FIRMWARE")]
    firmware: Option<String>,
    /// The guest's kernel command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    guest_cmdline: Option<String>,
    /// The guest's processors: how many, all on one CPU, or for each the CPU that it lives on, as 0,1
    #[arg(long, value_name = "NUMBER|CPUS")]
    guest_cpus: Option<String>,
    /// Let gdb debug the guest over this port; without one, 1235. With several guests, the first one
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "1235")]
    pub guest_gdb: Option<u16>,
    /// The guest's memory, as 512M or 2G
    #[arg(long, value_parser = parse_memory, value_name = "SIZE")]
    pub guest_memory: Option<u32>,
    /// A value for another entry of the manifest's [options]; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_pair)]
    set: Vec<(String, String)>,
}

/// Parses `NAME=VALUE`.
pub fn parse_pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} has no `=`"))?;
    Ok((name.to_string(), value.to_string()))
}

impl GuestOptions {
    /// The system that is meant where none is named.
    pub fn default_system(&self) -> String {
        let name = if self.firmware.is_some() { "firmware" } else { "linux" };
        if paths::system_manifest(name).exists() { name } else { "first" }.into()
    }

    /// The options that were given, as they are typed, with the manifest's option that each is for.
    fn typed(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            (self.guest_kernel.is_some(), "--guest-kernel", "guest-kernel"),
            (self.guest_initrd.is_some(), "--guest-initrd", "guest-initrd"),
            (!self.guest_module.is_empty(), "--guest-module", "guest-modules"),
            (self.guest_cmdline.is_some(), "--guest-cmdline", "guest-cmdline"),
            (self.firmware.is_some(), "--firmware", "guest-firmware"),
            (self.guest_disk.is_some(), "--guest-disk", "guest-disk"),
            (self.guest_cpus.is_some(), "--guest-cpus", "guest-cpus"),
            (self.guest_memory.is_some(), "--guest-memory", "guest-memory"),
        ];
        all.into_iter().filter(|(given, ..)| *given).map(|(_, flag, option)| (flag, option)).collect()
    }

    /// Refuses options that contradict each other, or that the system `name` has no use for.
    pub fn check(&self, name: &str) -> Result<()> {
        const KERNELS: [&str; 4] = ["guest-kernel", "guest-initrd", "guest-modules", "guest-cmdline"];
        let typed = self.typed();
        if self.firmware.is_some()
            && let Some((flag, _)) = typed.iter().find(|(_, option)| KERNELS.contains(option))
        {
            bail!("{flag} does not go with --firmware: what boots is on the disk");
        }
        let has = system::settings(&paths::root(), name, &BTreeMap::new())?;
        let Some((flag, option)) = typed.into_iter().find(|(_, option)| !has.contains_key(*option)) else {
            return Ok(());
        };
        if option == "guest-firmware" {
            bail!("--firmware chooses the system `firmware` and cannot be combined with --system {name}");
        }
        if !has.keys().any(|option| option.starts_with("guest-")) {
            bail!("system {name} has no guest that {flag} could be for");
        }
        bail!("{flag} does not go with system {name}, whose manifest has no option {option}")
    }

    /// Whether the firmware may be UEFI: OVMF, or one of the user's own.
    pub fn may_be_uefi(&self) -> bool {
        self.firmware.as_deref().is_some_and(|firmware| firmware != "seabios")
    }

    /// CPUs that the machine needs for the guest's processors to live on.
    pub fn host_cpus(&self) -> u32 {
        let list = self.guest_cpus.as_deref().filter(|text| text.contains(','));
        let highest = list.and_then(|list| list.split(',').filter_map(|cpu| cpu.trim().parse::<u32>().ok()).max());
        highest.map_or(1, |cpu| cpu.saturating_add(1))
    }

    /// The values by the names that manifests give them.
    pub fn values(&self) -> Result<BTreeMap<String, String>> {
        let mut values: BTreeMap<String, String> = self.set.iter().cloned().collect();
        let files = [
            ("guest-kernel", &self.guest_kernel),
            ("guest-initrd", &self.guest_initrd),
            ("guest-disk", &self.guest_disk),
        ];
        for (name, file) in files {
            let Some(file) = file else { continue };
            values.insert(name.into(), located(name, &file.to_string_lossy())?);
        }
        if self.guest_kernel.is_some() {
            // The RAM disk that a manifest names belongs to the kernel that it names.
            values.entry("guest-initrd".into()).or_default();
        }
        if !self.guest_module.is_empty() {
            values.insert("guest-modules".into(), modules(&self.guest_module)?);
        }
        if let Some(firmware) = &self.firmware {
            let value = match super::firmware(firmware) {
                Some(_) => format!("guest:{firmware}"),
                None => {
                    let path = fs::canonicalize(firmware)
                        .with_context(|| format!("--firmware {firmware}: neither seabios, ovmf nor a file"))?;
                    path.to_string_lossy().into_owned()
                }
            };
            values.insert("guest-firmware".into(), value);
        }
        if let Some(text) = &self.guest_cmdline {
            values.insert("guest-cmdline".into(), text.clone());
        }
        if let Some(cpus) = &self.guest_cpus {
            values.insert("guest-cpus".into(), cpus.clone());
        }
        if let Some(memory) = self.guest_memory {
            values.insert("guest-memory".into(), format!("{memory}MiB"));
        }
        Ok(values)
    }
}

/// A file's absolute path; names that xtask resolves itself stay as they are.
fn located(option: &str, file: &str) -> Result<String> {
    if let Some(part) = file.strip_prefix("guest:") {
        super::is_known(part).with_context(|| format!("--{option}"))?;
        return Ok(file.to_owned());
    }
    if file.starts_with("image:") {
        return Ok(file.to_owned());
    }
    let path = fs::canonicalize(file).with_context(|| format!("--{option} {file}"))?;
    Ok(path.to_string_lossy().into_owned())
}

/// The value for `guest-modules`.
fn modules(list: &[String]) -> Result<String> {
    let mut value = String::from(system::MODULES);
    for module in list {
        if module.contains(system::NEXT_MODULE) {
            bail!("--guest-module {module}: `{}` cannot be in a module's command line", system::NEXT_MODULE);
        }
        let (file, cmdline) = system::split_module(module);
        value += &located("guest-module", file)?;
        if let Some(cmdline) = cmdline {
            value.push(':');
            value += cmdline;
        }
        value.push(system::NEXT_MODULE);
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_do_not_fit_are_named_as_they_were_typed() -> Result<()> {
        let refused = |system: &str, options: GuestOptions| options.check(system).unwrap_err().to_string();
        let firmware = GuestOptions { firmware: Some("seabios".into()), ..GuestOptions::default() };
        let kernel = GuestOptions { guest_kernel: Some("guest:kernel".into()), ..GuestOptions::default() };
        let memory = GuestOptions { guest_memory: Some(128), ..GuestOptions::default() };
        let both = GuestOptions { guest_kernel: kernel.guest_kernel.clone(), ..firmware.clone() };
        assert_eq!(refused("firmware", both), "--guest-kernel does not go with --firmware: what boots is on the disk");
        assert_eq!(
            refused("linux", firmware.clone()),
            "--firmware chooses the system `firmware` and cannot be combined with --system linux"
        );
        assert_eq!(refused("first", memory.clone()), "system first has no guest that --guest-memory could be for");
        assert_eq!(
            refused("firmware", kernel.clone()),
            "--guest-kernel does not go with system firmware, whose manifest has no option guest-kernel"
        );
        firmware.check("firmware")?;
        kernel.check("linux")?;
        memory.check("linux")?;
        assert!(refused("nosuch", GuestOptions::default()).contains("no system `nosuch`"));
        Ok(())
    }

    #[test]
    fn a_misspelt_guest_is_refused_before_anything_is_built() {
        let options = GuestOptions { guest_kernel: Some("guest:genric".into()), ..GuestOptions::default() };
        let text = format!("{:#}", options.values().unwrap_err());
        assert_eq!(text, "--guest-kernel: `guest:genric` is unknown; did you mean `guest:generic`?");
    }
}
