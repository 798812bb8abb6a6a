//! Conformance of the kernel: each invocation's success and each of its errors.
//!
//! A root task of its own, so that nothing else runs. Each experiment prints `conformance: NAME ok` or
//! `conformance: NAME FAILED: what`; the last line is `conformance: N passed, N failed`.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

mod device;
mod ipc;
mod notification;
mod smp;
mod space;
mod table;
mod thread;
mod time;
mod untyped;
mod vcpu;

use moira_lab::Lab;

moira_rt::root_entry!(main, 1 << 20);

fn main(info: &'static moira_abi::boot::BootInfo, buffer: moira_sys::MessageBuffer, _: &'static [u8]) {
    let mut lab = Lab::new(info, buffer);
    if lab.option("processors").is_some() {
        smp::all(&mut lab);
        lab.finish("conformance");
    }
    untyped::all(&mut lab);
    table::all(&mut lab);
    space::all(&mut lab);
    thread::all(&mut lab);
    notification::all(&mut lab);
    ipc::all(&mut lab);
    device::all(&mut lab);
    time::all(&mut lab);
    vcpu::all(&mut lab);
    lab.finish("conformance")
}
