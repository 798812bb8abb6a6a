//! What the loader left: PVH start information or Multiboot2 information. Everything is copied before the memory is reused;
//! what a loader wrote is bounded, never trusted to be well-formed.

use super::{Early, RANGES};
use crate::memory::Page;
use heapless::{String, Vec};
use moira_abi::boot::MAX_COMMAND_LINE;

/// A range of physical memory, `[start, end)`.
#[derive(Clone, Copy, Default)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Byte after the last.
    pub end: u64,
}

/// What was found.
#[derive(Default)]
pub struct Loaded {
    /// Usable memory, page-aligned, above 1 MiB.
    pub ranges: Vec<Range, RANGES>,
    /// The command line.
    pub command_line: String<MAX_COMMAND_LINE>,
    /// The module.
    pub initrd: Range,
    /// ACPI root pointer, or 0.
    pub rsdp: u64,
    /// Its bytes, as far as it can be read.
    pub rsdp_bytes: Vec<u8, 36>,
}

const PVH_MAGIC: u64 = 0x336e_c578;
const MULTIBOOT2_MAGIC: u32 = 0x36d7_6289;
/// Memory beyond this is not used: the direct map has room for it, capabilities name 46 bits.
const TOP: u64 = 1 << 45;

impl Loaded {
    fn add(&mut self, start: u64, length: u64) {
        let end = start.saturating_add(length).min(TOP) & !4095;
        let start = start.max(0x10_0000).saturating_add(4095) & !4095;
        if start < end {
            // There may be more than there is room for: those are not used.
            let _ = self.ranges.push(Range { start, end });
        }
    }

    fn set_command_line(&mut self, address: u64, most: usize) {
        let bytes = Page(address).bytes(most.min(MAX_COMMAND_LINE));
        let line = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        self.command_line.clear();
        let _ = self.command_line.push_str(core::str::from_utf8(line).unwrap_or_default());
    }
}

fn u32_at(address: u64) -> u32 {
    (Page(address & !7).read(0) >> ((address & 4) * 8)) as u32
}

fn u64_at(address: u64) -> u64 {
    u32_at(address) as u64 | (u32_at(address + 4) as u64) << 32
}

/// Reads either kind.
pub fn read(magic: u32, info: u64) -> Result<Loaded, &'static str> {
    // The boot tables map the first 4 GiB.
    if info == 0 || info >= 1 << 32 {
        return Err("the loader left no information");
    }
    let mut loaded = if magic == MULTIBOOT2_MAGIC { multiboot2(info) } else { pvh(info) }?;
    if loaded.rsdp != 0 && loaded.rsdp < 1 << 32 {
        let _ = loaded.rsdp_bytes.extend_from_slice(Page(loaded.rsdp).bytes(36));
    }
    if loaded.ranges.is_empty() {
        return Err("the loader gave no memory map");
    }
    if loaded.initrd.start >= loaded.initrd.end {
        return Err("no module: give the system image as initrd (QEMU -initrd, GRUB module2)");
    }
    if loaded.initrd.end > 1 << 32 {
        return Err("the module lies above 4 GiB");
    }
    Ok(loaded)
}

/// PVH: `hvm_start_info` (Xen's documentation, "x86/HVM direct boot ABI").
fn pvh(info: u64) -> Result<Loaded, &'static str> {
    if u32_at(info) as u64 != PVH_MAGIC {
        return Err("not started by a PVH or Multiboot2 loader");
    }
    let (version, modules) = (u32_at(info + 4), u32_at(info + 12));
    let (module_list, command_line) = (u64_at(info + 16), u64_at(info + 24));
    let mut loaded = Loaded { rsdp: u64_at(info + 32), ..Loaded::default() };
    if version < 1 {
        return Err("the PVH loader gave no memory map (version 0)");
    }
    let (map, entries) = (u64_at(info + 40), u32_at(info + 48).min(256));
    for i in 0..entries as u64 {
        let at = map + i * 24;
        if u32_at(at + 16) == 1 {
            loaded.add(u64_at(at), u64_at(at + 8));
        }
    }
    if modules > 0 {
        let start = u64_at(module_list);
        loaded.initrd = Range { start, end: start.saturating_add(u64_at(module_list + 8)) };
    }
    if command_line != 0 {
        loaded.set_command_line(command_line, MAX_COMMAND_LINE);
    }
    Ok(loaded)
}

/// Multiboot2 information (specification 2.0, section 3).
fn multiboot2(info: u64) -> Result<Loaded, &'static str> {
    let mut loaded = Loaded::default();
    let end = info + u32_at(info).min(1 << 20) as u64;
    let mut at = info + 8;
    while at + 8 <= end {
        let (kind, size) = (u32_at(at), u32_at(at + 4) as u64);
        if kind == 0 || size < 8 {
            break;
        }
        match kind {
            1 => loaded.set_command_line(at + 8, size as usize - 8),
            3 if loaded.initrd.end == 0 => {
                loaded.initrd = Range { start: u32_at(at + 8) as u64, end: u32_at(at + 12) as u64 }
            }
            6 => {
                let entry = (u32_at(at + 8) as u64).max(24);
                let mut place = at + 16;
                while place + 24 <= at + size {
                    if u32_at(place + 16) == 1 {
                        loaded.add(u64_at(place), u64_at(place + 8));
                    }
                    place += entry;
                }
            }
            // The tag holds a copy of the root pointer; the newer kind is preferred.
            14 | 15 if loaded.rsdp == 0 || kind == 15 => loaded.rsdp = at + 8,
            _ => {}
        }
        at += (size + 7) & !7;
    }
    Ok(loaded)
}

/// The value of `name=value` on the command line.
pub fn option<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
}

impl Range {
    /// The pieces of it, in whole pages, that are free of obstacles.
    pub fn free_of<const N: usize>(self, mut obstacles: [Range; N], mut piece: impl FnMut(Range)) {
        obstacles.sort_unstable_by_key(|obstacle| obstacle.start);
        let mut start = self.start;
        for obstacle in obstacles.into_iter().chain([Range { start: self.end, end: self.end }]) {
            let end = obstacle.start.min(self.end) & !4095;
            if start < end {
                piece(Range { start, end });
            }
            start = start.max((obstacle.end + 4095) & !4095);
        }
    }
}

/// Memory for what the kernel makes at boot: the largest piece below 4 GiB free of image and initrd.
pub fn early_memory(loaded: &Loaded, image: Range) -> Early {
    let mut best = Range::default();
    for range in &loaded.ranges {
        Range { start: range.start, end: range.end.min(1 << 32) }.free_of([image, loaded.initrd], |piece| {
            if piece.end - piece.start > best.end - best.start {
                best = piece;
            }
        });
    }
    Early { next: best.start, end: best.end }
}
