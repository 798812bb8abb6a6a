//! The vCPU's state page and its exits: one format for VT-x and SVM. See `docs/abi/vcpu.md`.

/// Groups of the state page: bits of the mask that `run` takes (changed by the VMM) and answers (written by the kernel).
pub mod group {
    /// `rip`, `rflags`. General-purpose registers are always current in both directions and need no bit. Loading it without
    /// [`INTERRUPTIBILITY`] ends an STI or MOV SS shadow: the VMM completed an instruction.
    pub const RIP: u64 = 1 << 0;
    /// Interrupt shadow, NMI blocking, halted-ness: [`VcpuState::interruptibility`](super::VcpuState::interruptibility).
    pub const INTERRUPTIBILITY: u64 = 1 << 1;
    /// Event to inject ([`VcpuState::inject`](super::VcpuState::inject)) and window requests.
    pub const INJECT: u64 = 1 << 2;
    /// CR0, CR2, CR3, CR4, EFER. Where the kernel writes it, CS and CPL go with it: together what reading an instruction needs.
    pub const CONTROL: u64 = 1 << 3;
    /// CS, SS, DS, ES, FS, GS, TR, LDTR, and CPL.
    pub const SEGMENTS: u64 = 1 << 4;
    /// GDTR, IDTR.
    pub const TABLES: u64 = 1 << 5;
    /// SYSCALL and SYSENTER MSRs, KERNEL_GS_BASE, PAT.
    pub const MSRS: u64 = 1 << 6;
    /// DR0–3, DR6, DR7, exceptions that exit.
    pub const DEBUG: u64 = 1 << 7;
    /// TSC offset, TSC_AUX, XCR0, SPEC_CTRL.
    pub const TSC_XCR: u64 = 1 << 8;
    /// PDPTEs (VT-x, PAE guests only).
    pub const PDPTE: u64 = 1 << 9;
    /// All groups.
    pub const ALL: u64 = (1 << 10) - 1;
}

/// Why a `run` returned: W0 of its answer and [`VcpuState::reason`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Exit {
    /// `until` passed, or bits are pending on the bound notification.
    Until = 0,
    /// Somebody called `kick`.
    Kicked = 1,
    /// IN or OUT. `qualification`: [`PortIo`].
    Port = 2,
    /// Nested page fault: `address` guest-physical, `qualification`: [`access`].
    Memory = 3,
    /// CPUID.
    Cpuid = 4,
    /// HLT.
    Halt = 5,
    /// RDMSR; ECX names it.
    MsrRead = 6,
    /// WRMSR.
    MsrWrite = 7,
    /// VMCALL or VMMCALL.
    Hypercall = 8,
    /// An exception that is intercepted: `qualification` is the vector, `error_code` its code, `address` CR2 of a page fault,
    /// or what a debug exception (1) has to set in DR6 (B0–B3, BD, BS, BT), if DR6 does not have it yet. `length` is 0 but for INT1
    /// (a debug exception that sets nothing): RIP stands at that instruction.
    Exception = 9,
    /// Interrupts can be injected now.
    InterruptWindow = 10,
    /// An NMI can be injected now.
    NmiWindow = 11,
    /// Triple fault.
    Shutdown = 12,
    /// MOV to a control register the kernel cannot let pass, or to or from CR8: `qualification` is made of [`control_write`]
    /// bits; `address`: new value for LMSW.
    ControlWrite = 13,
    /// MOV to or from a debug register: `qualification` is made of [`control_write`] bits.
    DebugRegister = 14,
    /// INVD or WBINVD.
    CacheFlush = 15,
    /// XSETBV: ECX, EDX:EAX.
    Xsetbv = 16,
    /// MONITOR or MWAIT.
    Mwait = 17,
    /// RDPMC.
    Rdpmc = 18,
    /// An instruction that does not exist for the guest (VMX and SVM instructions, SKINIT, …): inject #UD.
    Undefined = 19,
    /// Task switch: `qualification` bits 0–15 selector, bits 30–31 source (0 CALL, 1 IRET, 2 JMP, 3 gate of the IDT).
    TaskSwitch = 20,
    /// Entry refused the state (VT-x: entry failure; SVM: VMEXIT_INVALID; or the kernel's check). `qualification`: which check.
    InvalidState = 21,
    /// PAUSE loop.
    Pause = 22,
    /// IRET after an NMI was delivered (internal stepping that the VMM asked for).
    Iret = 23,
    /// INIT signal.
    Init = 24,
    /// Anything else; `qualification` has the vendor's reason.
    Other = 25,
}

