//! Links the program where Linux programs lie.
fn main() {
    println!("cargo::rustc-link-arg-bins=-T{}/init.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rustc-link-arg-bins=--no-dynamic-linker");
    println!("cargo::rerun-if-changed=init.ld");
}
