//! Virtio over PCI (virtio 1.2, 4.1): one 16 KiB memory BAR with all structures, MSI-X, and INTA without it.
//!
//! Notifications go to a small I/O BAR as well: a port write costs the guest and the monitor a third of what a memory
//! write costs, which must be decoded. Linux takes the first notification structure of the list, firmware the last.

use super::{Progress, Queue, QueueError, VirtioDevice, Work, feature};
use crate::pci::config::{COMMAND_MASTER, ConfigSpace, Identity};
use crate::pci::msix::Msix;
use crate::pci::{BarKind, ConfigEffect, Context, PciFunction};
use alloc::boxed::Box;
use alloc::vec::Vec;

/// The vector number that means "none".
pub const NO_VECTOR: u16 = 0xFFFF;

/// The BAR with everything in it.
const BAR: u8 = 0;
const BAR_SIZE: u32 = 0x4000;
/// The BAR with ports for notifications.
const NOTIFY_BAR: u8 = 2;
const ISR: u32 = 0x0800;
const DEVICE: u32 = 0x1000;
const NOTIFY: u32 = 0x2000;
const MSIX_TABLE: u32 = 0x3000;
const MSIX_PBA: u32 = 0x3800;
const COMMON_SIZE: u32 = 0x38;
const DEVICE_SIZE: u32 = 0x1000;
const NOTIFY_STRIDE: u32 = 4;
/// Entries of a queue that any driver may have. Some take a number of their own without a look at the device's, and QEMU's
/// devices, for which they were written, take it.
const QUEUE_ENTRIES: u16 = 256;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
const STATUS_NEEDS_RESET: u8 = 0x40;
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// A virtio device in a PCI slot.
pub struct VirtioPci {
    device: Box<dyn VirtioDevice>,
    config: ConfigSpace,
    msix: Msix,
    msix_at: u8,
    window_at: u8,
    queues: Vec<Queue>,
    status: u8,
    device_select: u32,
    driver_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
    generation: u8,
    isr: u8,
    progress: Progress,
    /// What the driver did wrong last.
    fault: Option<QueueError>,
}

