//! A serial port that nobody else uses, for bytes that are no text.

use moira_rt::{
    Env,
    sys::{Error, IoPorts},
};

/// Registers of a 16550 (offsets), and what they are set to.
const DATA: u16 = 0;
const FIFO: u16 = 2;
const LINE: u16 = 3;
const STATUS: u16 = 5;
/// Bytes that fit into an empty transmitter with its FIFO on.
const DEPTH: usize = 16;
/// Looks at the status before a line that never gets empty is given up.
const PATIENCE: u32 = 1_000_000;

/// The port.
pub struct Port {
    ports: IoPorts,
    first: u16,
    free: usize,
}

impl Port {
    /// The port that the manifest grants as `trace-port`; its first number is the argument `port=`.
    pub fn new(env: &Env) -> Option<Port> {
        let ports = env.capability::<IoPorts>("trace-port")?;
        let text = env.argument("port").unwrap_or("0x3e8");
        let first = u16::from_str_radix(text.trim_start_matches("0x"), 16).ok()?;
        let port = Port { ports, first, free: 0 };
        // Fastest rate, eight bits, FIFO.
        for (register, value) in [(LINE, 0x83), (DATA, 1), (1, 0), (LINE, 3), (1, 0), (FIFO, 7)] {
            port.write(register, value).ok()?;
        }
        Some(port)
    }

    fn write(&self, register: u16, value: u8) -> Result<(), Error> {
        self.ports.out8(self.first + register, value)
    }

    /// Sends bytes; waits for the line.
    pub fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        for byte in bytes {
            for turn in 0.. {
                if self.free > 0 {
                    break;
                }
                if self.ports.in8(self.first + STATUS)? & 0x20 != 0 {
                    self.free = DEPTH;
                } else if turn > PATIENCE {
                    return Err(Error::NoHardware);
                }
            }
            self.free -= 1;
            self.write(DATA, *byte)?;
        }
        Ok(())
    }
}
