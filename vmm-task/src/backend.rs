//! The other ends of the devices.

use crate::hardware;
use alloc::rc::Rc;
use core::cell::RefCell;
use moira_rt::proto::console;
use moira_rt::sys::{self, Endpoint, Message, MessageBuffer};
use vmm_devices::traits::{ConsoleBackend, EntropyBackend};

/// Most bytes of one request to the console task.
const MOST: usize = 1024;

/// The console task, shared by the devices that write to it.
pub struct Console {
    endpoint: Option<Endpoint>,
    buffer: MessageBuffer,
    /// The device that wrote last: what is typed is for it.
    active: Device,
}

/// Devices with a line to the console.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The serial port.
    Serial,
    /// The virtio console.
    Virtio,
}

impl Console {
    /// The console behind this capability; without one, output goes nowhere.
    pub fn new(endpoint: Option<Endpoint>, buffer: MessageBuffer) -> Rc<RefCell<Console>> {
        Rc::new(RefCell::new(Console { endpoint, buffer, active: Device::Serial }))
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let Some(endpoint) = self.endpoint else { return bytes.len() };
        let count = self.buffer.write(bytes.get(..MOST).unwrap_or(bytes));
        match endpoint.call(&Message::new(console::WRITE).bytes(count)) {
            Ok(answer) => usize::try_from(answer.words[0]).unwrap_or(count).min(count),
            // A console that is gone, or being restarted, swallows what is written.
            Err(_) => count,
        }
    }

    fn read(&mut self, out: &mut [u8]) -> usize {
        let Some(endpoint) = self.endpoint else { return 0 };
        match endpoint.call(&Message::new(console::READ).words([out.len() as u64])) {
            Ok(answer) => {
                let count = answer.bytes.min(out.len());
                self.buffer.read(out.get_mut(..count).unwrap_or_default())
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
    console: Rc<RefCell<Console>>,
    device: Device,
    /// Whether something may have been typed since nothing more was there.
    input: Rc<core::cell::Cell<bool>>,
}

impl Line {
    /// The line of `device`; `input` is set by whoever hears that something was typed.
    pub fn new(console: &Rc<RefCell<Console>>, device: Device, input: &Rc<core::cell::Cell<bool>>) -> Line {
        Line { console: console.clone(), device, input: input.clone() }
    }
}

impl ConsoleBackend for Line {
    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut console = self.console.borrow_mut();
        console.active = self.device;
        console.write(bytes)
    }

    fn read(&mut self, out: &mut [u8]) -> usize {
        let mut console = self.console.borrow_mut();
        if !self.input.get() || console.active != self.device || out.is_empty() {
            return 0;
        }
        let count = console.read(out);
        if count < out.len() {
            self.input.set(false);
        }
        count
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
