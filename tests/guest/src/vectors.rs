//! Whether vector registers stay this machine's own while others run on the processor.

use crate::hardware::{cpuid, now, out8};
use core::arch::asm;

/// Sixteen registers of 32 bytes.
const WORDS: usize = 16 * 4;
/// Longer than this, in ticks, something else ran meanwhile.
const GAP: u64 = 2_000;
/// Looks at the clock before the registers are compared in any case.
const LOOKS: u64 = 100_000;

#[repr(align(32))]
struct Registers([u64; WORDS]);

/// Fills all registers with a pattern of `seed`, waits until something else ran, and compares; `gaps` times. Answers whether all
/// was as it should be.
pub fn run(seed: u64, gaps: u64) -> bool {
    if !enable() {
        say!("vectors: this processor has no AVX");
        return false;
    }
    let mut state = seed << 1 | 1;
    let mut seen = 0;
    while seen < gaps {
        let pattern = Registers(core::array::from_fn(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state
        }));
        let mut found = Registers([0; WORDS]);
        // SAFETY: both are as large as the registers, and the target uses no vector registers by itself.
        let gap = unsafe { hold(&pattern, &mut found) };
        if pattern.0 != found.0 {
            let wrong = pattern.0.iter().zip(&found.0).position(|(one, other)| one != other).unwrap_or(0);
            say!("vectors: register {} is not as it was after {seen} preemptions", wrong / 4);
            return false;
        }
        seen += u64::from(gap);
    }
    say!("vectors: {seen} preemptions");
    true
}

/// Ends the machine by the debug exit port.
pub fn fail() -> ! {
    out8(0xf4, 1);
    crate::hardware::halt()
}

/// Loads the registers, waits for a gap in time, stores them. Answers whether there was one.
unsafe fn hold(pattern: &Registers, found: &mut Registers) -> bool {
    // SAFETY: the caller's contract; AVX is on.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{p}]", "vmovdqu ymm1, [{p} + 32]", "vmovdqu ymm2, [{p} + 64]", "vmovdqu ymm3, [{p} + 96]",
            "vmovdqu ymm4, [{p} + 128]", "vmovdqu ymm5, [{p} + 160]", "vmovdqu ymm6, [{p} + 192]", "vmovdqu ymm7, [{p} + 224]",
            "vmovdqu ymm8, [{p} + 256]", "vmovdqu ymm9, [{p} + 288]", "vmovdqu ymm10, [{p} + 320]", "vmovdqu ymm11, [{p} + 352]",
            "vmovdqu ymm12, [{p} + 384]", "vmovdqu ymm13, [{p} + 416]", "vmovdqu ymm14, [{p} + 448]", "vmovdqu ymm15, [{p} + 480]",
            p = in(reg) pattern.0.as_ptr(), options(nostack, readonly)
        );
    }
    let mut last = now();
    let mut gap = false;
    for _ in 0..LOOKS {
        let time = now();
        gap = time - last > GAP;
        last = time;
        if gap {
            break;
        }
    }
    // SAFETY: as above.
    unsafe {
        asm!(
            "vmovdqu [{f}], ymm0", "vmovdqu [{f} + 32], ymm1", "vmovdqu [{f} + 64], ymm2", "vmovdqu [{f} + 96], ymm3",
            "vmovdqu [{f} + 128], ymm4", "vmovdqu [{f} + 160], ymm5", "vmovdqu [{f} + 192], ymm6", "vmovdqu [{f} + 224], ymm7",
            "vmovdqu [{f} + 256], ymm8", "vmovdqu [{f} + 288], ymm9", "vmovdqu [{f} + 320], ymm10", "vmovdqu [{f} + 352], ymm11",
            "vmovdqu [{f} + 384], ymm12", "vmovdqu [{f} + 416], ymm13", "vmovdqu [{f} + 448], ymm14", "vmovdqu [{f} + 480], ymm15",
            f = in(reg) found.0.as_mut_ptr(), options(nostack)
        );
    }
    gap
}

/// Turns SSE and AVX on (SDM 13.5.2, 14.3).
fn enable() -> bool {
    const XSAVE_AND_AVX: u32 = 1 << 26 | 1 << 28;
    if cpuid(1)[2] & XSAVE_AND_AVX != XSAVE_AND_AVX {
        return false;
    }
    // SAFETY: this program owns the processor.
    unsafe {
        asm!(
            "mov {r}, cr0", "and {r}, 0xfffffffffffffff3", "or {r}, 2", "mov cr0, {r}",
            "mov {r}, cr4", "or {r}, 0x40600", "mov cr4, {r}",
            "xor ecx, ecx", "xor edx, edx", "mov eax, 7", "xsetbv",
            // No device is set up, so none interrupts; but Bochs' VT-x does not see the host's interrupts where a guest keeps its own off.
            "sti",
            r = out(reg) _, out("eax") _, out("ecx") _, out("edx") _, options(nostack)
        );
    }
    true
}
