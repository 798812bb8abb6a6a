//! What the models need from the world: guest memory, interrupt messages and back ends.

/// The guest-physical range is not, or not wholly, guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

/// Guest-physical memory, shared with running vCPUs.
///
/// Methods take `&self` because the guest writes at the same time anyway. Every access is checked: a range that is not
/// RAM from the first byte to the last is [`OutOfRange`], and then nothing has been copied.
///
/// An aligned access of 2, 4 or 8 bytes by the `load`/`store` methods is one access on the bus (virtio 1.2, 2.7.13
/// needs that of ring indices); `read` and `write` promise no order or size. Ordering between accesses is the caller's,
/// by [`core::sync::atomic::fence`].
pub trait GuestMemory {
    /// Copies from guest memory.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), OutOfRange>;
    /// Copies to guest memory.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), OutOfRange>;
    /// Whether `len` bytes at `gpa` are all RAM. Zero bytes always are.
    fn contains(&self, gpa: u64, len: u64) -> bool;
    /// Sets `len` bytes to zero.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn zero(&self, gpa: u64, len: u64) -> Result<(), OutOfRange> {
        if !self.contains(gpa, len) {
            return Err(OutOfRange);
        }
        let zeros = [0u8; 256];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(zeros.len() as u64);
            self.write(gpa + done, &zeros[..n as usize])?;
            done += n;
        }
        Ok(())
    }
    /// One little-endian 16-bit access.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn load_u16(&self, gpa: u64) -> Result<u16, OutOfRange> {
        let mut b = [0; 2];
        self.read(gpa, &mut b)?;
        Ok(u16::from_le_bytes(b))
    }
    /// One little-endian 16-bit access.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn store_u16(&self, gpa: u64, value: u16) -> Result<(), OutOfRange> {
        self.write(gpa, &value.to_le_bytes())
    }
    /// One little-endian 32-bit access.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn load_u32(&self, gpa: u64) -> Result<u32, OutOfRange> {
        let mut b = [0; 4];
        self.read(gpa, &mut b)?;
        Ok(u32::from_le_bytes(b))
    }
    /// One little-endian 32-bit access.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), OutOfRange> {
        self.write(gpa, &value.to_le_bytes())
    }
    /// One little-endian 64-bit access.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn load_u64(&self, gpa: u64) -> Result<u64, OutOfRange> {
        let mut b = [0; 8];
        self.read(gpa, &mut b)?;
        Ok(u64::from_le_bytes(b))
    }
    /// One little-endian 64-bit access.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte is not RAM.
    fn store_u64(&self, gpa: u64, value: u64) -> Result<(), OutOfRange> {
        self.write(gpa, &value.to_le_bytes())
    }
}

/// A message-signalled interrupt: a 32-bit write to the FEExxxxxh range (SDM 3A, 11.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// The address, with destination and its mode.
    pub address: u64,
    /// The data, with vector and delivery mode.
    pub data: u32,
}

/// Takes message-signalled interrupts.
pub trait MsiSink {
    /// Delivers one message. A message that names no processor is lost, as on hardware.
    fn send(&mut self, message: MsiMessage);
}

/// A character device's other end.
pub trait ConsoleBackend: Send {
    /// Takes up to `bytes.len()` bytes of output and says how many; fewer means "full, try later".
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Gives up to `out.len()` bytes of input and says how many; 0 means "none now".
    fn read(&mut self, out: &mut [u8]) -> usize;
}

/// A console that swallows output and has no input.
#[derive(Debug, Default, Clone, Copy)]
pub struct NullConsole;

impl ConsoleBackend for NullConsole {
    fn write(&mut self, bytes: &[u8]) -> usize {
        bytes.len()
    }
    fn read(&mut self, _out: &mut [u8]) -> usize {
        0
    }
}

/// A source of entropy.
pub trait EntropyBackend: Send {
    /// Fills a prefix of `out` and says how long it is; 0 means "none now".
    fn fill(&mut self, out: &mut [u8]) -> usize;
}

/// A piece of guest memory in a request. It has been checked to be RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// Guest-physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// Whether the device may write it (otherwise it may only read it).
    pub writable: bool,
}

/// How a block request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockStatus {
    /// Done.
    Ok,
    /// The medium failed.
    IoError,
    /// The back end cannot do this.
    Unsupported,
}

