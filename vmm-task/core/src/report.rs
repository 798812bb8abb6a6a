//! What a dead machine leaves behind: why, its registers, its last exits. No byte of its memory.

use crate::history::History;
use crate::state::{StatePage, field};
use crate::vm::{Ending, Vm};
use core::fmt;
use moira_abi::vcpu::{Exit, seg};

/// Whether an ending is one that nobody wished for.
#[must_use]
pub const fn is_failure(ending: &Ending) -> bool {
    !matches!(ending, Ending::PowerOff | Ending::DebugExit(_) | Ending::Reset | Ending::Killed)
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::PowerOff => f.write_str("it switched itself off"),
            Ending::DebugExit(value) => write!(f, "it ended its test with {value}"),
            Ending::Reset => f.write_str("it reset itself"),
            Ending::TripleFault => f.write_str("a triple fault"),
            Ending::Killed => f.write_str("it was killed"),
            Ending::Unsupported(what) => write!(f, "it needs what is not emulated: {what}"),
            Ending::InvalidState(check) => write!(f, "its state cannot be entered (check {check:x})"),
            Ending::Kernel(error) => write!(f, "the kernel refused to run it: {error:?}"),
        }
    }
}

/// Gives the report to `line`, a line at a time.
pub fn write(vm: &Vm<'_>, ending: &Ending, mut line: impl FnMut(fmt::Arguments<'_>)) {
    line(format_args!("the machine ended: {ending}"));
    if is_failure(ending) {
        write_processor(vm.page(), vm.history(), line);
    }
}

/// A processor's registers and last exits.
pub fn write_processor(page: &StatePage<'_>, history: &History, mut line: impl FnMut(fmt::Arguments<'_>)) {
    registers(page, &mut line);
    line(format_args!("last of {} exits:", history.total()));
    for record in history.last() {
        match Exit::from_code(record.reason) {
            Some(exit) => line(format_args!("  {exit:?} at {:x}, detail {:x}", record.rip, record.qualification)),
            None => line(format_args!("  {} at {:x}", record.reason, record.rip)),
        }
    }
}

fn registers(page: &StatePage<'_>, line: &mut impl FnMut(fmt::Arguments<'_>)) {
    const NAMES: [&str; 16] =
        ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
    let gprs = page.gprs();
    for (names, values) in NAMES.chunks_exact(4).zip(gprs.chunks_exact(4)) {
        if let ([a, b, c, d], [p, q, r, s]) = (names, values) {
            line(format_args!("{a:>4} {p:016x} {b:>4} {q:016x} {c:>4} {r:016x} {d:>4} {s:016x}"));
        }
    }
    let get = |word| page.get(word);
    line(format_args!(
        " rip {:016x} rflags {:08x} cr0 {:x} cr2 {:x} cr3 {:x} cr4 {:x} efer {:x}",
        get(field::RIP),
        get(field::RFLAGS),
        get(field::CR0),
        get(field::CR2),
        get(field::CR3),
        get(field::CR4),
        get(field::EFER)
    ));
    for (name, index) in [("cs", seg::CS), ("ss", seg::SS), ("ds", seg::DS), ("tr", seg::TR)] {
        let s = page.segment(index);
        line(format_args!("  {name} {:04x} base {:x} limit {:x} rights {:x}", s.selector, s.base, s.limit, s.rights));
    }
    line(format_args!(
        "gdtr {:x}+{:x} idtr {:x}+{:x} detail {:x} address {:x}",
        get(field::GDTR),
        get(field::GDTR.plus(1)),
        get(field::IDTR),
        get(field::IDTR.plus(1)),
        get(field::QUALIFICATION),
        get(field::ADDRESS)
    ));
}
