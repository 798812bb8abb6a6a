//! Loading ELF images at their physical addresses.

use super::Range;
use crate::memory_map::MemoryMap;
use crate::{GuestRam, OutOfRange, fill_zero, layout};
use elf::endian::LittleEndian;
use elf::file::Class;
use elf::note::Note;
use elf::{ElfBytes, abi};

/// No real image has more; a program header table is walked three times, so it is bounded.
const MAX_SEGMENTS: usize = 64;
const XEN_ELFNOTE_PHYS32_ENTRY: u64 = 18;

/// Why an ELF image cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElfError {
    /// Not a little-endian ELF file, or one whose tables lie outside it.
    NotElf,
    /// Neither an executable nor position independent, or not for this processor.
    WrongKind {
        /// `e_type`.
        kind: u16,
        /// `e_machine`.
        machine: u16,
    },
    /// A 64-bit image is needed.
    Not64Bit,
    /// Nothing to load.
    NoSegments,
    /// More program headers than any real image has.
    TooManySegments {
        /// How many.
        count: usize,
    },
    /// A segment's bytes lie outside the file, or it has more of them than memory.
    SegmentOutsideFile {
        /// Index of the program header.
        index: usize,
    },
    /// A segment does not fit into the RAM below the PCI hole, or reaches into what the loader needs below 1 MiB.
    SegmentDoesNotFit {
        /// Index of the program header.
        index: usize,
        /// Its physical address.
        address: u64,
        /// Its size in memory.
        size: u64,
    },
    /// Two segments share addresses.
    SegmentsOverlap {
        /// Index of the later program header.
        index: usize,
    },
    /// The entry point lies in no segment.
    EntryOutside {
        /// The entry point.
        entry: u64,
    },
    /// No XEN_ELFNOTE_PHYS32_ENTRY note: not a PVH kernel.
    NoPvhNote,
    /// A module, command line or table does not fit into RAM beside the image.
    NoRoom {
        /// Bytes that found no place.
        size: u64,
    },
    /// More modules, or longer command lines of modules, than the start information has room for.
    TooManyModules,
    /// The command line is longer than the room for it.
    CmdlineTooLong {
        /// Its length.
        len: usize,
    },
    /// RAM is smaller than the memory map says.
    Ram(OutOfRange),
}

impl From<OutOfRange> for ElfError {
    fn from(e: OutOfRange) -> Self {
        Self::Ram(e)
    }
}

/// A parsed image. Nothing of it has been trusted but that its tables lie inside the file.
pub struct Image<'a> {
    file: ElfBytes<'a, LittleEndian>,
}

impl<'a> Image<'a> {
    /// Parses `bytes` as an executable for x86.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, ElfError> {
        let file = ElfBytes::<LittleEndian>::minimal_parse(bytes).map_err(|_| ElfError::NotElf)?;
        let (kind, machine) = (file.ehdr.e_type, file.ehdr.e_machine);
        let machine_fits = match file.ehdr.class {
            Class::ELF64 => machine == abi::EM_X86_64,
            Class::ELF32 => machine == abi::EM_386,
        };
        if !machine_fits || (kind != abi::ET_EXEC && kind != abi::ET_DYN) {
            return Err(ElfError::WrongKind { kind, machine });
        }
        let count = file.segments().map_or(0, |s| s.len());
        if count > MAX_SEGMENTS {
            return Err(ElfError::TooManySegments { count });
        }
        Ok(Self { file })
    }

    /// Whether it is a 64-bit image.
    pub fn is_64(&self) -> bool {
        self.file.ehdr.class == Class::ELF64
    }

    /// Its entry point.
    pub fn entry(&self) -> u64 {
        self.file.ehdr.e_entry
    }

    /// The entry point as a physical address: kernels that are linked high name it by its virtual one.
    pub fn physical_entry(&self) -> u64 {
        let entry = self.entry();
        let mut segments = self.file.segments().into_iter().flat_map(|segments| segments.iter());
        let holds = |start: u64, size: u64| entry >= start && entry - start < size;
        let around = segments.find(|s| s.p_type == abi::PT_LOAD && holds(s.p_vaddr, s.p_memsz));
        around.map_or(entry, |s| s.p_paddr.wrapping_add(entry - s.p_vaddr))
    }

    /// The physical entry point of a PVH kernel, from its note.
    pub fn pvh_entry(&self) -> Result<u32, ElfError> {
        let segments = self.file.segments().ok_or(ElfError::NoPvhNote)?;
        for segment in segments.iter().filter(|s| s.p_type == abi::PT_NOTE) {
            let Ok(notes) = self.file.segment_data_as_notes(&segment) else { continue };
            // Each note takes at least twelve bytes of the file, so this ends.
            for note in notes {
                if let Note::Unknown(note) = note
                    && note.n_type == XEN_ELFNOTE_PHYS32_ENTRY
                    && note.name.strip_suffix(b"\0").unwrap_or(note.name) == b"Xen"
                    && let Some(entry) = note.desc.first_chunk::<4>()
                {
                    return Ok(u32::from_le_bytes(*entry));
                }
            }
        }
        Err(ElfError::NoPvhNote)
    }

    /// Writes the loadable segments to their physical addresses and returns the range they span.
    ///
    /// Segments must lie above 1 MiB in low RAM, or below it where the loader puts nothing, and be disjoint, so the work is
    /// bounded by RAM.
    pub fn load(&self, ram: &mut dyn GuestRam, map: &MemoryMap) -> Result<Range, ElfError> {
        let mut placed = [(0u64, 0u64); MAX_SEGMENTS];
        let mut count = 0;
        let mut span: Option<Range> = None;
        let segments = self.file.segments().ok_or(ElfError::NoSegments)?;
        for (index, segment) in segments.iter().enumerate() {
            if segment.p_type != abi::PT_LOAD || segment.p_memsz == 0 {
                continue;
            }
            let (address, size) = (segment.p_paddr, segment.p_memsz);
            let data = self.file.segment_data(&segment).map_err(|_| ElfError::SegmentOutsideFile { index })?;
            if data.len() as u64 > size {
                return Err(ElfError::SegmentOutsideFile { index });
            }
            let fits = address.checked_add(size).filter(|&end| map.is_loadable(&(address..end)));
            let Some(end) = fits else {
                return Err(ElfError::SegmentDoesNotFit { index, address, size });
            };
            if placed.iter().take(count).any(|&(from, to)| address < to && from < end) {
                return Err(ElfError::SegmentsOverlap { index });
            }
            if let Some(slot) = placed.get_mut(count) {
                *slot = (address, end);
                count += 1;
            }
            ram.write(address, data)?;
            fill_zero(ram, address + data.len() as u64, size - data.len() as u64)?;
            let old = span.unwrap_or(address..end);
            span = Some(old.start.min(address)..old.end.max(end));
        }
        span.ok_or(ElfError::NoSegments)
    }
}

/// Writes `cmdline` with its terminating zero to the loader's place for it.
pub fn write_cmdline(ram: &mut dyn GuestRam, cmdline: &[u8]) -> Result<(), ElfError> {
    if cmdline.len() as u64 >= layout::BOOT_CMDLINE_MAX {
        return Err(ElfError::CmdlineTooLong { len: cmdline.len() });
    }
    ram.write(layout::BOOT_CMDLINE, cmdline)?;
    ram.write(layout::BOOT_CMDLINE + cmdline.len() as u64, &[0])?;
    Ok(())
}
