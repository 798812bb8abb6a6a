//! GDT, TSS, IDT, control registers and MSRs of one processor.

use super::{mitigations, paging};
use crate::{memory::KERNEL_BASE, percpu::Cpu};
use core::{arch::asm, cell::UnsafeCell};
use x86::{
    Ring,
    bits64::{segmentation::Descriptor64, task::TaskStateSegment},
    dtables::{DescriptorTablePointer, lgdt, lidt},
    msr::{
        IA32_CSTAR, IA32_EFER, IA32_FMASK, IA32_GS_BASE, IA32_KERNEL_GSBASE, IA32_LSTAR, IA32_PAT, IA32_STAR,
        IA32_SYSENTER_CS, rdmsr, wrmsr,
    },
    segmentation::{BuildDescriptor, DescriptorBuilder, GateDescriptorBuilder, SegmentSelector},
};

/// Kernel code selector. The order of the table is the one that Linux has, and so is what SYSCALL clears: STAR and SFMASK of such a
/// guest are the host's, and VT-x, which has no fields for them, has nothing to swap (`vmx::swap_in`).
pub const KERNEL_CODE: u16 = 0x10;
/// Kernel data selector.
pub const KERNEL_DATA: u16 = 0x18;
/// Where 32-bit code of tasks would be, if there were any: SYSRET finds theirs from here (`entry.s` for IRET), data at 28h, code at 30h.
const USER_BASE: u16 = 0x23;
/// Task state segment selector.
pub const TSS: u16 = 0x38;

/// Flags that SYSCALL clears: TF, IF, DF, IOPL, NT, RF, AC, which must not come from a task; and CF, PF, AF, ZF, SF, OF, ID.
const SYSCALL_MASK: u64 = 0x100 | 0x200 | 0x400 | 0x3000 | 0x4000 | 0x1_0000 | 0x4_0000 | 0x20_08d5;

/// Bytes of an entry stub (`entry.s`).
const STUB: u64 = 12;

/// What a processor's tables occupy: in its own page.
#[repr(C, align(16))]
pub struct Tables {
    gdt: UnsafeCell<[u64; 9]>,
    tss: UnsafeCell<TaskStateSegment>,
}

#[repr(C, align(4096))]
struct Idt([Descriptor64; 256]);

struct SharedIdt(UnsafeCell<Idt>);
// SAFETY: written once by the boot processor before any other runs, then only read.
unsafe impl Sync for SharedIdt {}
static IDT: SharedIdt = SharedIdt(UnsafeCell::new(Idt([Descriptor64::NULL; 256])));

unsafe extern "C" {
    fn entry_syscall();
    fn entry_stubs();
    fn entry_debug();
    static kernel_entry_start: u8;
    static kernel_entry_end: u8;
    fn entry_paranoid_nmi();
    fn entry_paranoid_df();
    fn entry_paranoid_mc();
}

fn gate(handler: u64, ist: u8, from: Ring) -> Descriptor64 {
    let builder: DescriptorBuilder =
        GateDescriptorBuilder::<u64>::interrupt_descriptor(SegmentSelector::from_raw(KERNEL_CODE), handler);
    builder.dpl(from).ist(ist).present().finish()
}

/// Fills the IDT (boot processor).
pub fn init_idt() {
    // SAFETY: nobody else runs yet.
    let idt = unsafe { &mut *IDT.0.get() };
    for (vector, slot) in idt.0.iter_mut().enumerate() {
        // INT3 and INTO may be used by tasks; everything else from user mode by INT n is #GP.
        let from = if vector == 3 || vector == 4 { Ring::Ring3 } else { Ring::Ring0 };
        *slot = gate(entry_stubs as *const () as u64 + vector as u64 * STUB, 0, from);
    }
    // A MOV SS before SYSCALL can put a debug exception on the kernel's first instruction, on the user's stack and GS.
    idt.0[1] = gate(entry_debug as *const () as u64, 4, Ring::Ring0);
    idt.0[2] = gate(entry_paranoid_nmi as *const () as u64, 1, Ring::Ring0);
    idt.0[8] = gate(entry_paranoid_df as *const () as u64, 2, Ring::Ring0);
    idt.0[18] = gate(entry_paranoid_mc as *const () as u64, 3, Ring::Ring0);
}

