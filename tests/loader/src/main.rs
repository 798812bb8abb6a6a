//! Boots Linux on the bare machine by the 64-bit entry, with the monitor's own loader, and says at which tick of the TSC.
//!
//! An emulator starts it by PVH with one module, which `cargo xtask bench` makes: a page that begins with four numbers of eight
//! bytes (the magic word, then the lengths of the command line, the kernel and the initial RAM disk), then these three, each on a
//! page. The map of memory is the machine's own.
#![no_std]
#![no_main]

extern crate alloc;

mod heap;
mod memory;
mod start;

use memory::Memory;
use vmm_machine::boot::{
    Module as GuestModule,
    linux::{LinuxGuest, load},
};
use vmm_machine::layout;
use vmm_machine::memory_map::MemoryMap;

/// "MOIRALDR" in memory.
const MAGIC: u64 = u64::from_le_bytes(*b"MOIRALDR");
const PAGE: u64 = 4096;

/// What the module holds.
struct Module {
    cmdline: &'static [u8],
    kernel: &'static [u8],
    initrd: &'static [u8],
}

fn module(base: u64, bytes: u64) -> Option<Module> {
    let words: [u64; 4] = core::array::from_fn(|index| memory::word(base + 8 * index as u64));
    let [magic, lengths @ ..] = words;
    let mut at = base + PAGE;
    let mut parts = lengths.map(|length| {
        let part = (at, length);
        at = at.saturating_add(length.next_multiple_of(PAGE));
        part
    });
    if magic != MAGIC || at > base + bytes.next_multiple_of(PAGE) {
        return None;
    }
    let [cmdline, kernel, initrd] = parts.each_mut().map(|(at, length)| memory::bytes(*at, *length));
    Some(Module { cmdline, kernel, initrd })
}

/// `info` is the address of PVH's start information.
extern "C" fn main(info: u64) -> ! {
    let why = match boot(info) {
        Ok(never) => never,
        Err(why) => why,
    };
    start::say("loader: ");
    start::say(why);
    start::say("\n");
    start::halt()
}

fn boot(info: u64) -> Result<&'static str, &'static str> {
    let start = start::Info::read(info).ok_or("there is no start information")?;
    let (base, bytes) = start.module.ok_or("there is no module")?;
    let module = module(base, bytes).ok_or("the module is none of xtask's")?;
    // Nothing is placed above the module, which is read until the last.
    let below = MemoryMap::new(base & !0x1f_ffff).map_err(|_| "there is too little memory")?;
    let initrd = [GuestModule { bytes: module.initrd, cmdline: b"initrd" }];
    let guest = LinuxGuest { kernel: module.kernel, modules: &initrd, cmdline: module.cmdline, rsdp: start.rsdp };
    let mut memory = Memory { size: base };
    let state = load(&mut memory, &below, &guest).map_err(|_| "the kernel is refused")?;
    memory::put_map(layout::BOOT_INFO, &start.map);
    start::say("loader: the kernel starts at tick ");
    start::say_number(start::now());
    start::say("\n");
    start::enter(&state)
}
