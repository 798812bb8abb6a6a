//! One virtio device behind its driver: queues are set up as a driver does it, and what is in them is anything.

use crate::Bytes;
use crate::memory::Memory;
use vmm_devices::board::{Board, BoardConfig};
use vmm_devices::platform as p;
use vmm_devices::traits::{
    BalloonBackend, BlockBackend, BlockOp, BlockStatus, ConsoleBackend, EntropyBackend, GuestMemory, NetBackend,
    NullConsole, Segment, Submit, VSOCK_HEADER, VsockBackend,
};
use vmm_devices::virtio::{
    VirtioDevice, VirtioPci, balloon::Balloon, block::Block, console::Console, entropy::Entropy, net::Net, vsock::Vsock,
};

const SIZE: usize = 1 << 16;
const DISK: u64 = 32 << 10;
const DEVICES: u8 = 6;
/// Most queues of a device, and where the parts of a queue lie.
const QUEUES: u8 = 4;
const QUEUE_AREA: u64 = 0x1000;
const AVAILABLE: u64 = 0x800;
const USED: u64 = 0xc00;
/// Entries of each queue's ring.
const ENTRIES: u16 = 16;
/// Registers of the common structure (virtio 1.2, 4.1.4.3), and where notifications and the device's own registers are.
const DRIVER_SELECT: u64 = 8;
const DRIVER_FEATURES: u64 = 0xc;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const OWN: u64 = 0x1000;
const NOTIFY: u64 = 0x2000;
const MSIX_TABLE: u64 = 0x3000;

/// The other end of any device. It answers sooner or later, now and then not at all, and insists on what a device promises its
/// back end.
#[derive(Default)]
struct Other {
    turn: u8,
    pending: Vec<u16>,
}

impl Other {
    fn turn(&mut self) -> u8 {
        self.turn = self.turn.wrapping_add(1);
        self.turn
    }

    fn fill(&mut self, segments: &[Segment], most: u32, memory: &dyn GuestMemory) -> u32 {
        let mut left = most;
        for segment in segments {
            assert!(segment.writable, "only what may be written is to be filled");
            let count = segment.len.min(left);
            assert!(memory.zero(segment.gpa, count.into()).is_ok(), "segments are memory");
            left -= count;
        }
        most - left
    }
}

fn total(segments: &[Segment], memory: &dyn GuestMemory) -> u64 {
    for segment in segments {
        assert!(memory.contains(segment.gpa, segment.len.into()), "segments are memory: {segment:?}");
    }
    segments.iter().map(|segment| u64::from(segment.len)).sum()
}

impl ConsoleBackend for Other {
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len().min(usize::from(self.turn()) & 31)
    }
    fn read(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(usize::from(self.turn()) & 3);
        out.iter_mut().take(count).for_each(|byte| *byte = 7);
        count
    }
}

impl EntropyBackend for Other {
    fn fill(&mut self, out: &mut [u8]) -> usize {
        out.len().min(usize::from(self.turn()))
    }
}

impl BlockBackend for Other {
    fn capacity(&self) -> u64 {
        DISK
    }
    fn can_discard(&self) -> bool {
        true
    }
    fn submit(&mut self, tag: u16, op: BlockOp<'_>, memory: &dyn GuestMemory) -> Submit {
        assert!(!self.pending.contains(&tag), "a tag is free before it is used again");
        let range = match op {
            BlockOp::Read { offset, segments } => {
                assert!(segments.iter().all(|segment| segment.writable), "what is read goes to what may be written");
                Some((offset, total(segments, memory)))
            }
            BlockOp::Write { offset, segments } => Some((offset, total(segments, memory))),
            BlockOp::Discard { offset, len } | BlockOp::WriteZeroes { offset, len } => Some((offset, len)),
            BlockOp::Flush => None,
        };
        if let Some((offset, len)) = range {
            let inside = offset.checked_add(len).is_some_and(|end| end <= DISK);
            assert!(inside && offset % 512 == 0 && len % 512 == 0, "{offset} {len}");
        }
        match self.turn() % 4 {
            0 => Submit::Busy,
            1 => Submit::Done(BlockStatus::Ok),
            2 => Submit::Done(BlockStatus::IoError),
            _ => {
                self.pending.push(tag);
                Submit::Pending
            }
        }
    }
    fn completion(&mut self, _: &dyn GuestMemory) -> Option<(u16, BlockStatus)> {
        if self.turn() & 1 == 0 { None } else { self.pending.pop().map(|tag| (tag, BlockStatus::Ok)) }
    }
    fn cancel_all(&mut self) {
        self.pending.clear();
    }
}

