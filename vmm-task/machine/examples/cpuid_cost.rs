//! What one CPUID answer costs: run under an instruction counter with two counts and divide the difference.
//!
//! ```text
//! cargo build --release -p vmm-machine --example cpuid_cost
//! for n in 1000 2000; do
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/examples/cpuid_cost 1 $n
//! done
//! ```

use std::hint::black_box;
use vmm_machine::cpuid::{CpuidConfig, CpuidTable, Leaf, Live};

fn main() {
    let mut arguments = std::env::args().skip(1).map(|a| a.parse::<u32>().unwrap_or(0));
    let (leaf, count) = (arguments.next().unwrap_or(0), arguments.next().unwrap_or(1000));
    let config = CpuidConfig {
        cpus: 4,
        xcr0: 7,
        tsc_khz: 2_000_000,
        apic_timer_hz: 1_000_000_000,
        physical_bits: 40,
        speculation_control: false,
        arch_capabilities: None,
        pcid: false,
    };
    let table = CpuidTable::new(&config, 0, &|_, _| Leaf::new(u32::MAX, 0x6874_7541, 0x444D_4163, 0x6974_6E65));
    for _ in 0..count {
        black_box(table.answer(
            black_box(leaf),
            black_box(0),
            Live { osxsave: black_box(true), xcr0: black_box(7), apic: true },
        ));
    }
}
