//! Links the guest at its physical address.
fn main() {
    println!("cargo::rustc-link-arg-bins=-T{}/guest.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed=guest.ld");
}