impl NetBackend for Other {
    fn send(&mut self, frame: &[Segment], memory: &dyn GuestMemory) -> bool {
        total(frame, memory);
        self.turn() & 3 != 0
    }
    fn receive(&mut self, segments: &[Segment], memory: &dyn GuestMemory) -> Option<u32> {
        let most = total(segments, memory).min(u64::from(self.turn()) * 8) as u32;
        (self.turn() & 3 == 0).then(|| self.fill(segments, most, memory))
    }
}

impl BalloonBackend for Other {
    fn target(&self) -> u32 {
        u32::from(self.turn)
    }
    fn give(&mut self, gpa: u64) {
        assert!(gpa.is_multiple_of(4096) && gpa < SIZE as u64, "{gpa:x}");
        self.turn();
    }
    fn take_back(&mut self, gpa: u64) {
        assert!(gpa.is_multiple_of(4096) && gpa < SIZE as u64, "{gpa:x}");
    }
    fn reset(&mut self) {}
}

impl VsockBackend for Other {
    fn send(&mut self, header: &[u8; VSOCK_HEADER], payload: &[Segment], memory: &dyn GuestMemory) -> bool {
        let said = u32::from_le_bytes([header[24], header[25], header[26], header[27]]);
        assert_eq!(u64::from(said), total(payload, memory), "header and payload agree");
        self.turn() & 3 != 0
    }
    fn receive(
        &mut self,
        header: &mut [u8; VSOCK_HEADER],
        segments: &[Segment],
        memory: &dyn GuestMemory,
    ) -> Option<u32> {
        header.fill(self.turn());
        let most = total(segments, memory).min(u64::from(self.turn())) as u32;
        (self.turn() & 3 == 0).then(|| self.fill(segments, most, memory))
    }
    fn reset(&mut self) {}
}

fn device(number: u8) -> Box<dyn VirtioDevice> {
    let other = Box::new(Other::default());
    match number % DEVICES {
        0 => Box::new(Console::new(other)),
        1 => Box::new(Block::new(other, b"serial")),
        2 => Box::new(Entropy::new(other)),
        3 => Box::new(Net::new(other, [2, 0, 0, 0, 0, 1])),
        4 => Box::new(Balloon::new(other)),
        _ => Box::new(Vsock::new(other, 3)),
    }
}

/// The machine and what its driver knows.
struct Driver {
    board: Board,
    memory: Memory,
    now: u64,
    available: [u16; QUEUES as usize],
}

impl Driver {
    fn new(number: u8) -> Driver {
        let mut board = Board::new(BoardConfig {
            apic_ids: &[0],
            apic_timer_hz: 1_000_000_000,
            tsc_hz: 1_000_000_000,
            unix_ns: 0,
            memory_below_4g: SIZE as u64,
            memory_above_4g: 0,
            without_firmware: true,
            console: Box::new(NullConsole),
        });
        board.plug(1, Box::new(VirtioPci::new(device(number))));
        Driver { board, memory: Memory::new(SIZE), now: 0, available: [0; QUEUES as usize] }
    }

    /// A write to the device's first BAR.
    fn put(&mut self, offset: u64, size: u8, value: u64) {
        self.board.mmio_write(0, p::PCI_MMIO_BASE + offset, size, value, self.now, &self.memory);
    }

    fn get(&mut self, offset: u64, size: u8) -> u64 {
        self.board.mmio_read(0, p::PCI_MMIO_BASE + offset, size, self.now, &self.memory)
    }

    /// A write to guest memory; what does not fit is left out.
    fn poke(&mut self, gpa: u64, bytes: &[u8]) {
        let _ = GuestMemory::write(&self.memory, gpa, bytes);
    }

    /// From reset to DRIVER_OK (virtio 1.2, 3.1.1), with the features that `wanted` leaves.
    fn start(&mut self, wanted: u64, flags: u8) {
        self.put(STATUS, 1, 0);
        self.put(STATUS, 1, 3);
        for half in [0, 1] {
            self.put(0, 4, half);
            let offered = self.get(4, 4);
            self.put(DRIVER_SELECT, 4, half);
            // VERSION_1, without which a device takes nothing.
            self.put(DRIVER_FEATURES, 4, offered & (wanted >> (32 * half)) | half);
        }
        self.put(STATUS, 1, 0xb);
        for queue in 0..QUEUES {
            let base = QUEUE_AREA * (1 + u64::from(queue));
            self.put(QUEUE_SELECT, 2, queue.into());
            self.put(QUEUE_SIZE, 2, ENTRIES.into());
            for (at, place) in [(0, base), (8, base + AVAILABLE), (16, base + USED)] {
                self.put(QUEUE_DESCRIPTORS + at, 4, place);
            }
            self.put(QUEUE_ENABLE, 2, (!flags >> queue & 1).into());
        }
        self.available = [0; QUEUES as usize];
        self.put(STATUS, 1, 0xf);
    }

