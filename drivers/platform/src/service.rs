//! Answers other tasks.

use crate::hardware::Hardware;
use alloc::{collections::BTreeMap, vec::Vec};
use log::{error, info, warn};
use moira_proto::platform::{self as proto, Error, PciAddress, PciDevice, PlatformInfo};
use moira_rt::{
    Env, received,
    sys::{
        self, CapTable, Capability, Cpu, Deadline, Event, Interrupt, Message, MessageBuffer, Next, Notification,
        ObjectType, Platform, Received, Slot,
    },
};
use platform_core::findings::Findings;
use platform_core::machine::{Machine, Shared};
use platform_core::msi::{self, Kind};
use platform_core::{pci, power};

struct Server {
    platform: Platform,
    machine: Shared<Hardware>,
    table: CapTable,
    buffer: MessageBuffer,
    /// The boot processor, on which this task and its callers live.
    cpu: Option<Cpu>,
    info: PlatformInfo,
    summary: Vec<u8>,
    findings: Findings,
    devices: Vec<PciDevice>,
    owners: Vec<(u64, PciAddress)>,
    /// Clients that may end it all.
    powerful: Vec<u64>,
    /// The notification of each message that was set up: the interrupt's own capability hangs on it.
    notifications: BTreeMap<(PciAddress, u16), Slot>,
}

/// How long a line takes to be sent, generously.
const LAST_WORDS_NS: u64 = 50_000_000;

/// What is answered: words, and bytes for the buffer.
type Answer = Result<([u64; 2], Vec<u8>), (Error, u64)>;

/// Serves for good.
pub fn run(
    env: Env,
    platform: Platform,
    apic_id: u32,
    machine: Shared<Hardware>,
    info: PlatformInfo,
    findings: Findings,
    devices: Vec<PciDevice>,
) {
    let Ok(summary) = postcard::to_allocvec(&info) else {
        error!("the summary cannot be encoded");
        return;
    };
    let cpu = machine.with(Hardware::slot).and_then(|slot| platform.start_cpu_fully(apic_id, slot).ok());
    if cpu.is_none() {
        warn!("no capability for this processor: no messages can be set up");
    }
    let owners = crate::for_clients(&env, "device.");
    let owners = owners.into_iter().filter_map(|(client, text)| Some((client, PciAddress::parse(text)?)));
    let powerful = env.info.arguments.iter().filter_map(|argument| argument.strip_prefix("power=")?.parse().ok());
    let mut server = Server {
        platform,
        table: env.table(),
        cpu,
        summary,
        owners: owners.collect(),
        powerful: powerful.collect(),
        notifications: BTreeMap::new(),
        machine,
        info,
        findings,
        devices,
        buffer: env.buffer,
    };
    info!("serving");
    let error = sys::serve(Deadline::NEVER, |event| server.handle(event));
    error!("cannot serve: {error:?}");
}

impl Server {
    fn handle(&mut self, event: Event) -> Next {
        let Event::Call(call) = event else {
            return Next::Receive(Deadline::NEVER);
        };
        let answer = self.answer(&call);
        received::drop_rest(self.table, &call);
        let message = match answer {
            Ok((words, bytes)) => Message::new(0).words(words).bytes(self.buffer.write(&bytes)),
            Err((error, detail)) => Message::new(error as u32).words([detail]),
        };
        Next::Reply(message, Deadline::NEVER)
    }

