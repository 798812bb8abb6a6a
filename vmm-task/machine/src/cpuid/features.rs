//! The feature bits that may pass, word by word. The manuals: SDM vol. 2A, CPUID; APM vol. 3, appendix E.

use super::Leaf;

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

const OSXSAVE: u32 = 1 << 27;

/// Leaf 1 ECX: SSE3, PCLMULQDQ, SSSE3, FMA, CX16, SSE4.1, SSE4.2, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
pub const L1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 1 ECX bits that are ours: x2APIC and TSC deadline (the VMM's APIC has them), hypervisor.
pub const L1_ECX_OURS: u32 = bits(&[21, 24, 31]);
/// Leaf 1 ECX: XSAVE.
pub const L1_ECX_XSAVE: u32 = bits(&[26]);
/// Leaf 1 ECX bits that need AVX state: FMA, AVX, F16C.
pub const L1_ECX_AVX: u32 = bits(&[12, 28, 29]);
/// Leaf 1 ECX: PCID.
pub const L1_ECX_PCID: u32 = bits(&[17]);
/// Leaf 1 EDX: FPU to MCE, CX8, APIC, SEP, MTRR, PGE, MCA, CMOV, PAT, PSE36, CLFLUSH, MMX, FXSR, SSE, SSE2, SS.
pub const L1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26, 27]);
/// Leaf 1 EDX bits that are ours: APIC, MTRR.
pub const L1_EDX_OURS: u32 = bits(&[9, 12]);
/// Leaf 1 EDX: more than one logical processor in the package.
pub const L1_EDX_HTT: u32 = bits(&[28]);

/// Leaf 6 EAX: the APIC timer runs in every idle state.
pub const L6_EAX_ARAT: u32 = bits(&[2]);

/// Leaf 7.0 EBX: FSGSBASE, BMI1, AVX2, FDP, SMEP, BMI2, ERMS, FPCSDS, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, SHA, AVX-512.
pub const L7_EBX: u32 = bits(&[0, 3, 5, 6, 7, 8, 9, 13, 16, 17, 18, 19, 20, 21, 23, 24, 28, 29, 30, 31]);
/// Leaf 7.0 EBX bit that is ours: TSC_ADJUST.
pub const L7_EBX_OURS: u32 = bits(&[1]);
/// Leaf 7.0 EBX: INVPCID.
pub const L7_EBX_PCID: u32 = bits(&[10]);
/// Leaf 7.0 EBX: AVX2.
pub const L7_EBX_AVX: u32 = bits(&[5]);
/// Leaf 7.0 EBX: the AVX-512 family.
pub const L7_EBX_AVX512: u32 = bits(&[16, 17, 21, 28, 30, 31]);
/// Leaf 7.0 ECX: PREFETCHWT1, VBMI, UMIP, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ, RDPID, CLDEMOTE, MOVDIRI,
/// MOVDIR64B.
pub const L7_ECX: u32 = bits(&[0, 1, 2, 6, 8, 9, 10, 11, 12, 14, 22, 25, 27, 28]);
/// Leaf 7.0 ECX: VAES, VPCLMULQDQ.
pub const L7_ECX_AVX: u32 = bits(&[9, 10]);
/// Leaf 7.0 ECX: VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
pub const L7_ECX_AVX512: u32 = bits(&[1, 6, 11, 12, 14]);
/// Leaf 7.0 EDX: 4VNNIW, 4FMAPS, FSRM, VP2INTERSECT, MD_CLEAR, SERIALIZE.
pub const L7_EDX: u32 = bits(&[2, 3, 4, 8, 10, 14]);
/// Leaf 7.0 EDX: the AVX-512 family.
pub const L7_EDX_AVX512: u32 = bits(&[2, 3, 8]);
/// Leaf 7.0 EDX: IBRS and IBPB, STIBP, SSBD.
pub const L7_EDX_SPECULATION: u32 = bits(&[26, 27, 31]);
/// Leaf 7.0 EDX: IA32_ARCH_CAPABILITIES.
pub const L7_EDX_ARCH_CAPABILITIES: u32 = bits(&[29]);
/// Leaf 7.1 EAX: AVX-VNNI, AVX512_BF16, fast short REP operations.
pub const L7_1_EAX: u32 = bits(&[4, 5, 10, 11, 12]);
/// Leaf 7.1 EAX: AVX-VNNI.
pub const L7_1_EAX_AVX: u32 = bits(&[4]);
/// Leaf 7.1 EAX: AVX512_BF16.
pub const L7_1_EAX_AVX512: u32 = bits(&[5]);

/// Leaf 0Dh.1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX = 1. Not XSAVES, nor XFD.
pub const LD_1_EAX: u32 = bits(&[0, 1, 2]);

/// Leaf 80000001h ECX: LAHF, CMP_LEGACY, CR8, ABM, SSE4A, misaligned SSE, PREFETCHW, XOP, FMA4, TBM.
pub const X1_ECX: u32 = bits(&[0, 4, 5, 6, 7, 8, 11, 16, 21]);
/// Leaf 80000001h ECX: XOP, FMA4.
pub const X1_ECX_AVX: u32 = bits(&[11, 16]);
/// Leaf 80000001h ECX, AMD with more than one core: CMP_LEGACY.
pub const X1_ECX_CMP_LEGACY: u32 = bits(&[1]);
/// Leaf 80000001h ECX, AMD: topology leaves 8000001Dh and 8000001Eh.
pub const X1_ECX_TOPOLOGY: u32 = bits(&[22]);
/// Leaf 80000001h EDX, both vendors: SYSCALL, NX, 1 GiB pages, RDTSCP, long mode.
pub const X1_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// Leaf 80000001h EDX, AMD only: MMXEXT, FXSR, FFXSR, 3DNOWEXT, 3DNOW, and copies of leaf 1's.
pub const X1_EDX_AMD: u32 = bits(&[22, 24, 25, 30, 31]) | (L1_EDX & 0x0183_F3FF);
/// Leaf 80000001h EDX, AMD only, ours: the copies of APIC and MTRR.
pub const X1_EDX_AMD_OURS: u32 = L1_EDX_OURS;

/// Leaf 80000007h EDX: invariant TSC.
pub const X7_EDX_INVARIANT_TSC: u32 = bits(&[8]);
/// Leaf 80000008h EBX: CLZERO, XSAVEERPTR, WBNOINVD.
pub const X8_EBX: u32 = bits(&[0, 2, 9]);
/// Leaf 80000008h EBX: IBPB, IBRS, STIBP, always-on hints, SSBD.
pub const X8_EBX_SPECULATION: u32 = bits(&[12, 14, 15, 16, 17, 18, 24]);
/// Leaf 80000008h EBX: not vulnerable to speculative store bypass.
pub const X8_EBX_SSB_NO: u32 = bits(&[26]);
/// Leaf 80000021h EAX: LFENCE always serialises, null selector clears base.
pub const X21_EAX: u32 = bits(&[2, 6]);

/// Shows CR4.OSXSAVE in leaf 1.
pub fn set_osxsave(leaf1: &mut Leaf, on: bool) {
    leaf1.ecx = if on { leaf1.ecx | OSXSAVE } else { leaf1.ecx & !OSXSAVE };
}

/// Hides the APIC of leaf 1 or 80000001h unless it is on.
pub fn set_apic(features: &mut Leaf, on: bool) {
    const APIC: u32 = 1 << 9;
    if !on {
        features.edx &= !APIC;
    }
}
