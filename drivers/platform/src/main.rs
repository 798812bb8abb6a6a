//! The platform task: reads the ACPI tables, leaves their summary for the root task, walks PCI, and answers other tasks
//! (protocol: `moira_proto::platform`, described in `docs/abi/platform-service.md`).
//!
//! | capability or region | what for |
//! | --- | --- |
//! | `platform` | the machine |
//! | `objects` | untyped, at least 256 KiB: page tables, a notification |
//! | `console` | optional: its log |
//! | region `platform-info` | optional: the summary for tasks on higher levels |
//! | `platform-ready` | optional: the notification that is signalled when the region is complete |
//!
//! | argument | what |
//! | --- | --- |
//! | `rsdp=0x…` | physical address of ACPI's root pointer; without it the BIOS area is searched |
//! | `xsdt=0x…`, `rsdt=0x…` | address of the root table, if the loader copied the root pointer |
//! | `device.N=00:03.0` | client N owns this PCI function |
//! | `power=N` | client N may power off and reset |
//!
//! The interpreters may panic on AML that they do not know. A task that was started again leaves out the second one; after
//! another restart it does without AML: then nobody can be told of PCI interrupt pins, and the machine cannot be powered off.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

mod hardware;
mod service;

use alloc::{sync::Arc, vec, vec::Vec};
use core::sync::atomic::Ordering::Release;
use hardware::Hardware;
use log::{error, info, warn};
use moira_proto::platform::{PlatformInfo, region};
use moira_rt::{
    Env,
    sys::{Notification, Platform, Untyped, now},
};
use platform_core::findings::{self, Findings};
use platform_core::interpreter::{self, Access, Aml};
use platform_core::machine::Shared;
use platform_core::second::Second;
use platform_core::tables::{self, Root, TableError, Tables};
use platform_core::{pci, summary, timer};

moira_rt::entry!(main);

fn main(env: Env) {
    let (Some(platform), Some(objects)) =
        (env.capability::<Platform>("platform"), env.capability::<Untyped>("objects"))
    else {
        error!("the manifest grants no `platform` or no `objects`");
        return;
    };
    let hardware = match Hardware::new(&env, platform, objects) {
        Ok(hardware) => hardware,
        Err(error) => {
            error!("no access to the machine: {error:?}");
            return;
        }
    };
    let boot_apic_id = apic_id();
    let machine = Shared::new(hardware);
    let tables = match find_tables(&env, &machine) {
        Ok(tables) => Arc::new(tables),
        Err(error) => {
            error!("no ACPI tables: {error:?}");
            return;
        }
    };
    for address in &tables.rejected {
        warn!("the table at {address:#x} is damaged, and left out");
    }
    let info = summary::read(&tables, boot_apic_id);
    // First of all: the root task may be waiting for it, and what comes next may fail.
    publish(&env, &info);
    report(&info);
    check_clock(&env, &machine, &info);
    let access = Access::new(machine.clone(), tables.clone());
    let findings = ask_aml(&env, &access, &machine, &tables, &info);
    let roots: Vec<u8> = findings.routes.iter().map(|route| route.bus).collect();
    let devices = machine.with(|machine| pci::enumerate(machine, &roots));
    info!("{} PCI functions", devices.len());
    service::run(env, platform, boot_apic_id, machine, info, findings, devices);
}

/// The APIC id of the processor that runs this (SDM 2A, CPUID leaf 1).
fn apic_id() -> u32 {
    let features = raw_cpuid::CpuId::new().get_feature_info();
    features.map_or(0, |features| features.initial_local_apic_id().into())
}

/// A hexadecimal argument.
fn address(env: &Env, key: &str) -> Option<u64> {
    let text = env.argument(key)?;
    u64::from_str_radix(text.trim_start_matches("0x"), 16).ok().filter(|value| *value != 0)
}

fn find_tables(env: &Env, machine: &Shared<Hardware>) -> Result<Tables, TableError> {
    let told = [address(env, "xsdt").map(Root::Xsdt), address(env, "rsdt").map(Root::Rsdt)];
    for root in told.into_iter().flatten() {
        match machine.with(|machine| Tables::collect(machine, root)) {
            Ok(tables) => return Ok(tables),
            Err(error) => warn!("{root:x?}, which the loader told of: {error:?}"),
        }
    }
    machine.with(|machine| {
        let root = tables::find_root(machine, address(env, "rsdp")).ok_or(TableError::NoRoot)?;
        Tables::collect(machine, root)
    })
}