/// What a back end said to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submit {
    /// Finished within the call.
    Done(BlockStatus),
    /// Accepted; [`BlockBackend::completion`] will name its tag once.
    Pending,
    /// No room: give it again after the next completion or poll.
    Busy,
}

/// What to do with a disk. Offsets and lengths are in bytes and multiples of 512, and lie within the disk.
#[derive(Clone, Copy, Debug)]
pub enum BlockOp<'a> {
    /// From the disk at `offset` into the segments, one after another.
    Read {
        /// Byte offset on the disk.
        offset: u64,
        /// Guest memory to fill.
        segments: &'a [Segment],
    },
    /// From the segments, one after another, to the disk at `offset`.
    Write {
        /// Byte offset on the disk.
        offset: u64,
        /// Guest memory to take.
        segments: &'a [Segment],
    },
    /// All completed writes are on stable storage when this completes.
    Flush,
    /// The range's contents may be thrown away.
    Discard {
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeros afterwards.
    WriteZeroes {
        /// Byte offset on the disk.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

/// A disk's other end.
pub trait BlockBackend: Send {
    /// Size in bytes; a rest below 512 is not used.
    fn capacity(&self) -> u64;
    /// Whether writes are refused.
    fn read_only(&self) -> bool {
        false
    }
    /// Whether [`BlockOp::Discard`] and [`BlockOp::WriteZeroes`] are understood.
    fn can_discard(&self) -> bool {
        false
    }
    /// Starts a request. `tag` is unique among those pending.
    fn submit(&mut self, tag: u16, op: BlockOp<'_>, memory: &dyn GuestMemory) -> Submit;
    /// One request that has finished since the last call, by tag.
    fn completion(&mut self, memory: &dyn GuestMemory) -> Option<(u16, BlockStatus)> {
        let _ = memory;
        None
    }
    /// Forgets all pending requests: none of their tags is completed, none of their memory is touched, after this.
    fn cancel_all(&mut self) {}
}

/// A network card's other end: one port of a switch.
pub trait NetBackend: Send {
    /// Sends one Ethernet frame, which lies in these segments, without checksum at its end; `false`: full, try later.
    fn send(&mut self, frame: &[Segment], memory: &dyn GuestMemory) -> bool;
    /// Puts the next frame into these segments and says how long it is; `None`: there is none. A frame that is longer
    /// than the segments is dropped by the back end, never cut.
    fn receive(&mut self, segments: &[Segment], memory: &dyn GuestMemory) -> Option<u32>;
    /// Whether the cable is plugged in.
    fn link(&self) -> bool {
        true
    }
}

/// Who lends memory to a guest and wants some of it back.
///
/// Page addresses are RAM and multiples of 4 KiB, but a guest may name any of them, at any time, as often as it likes:
/// giving a page twice or taking one back that was not given must be harmless.
pub trait BalloonBackend: Send {
    /// How many 4 KiB pages the guest shall give up.
    fn target(&self) -> u32;
    /// The guest gives a page up; it may be unmapped.
    fn give(&mut self, gpa: u64);
    /// The guest takes a page back; it must be mapped, with any contents, before the call returns.
    fn take_back(&mut self, gpa: u64);
    /// The guest says that it has given up so many pages.
    fn reached(&mut self, _pages: u32) {}
    /// The guest was reset: all pages are its own again.
    fn reset(&mut self);
}

/// Bytes of a socket packet's header (virtio 1.2, 5.10.6).
pub const VSOCK_HEADER: usize = 44;

/// A socket device's other end: it owns the connections, the device only carries packets.
pub trait VsockBackend: Send {
    /// The guest sends a packet. Header and payload agree in length and the source address is the guest's own; all the
    /// rest is the guest's word. `false`: full, try later.
    fn send(&mut self, header: &[u8; VSOCK_HEADER], payload: &[Segment], memory: &dyn GuestMemory) -> bool;
    /// The next packet for the guest: fills the header (but for the payload's length, which it returns, and the
    /// destination) and the segments. A payload longer than the segments is given in parts, as a stream allows.
    fn receive(
        &mut self,
        header: &mut [u8; VSOCK_HEADER],
        segments: &[Segment],
        memory: &dyn GuestMemory,
    ) -> Option<u32>;
    /// All connections of the guest are gone.
    fn reset(&mut self);
}
