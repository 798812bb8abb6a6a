//! Kernel modules in the order in which they can be loaded.
//!
//! A package as downloaded has no `modules.dep` (that is made at installation), but each module carries its dependencies
//! in its `.modinfo` section as `depends=a,b`.

use super::debian::run;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A module ready to be packed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its name, with `_` for every `-`.
    pub name: String,
    /// The uncompressed `.ko`.
    pub data: Vec<u8>,
}

/// The modules `wanted` of the tree `folder` and all they depend on, each after its dependencies.
pub fn load_order(folder: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    index(folder, &mut files)?;
    let mut order = Vec::new();
    for name in wanted {
        visit(name, &files, &mut order, &mut Vec::new())?;
    }
    Ok(order)
}

/// The kernel's name of a module file, if it is one.
fn module_name(file: &str) -> Option<String> {
    let stem = ["", ".xz", ".zst", ".gz"].iter().find_map(|end| file.strip_suffix(&format!(".ko{end}")))?;
    Some(stem.replace('-', "_"))
}

fn index(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            index(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

fn visit(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    order: &mut Vec<Module>,
    above: &mut Vec<String>,
) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    if above.iter().any(|other| other == name) {
        bail!("kernel modules depend on each other: {} → {name}", above.join(" → "));
    }
    let path = files.get(name).with_context(|| format!("the kernel package has no module `{name}`"))?;
    let data = read(path)?;
    above.push(name.to_owned());
    for dependency in depends(&data) {
        visit(&dependency, files, order, above)?;
    }
    above.pop();
    order.push(Module { name: name.to_owned(), data });
    Ok(())
}

/// A module's bytes, uncompressed: the kernel's loader of the initramfs takes them as they are.
fn read(path: &Path) -> Result<Vec<u8>> {
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    Ok(run(Command::new(tool).arg("-dc").arg(path))?.stdout)
}

/// Names after `depends=` in a module.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else {
        return Vec::new();
    };
    let value = module.get(at + key.len()..).unwrap_or(&[]);
    let value = value.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let names = String::from_utf8_lossy(value).replace('-', "_");
    names.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(modules: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("kernel")).unwrap();
        for (file, depends) in modules {
            let text = format!("\x7fELF..license=GPL\0depends={depends}\0name=x\0");
            fs::write(folder.path().join("kernel").join(file), text).unwrap();
        }
        folder
    }

    fn names(order: &[Module]) -> Vec<&str> {
        order.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let tree = tree(&[
            ("virtio-ring.ko", ""),
            ("virtio_blk.ko", "virtio-ring"),
            ("virtio_net.ko", "virtio_blk,virtio_ring"),
        ]);
        let order = load_order(tree.path(), &["virtio_net", "virtio_blk"]).unwrap();
        assert_eq!(names(&order), ["virtio_ring", "virtio_blk", "virtio_net"]);
    }

    #[test]
    fn compressed_modules_are_unpacked() {
        let tree = tree(&[("a.ko", "b"), ("b.ko", "")]);
        assert!(Command::new("gzip").arg(tree.path().join("kernel/b.ko")).status().unwrap().success());
        let order = load_order(tree.path(), &["a"]).unwrap();
        assert_eq!(names(&order), ["b", "a"]);
        assert!(order[0].data.starts_with(b"\x7fELF"));
    }

    #[test]
    fn missing_and_circular_modules_are_named() {
        let tree = tree(&[("a.ko", "b"), ("b.ko", "a"), ("c.ko", "d")]);
        assert!(load_order(tree.path(), &["a"]).unwrap_err().to_string().contains("a → b → a"));
        assert!(load_order(tree.path(), &["c"]).unwrap_err().to_string().contains("no module `d`"));
    }
}
