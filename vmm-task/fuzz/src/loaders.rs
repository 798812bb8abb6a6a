//! Kernel images.

use crate::Bytes;
use crate::memory::Memory;
use vmm_machine::boot::{Module, flat, linux, multiboot, multiboot2, pvh};
use vmm_machine::memory_map::MemoryMap;

const SIZE: u64 = 8 << 20;

/// Loads the bytes as each kind of image there is.
pub fn run(data: &[u8]) {
    let mut bytes = Bytes::new(data);
    let count = usize::from(bytes.byte() & 3);
    let kernel = bytes.rest();
    let module = Module { bytes: kernel.get(kernel.len() / 2..).unwrap_or_default(), cmdline: b"module" };
    let modules = vec![module; count];
    let Ok(map) = MemoryMap::new(SIZE) else { return };
    let mut memory = Memory::new(SIZE as usize);
    let (modules, cmdline, rsdp) = (modules.as_slice(), b"quiet".as_slice(), 0xe_0000);
    let _ = linux::load(&mut memory, &map, &linux::LinuxGuest { kernel, modules, cmdline, rsdp });
    let _ = pvh::load(&mut memory, &map, &pvh::PvhGuest { kernel, modules, cmdline, rsdp });
    let guest = multiboot::MultibootGuest { kernel, cmdline, modules };
    let _ = multiboot::load(&mut memory, &map, &guest);
    let _ = multiboot2::load(&mut memory, &map, &guest, b"RSD PTR ");
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

/// A Multiboot kernel: the header in front of code that it loads itself.
#[must_use]
pub fn multiboot_image() -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 1 << 16 | 3;
    let words =
        [MAGIC, FLAGS, MAGIC.wrapping_add(FLAGS).wrapping_neg(), 0x20_0000, 0x20_0000, 0x20_1000, 0x20_2000, 0x20_0020];
    let mut image: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.resize(0x1000, 0x90);
    image
}

/// A Multiboot2 kernel: header, addresses and entry as tags, in front of code.
#[must_use]
pub fn multiboot2_image() -> Vec<u8> {
    const MAGIC: u32 = 0xe852_50d6;
    const LENGTH: u32 = 16 + 24 + 16 + 8;
    let words = [MAGIC, 0, LENGTH, MAGIC.wrapping_add(LENGTH).wrapping_neg()];
    // Addresses (tag 2), entry (tag 3, padded to eight bytes), end (tag 0).
    let tags = [2, 24, 0x20_0000, 0x20_0000, 0x20_1000, 0x20_2000, 3, 12, 0x20_0040, 0, 0, 8];
    let mut image: Vec<u8> = words.iter().chain(&tags).flat_map(|word| word.to_le_bytes()).collect();
    image.resize(0x1000, 0x90);
    image
}

/// An image of each kind, without and with modules.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let images = [bz_image(), elf_image(), multiboot_image(), multiboot2_image()];
    let with = |modules: u8| images.iter().map(move |image| [&[modules], image.as_slice()].concat());
    with(0).chain(with(2)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mutated_is_valid() {
        let map = MemoryMap::new(SIZE).unwrap();
        let mut memory = Memory::new(SIZE as usize);
        let guest = linux::LinuxGuest { kernel: &bz_image(), modules: &[], cmdline: b"", rsdp: 0 };
        linux::load(&mut memory, &map, &guest).unwrap();
        let guest = pvh::PvhGuest { kernel: &elf_image(), modules: &[], cmdline: b"", rsdp: 0 };
        pvh::load(&mut memory, &map, &guest).unwrap();
        let guest = multiboot::MultibootGuest { kernel: &multiboot_image(), cmdline: b"", modules: &[] };
        multiboot::load(&mut memory, &map, &guest).unwrap();
        let guest = multiboot::MultibootGuest { kernel: &multiboot2_image(), cmdline: b"", modules: &[] };
        multiboot2::load(&mut memory, &map, &guest, b"RSD PTR ").unwrap();
    }
}
