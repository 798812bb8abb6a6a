//! From the loader to the root task.
//!
//! Reads what a PVH or Multiboot2 loader left, builds the kernel's tables, lays out the processors, and makes the root task from
//! the first program of the initrd, with untyped memory for all that is left.

use crate::{
    arch::{self, apic, mitigations, paging, serial, smp as start, tables, tsc, virt, vm},
    memory::{DIRECT_MAP, KERNEL_BASE},
    percpu, sched,
};
use core::sync::atomic::Ordering::*;
use heapless::Vec;
use raw_cpuid::CpuId;
use spin::Once;

mod loader;
mod root;
mod selftest;

pub use loader::{Loaded, Range};

/// Most ranges of memory.
const RANGES: usize = 64;

/// What ends a run under an emulator.
pub enum ExitDevice {
    /// QEMU's isa-debug-exit at port F4h.
    Debug,
    /// Bochs' port 8900h.
    Bochs,
}

/// What ends the run; a machine has nothing.
pub static EXIT: Once<ExitDevice> = Once::new();
/// Usable memory, for `is_memory`.
static MEMORY: Once<Vec<Range, RANGES>> = Once::new();
/// Memory for processors: base, and how many there is room for.
static CPU_MEMORY: Once<(u64, u64)> = Once::new();

unsafe extern "C" {
    static kernel_start: u8;
    static kernel_text_end: u8;
    static kernel_rodata_end: u8;
    static kernel_end: u8;
}

/// Whether an address lies in the kernel's code.
pub fn is_text(address: u64) -> bool {
    (&raw const kernel_start as u64..&raw const kernel_text_end as u64).contains(&address)
}

/// Whether any byte of a range is memory that the kernel manages.
pub fn is_memory(start: u64, bytes: u64) -> bool {
    let trampoline = Range { start: start::TRAMPOLINE, end: start::TRAMPOLINE + 3 * 4096 };
    let overlaps = |range: &Range| start < range.end && range.start < start.saturating_add(bytes);
    overlaps(&trampoline) || MEMORY.get().is_some_and(|ranges| ranges.iter().any(overlaps))
}

/// Memory of the next processor to start (structural lock held).
pub fn next_cpu() -> Option<(u32, u64)> {
    let (index, &(base, limit)) = (percpu::count() as u64, CPU_MEMORY.get()?);
    (index < limit).then_some((index as u32, base + index * start::BYTES_PER_CPU))
}

/// Ends with one clear line.
pub fn fail(why: core::fmt::Arguments) -> ! {
    crate::log!("moira: cannot boot: {why}");
    crate::log!("moira: system ended: failed: cannot boot");
    screen(why);
    arch::end(1)
}

/// The same line on the text screen that a BIOS leaves.
fn screen(why: core::fmt::Arguments) {
    struct Screen(u64);
    impl core::fmt::Write for Screen {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            for byte in text.bytes() {
                if self.0 < 80 * 25 {
                    // SAFETY: the text screen's memory, mapped with all low memory while booting.
                    unsafe { ((DIRECT_MAP + 0xb8000 + self.0 * 2) as *mut u16).write_volatile(0x4f00 | byte as u16) };
                    self.0 += 1;
                }
            }
            Ok(())
        }
    }
    let _ = core::fmt::write(&mut Screen(0), format_args!("Moira cannot boot: {why}"));
}

/// A bump allocator over one range of memory, for what the kernel makes at boot.
pub struct Early {
    next: u64,
    end: u64,
}

impl Early {
    /// Zeroed memory, aligned to its power-of-two `align`.
    pub fn take(&mut self, bytes: u64, align: u64) -> u64 {
        let at = (self.next + align - 1) & !(align - 1);
        if at + bytes > self.end {
            fail(format_args!("too little memory: the kernel needs {bytes} more bytes in one piece"));
        }
        self.next = at + bytes;
        crate::memory::zero(at, (bytes + 7) & !7);
        at
    }
}

