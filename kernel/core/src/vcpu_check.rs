//! Checks and conversions for what a VMM writes into a vCPU's state page and for what the hardware reports.
//!
//! Everything here is pure: the vendor modules read a group of the page once, hand the copy to one of these functions, and
//! load only what comes back. No function trusts its input, and none can panic.
use moira_abi::vcpu::{self, Exit, PortIo, Segment, event, invalid, seg};

/// CR0 bits (SDM 2.5).
pub mod cr0 {
    /// Protected mode.
    pub const PE: u64 = 1 << 0;
    /// Extension type, always one.
    pub const ET: u64 = 1 << 4;
    /// Native x87 errors.
    pub const NE: u64 = 1 << 5;
    /// Not write-through.
    pub const NW: u64 = 1 << 29;
    /// Caches off.
    pub const CD: u64 = 1 << 30;
    /// Paging.
    pub const PG: u64 = 1 << 31;
    /// All defined bits: PE MP EM TS ET NE WP AM NW CD PG.
    pub const DEFINED: u64 = 0x3f | 1 << 16 | 1 << 18 | NW | CD | PG;
}

/// CR4 bits (SDM 2.5).
pub mod cr4 {
    /// Physical-address extension.
    pub const PAE: u64 = 1 << 5;
    /// Machine-check exceptions on.
    pub const MCE: u64 = 1 << 6;
    /// User-mode instruction prevention.
    pub const UMIP: u64 = 1 << 11;
    /// VMX on.
    pub const VMXE: u64 = 1 << 13;
    /// RDFSBASE and the like.
    pub const FSGSBASE: u64 = 1 << 16;
    /// Process-context identifiers.
    pub const PCIDE: u64 = 1 << 17;
    /// XSAVE and XCR0.
    pub const OSXSAVE: u64 = 1 << 18;
    /// Supervisor execution prevention.
    pub const SMEP: u64 = 1 << 20;
    /// Supervisor access prevention.
    pub const SMAP: u64 = 1 << 21;
    /// What every x86-64 processor has: VME PVI TSD DE PSE PAE MCE PGE PCE OSFXSR OSXMMEXCPT.
    pub const BASE: u64 = 0x7ff;
}

/// EFER bits (SDM 2.2.1, APM 2 3.1.7).
pub mod efer {
    /// SYSCALL on.
    pub const SCE: u64 = 1 << 0;
    /// Long mode wanted.
    pub const LME: u64 = 1 << 8;
    /// Long mode active.
    pub const LMA: u64 = 1 << 10;
    /// No-execute on.
    pub const NXE: u64 = 1 << 11;
    /// SVM on (AMD); never the guest's.
    pub const SVME: u64 = 1 << 12;
}

/// RFLAGS bits that exist: CF PF AF ZF SF TF IF DF OF IOPL NT RF VM AC VIF VIP ID.
pub const RFLAGS_DEFINED: u64 = 0x003f_7fd5;

/// What this processor lets a guest have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// CR4 bits a guest may set.
    pub cr4: u64,
    /// EFER bits a guest may set.
    pub efer: u64,
    /// XCR0 components the kernel can save.
    pub xcr0: u64,
    /// SPEC_CTRL bits that exist; 0 without the MSR.
    pub spec_ctrl: u64,
    /// Physical-address width in bits.
    pub physical_bits: u32,
}

/// Whether the address is canonical with 48-bit linear addresses.
#[must_use]
pub const fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// `flag` if the bit is set.
const fn flag(value: u64, bit: u32, flag: u64) -> u64 {
    (value >> bit & 1) * flag
}

const fn reserved(ok: bool) -> Result<(), u64> {
    if ok { Ok(()) } else { Err(invalid::RESERVED) }
}

/// Group CONTROL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// CR0 as the guest sees it.
    pub cr0: u64,
    /// CR2.
    pub cr2: u64,
    /// CR3.
    pub cr3: u64,
    /// CR4 as the guest sees it.
    pub cr4: u64,
    /// EFER as the guest sees it; LMA is computed, not taken.
    pub efer: u64,
}

