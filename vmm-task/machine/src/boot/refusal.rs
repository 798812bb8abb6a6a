//! Why a kernel is refused, in words for whoever brought it.

use super::elf_image::ElfError;
use super::linux::LinuxError;
use super::multiboot::MultibootError;
use core::fmt;

impl fmt::Display for ElfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            ElfError::NotElf => f.write_str("it is no little-endian ELF file, or its tables lie outside of it"),
            ElfError::WrongKind { kind, machine } => {
                write!(f, "it is of type {kind} for machine {machine}, and no program for x86 (EM_386 or EM_X86_64)")
            }
            ElfError::Not64Bit => f.write_str("it is a 32-bit image, and a 64-bit one is needed"),
            ElfError::NoSegments => f.write_str("it has nothing to load"),
            ElfError::TooManySegments { count } => write!(f, "it has {count} program headers, more than are looked at"),
            ElfError::SegmentOutsideFile { index } => {
                write!(f, "segment {index} lies outside of the file, or has more bytes there than in memory")
            }
            ElfError::SegmentDoesNotFit { index, address, size } => {
                write!(f, "segment {index}, {size:#x} bytes at {address:#x}, does not fit into the guest's memory")
            }
            ElfError::SegmentsOverlap { index } => write!(f, "segment {index} overlaps another one"),
            ElfError::EntryOutside { entry } => write!(f, "its entry point {entry:#x} lies in no segment"),
            ElfError::NoPvhNote => f.write_str("it has no PVH note"),
            ElfError::NoRoom { size } => {
                write!(f, "{size} bytes of modules, command line or tables find no room beside it")
            }
            ElfError::TooManyModules => {
                f.write_str("there are more modules, or longer command lines of them, than have room")
            }
            ElfError::CmdlineTooLong { len } => write!(f, "a command line of {len} bytes is too long"),
            ElfError::Ram(range) => write!(f, "the guest's memory ends before {:#x}", range.gpa),
        }
    }
}

impl fmt::Display for MultibootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            MultibootError::NoHeader => f.write_str("it has no header with a right checksum"),
            MultibootError::Demands { flags } => {
                write!(f, "its header demands what there is not (flags or tag {flags:#x})")
            }
            MultibootError::BadAddresses => f.write_str("its header's addresses contradict each other or the file"),
            MultibootError::WrongMachine { architecture } => {
                write!(f, "its header is for architecture {architecture}, not for 32-bit protected mode of a PC")
            }
            MultibootError::DoesNotFit { address, size } => {
                write!(f, "{size:#x} bytes at {address:#x} do not fit into the guest's memory")
            }
            MultibootError::TooManyModules => ElfError::TooManyModules.fmt(f),
            MultibootError::Elf(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for LinuxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            LinuxError::TooShort { len } => write!(f, "its {len} bytes end within the setup header"),
            LinuxError::NoBootFlag { found } => write!(f, "{found:#x} stands at 1FEh instead of AA55h"),
            LinuxError::NoMagic { found } => write!(f, "{found:#x} stands at 202h instead of `HdrS`"),
            LinuxError::OldProtocol { version } => {
                write!(f, "boot protocol {}.{:02} is older than 2.10", version >> 8, version & 0xff)
            }
            LinuxError::HeaderLength { end } => write!(f, "its setup header would end at {end:#x}, beyond its room"),
            LinuxError::NotLoadedHigh => f.write_str("it is a zImage, which loads below 1 MiB"),
            LinuxError::Truncated { needed, len } => {
                write!(f, "its header promises {needed} bytes, and there are {len}")
            }
            LinuxError::NoPayload => f.write_str("its header promises no payload"),
            LinuxError::BadAlignment { alignment } => write!(f, "its alignment {alignment:#x} is no power of two"),
            LinuxError::LoadsTooLow { address } => write!(f, "it wants to lie at {address:#x}, below 1 MiB"),
            LinuxError::KernelDoesNotFit { address, needed, ram_end } => {
                write!(
                    f,
                    "it needs {needed:#x} bytes from {address:#x} on, and the guest's memory ends at {ram_end:#x}"
                )
            }
            LinuxError::InitrdDoesNotFit { size, limit } => {
                write!(f, "there is no room for a RAM disk of {size} bytes below {limit:#x}")
            }
            LinuxError::CmdlineTooLong { len, max } => write!(f, "a command line of {len} bytes is longer than {max}"),
            LinuxError::CmdlineHasZero => f.write_str("there is a zero byte in the command line"),
            LinuxError::Ram(range) => write!(f, "the guest's memory ends before {:#x}", range.gpa),
        }
    }
}
