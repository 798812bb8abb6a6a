//! Whoever reads what a command prints may stop reading.

use std::io::Read;
use std::process::{Command, Stdio};

#[test]
fn a_command_whose_output_is_closed_ends_without_a_word() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    let mut child = command
        .args(["test", "--list", "--long"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // More than a pipe holds would have to come: closing it before the first byte is read does.
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert_eq!((status.code(), said.as_str()), (Some(141), ""));
}