impl VirtioPci {
    /// Wraps a device.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let kind = device.device_type();
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1AF4,
            device: 0x1040 + kind.id,
            class: kind.class,
            revision: 1,
            subsystem_vendor: 0x1AF4,
            subsystem: 0x1100,
        });
        config.add_bar(BAR, BarKind::Memory, BAR_SIZE);
        config.add_interrupt_pin();
        let queues: Vec<Queue> = device.queue_sizes().iter().map(|&s| Queue::new(s)).collect();
        let msix = Msix::new(queues.len() as u8 + 1);
        let msix_at = config.add_capability(0x11, &msix.capability(BAR, MSIX_TABLE, MSIX_PBA));
        config.allow(msix_at + 2, &[0, 0xC0]);
        config.add_capability(9, &structure(1, BAR, 0, COMMON_SIZE, &[]));
        let notify = NOTIFY_STRIDE * queues.len() as u32;
        config.add_bar(NOTIFY_BAR, BarKind::Io, notify);
        config.add_capability(9, &structure(2, NOTIFY_BAR, 0, notify, &NOTIFY_STRIDE.to_le_bytes()));
        config.add_capability(9, &structure(2, BAR, NOTIFY, notify, &NOTIFY_STRIDE.to_le_bytes()));
        config.add_capability(9, &structure(3, BAR, ISR, 4, &[]));
        config.add_capability(9, &structure(4, BAR, DEVICE, DEVICE_SIZE, &[]));
        // The window of 4.1.4.9: BAR, offset and length can be written; data is live.
        let window_at = config.add_capability(9, &structure(5, BAR, 0, 0, &[0; 4]));
        config.allow(window_at + 4, &[0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF]);
        Self {
            device,
            config,
            msix,
            msix_at,
            window_at,
            queues,
            status: 0,
            device_select: 0,
            driver_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            generation: 0,
            isr: 0,
            progress: Progress::Idle,
            fault: None,
        }
    }

    fn offered(&self) -> u64 {
        self.device.features() | feature::TRANSPORT
    }

    fn reset_device(&mut self) {
        self.device.reset();
        for q in &mut self.queues {
            *q = Queue::new(q.max_size);
        }
        (self.status, self.device_select, self.driver_select, self.driver_features) = (0, 0, 0, 0);
        (self.config_vector, self.queue_select, self.isr) = (NO_VECTOR, 0, 0);
        self.progress = Progress::Idle;
        self.fault = None;
    }

    /// Whether the device may touch queues now.
    fn live(&self) -> bool {
        self.status & (STATUS_DRIVER_OK | STATUS_NEEDS_RESET) == STATUS_DRIVER_OK
            && self.config.command() & COMMAND_MASTER != 0
    }

    fn interrupt(&mut self, vector: u16, cause: u8, context: &mut Context<'_>) {
        if self.msix.enabled() {
            self.msix.signal(vector, context.msi);
        } else {
            self.isr |= cause;
            self.config.drive_intx(true);
        }
    }

    fn fail(&mut self, error: QueueError, context: &mut Context<'_>) {
        self.fault = Some(error);
        self.status |= STATUS_NEEDS_RESET;
        self.progress = Progress::Idle;
        if self.status & STATUS_DRIVER_OK != 0 {
            self.interrupt(self.config_vector, ISR_CONFIG, context);
        }
    }

    /// Lets the device work, and then tells the driver what it wants to be told.
    fn run(
        &mut self,
        context: &mut Context<'_>,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut Work<'_>) -> Result<Progress, QueueError>,
    ) {
        if !self.live() {
            return;
        }
        let mut w = Work { queues: &mut self.queues, memory: context.memory, now: context.now };
        let outcome = work(self.device.as_mut(), &mut w);
        // Chains that were finished before an error still count.
        for i in 0..self.queues.len() {
            let Some(q) = self.queues.get_mut(i) else { break };
            let vector = q.vector;
            if q.take_interrupt(context.memory).unwrap_or(false) {
                self.interrupt(vector, ISR_QUEUE, context);
            }
        }
        match outcome {
            Ok(p) => self.progress = p,
            Err(e) => self.fail(e, context),
        }
    }

    fn set_status(&mut self, v: u8) {
        if v == 0 {
            self.reset_device();
            return;
        }
        let old = self.status;
        // The driver cannot take bits back but by a reset, and cannot set the device's own.
        let mut new = (old | v) & !STATUS_NEEDS_RESET | old & STATUS_NEEDS_RESET;
        if new & !old & STATUS_FEATURES_OK != 0 {
            let legal = self.driver_features & !self.offered() == 0 && self.driver_features & feature::VERSION_1 != 0;
            if !legal {
                new &= !STATUS_FEATURES_OK;
            }
            for q in &mut self.queues {
                q.event_idx = self.driver_features & feature::EVENT_IDX != 0;
                q.indirect = self.driver_features & feature::INDIRECT_DESC != 0;
            }
        }
        if new & STATUS_FEATURES_OK == 0 {
            new &= !STATUS_DRIVER_OK;
        }
        self.status = new;
        if new & !old & STATUS_DRIVER_OK != 0 {
            self.device.activate(self.driver_features);
            self.progress = Progress::More;
        }
    }

    fn common_byte(&self, offset: u32) -> u8 {
        let part = |v: u64, first: u32| (v >> (8 * (offset - first))) as u8;
        let half = |features: u64, select: u32| match select {
            0 => features & 0xFFFF_FFFF,
            1 => features >> 32,
            _ => 0,
        };
        let q = self.queues.get(usize::from(self.queue_select));
        match offset {
            0x00..=0x03 => part(u64::from(self.device_select), 0),
            0x04..=0x07 => part(half(self.offered(), self.device_select), 4),
            0x08..=0x0B => part(u64::from(self.driver_select), 8),
            0x0C..=0x0F => part(half(self.driver_features, self.driver_select), 0xC),
            0x10 | 0x11 => part(u64::from(self.config_vector), 0x10),
            0x12 | 0x13 => part(self.queues.len() as u64, 0x12),
            0x14 => self.status,
            0x15 => self.generation,
            0x16 | 0x17 => part(u64::from(self.queue_select), 0x16),
            0x18 | 0x19 => part(q.map_or(0, |q| u64::from(q.size)), 0x18),
            0x1A | 0x1B => part(q.map_or(u64::from(NO_VECTOR), |q| u64::from(q.vector)), 0x1A),
            0x1C | 0x1D => part(q.map_or(0, |q| u64::from(q.ready)), 0x1C),
            0x1E | 0x1F => part(u64::from(self.queue_select), 0x1E),
            0x20..=0x27 => part(q.map_or(0, |q| q.descriptors), 0x20),
            0x28..=0x2F => part(q.map_or(0, |q| q.available), 0x28),
            0x30..=0x37 => part(q.map_or(0, |q| q.used), 0x30),
            _ => 0,
        }
    }

    fn common_write(&mut self, offset: u32, size: u8, v: u32, context: &mut Context<'_>) {
        let vector = |msix: &Msix, v: u32| if v < u32::from(msix.vectors()) { v as u16 } else { NO_VECTOR };
        match (offset, size) {
            (0x00, 4) => self.device_select = v,
            (0x08, 4) => self.driver_select = v,
            (0x0C, 4) if self.status & STATUS_FEATURES_OK == 0 => match self.driver_select {
                0 => self.driver_features = self.driver_features & !0xFFFF_FFFF | u64::from(v),
                1 => self.driver_features = self.driver_features & 0xFFFF_FFFF | u64::from(v) << 32,
                // Bits that are not there: asking for one is illegal, and shows at FEATURES_OK.
                _ if v != 0 => self.driver_features |= !self.offered(),
                _ => {}
            },
            (0x10, 2) => self.config_vector = vector(&self.msix, v),
            (0x14, 1) => self.set_status(v as u8),
            (0x16, 2) => self.queue_select = v as u16,
            (0x18..=0x34, _) => self.queue_write(offset, size, v, context),
            _ => {}
        }
    }

    fn queue_write(&mut self, offset: u32, size: u8, v: u32, context: &mut Context<'_>) {
        let vectors = self.msix.vectors();
        let Some(q) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        let put = |old: u64, high: bool| {
            if high { old & 0xFFFF_FFFF | u64::from(v) << 32 } else { old & !0xFFFF_FFFF | u64::from(v) }
        };
        match (offset, size) {
            (0x1A, 2) => q.vector = if v < u32::from(vectors) { v as u16 } else { NO_VECTOR },
            // Once enabled, a queue changes only by a reset.
            _ if q.ready => {}
            (0x18, 2) => {
                let n = v as u16;
                if n.is_power_of_two() && n <= q.max_size.max(QUEUE_ENTRIES) {
                    q.size = n;
                }
            }
            (0x1C, 2) if v == 1 => {
                if let Err(e) = q.enable(context.memory) {
                    self.fail(e, context);
                }
            }
            (0x20 | 0x24, 4) => q.descriptors = put(q.descriptors, offset & 4 != 0),
            (0x28 | 0x2C, 4) => q.available = put(q.available, offset & 4 != 0),
            (0x30 | 0x34, 4) => q.used = put(q.used, offset & 4 != 0),
            _ => {}
        }
    }

    fn notify(&mut self, queue: u32, context: &mut Context<'_>) {
        if (queue as usize) < self.queues.len() {
            let before = self.progress;
            self.run(context, |d, w| Ok(d.notify(queue as u16, w)?.and(before)));
        }
    }

    /// A read of up to 4 bytes.
    fn read32(&mut self, offset: u32, size: u8, _context: &mut Context<'_>) -> u32 {
        let bytes =
            |f: &dyn Fn(u32) -> u8| (0..u32::from(size)).fold(0, |v, i| v | u32::from(f(offset + i)) << (8 * i));
        match offset {
            0..COMMON_SIZE => bytes(&|o| self.common_byte(o)),
            ISR => {
                let v = core::mem::take(&mut self.isr);
                self.config.drive_intx(false);
                u32::from(v)
            }
            DEVICE..NOTIFY => bytes(&|o| self.device.read_config(u64::from(o - DEVICE))),
            MSIX_TABLE..MSIX_PBA => part(self.msix.table_read(u64::from((offset - MSIX_TABLE) & !3)), offset, size),
            MSIX_PBA..BAR_SIZE => part(self.msix.pba_read(u64::from((offset - MSIX_PBA) & !3)), offset, size),
            _ => 0,
        }
    }

    /// A write of up to 4 bytes.
    fn write32(&mut self, offset: u32, size: u8, v: u32, context: &mut Context<'_>) {
        match offset {
            0..COMMON_SIZE => self.common_write(offset, size, v, context),
            DEVICE..NOTIFY => {
                for i in 0..u32::from(size) {
                    self.device.write_config(u64::from(offset - DEVICE + i), (v >> (8 * i)) as u8);
                }
            }
            NOTIFY..MSIX_TABLE => {
                self.notify((offset - NOTIFY) / NOTIFY_STRIDE, context);
            }
            MSIX_TABLE..MSIX_PBA if size == 4 => self.msix.table_write(u64::from(offset - MSIX_TABLE), v, context.msi),
            _ => {}
        }
    }

    /// The BAR offset and size that the configuration window names, if they make sense.
    fn window(&self) -> Option<(u32, u8)> {
        let at = self.window_at;
        let (bar, offset, len) =
            (self.config.read(at + 4, 1), self.config.read(at + 8, 4), self.config.read(at + 12, 4));
        let ok = bar == u32::from(BAR) && matches!(len, 1 | 2 | 4) && offset % len == 0 && offset < BAR_SIZE;
        ok.then_some((offset, len as u8))
    }
}