impl Control {
    /// The checked group: reserved bits are refused, ET is forced, and EFER.LMA follows LME and PG.
    ///
    /// # Errors
    /// [`invalid::RESERVED`].
    pub const fn checked(self, limits: &Limits) -> Result<Control, u64> {
        let paging = self.cr0 & cr0::PG != 0;
        let long = paging && self.efer & efer::LME != 0;
        let ok = self.cr0 & !cr0::DEFINED == 0
            && (!paging || self.cr0 & cr0::PE != 0)
            && (self.cr0 & cr0::NW == 0 || self.cr0 & cr0::CD != 0)
            && self.cr4 & !limits.cr4 == 0
            && (!long || self.cr4 & cr4::PAE != 0)
            && (self.cr4 & cr4::PCIDE == 0 || long)
            && self.cr3 >> limits.physical_bits == 0
            && self.efer & !limits.efer == 0;
        if !ok {
            return Err(invalid::RESERVED);
        }
        let lma = if long { efer::LMA } else { 0 };
        Ok(Control { cr0: self.cr0 | cr0::ET, efer: self.efer & !efer::LMA | lma, ..self })
    }
}

/// Group DEBUG.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Debug {
    /// DR0–DR3: linear addresses.
    pub dr: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
    /// Exceptions that the VMM asks for.
    pub exceptions: u64,
}

impl Debug {
    /// The checked group, with the fixed bits of DR6 and DR7 as the hardware wants them (SDM 17.2).
    ///
    /// # Errors
    /// [`invalid::RESERVED`] for the upper halves and for exceptions that nobody may ask for, [`invalid::CANONICAL`] for DR0–DR3.
    pub fn checked(self) -> Result<Debug, u64> {
        reserved(self.dr6 >> 32 == 0 && self.dr7 >> 32 == 0 && self.exceptions & !vcpu::EXITS_ON_REQUEST == 0)?;
        if !self.dr.iter().all(|&address| canonical(address)) {
            return Err(invalid::CANONICAL);
        }
        let dr6 = self.dr6 & 0xe00f | 0xffff_0ff0;
        Ok(Debug { dr6, dr7: self.dr7 & 0xffff_2bff | 0x400, ..self })
    }
}

/// Whether all eight memory types of a PAT value exist (SDM 11.12.2).
#[must_use]
pub fn pat_valid(pat: u64) -> bool {
    pat.to_le_bytes().iter().all(|&kind| matches!(kind, 0 | 1 | 4..=7))
}

/// Whether XCR0 may hold this value (SDM 13.3): x87 always, AVX needs SSE, the three AVX-512 parts go together and need AVX.
#[must_use]
pub const fn xcr0_valid(value: u64, limits: &Limits) -> bool {
    let avx512 = value & 0xe0;
    value & !limits.xcr0 == 0
        && value & 1 != 0
        && (value & 4 == 0 || value & 2 != 0)
        && (avx512 == 0 || avx512 == 0xe0 && value & 4 != 0)
}

/// Event to inject, checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Vector, type, HAS_CODE and VALID in VT-x format; 0: none.
    pub info: u32,
    /// Error code.
    pub code: u32,
    /// Instruction length of a software event, else 0.
    pub length: u32,
}

impl Event {
    /// No event.
    pub const NONE: Event = Event { info: 0, code: 0, length: 0 };

    /// Checks group INJECT's event (SDM 26.2.1.3, without what depends on the rest of the state).
    ///
    /// # Errors
    /// [`invalid::EVENT`].
    pub const fn checked(inject: u64, length: u64) -> Result<Event, u64> {
        if inject & event::VALID == 0 {
            return Ok(Event::NONE);
        }
        let info = inject as u32;
        let vector = info & 0xff;
        let has_code = inject & event::HAS_CODE != 0;
        let kind = inject & event::TYPE;
        let soft = matches!(kind, event::SOFTWARE_INTERRUPT | event::PRIVILEGED_EXCEPTION | event::SOFTWARE_EXCEPTION);
        let type_ok = match kind {
            event::INTERRUPT | event::SOFTWARE_INTERRUPT => true,
            event::NMI => vector == 2,
            event::EXCEPTION => vector < 32 && vector != 2,
            event::PRIVILEGED_EXCEPTION => vector == 1,
            event::SOFTWARE_EXCEPTION => vector == 3 || vector == 4,
            _ => false,
        };
        let code_ok =
            !has_code || kind == event::EXCEPTION && matches!(vector, 8 | 10..=14 | 17 | 21) && inject >> 48 == 0;
        let length_ok = !soft || length >= 1 && length <= 15;
        if !type_ok || !code_ok || !length_ok || info & 0x7fff_f000 != 0 {
            return Err(invalid::EVENT);
        }
        Ok(Event {
            info,
            code: if has_code { (inject >> 32) as u32 } else { 0 },
            length: if soft { length as u32 } else { 0 },
        })
    }

