//! Runs the models' hot paths a thousand times each, for an instruction counter such as `valgrind --tool=callgrind`.
use std::hint::black_box;
use vmm_devices::board::{Board, BoardConfig};
use vmm_devices::traits::{GuestMemory, NullConsole, OutOfRange};

struct NoMemory;
impl GuestMemory for NoMemory {
    fn read(&self, _: u64, _: &mut [u8]) -> Result<(), OutOfRange> {
        Err(OutOfRange)
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), OutOfRange> {
        Err(OutOfRange)
    }
    fn contains(&self, _: u64, _: u64) -> bool {
        false
    }
}

#[inline(never)]
fn pm_timer_read(b: &mut Board, now: u64) -> u32 {
    b.port_read(0x608, 4, now, &NoMemory)
}
#[inline(never)]
fn uart_lsr_read(b: &mut Board, now: u64) -> u32 {
    b.port_read(0x3FD, 1, now, &NoMemory)
}
#[inline(never)]
fn uart_write(b: &mut Board, now: u64) {
    let _ = b.port_write(0x3F8, 1, 0x41, now, &NoMemory);
}
#[inline(never)]
fn pit_read(b: &mut Board, now: u64) -> u32 {
    b.port_read(0x42, 1, now, &NoMemory)
}
#[inline(never)]
fn lapic_read(b: &mut Board, now: u64) -> u64 {
    b.mmio_read(0, 0xFEE0_0390, 4, now, &NoMemory)
}
#[inline(never)]
fn lapic_eoi(b: &mut Board, now: u64) {
    b.mmio_write(0, 0xFEE0_00B0, 4, 0, now, &NoMemory);
}
#[inline(never)]
fn ioapic_read(b: &mut Board, now: u64) -> u64 {
    b.mmio_read(0, 0xFEC0_0010, 4, now, &NoMemory)
}
#[inline(never)]
fn tsc_deadline(b: &mut Board, now: u64) {
    let _ = b.msr_write(0, 0x6E0, now + 1_000_000, now);
}
#[inline(never)]
fn deadline_after_exit(b: &mut Board) -> Option<u64> {
    b.next_deadline()
}
#[inline(never)]
fn pending(b: &mut Board) -> bool {
    b.pending(0).is_some()
}

fn main() {
    let mut b = Board::new(BoardConfig {
        apic_ids: &[0],
        apic_timer_hz: 1_000_000_000,
        tsc_hz: 2_000_000_000,
        unix_ns: 0,
        memory_below_4g: 128 << 20,
        memory_above_4g: 0,
        without_firmware: true,
        console: Box::new(NullConsole),
    });
    let (ports, mmio) = b.ranges();
    println!("{ports} port ranges, {mmio} memory ranges, board {} bytes", size_of::<Board>());
    b.mmio_write(0, 0xFEE0_00F0, 4, 0x1FF, 0, &NoMemory);
    b.mmio_write(0, 0xFEE0_0320, 4, 0x4_00EC, 0, &NoMemory);
    for i in 0..1000u64 {
        let now = i * 1000;
        black_box(pm_timer_read(&mut b, black_box(now)));
        black_box(deadline_after_exit(&mut b));
        black_box(pending(&mut b));
        black_box(uart_lsr_read(&mut b, black_box(now)));
        uart_write(&mut b, black_box(now));
        black_box(pit_read(&mut b, black_box(now)));
        black_box(lapic_read(&mut b, black_box(now)));
        lapic_eoi(&mut b, black_box(now));
        black_box(ioapic_read(&mut b, black_box(now)));
        tsc_deadline(&mut b, black_box(now));
    }
}
