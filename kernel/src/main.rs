//! Moira's kernel: a capability microkernel that boots, checks and switches.
//!
//! | module | what |
//! | --- | --- |
//! | `boot`, `boot/` | from the loader to the root task |
//! | `syscall` | the one system call: which method of which object |
//! | `object/` | one file for each kernel object |
//! | `cap` | capability slots, derivation |
//! | `memory` | physical memory, pointers to objects |
//! | `ipc` | calls, replies, receives, faults |
//! | `wait` | notifications as threads use them |
//! | `sched` | plans, Walk, Choose, the timer, the ledger |
//! | `switch` | from one thread and space to another |
//! | `percpu` | what each CPU has to itself |
//! | `smp` | what crosses CPUs: structural lock, mailboxes, grace periods, flushes |
//! | `trace`, `log`, `panic` | the ring of events, lines on COM1, the crash record |
//! | `checks` | what a kernel with the feature `checks` looks at while it runs |
//! | `arch/` | the processor: entry, paging, interrupt controllers, VT-x, SVM |
//!
//! Algorithms without hardware are in the crate `moira-kernel-core`. The book is in `docs/`.
#![no_std]
#![no_main]

mod arch;
mod boot;
mod cap;
mod checks;
mod ipc;
mod log;
mod memory;
mod object;
mod panic;
mod percpu;
mod sched;
mod smp;
mod switch;
mod syscall;
mod trace;
mod wait;
