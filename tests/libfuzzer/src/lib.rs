//! What all targets have in common. Each file in `src/bin` is a target of the same name.
//!
//! The functions that they call are in `vmm-task/fuzz` and `kernel/core/fuzz`, where a machine without a C++ compiler tests them, too.

use std::path::Path;

/// Names the folder that a target leaves its seeds in, and then ends.
pub const SEEDS: &str = "MOIRA_FUZZ_SEEDS";

/// Where [`SEEDS`] says so, writes the inputs that a target starts from and ends the process.
pub fn start(seeds: fn() -> Vec<Vec<u8>>) {
    let Some(folder) = std::env::var_os(SEEDS) else { return };
    for (number, seed) in seeds().iter().enumerate() {
        let path = Path::new(&folder).join(format!("seed-{number:03}"));
        if let Err(error) = std::fs::write(&path, seed) {
            eprintln!("cannot write {}: {error}", path.display());
            std::process::exit(2);
        }
    }
    std::process::exit(0);
}

/// A target: a function of bytes, and what it starts from.
#[macro_export]
macro_rules! target {
    ($run:path, $seeds:path) => {
        libfuzzer_sys::fuzz_target!(init: $crate::start($seeds), |data: &[u8]| $run(data));
    };
}