impl Exit {
    /// The exit with this number.
    #[must_use]
    pub const fn from_code(code: u64) -> Option<Exit> {
        use Exit::*;
        const TABLE: [Exit; 26] = [
            Until,
            Kicked,
            Port,
            Memory,
            Cpuid,
            Halt,
            MsrRead,
            MsrWrite,
            Hypercall,
            Exception,
            InterruptWindow,
            NmiWindow,
            Shutdown,
            ControlWrite,
            DebugRegister,
            CacheFlush,
            Xsetbv,
            Mwait,
            Rdpmc,
            Undefined,
            TaskSwitch,
            InvalidState,
            Pause,
            Iret,
            Init,
            Other,
        ];
        if code < TABLE.len() as u64 { Some(TABLE[code as usize]) } else { None }
    }
}

/// Bits of `qualification` of [`Exit::Memory`].
pub mod access {
    /// The access was a write.
    pub const WRITE: u64 = 1;
    /// It was an instruction fetch.
    pub const FETCH: u64 = 2;
    /// The page was present (a protection violation).
    pub const PRESENT: u64 = 4;
    /// The guest's own page walk faulted, not its access.
    pub const WALK: u64 = 8;
}

/// `qualification` of [`Exit::ControlWrite`] and [`Exit::DebugRegister`].
pub mod control_write {
    /// Mask of the register's number.
    pub const REGISTER: u64 = 15;
    /// LMSW to CR0.
    pub const LMSW: u64 = 1 << 4;
    /// CLTS.
    pub const CLTS: u64 = 1 << 5;
    /// The register is read (CR8 and debug registers), not written.
    pub const READ: u64 = 1 << 6;
    /// The processor did not name the general register: decode the instruction.
    pub const UNDECODED: u64 = 1 << 7;
    /// Position of the general register's number (4 bits).
    pub const GPR_SHIFT: u32 = 8;
}

/// `qualification` of [`Exit::Port`]: bit 0 input, 2 string, 3 REP, 4–6 size in bytes, 16–31 port (SVM's format, so that nothing has
/// to be moved there; APM 2 15.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortIo(pub u64);

impl PortIo {
    /// Encodes: port, size in bytes (1, 2, 4), direction, string form, REP prefix.
    #[must_use]
    pub const fn new(port: u16, size: u8, input: bool, string: bool, rep: bool) -> PortIo {
        PortIo(input as u64 | (string as u64) << 2 | (rep as u64) << 3 | (size as u64 & 7) << 4 | (port as u64) << 16)
    }
    /// The port.
    #[must_use]
    pub const fn port(self) -> u16 {
        (self.0 >> 16) as u16
    }
    /// Bytes: 1, 2 or 4.
    #[must_use]
    pub const fn size(self) -> u8 {
        (self.0 >> 4) as u8 & 7
    }
    /// IN rather than OUT.
    #[must_use]
    pub const fn input(self) -> bool {
        self.0 & 1 != 0
    }
    /// INS or OUTS.
    #[must_use]
    pub const fn string(self) -> bool {
        self.0 & 4 != 0
    }
    /// With REP.
    #[must_use]
    pub const fn rep(self) -> bool {
        self.0 & 8 != 0
    }
}

/// A segment register: VT-x access-rights format (SDM 24.4.1: type, S, DPL, P in bits 0–7, AVL, L, D/B, G in bits 12–15, unusable
/// bit 16); the kernel converts for SVM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Padding, zero.
    pub pad: u16,
    /// Access rights.
    pub rights: u32,
    /// Limit in bytes.
    pub limit: u32,
    /// Padding, zero.
    pub pad2: u32,
    /// Base.
    pub base: u64,
}

