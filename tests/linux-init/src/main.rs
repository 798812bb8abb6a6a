//! The first and only program of a Linux that is measured, in a virtual machine or directly: static, and for the bare target,
//! since Linux takes any static ELF file and nothing has to be fetched for it.
//!
//! It says at which tick of the TSC its first instruction ran, what a few system calls take (not with the argument `boot`, by which only
//! the way to it is measured), which devices there are and how long the processor was idle, and switches the machine off.
#![no_std]
#![no_main]

mod calls;
mod text;

use calls::{call, number};
use text::{say, say_file, say_ticks};

core::arch::global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "rdtsc",
    "shl rdx, 32",
    "lea rdi, [rax + rdx]",
    "mov rsi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    ".popsection",
    main = sym main,
);

const PAGE: u64 = 4096;

extern "C" fn main(first: u64, stack: *const u64) -> ! {
    say("\n");
    say_ticks("first", first, 1);
    // SAFETY: the kernel puts the number of arguments there, of which the first is the program's name.
    if unsafe { *stack } < 2 {
        timed("getppid", 100_000, || {
            call(number::GETPPID, [0; 6]);
        });
        timed("fork_wait", 400, fork_and_wait);
        page_faults();
        pipes();
    }
    call(number::MOUNT, [c"proc".as_ptr() as u64, c"/proc".as_ptr() as u64, c"proc".as_ptr() as u64, 0, 0, 0]);
    say_file("device: ", c"/proc/bus/pci/devices", 13);
    say_file("up and idle: ", c"/proc/uptime", 64);
    say("measured\n");
    call(number::REBOOT, [0xfee1_dead, 672_274_793, 0x4321_fedc, 0, 0, 0]);
    loop {
        call(number::PAUSE, [0; 6]);
    }
}

fn now() -> u64 {
    // SAFETY: reads a register.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// Says how long so many rounds take together, after a few that do not count.
fn timed(name: &str, rounds: u64, mut once: impl FnMut()) {
    for _ in 0..rounds / 10 {
        once();
    }
    let begin = now();
    for _ in 0..rounds {
        once();
    }
    say_ticks(name, now() - begin, rounds);
}

fn fork_and_wait() {
    let child = call(number::FORK, [0; 6]);
    if child == 0 {
        exit();
    }
    call(number::WAIT4, [child, 0, 0, 0, 0, 0]);
}

fn exit() -> ! {
    loop {
        call(number::EXIT, [0; 6]);
    }
}

/// Touches each page of fresh memory.
fn page_faults() {
    const PAGES: u64 = 512;
    const READ_WRITE: u64 = 3;
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    let (mut spent, mut rounds) = (0, 0);
    for _ in 0..20 {
        let at = call(number::MMAP, [0, PAGES * PAGE, READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0]);
        if at as i64 <= 0 {
            break;
        }
        let begin = now();
        for page in 0..PAGES {
            // SAFETY: a byte of the memory that was mapped just now.
            unsafe { ((at + page * PAGE) as *mut u8).write_volatile(1) };
        }
        spent += now() - begin;
        rounds += PAGES;
        call(number::MUNMAP, [at, PAGES * PAGE, 0, 0, 0, 0]);
    }
    say_ticks("page_fault", spent, rounds);
}

/// One byte there and back between two processes.
fn pipes() {
    let (Some(there), Some(back)) = (pipe(), pipe()) else { return };
    let mut byte = [0u8];
    let at = byte.as_mut_ptr() as u64;
    if call(number::FORK, [0; 6]) == 0 {
        while call(number::READ, [there.0, at, 1, 0, 0, 0]) == 1 && byte[0] != 2 {
            call(number::WRITE, [back.1, at, 1, 0, 0, 0]);
        }
        exit();
    }
    timed("pipe", 5_000, || {
        call(number::WRITE, [there.1, at, 1, 0, 0, 0]);
        call(number::READ, [back.0, at, 1, 0, 0, 0]);
    });
    let last = [2u8];
    call(number::WRITE, [there.1, last.as_ptr() as u64, 1, 0, 0, 0]);
    call(number::WAIT4, [u64::MAX, 0, 0, 0, 0, 0]);
}

/// Its ends for reading and writing.
fn pipe() -> Option<(u64, u64)> {
    let mut ends = [0i32; 2];
    let answer = call(number::PIPE, [ends.as_mut_ptr() as u64, 0, 0, 0, 0, 0]);
    // The kernel wrote it behind the compiler's back, but the call says that it may.
    let [read, write] = ends;
    (answer == 0).then_some((read as u64, write as u64))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    say("init panicked\n");
    exit()
}
