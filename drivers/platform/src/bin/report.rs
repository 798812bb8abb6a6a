//! A client of the platform task that prints what the machine is made of, and tries message-signalled interrupts.
//!
//! | capability | what for |
//! | --- | --- |
//! | `platform-task` | the platform task's endpoint |
//! | `platform`, `objects` | optional, for `edu=`: the machine, and memory for an interrupt |
//!
//! Arguments: `edu=00:03.0`: QEMU's `edu` device is
//! there, owned by this task: let it interrupt; `refused=00:04.0`: a function that this task does not own; `power=off` or
//! `power=reset`: do that at the end.
#![no_std]
#![no_main]
#![deny(unsafe_code)]

extern crate alloc;

use alloc::{format, string::String, vec, vec::Vec};
use log::{error, info};
use moira_proto::platform::{self as proto, Bar, Error, PciAddress, PciDevice, PlatformInfo};
use moira_rt::{
    Env,
    mapped::Shared,
    memory::Memory,
    sys::{
        Capability, Deadline, Endpoint, Event, FrameSize, MapFlags, Message, MessageBuffer, Platform, Rights, Untyped,
        receive,
    },
};

moira_rt::entry!(main);

fn main(mut env: Env) {
    let Some(service) = env.capability::<Endpoint>("platform-task") else {
        error!("report failed: there is no `platform-task` to call");
        return;
    };
    match report(&mut env, service) {
        Ok(()) => info!("report complete"),
        Err(why) => error!("report failed: {why:?}"),
    }
    let what = match env.argument("power") {
        Some("off") => proto::power::OFF,
        Some("reset") => proto::power::RESET,
        _ => return,
    };
    error!("still here: {:?}", ask(service, proto::POWER, [what, 0]));
}

