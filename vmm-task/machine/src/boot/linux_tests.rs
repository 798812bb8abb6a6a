//! Tests of the bzImage loader, hostile images included.

use super::*;
use crate::test_ram::TestRam;
use proptest::prelude::*;
use std::vec::Vec;

const SETUP_SECTORS: usize = 3;
const PAYLOAD: usize = 0x4000;

macro_rules! set {
    ($image:expr, $field:ident, $value:expr) => {
        put_at($image, HEADER + offset_of!(SetupHeader, $field), &$value.to_le_bytes())
    };
}

/// A kernel image that is right in every field.
fn image() -> Vec<u8> {
    let mut image = vec![0u8; (SETUP_SECTORS + 1) * SECTOR + PAYLOAD];
    for (i, byte) in image[(SETUP_SECTORS + 1) * SECTOR..].iter_mut().enumerate() {
        *byte = i as u8 ^ (i >> 8) as u8;
    }
    let i = image.as_mut_slice();
    set!(i, setup_sects, SETUP_SECTORS as u8);
    set!(i, syssize, (PAYLOAD / 16) as u32);
    set!(i, boot_flag, BOOT_FLAG);
    set!(i, jump, 0x6AEBu16);
    set!(i, header, LINUX_BOOT_HEADER_MAGIC);
    set!(i, version, 0x020Fu16);
    set!(i, loadflags, LOADED_HIGH);
    set!(i, initrd_addr_max, 0x7FFF_FFFFu32);
    set!(i, kernel_alignment, 0x20_0000u32);
    set!(i, relocatable_kernel, 1u8);
    set!(i, xloadflags, 0x3Fu16);
    set!(i, cmdline_size, 2047u32);
    set!(i, pref_address, 0x100_0000u64);
    set!(i, init_size, 0x100_0000u32);
    set!(i, code32_start, 0x10_0000u32);
    image
}

fn guest(kernel: &[u8]) -> LinuxGuest<'_> {
    LinuxGuest { kernel, modules: &[], cmdline: b"console=ttyS0", rsdp: layout::BIOS_BASE }
}

fn initrd_of(bytes: &[u8]) -> Module<'_> {
    Module { bytes, cmdline: b"" }
}

fn boot(guest: &LinuxGuest, ram: u64) -> Result<(InitialState, TestRam), LinuxError> {
    let map = MemoryMap::new(ram).unwrap();
    let mut memory = TestRam::new(ram);
    load(&mut memory, &map, guest).map(|state| (state, memory))
}

#[test]
fn good_image_is_placed_and_entered_in_64_bit_mode() {
    let kernel = image();
    let initrd = vec![0xA5u8; 5000];
    let (state, ram) = boot(&LinuxGuest { modules: &[initrd_of(&initrd)], ..guest(&kernel) }, 128 << 20).unwrap();
    assert_eq!(state.rip, 0x100_0200);
    assert_eq!(state.gprs[state::RSI], layout::BOOT_INFO);
    assert_eq!(state.rflags, 2, "interrupts off, direction up");
    assert_eq!((state.cs.selector, state.ds.selector), (0x10, 0x18));
    assert_eq!(state.cr0 & 0x8000_0001, 0x8000_0001);
    assert_eq!(state.efer, 0x500);
    assert_eq!(ram.bytes(0x100_0000, PAYLOAD), kernel[(SETUP_SECTORS + 1) * SECTOR..]);
    assert_eq!(ram.bytes(layout::BOOT_CMDLINE, 14), b"console=ttyS0\0");

    let params = ram.bytes(layout::BOOT_INFO, 4096);
    let end = 0x202 + 0x6A;
    assert!(params[..HEADER].iter().enumerate().all(|(i, &b)| b == 0 || (0x70..0x78).contains(&i) || i == 0x1E8));
    assert!(params[end..HEADER_LIMIT].iter().all(|&b| b == 0), "zero past the header");
    assert_eq!(ram.u64(layout::BOOT_INFO + 0x70), layout::BIOS_BASE);
    assert_eq!(params[0x1E8], 7);
    assert_eq!(ram.u64(layout::BOOT_INFO + 0x2D0 + 8), layout::EBDA_BASE);
    assert_eq!(params[0x210], 0xFF);
    let base = u64::from(ram.u32(layout::BOOT_INFO + 0x218));
    assert_eq!(ram.u32(layout::BOOT_INFO + 0x21C), 5000);
    assert_eq!(base % 4096, 0);
    assert_eq!(base, (128 << 20) - 8192, "as high as it goes");
    assert_eq!(ram.bytes(base, 5000), initrd);
}

#[test]
fn kernels_without_a_64_bit_entry_start_in_protected_mode() {
    let mut kernel = image();
    set!(&mut kernel, xloadflags, 0x3Eu16);
    let (state, ram) = boot(&guest(&kernel), 128 << 20).unwrap();
    assert_eq!((state.rip, state.gprs[state::RSI]), (0x100_0000, layout::BOOT_INFO));
    assert_eq!((state.cr0 & 0x8000_0001, state.efer, state.cr4), (1, 0, 0));
    assert_eq!((state.cs.selector, state.cs.access, state.ds.selector), (0x10, 0xC09B, 0x18));
    assert_eq!(ram.u64(layout::BOOT_GDT + 0x10), 0x00CF_9B00_0000_FFFF, "the selector's descriptor is the same");
    set!(&mut kernel, xloadflags, 0x3Fu16);
    set!(&mut kernel, version, 0x020Au16);
    assert_eq!(boot(&guest(&kernel), 128 << 20).unwrap().0.efer, 0, "the flag is none before 2.12");
}