    /// The state page's format.
    #[must_use]
    pub const fn packed(self) -> u64 {
        self.info as u64 | (self.code as u64) << 32
    }

    /// Whether it is an NMI.
    #[must_use]
    pub const fn is_nmi(self) -> bool {
        self.info as u64 & (event::VALID | event::TYPE) == event::VALID | event::NMI
    }

    /// Whether an instruction raised it: running that instruction again raises it again, so that it is never handed back.
    #[must_use]
    pub const fn is_software(self) -> bool {
        self.info as u64 & event::VALID != 0 && self.info as u64 & event::TYPE >= event::SOFTWARE_INTERRUPT
    }

    /// EVENTINJ of SVM (APM 2 15.20): software exceptions are exceptions there.
    #[must_use]
    pub const fn to_svm(self) -> u64 {
        let kind = self.info as u64 & event::TYPE;
        let base = self.packed() & !event::TYPE;
        let kind = match kind {
            event::PRIVILEGED_EXCEPTION | event::SOFTWARE_EXCEPTION => event::EXCEPTION,
            other => other,
        };
        base | kind
    }

    /// EXITINTINFO of SVM (APM 2 15.7.2): vectors 3 and 4 as exceptions come from INT3 and INTO.
    #[must_use]
    pub const fn from_svm(info: u64) -> Event {
        if info & event::VALID == 0 {
            return Event::NONE;
        }
        let mut low = info as u32 & (event::VALID | event::HAS_CODE | event::TYPE | 0xff) as u32;
        if low as u64 & event::TYPE == event::EXCEPTION && matches!(low & 0xff, 3 | 4) {
            low = low & !(event::TYPE as u32) | event::SOFTWARE_EXCEPTION as u32;
        }
        let code = if info & event::HAS_CODE != 0 { (info >> 32) as u32 } else { 0 };
        Event { info: low, code, length: 0 }
    }
}

/// `unusable` of the access rights.
pub const UNUSABLE: u32 = 1 << 16;

/// Checks group SEGMENTS for what no hardware may be given: bases that are not canonical, and a task register that is no
/// busy TSS (VT-x refuses the entry; SVM does not look, and TCG ends itself).
///
/// # Errors
/// [`invalid::CANONICAL`], [`invalid::RESERVED`].
pub fn check_segments(segments: &[Segment; 8]) -> Result<(), u64> {
    if !segments.iter().all(|segment| canonical(segment.base)) {
        return Err(invalid::CANONICAL);
    }
    reserved(segments.iter().all(|segment| segment.rights & !(UNUSABLE | 0xf0ff) == 0))?;
    let task = segments[seg::TR].rights;
    reserved(task & (UNUSABLE | 0x9f) == 0x83 || task & (UNUSABLE | 0x9f) == 0x8b)
}

/// SVM's 12-bit attributes (APM 2 15.5.1): the same bits moved together; what is unusable is not present.
#[must_use]
pub const fn rights_to_svm(rights: u32) -> u16 {
    let attributes = (rights & 0xff | rights >> 4 & 0xf00) as u16;
    if rights & UNUSABLE != 0 { attributes & !0x80 } else { attributes }
}

/// VT-x's access rights from SVM's attributes.
#[must_use]
pub const fn rights_from_svm(attributes: u16) -> u32 {
    let attributes = attributes as u32;
    let unusable = (!attributes & 0x80) << 9;
    attributes & 0xff | (attributes & 0xf00) << 4 | unusable
}