/// Why the report ended early.
#[derive(Debug)]
#[allow(dead_code, reason = "printed")]
enum Why {
    /// The call failed.
    Kernel(moira_rt::sys::Error),
    /// The platform task's answer.
    Answer(Option<Error>, u64),
    /// Bytes that mean nothing.
    Format,
    /// A thing that should be there is not.
    Missing(&'static str),
    /// A function was given to a client that does not own it.
    NotRefused,
    /// No interrupt came.
    Silent,
}

impl From<moira_rt::sys::Error> for Why {
    fn from(error: moira_rt::sys::Error) -> Why {
        Why::Kernel(error)
    }
}

fn send(service: Endpoint, message: &Message) -> Result<([u64; 2], usize), Why> {
    let answer = service.call(message)?;
    let [word, second, ..] = answer.words;
    match answer.label {
        0 => Ok(([word, second], answer.bytes)),
        code => Err(Why::Answer(Error::from_code(code), word)),
    }
}

fn ask(service: Endpoint, label: u32, words: [u64; 2]) -> Result<([u64; 2], usize), Why> {
    send(service, &Message::new(label).words(words))
}

/// What the buffer holds after an answer. Logging would overwrite it.
fn take(buffer: &mut MessageBuffer, bytes: usize) -> Vec<u8> {
    let mut taken = vec![0; bytes];
    buffer.read(&mut taken);
    taken
}

fn report(env: &mut Env, service: Endpoint) -> Result<(), Why> {
    let mut bytes = Vec::new();
    loop {
        let ([length, _], count) = ask(service, proto::INFO, [bytes.len() as u64, 0])?;
        bytes.extend(take(&mut env.buffer, count));
        if bytes.len() as u64 >= length || count == 0 {
            break;
        }
    }
    let info: PlatformInfo = postcard::from_bytes(&bytes).map_err(|_| Why::Format)?;
    for cpu in &info.cpus {
        let state = if cpu.enabled { "can be started" } else { "is switched off" };
        info!("processor {}, APIC id {}, {state}", cpu.uid, cpu.apic_id);
    }
    for irq in [0, 4, 9] {
        let ([gsi, flags], _) = ask(service, proto::ISA_INTERRUPT, [irq, 0])?;
        info!("ISA interrupt {irq}: GSI {gsi}, flags {flags}");
    }
    let functions = list(env, service)?;
    info!("{} functions", functions.len());
    if let Some(other) = env.argument("refused").and_then(PciAddress::parse) {
        match ask(service, proto::SET_UP_MSI, [other.0.into(), 0]) {
            Err(Why::Answer(Some(Error::Refused), _)) => {
                info!("{other} is refused, as it should be")
            }
            _ => return Err(Why::NotRefused),
        }
    }
    if let Some(at) = env.argument("edu").and_then(PciAddress::parse) {
        let device = functions.into_iter().find(|device| device.address == at).ok_or(Why::Missing("edu"))?;
        interrupt(env, service, &device)?;
    }
    Ok(())
}

/// A base address register as the manifest wants it: ports, or address and size of memory.
fn base(bar: &Bar) -> String {
    match (bar.address, bar.ports) {
        (0, _) => format!("base {} nowhere", bar.index),
        (from, true) => format!("base {} ports {from:#x}-{:#x}", bar.index, from + bar.size - 1),
        (from, false) => format!("base {} memory {from:#x} size {}", bar.index, bar.size),
    }
}

fn list(env: &mut Env, service: Endpoint) -> Result<Vec<PciDevice>, Why> {
    let mut functions: Vec<PciDevice> = Vec::new();
    loop {
        let ([count, _], bytes) = match ask(service, proto::PCI_DEVICE, [functions.len() as u64, 0]) {
            Err(Why::Answer(Some(Error::NotFound), _)) => return Ok(functions),
            other => other?,
        };
        let bytes = take(&mut env.buffer, bytes);
        let device: PciDevice = postcard::from_bytes(&bytes).map_err(|_| Why::Format)?;
        let line = ask(service, proto::PCI_INTERRUPT, [device.address.0.into(), 0]).ok();
        let gsi = line.map_or(-1, |([gsi, _], _)| gsi as i64);
        let bars: Vec<String> = device.bars.iter().map(base).collect();
        info!(
            "{} {:04x}:{:04x} class {:06x}, {}, pin {} to GSI {gsi}, MSI {:?}, MSI-X {:?}",
            device.address,
            device.vendor,
            device.device,
            device.class,
            if bars.is_empty() { "no base address".into() } else { bars.join(", ") },
            device.pin,
            device.msi.map(|msi| msi.1),
            device.msix.map(|msix| msix.entries),
        );
        functions.push(device);
        if functions.len() as u64 == count {
            return Ok(functions);
        }
    }
}

/// The register of QEMU's `edu` device (docs/specs/edu) that raises an interrupt, in words.
const RAISE: usize = 0x60 / 4;
/// The one that ends it.
const ACKNOWLEDGE: usize = 0x64 / 4;
/// The bit that the interrupt signals.
const BIT: u64 = 1 << 5;

/// Has the device raise its interrupt three times, and waits for each.
fn interrupt(env: &Env, service: Endpoint, device: &PciDevice) -> Result<(), Why> {
    let machine = env.capability::<Platform>("platform").ok_or(Why::Missing("platform"))?;
    let objects = env.capability::<Untyped>("objects").ok_or(Why::Missing("objects"))?;
    let mut memory = Memory::new(env, objects);
    let mut slot = || memory.slots.take(1).ok_or(Why::Missing("slots"));
    let interrupt = objects.retype_interrupts(1, slot()?)?.get(0).ok_or(Why::Missing("interrupt"))?;
    let signal = env.table().mint(env.notification(), slot()?, Rights::SIGNAL, BIT)?;
    let message = Message::new(proto::SET_UP_MSI)
        .words([device.address.0.into(), 0])
        .capability(interrupt.slot())
        .capability(signal.slot());
    let ([kind, _], _) = send(service, &message)?;
    info!("{}: {} is set up", device.address, if kind == 1 { "MSI-X" } else { "MSI" });
    let bar = device.bars.first().ok_or(Why::Missing("registers"))?;
    let frame = machine.make_frame(bar.address, FrameSize::Small, slot()?)?;
    let address = memory.addresses.take(4096, 4096).ok_or(Why::Missing("addresses"))?;
    let mapped = memory.map(frame, address, MapFlags::READ_WRITE.uncached());
    mapped.map_err(|_| Why::Missing("page tables"))?;
    // SAFETY: mapped just now, for as long as the task lives, and reached through this value only.
    #[allow(unsafe_code)]
    let registers = unsafe { Shared::new(address, 4096, true) };
    let (Some(raise), Some(acknowledge)) = (registers.words32().get(RAISE), registers.words32().get(ACKNOWLEDGE))
    else {
        return Err(Why::Missing("registers"));
    };
    use core::sync::atomic::Ordering::SeqCst;
    for round in 1..=3 {
        raise.store(round, SeqCst);
        match receive(Deadline::after(env.ticks(1_000_000_000)))? {
            Event::Notified(bits) if bits & BIT != 0 => {}
            _ => return Err(Why::Silent),
        }
        acknowledge.store(round, SeqCst);
        interrupt.ack()?;
    }
    info!("{}: 3 interrupts came", device.address);
    Ok(())
}
