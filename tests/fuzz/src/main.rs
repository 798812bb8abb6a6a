//! The system-call fuzzer.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

use moira_lab::Lab;

moira_rt::root_entry!(main, 1 << 20);

fn main(info: &'static moira_abi::boot::BootInfo, buffer: moira_sys::MessageBuffer, _: &'static [u8]) {
    let lab = Lab::new(info, buffer);
    lab.finish("fuzz")
}
