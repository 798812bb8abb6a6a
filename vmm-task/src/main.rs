//! The virtual-machine monitor: one instance of this task for each virtual machine.
//!
//! | capability | what for |
//! | --- | --- |
//! | `guest` | untyped, one or several: all of it becomes the guest's memory, so its size is the machine's |
//! | `objects` | untyped: the vCPUs, the guest's address space and page tables |
//! | `console` | where the serial port and the virtio console write to and read from, and this task's own log |
//! | `guest-firmware` | file, optional: a BIOS or UEFI image, started at the reset vector in place of a kernel |
//! | `rom` | untyped, with firmware: at least the image's size in whole 2 MiB |
//! | `guest-kernel` | file, without firmware: a bzImage, an ELF file with a PVH note, a Multiboot kernel, or any other 64-bit ELF file |
//! | `guest-initrd` | file, optional: the initial RAM disk, or the first module |
//! | `guest-modules` | file, optional: an archive of modules, whose names are their command lines |
//! | `guest-disk` | file, optional: a disk image; what the guest writes is kept in this task's heap |
//! | `NAME-mailbox`, `control-signal` | optional: a region and a signal, for orders of the control task |
//! | `rtc` | optional: ports 70h and 71h, to set the guest's clock by the machine's |
//!
//! The machine has as many processors as this task has threads, each run by its own.
//!
//! Arguments: `cmdline=…`, `disk-changes=SIZE` (most that the guest may change of its disk, 0), `firmware-debug=on` (show
//! what firmware writes to its debug port, 402h), `panic-at-end=…` (for tests of what a panic leaves).
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod backend;
mod control;
mod debugger;
mod firmware;
mod hardware;
mod machine;
mod processor;

use alloc::vec::Vec;
use log::{error, info};
use machine::Cpu;
use moira_rt::proto::mailbox::state;
use moira_rt::{Env, end};
use processor::Kernel;
use vmm_core::boot::{self, Guest, Module};
use vmm_core::report;
use vmm_core::vm::{Ending, Processor, Vm};

moira_rt::entry!(main);

fn main(env: Env) {
    let firmware = env.file("guest-firmware");
    let kernel = env.file("guest-kernel").unwrap_or_default();
    if firmware.is_none() && kernel.is_empty() {
        fail("there is neither a file `guest-kernel` nor `guest-firmware`: nothing to boot");
    }
    let cmdline = alloc::string::String::from(env.argument("cmdline").unwrap_or_default());
    let mut modules: Vec<Module<'_>> = Vec::new();
    modules.extend(env.file("guest-initrd").map(|bytes| Module { bytes, cmdline: b"initrd" }));
    modules.extend(env.file("guest-modules").map(boot::modules).unwrap_or_default());
    let guest = Guest { firmware, kernel, modules: &modules, cmdline: cmdline.as_bytes() };
    let mut cpus = match machine::build(&env) {
        Ok(cpus) => cpus.into_iter(),
        Err(failure) => fail(format_args!("the machine cannot be built: {failure}")),
    };
    end::on_panic(last_words);
    let Some(boot) = cpus.next() else { fail("the machine has no processor") };
    for (cpu, number) in cpus.zip(1..) {
        if !env.spawn(number, move || further(cpu)) {
            fail(format_args!("there is no thread for processor {number}"));
        }
    }
    if let Err(failure) = boot.settle() {
        fail(format_args!("the boot processor cannot be set up: {failure}"));
    }
    boot_processor(boot, &guest, env.argument("panic-at-end").is_some());
}

/// What a panic of the monitor leaves of its guest.
fn last_words() {
    for (cpu, page) in machine::pages().iter().enumerate() {
        if let Some(history) = machine::history(cpu) {
            error!("processor {cpu} of the guest:");
            report::write_processor(page, history, |line| error!("{line}"));
        }
    }
}

/// The main thread: boots the machine, again after each reset, and reports how it ended.
fn boot_processor(cpu: Cpu, guest: &Guest<'_>, panics: bool) {
    let Cpu { mut vm, mut kernel, .. } = cpu;
    let machine = vm.machine();
    if let Err(failure) = vm.boot(guest) {
        fail(format_args!("the guest cannot be booted: {failure}"));
    }
    let mut resets = 0;
    info!("the guest starts at tick {}", moira_rt::sys::now());
    loop {
        kernel.control.state(state::RUNNING, resets);
        let ending = vm.run(&mut kernel);
        assert!(!panics, "a panic on purpose");
        wait_for_others(&vm, &mut kernel);
        vm.board().flush(0);
        vm.show_text();
        let _ = kernel.console.lock().flush();
        if ending == Ending::Reset {
            resets += 1;
            info!("the machine resets, for the {resets}. time");
            match vm.restart(guest) {
                Ok(()) => continue,
                Err(failure) => fail(format_args!("the guest cannot be booted again: {failure}")),
            }
        }
        kernel.control.state(state::ENDED, resets);
        let failed = report::is_failure(&ending);
        let say = |line: core::fmt::Arguments<'_>| if failed { error!("{line}") } else { info!("{line}") };
        match machine.ending() {
            Some((_, by)) if by != 0 => {
                say(format_args!("on processor {by}:"));
                machine.take_report().iter().for_each(|line| say(format_args!("{line}")));
            }
            _ => report::write(&vm, &ending, say),
        }
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

/// Waits until no other processor runs; they were told. One that does not come in time is left to its end with this task.
fn wait_for_others(vm: &Vm<'_>, kernel: &mut Kernel) {
    /// In TSC ticks, and how often.
    const STEP: u64 = 1_000_000;
    const STEPS: u32 = 1000;
    for _ in 0..STEPS {
        if vm.machine().all_left() {
            return;
        }
        let until = kernel.now().saturating_add(STEP);
        kernel.sleep(until);
    }
    log::warn!("a processor does not stop");
}

/// A further processor's thread.
fn further(cpu: Cpu) {
    let settled = cpu.settle();
    let Cpu { mut vm, mut kernel, .. } = cpu;
    let (machine, index) = (vm.machine(), vm.index());
    if let Err(failure) = settled {
        machine.report_line(alloc::format!("processor {index} cannot be set up: {failure}"));
        machine.end(Ending::Unsupported("a processor that cannot be set up"), index);
    }
    loop {
        let ending = vm.run(&mut kernel);
        if machine.ending().is_some_and(|(_, by)| by == index) {
            report::write(&vm, &ending, |line| machine.report_line(alloc::format!("{line}")));
        }
        machine.leave(index);
        while machine.ending().is_some() {
            kernel.sleep(0);
        }
        vm.power_on();
    }
}