/// Leaves the summary in the region, its magic number last.
fn publish(env: &Env, info: &PlatformInfo) {
    let Some(shared) = env.shared(region::NAME) else {
        return;
    };
    let Ok(bytes) = postcard::to_allocvec(info) else {
        error!("the summary cannot be encoded");
        return;
    };
    let (Some(room), true) = (shared.len().checked_sub(region::DATA), shared.writable()) else {
        error!("region `{}` is too small, or read-only", region::NAME);
        return;
    };
    let [magic, length, ..] = shared.words64() else {
        return;
    };
    if bytes.len() > room {
        error!("region `{}` has room for {room} bytes, not {}", region::NAME, bytes.len());
        return;
    }
    // A task that was started again writes the same once more: readers meanwhile see none.
    magic.store(0, Release);
    shared.write(region::DATA, &bytes);
    length.store(bytes.len() as u64, Release);
    magic.store(region::MAGIC, Release);
    if let Some(ready) = env.capability::<Notification>(region::SIGNAL)
        && let Err(error) = ready.signal()
    {
        warn!("cannot signal that the summary is there: {error:?}");
    }
}

fn report(info: &PlatformInfo) {
    let usable = info.cpus.iter().filter(|cpu| cpu.enabled).count();
    info!("{usable} of {} processors can be started", info.cpus.len());
    for io_apic in &info.io_apics {
        info!("I/O APIC {} at {:#x}, GSI {} and up", io_apic.id, io_apic.address, io_apic.first_gsi);
    }
    for entry in &info.overrides {
        let (trigger, polarity) = words(entry.level, entry.active_low);
        info!("ISA interrupt {} is GSI {}, {trigger}, {polarity}", entry.irq, entry.gsi);
    }
}

fn words(level: bool, active_low: bool) -> (&'static str, &'static str) {
    (if level { "level" } else { "edge" }, if active_low { "active low" } else { "active high" })
}

/// Tells whether the kernel's idea of the TSC fits the PM timer.
fn check_clock(env: &Env, machine: &Shared<Hardware>, info: &PlatformInfo) {
    let claimed = env.info.tsc_hz;
    match machine.with(|machine| timer::measure(machine, &info.fixed, now)) {
        None => warn!("no PM timer to check the TSC against"),
        Some(measured) => {
            let ppm = timer::deviation_ppm(measured, claimed);
            let (percent, rest) = (ppm / 10_000, ppm % 10_000 / 100);
            if ppm <= timer::TOLERANCE_PPM {
                info!("TSC {claimed} Hz, by the PM timer {measured} Hz: {percent}.{rest:02} % apart, good");
            } else {
                error!("TSC {claimed} Hz, by the PM timer {measured} Hz: {percent}.{rest:02} % apart, WRONG");
            }
        }
    }
}

/// What AML says, as far as the number of restarts allows to ask.
fn ask_aml(
    env: &Env,
    access: &Access<Hardware>,
    machine: &Shared<Hardware>,
    tables: &Tables,
    info: &PlatformInfo,
) -> Findings {
    let restarts = env.info.restarts;
    if restarts > 1 {
        warn!("started {restarts} times again: doing without AML");
        return Findings::default();
    }
    match interpreter::agrees(access, info) {
        Ok(()) => info!("the crate `acpi` reads the MADT alike"),
        Err(difference) => warn!("the crate `acpi` reads the MADT differently: {difference}"),
    }
    let first = match Aml::load(access) {
        Ok(first) => first,
        Err(error) => {
            error!("AML: {error}");
            return Findings::default();
        }
    };
    first.initialize();
    let mut second = (restarts == 0)
        .then(|| Second::load(machine, tables).map_err(|error| warn!("AML, second interpreter: {error}")))
        .and_then(Result::ok);
    let found = findings::gather(&first, second.as_mut());
    info!("AML: {} values alike, {} not", found.agreed, found.disagreements.len());
    for disagreement in &found.disagreements {
        warn!("AML: {disagreement}");
    }
    info!("AML: {} devices, {} interrupt routes", found.devices.len(), found.routes.len());
    if let Some((a, b)) = found.off {
        info!("AML: S5 is sleep type {a}, {b}");
    }
    found
}

/// Arguments `KEYN=VALUE` for client N.
pub fn for_clients<'a>(env: &'a Env, key: &str) -> Vec<(u64, &'a str)> {
    let mut found = vec![];
    for argument in &env.info.arguments {
        if let Some((number, value)) = argument.strip_prefix(key).and_then(|rest| rest.split_once('='))
            && let Ok(number) = number.parse()
        {
            found.push((number, value));
        }
    }
    found
}
