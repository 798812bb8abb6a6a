//! Guest memory as the loaders see it.

/// An access that does not lie wholly inside guest RAM. Nothing was transferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange {
    /// First guest-physical address of the access.
    pub gpa: u64,
    /// Length of the access in bytes.
    pub len: usize,
}

/// Guest RAM by guest-physical address.
///
/// Implementations check every access against the RAM they hold; callers pass addresses that come from guest images.
pub trait GuestRam {
    /// Copies `bytes` into RAM at `gpa`.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte would lie outside RAM; nothing is written then.
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), OutOfRange>;

    /// Fills `bytes` from RAM at `gpa`.
    ///
    /// # Errors
    /// [`OutOfRange`] if any byte would lie outside RAM.
    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), OutOfRange>;

    /// Bytes of RAM in all, below and above 4 GiB.
    fn size(&self) -> u64;
}

/// Zeroes `len` bytes of RAM at `gpa`.
///
/// Callers bound `len` by the size of RAM first, so the loop is bounded by it too.
///
/// # Errors
/// [`OutOfRange`] at the first chunk that lies outside RAM; earlier chunks are zeroed.
pub fn fill_zero(ram: &mut dyn GuestRam, gpa: u64, len: u64) -> Result<(), OutOfRange> {
    static ZERO: [u8; 4096] = [0; 4096];
    let mut done = 0;
    while done < len {
        let n = (len - done).min(ZERO.len() as u64);
        let at = gpa.checked_add(done).ok_or(OutOfRange { gpa, len: ZERO.len() })?;
        ram.write(at, &ZERO[..n as usize])?;
        done += n;
    }
    Ok(())
}
