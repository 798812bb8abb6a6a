//! What exits cost, in TSC ticks: executed instructions where the emulator counts them.

use crate::hardware::{cpuid, hypercall, in32, now, read_msr, write_msr};
use core::arch::asm;

/// Measurements of each figure.
const SAMPLES: usize = 1000;
/// The ACPI timer, which changes all the time.
const PM_TIMER: u16 = 0x608;
/// The local APIC's timer: initial and current count, divider, vector.
const APIC: u64 = 0xfee0_0000;

/// SYSCALL on, and its registers as Linux has them: on VT-x the kernel has to swap what differs from its own.
fn set_up_syscall() {
    const EFER: u32 = 0xc000_0080;
    for (number, value) in [
        (EFER, read_msr(EFER) | 1),
        (0xc000_0081, 0x0023_0010 << 32),
        (0xc000_0082, 0xffff_ffff_8180_0040),
        (0xc000_0084, 0x0025_7fd5),
    ] {
        write_msr(number, value);
    }
}

/// Measures everything.
pub fn run() {
    set_up_syscall();
    let amd = cpuid(0)[2] == u32::from_le_bytes(*b"cAMD");
    let mut samples = [0u64; SAMPLES];
    let empty = minimum(&mut samples, || {});
    figure("vm.exit.port_read", &mut samples, empty, || {
        in32(PM_TIMER);
    });
    figure("vm.exit.cpuid", &mut samples, empty, || {
        cpuid(0x4000_0000);
    });
    figure("vm.exit.vmcall", &mut samples, empty, || {
        hypercall(amd, 0);
    });
    start_timer();
    let mut turn = 0;
    figure("vm.exit.mmio_read", &mut samples, empty, || {
        turn += 1;
        read_count(turn);
    });
    figure("vm.exit.mmio_write", &mut samples, empty, || {
        // SAFETY: the task priority register of this processor's APIC.
        unsafe { ((APIC + 0x80) as *mut u32).write_volatile(0) };
    });
    interruptions(&mut samples);
    say!("bench: done");
}

/// Makes exits of one kind without an end.
pub fn forever(word: &str) -> ! {
    let amd = cpuid(0)[2] == u32::from_le_bytes(*b"cAMD");
    start_timer();
    loop {
        match word {
            "loop-port" => {
                in32(PM_TIMER);
            }
            "loop-cpuid" => {
                cpuid(0x4000_0000);
            }
            "loop-vmcall" => {
                hypercall(amd, 0);
            }
            _ => read_count(0),
        }
    }
}

/// Lets the APIC's timer count, masked.
fn start_timer() {
    for (register, value) in [(0xf0, 0x1ff_u32), (0x320, 0x1_0020), (0x3e0, 0xb), (0x380, u32::MAX)] {
        // SAFETY: registers of this processor's APIC.
        unsafe { ((APIC + register) as *mut u32).write_volatile(value) };
    }
}

/// Lets the APIC's timer tick as fast as it can, with interrupts off.
pub fn tick_fast() {
    for (register, value) in [(0xf0, 0x1ff_u32), (0x320, 0x2_0020), (0x3e0, 0xb), (0x380, 100)] {
        // SAFETY: registers of this processor's APIC; interrupts are off.
        unsafe { ((APIC + register) as *mut u32).write_volatile(value) };
    }
}

/// Reads the current count in one of four forms of instruction.
#[inline(always)]
fn read_count(turn: u64) {
    let register = APIC + 0x390;
    // SAFETY: reads a register of this processor's APIC.
    unsafe {
        match turn & 3 {
            0 => asm!("mov {v:e}, [{r}]", r = in(reg) register, v = out(reg) _, options(nostack)),
            1 => {
                asm!("movzx {v:e}, word ptr [{r} + {z}]", r = in(reg) register, z = in(reg) 0u64, v = out(reg) _, options(nostack))
            }
            2 => asm!("mov r9d, [{r} + 2*{z}]", r = in(reg) register, z = in(reg) 0u64, out("r9") _, options(nostack)),
            _ => asm!("and {v:e}, [{r}]", r = in(reg) register, v = inout(reg) u32::MAX => _, options(nostack)),
        }
    }
}

/// Takes all samples and returns the least.
fn minimum(samples: &mut [u64; SAMPLES], mut once: impl FnMut()) -> u64 {
    for _ in 0..8 {
        once();
    }
    for sample in samples.iter_mut() {
        let start = now();
        once();
        *sample = now() - start;
    }
    samples.sort_unstable();
    samples[0]
}

fn figure(name: &str, samples: &mut [u64; SAMPLES], empty: u64, once: impl FnMut()) {
    minimum(samples, once);
    print(name, samples, empty);
}

/// Prints a figure of sorted samples.
pub fn print(name: &str, samples: &[u64], empty: u64) {
    let at = |index: usize| samples.get(index).copied().unwrap_or(0).saturating_sub(empty);
    let count = samples.len();
    let (minimum, median, maximum) = (at(0), at(count / 2), at(count.saturating_sub(1)));
    say!(
        "bench: {{\"name\":\"{name}\",\"unit\":\"instructions\",\"minimum\":{minimum},\"median\":{median},\"maximum\":{maximum},\"samples\":{count}}}"
    );
}

/// The figure of the system `bench-vm-interrupt`: what the host's own interrupts take.
pub fn host_interrupts() {
    /// No round of the loop takes so long by itself.
    const LEAST: u64 = 60;
    /// Longer ones are the windows of others.
    const MOST: u64 = 5_000;
    // Bochs' VT-x overlooks the host's interrupts while a guest's own are off.
    // SAFETY: none of its own is on its way.
    unsafe { asm!("sti", options(nomem, nostack)) };
    let mut samples = [0u64; SAMPLES];
    let mut count = 0;
    let begin = now();
    let (mut last, mut usual) = (begin, u64::MAX);
    // Where the first one does not come, none will.
    while count < SAMPLES && last - begin < if count == 0 { 300_000_000 } else { 3_000_000_000 } {
        let time = now();
        let gap = time - last;
        if (LEAST..MOST).contains(&gap) {
            if let Some(sample) = samples.get_mut(count) {
                *sample = gap;
            }
            count += 1;
        } else {
            usual = usual.min(gap);
        }
        last = time;
    }
    let samples = samples.get_mut(..count).unwrap_or_default();
    samples.sort_unstable();
    if count == 0 {
        say!("bench: no interrupt came");
        return;
    }
    print("vm.exit.host_interrupt", samples, usual);
    say!("bench: done");
}

/// Looks at the clock all the time: a gap is something of the host's that came in between.
fn interruptions(samples: &mut [u64; SAMPLES]) {
    /// No round of the loop takes so long by itself.
    const GAP: u64 = 60;
    let mut count = 0;
    let end = now() + 400_000_000;
    let mut last = now();
    while count < SAMPLES && last < end {
        let time = now();
        if time - last > GAP {
            if let Some(sample) = samples.get_mut(count) {
                *sample = time - last;
            }
            count += 1;
            last = now();
            continue;
        }
        last = time;
    }
    let samples = samples.get_mut(..count).unwrap_or_default();
    samples.sort_unstable();
    print("vm.interruption", samples, 10);
}
