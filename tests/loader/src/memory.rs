//! Physical memory, mapped to itself.

use vmm_machine::{GuestRam, OutOfRange};

/// All memory below `size` but the loader's own. Whoever fills it trusts the loaders' placement.
pub struct Memory {
    /// First byte that must not be written.
    pub size: u64,
}

/// Where the loader lies.
const OWN: core::ops::Range<u64> = 0x10_0000..0x20_0000;

impl Memory {
    fn check(&self, gpa: u64, len: usize) -> Result<(), OutOfRange> {
        let end = gpa.checked_add(len as u64).filter(|&end| end <= self.size);
        match end {
            Some(end) if end <= OWN.start || gpa >= OWN.end => Ok(()),
            _ => Err(OutOfRange { gpa, len }),
        }
    }
}

impl GuestRam for Memory {
    fn write(&mut self, gpa: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.check(gpa, bytes.len())?;
        // SAFETY: memory below the module and outside of the loader belongs to nobody.
        unsafe { core::ptr::copy_nonoverlapping(bytes.as_ptr(), gpa as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        self.check(gpa, bytes.len())?;
        // SAFETY: as for `write`.
        unsafe { core::ptr::copy_nonoverlapping(gpa as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn size(&self) -> u64 {
        self.size
    }
}

/// Eight bytes at an address.
pub fn word(at: u64) -> u64 {
    // SAFETY: the first 4 GiB are mapped.
    unsafe { (at as *const u64).read_unaligned() }
}

/// Bytes that nobody changes.
pub fn bytes(at: u64, length: u64) -> &'static [u8] {
    // SAFETY: inside of the module, which is never written.
    unsafe { core::slice::from_raw_parts(at as *const u8, length as usize) }
}

/// One range of memory: base, bytes, kind.
pub type Range = (u64, u64, u32);

/// Puts the machine's map of memory into `boot_params` (Documentation/arch/x86/zero-page.rst).
pub fn put_map(params: u64, map: &[Range]) {
    const COUNT: u64 = 0x1e8;
    const TABLE: u64 = 0x2d0;
    const ENTRY: u64 = 20;
    // SAFETY: one page that the loader has just written.
    unsafe {
        ((params + COUNT) as *mut u8).write(map.len() as u8);
        for (index, (base, bytes, kind)) in map.iter().enumerate() {
            let at = params + TABLE + ENTRY * index as u64;
            (at as *mut u64).write_unaligned(*base);
            ((at + 8) as *mut u64).write_unaligned(*bytes);
            ((at + 16) as *mut u32).write_unaligned(*kind);
        }
    }
}
