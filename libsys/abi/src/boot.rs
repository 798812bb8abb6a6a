//! What the root task finds when it starts: [`BootInfo`] at the address in `rdi`, read-only.

/// First word of a [`BootInfo`]: `"MOIRAB01"`, little-endian.
pub const BOOT_MAGIC: u64 = u64::from_le_bytes(*b"MOIRAB01");

/// Slots of the root task's capability table that the kernel filled.
pub mod slot {
    /// The root task's own capability table.
    pub const TABLE: u32 = 2;
    /// Its address space.
    pub const SPACE: u32 = 3;
    /// Its thread.
    pub const THREAD: u32 = 4;
    /// Its scheduling context.
    pub const CONTEXT: u32 = 5;
    /// The boot processor, with all rights.
    pub const CPU: u32 = 6;
    /// The machine.
    pub const PLATFORM: u32 = 7;
    /// First of the untyped memories, [`BootInfo::untyped_count`](super::BootInfo::untyped_count) of them.
    pub const UNTYPED: u32 = 16;
}

/// Most untyped memories at boot.
pub const MAX_UNTYPED: usize = 160;
/// Longest command line handed on, in bytes.
pub const MAX_COMMAND_LINE: usize = 512;

/// What an untyped memory holds at boot.
pub mod untyped_kind {
    /// Ordinary memory that has not been zeroed: only `Untyped` can be made from it until `revoke` has zeroed it.
    pub const DIRTY: u32 = 0;
    /// Ordinary memory, zero.
    pub const CLEAN: u32 = 1;
    /// The initrd: `Frame`s made from it hold its contents.
    pub const CONTENT: u32 = 2;
}

/// One untyped memory.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct BootUntyped {
    /// Physical address, a multiple of its size.
    pub address: u64,
    /// log2 of its size in bytes.
    pub size_bits: u32,
    /// [`untyped_kind`].
    pub kind: u32,
}

/// The virtualization that the kernel found and switched on.
pub mod virtualization {
    /// None; VMs cannot be made.
    pub const NONE: u32 = 0;
    /// Intel VT-x with EPT and unrestricted guest.
    pub const VMX: u32 = 1;
    /// AMD SVM with nested paging.
    pub const SVM: u32 = 2;
}

/// The boot-information page (two pages: 8 KiB).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct BootInfo {
    /// [`BOOT_MAGIC`].
    pub magic: u64,
    /// TSC ticks per second, checked against the PIT.
    pub tsc_hz: u64,
    /// Physical address of the ACPI root pointer as the loader gave it; 0 if unknown.
    pub rsdp: u64,
    /// A copy of the root pointer (ACPI 5.2.5.3): its first 36 bytes; zeroes if unknown.
    pub rsdp_copy: [u8; 40],
    /// Virtual address at which the initrd is mapped, read-only.
    pub initrd_address: u64,
    /// Its physical address (a multiple of 4096).
    pub initrd_physical: u64,
    /// Its length in bytes.
    pub initrd_length: u64,
    /// Virtual address of the message buffer.
    pub message_buffer: u64,
    /// First free virtual address above everything the kernel mapped.
    pub free_address: u64,
    /// First empty slot.
    pub free_slot: u32,
    /// Slots of the table.
    pub slot_count: u32,
    /// APIC id of the boot processor.
    pub boot_apic_id: u32,
    /// [`virtualization`].
    pub virtualization: u32,
    /// TSC at kernel entry.
    pub boot_tsc: u64,
    /// XCR0 bits the kernel can save for guests.
    pub guest_xcr0: u64,
    /// Number of untyped memories.
    pub untyped_count: u32,
    /// Bytes of the command line.
    pub command_line_length: u32,
    /// The command line.
    pub command_line: [u8; MAX_COMMAND_LINE],
    /// The untyped memories; number `i` is in slot `slot::UNTYPED + i`.
    pub untyped: [BootUntyped; MAX_UNTYPED],
}
