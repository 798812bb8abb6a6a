//! The crash record: registers, CPU, current objects, the last trace events, a call stack; then the end.

use crate::{
    arch,
    log::emergency,
    memory::Obj,
    object::thread::{Thread, reg},
    trace,
};
use core::panic::PanicInfo;

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    emergency(format_args!("\nmoira: kernel panic: {}", info.message()));
    if let Some(place) = info.location() {
        emergency(format_args!("  at {}:{}", place.file(), place.line()));
    }
    record(0)
}

/// An exception in the kernel: a bug. `frame`: vector, error, rip, cs, rflags, rsp, ss.
pub fn exception(vector: u64, frame: *const u64, saved: *const u64) -> ! {
    // SAFETY: `entry.s` hands a pointer to these words on the stack.
    let word = |i: usize| unsafe { frame.add(i).read() };
    let (error, address) = (word(1), arch::paging::fault_address());
    emergency(format_args!("\nmoira: kernel panic: exception {vector} error {error:#x} address {address:#x}"));
    emergency(format_args!("  rip {:#x} rsp {:#x} rflags {:#x}", word(2), word(5), word(4)));
    emergency(format_args!("  #0 {:#x}", word(2)));
    if saved.is_null() {
        record(0);
    }
    for (i, name) in ["rbp", "rbx", "r11", "r10", "r9", "r8", "rdi", "rsi", "rdx", "rcx", "rax"].iter().enumerate() {
        // SAFETY: eleven registers, as pushed.
        emergency(format_args!("  {name} {:#x}", unsafe { saved.add(i).read() }));
    }
    // The kernel is built without frame pointers: the words of the stack that look like its code are named instead.
    record(word(5))
}

/// The root task faulted.
pub fn root_fault(thread: Obj<Thread>) -> ! {
    emergency(format_args!("moira: the root task cannot go on"));
    for (i, name) in ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"].iter().enumerate() {
        emergency(format_args!("  {name} {:#x}", thread.regs[i].get()));
    }
    crate::log!("moira: system ended: failed: the root task faulted");
    arch::end(1)
}

/// The rest of the record. `stack`: where the stack of what failed begins; 0: here.
fn record(stack: u64) -> ! {
    let at = if stack == 0 { &raw const stack as u64 } else { stack };
    if crate::percpu::count() != 0 {
        let cpu = arch::smp::this_by_tables();
        let (thread, context) = (cpu.current.get(), cpu.chosen.get().map_or(0, |context| context.physical()));
        let number = thread.map_or(0, |thread| thread.physical());
        emergency(format_args!("  cpu {} thread {number:#x} context {context:#x}", cpu.index));
        if let Some(thread) = thread {
            let (state, level, rip) = (thread.state.get(), thread.level.get(), thread.regs[reg::RIP].get());
            emergency(format_args!("  thread state {state:?} level {level} rip {rip:#x}"));
        }
        let written = cpu.trace.written.get();
        for number in written.saturating_sub(16)..written {
            let trace::Event { time, what, a, b } = cpu.trace.events[number as usize % trace::EVENTS].get();
            emergency(format_args!("  trace {time} {} {a:#x} {b:#x}", what as u32));
        }
    }
    let end = arch::smp::stack_end(at);
    let mut number = 1;
    for offset in 0..256 {
        let address = at + offset * 8;
        if address & 7 != 0 || address < crate::memory::DIRECT_MAP || address >= end {
            break;
        }
        // SAFETY: an aligned word of the kernel stack.
        let word = unsafe { (address as *const u64).read_volatile() };
        if crate::boot::is_text(word) && number < 24 {
            emergency(format_args!("  #{number} {word:#x}"));
            number += 1;
        }
    }
    crate::log!("moira: system ended: failed: kernel panic");
    arch::end(1)
}