/// TR for SVM: the processor saves its type as "available" and TCG insists on it; the state page always says "busy".
#[must_use]
pub const fn task_rights_to_svm(rights: u32) -> u16 {
    rights_to_svm(rights) & !2
}

/// TR from SVM, with the busy bit that the processor does not save.
#[must_use]
pub const fn task_rights_from_svm(attributes: u16) -> u32 {
    rights_from_svm(attributes) | 2
}

/// [`PortIo`] from SVM's EXITINFO1 (APM 2 15.10.2).
#[must_use]
pub const fn port_from_svm(info: u64) -> PortIo {
    PortIo(info & 0xffff_007d)
}

/// [`PortIo`] from VT-x's exit qualification (SDM table 27-5): all but the port by its lowest six bits.
#[must_use]
pub const fn port_from_vmx(qualification: u64) -> PortIo {
    const KINDS: [u8; 64] = {
        let mut kinds = [0; 64];
        let mut bits = 0;
        while bits < 64 {
            kinds[bits] = ((bits & 7) + 1 << 4 & 0x70 | bits >> 3 & 1 | (bits >> 4 & 3) << 2) as u8;
            bits += 1;
        }
        kinds
    };
    PortIo(qualification & 0xffff_0000 | KINDS[(qualification & 63) as usize] as u64)
}

/// [`vcpu::access`] from SVM's nested-page-fault EXITINFO1 (APM 2 15.25.6).
#[must_use]
pub const fn access_from_svm(info: u64) -> u64 {
    use vcpu::access::{FETCH, PRESENT, WALK, WRITE};
    flag(info, 1, WRITE) | flag(info, 4, FETCH) | flag(info, 0, PRESENT) | flag(info, 33, WALK)
}

/// [`vcpu::access`] from VT-x's EPT-violation qualification (SDM table 27-7).
#[must_use]
pub const fn access_from_vmx(qualification: u64) -> u64 {
    use vcpu::access::{FETCH, PRESENT, WALK, WRITE};
    let present = if qualification & 0x38 != 0 { PRESENT } else { 0 };
    let walk = if qualification & 0x180 == 0x80 { WALK } else { 0 };
    flag(qualification, 1, WRITE) | flag(qualification, 2, FETCH) | present | walk
}

/// Task-switch qualification in VT-x's format (selector; bits 30–31: CALL, IRET, JMP, gate) from SVM's EXITINFO
/// (APM 2 15.14.1). `through_gate`: an event was being delivered.
#[must_use]
pub const fn task_switch_from_svm(info1: u64, info2: u64, through_gate: bool) -> u64 {
    let source = if info2 >> 36 & 1 != 0 {
        1
    } else if info2 >> 38 & 1 != 0 {
        2
    } else if through_gate {
        3
    } else {
        0
    };
    info1 & 0xffff | source << 30
}

/// What a VMM may let its guest reach without an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsrAccess {
    /// RDMSR.
    pub read: bool,
    /// WRMSR.
    pub write: bool,
}

/// The most the kernel opens of an MSR, by what it can switch per vCPU; `None`: never opened. On VT-x the SYSCALL MSRs
/// are not part of the VMCS: the kernel loads them from its own copy at entry, and the host's stay there where the guest cannot tell.
#[must_use]
pub const fn msr_openable(msr: u32, svm: bool) -> Option<MsrAccess> {
    let (read, write) = match msr {
        // SYSENTER_CS, _ESP, _EIP; FS_BASE, GS_BASE, KERNEL_GS_BASE.
        0x174..=0x176 | 0xc000_0100..=0xc000_0102 => (true, true),
        // STAR, LSTAR, CSTAR, SFMASK.
        0xc000_0081..=0xc000_0084 => (svm, svm),
        // TSC_AUX is loaded for the vCPU, but not read back.
        0xc000_0103 => (true, false),
        _ => return None,
    };
    Some(MsrAccess { read, write })
}

