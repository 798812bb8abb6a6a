//! What AML says that the platform task needs, by the first interpreter and checked with the second.

use crate::interpreter::Aml;
use crate::machine::Machine;
use crate::power;
use crate::second::Second;
use crate::value::Value;
use alloc::{format, string::String, vec::Vec};

/// Most devices that are asked.
const MOST_DEVICES: usize = 1024;

/// Where a pin of a PCI device goes (ACPI 6.5, 6.2.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Bus of the host bridge.
    pub bus: u8,
    /// Device.
    pub device: u8,
    /// 0–3: INTA–INTD.
    pub pin: u8,
    /// Global system interrupt.
    pub gsi: u32,
    /// Level rather than edge.
    pub level: bool,
    /// Active low rather than high.
    pub active_low: bool,
}

/// The answers.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Sleep types of S5.
    pub off: Option<(u8, u8)>,
    /// Interrupt routes of the host bridges' buses.
    pub routes: Vec<Route>,
    /// Devices and their hardware ids.
    pub devices: Vec<(String, String)>,
    /// Values that both interpreters were asked for, and gave alike.
    pub agreed: usize,
    /// Those where they differ or one failed, in words.
    pub disagreements: Vec<String>,
}

struct Asker<'a, M: Machine> {
    first: &'a Aml<M>,
    second: Option<&'a mut Second>,
    findings: Findings,
}

impl<M: Machine> Asker<'_, M> {
    /// The first interpreter's answer; the second's is compared.
    fn ask(&mut self, path: &str, arguments: &[u64]) -> Option<Value> {
        let first = self.first.evaluate(path, arguments);
        if let Some(second) = &mut self.second {
            let second = second.evaluate(path, arguments);
            match (&first, &second) {
                (Ok(None), Ok(None)) => {}
                (Ok(one), Ok(other)) if one == other => self.findings.agreed += 1,
                _ => self.findings.disagreements.push(format!("{path}: {}, {}", words(&first), words(&second))),
            }
        } else if let Err(error) = &first {
            self.findings.disagreements.push(format!("{path}: {error}"));
        }
        first.ok().flatten()
    }
}

impl<M: Machine> Asker<'_, M> {
    /// Runs a method that answers nothing, in both.
    fn run(&mut self, path: &str, arguments: &[u64]) {
        let first = self.first.evaluate(path, arguments).err();
        let second = self.second.as_mut().and_then(|second| second.evaluate(path, arguments).err());
        for error in first.into_iter().chain(second) {
            self.findings.disagreements.push(format!("{path}: {error}"));
        }
    }
}

fn words(answer: &Result<Option<Value>, String>) -> String {
    match answer {
        Ok(Some(value)) => format!("{value}"),
        Ok(None) => "nothing".into(),
        Err(error) => format!("failed: {error}"),
    }
}

/// Asks for everything. Both interpreters have their tables loaded.
pub fn gather<M: Machine>(first: &Aml<M>, second: Option<&mut Second>) -> Findings {
    let mut asker = Asker { first, second, findings: Findings::default() };
    // Routes depend on the interrupt controllers in use: 1, I/O APICs (ACPI 6.5, 5.8.1).
    asker.run("\\_PIC", &[1]);
    asker.findings.off = asker.ask("\\_S5", &[]).as_ref().and_then(power::sleep_types);
    for device in first.devices(MOST_DEVICES) {
        let id = asker.ask(&format!("{device}._HID"), &[]).and_then(|id| id.hardware_id());
        asker.ask(&format!("{device}._CRS"), &[]);
        let table = asker.ask(&format!("{device}._PRT"), &[]);
        let host_bridge = matches!(id.as_deref(), Some("PNP0A03" | "PNP0A08"));
        if let (Some(table), true) = (table, host_bridge) {
            let bus = asker.ask(&format!("{device}._BBN"), &[]).and_then(|bus| bus.integer());
            asker.routes(&device, &table, bus.and_then(|bus| u8::try_from(bus).ok()).unwrap_or(0));
        }
        if let Some(id) = id {
            asker.findings.devices.push((device, id));
        }
    }
    asker.findings
}

impl<M: Machine> Asker<'_, M> {
    fn routes(&mut self, bridge: &str, table: &Value, bus: u8) {
        for entry in table.package().unwrap_or_default() {
            if let Some(route) = self.route(bridge, entry, bus) {
                self.findings.routes.push(route);
            }
        }
    }

    /// One entry: address, pin, source, index (ACPI 6.5, 6.2.13).
    fn route(&mut self, bridge: &str, entry: &Value, bus: u8) -> Option<Route> {
        let [address, pin, source, index] = entry.package()? else {
            return None;
        };
        let device = u8::try_from(address.integer()? >> 16).ok()?;
        let pin = u8::try_from(pin.integer()?).ok().filter(|pin| *pin < 4)?;
        let (gsi, level, active_low) = match source {
            // PCI's own kind: level, active low.
            Value::Integer(0) => (u32::try_from(index.integer()?).ok()?, true, true),
            Value::String(name) => {
                let link = self.first.resolve(name, bridge)?;
                let Value::Buffer(resources) = self.first.evaluate(&format!("{link}._CRS"), &[]).ok()?? else {
                    return None;
                };
                interrupt(&resources)?
            }
            _ => return None,
        };
        Some(Route { bus, device, pin, gsi, level, active_low })
    }
}

/// The first interrupt of a resource template: GSI, level, active low (ACPI 6.5, 6.4.2.1 and 6.4.3.6).
#[must_use]
pub fn interrupt(mut resources: &[u8]) -> Option<(u32, bool, bool)> {
    loop {
        let kind = *resources.first()?;
        let (header, length) = if kind & 0x80 == 0 {
            (1, usize::from(kind & 7))
        } else {
            let length = u16::from_le_bytes([*resources.get(1)?, *resources.get(2)?]);
            (3, usize::from(length))
        };
        let body = resources.get(header..header + length)?;
        match kind {
            // IRQ: a mask, and flags, of which the short form has none: edge, active high.
            0x22 | 0x23 => {
                let mask = u16::from_le_bytes([*body.first()?, *body.get(1)?]);
                let flags = body.get(2).copied().unwrap_or(1);
                return (mask != 0).then(|| (mask.trailing_zeros(), flags & 1 == 0, flags & 8 != 0));
            }
            // Extended: flags, a count, GSIs.
            0x89 => {
                let flags = *body.first()?;
                let gsi = body.get(2..6)?.try_into().ok().map(u32::from_le_bytes)?;
                return Some((gsi, flags & 2 == 0, flags & 4 != 0));
            }
            // End tag.
            0x78 | 0x79 => return None,
            _ => resources = resources.get(header + length..)?,
        }
    }
}
