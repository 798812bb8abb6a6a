//! Physical memory as the kernel sees it, and pointers to kernel objects.
//!
//! All memory is mapped at [`DIRECT_MAP`]. An [`Obj`] points to an object there. Objects are made by `retype`, die only by
//! `revoke`, and their memory is reused only after a grace period (`docs/architecture/memory.md`), so an `Obj` taken
//! from a capability or from another object's link stays good until this CPU leaves the kernel. Objects hold their mutable
//! state in `Cell`s and atomics: cells belong to the object's home CPU, or to the holder of the structural lock while
//! the object is inactive.

use core::{marker::PhantomData, ops::Deref, ptr::NonNull};
use moira_abi::ObjectType;
use moira_kernel_core::capword::CapWord;

/// Virtual address at which physical address 0 appears.
pub const DIRECT_MAP: u64 = 0xffff_8000_0000_0000;
/// Virtual minus physical address of the kernel's image.
pub const KERNEL_BASE: u64 = 0xffff_ffff_8000_0000;

/// Something that a capability can name and that lies in memory of its own.
pub trait Object {
    /// Its type.
    const KIND: ObjectType;
}

/// A pointer to a kernel object in the direct map.
#[repr(transparent)]
pub struct Obj<T>(NonNull<T>, PhantomData<*const T>);

impl<T> Clone for Obj<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Obj<T> {}
impl<T> PartialEq for Obj<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl<T> Obj<T> {
    /// The object at a physical address.
    ///
    /// # Safety
    /// A live `T` (or zeroed memory that is becoming one, for types whose zero pattern is valid: all kernel objects) is there.
    #[inline(always)]
    pub unsafe fn at(physical: u64) -> Obj<T> {
        // SAFETY: the direct map is never at address 0.
        Obj(unsafe { NonNull::new_unchecked((DIRECT_MAP | physical) as *mut T) }, PhantomData)
    }

    /// Virtual address.
    #[inline(always)]
    pub fn address(self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// Physical address.
    #[inline(always)]
    pub fn physical(self) -> u64 {
        self.address() & !DIRECT_MAP
    }

    /// A pointer that names this object, for code that keeps references from the direct map.
    #[inline(always)]
    pub fn from_ref(object: &T) -> Obj<T> {
        Obj(NonNull::from(object), PhantomData)
    }
}

impl<T: Object> Obj<T> {
    /// The object that a capability word names, if it is of this type.
    #[inline(always)]
    pub fn from_word(word: CapWord) -> Option<Obj<T>> {
        // SAFETY: a slot's word 0 of this type always names a live object of this type; that is what the capability code
        // keeps true.
        (word.kind_code() == T::KIND as u8).then(|| unsafe { Obj::at(word.address()) })
    }
}

impl<T> Deref for Obj<T> {
    type Target = T;
    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: see the module's comment: the object outlives this stay in the kernel.
        unsafe { self.0.as_ref() }
    }
}

/// A page (or more) of plain memory in the direct map.
#[derive(Clone, Copy)]
pub struct Page(pub u64);

impl Page {
    /// Reads the word at a byte offset.
    pub fn read(self, offset: u64) -> u64 {
        // SAFETY: callers name frames that a capability or the boot code vouches for; offsets stay within the frame.
        unsafe { ((DIRECT_MAP | self.0 + offset) as *const u64).read_volatile() }
    }

    /// Writes the word at a byte offset.
    pub fn write(self, offset: u64, value: u64) {
        // SAFETY: as for `read`.
        unsafe { ((DIRECT_MAP | self.0 + offset) as *mut u64).write_volatile(value) }
    }

    /// Virtual address.
    pub fn address(self) -> u64 {
        DIRECT_MAP | self.0
    }

    /// The bytes, for boot and log code. Tasks may change them meanwhile: copy before judging.
    pub fn bytes(self, length: usize) -> &'static [u8] {
        // SAFETY: the memory is mapped; only bytes, so every pattern is valid; used for data that is copied out.
        unsafe { core::slice::from_raw_parts(self.address() as *const u8, length) }
    }
}

/// Copies `bytes` (at most a page) from one frame to another, eight at a time.
#[inline(always)]
pub fn copy(from: u64, to: u64, bytes: usize) {
    // SAFETY: both are frames named by capabilities; at most a page is copied; `DF` is clear in the kernel.
    unsafe {
        core::arch::asm!(
            "rep movsq",
            "mov ecx, {tail:e}",
            "rep movsb",
            tail = in(reg) bytes & 7,
            inout("rcx") bytes >> 3 => _,
            inout("rsi") DIRECT_MAP | from => _,
            inout("rdi") DIRECT_MAP | to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// Zeroes `bytes` (a multiple of eight) of physical memory.
pub fn zero(physical: u64, bytes: u64) {
    // SAFETY: the caller owns the memory: an untyped being revoked, or boot memory.
    unsafe {
        core::arch::asm!(
            "rep stosq",
            inout("rcx") bytes >> 3 => _,
            inout("rdi") DIRECT_MAP | physical => _,
            in("rax") 0u64,
            options(nostack, preserves_flags)
        );
    }
}

/// Copies plain data into a frame.
pub fn write_struct<T: Copy>(physical: u64, value: &T) {
    // SAFETY: the caller names a frame large enough; T is plain data without references (ABI structures).
    unsafe { ((DIRECT_MAP | physical) as *mut T).write_volatile(*value) }
}

/// Copies plain data out of a frame, once.
pub fn read_struct<T: Copy>(physical: u64) -> T {
    // SAFETY: as above; ABI structures are valid for every bit pattern.
    unsafe { ((DIRECT_MAP | physical) as *const T).read_volatile() }
}
