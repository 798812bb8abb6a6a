//! What the hostile guest does to devices when it knows how they work: virtio queues, the firmware configuration device, PCI
//! configuration, interrupt controllers; and to descriptor tables.
//!
//! Devices write where they are told, so what they are told is memory from 8 MiB on, which is nobody's, or no memory at all.

use crate::fuzz::Random;
use crate::hardware::{out8, out16};
use core::arch::asm;

/// Memory that is nobody's.
const FREE: u64 = 0x80_0000;
/// Devices of the machine that have queues, by their slot.
const SLOTS: [u32; 2] = [1, 3];
const APIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;

macro_rules! put {
    ($name:ident, $type:ty) => {
        fn $name(address: u64, value: u64) {
            // SAFETY: device registers, or memory that is nobody's.
            unsafe { (address as *mut $type).write_volatile(value as $type) };
        }
    };
}
put!(put8, u8);
put!(put16, u16);
put!(put32, u32);
put!(put64, u64);

fn out32(port: u16, value: u32) {
    // SAFETY: as for `put!`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nostack)) };
}

fn config(slot: u32, register: u32, value: u32) {
    out32(0xcf8, 0x8000_0000 | slot << 11 | register);
    out32(0xcfc, value);
}

/// Free memory, or where nothing is.
fn place(random: &mut Random) -> u64 {
    match random.below(8) {
        0 => random.value() | 1 << random.pick(&[24u32, 31, 40, 63]),
        1 => 0xff_ff00 + random.below(0x200),
        _ => FREE + random.below(0x80_0000),
    }
}

/// Brings a device up as a driver would, gives it queues full of nonsense, and rings.
pub extern "C" fn virtqueue(random: &mut Random) {
    let slot = random.pick(&SLOTS);
    let bar = 0xc000_0000 + 0x4000 * u64::from(slot);
    config(slot, 0x10, bar as u32);
    config(slot, 4, 7);
    put8(bar + 0x14, 0);
    put8(bar + 0x14, 3);
    // VERSION_1 and, at times, everything.
    put32(bar + 8, 1);
    put32(bar + 0xc, if random.below(4) == 0 { random.next() } else { 1 });
    put8(bar + 0x14, 0xb);
    for queue in 0..2 {
        let size = 1 << random.below(9);
        let table = FREE + (random.below(0x10_0000) & !0xf);
        let parts = [table, table + 0x2000, table + 0x3000];
        put16(bar + 0x16, queue);
        put16(bar + 0x18, if random.below(8) == 0 { random.next() } else { size });
        for (register, part) in [0x20, 0x28, 0x30].into_iter().zip(parts) {
            put64(bar + register, if random.below(16) == 0 { place(random) } else { part });
        }
        fill(random, table, size);
        put16(bar + 0x1a, random.below(4));
        put16(bar + 0x1c, 1);
    }
    put8(bar + 0x14, 0xf);
    for _ in 0..3 {
        let queue = random.below(3);
        put16(bar + 0x2000 + 4 * queue, queue);
    }
}

/// A table of descriptors, and the ring that offers them.
fn fill(random: &mut Random, table: u64, size: u64) {
    for descriptor in 0..size {
        let at = table + 16 * descriptor;
        put64(at, place(random));
        put32(at + 8, if random.below(4) == 0 { random.value() } else { random.below(5000) });
        put16(at + 12, random.below(8));
        put16(at + 14, if random.below(8) == 0 { random.next() } else { random.below(size) });
    }
    put16(table + 0x2000, random.below(2));
    put16(table + 0x2002, if random.below(8) == 0 { random.next() } else { random.below(size + 1) });
    for entry in 0..size {
        put16(table + 0x2004 + 2 * entry, if random.below(16) == 0 { random.next() } else { random.below(size) });
    }
}

