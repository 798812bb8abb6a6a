//! All devices of a machine, as guest code reaches them.

use crate::Bytes;
use crate::memory::Memory;
use vmm_devices::board::{Action, Board, BoardConfig};
use vmm_devices::platform as p;
use vmm_devices::traits::{ConsoleBackend, EntropyBackend, GuestMemory};
use vmm_devices::virtio::{VirtioPci, console::Console, entropy::Entropy};

/// Memory of the machine: small, so that addresses out of thin air often lie in it.
const SIZE: usize = 1 << 16;
const CPUS: usize = 2;

/// Both ends of every back end: takes everything, gives some.
struct Other(u8);

impl ConsoleBackend for Other {
    fn write(&mut self, bytes: &[u8]) -> usize {
        self.0 = self.0.wrapping_add(1);
        bytes.len().min(usize::from(self.0))
    }

    fn read(&mut self, out: &mut [u8]) -> usize {
        self.0 = self.0.wrapping_add(1);
        let count = out.len().min(usize::from(self.0 & 3));
        out.iter_mut().take(count).for_each(|byte| *byte = 7);
        count
    }
}

impl EntropyBackend for Other {
    fn fill(&mut self, out: &mut [u8]) -> usize {
        self.0 = self.0.wrapping_add(1);
        out.len().min(usize::from(self.0))
    }
}

fn board(without_firmware: bool) -> Board {
    let mut board = Board::new(BoardConfig {
        apic_ids: &[0, 1],
        apic_timer_hz: 1_000_000_000,
        tsc_hz: 2_400_000_000,
        unix_ns: 1_700_000_000_000_000_000,
        memory_below_4g: SIZE as u64,
        memory_above_4g: 0,
        without_firmware,
        console: Box::new(Other(0)),
    });
    board.plug(1, Box::new(VirtioPci::new(Box::new(Console::new(Box::new(Other(1)))))));
    board.plug(2, Box::new(VirtioPci::new(Box::new(Entropy::new(Box::new(Other(2)))))));
    board
}

/// Does to the devices what the bytes say, until they are used up.
pub fn run(data: &[u8]) {
    const PORTS: [u16; 32] = [
        0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x42, 0x43, 0x61, 0x60, 0x64, 0x70, 0x71, 0x80, 0x92, 0x3f8, 0x3f9,
        0x3fa, 0x3fb, 0x3fc, 0x3ff, 0xcf8, 0xcfc, 0xcfd, 0xcfe, 0x600, 0x602, 0x608, 0x510, 0x511, 0x514,
    ];
    const PAGES: [u64; 9] = [
        p::LAPIC_BASE,
        p::HPET_BASE,
        p::IOAPIC_BASE,
        p::ECAM_BASE + 0x8000,
        p::ECAM_BASE + 0x1_0000,
        p::PCI_MMIO_BASE,
        p::PCI_MMIO_BASE + 0x1000,
        p::PCI_MMIO_BASE + 0x4000,
        p::PCI_MMIO_BASE + 0x5000,
    ];
    let (memory, mut bytes, mut now) = (Memory::new(SIZE), Bytes::new(data), 0);
    let mut board = board(bytes.byte() & 1 == 0);
    while !bytes.is_empty() {
        let operation = bytes.byte();
        let (cpu, size) = (usize::from(operation >> 4) % CPUS, 1 << (operation >> 6));
        let port = bytes.pick(&PORTS).unwrap_or(0);
        now += bytes.number(2) << (operation & 15);
        match operation & 15 {
            0 | 1 => drop(board.port_read(port, size.min(4), now, &memory)),
            2..=4 => {
                let value = bytes.number(4) as u32;
                if board.port_write(port, size.min(4), value, now, &memory) == Action::Reset {
                    board.reset();
                }
            }
            5 | 6 => {
                let gpa = bytes.pick(&PAGES).unwrap_or(0) + bytes.number(2) % 0x1000;
                board.mmio_read(cpu, gpa, size, now, &memory);
            }
            7..=10 => {
                let gpa = bytes.pick(&PAGES).unwrap_or(0) + bytes.number(2) % 0x1000;
                let value = bytes.number(1 + u32::from(operation >> 5));
                board.mmio_write(cpu, gpa, size, value, now, &memory);
            }
            11 => {
                let (register, value) = (0x800 + u32::from(bytes.byte()), bytes.number(8));
                let _ = board.msr_read(cpu, register, now);
                let _ = board.msr_write(cpu, register, value, now);
            }
            // Descriptors and rings out of thin air.
            12 | 13 => {
                let (at, value) = (bytes.number(2) & 0xfff8, bytes.number(8).to_be_bytes());
                let _ = GuestMemory::write(&memory, at, &value);
            }
            _ => settle(&mut board, now, &memory),
        }
    }
    settle(&mut board, now, &memory);
}

/// An access to each port and page, and interrupts of the timers.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let ports = (0..32).map(|port| vec![0, 2, port, 0, 1, 0, 0, 0, 0x36, 0, port, 0xff, 0xff, 15, 0, 0, 1]);
    let pages =
        (0..9).map(|page| vec![1, 0x87, 0, 0, 1, page, 0, 0x10, 0, 0, 0, 1, 0x45, 0, 0, 0, page, 0, 0x10, 15, 0, 0, 1]);
    ports.chain(pages).collect()
}

/// Lets the devices work, and takes all that waits.
fn settle(board: &mut Board, now: u64, memory: &Memory) {
    board.tick(now, memory);
    board.poll(now, memory);
    for cpu in 0..CPUS {
        // Each interrupt that is taken and not ended blocks those below it.
        for _ in 0..256 {
            if !board.maskable_pending(cpu) {
                break;
            }
            assert!(board.accept(cpu).is_some(), "what waits can be taken");
        }
        while board.take_event(cpu).is_some() {}
    }
}
