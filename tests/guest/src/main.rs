//! A tiny guest: makes exits, measures them, and ends in every way a machine can.
//!
//! The monitor starts it in 64-bit mode with the first 4 GiB mapped to themselves, the size of memory in RDI and the
//! command line in RSI. The line's first word says what to do:
//!
//! | word | what it does |
//! | --- | --- |
//! | `fuzz SEED COUNT` | does at random what a guest can do, then switches the machine off |
//! | `vectors SEED COUNT` | holds patterns in vector registers until others ran so often |
//! | `victim ROUNDS` | mixes memory and prints its hash |
//! | `bench`, `bench-interrupt` | measures exits, or what the host's interrupts take, and switches the machine off |
//! | `loop-port`, `loop-cpuid`, `loop-vmcall`, `loop-mmio` | makes such exits for ever |
//! | `smp COUNT` | starts the other processors and sends interrupts in every way between them |
//! | `smp-off COUNT`, `smp-fault COUNT` | ends the machine while the others run |
//! | `ipi` | measures an interrupt between two processors |
//! | `off` | switches the machine off by ACPI |
//! | `count COUNT` | so many processors count, for a debugger, until the power button is pressed |
//! | `button` | waits for the power button, then switches the machine off |
//! | `reset` | resets the machine ten times, counting in CMOS memory, then switches it off |
//! | `triple` | a triple fault |
//! | `memory` | writes and reads all of its memory, then switches itself off |
//! | `device-memory` | instructions on a device's memory that drivers seldom use |
//! | `once COUNT` | takes so many interrupts whose handlers take long, and says whether each came once |
//! | `exit` | ends by the debug exit port with 7 |
//! | `hang` | stops with interrupts off |
//! | `stray` | jumps to where there is no memory |
//! | `lost-table` | loads a segment register by a table where there is no memory, while its timer ticks |
//! | `lost-event` | takes an interrupt on a stack where there is no memory |
#![no_std]
#![no_main]

#[macro_use]
mod serial;
mod bench;
mod device_memory;
mod fuzz;
mod fuzz_devices;
mod hardware;
mod memory;
mod once;
mod smp;
mod vectors;
mod victim;

use core::arch::asm;
use hardware::{halt, in8, out8, out16};

core::arch::global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "cld",
    "and rsp, -16",
    "call {main}",
    "ud2",
    ".popsection",
    main = sym main,
);

/// Most bytes of the command line that are looked at.
const LINE: usize = 64;
/// CMOS memory that nobody else uses.
const RESETS: u8 = 0x50;
const MOST_RESETS: u8 = 10;

extern "C" fn main(memory: u64, line: *const u8) -> ! {
    let mut bytes = [0u8; LINE];
    for (index, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: the monitor put a line of text there that ends with a zero; reading stops at it.
        *byte = unsafe { line.add(index).read_volatile() };
        if *byte == 0 {
            break;
        }
    }
    let end = bytes.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(LINE);
    let word = core::str::from_utf8(bytes.get(..end).unwrap_or_default()).unwrap_or_default();
    say!("guest: {} MiB, {word}", memory >> 20);
    match word {
        "fuzz" => {
            let mut numbers = bytes.split(|byte| matches!(byte, 0 | b' ')).skip(1).map(number);
            let (seed, count) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(10_000));
            fuzz::run(seed, count);
            power_off()
        }
        "vectors" => {
            let mut numbers = bytes.split(|byte| matches!(byte, 0 | b' ')).skip(1).map(number);
            let (seed, count) = (numbers.next().unwrap_or(1), numbers.next().unwrap_or(100));
            if vectors::run(seed, count) { power_off() } else { vectors::fail() }
        }
        "bench-interrupt" => {
            bench::host_interrupts();
            power_off()
        }
        "victim" => {
            victim::run(bytes.split(|byte| matches!(byte, 0 | b' ')).skip(1).map(number).next().unwrap_or(1));
            power_off()
        }
        "bench" => {
            bench::run();
            power_off()
        }
        "loop-port" | "loop-cpuid" | "loop-vmcall" | "loop-mmio" => bench::forever(word),
        "smp" => {
            smp::run(count(&bytes));
            power_off()
        }
        "smp-off" | "smp-fault" => smp::end_while_others_run(count(&bytes), word == "smp-fault"),
        "ipi" => {
            smp::measure();
            power_off()
        }
        "count" => {
            smp::count_for_debugger(count(&bytes));
            power_off()
        }
        "button" => {
            while !button_pressed() {}
            say!("guest: the power button was pressed");
            power_off()
        }
        "nmi" => {
            smp::await_nmi();
            power_off()
        }
        "memory" => {
            memory::run(memory);
            power_off()
        }
        "device-memory" => {
            device_memory::run();
            power_off()
        }
        "once" => {
            once::run(count(&bytes).into());
            power_off()
        }
        "reset" => reset(),
        "triple" => hardware::triple_fault(),
        "exit" => {
            out8(0xf4, 7);
            halt()
        }
        "hang" => halt(),
        "stray" => {
            // SAFETY: the program ends here.
            unsafe { asm!("jmp {}", in(reg) 0xd000_0000_u64, options(noreturn)) }
        }
        "lost-table" => {
            bench::tick_fast();
            let nowhere = [0xd000_0000_u64 << 16 | 0xff, 0];
            // SAFETY: the program ends here.
            unsafe { asm!("lgdt [{}]", "mov ds, {1:e}", in(reg) &nowhere, in(reg) 0x18, options(noreturn)) }
        }
        "lost-event" => smp::interrupt_without_stack(),
        _ => power_off(),
    }
}

/// PM1 status, bit 8 (ACPI 6.5, 4.8.3.1.1).
fn button_pressed() -> bool {
    in8(0x601) & 1 != 0
}

/// The line's second word as a number of processors.
fn count(line: &[u8]) -> u32 {
    line.split(|byte| matches!(byte, 0 | b' ')).nth(1).map_or(0, number) as u32
}

/// A decimal number; what is no digit counts as none.
fn number(text: &[u8]) -> u64 {
    let digits = text.iter().filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |number: u64, digit| number.wrapping_mul(10).wrapping_add(u64::from(digit - b'0')))
}

/// ACPI's S5 (SLP_TYP 5, SLP_EN).
fn power_off() -> ! {
    out16(0x604, 5 << 10 | 1 << 13);
    say!("guest: still there");
    halt()
}

fn reset() -> ! {
    out8(0x70, RESETS);
    let count = in8(0x71);
    say!("guest: {count} resets so far");
    if count >= MOST_RESETS {
        power_off();
    }
    out8(0x70, RESETS);
    out8(0x71, count + 1);
    out8(0xcf9, 6);
    say!("guest: still there");
    halt()
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    say!("guest: {info}");
    halt()
}
