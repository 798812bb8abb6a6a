//! AML by the crate `acpi`, and that crate's reading of the MADT.
//!
//! The crate reads tables through raw pointers and believes their lengths. It is only given the checked copies of
//! [`Tables`], with zeroes behind them; what is not a table it sees as zeroes.

use crate::machine::{Machine, Shared, Width};
use crate::tables::{Root, Tables};
use crate::value::{MOST_DEPTH, Value};
use acpi::aml::namespace::{AmlName, NamespaceLevelKind};
use acpi::aml::object::{FieldUnitKind, Object};
use acpi::aml::op_region::{OpRegion, RegionSpace};
use acpi::aml::{AmlError, Interpreter};
use acpi::platform::ProcessorState;
use acpi::platform::interrupt::{InterruptModel, Polarity, TriggerMode};
use acpi::registers::FixedRegisters;
use acpi::sdt::fadt::Fadt;
use acpi::{AcpiTables, Handle, Handler, PciAddress, PhysicalMapping};
use alloc::{format, string::String, sync::Arc, vec, vec::Vec};
use core::ptr::NonNull;
use core::str::FromStr;
use log::warn;
use moira_proto::platform::{self as proto, PlatformInfo};

/// What stands in for memory that is no table.
static NOTHING: [u64; 512] = [0; 512];

/// The crate's way to tables and hardware.
#[derive(Debug)]
pub struct Access<M> {
    machine: Shared<M>,
    tables: Arc<Tables>,
}

impl<M> Clone for Access<M> {
    fn clone(&self) -> Access<M> {
        Access { machine: self.machine.clone(), tables: self.tables.clone() }
    }
}

impl<M> Access<M> {
    /// The copy of `bytes` bytes of physical memory, if they are of a table or of the zeroes behind it.
    fn copied(&self, address: u64, bytes: usize) -> Option<&[u64]> {
        self.tables.iter().find_map(|table| {
            let words = table.padded();
            let fits = table.address == address && bytes <= words.len() * 8;
            fits.then_some(words)
        })
    }
}

/// A function of segment 0 and an offset below 256, as [`Machine::config_read`] takes them.
fn function(address: PciAddress, offset: u16) -> Option<(proto::PciAddress, u8)> {
    let offset = u8::try_from(offset).ok()?;
    let here = proto::PciAddress::new(address.bus(), address.device(), address.function());
    (address.segment() == 0).then_some((here, offset))
}

impl<M: Machine> Access<M> {
    fn pci_read(&self, address: PciAddress, offset: u16, width: Width) -> u64 {
        function(address, offset)
            .map_or(width.ones(), |(at, offset)| self.machine.with(|machine| machine.config_read(at, offset, width)))
    }

    fn pci_write(&self, address: PciAddress, offset: u16, width: Width, value: u64) {
        if let Some((at, offset)) = function(address, offset) {
            self.machine.with(|machine| machine.config_write(at, offset, width, value));
        }
    }
}

/// The crate's ten-fold accessors, each a call of the machine's one.
macro_rules! accessors {
    ($($width:ident $type:ty: $read:ident $write:ident $([$in:ident $out:ident $config_in:ident $config_out:ident])?;)*) => {$(
        fn $read(&self, address: usize) -> $type {
            self.machine.with(|machine| machine.load(address as u64, Width::$width)) as $type
        }

        fn $write(&self, address: usize, value: $type) {
            self.machine.with(|machine| machine.store(address as u64, Width::$width, u64::from(value)));
        }

        $(fn $in(&self, port: u16) -> $type {
            self.machine.with(|machine| machine.input(port, Width::$width)) as $type
        }

        fn $out(&self, port: u16, value: $type) {
            self.machine.with(|machine| machine.output(port, Width::$width, u64::from(value)));
        }

        fn $config_in(&self, address: PciAddress, offset: u16) -> $type {
            self.pci_read(address, offset, Width::$width) as $type
        }

        fn $config_out(&self, address: PciAddress, offset: u16, value: $type) {
            self.pci_write(address, offset, Width::$width, u64::from(value));
        })?
    )*};
}

impl<M: Machine> Handler for Access<M> {
    accessors! {
        Byte u8: read_u8 write_u8 [read_io_u8 write_io_u8 read_pci_u8 write_pci_u8];
        Word u16: read_u16 write_u16 [read_io_u16 write_io_u16 read_pci_u16 write_pci_u16];
        Long u32: read_u32 write_u32 [read_io_u32 write_io_u32 read_pci_u32 write_pci_u32];
        Quad u64: read_u64 write_u64;
    }