/// Bits of an MSR in SVM's permission map: (read, write), or `None` outside the map (APM 2 15.11).
#[must_use]
pub const fn msr_bits_svm(msr: u32) -> Option<(usize, usize)> {
    let (base, first) = match msr {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x800, 0xc000_0000),
        0xc001_0000..=0xc001_1fff => (0x1000, 0xc001_0000),
        _ => return None,
    };
    let bit = base * 8 + (msr - first) as usize * 2;
    Some((bit, bit + 1))
}

/// Bits of an MSR in VT-x's bitmap: (read, write), or `None` outside the map (SDM 24.6.9).
#[must_use]
pub const fn msr_bits_vmx(msr: u32) -> Option<(usize, usize)> {
    let (base, first) = match msr {
        0..=0x1fff => (0, 0),
        0xc000_0000..=0xc000_1fff => (0x400, 0xc000_0000),
        _ => return None,
    };
    let bit = base * 8 + (msr - first) as usize;
    Some((bit, bit + 0x800 * 8))
}

/// The exit for SVM's exit codes that carry no detail of their own (APM 2 appendix C).
#[must_use]
pub const fn plain_exit_svm(code: u64) -> Exit {
    match code {
        0x63 => Exit::Init,
        0x64 => Exit::InterruptWindow,
        0x6f => Exit::Rdpmc,
        0x72 => Exit::Cpuid,
        0x74 => Exit::Iret,
        0x76 | 0x89 => Exit::CacheFlush,
        0x77 => Exit::Pause,
        0x78 => Exit::Halt,
        // RSM, INVLPGA, VMRUN, VMLOAD, VMSAVE, STGI, CLGI, SKINIT, RDPRU, INVLPGB, MCOMMIT, TLBSYNC.
        0x73 | 0x7a | 0x80 | 0x82..=0x86 | 0x8e | 0xa0 | 0xa1 | 0xa3 | 0xa4 => Exit::Undefined,
        0x7f => Exit::Shutdown,
        0x81 => Exit::Hypercall,
        0x8a..=0x8c => Exit::Mwait,
        0x8d => Exit::Xsetbv,
        _ => Exit::Other,
    }
}

/// The exit for VT-x's basic exit reasons that carry no detail of their own (SDM appendix C).
#[must_use]
pub const fn plain_exit_vmx(reason: u32) -> Exit {
    match reason {
        2 => Exit::Shutdown,
        3 => Exit::Init,
        7 => Exit::InterruptWindow,
        8 => Exit::NmiWindow,
        10 => Exit::Cpuid,
        12 => Exit::Halt,
        13 | 54 => Exit::CacheFlush,
        15 => Exit::Rdpmc,
        18 => Exit::Hypercall,
        // GETSEC, RSM, VMCLEAR to VMXON, INVEPT, INVVPID, VMFUNC, ENCLS, XSAVES, XRSTORS, UMWAIT, TPAUSE, ENCLV.
        11 | 17 | 19..=27 | 50 | 53 | 59 | 60 | 63 | 64 | 67 | 68 | 70 => Exit::Undefined,
        31 => Exit::MsrRead,
        32 => Exit::MsrWrite,
        36 | 39 => Exit::Mwait,
        40 => Exit::Pause,
        55 => Exit::Xsetbv,
        _ => Exit::Other,
    }
}

/// Groups that an exit writes when the VMM asks for no more: what handling it usually needs.
#[must_use]
pub const fn default_groups(exit: Exit) -> u64 {
    use vcpu::group::{ALL, CONTROL, DEBUG, INJECT, INTERRUPTIBILITY, RIP};
    match exit {
        Exit::Memory | Exit::ControlWrite => RIP | CONTROL,
        Exit::Exception | Exit::DebugRegister => RIP | CONTROL | DEBUG,
        Exit::Until | Exit::Kicked | Exit::Halt | Exit::InterruptWindow | Exit::NmiWindow => {
            RIP | INTERRUPTIBILITY | INJECT
        }
        Exit::Shutdown | Exit::InvalidState | Exit::TaskSwitch | Exit::Init | Exit::Other => ALL,
        _ => RIP,
    }
}

#[cfg(test)]
mod tests;