/// Leaves the entry code and the IDT to the tables of tasks.
pub fn show(allocate: paging::Allocate) {
    let entry = (&raw const kernel_entry_start as u64..&raw const kernel_entry_end as u64).step_by(4096);
    for (page, executable) in entry.map(|page| (page, true)).chain([(IDT.0.get() as u64, false)]) {
        paging::show(page, page - KERNEL_BASE, executable, allocate);
    }
}

/// Loads a processor's tables and points GS at its structure. `ist` are the tops of the NMI, double-fault, machine-check and debug stacks.
///
/// # Safety
/// Once per processor, on that processor, before it enters any task.
pub unsafe fn init(cpu: &'static Cpu, tables: &'static Tables, ist: [u64; 4]) {
    // SAFETY: the tables are this processor's own; values as SDM 3.4.5, 8.2.3, 2.5 require.
    unsafe {
        let tss_address = tables.tss.get() as u64;
        let tss = &mut *tables.tss.get();
        tss.rsp = [cpu.me.get() + 4096, 0, 0];
        tss.ist = [ist[0], ist[1], ist[2], ist[3], 0, 0, 0];
        // No I/O map.
        tss.iomap_base = size_of::<TaskStateSegment>() as u16;
        let limit = size_of::<TaskStateSegment>() as u64 - 1;
        let gdt = &mut *tables.gdt.get();
        *gdt = [
            0,
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            0,
            0x00cf_f300_0000_ffff,
            0x00af_fb00_0000_ffff,
            limit & 0xffff | (tss_address & 0xff_ffff) << 16 | 0x89 << 40 | (tss_address >> 24 & 0xff) << 56,
            tss_address >> 32,
        ];
        lgdt(&DescriptorTablePointer::new(&*gdt));
        asm!(
            "push {code}", "lea {t}, [rip + 2f]", "push {t}", "retfq", "2:",
            "mov ss, {data:x}", "mov ds, {zero:x}", "mov es, {zero:x}", "mov fs, {zero:x}", "mov gs, {zero:x}",
            "ltr {tss:x}",
            "lldt {zero:x}",
            code = const KERNEL_CODE as u64, data = in(reg) KERNEL_DATA as u64, zero = in(reg) 0u64, tss = in(reg) TSS as u64,
            t = out(reg) _,
        );
        lidt(&DescriptorTablePointer::new(&*IDT.0.get()));
        wrmsr(IA32_GS_BASE, core::ptr::from_ref(cpu) as u64);
        wrmsr(IA32_KERNEL_GSBASE, 0);
        wrmsr(IA32_EFER, rdmsr(IA32_EFER) | 1 | 1 << 11);
        wrmsr(IA32_STAR, (KERNEL_CODE as u64) << 32 | (USER_BASE as u64) << 48);
        wrmsr(IA32_LSTAR, entry_syscall as *const () as u64);
        wrmsr(IA32_CSTAR, 0);
        wrmsr(IA32_FMASK, SYSCALL_MASK);
        wrmsr(IA32_SYSENTER_CS, 0);
        // Entry 1 (PWT) becomes write-combining; the others stay as at power-on.
        wrmsr(IA32_PAT, 0x0007_0406_0007_0106);
        init_control();
    }
}

/// CR0 and CR4: write protection, no x87 or vector unit for tasks, SMEP, SMAP, UMIP, global pages where the processor has them.
fn init_control() {
    // No translation of the kernel's outlives a load of CR3 where tasks must not have it.
    let global = !mitigations::has(mitigations::measure::PTI) as u64;
    let mut cr4: u64 = 1 << 5 | 1 << 6 | global << 7 | 1 << 9 | 1 << 10;
    if let Some(features) = raw_cpuid::CpuId::new().get_extended_feature_info() {
        cr4 |= (features.has_smep() as u64) << 20;
        cr4 |= (features.has_smap() as u64) << 21;
        cr4 |= (features.has_umip() as u64) << 11;
    }
    // SAFETY: only bits that CPUID offers; PE, PG stay; TS makes every task's vector instruction fault.
    unsafe {
        asm!("mov cr4, {}", in(reg) cr4, options(nostack));
        asm!("mov cr0, {}", in(reg) 0x8001_002bu64, options(nostack));
    }
}

/// Provokes a triple fault (self-test of the test harness).
pub fn triple_fault() -> ! {
    // SAFETY: this ends the machine on purpose: with an empty IDT every exception becomes a triple fault.
    unsafe {
        lidt(&DescriptorTablePointer::<u64> { limit: 0, base: core::ptr::null() });
        asm!("ud2", options(noreturn));
    }
}
