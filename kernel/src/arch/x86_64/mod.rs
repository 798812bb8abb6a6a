//! x86-64: entry, paging, interrupt controllers, processor start, virtualization.

pub mod apic;
pub mod ioapic;
pub mod mitigations;
pub mod paging;
pub mod serial;
pub mod smp;
pub mod tables;
pub mod trap;
pub mod tsc;
pub mod vm;

mod svm;
pub mod virt;
mod vmx;

use crate::{
    boot::{EXIT, ExitDevice},
    percpu::Cpu,
};
use core::arch::{asm, global_asm};

global_asm!(include_str!("boot.s"), options(att_syntax));
global_asm!(include_str!("entry.s"));

/// TSC.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: RDTSC reads a counter.
    unsafe { core::arch::x86_64::_rdtsc() }
}

/// This CPU.
#[inline(always)]
pub fn cpu() -> &'static Cpu {
    let cpu: *const Cpu;
    // SAFETY: in the kernel GS points to the CPU's structure, whose first word is its address; it lives for ever.
    unsafe {
        asm!("mov {}, gs:[0]", out(reg) cpu, options(nostack, pure, readonly, preserves_flags));
        &*cpu
    }
}

/// Waits for an interrupt and takes it.
pub fn halt() {
    // SAFETY: an interrupt in the kernel goes to `kernel_trap`; STI takes effect after HLT began.
    unsafe { asm!("sti", "hlt", "cli", options(nomem, nostack)) }
}

/// Takes interrupts that are pending, and comes back.
#[inline(always)]
pub fn take_interrupts() {
    // SAFETY: as for `halt`.
    unsafe { asm!("sti", "nop", "cli", options(nomem, nostack)) }
}

/// Stops this CPU for good.
pub fn stop() -> ! {
    loop {
        // SAFETY: nothing runs after this.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) }
    }
}

/// Reads a port.
pub fn port_read(port: u16, size: u8) -> u32 {
    // SAFETY: the caller holds a capability to the port, or the port is the kernel's.
    unsafe {
        match size {
            1 => x86::io::inb(port) as u32,
            2 => x86::io::inw(port) as u32,
            _ => x86::io::inl(port),
        }
    }
}

/// Writes a port.
pub fn port_write(port: u16, size: u8, value: u32) {
    // SAFETY: as for `port_read`.
    unsafe {
        match size {
            1 => x86::io::outb(port, value as u8),
            2 => x86::io::outw(port, value as u16),
            _ => x86::io::outl(port, value),
        }
    }
}

/// Ends the run: 0 well, 1 failed, 2 reboot, 3 power off. Under an emulator its exit device is told first.
pub fn end(how: u64) -> ! {
    serial::flush();
    if how < 2 || how == 3 {
        match EXIT.get() {
            Some(ExitDevice::Debug) => port_write(0xf4, 4, if how == 1 { 2 } else { 1 }),
            Some(ExitDevice::Bochs) => b"Shutdown".iter().for_each(|byte| port_write(0x8900, 1, *byte as u32)),
            None => {}
        }
    }
    if how == 2 {
        port_write(0xcf9, 1, 2);
        port_write(0xcf9, 1, 6);
    }
    stop()
}
