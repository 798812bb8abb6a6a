//! Links the image as a task.
fn main() {
    println!("cargo::rustc-link-arg-bins=-T{}/../../libsys/rt/task.ld", env!("CARGO_MANIFEST_DIR"));
    println!("cargo::rerun-if-changed=../../libsys/rt/task.ld");
}