    #[allow(unsafe_code)]
    unsafe fn map_physical_region<T>(&self, address: usize, size: usize) -> PhysicalMapping<Self, T> {
        let wanted = size.max(size_of::<T>());
        let (words, mapped) = match self.copied(address as u64, wanted) {
            Some(words) => (words, wanted),
            None => {
                warn!("{address:#x} is no table: {wanted} bytes of it read as zero");
                (&NOTHING[..], wanted.min(size_of_val(&NOTHING)))
            }
        };
        // The words live as long as the tables, which this handler's clone in the mapping keeps. Tables have an alignment of one
        // or are aligned by their words; nothing writes to them: of what this task calls, only the interpreter with a FACS
        // (it is given none) writes to a mapping.
        PhysicalMapping {
            physical_start: address,
            virtual_start: NonNull::from(words).cast(),
            region_length: mapped,
            mapped_length: mapped,
            handler: self.clone(),
        }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}

    fn nanos_since_boot(&self) -> u64 {
        self.machine.with(Machine::nanoseconds)
    }

    fn stall(&self, microseconds: u64) {
        self.machine.with(|machine| machine.wait(microseconds.saturating_mul(1_000)));
    }

    fn sleep(&self, milliseconds: u64) {
        self.machine.with(|machine| machine.wait(milliseconds.saturating_mul(1_000_000)));
    }

    // One thread interprets, so that no mutex is ever held by another.
    fn create_mutex(&self) -> Handle {
        Handle(0)
    }

    fn acquire(&self, _: Handle, _: u16) -> Result<(), AmlError> {
        Ok(())
    }

    fn release(&self, _: Handle) {}

    fn handle_fatal_error(&self, kind: u8, code: u32, argument: u64) {
        warn!("the firmware's AML declares a fatal error: {kind:#x} {code:#x} {argument:#x}");
    }
}

impl<M> Access<M> {
    /// Access of the crate to these tables and this machine.
    #[must_use]
    pub fn new(machine: Shared<M>, tables: Arc<Tables>) -> Access<M> {
        Access { machine, tables }
    }
}

impl<M: Machine> Access<M> {
    #[allow(unsafe_code)]
    fn acpi_tables(&self) -> Option<AcpiTables<Access<M>>> {
        let (revision, address) = match self.tables.root {
            Root::Rsdt(address) => (0, address),
            Root::Xsdt(address) => (2, address),
        };
        let address = usize::try_from(address).ok()?;
        // SAFETY: the address is that of a table that was checked and copied, and its length is that of the copy.
        unsafe { AcpiTables::from_rsdt(self.clone(), revision, address) }.ok()
    }
}

/// Whether the crate reads the MADT as [`summary::read`](crate::summary::read) did; if not, in what they differ.
///
/// # Errors
/// What differs.
pub fn agrees<M: Machine>(access: &Access<M>, info: &PlatformInfo) -> Result<(), String> {
    // The crate panics without a processor, and loops over an entry of length 0: then there is nothing to compare.
    if info.cpus.is_empty() {
        return Err("the MADT lists no processor".into());
    }
    let tables = access.acpi_tables().ok_or("no tables")?;
    let (model, processors) = InterruptModel::new(&tables).map_err(|error| format!("{error:?}"))?;
    let (InterruptModel::Apic(apic), Some(processors)) = (model, processors) else {
        return Err("no APIC".into());
    };
    let boot = core::iter::once(&processors.boot_processor);
    let mut theirs: Vec<_> = boot
        .chain(&processors.application_processors)
        .map(|cpu| (cpu.local_apic_id, cpu.state != ProcessorState::Disabled))
        .collect();
    let mut ours: Vec<_> = info.cpus.iter().map(|cpu| (cpu.apic_id, cpu.enabled)).collect();
    theirs.sort_unstable();
    ours.sort_unstable();
    if theirs != ours {
        return Err(format!("processors: {ours:?} here, {theirs:?} there"));
    }
    let theirs: Vec<_> = apic
        .io_apics
        .iter()
        .map(|entry| (entry.id, u64::from(entry.address), entry.global_system_interrupt_base))
        .collect();
    let ours: Vec<_> = info.io_apics.iter().map(|entry| (entry.id, entry.address, entry.first_gsi)).collect();
    if theirs != ours {
        return Err(format!("I/O APICs: {ours:?} here, {theirs:?} there"));
    }
    let theirs: Vec<_> = apic
        .interrupt_source_overrides
        .iter()
        .map(|entry| proto::Override {
            irq: entry.isa_source,
            gsi: entry.global_system_interrupt,
            level: entry.trigger_mode == TriggerMode::Level,
            active_low: entry.polarity == Polarity::ActiveLow,
        })
        .collect();
    if theirs != info.overrides {
        return Err(format!("overrides: {:?} here, {theirs:?} there", info.overrides));
    }
    Ok(())
}

/// The interpreter with all tables loaded.
pub struct Aml<M: Machine> {
    interpreter: Interpreter<Access<M>>,
}

