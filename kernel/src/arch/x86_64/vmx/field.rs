//! VMCS fields (SDM appendix B): a field's type says its width and whether it can be written, so that nothing else can be
//! said. The numbers are the `x86` crate's.
use core::arch::asm;
use core::marker::PhantomData;

use moira_abi::vcpu::VcpuState;
use x86::vmx::vmcs::{control, guest, host, ro};

/// Width of a field: the type its value has.
pub trait Width: Copy + Into<u64> {
    /// Bits 13–14 of the encoding: one value, or two for the 64-bit kinds (64-bit and natural width).
    const CODES: [u32; 2];
    fn from_raw(value: u64) -> Self;
}

macro_rules! width {
    ($type:ty, $codes:expr) => {
        impl Width for $type {
            const CODES: [u32; 2] = $codes;
            #[inline(always)]
            fn from_raw(value: u64) -> Self {
                value as $type
            }
        }
    };
}
width!(u16, [0, 0]);
width!(u32, [2, 2]);
width!(u64, [1, 3]);

/// May be written.
#[derive(Clone, Copy)]
pub struct Writable;
/// Exit information.
#[derive(Clone, Copy)]
pub struct ReadOnly;

/// A field with value type `W`.
#[derive(Clone, Copy)]
pub struct Field<W, A = Writable>(u32, PhantomData<(W, A)>);

impl<W: Width, A> Field<W, A> {
    const fn checked(code: u32, access: bool) -> Field<W, A> {
        let width = code >> 13 & 3;
        assert!(width == W::CODES[0] || width == W::CODES[1]);
        assert!((code >> 10 & 3 != 1) == access);
        assert!(code & 1 == 0);
        Field(code, PhantomData)
    }

    /// The field's value in the current VMCS.
    #[inline(always)]
    pub fn read(self) -> W {
        let value: u64;
        // SAFETY: the field exists on every processor that `usable` accepts, and a VMCS is current: both make this harmless
        // (a failing VMREAD only sets flags).
        unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(self.0), options(nostack)) };
        W::from_raw(value)
    }

    /// Puts the field's value into the word at `OFFSET` of the state page.
    ///
    /// # Safety
    /// The page is there, and the word lies in it.
    #[inline(always)]
    pub unsafe fn store<const OFFSET: usize>(self, page: *mut VcpuState) {
        // SAFETY: as for `read`; VMREAD writes eight bytes whatever the field's width is.
        unsafe {
            asm!("vmread [{} + {offset}], {}", in(reg) page, in(reg) u64::from(self.0), offset = const OFFSET, options(nostack));
        }
    }
}

impl<W: Width> Field<W, Writable> {
    const fn new(code: u32) -> Self {
        Field::checked(code, true)
    }

    /// Writes the field of the current VMCS.
    #[inline(always)]
    pub fn write(self, value: W) {
        // SAFETY: as for `read`; what the value does to an entry is the vendor module's matter.
        unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(self.0), in(reg) value.into(), options(nostack)) };
    }

    /// Writes the field with the word at `OFFSET` of the state page, which is read once.
    ///
    /// # Safety
    /// As for [`Self::store`].
    #[inline(always)]
    pub unsafe fn load<const OFFSET: usize>(self, page: *mut VcpuState) {
        // SAFETY: as for `write`.
        unsafe {
            asm!("vmwrite {}, [{} + {offset}]", in(reg) u64::from(self.0), in(reg) page, offset = const OFFSET, options(nostack));
        }
    }

    /// The same field of another segment register, in the order ES CS SS DS FS GS LDTR TR.
    #[inline(always)]
    pub const fn of_segment(self, index: usize) -> Self {
        Field(self.0 + 2 * (index as u32 & 7), PhantomData)
    }
}

impl<W: Width> Field<W, ReadOnly> {
    const fn new_read_only(code: u32) -> Self {
        Field::checked(code, false)
    }
}

macro_rules! fields {
    ($($name:ident: $width:ty = $code:expr;)*) => { $(pub const $name: Field<$width> = Field::new($code);)* };
}
macro_rules! exit_fields {
    ($($name:ident: $width:ty = $code:expr;)*) => { $(pub const $name: Field<$width, ReadOnly> = Field::new_read_only($code);)* };
}