    fn answer(&mut self, call: &Received) -> Answer {
        let [word, number, ..] = call.words;
        match call.label {
            proto::INFO => {
                let offset = usize::try_from(word).unwrap_or(usize::MAX);
                let rest = self.summary.get(offset..).ok_or((Error::NotFound, 0))?;
                let part = rest.get(..MessageBuffer::BYTES).unwrap_or(rest);
                Ok(([self.summary.len() as u64, 0], part.to_vec()))
            }
            proto::ISA_INTERRUPT => {
                let found = u8::try_from(word).ok().and_then(|irq| self.info.isa_interrupt(irq));
                let found = found.ok_or((Error::NotFound, 0))?;
                Ok((line(found.gsi, found.level, found.active_low), Vec::new()))
            }
            proto::PCI_DEVICE => {
                let found = usize::try_from(word).ok().and_then(|index| self.devices.get(index));
                let bytes = found.and_then(|found| postcard::to_allocvec(found).ok()).ok_or((Error::NotFound, 0))?;
                Ok(([self.devices.len() as u64, 0], bytes))
            }
            proto::PCI_INTERRUPT => {
                let found = pci::route(&self.devices, &self.findings.routes, function(word)?);
                let found = found.ok_or((Error::NotFound, 0))?;
                Ok((line(found.gsi, found.level, found.active_low), Vec::new()))
            }
            proto::SET_UP_MSI => self.set_up_msi(call, function(word)?, number),
            proto::POWER => self.power(call.badge, word),
            _ => Err((Error::BadRequest, 0)),
        }
    }

    fn set_up_msi(&mut self, call: &Received, at: PciAddress, number: u64) -> Answer {
        if !self.owners.contains(&(call.badge, at)) {
            return Err((Error::Refused, 0));
        }
        let device = self.devices.iter().find(|device| device.address == at).ok_or((Error::NotFound, 0))?;
        let number = u16::try_from(number).map_err(|_| (Error::Unsupported, 0))?;
        msi::kind(device, number).map_err(|_| (Error::Unsupported, 0))?;
        let slot = |index, kind| {
            let slot = call.capability(index)?;
            self.table.inspect(slot).is_ok_and(|found| found.kind == Some(kind)).then_some(slot)
        };
        let (Some(interrupt), Some(notification), Some(cpu)) =
            (slot(0, ObjectType::Interrupt), slot(1, ObjectType::Notification), self.cpu)
        else {
            return Err((Error::BadCapabilities, 0));
        };
        let kernel = |error| (Error::Kernel, error as u64);
        // The interrupt's way to the notification is derived from this capability, and ends with it: keep it.
        let kept = self.machine.with(Hardware::slot).ok_or((Error::Kernel, sys::Error::NoSlot as u64))?;
        let keep = || {
            let notification = self.table.move_to(Notification::at(notification), kept)?;
            let interrupt = Interrupt::at(interrupt);
            self.platform.make_msi(interrupt, cpu, notification)?;
            interrupt.message()
        };
        let message = match keep() {
            Ok(message) => message,
            Err(error) => {
                self.machine.with(|machine| machine.release(kept));
                return Err(kernel(error));
            }
        };
        match self.machine.with(|machine| msi::set_up(machine, device, number, message)) {
            Ok(kind) => {
                if let Some(old) = self.notifications.insert((at, number), kept) {
                    self.machine.with(|machine| machine.release(old));
                }
                Ok(([u64::from(kind == Kind::MsiX), 0], Vec::new()))
            }
            Err(why) => {
                warn!("{at}: {why:?}");
                self.machine.with(|machine| machine.release(kept));
                Err((Error::Unsupported, 0))
            }
        }
    }

    fn power(&mut self, client: u64, what: u64) -> Answer {
        if !self.powerful.contains(&client) {
            return Err((Error::Refused, 0));
        }
        // What was logged is to leave the serial line before the machine ends.
        let last_words = |text| {
            info!("{text}");
            self.machine.with(|machine| machine.wait(LAST_WORDS_NS));
        };
        match (what, self.findings.off) {
            (proto::power::OFF, Some(types)) => {
                last_words("powering off");
                self.machine.with(|machine| power::off(machine, &self.info.fixed, types));
            }
            (proto::power::RESET, _) => {
                last_words("resetting");
                self.machine.with(|machine| power::reset(machine, &self.info.fixed));
            }
            _ => {}
        }
        // Still here.
        Err((Error::Unsupported, 0))
    }
}

fn function(word: u64) -> Result<PciAddress, (Error, u64)> {
    u16::try_from(word).map(PciAddress).map_err(|_| (Error::BadRequest, 0))
}

fn line(gsi: u32, level: bool, active_low: bool) -> [u64; 2] {
    [gsi.into(), u64::from(level) | u64::from(active_low) << 1]
}
