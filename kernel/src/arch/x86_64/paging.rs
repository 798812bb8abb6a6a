//! The kernel's own half of every task's space, and loading spaces.
//!
//! All memory is mapped at `DIRECT_MAP`, writable and not executable; the image at `KERNEL_BASE`: text executable, constants
//! read-only, data writable; device registers of the kernel uncached in a small window above the image.

use super::mitigations;
use crate::memory::{self, DIRECT_MAP, KERNEL_BASE, Page};
use core::sync::atomic::{AtomicU64, Ordering::*};

const PRESENT: u64 = 1;
const WRITE: u64 = 2;
const CACHE_DISABLE: u64 = 0x18;
const LARGE: u64 = 0x80;
const GLOBAL: u64 = 0x100;
const NO_EXECUTE: u64 = 1 << 63;

/// Virtual address of the window for device registers: the last 2 MiB of the first GiB above KERNEL_BASE.
const DEVICES: u64 = KERNEL_BASE + 0x3fe0_0000;

static ROOT: AtomicU64 = AtomicU64::new(0);
/// The same for tasks: where they are kept apart from the kernel, only what entering it takes.
static TASK_ROOT: AtomicU64 = AtomicU64::new(0);
static DEVICE_TABLE: AtomicU64 = AtomicU64::new(0);
static DEVICE_COUNT: AtomicU64 = AtomicU64::new(0);

/// Where the early allocator gives zeroed pages from.
pub type Allocate<'a> = &'a mut dyn FnMut() -> u64;

fn entry(table: u64, index: u64, allocate: Allocate) -> u64 {
    let word = Page(table).read(index * 8);
    if word != 0 {
        return word & 0x000f_ffff_ffff_f000;
    }
    let page = allocate();
    Page(table).write(index * 8, page | PRESENT | WRITE);
    page
}

fn directory(root: u64, address: u64, allocate: Allocate) -> u64 {
    let pdpt = entry(root, address >> 39 & 511, allocate);
    entry(pdpt, address >> 30 & 511, allocate)
}

fn table(root: u64, address: u64, allocate: Allocate) -> u64 {
    entry(directory(root, address, allocate), address >> 21 & 511, allocate)
}

fn map_4k(root: u64, address: u64, physical: u64, flags: u64, allocate: Allocate) {
    let table = table(root, address, allocate);
    Page(table).write((address >> 12 & 511) * 8, physical | flags | PRESENT | GLOBAL);
}

/// Builds the kernel's tables: `memory` yields the ranges of RAM (and firmware tables); `sections` the image's parts as (start, end, writable,
/// executable), virtual.
pub fn init(memory: impl Iterator<Item = (u64, u64)>, sections: &[(u64, u64, bool, bool)], allocate: Allocate) {
    let root = allocate();
    for (start, end) in memory {
        for at in (start & !0x1f_ffff..end).step_by(0x20_0000) {
            let directory = directory(root, DIRECT_MAP | at, allocate);
            Page(directory).write((at >> 21 & 511) * 8, at | PRESENT | WRITE | LARGE | GLOBAL | NO_EXECUTE);
        }
    }
    for &(start, end, writable, executable) in sections {
        let flags = if writable { WRITE } else { 0 } | if executable { 0 } else { NO_EXECUTE };
        for at in (start..end).step_by(4096) {
            map_4k(root, at, at - KERNEL_BASE, flags, allocate);
        }
    }
    // All entries of the top level exist from here on, so that copies of it never go stale.
    DEVICE_TABLE.store(table(root, DEVICES, allocate), Relaxed);
    ROOT.store(root, Release);
    TASK_ROOT.store(if apart() { allocate() } else { root }, Release);
    load_kernel();
}

/// Whether tasks run on tables without the kernel.
fn apart() -> bool {
    mitigations::has(mitigations::measure::PTI)
}

/// Maps a page of data for the kernel.
pub fn map(address: u64, physical: u64, allocate: Allocate) {
    map_4k(root(), address, physical, WRITE | NO_EXECUTE, allocate);
}

/// Leaves a page of the kernel's to the tables of tasks: what entering the kernel touches.
pub fn show(address: u64, physical: u64, executable: bool, allocate: Allocate) {
    if apart() {
        map_4k(task_root(), address, physical, if executable { 0 } else { WRITE | NO_EXECUTE }, allocate);
    }
}

/// Maps a page of device registers for the kernel; answers its address. Bounded: at most 512 pages are ever mapped.
pub fn map_device(physical: u64) -> u64 {
    let index = DEVICE_COUNT.fetch_add(1, Relaxed).min(511);
    let flags = PRESENT | WRITE | CACHE_DISABLE | GLOBAL | NO_EXECUTE;
    Page(DEVICE_TABLE.load(Relaxed)).write(index * 8, physical & !4095 | flags);
    let address = DEVICES + index * 4096;
    invalidate(address);
    address + (physical & 4095)
}

/// Identity-maps the first 2 MiB in the kernel's own tables while processors start, or takes that away again.
pub fn identity(on: bool, table: u64) {
    let root = Page(root());
    if on {
        Page(table).write(0, table + 4096 | PRESENT | WRITE);
        Page(table + 4096).write(0, PRESENT | WRITE | LARGE);
        root.write(0, table | PRESENT | WRITE);
    } else {
        root.write(0, 0);
        // This processor may have a task's tables loaded, and keeps them; a load drops what it remembers of the others.
        load(loaded());
    }
}

/// What is loaded: CR3.
pub fn loaded() -> u64 {
    let loaded: u64;
    // SAFETY: reading CR3.
    unsafe { core::arch::asm!("mov {}, cr3", out(reg) loaded, options(nomem, nostack, preserves_flags)) };
    loaded
}

/// Physical address of the kernel's top-level table.
pub fn root() -> u64 {
    ROOT.load(Acquire)
}

/// Physical address of a top-level table with the kernel's half as tasks have it, and nothing else.
pub fn task_root() -> u64 {
    TASK_ROOT.load(Acquire)
}

/// Gives a task's top-level table the kernel's half.
pub fn copy_kernel_half(table: u64) {
    memory::copy(task_root() + 2048, table + 2048, 2048);
}

/// Loads a task's tables.
#[inline(always)]
pub fn load(root: u64) {
    // SAFETY: every top-level table holds the kernel's half, as far as it is not kept apart.
    unsafe { core::arch::asm!("mov cr3, {}", in(reg) root, options(nostack, preserves_flags)) }
}

/// Loads the kernel's own tables.
pub fn load_kernel() {
    load(root());
}

/// Drops the translation of one page on this processor.
#[inline(always)]
pub fn invalidate(address: u64) {
    // SAFETY: INVLPG only drops translations.
    unsafe { core::arch::asm!("invlpg [{}]", in(reg) address, options(nostack, preserves_flags)) }
}

/// Address of a page fault.
#[inline(always)]
pub fn fault_address() -> u64 {
    let address: u64;
    // SAFETY: reading CR2.
    unsafe { core::arch::asm!("mov {}, cr2", out(reg) address, options(nomem, nostack, preserves_flags)) };
    address
}