/// Writes a word of the state page from a field.
macro_rules! put_field {
    ($page:expr, $($word:ident).+ $([$index:expr])?, $field:expr) => {
        // SAFETY: `StatePage::new`'s contract; plain data.
        unsafe { $field.store::<{ offset_of!(VcpuState, $($word).+) $(+ 8 * $index)? }>($page.pointer()) }
    };
}
/// Writes a field from a word of the state page, which is read once.
macro_rules! get_field {
    ($page:expr, $($word:ident).+ $([$index:expr])?, $field:expr) => {
        // SAFETY: `StatePage::new`'s contract; plain data.
        unsafe { $field.load::<{ offset_of!(VcpuState, $($word).+) $(+ 8 * $index)? }>($page.pointer()) }
    };
}
/// Writes zero to fields.
macro_rules! zero {
    ($($field:ident)*) => { $(vmcs::$field.write(0);)* };
}
pub(super) use {get_field, put_field, zero};

fields! {
    VPID: u16 = control::VPID;
    IO_BITMAP_A: u64 = control::IO_BITMAP_A_ADDR_FULL;
    IO_BITMAP_B: u64 = control::IO_BITMAP_B_ADDR_FULL;
    MSR_BITMAPS: u64 = control::MSR_BITMAPS_ADDR_FULL;
    TSC_OFFSET: u64 = control::TSC_OFFSET_FULL;
    EPTP: u64 = control::EPTP_FULL;
    PIN_CONTROLS: u32 = control::PINBASED_EXEC_CONTROLS;
    PRIMARY_CONTROLS: u32 = control::PRIMARY_PROCBASED_EXEC_CONTROLS;
    SECONDARY_CONTROLS: u32 = control::SECONDARY_PROCBASED_EXEC_CONTROLS;
    EXCEPTION_BITMAP: u32 = control::EXCEPTION_BITMAP;
    EXIT_CONTROLS: u32 = control::VMEXIT_CONTROLS;
    ENTRY_CONTROLS: u32 = control::VMENTRY_CONTROLS;
    ENTRY_EVENT: u32 = control::VMENTRY_INTERRUPTION_INFO_FIELD;
    ENTRY_EVENT_CODE: u32 = control::VMENTRY_EXCEPTION_ERR_CODE;
    ENTRY_EVENT_LENGTH: u32 = control::VMENTRY_INSTRUCTION_LEN;
    PAGE_FAULT_MASK: u32 = control::PAGE_FAULT_ERR_CODE_MASK;
    PAGE_FAULT_MATCH: u32 = control::PAGE_FAULT_ERR_CODE_MATCH;
    CR3_TARGETS: u32 = control::CR3_TARGET_COUNT;
    EXIT_MSR_STORES: u32 = control::VMEXIT_MSR_STORE_COUNT;
    EXIT_MSR_LOADS: u32 = control::VMEXIT_MSR_LOAD_COUNT;
    ENTRY_MSR_LOADS: u32 = control::VMENTRY_MSR_LOAD_COUNT;
    CR0_MASK: u64 = control::CR0_GUEST_HOST_MASK;
    CR4_MASK: u64 = control::CR4_GUEST_HOST_MASK;
    CR0_SHADOW: u64 = control::CR0_READ_SHADOW;
    CR4_SHADOW: u64 = control::CR4_READ_SHADOW;

    GUEST_SELECTOR: u16 = guest::ES_SELECTOR;
    GUEST_LIMIT: u32 = guest::ES_LIMIT;
    GUEST_RIGHTS: u32 = guest::ES_ACCESS_RIGHTS;
    GUEST_BASE: u64 = guest::ES_BASE;
    GUEST_LINK: u64 = guest::LINK_PTR_FULL;
    GUEST_DEBUGCTL: u64 = guest::IA32_DEBUGCTL_FULL;
    GUEST_PAT: u64 = guest::IA32_PAT_FULL;
    GUEST_EFER: u64 = guest::IA32_EFER_FULL;
    GUEST_PDPTE0: u64 = guest::PDPTE0_FULL;
    GUEST_PDPTE1: u64 = guest::PDPTE1_FULL;
    GUEST_PDPTE2: u64 = guest::PDPTE2_FULL;
    GUEST_PDPTE3: u64 = guest::PDPTE3_FULL;
    GUEST_GDTR_LIMIT: u32 = guest::GDTR_LIMIT;
    GUEST_IDTR_LIMIT: u32 = guest::IDTR_LIMIT;
    GUEST_INTERRUPTIBILITY: u32 = guest::INTERRUPTIBILITY_STATE;
    GUEST_ACTIVITY: u32 = guest::ACTIVITY_STATE;
    GUEST_SYSENTER_CS: u32 = guest::IA32_SYSENTER_CS;
    PREEMPTION_TIMER: u32 = guest::VMX_PREEMPTION_TIMER_VALUE;
    GUEST_CR0: u64 = guest::CR0;
    GUEST_CR3: u64 = guest::CR3;
    GUEST_CR4: u64 = guest::CR4;
    GUEST_GDTR_BASE: u64 = guest::GDTR_BASE;
    GUEST_IDTR_BASE: u64 = guest::IDTR_BASE;
    GUEST_DR7: u64 = guest::DR7;
    GUEST_RSP: u64 = guest::RSP;
    GUEST_RIP: u64 = guest::RIP;
    GUEST_RFLAGS: u64 = guest::RFLAGS;
    GUEST_PENDING_DEBUG: u64 = guest::PENDING_DBG_EXCEPTIONS;
    GUEST_SYSENTER_ESP: u64 = guest::IA32_SYSENTER_ESP;
    GUEST_SYSENTER_EIP: u64 = guest::IA32_SYSENTER_EIP;

    HOST_ES: u16 = host::ES_SELECTOR;
    HOST_DS: u16 = host::DS_SELECTOR;
    HOST_FS: u16 = host::FS_SELECTOR;
    HOST_GS: u16 = host::GS_SELECTOR;
    HOST_FS_BASE: u64 = host::FS_BASE;
    HOST_SYSENTER_CS: u32 = host::IA32_SYSENTER_CS;
    HOST_SYSENTER_ESP: u64 = host::IA32_SYSENTER_ESP;
    HOST_SYSENTER_EIP: u64 = host::IA32_SYSENTER_EIP;
    HOST_CS: u16 = host::CS_SELECTOR;
    HOST_SS: u16 = host::SS_SELECTOR;
    HOST_TR: u16 = host::TR_SELECTOR;
    HOST_PAT: u64 = host::IA32_PAT_FULL;
    HOST_EFER: u64 = host::IA32_EFER_FULL;
    HOST_CR0: u64 = host::CR0;
    HOST_CR3: u64 = host::CR3;
    HOST_CR4: u64 = host::CR4;
    HOST_GS_BASE: u64 = host::GS_BASE;
    HOST_TR_BASE: u64 = host::TR_BASE;
    HOST_GDTR_BASE: u64 = host::GDTR_BASE;
    HOST_IDTR_BASE: u64 = host::IDTR_BASE;
}

exit_fields! {
    GUEST_PHYSICAL: u64 = ro::GUEST_PHYSICAL_ADDR_FULL;
    INSTRUCTION_ERROR: u32 = ro::VM_INSTRUCTION_ERROR;
    EXIT_EVENT: u32 = ro::VMEXIT_INTERRUPTION_INFO;
    EXIT_EVENT_CODE: u32 = ro::VMEXIT_INTERRUPTION_ERR_CODE;
    VECTORING: u32 = ro::IDT_VECTORING_INFO;
    VECTORING_CODE: u32 = ro::IDT_VECTORING_ERR_CODE;
    INSTRUCTION_LENGTH: u32 = ro::VMEXIT_INSTRUCTION_LEN;
    QUALIFICATION: u64 = ro::EXIT_QUALIFICATION;
    GUEST_LINEAR: u64 = ro::GUEST_LINEAR_ADDR;
}