/// Selects, reads, and sends the device to memory.
pub extern "C" fn firmware_config(random: &mut Random) {
    let key = random.pick(&[0u64, 1, 5, 0xf, 0x19, 0x20, 0x21, 0x2f]);
    let key = if random.below(4) == 0 { random.next() } else { key };
    out16(0x510, key as u16);
    for _ in 0..random.below(8) {
        // SAFETY: reads a register of the device.
        unsafe { asm!("in al, dx", in("dx") 0x511u16, out("al") _, options(nomem, nostack)) };
    }
    let at = FREE + random.below(0x1000);
    let length = if random.below(4) == 0 { random.value() as u32 } else { random.below(0x2000) as u32 };
    put32(at, u64::from((random.below(32) as u32 | (key as u32) << 16).swap_bytes()));
    put32(at + 4, u64::from(length.swap_bytes()));
    put64(at + 8, place(random).swap_bytes());
    let at = if random.below(8) == 0 { place(random) } else { at };
    out32(0x514, ((at >> 32) as u32).swap_bytes());
    out32(0x518, (at as u32).swap_bytes());
}

/// PCI configuration space: base addresses, commands, capabilities.
pub extern "C" fn pci(random: &mut Random) {
    let slot = random.pick(&[0u32, 1, 2, 3, 4, 31]);
    let register =
        if random.below(2) == 0 { random.pick(&[4u32, 0x10, 0x14, 0x18, 0x3c]) } else { random.below(0x100) as u32 };
    let value = match random.below(3) {
        0 => u32::MAX,
        1 => 0xc000_0000 | (random.below(0x100) as u32) << 12,
        _ => random.value() as u32,
    };
    config(slot, register & !3, value);
}

/// Interrupts from everywhere, but for INIT, which stops the processor for good, and NMIs that come later.
pub extern "C" fn interrupts(random: &mut Random) {
    let vector = random.next() & 0xff;
    match random.below(6) {
        0 | 1 => {
            put32(APIC + 0x310, random.next() & 0xff00_0000);
            let mode = random.pick(&[0u64, 1, 2, 4]) << 8;
            put32(APIC + 0x300, vector | mode | random.next() & 0xc_8800);
        }
        2 => put32(APIC + 0x320 + 0x10 * random.below(6), vector | random.next() & 0x7_a000),
        3 => {
            put32(APIC + 0x3e0, random.next());
            put32(APIC + 0x380, random.value());
        }
        4 => put32(APIC + random.pick(&[0x20u64, 0x80, 0xb0, 0xd0, 0xe0, 0x280]), random.value()),
        _ => {
            let pin = random.below(24);
            put32(IOAPIC, 0x10 + 2 * pin);
            put32(IOAPIC + 0x10, vector | random.next() & 0x1_f900);
            put32(IOAPIC, 0x11 + 2 * pin);
            put32(IOAPIC + 0x10, random.next() & 0xff00_0000);
        }
    }
}

/// Descriptor tables: other limits and bases for as long as nobody looks, and selectors that select nothing.
pub extern "C" fn tables(random: &mut Random) {
    let selector = random.value() as u16;
    let other = [random.next() as u16, random.next() as u16, random.next() as u16, (random.next() & 0x7f) as u16, 0];
    let mut own = [0u16; 5];
    // SAFETY: the table is put back before anything looks into it; what is no selector faults.
    unsafe {
        match random.below(8) {
            0 | 1 => asm!(
                "cli", "sgdt [{own}]", "lgdt [{other}]", "sgdt [{other}]", "lgdt [{own}]",
                own = in(reg) own.as_mut_ptr(), other = in(reg) other.as_ptr(), options(nostack)
            ),
            2 => asm!(
                "cli", "sidt [{own}]", "or word ptr [{own}], 0xfff", "lidt [{own}]",
                own = in(reg) own.as_mut_ptr(), options(nostack)
            ),
            3 => asm!("lldt {:x}", in(reg) selector, options(nostack)),
            4 => asm!("ltr {:x}", in(reg) selector, options(nostack)),
            5 => asm!("mov fs, {0:x}", "mov gs, {0:x}", in(reg) selector, options(nostack)),
            6 => {
                asm!("lar {t:e}, {s:e}", "lsl {t:e}, {s:e}", "verr {s:x}", t = out(reg) _, s = in(reg) u32::from(selector), options(nostack))
            }
            _ => asm!("str {0:x}", "sldt {0:x}", "smsw {0:x}", out(reg) _, options(nostack)),
        }
    }
    out8(0x80, 0);
}
