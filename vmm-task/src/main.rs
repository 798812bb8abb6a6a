//! The virtual-machine monitor: one instance of this task for each virtual machine.
//!
//! | capability | what for |
//! | --- | --- |
//! | `guest` | untyped: all of it becomes the guest's memory, so its size is the machine's |
//! | `objects` | untyped: the vCPU, the guest's address space and page tables |
//! | `console` | where the serial port and the virtio console write to and read from, and this task's own log |
//! | `guest-firmware` | file, optional: a BIOS or UEFI image, started at the reset vector in place of a kernel |
//! | `rom` | untyped, with firmware: at least the image's size in whole 2 MiB |
//! | `guest-kernel` | file, without firmware: a bzImage, a PVH ELF, or a 64-bit ELF of our own |
//! | `guest-initrd` | file, optional: the initial RAM disk |
//! | `guest-disk` | file, optional: a disk image; what the guest writes is kept in this task's heap |
//! | `rtc` | optional: ports 70h and 71h, to set the guest's clock by the machine's |
//!
//! Arguments: `cmdline=…`, `disk-changes=BYTES` (most that the guest may change of its disk, 0), `firmware-debug=on` (show
//! what firmware writes to its debug port, 402h).
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod backend;
mod firmware;
mod hardware;
mod machine;
mod processor;

use log::{error, info};
use moira_rt::{Env, end};
use vmm_core::boot::Guest;
use vmm_core::report;
use vmm_core::vm::Ending;

moira_rt::entry!(main);

fn main(env: Env) {
    let firmware = env.file("guest-firmware");
    let kernel = env.file("guest-kernel").unwrap_or_default();
    if firmware.is_none() && kernel.is_empty() {
        fail("there is neither a file `guest-kernel` nor `guest-firmware`: nothing to boot");
    }
    let cmdline = alloc::string::String::from(env.argument("cmdline").unwrap_or_default());
    let guest = Guest { firmware, kernel, initrd: env.file("guest-initrd"), cmdline: cmdline.as_bytes() };
    let (mut vm, mut processor) = match machine::build(env) {
        Ok(built) => built,
        Err(failure) => fail(format_args!("the machine cannot be built: {failure}")),
    };
    if let Err(failure) = vm.boot(&guest) {
        fail(format_args!("the guest cannot be booted: {failure}"));
    }
    let mut resets = 0;
    loop {
        let ending = vm.run(&mut processor);
        if ending == Ending::Reset {
            resets += 1;
            info!("the machine resets, for the {resets}. time");
            match vm.restart(&guest) {
                Ok(()) => continue,
                Err(failure) => fail(format_args!("the guest cannot be booted again: {failure}")),
            }
        }
        let failed = report::is_failure(&ending);
        report::write(&vm, &ending, |line| if failed { error!("{line}") } else { info!("{line}") });
        if failed {
            end::fail(format_args!("{ending}"));
        }
        return;
    }
}

/// Ends the monitor before there is a guest to report on.
fn fail(why: impl core::fmt::Display) -> ! {
    error!("{why}");
    end::fail(format_args!("{why}"))
}