/// GDTR or IDTR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Table {
    /// Base.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u64,
}

/// Indices of [`VcpuState::segment`].
pub mod seg {
    /// ES.
    pub const ES: usize = 0;
    /// CS.
    pub const CS: usize = 1;
    /// SS.
    pub const SS: usize = 2;
    /// DS.
    pub const DS: usize = 3;
    /// FS.
    pub const FS: usize = 4;
    /// GS.
    pub const GS: usize = 5;
    /// LDTR.
    pub const LDTR: usize = 6;
    /// TR.
    pub const TR: usize = 7;
}

/// Event to inject, or that was being delivered when the exit came: VT-x format (SDM 24.8.3), which SVM's EVENTINJ shares
/// but for the type of software exceptions.
pub mod event {
    /// The field holds an event.
    pub const VALID: u64 = 1 << 31;
    /// An error code goes with it (bits 32–63 of the field).
    pub const HAS_CODE: u64 = 1 << 11;
    /// External interrupt.
    pub const INTERRUPT: u64 = 0;
    /// NMI.
    pub const NMI: u64 = 2 << 8;
    /// Hardware exception.
    pub const EXCEPTION: u64 = 3 << 8;
    /// Software interrupt (INT n); needs `inject_length`.
    pub const SOFTWARE_INTERRUPT: u64 = 4 << 8;
    /// Privileged software exception (INT1).
    pub const PRIVILEGED_EXCEPTION: u64 = 5 << 8;
    /// Software exception (INT3, INTO); needs `inject_length`.
    pub const SOFTWARE_EXCEPTION: u64 = 6 << 8;
    /// Mask of the type.
    pub const TYPE: u64 = 7 << 8;
}

/// Bits of [`VcpuState::interruptibility`].
pub mod interruptibility {
    /// STI shadow.
    pub const STI: u64 = 1;
    /// MOV SS shadow. (SVM does not tell them apart and reports [`STI`].)
    pub const MOV_SS: u64 = 2;
    /// NMIs are blocked until IRET.
    pub const NMI_BLOCKED: u64 = 8;
}

/// Bits of [`VcpuState::request`].
pub mod request {
    /// Exit with [`Exit::InterruptWindow`](super::Exit::InterruptWindow) as soon as an interrupt could be injected.
    pub const INTERRUPT_WINDOW: u64 = 1;
    /// Exit with [`Exit::NmiWindow`](super::Exit::NmiWindow) as soon as an NMI could be injected.
    pub const NMI_WINDOW: u64 = 2;
}

