//! What a task is given.
#![allow(unsafe_code)]

use crate::{mapped, mapped::Shared, memory::Slots};
use moira_proto::start::{Region, StartInfo, slot};
use moira_sys::{AddressSpace, CapTable, Capability, Caps, MessageBuffer, Notification, Slot, Thread};

/// A task's start information, with its capabilities typed.
#[derive(Debug)]
pub struct Env {
    /// The start information.
    pub info: StartInfo,
    /// The main thread's message buffer. Copy a message out before logging: the console's answer may overwrite it.
    pub buffer: MessageBuffer,
}

impl Env {
    pub(crate) fn new(info: StartInfo) -> Env {
        Env { info, buffer: mapped::main_buffer() }
    }

    /// The task's own capability table.
    #[must_use]
    pub const fn table(&self) -> CapTable {
        CapTable::new(Slot(slot::TABLE))
    }

    /// Its own address space.
    #[must_use]
    pub const fn space(&self) -> AddressSpace {
        AddressSpace::new(Slot(slot::SPACE))
    }

    /// Its main thread.
    #[must_use]
    pub const fn thread(&self) -> Thread {
        Thread::new(Slot(slot::THREAD))
    }

    /// The notification bound to its main thread.
    #[must_use]
    pub const fn notification(&self) -> Notification {
        Notification::new(Slot(slot::NOTIFICATION))
    }

    /// The capability that the manifest grants under this name. The manifest says what it is; if the type does not fit, the first
    /// use answers `WrongType`.
    #[must_use]
    pub fn capability<T: Capability>(&self, name: &str) -> Option<T> {
        self.info.capability(name).map(|slot| T::at(Slot(slot)))
    }

    /// All capabilities granted under this name, in consecutive slots.
    #[must_use]
    pub fn capabilities<T: Capability>(&self, name: &str) -> Option<Caps<T>> {
        let entry = self.info.capabilities.iter().find(|entry| entry.0 == name)?;
        Some(Caps::new(Slot(entry.1), entry.2))
    }

    /// The empty slots of the table.
    #[must_use]
    pub fn slots(&self) -> Slots {
        Slots::new(Slot(self.info.free_slot), self.info.slot_count)
    }

    /// A mapped region as shared memory.
    #[must_use]
    pub fn shared(&self, name: &str) -> Option<Shared<'static>> {
        self.info.region(name).and_then(shared)
    }

    /// A file of the system image. Only for names that the manifest grants as `File`: others may change under the reader.
    #[must_use]
    pub fn file(&self, name: &str) -> Option<&'static [u8]> {
        let region = self.info.region(name)?;
        if region.writable || region.physical != 0 || region.address == 0 {
            return None;
        }
        let length = usize::try_from(region.length).ok()?;
        // SAFETY: the root task maps files read-only from the initrd's frames, which nobody can write, and never unmaps them.
        Some(unsafe { mapped::file(region.address, length) })
    }

    /// The value of an argument `KEY=VALUE`.
    #[must_use]
    pub fn argument(&self, key: &str) -> Option<&str> {
        self.info.arguments.iter().find_map(|argument| argument.strip_prefix(key)?.strip_prefix('='))
    }

    /// The number of an argument `KEY=NUMBER`, `otherwise` if there is none. What is no number is told in the log, and counts as none.
    #[must_use]
    pub fn number(&self, key: &str, otherwise: u64) -> u64 {
        self.parsed(key, otherwise, "whole number", |text| text.parse().ok())
    }

    /// The same for a number of bytes: `65536`, `64KiB`, `64K`, and so on with M and G.
    #[must_use]
    pub fn bytes(&self, key: &str, otherwise: u64) -> u64 {
        self.parsed(key, otherwise, "size like 64KiB", moira_proto::units::bytes)
    }

    fn parsed(&self, key: &str, otherwise: u64, what: &str, parse: impl FnOnce(&str) -> Option<u64>) -> u64 {
        let Some(text) = self.argument(key) else { return otherwise };
        parse(text).unwrap_or_else(|| {
            log::error!("{key}={text}: this is no {what}; {otherwise} is taken");
            otherwise
        })
    }

    /// TSC ticks in so many nanoseconds.
    #[must_use]
    pub fn ticks(&self, nanoseconds: u64) -> u64 {
        let ticks = u128::from(nanoseconds) * u128::from(self.info.tsc_hz) / 1_000_000_000;
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }
}

fn shared(region: &Region) -> Option<Shared<'static>> {
    let length = usize::try_from(region.length).ok()?;
    if region.address == 0 || !region.address.is_multiple_of(8) {
        return None;
    }
    // SAFETY: the root task maps regions for the task's life, and this crate makes no plain references into what may change.
    Some(unsafe { Shared::new(region.address, length, region.writable) })
}
