//! Moira's kernel: a capability microkernel that boots, checks and switches.
//!
//! Where things are: `object/` one file per kernel object; `syscall.rs` which method goes where; `cap.rs` capability slots; `ipc.rs` calls
//! and replies; `wait.rs` notifications; `sched.rs` who runs; `smp.rs` what crosses CPUs; `boot.rs` from the loader to the root task; `arch/` the
//! processor. Pure algorithms are in the crate `moira-kernel-core`. The book is in `docs/`.
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
