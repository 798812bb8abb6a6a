//! Kernel images.

use crate::Bytes;
use crate::memory::Memory;
use vmm_machine::boot::{flat, linux, pvh};
use vmm_machine::memory_map::MemoryMap;

const SIZE: u64 = 8 << 20;

/// Loads the bytes as each kind of image there is.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let with_initrd = bytes.byte() & 1 != 0;
    let kernel = bytes.rest();
    let initrd = with_initrd.then(|| kernel.get(kernel.len() / 2..).unwrap_or_default());
    let Ok(map) = MemoryMap::new(SIZE) else { return };
    let mut memory = Memory::new(SIZE as usize);
    let guest = linux::LinuxGuest { kernel, initrd, cmdline: b"quiet", rsdp: 0xe_0000 };
    let _ = linux::load(&mut memory, &map, &guest);
    let _ = pvh::load(&mut memory, &map, &pvh::PvhGuest { kernel, initrd, cmdline: b"quiet", rsdp: 0xe_0000 });
    let _ = flat::load(&mut memory, &map, &flat::FlatGuest { image: kernel, cmdline: b"", argument: SIZE });
}

/// A bzImage that is loaded: header and 4 KiB of payload.
#[must_use]
pub fn bz_image() -> Vec<u8> {
    let mut image = vec![0; 0x400 + 4096];
    let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
    put(0x1f1, &[1]);
    put(0x1f4, &256u32.to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x20fu16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x230, &0x20_0000u32.to_le_bytes());
    put(0x234, &[1, 21]);
    put(0x236, &1u16.to_le_bytes());
    put(0x238, &255u32.to_le_bytes());
    put(0x258, &0x20_0000u64.to_le_bytes());
    put(0x260, &0x10_0000u32.to_le_bytes());
    image
}

/// A 64-bit ELF file that is loaded, with one segment and a PVH note.
#[must_use]
pub fn elf_image() -> Vec<u8> {
    let mut image = vec![0; 0x2000];
    let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
    put(0, &[0x7f, b'E', b'L', b'F', 2, 1, 1]);
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &0x20_0000u64.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0, 64, 0]);
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, size: u64| {
        put(at, &kind.to_le_bytes());
        put(at + 4, &7u32.to_le_bytes());
        for (index, value) in [offset, address, address, size, size, 4].into_iter().enumerate() {
            put(at + 8 + 8 * index, &value.to_le_bytes());
        }
    };
    header(64, 1, 0x1000, 0x20_0000, 0x800);
    header(120, 4, 0x200, 0, 24);
    put(0x200, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0, b'X', b'e', b'n', 0]);
    put(0x210, &0x20_0000u64.to_le_bytes());
    image
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mutated_is_valid() {
        let map = MemoryMap::new(SIZE).unwrap();
        let mut memory = Memory::new(SIZE as usize);
        let guest = linux::LinuxGuest { kernel: &bz_image(), initrd: None, cmdline: b"", rsdp: 0 };
        linux::load(&mut memory, &map, &guest).unwrap();
        let guest = pvh::PvhGuest { kernel: &elf_image(), initrd: None, cmdline: b"", rsdp: 0 };
        pvh::load(&mut memory, &map, &guest).unwrap();
    }
}
