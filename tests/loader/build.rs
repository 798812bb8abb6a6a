//! Links the loader at its physical address.
fn main() {
    println!("cargo::rustc-link-arg-bins=-T{}/loader.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
    println!("cargo::rerun-if-changed=loader.ld");
}
