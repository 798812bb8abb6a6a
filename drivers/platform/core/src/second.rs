//! AML by the crate `aml`, the check on the first interpreter.
//!
//! It must not repeat what the first one did to the hardware: it reads, and its writes go nowhere.

use crate::machine::{Machine, Shared, Width};
use crate::tables::Tables;
use crate::value::{MOST_DEPTH, Value};
use alloc::{boxed::Box, format, string::String, vec::Vec};
use aml::value::Args;
use aml::{AmlContext, AmlError, AmlName, AmlValue, DebugVerbosity, Handler};
use moira_proto::platform::PciAddress;

/// Reads only.
struct Reader<M>(Shared<M>);

impl<M: Machine> Reader<M> {
    fn config(&self, segment: u16, at: PciAddress, offset: u16, width: Width) -> u64 {
        match u8::try_from(offset) {
            Ok(offset) if segment == 0 => self.0.with(|machine| machine.config_read(at, offset, width)),
            _ => width.ones(),
        }
    }
}

macro_rules! readers {
    ($($width:ident $type:ty: $read:ident $write:ident $([$in:ident $out:ident $config_in:ident $config_out:ident])?;)*) => {$(
        fn $read(&self, address: usize) -> $type {
            self.0.with(|machine| machine.load(address as u64, Width::$width)) as $type
        }

        fn $write(&mut self, _: usize, _: $type) {}

        $(fn $in(&self, port: u16) -> $type {
            self.0.with(|machine| machine.input(port, Width::$width)) as $type
        }

        fn $out(&self, _: u16, _: $type) {}

        fn $config_in(&self, segment: u16, bus: u8, device: u8, function: u8, offset: u16) -> $type {
            self.config(segment, PciAddress::new(bus, device, function), offset, Width::$width) as $type
        }

        fn $config_out(&self, _: u16, _: u8, _: u8, _: u8, _: u16, _: $type) {})?
    )*};
}

impl<M: Machine> Handler for Reader<M> {
    readers! {
        Byte u8: read_u8 write_u8 [read_io_u8 write_io_u8 read_pci_u8 write_pci_u8];
        Word u16: read_u16 write_u16 [read_io_u16 write_io_u16 read_pci_u16 write_pci_u16];
        Long u32: read_u32 write_u32 [read_io_u32 write_io_u32 read_pci_u32 write_pci_u32];
        Quad u64: read_u64 write_u64;
    }

    fn handle_fatal_error(&self, _: u8, _: u32, _: u64) {}
}

/// The second interpreter with all tables loaded.
pub struct Second(AmlContext);

impl Second {
    /// Loads DSDT and SSDTs.
    ///
    /// # Errors
    /// In words.
    pub fn load<M: Machine + 'static>(machine: &Shared<M>, tables: &Tables) -> Result<Second, String> {
        let mut context = AmlContext::new(Box::new(Reader(machine.clone())), DebugVerbosity::None);
        for table in tables.with_aml() {
            context
                .parse_table(table.body())
                .map_err(|error| format!("the table at {:#x}: {error:?}", table.address))?;
        }
        correct_fields(&mut context);
        Ok(Second(context))
    }

    /// Evaluates an absolute name, as a method or not. `None`: it does not exist.
    ///
    /// # Errors
    /// The interpreter's, in words.
    pub fn evaluate(&mut self, path: &str, arguments: &[u64]) -> Result<Option<Value>, String> {
        let name = AmlName::from_str(path).map_err(|error| format!("{error:?}"))?;
        let arguments = arguments.iter().map(|value| AmlValue::Integer(*value)).collect();
        let arguments = Args::from_list(arguments).map_err(|error| format!("{error:?}"))?;
        match self.0.invoke_method(&name, arguments) {
            Ok(found) => Ok(Some(value(&found, 0))),
            Err(AmlError::ValueDoesNotExist(missing) | AmlError::LevelDoesNotExist(missing))
                if name.as_string().starts_with(&missing.as_string()) =>
            {
                Ok(None)
            }
            Err(error) => Err(format!("{error:?}")),
        }
    }
}

/// Version 0.16.4 takes a field's offset in bits for one in bytes. Fields that begin on a byte, which are most, are given one in bytes;
/// of the others it goes on reading nonsense, and what depends on them is reported as a disagreement.
fn correct_fields(context: &mut AmlContext) {
    let mut handles = Vec::new();
    // The closure gives no error, and the names come from the namespace itself.
    let _ = context.namespace.clone().traverse(|_, level| {
        handles.extend(level.values.values().copied());
        Ok(true)
    });
    // An alias shares its handle with what it names.
    handles.sort_unstable();
    handles.dedup();
    for handle in handles {
        if let Ok(AmlValue::Field { offset, .. }) = context.namespace.get_mut(handle)
            && offset.is_multiple_of(8)
        {
            *offset /= 8;
        }
    }
}

fn value(found: &AmlValue, depth: usize) -> Value {
    if depth > MOST_DEPTH {
        return Value::Other;
    }
    match found {
        AmlValue::Boolean(true) => Value::Integer(u64::MAX),
        AmlValue::Boolean(false) => Value::Integer(0),
        AmlValue::Integer(number) => Value::Integer(*number),
        AmlValue::String(text) => Value::String(text.clone()),
        AmlValue::Buffer(bytes) => Value::Buffer(bytes.lock().clone()),
        AmlValue::Package(values) => Value::Package(values.iter().map(|found| value(found, depth + 1)).collect()),
        _ => Value::Other,
    }
}
