//! The other ends of the devices.

use crate::hardware;
use alloc::collections::VecDeque;
use alloc::sync::Arc;
use moira_rt::mapped::with_current_buffer;
use moira_rt::proto::console;
use moira_rt::sys::{self, Endpoint, Error, Message, Notification};
use spin::mutex::SpinMutex;
use vmm_devices::traits::{ConsoleBackend, EntropyBackend};

/// Most bytes of one request to the console task.
const MOST: usize = 1024;
/// Most bytes that wait for the main thread to write them.
const QUEUE: usize = 16 << 10;

/// The console task, shared by the devices that write to it.
///
/// Calls stay on one CPU. A thread of another CPU leaves its output in the queue and tells the main thread, which does all reading
/// too. Devices come here with the machine's lock held, and so does the main thread: nobody ever waits for this one.
pub struct Console {
    endpoint: Option<Endpoint>,
    /// Tells the main thread to look at the console and at the queue.
    main: Notification,
    /// Output of threads on other CPUs.
    queue: VecDeque<u8>,
    /// The device that wrote last: what is typed is for it.
    active: Device,
    /// Whether something may have been typed since nothing more was there.
    input: bool,
}

/// The console, to be shared.
pub type Shared = Arc<SpinMutex<Console>>;

/// Devices with a line to the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The serial port.
    Serial,
    /// The virtio console.
    Virtio,
}

impl Console {
    /// The console behind this capability; without one, output goes nowhere. `main` signals the main thread.
    pub fn new(endpoint: Option<Endpoint>, main: Notification) -> Shared {
        let queue = VecDeque::new();
        Arc::new(SpinMutex::new(Console { endpoint, main, queue, active: Device::Serial, input: false }))
    }

    fn send(endpoint: Endpoint, bytes: &[u8]) -> Result<usize, Error> {
        let count = with_current_buffer(|buffer| buffer.write(bytes.get(..MOST).unwrap_or(bytes))).unwrap_or(0);
        let answer = endpoint.call(&Message::new(console::WRITE).bytes(count))?;
        Ok(usize::try_from(answer.words[0]).unwrap_or(count).min(count))
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(endpoint) = self.endpoint else { return bytes.len() };
        if self.flush() {
            match Console::send(endpoint, bytes) {
                Ok(count) => return count,
                Err(Error::WrongCpu) => {}
                // A console that is gone, or being restarted, swallows what is written.
                Err(_) => return bytes.len(),
            }
        }
        let count = bytes.len().min(QUEUE - self.queue.len().min(QUEUE));
        let first = self.queue.is_empty();
        self.queue.extend(bytes.iter().take(count));
        if first || count == 0 {
            // The main thread ends with the task, and all others with it.
            let _ = self.main.signal();
        }
        count
    }

    /// Writes what other threads left behind, as far as this thread can. Answers whether nothing is left.
    pub fn flush(&mut self) -> bool {
        let Some(endpoint) = self.endpoint else { return true };
        while !self.queue.is_empty() {
            let (bytes, _) = self.queue.as_slices();
            match Console::send(endpoint, bytes) {
                Ok(0) | Err(Error::WrongCpu) => return false,
                Ok(count) => drop(self.queue.drain(..count.min(self.queue.len()))),
                Err(_) => self.queue.clear(),
            }
        }
        true
    }

    /// Something may have been typed.
    pub fn typed(&mut self) {
        self.input = true;
    }

    fn read(&mut self, out: &mut [u8]) -> usize {
        let Some(endpoint) = self.endpoint else { return 0 };
        match endpoint.call(&Message::new(console::READ).words([out.len() as u64])) {
            Ok(answer) => {
                let count = answer.bytes.min(out.len());
                let count =
                    with_current_buffer(|buffer| buffer.read(out.get_mut(..count).unwrap_or_default())).unwrap_or(0);
                self.input = count == out.len();
                count
            }
            Err(Error::WrongCpu) => {
                let _ = self.main.signal();
                0
            }
            Err(_) => 0,
        }
    }

    /// Asks to be signalled through this notification when something is typed.
    pub fn listen(&mut self, notification: sys::Slot) {
        if let Some(endpoint) = self.endpoint {
            let message = Message::new(console::NOTIFY).capability(notification);
            if let Err(error) = endpoint.call(&message) {
                log::warn!("nothing can be typed: {error:?}");
            }
        }
    }
}

/// One device's line to the console.
pub struct Line {
    console: Shared,
    device: Device,
}

impl Line {
    /// The line of `device`.
    pub fn new(console: &Shared, device: Device) -> Line {
        Line { console: console.clone(), device }
    }
}

impl ConsoleBackend for Line {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut console = self.console.lock();
        console.active = self.device;
        console.write(bytes)
    }

    fn read(&mut self, out: &mut [u8]) -> usize {
        let mut console = self.console.lock();
        if !console.input || console.active != self.device || out.is_empty() {
            return 0;
        }
        console.read(out)
    }
}

/// Random numbers: the processor's, or where it has none a generator seeded by the TSC, which is no secret.
pub struct Entropy {
    processor: bool,
    state: u64,
}

impl Entropy {
    /// The best source there is.
    pub fn new() -> Entropy {
        let processor = hardware::has_random();
        if !processor {
            log::warn!("this processor has no RDRAND: the guest's entropy device gives predictable numbers");
        }
        Entropy { processor, state: sys::now() }
    }

    /// SplitMix64, stirred with the time.
    fn generate(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ sys::now().rotate_left(32);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }
}

impl EntropyBackend for Entropy {
    fn fill(&mut self, out: &mut [u8]) -> usize {
        let mut filled = 0;
        for chunk in out.chunks_mut(8) {
            let number = if self.processor { hardware::random() } else { Some(self.generate()) };
            // None ready: the device comes back.
            let Some(number) = number else { break };
            for (to, from) in chunk.iter_mut().zip(number.to_le_bytes()) {
                *to = from;
            }
            filled += chunk.len();
        }
        filled
    }
}
