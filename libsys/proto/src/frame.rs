//! Frames on the control channel's serial line. `docs/abi/control.md`.
//!
//! A frame is [`FLAG`], its escaped contents, and [`FLAG`]; two frames may share the flag between them. Contents are kind, number
//! (two bytes), payload, and a check (two bytes), the lower byte first. A flag or escape byte within is sent as [`ESCAPE`] and the byte
//! exclusive-or 20h (as RFC 1662 does). What is too long, too short or fails its check is dropped.

use alloc::vec::Vec;

/// Begins and ends a frame.
pub const FLAG: u8 = 0x7e;
/// Before a byte that was changed by exclusive-or with [`FLIP`].
pub const ESCAPE: u8 = 0x7d;
const FLIP: u8 = 0x20;
/// Bytes around a payload: kind, number, check.
const AROUND: usize = 5;

/// Most bytes of payload that the system takes.
pub const MOST_REQUEST: usize = 1024;
/// Most bytes of payload that the system sends.
pub const MOST_ANSWER: usize = 6144;
/// Bytes that the host may have under way: a receive FIFO.
pub const WINDOW: u16 = 16;
/// Version of frames and messages, told in [`Kind::Hello`].
pub const VERSION: u8 = 1;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Host to system: forget what is under way, answer [`Kind::Hello`] with the same number.
    Reset,
    /// System to host: [`VERSION`] (one byte) and window (two bytes). The host has so much credit now, and nothing is under way. With
    /// number 0 unasked: the control task has just started.
    Hello,
    /// System to host: so many (two bytes) more bytes may be sent.
    Credit,
    /// Host to system: a `control::Request`.
    Request,
    /// System to host: the last (mostly only) `control::Answer` to the request of this number.
    Answer,
    /// System to host: an answer to the request of this number that others will follow.
    Part,
}

impl Kind {
    const ALL: [Kind; 6] = [Kind::Reset, Kind::Hello, Kind::Credit, Kind::Request, Kind::Answer, Kind::Part];

    /// As a byte.
    #[must_use]
    pub const fn code(self) -> u8 {
        self as u8 + 1
    }

    /// From a byte.
    #[must_use]
    pub fn from_code(code: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

/// A frame that arrived whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Which request it belongs to, as the host numbers them.
    pub number: u16,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// CRC-16/X-25, the check of RFC 1662.
fn check(bytes: &[u8]) -> u16 {
    !bytes.iter().fold(0xffff, |crc: u16, byte| {
        (0..8).fold(crc ^ u16::from(*byte), |crc, _| if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ 0x8408 })
    })
}

/// Appends a frame to `out`.
pub fn encode(kind: Kind, number: u16, payload: &[u8], out: &mut Vec<u8>) {
    let mut bytes = Vec::with_capacity(payload.len() + AROUND);
    bytes.push(kind.code());
    bytes.extend(number.to_le_bytes());
    bytes.extend(payload);
    bytes.extend(check(&bytes).to_le_bytes());
    out.push(FLAG);
    for byte in bytes {
        if matches!(byte, FLAG | ESCAPE) {
            out.extend([ESCAPE, byte ^ FLIP]);
        } else {
            out.push(byte);
        }
    }
    out.push(FLAG);
}

/// Finds frames in a stream of bytes. It keeps one frame at most, of at most so many bytes of payload.
#[derive(Debug)]
pub struct Decoder {
    bytes: Vec<u8>,
    most: usize,
    escaped: bool,
    /// What comes up to the next flag is no frame.
    lost: bool,
}

impl Decoder {
    /// Nothing has come yet. `most`: bytes of payload that are taken, [`MOST_REQUEST`] or [`MOST_ANSWER`].
    #[must_use]
    pub const fn new(most: usize) -> Decoder {
        Decoder { bytes: Vec::new(), most, escaped: false, lost: true }
    }

    /// Takes a byte; answers the frame that it completed.
    pub fn feed(&mut self, byte: u8) -> Option<Frame> {
        if byte == FLAG {
            let frame = if self.lost || self.escaped { None } else { self.frame() };
            self.bytes.clear();
            (self.escaped, self.lost) = (false, false);
            return frame;
        }
        if self.lost {
            return None;
        }
        if byte == ESCAPE {
            // An escape that is escaped is no frame.
            self.lost = self.escaped;
            self.escaped = true;
            return None;
        }
        let byte = if core::mem::take(&mut self.escaped) { byte ^ FLIP } else { byte };
        if self.bytes.len() >= self.most + AROUND {
            self.lost = true;
        } else {
            self.bytes.push(byte);
        }
        None
    }

    fn frame(&self) -> Option<Frame> {
        let (contents, given) = self.bytes.split_last_chunk::<2>()?;
        let ([kind, low, high], payload) = contents.split_first_chunk::<3>()?;
        if check(contents) != u16::from_le_bytes(*given) {
            return None;
        }
        let kind = Kind::from_code(*kind)?;
        Some(Frame { kind, number: u16::from_le_bytes([*low, *high]), payload: payload.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::new(64);
        bytes.iter().filter_map(|byte| decoder.feed(*byte)).collect()
    }

    #[test]
    fn the_check_is_that_of_the_rfc() {
        assert_eq!(check(b"123456789"), 0x906e);
    }

    #[test]
    fn frames_may_share_a_flag_and_follow_noise() {
        let mut bytes = b"boot noise ~ more".to_vec();
        encode(Kind::Request, 7, &[FLAG, ESCAPE, 0x5e], &mut bytes);
        let end = bytes.len();
        encode(Kind::Reset, 9, &[], &mut bytes);
        bytes.remove(end);
        let frames = decode(&bytes);
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].number, &frames[0].payload), (7, &vec![FLAG, ESCAPE, 0x5e]));
        assert_eq!((frames[1].kind, frames[1].number), (Kind::Reset, 9));
    }

    #[test]
    fn what_is_wrong_is_dropped_and_the_next_frame_is_found() {
        let mut good = Vec::new();
        encode(Kind::Request, 1, b"x", &mut good);
        let mut flipped = good.clone();
        flipped[3] ^= 1;
        for wrong in [&flipped[..], &[FLAG, 1, 2, FLAG], &[FLAG; 5], &[FLAG, ESCAPE, ESCAPE, 4, FLAG], &[1; 100]] {
            let bytes = [wrong, &good].concat();
            assert_eq!(decode(&bytes).len(), 1, "{wrong:x?}");
        }
        let mut long = Vec::new();
        encode(Kind::Request, 1, &[5; 65], &mut long);
        assert!(decode(&long).is_empty());
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out(frames in prop::collection::vec((0usize..6, any::<u16>(), prop::collection::vec(any::<u8>(), 0..64)), 0..8)) {
            let mut bytes = Vec::new();
            let frames: Vec<Frame> = frames.into_iter().map(|(kind, number, payload)| Frame { kind: Kind::ALL[kind], number, payload }).collect();
            for frame in &frames {
                encode(frame.kind, frame.number, &frame.payload, &mut bytes);
            }
            prop_assert_eq!(decode(&bytes), frames);
        }

        #[test]
        fn anything_may_come(bytes in prop::collection::vec(prop_oneof![Just(FLAG), Just(ESCAPE), any::<u8>()], 0..400)) {
            let mut decoder = Decoder::new(64);
            for byte in bytes {
                let frame = decoder.feed(byte);
                prop_assert!(frame.is_none_or(|frame| frame.payload.len() <= 64));
                prop_assert!(decoder.bytes.len() <= 64 + AROUND);
            }
        }
    }
}