#[test]
fn several_initrds_become_one() {
    let kernel = image();
    let modules = [initrd_of(&[1; 5]), initrd_of(&[2; 3])];
    let (_, ram) = boot(&LinuxGuest { modules: &modules, ..guest(&kernel) }, 128 << 20).unwrap();
    let base = u64::from(ram.u32(layout::BOOT_INFO + 0x218));
    assert_eq!(ram.u32(layout::BOOT_INFO + 0x21C), 12);
    assert_eq!(ram.bytes(base, 12), [1, 1, 1, 1, 1, 0, 0, 0, 2, 2, 2, 0]);
}

#[test]
fn initrd_goes_below_a_kernel_that_sits_at_the_top() {
    let mut kernel = image();
    set!(&mut kernel, pref_address, 0x300_0000u64);
    let initrd = vec![1u8; 3 << 20];
    let (_, ram) =
        boot(&LinuxGuest { modules: &[initrd_of(&initrd)], ..guest(&kernel) }, 0x400_0000 + 0x10_0000).unwrap();
    let base = u64::from(ram.u32(layout::BOOT_INFO + 0x218));
    assert!(base + (3 << 20) <= 0x300_0000);
}

#[test]
fn initrd_respects_the_kernels_limit() {
    let mut kernel = image();
    set!(&mut kernel, initrd_addr_max, 0x37FF_FFFFu32);
    let initrd = vec![1u8; 4096];
    let (_, ram) = boot(&LinuxGuest { modules: &[initrd_of(&initrd)], ..guest(&kernel) }, 2 << 30).unwrap();
    assert_eq!(ram.u32(layout::BOOT_INFO + 0x218), 0x3800_0000 - 4096);
}

#[test]
fn each_wrong_field_has_its_error() {
    fn with(change: impl FnOnce(&mut Vec<u8>)) -> LinuxError {
        let mut kernel = image();
        change(&mut kernel);
        boot(&guest(&kernel), 128 << 20).map(|_| ()).expect_err("a wrong field was accepted")
    }
    assert_eq!(with(|i| i.truncate(0x200)), LinuxError::TooShort { len: 0x200 });
    assert_eq!(with(|i| set!(i, boot_flag, 0u16)), LinuxError::NoBootFlag { found: 0 });
    assert_eq!(with(|i| set!(i, header, 1u32)), LinuxError::NoMagic { found: 1 });
    assert_eq!(with(|i| set!(i, version, 0x0209u16)), LinuxError::OldProtocol { version: 0x209 });
    assert_eq!(with(|i| set!(i, jump, 0xFFEBu16)), LinuxError::HeaderLength { end: 0x301 });
    assert_eq!(with(|i| set!(i, jump, 0x00EBu16)), LinuxError::HeaderLength { end: 0x202 });
    assert_eq!(with(|i| set!(i, loadflags, 0u8)), LinuxError::NotLoadedHigh);
    assert_eq!(with(|i| set!(i, kernel_alignment, 0u32)), LinuxError::BadAlignment { alignment: 0 });
    assert_eq!(with(|i| set!(i, syssize, 0u32)), LinuxError::NoPayload);
    assert!(matches!(with(|i| set!(i, syssize, u32::MAX)), LinuxError::Truncated { .. }));
    assert!(matches!(with(|i| set!(i, setup_sects, 255u8)), LinuxError::Truncated { .. }));
    assert!(matches!(with(|i| set!(i, init_size, u32::MAX)), LinuxError::KernelDoesNotFit { .. }));
    assert!(matches!(with(|i| set!(i, pref_address, u64::MAX)), LinuxError::KernelDoesNotFit { .. }));
    assert!(matches!(
        with(|i| {
            set!(i, pref_address, 0x1000u64);
            set!(i, relocatable_kernel, 0u8);
        }),
        LinuxError::LoadsTooLow { address: 0x1000 }
    ));
    assert_eq!(with(|i| set!(i, cmdline_size, 4u32)), LinuxError::CmdlineTooLong { len: 13, max: 4 });
}

#[test]
fn guest_side_mistakes_have_errors() {
    let kernel = image();
    let initrd = vec![0u8; 200 << 20];
    assert_eq!(
        boot(&LinuxGuest { modules: &[initrd_of(&initrd)], ..guest(&kernel) }, 128 << 20).map(|_| ()).unwrap_err(),
        LinuxError::InitrdDoesNotFit { size: 200 << 20, limit: 128 << 20 }
    );
    assert_eq!(
        boot(&LinuxGuest { cmdline: b"a\0b", ..guest(&kernel) }, 128 << 20).map(|_| ()).unwrap_err(),
        LinuxError::CmdlineHasZero
    );
    assert!(matches!(boot(&guest(&kernel), 16 << 20).map(|_| ()), Err(LinuxError::KernelDoesNotFit { .. })));
}

proptest! {
    /// Whatever bytes the header holds, loading ends in a state or an error, and writes nothing outside RAM.
    #[test]
    fn hostile_headers_never_panic(changes in prop::collection::vec((0x1F1usize..0x290, any::<u8>()), 0..12),
                                   ram in 1u64..64, cut in prop::option::of(0usize..0x5000)) {
        let mut kernel = image();
        for (at, byte) in changes {
            kernel[at] = byte;
        }
        if let Some(cut) = cut {
            kernel.truncate(cut);
        }
        let initrd = vec![7u8; 100_000];
        let guest = LinuxGuest { modules: &[initrd_of(&initrd)], ..guest(&kernel) };
        if let Ok((state, _)) = boot(&guest, ram * (2 << 20)) {
            prop_assert!(state.rip >= layout::ONE_MIB && state.rip < ram * (2 << 20));
        }
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        prop_assert!(boot(&guest(&bytes), 64 << 20).is_err());
    }
}