/// Body of a virtio capability of one kind (virtio 1.2, 4.1.4).
fn structure(kind: u8, bar: u8, offset: u32, length: u32, more: &[u8]) -> Vec<u8> {
    let mut c = alloc::vec![16 + more.len() as u8, kind, bar, 0, 0, 0];
    c.extend_from_slice(&offset.to_le_bytes());
    c.extend_from_slice(&length.to_le_bytes());
    c.extend_from_slice(more);
    c
}

fn part(register: u32, offset: u32, size: u8) -> u32 {
    register >> (8 * (offset & 3)) & crate::pci::ones(size)
}

impl PciFunction for VirtioPci {
    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        &mut self.config
    }

    fn config_read(&mut self, offset: u8, size: u8, context: &mut Context<'_>) -> u32 {
        if offset & 0xFC == self.window_at + 16
            && let Some((at, len)) = self.window()
        {
            let v = self.read32(at, len, context);
            self.config.set_u32(self.window_at + 16, v);
        }
        self.config.read(offset, size)
    }

    fn config_write(&mut self, offset: u8, size: u8, value: u32, context: &mut Context<'_>) -> ConfigEffect {
        if offset & 0xFC == self.window_at + 16 {
            if let Some((at, len)) = self.window()
                && offset & 3 == 0
            {
                self.write32(at, size.min(len), value, context);
            }
            return ConfigEffect::None;
        }
        let was_live = self.live();
        let effect = self.config.write(offset, size, value);
        if offset & 0xFC == self.msix_at {
            self.msix.set_control(self.config.read(self.msix_at + 2, 2) as u16, context.msi);
        }
        if self.live() && !was_live {
            self.progress = Progress::More;
        }
        effect
    }

    fn bar_read(&mut self, bar: u8, offset: u64, size: u8, context: &mut Context<'_>) -> u64 {
        let offset = offset as u32;
        if bar != BAR {
            return 0;
        }
        if size == 8 {
            let low = self.read32(offset, 4, context);
            return u64::from(self.read32(offset + 4, 4, context)) << 32 | u64::from(low);
        }
        u64::from(self.read32(offset, size.min(4), context))
    }

    fn bar_write(&mut self, bar: u8, offset: u64, size: u8, value: u64, context: &mut Context<'_>) {
        let offset = offset as u32;
        if bar == NOTIFY_BAR {
            self.notify(offset / NOTIFY_STRIDE, context);
        } else if size == 8 {
            self.write32(offset, 4, value as u32, context);
            self.write32(offset + 4, 4, (value >> 32) as u32, context);
        } else {
            self.write32(offset, size.min(4), value as u32, context);
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) {
        if self.device.config_changed() {
            self.generation = self.generation.wrapping_add(1);
            if self.status & STATUS_DRIVER_OK != 0 {
                self.interrupt(self.config_vector, ISR_CONFIG, context);
            }
        }
        self.run(context, |d, w| d.poll(w));
    }

    fn next_deadline(&self) -> Option<u64> {
        match self.progress {
            _ if !self.live() => None,
            Progress::Idle => None,
            Progress::More => Some(0),
            Progress::Until(at) => Some(at),
        }
    }

    fn fault(&self) -> Option<&'static str> {
        self.fault.map(QueueError::text)
    }

    fn intx(&self) -> bool {
        self.isr != 0 && !self.msix.enabled() && self.config.command() & crate::pci::config::COMMAND_INTX_OFF == 0
    }

    fn reset(&mut self) {
        self.reset_device();
        self.msix.reset();
        self.config.reset();
        self.generation = 0;
    }
}