/// Evaluates and turns into a [`Value`] what the crate answers.
impl<M: Machine> Aml<M> {
    /// Loads DSDT and SSDTs. Without a FACS there is no global lock with the firmware.
    ///
    /// # Errors
    /// In words.
    pub fn load(access: &Access<M>) -> Result<Aml<M>, String> {
        let dsdt = access.tables.find(b"DSDT").ok_or("no DSDT")?;
        let tables = access.acpi_tables().ok_or("no tables")?;
        let fadt = tables.find_table::<Fadt>().ok_or("no FADT")?;
        let registers =
            FixedRegisters::new(&fadt, access.clone()).map_err(|error| format!("fixed registers: {error:?}"))?;
        let interpreter = Interpreter::new(access.clone(), dsdt.revision(), Arc::new(registers), None);
        for table in access.tables.with_aml() {
            interpreter
                .load_table(table.body())
                .map_err(|error| format!("the table at {:#x}: {error:?}", table.address))?;
        }
        correct_fields(&interpreter);
        Ok(Aml { interpreter })
    }

    /// Runs the devices' `_STA` and `_INI`.
    pub fn initialize(&self) {
        self.interpreter.initialize_namespace();
    }

    /// Evaluates an absolute name, as a method or not. `None`: it does not exist.
    ///
    /// # Errors
    /// The interpreter's, in words.
    pub fn evaluate(&self, path: &str, arguments: &[u64]) -> Result<Option<Value>, String> {
        let name = AmlName::from_str(path).map_err(|error| format!("{error:?}"))?;
        let arguments = arguments.iter().map(|value| Object::Integer(*value).wrap()).collect();
        match self.interpreter.evaluate_if_present(name, arguments) {
            Ok(found) => Ok(found.map(|object| value(&object, 0))),
            Err(AmlError::LevelDoesNotExist(_)) => Ok(None),
            Err(error) => Err(format!("{error:?}")),
        }
    }

    /// Absolute names of all devices, parents first, at most `most`.
    #[must_use]
    pub fn devices(&self, most: usize) -> Vec<String> {
        let mut found = vec![];
        let mut namespace = self.interpreter.namespace.lock().clone();
        // The closure gives no error, and the names come from the namespace itself.
        let _ = namespace.traverse(|name, level| {
            if level.kind == NamespaceLevelKind::Device && found.len() < most {
                found.push(name.as_string());
            }
            Ok(true)
        });
        found
    }

    /// The absolute name of the device that `name` means at `place`.
    #[must_use]
    pub fn resolve(&self, name: &str, place: &str) -> Option<String> {
        let (name, place) = (AmlName::from_str(name).ok()?, AmlName::from_str(place).ok()?);
        let found = self.interpreter.namespace.lock().search_for_level(&name, &place);
        found.ok().map(|name| name.as_string())
    }
}

/// Version 6.1.1 reads and writes the fields of a region of PCI configuration space as if the region began at offset 0. Each such
/// field that the tables define is moved by the beginning of its region. Those that a method defines while it runs are not.
fn correct_fields<M: Machine>(interpreter: &Interpreter<Access<M>>) {
    let mut namespace = interpreter.namespace.lock().clone();
    let token = interpreter.object_token.lock();
    // The closure gives no error, and the names come from the namespace itself.
    let _ = namespace.traverse(|_, level| {
        let named = level.values.values().filter(|(flags, _)| !flags.is_alias());
        for (_, object) in named {
            let Object::FieldUnit(field) = &**object else {
                continue;
            };
            let FieldUnitKind::Normal { region } = &field.kind else {
                continue;
            };
            let Object::OpRegion(OpRegion { space: RegionSpace::PciConfig, base, .. }) = **region else {
                continue;
            };
            let moved = usize::try_from(base).ok().and_then(|base| base.checked_mul(8)?.checked_add(field.bit_index));
            let Some(moved) = moved else { continue };
            // SAFETY: the token is held, nothing is being evaluated, and `field`, the one other reference, is not used again.
            #[allow(unsafe_code)]
            let object = unsafe { object.gain_mut(&token) };
            if let Object::FieldUnit(field) = object {
                field.bit_index = moved;
            }
        }
        Ok(true)
    });
}

fn value(object: &Object, depth: usize) -> Value {
    if depth > MOST_DEPTH {
        return Value::Other;
    }
    match object {
        Object::Integer(number) => Value::Integer(*number),
        Object::String(text) => Value::String(text.clone()),
        Object::Buffer(bytes) => Value::Buffer(bytes.clone()),
        Object::Package(objects) => Value::Package(objects.iter().map(|object| value(object, depth + 1)).collect()),
        Object::Reference { inner, .. } => value(inner, depth + 1),
        _ => Value::Other,
    }
}
