//! The first instructions of a task.
#![allow(unsafe_code)]

use crate::{Env, end, heap, logging, mapped};
use moira_abi::boot::BootInfo;
use moira_proto::start::{StartInfo, layout, second};
use moira_sys::MessageBuffer;
use serde::Deserialize;

// The kernel starts a thread at its entry with an empty stack and its arguments in rdi and rsi. A C function expects the stack
// as a `call` leaves it: aligned to 16 bytes before the return address was pushed.
#[cfg(target_os = "none")]
core::arch::global_asm!(
    ".pushsection .text.start, \"ax\", @progbits",
    ".globl _start",
    "_start:",
    "and rsp, -16",
    "xor ebp, ebp",
    "call {main}",
    "ud2",
    ".popsection",
    main = sym trampoline,
);

#[cfg(target_os = "none")]
unsafe extern "C" {
    fn __moira_main(first: FirstArgument, second: usize) -> !;
}

#[cfg(target_os = "none")]
extern "C" fn trampoline(first: FirstArgument, second: usize) -> ! {
    // SAFETY: defined by `entry!` or `root_entry!` of the image with this signature.
    unsafe { __moira_main(first, second) }
}

/// `rdi` at a task's first instruction: only the entry code can make one, so whoever has one may believe what it points to.
#[doc(hidden)]
#[repr(transparent)]
#[derive(Debug)]
pub struct FirstArgument(*const u8);

/// Names the function that a task starts with: `fn main(env: Env)`. When it returns, the task is finished and tells its
/// supervisor so ([`end::FINISHED`](crate::end::FINISHED)).
#[macro_export]
macro_rules! entry {
    ($main:path) => {
        #[unsafe(no_mangle)]
        extern "C" fn __moira_main(first: $crate::start::FirstArgument, second: usize) -> ! {
            $crate::start::task(first, second, $main)
        }
    };
}

/// Names the function that the root task starts with, `fn main(info: &'static BootInfo, buffer: MessageBuffer, archive: &'static
/// [u8])` (the archive is the system image), and the bytes of its heap, which lies in the image's zeroed data.
#[macro_export]
macro_rules! root_entry {
    ($main:path, $heap:expr) => {
        #[unsafe(no_mangle)]
        extern "C" fn __moira_main(first: $crate::start::FirstArgument, _second: usize) -> ! {
            static HEAP: $crate::heap::StaticHeap<{ $heap }> = $crate::heap::StaticHeap::new();
            $crate::start::root(first, &HEAP, $main)
        }
    };
}

/// What of a [`StartInfo`] can be read before there is a heap: its first fields.
#[derive(Deserialize)]
struct Head<'a> {
    _name: &'a str,
    heap_address: u64,
    heap_length: u64,
}

/// Brings up an ordinary task.
#[doc(hidden)]
pub fn task(first: FirstArgument, second: usize, main: fn(Env)) -> ! {
    let (length, number) = second::unpack(second as u64);
    if number != 0 {
        crate::threads::main(number, layout::MOST_STACK);
    }
    // SAFETY: the root task maps the start information there, read-only, for the task's life; nobody else writes it.
    let bytes = unsafe { core::slice::from_raw_parts(first.0, length) };
    // The root task maps each task's message buffer there.
    mapped::set_main_buffer(layout::BUFFER);
    if let Ok((head, _)) = postcard::take_from_bytes::<Head>(bytes) {
        // SAFETY: the root task maps this heap for the task alone; the runtime does this once.
        unsafe { heap::add(head.heap_address, head.heap_length) };
    }
    let Ok(info) = StartInfo::decode(bytes) else {
        end::with_marker(end::PANICKED, b"the start information cannot be read");
    };
    logging::init_task(&info);
    main(Env::new(info));
    end::finish()
}

/// Brings up the root task.
#[doc(hidden)]
pub fn root<const BYTES: usize>(
    first: FirstArgument,
    area: &'static heap::StaticHeap<BYTES>,
    main: fn(&'static BootInfo, MessageBuffer, &'static [u8]),
) -> ! {
    // SAFETY: the kernel maps the boot information at the address in rdi, read-only, for the root task's life, aligned
    // to a page.
    let info = unsafe { &*first.0.cast::<BootInfo>() };
    if info.magic != moira_abi::boot::BOOT_MAGIC {
        end::with_marker(end::PANICKED, b"not boot information");
    }
    mapped::set_main_buffer(info.message_buffer);
    area.give();
    // SAFETY: the boot information names the main thread's buffer, mapped for good; only the main thread uses this value.
    let buffer = unsafe { MessageBuffer::new(info.message_buffer) };
    // SAFETY: the kernel maps the archive there, read-only, for the root task's life; nobody writes it.
    let archive = unsafe { mapped::file(info.initrd_address, info.initrd_length as usize) };
    main(info, buffer, archive);
    end::finish()
}
