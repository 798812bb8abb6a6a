//! The instructions that puppets execute. Each stub ends in `ud2`, so that a puppet always comes back as a fault.
#![allow(unsafe_code)]

core::arch::global_asm!(
    ".pushsection .text.lab, \"ax\", @progbits",
    ".macro stub name:req, body:vararg",
    ".globl lab_\\name",
    "lab_\\name:",
    "\\body",
    "ud2",
    ".endm",
    "stub stop, nop",
    "stub syscall, syscall",
    ".globl lab_count",
    "lab_count:",
    "1: add rax, 1",
    "jmp 1b",
    ".globl lab_serve",
    "lab_serve:",
    // A server: receive, then answer for ever with what came. rbx counts.
    "mov eax, 3",
    "xor r15d, r15d",
    "syscall",
    "1: add rbx, 1",
    "add rsi, 1",
    "mov eax, 2",
    "syscall",
    "test al, al",
    "jz 1b",
    "ud2",
    "stub fpu, fld1",
    "stub sse, xorps xmm0, xmm0",
    "stub avx, vxorps xmm0, xmm0, xmm0",
    "stub hlt, hlt",
    "stub cli, cli",
    "stub in, in al, dx",
    "stub out, out dx, al",
    "stub rdmsr, rdmsr",
    "stub wrmsr, wrmsr",
    "stub mov_cr3, mov cr3, rax",
    "stub read_cr0, mov rax, cr0",
    "stub mov_dr7, mov dr7, rax",
    "stub lgdt, lgdt [rsp]",
    "stub sgdt, sgdt [rbx]",
    "stub smsw, smsw rax",
    "stub str, str ax",
    "stub wbinvd, wbinvd",
    "stub invlpg, invlpg [rax]",
    "stub rdpmc, rdpmc",
    "stub xsetbv, xsetbv",
    "stub xgetbv, xgetbv",
    "stub rdfsbase, rdfsbase rax",
    "stub wrgsbase, wrgsbase rax",
    "stub swapgs, swapgs",
    "stub sysret, sysretq",
    "stub sysenter, sysenter",
    "stub int80, int 0x80",
    "stub int_timer, int 0x30",
    "stub int3, int3",
    "stub load, mov rax, [rbx]",
    "stub store, mov [rbx], rax",
    "stub jump, jmp rbx",
    "stub vmcall, vmcall",
    "stub vmmcall, vmmcall",
    "stub vmxoff, vmxoff",
    "stub vmrun, vmrun",
    "stub clgi, clgi",
    ".globl lab_step",
    "lab_step:",
    "nop",
    "nop",
    "nop",
    "nop",
    "ud2",
    ".globl lab_popf",
    "lab_popf:",
    "push rax",
    "popfq",
    "pushfq",
    "pop rcx",
    "ud2",
    "stub load_ss, mov ss, ax",
    ".globl lab_far",
    "lab_far:",
    "mov [rbx], ecx",
    "mov [rbx + 4], ax",
    "jmp fword ptr [rbx]",
    "ud2",
    ".globl lab_load_ds",
    "lab_load_ds:",
    "mov ds, ax",
    "mov ax, ds",
    "ud2",
    ".globl lab_load_gs",
    "lab_load_gs:",
    "mov gs, ax",
    "mov rax, gs:[0]",
    "ud2",
    ".globl lab_div",
    "lab_div:",
    "xor ecx, ecx",
    "xor edx, edx",
    "div ecx",
    "ud2",
    "stub monitor, monitor",
    ".popsection",
);

macro_rules! stubs {
    ($($(#[$doc:meta])* $variant:ident = $symbol:ident,)*) => {
        unsafe extern "C" { $(fn $symbol();)* }

        /// What a puppet can be made to execute.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Stub { $($(#[$doc])* $variant,)* }

        impl Stub {
            /// Its address.
            #[must_use]
            pub fn address(self) -> u64 {
                match self { $(Stub::$variant => $symbol as *const () as u64,)* }
            }
        }
    };
}

stubs! {
    /// Nothing: `ud2` at once.
    Stop = lab_stop,
    /// One system call.
    Syscall = lab_syscall,
    /// Counts in `rax` for ever.
    Count = lab_count,
    /// Receives and answers for ever; adds one to W0; `rbx` counts.
    Serve = lab_serve,
    /// x87.
    Fpu = lab_fpu,
    /// SSE.
    Sse = lab_sse,
    /// AVX.
    Avx = lab_avx,
    /// `hlt`.
    Hlt = lab_hlt,
    /// `cli`.
    Cli = lab_cli,
    /// Port input.
    In = lab_in,
    /// Port output.
    Out = lab_out,
    /// `rdmsr`.
    Rdmsr = lab_rdmsr,
    /// `wrmsr`.
    Wrmsr = lab_wrmsr,
    /// Writes CR3.
    MovCr3 = lab_mov_cr3,
    /// Reads CR0.
    ReadCr0 = lab_read_cr0,
    /// Writes DR7.
    MovDr7 = lab_mov_dr7,
    /// `lgdt`.
    Lgdt = lab_lgdt,
    /// `sgdt` (UMIP).
    Sgdt = lab_sgdt,
    /// `smsw` (UMIP).
    Smsw = lab_smsw,
    /// `str` (UMIP).
    Str = lab_str,
    /// `wbinvd`.
    Wbinvd = lab_wbinvd,
    /// `invlpg`.
    Invlpg = lab_invlpg,
    /// `rdpmc`.
    Rdpmc = lab_rdpmc,
    /// `xsetbv`.
    Xsetbv = lab_xsetbv,
    /// `xgetbv`.
    Xgetbv = lab_xgetbv,
    /// `rdfsbase`.
    Rdfsbase = lab_rdfsbase,
    /// `wrgsbase`.
    Wrgsbase = lab_wrgsbase,
    /// `swapgs`.
    Swapgs = lab_swapgs,
    /// `sysretq`.
    Sysret = lab_sysret,
    /// `sysenter`.
    Sysenter = lab_sysenter,
    /// `int 0x80`.
    Int80 = lab_int80,
    /// `int 0x30`, a vector of the kernel's.
    IntTimer = lab_int_timer,
    /// `int3`.
    Int3 = lab_int3,
    /// Loads from `rbx`.
    Load = lab_load,
    /// Stores to `rbx`.
    Store = lab_store,
    /// Jumps to `rbx`.
    Jump = lab_jump,
    /// `vmcall`.
    Vmcall = lab_vmcall,
    /// `vmmcall`.
    Vmmcall = lab_vmmcall,
    /// `vmxoff`.
    Vmxoff = lab_vmxoff,
    /// `vmrun`.
    Vmrun = lab_vmrun,
    /// `clgi`.
    Clgi = lab_clgi,
    /// Four `nop`.
    Step = lab_step,
    /// Flags from `rax`, read back to `rcx`.
    Popf = lab_popf,
    /// SS from `ax`.
    LoadSs = lab_load_ss,
    /// Far jump to the code segment in `rax`, at `rcx` (below 4 GiB); `rbx`: memory for the pointer.
    Far = lab_far,
    /// DS from `ax`.
    LoadDs = lab_load_ds,
    /// GS from `ax`, then a load through it.
    LoadGs = lab_load_gs,
    /// Division by zero.
    Div = lab_div,
    /// `monitor`.
    Monitor = lab_monitor,
}
