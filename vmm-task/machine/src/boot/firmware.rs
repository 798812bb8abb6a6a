//! Firmware: its image is a ROM that ends at 4 GiB, and the processor starts at the reset vector.

use super::InitialState;
use crate::{GuestRam, OutOfRange, layout};
use core::fmt;

/// Least bytes of an image: what lies below 1 MiB of it.
pub const MIN_SIZE: usize = 64 << 10;
/// Most bytes of an image: the machine keeps the addresses from here to 4 GiB free for it.
pub const MAX_SIZE: usize = 16 << 20;
/// How much of the image's end also lies below 1 MiB, where 16-bit code reaches it.
const LOW_COPY: usize = 128 << 10;

/// Why an image is no firmware for this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FirmwareError {
    /// It is smaller than [`MIN_SIZE`], larger than [`MAX_SIZE`], or no whole number of pages.
    Size {
        /// Its bytes.
        size: usize,
    },
    /// There is nothing at the reset vector, 16 bytes before the end.
    NoResetVector,
    /// RAM ends below 1 MiB.
    Ram(OutOfRange),
}

impl fmt::Display for FirmwareError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FirmwareError::Size { size } => {
                write!(f, "{size} bytes are not whole pages from {MIN_SIZE} to {MAX_SIZE} bytes")
            }
            FirmwareError::NoResetVector => f.write_str("there is nothing at its reset vector"),
            FirmwareError::Ram(error) => write!(f, "it does not fit: {error:?}"),
        }
    }
}

/// Checks an image.
///
/// # Errors
/// [`FirmwareError`] but for `Ram`.
pub fn check(image: &[u8]) -> Result<(), FirmwareError> {
    let size = image.len();
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) || !size.is_multiple_of(4096) {
        return Err(FirmwareError::Size { size });
    }
    let vector = image.last_chunk::<16>().ok_or(FirmwareError::Size { size })?;
    let empty = vector.iter().all(|&byte| byte == 0) || vector.iter().all(|&byte| byte == 0xFF);
    if empty { Err(FirmwareError::NoResetVector) } else { Ok(()) }
}

/// Writes the copy below 1 MiB and returns the processor after reset; `signature` is CPUID leaf 1's EAX.
///
/// On hardware that copy is the ROM itself, until firmware switches the range to RAM and copies itself there (PAM). Here
/// all of it is RAM from the start, so that switching changes nothing and the copying finds its own bytes.
///
/// # Errors
/// [`FirmwareError`].
pub fn load(ram: &mut dyn GuestRam, image: &[u8], signature: u32) -> Result<InitialState, FirmwareError> {
    check(image)?;
    let low = image.get(image.len() - image.len().min(LOW_COPY)..).unwrap_or(image);
    ram.write(layout::ONE_MIB - low.len() as u64, low).map_err(FirmwareError::Ram)?;
    Ok(InitialState::reset(signature))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_ram::TestRam;
    use alloc::vec;
    use proptest::prelude::*;

    #[test]
    fn starts_at_the_reset_vector_with_a_copy_below_one_mebibyte() {
        let mut image = vec![0x11; 256 << 10];
        image[128 << 10] = 0x22;
        *image.last_mut().unwrap() = 0x33;
        let mut ram = TestRam::new(2 << 20);
        let state = load(&mut ram, &image, 0x306C3).unwrap();
        assert_eq!((state.cs.base + state.rip, state.cr0 & 1, state.gprs[2]), (0xFFFF_FFF0, 0, 0x306C3));
        assert_eq!(ram.bytes(0xE_0000, 1), [0x22]);
        assert_eq!(ram.bytes(0xF_FFFF, 1), [0x33]);
    }

    #[test]
    fn what_cannot_be_firmware_is_refused() {
        let check = |size: usize, byte: u8| super::check(&vec![byte; size]);
        assert_eq!(check(4096, 1), Err(FirmwareError::Size { size: 4096 }));
        assert_eq!(check((64 << 10) + 1, 1), Err(FirmwareError::Size { size: 65537 }));
        assert_eq!(check(17 << 20, 1), Err(FirmwareError::Size { size: 17 << 20 }));
        assert_eq!(check(64 << 10, 0), Err(FirmwareError::NoResetVector));
        assert_eq!(check(64 << 10, 0xFF), Err(FirmwareError::NoResetVector));
        assert_eq!(check(64 << 10, 0x90), Ok(()));
    }

    proptest! {
        #[test]
        fn any_image_is_loaded_or_refused(pages in 0usize..40, byte: u8, ram in 0u64..300) {
            let image = vec![byte; pages * 4096];
            let _ = load(&mut TestRam::new(ram * 4096), &image, 0);
        }
    }
}