/// The state page: one 4 KiB frame shared by the VMM and the kernel.
///
/// The kernel reads the groups named in `run`'s mask once, checks them, and keeps its own copy; `gpr` are loaded and stored as
/// they are. At an exit it writes the groups that the exit's mask names.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct VcpuState {
    /// rax rcx rdx rbx (rsp is used) rbp rsi rdi r8–r15. Always current. `gpr[4]` is rsp.
    pub gpr: [u64; 16],
    /// Group RIP.
    pub rip: u64,
    /// Group RIP.
    pub rflags: u64,
    /// Exit: [`Exit`] as a number.
    pub reason: u64,
    /// Exit: detail by reason.
    pub qualification: u64,
    /// Exit: guest-physical or linear address by reason.
    pub address: u64,
    /// Exit: guest-linear address of a memory exit where the hardware tells it (VT-x), else 0.
    pub linear: u64,
    /// Exit: length of the instruction in bytes; 0 if the hardware does not tell (QEMU's SVM): decode it, with `code_root`.
    pub length: u64,
    /// Exit: bytes at RIP that the hardware fetched (SVM decode assists), number in `fetched_count`.
    pub fetched: [u8; 16],
    /// Exit: valid bytes of `fetched`.
    pub fetched_count: u64,
    /// Exit: event that was being delivered ([`event`] format; error code in the upper half), or 0; inject it again. Software
    /// events are never handed back: RIP stands at their instruction, which raises them again.
    pub delivering: u64,
    /// Exit, where `length` is 0: CR3 if the guest executes 64-bit code, so that a VMM knows an instruction that it decoded before; else
    /// all ones, and group CONTROL was written, too.
    pub code_root: u64,
    /// Exit: error code of [`Exit::Exception`].
    pub error_code: u64,
    /// Exit: TSC at exit.
    pub exit_tsc: u64,
    /// Group INTERRUPTIBILITY.
    pub interruptibility: u64,
    /// Group INJECT: event to inject at the next entry. The kernel clears it as it loads the group; where it writes the group, this
    /// is an event that it holds and has not delivered yet.
    pub inject: u64,
    /// Group INJECT: instruction length of a software event.
    pub inject_length: u64,
    /// Group INJECT: [`request`] bits.
    pub request: u64,
    /// Group CONTROL.
    pub cr0: u64,
    /// Group CONTROL.
    pub cr2: u64,
    /// Group CONTROL.
    pub cr3: u64,
    /// Group CONTROL.
    pub cr4: u64,
    /// Group CONTROL: EFER without SVME.
    pub efer: u64,
    /// Group SEGMENTS: current privilege level (SVM keeps it apart from SS).
    pub cpl: u64,
    /// Group SEGMENTS, by [`seg`].
    pub segment: [Segment; 8],
    /// Group TABLES.
    pub gdtr: Table,
    /// Group TABLES.
    pub idtr: Table,
    /// Group MSRS: C0000081h.
    pub star: u64,
    /// Group MSRS: C0000082h.
    pub lstar: u64,
    /// Group MSRS: C0000083h.
    pub cstar: u64,
    /// Group MSRS: C0000084h.
    pub sfmask: u64,
    /// Group MSRS: C0000102h.
    pub kernel_gs_base: u64,
    /// Group MSRS: 174h.
    pub sysenter_cs: u64,
    /// Group MSRS: 175h.
    pub sysenter_esp: u64,
    /// Group MSRS: 176h.
    pub sysenter_eip: u64,
    /// Group MSRS: 277h.
    pub pat: u64,
    /// Group DEBUG: DR0–DR3.
    pub dr: [u64; 4],
    /// Group DEBUG.
    pub dr6: u64,
    /// Group DEBUG.
    pub dr7: u64,
    /// Group DEBUG: exceptions that shall exit beside those that always do, a bit for each vector; only [`EXITS_ON_REQUEST`].
    pub exceptions: u64,
    /// Group TSC_XCR: added to the host's TSC.
    pub tsc_offset: u64,
    /// Group TSC_XCR: C0000103h.
    pub tsc_aux: u64,
    /// Group TSC_XCR: within [`BootInfo::guest_xcr0`](crate::boot::BootInfo::guest_xcr0).
    pub xcr0: u64,
    /// Group TSC_XCR: 48h.
    pub spec_ctrl: u64,
    /// Group PDPTE.
    pub pdpte: [u64; 4],
}

/// Exceptions that a VMM may ask for: #UD.
pub const EXITS_ON_REQUEST: u64 = 1 << 6;

/// Message label with which a VMM's entry failure names the check in `qualification`.
pub mod invalid {
    /// The hardware refused the entry; bits 32–63 hold its error number where there is one.
    pub const HARDWARE: u64 = 1;
    /// An address is not canonical.
    pub const CANONICAL: u64 = 2;
    /// Reserved bits in CR0, CR4, EFER, DR6, DR7, XCR0, PAT or RFLAGS.
    pub const RESERVED: u64 = 3;
    /// The event to inject is malformed.
    pub const EVENT: u64 = 4;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_round_trip_and_fit_the_page() {
        for code in 0..26 {
            assert_eq!(Exit::from_code(code).map(|exit| exit as u64), Some(code));
        }
        assert_eq!(Exit::from_code(26), None);
        assert!(size_of::<VcpuState>() <= 4096);
        let port = PortIo::new(0x3f8, 4, true, false, true);
        assert_eq!((port.port(), port.size(), port.input(), port.string(), port.rep()), (0x3f8, 4, true, false, true));
    }
}
