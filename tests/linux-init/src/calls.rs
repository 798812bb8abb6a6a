//! Linux's system calls.

use core::arch::asm;

/// Their numbers on x86-64.
pub mod number {
    #![allow(missing_docs)]
    pub const READ: u64 = 0;
    pub const WRITE: u64 = 1;
    pub const OPEN: u64 = 2;
    pub const MMAP: u64 = 9;
    pub const MUNMAP: u64 = 11;
    pub const PIPE: u64 = 22;
    pub const PAUSE: u64 = 34;
    pub const FORK: u64 = 57;
    pub const EXIT: u64 = 60;
    pub const WAIT4: u64 = 61;
    pub const GETPPID: u64 = 110;
    pub const MOUNT: u64 = 165;
    pub const REBOOT: u64 = 169;
}

/// Makes a system call; a negative answer is an error.
#[inline(always)]
pub fn call(number: u64, arguments: [u64; 6]) -> u64 {
    let answer;
    let [a, b, c, d, e, f] = arguments;
    // SAFETY: memory is reached only through addresses that the caller passes, all of which are its own.
    unsafe {
        asm!("syscall", inout("rax") number => answer, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            out("rcx") _, out("r11") _, options(nostack));
    }
    answer
}
