//! The machine by capability: ports, and physical memory a page at a time.
#![allow(unsafe_code)]

use alloc::collections::BTreeMap;
use log::debug;
use moira_rt::{
    Env,
    memory::{Memory, MemoryError},
    sys::{CapTable, Deadline, Error, FrameSize, IoPorts, MapFlags, Notification, Platform, Slot, Untyped, now},
};
use platform_core::machine::{Machine, Width};

/// Most pages of firmware and device memory that are mapped at a time. Each takes a slot of the table.
const MOST_PAGES: usize = 96;
const PAGE: u64 = 4096;

/// Ports, physical memory and the clock.
pub struct Hardware {
    platform: Platform,
    ports: IoPorts,
    memory: Memory,
    table: CapTable,
    /// Never signalled: waiting for it is sleeping.
    sleep: Option<Notification>,
    tsc_hz: u64,
    /// Mapped pages by physical address: where, and the frame's slot.
    pages: BTreeMap<u64, (u64, Slot)>,
}

impl Hardware {
    /// Takes all ports, and `objects` to make page tables from.
    pub fn new(env: &Env, platform: Platform, objects: Untyped) -> Result<Hardware, MemoryError> {
        let mut memory = Memory::new(env, objects);
        let slot = memory.slots.take(1).ok_or(MemoryError::NoSlots)?;
        let ports = platform.make_ports(0, u16::MAX, slot)?;
        let slot = memory.slots.take(1).ok_or(MemoryError::NoSlots)?;
        let sleep = objects.retype_notifications(1, slot).ok().and_then(|made| made.get(0));
        Ok(Hardware {
            platform,
            ports,
            memory,
            table: env.table(),
            sleep,
            tsc_hz: env.info.tsc_hz,
            pages: BTreeMap::new(),
        })
    }

    /// An empty slot of the task's table.
    pub fn slot(&mut self) -> Option<Slot> {
        self.memory.slots.take(1)
    }

    /// Empties a slot and gives it back.
    pub fn release(&mut self, slot: Slot) {
        // Empty already: the capability was revoked. Else the slot is lost, and no more than that.
        if matches!(self.table.delete_fully(slot), Ok(()) | Err(Error::Empty)) {
            self.memory.slots.give(slot, 1);
        }
    }

    /// Virtual address of the page at `physical`, mapped uncached. `None`: the kernel gave that memory out, or room is short.
    fn page(&mut self, physical: u64) -> Option<u64> {
        if let Some((address, _)) = self.pages.get(&physical) {
            return Some(*address);
        }
        if self.pages.len() >= MOST_PAGES {
            self.forget();
        }
        let slot = self.memory.slots.take(1)?;
        let made = self.platform.make_frame(physical, FrameSize::Small, slot);
        let frame = match made {
            Ok(frame) => frame,
            Err(error) => {
                debug!("no frame at {physical:#x}: {error:?}");
                self.memory.slots.give(slot, 1);
                return None;
            }
        };
        let mapped = self.memory.addresses.take(PAGE, PAGE).and_then(|address| {
            let done = self.memory.map(frame, address, MapFlags::READ_WRITE.uncached());
            done.ok().map(|()| address)
        });
        match mapped {
            Some(address) => {
                self.pages.insert(physical, (address, slot));
            }
            None => self.release(slot),
        }
        mapped
    }

    /// Unmaps all pages.
    fn forget(&mut self) {
        use moira_rt::sys::{Frame, Space};
        for (_, (address, slot)) in core::mem::take(&mut self.pages) {
            // An address under which something may still be mapped is not used again.
            if self.memory.space.unmap_fully(Frame::new(slot)).is_ok() {
                self.memory.addresses.give(address, PAGE);
            }
            self.release(slot);
        }
    }

    /// Where an access of `width` at `address` goes, if it does not cross a page and is aligned.
    fn place(&mut self, address: u64, width: Width) -> Option<u64> {
        if !address.is_multiple_of(width.bytes()) {
            return None;
        }
        let offset = address % PAGE;
        self.page(address - offset).map(|page| page + offset)
    }
}

impl Machine for Hardware {
    fn load(&mut self, address: u64, width: Width) -> u64 {
        if !address.is_multiple_of(width.bytes()) {
            let byte = |offset| self.load(address.wrapping_add(offset), Width::Byte);
            let bytes: alloc::vec::Vec<u64> = (0..width.bytes()).map(byte).collect();
            return bytes.iter().rev().fold(0, |value, byte| value << 8 | byte);
        }
        let Some(place) = self.place(address, width) else {
            return width.ones();
        };
        // SAFETY: `place` is aligned and within a page that is mapped readable and writable until `forget`; no reference to it
        // exists, and it is neither heap, stack nor image, which are mapped elsewhere.
        unsafe {
            match width {
                Width::Byte => (place as *const u8).read_volatile().into(),
                Width::Word => (place as *const u16).read_volatile().into(),
                Width::Long => (place as *const u32).read_volatile().into(),
                Width::Quad => (place as *const u64).read_volatile(),
            }
        }
    }

    fn store(&mut self, address: u64, width: Width, value: u64) {
        if !address.is_multiple_of(width.bytes()) {
            for offset in 0..width.bytes() {
                self.store(address.wrapping_add(offset), Width::Byte, value >> (offset * 8) & 0xff);
            }
            return;
        }
        let Some(place) = self.place(address, width) else {
            return;
        };
        // SAFETY: as in `load`.
        unsafe {
            match width {
                Width::Byte => (place as *mut u8).write_volatile(value as u8),
                Width::Word => (place as *mut u16).write_volatile(value as u16),
                Width::Long => (place as *mut u32).write_volatile(value as u32),
                Width::Quad => (place as *mut u64).write_volatile(value),
            }
        }
    }

    fn input(&mut self, port: u16, width: Width) -> u64 {
        let value = match width {
            Width::Byte => self.ports.in8(port).map(u64::from),
            Width::Word => self.ports.in16(port).map(u64::from),
            Width::Long => self.ports.in32(port).map(u64::from),
            Width::Quad => return u64::MAX,
        };
        value.unwrap_or(width.ones())
    }

    fn output(&mut self, port: u16, width: Width, value: u64) {
        // Refused is as if nothing were there.
        let _ = match width {
            Width::Byte => self.ports.out8(port, value as u8),
            Width::Word => self.ports.out16(port, value as u16),
            Width::Long => self.ports.out32(port, value as u32),
            Width::Quad => return,
        };
    }

    fn nanoseconds(&mut self) -> u64 {
        let ns = u128::from(now()) * 1_000_000_000 / u128::from(self.tsc_hz.max(1));
        ns as u64
    }

    fn wait(&mut self, nanoseconds: u64) {
        let ticks = u128::from(nanoseconds) * u128::from(self.tsc_hz) / 1_000_000_000;
        let end = now().saturating_add(u64::try_from(ticks).unwrap_or(u64::MAX));
        if let Some(sleep) = self.sleep {
            // Nobody signals it: it times out. Any other error leaves the loop below.
            let _ = sleep.wait(Deadline(end.max(1)));
        }
        while now() < end {
            core::hint::spin_loop();
        }
    }
}