/// First Rust code, on the boot stack, with the boot tables (`boot.s`).
#[unsafe(no_mangle)]
extern "C" fn kernel_start_rust(magic: u64, info: u64) -> ! {
    let boot_tsc = arch::now();
    serial::init();
    crate::log!("Moira {}", env!("CARGO_PKG_VERSION"));
    let loaded = match loader::read(magic as u32, info) {
        Ok(loaded) => loaded,
        Err(why) => fail(format_args!("{why}")),
    };
    let option = |name: &str| loader::option(&loaded.command_line, name);
    match option("exit") {
        Some("debug") => _ = EXIT.call_once(|| ExitDevice::Debug),
        Some("bochs") => _ = EXIT.call_once(|| ExitDevice::Bochs),
        _ => {}
    }
    check_processor();
    mitigations::choose(option);
    let vendor = virt::detect();

    // SAFETY: linker symbols: only their addresses are used.
    let image = Range { start: 0x10_0000, end: &raw const kernel_end as u64 - KERNEL_BASE };
    let mut early = loader::early_memory(&loaded, image);
    let early_start = early.next;
    let sections = [
        (&raw const kernel_start as u64, &raw const kernel_text_end as u64, false, true),
        (&raw const kernel_text_end as u64, &raw const kernel_rodata_end as u64, false, false),
        (&raw const kernel_rodata_end as u64, (&raw const kernel_end as u64 + 4095) & !4095, true, false),
    ];
    let low = core::iter::once((0, 0x10_0000));
    let ranges = loaded.ranges.iter().map(|range| (range.start, range.end));
    let initrd = core::iter::once((loaded.initrd.start, loaded.initrd.end));
    paging::init(low.chain(ranges).chain(initrd), &sections, &mut || early.take(4096, 4096));

    let limit = option("cpus").and_then(|text| text.parse().ok()).unwrap_or(16u64).clamp(1, percpu::MAX_CPUS as u64);
    let base = early.take(limit * start::BYTES_PER_CPU, 4096);
    CPU_MEMORY.call_once(|| (base, limit));
    for index in 0..limit {
        start::map(index as u32, base + index * start::BYTES_PER_CPU, &mut || early.take(4096, 4096));
    }
    let cpu = start::prepare(0, base);
    tables::init_idt();
    tables::show(&mut || early.take(4096, 4096));
    start::init_this(cpu);
    percpu::register(cpu);
    cpu.online.store(true, Release);
    silence_pics();
    tsc::calibrate();
    apic::init_timer();
    let virtualization = match vendor {
        Ok(vendor) => vm::choose(vendor, cpu),
        Err(why) => {
            crate::log!("moira: no virtual machines: {why}");
            moira_abi::boot::virtualization::NONE
        }
    };
    crate::log!(
        "moira: {} MiB, TSC {} kHz, {}, virtualization: {}",
        loaded.ranges.iter().map(|range| range.end - range.start).sum::<u64>() >> 20,
        tsc::hz() / 1000,
        if apic::is_x2apic() { "x2APIC" } else { "xAPIC" },
        ["none", "VT-x", "SVM"][virtualization as usize % 3]
    );
    MEMORY.call_once(|| loaded.ranges.clone());
    let thread = root::make(cpu, &loaded, early, early_start, image, boot_tsc, virtualization);
    selftest::run(option("selftest").unwrap_or(""), cpu, thread);
    let now = arch::now();
    cpu.account_since.set(now);
    cpu.ledger_start.set(now);
    cpu.boot_context.set(thread.context.get());
    start::leave(sched::run_next(cpu))
}

/// The processor must have what no fallback exists for.
fn check_processor() {
    let (basic, extended) =
        (CpuId::new().get_feature_info(), CpuId::new().get_extended_processor_and_feature_identifiers());
    if !basic.is_some_and(|f| f.has_apic() && f.has_tsc() && f.has_msr()) {
        fail(format_args!("this processor has no local APIC or no TSC"));
    }
    if !extended.is_some_and(|f| f.has_syscall_sysret() && f.has_execute_disable()) {
        fail(format_args!("this processor has no SYSCALL or no NX"));
    }
}

/// The two 8259s are remapped out of the exceptions' way and masked.
fn silence_pics() {
    for (port, words) in [(0x20, [0x20, 4, 1, 0xff]), (0xa0, [0x28, 2, 1, 0xff])] {
        arch::port_write(port, 1, 0x11);
        for word in words {
            arch::port_write(port + 1, 1, word);
        }
    }
}