    /// Puts a descriptor's number into the ring, and the ring's index forward.
    fn offer(&mut self, queue: u8, head: u16, by: u16) {
        let Some(next) = self.available.get_mut(usize::from(queue)) else { return };
        let (at, ring) = (*next, QUEUE_AREA * (1 + u64::from(queue)) + AVAILABLE);
        *next = next.wrapping_add(by);
        let index = *next;
        self.poke(ring + 4 + 2 * u64::from(at % ENTRIES), &head.to_le_bytes());
        self.poke(ring + 2, &index.to_le_bytes());
    }

    fn descriptor(&mut self, queue: u8, bytes: &mut Bytes<'_>) {
        let shape = bytes.byte();
        let number = u64::from(bytes.byte() % ENTRIES as u8);
        let gpa = if shape & 0x80 == 0 { bytes.number(2) } else { bytes.number(8) };
        let length = if shape & 0x40 == 0 { bytes.number(2) & 0xfff } else { bytes.number(4) } as u32;
        let next = if shape & 0x20 == 0 { (number as u16 + 1) % ENTRIES } else { bytes.number(2) as u16 };
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&gpa.to_le_bytes());
        entry[8..12].copy_from_slice(&length.to_le_bytes());
        entry[12..14].copy_from_slice(&u16::from(shape & 7).to_le_bytes());
        entry[14..].copy_from_slice(&next.to_le_bytes());
        // Into the table, or where an indirect one may lie.
        let table = if shape & 0x10 == 0 { QUEUE_AREA * (1 + u64::from(queue)) } else { 0x8000 };
        self.poke(table + 16 * number, &entry);
    }
}

/// Does to one device what the bytes say, until they are used up.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let (mut driver, flags) = (Driver::new(bytes.byte()), bytes.byte());
    if flags & 0x80 != 0 {
        driver.now = 1 << 40;
    }
    driver.start(bytes.number(1) * 0x0101_0101_0101_0101, flags);
    while !bytes.is_empty() {
        let operation = bytes.byte();
        let queue = operation >> 4 & 3;
        match operation & 15 {
            0..=3 => driver.descriptor(queue, &mut bytes),
            4 | 5 => driver.offer(queue, bytes.byte().into(), 1),
            6 | 7 => driver.put(NOTIFY + 4 * u64::from(queue), 2, queue.into()),
            8 | 9 => {
                let (gpa, value) = (bytes.number(2), bytes.number(8));
                driver.poke(gpa, &value.to_be_bytes());
            }
            10 => {
                let at = OWN + bytes.number(1);
                driver.put(at, 1 << (operation >> 6), bytes.number(4));
                driver.get(at, 4);
            }
            11 => {
                let at = bytes.number(1) & 0x3f;
                driver.put(at, 1 << (operation >> 6), bytes.number(2));
                driver.get(at, 4);
            }
            12 => driver.start(bytes.number(8), operation),
            13 => driver.put(MSIX_TABLE + bytes.number(1), 4, bytes.number(4)),
            14 => driver.offer(queue, bytes.byte().into(), bytes.number(2) as u16),
            _ => {
                driver.now += bytes.number(2) << 10;
                driver.board.poll(driver.now, &driver.memory);
                driver.board.tick(driver.now, &driver.memory);
            }
        }
    }
    driver.get(0x800, 1);
    driver.put(STATUS, 1, 0);
}

/// A valid request to each device: a readable and a writable buffer, offered and notified.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let of = |number: u8| {
        let queue = if matches!(number, 0 | 3 | 5) { 0x10 } else { 0 };
        let mut bytes = vec![number, 0, 0xff];
        // A header of a block read, also good as any other payload.
        bytes.extend([8, 0x90, 0x00, 0, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend([queue, 1, 0, 0x90, 0x00, 0, 16]);
        bytes.extend([queue, 3, 1, 0x91, 0x00, 2, 0]);
        bytes.extend([queue, 2, 2, 0x94, 0x00, 0, 1]);
        bytes.extend([queue | 4, 0, queue | 6, 15, 0, 1, 15, 0, 2]);
        bytes
    };
    (0..DEVICES).map(of).collect()
}
