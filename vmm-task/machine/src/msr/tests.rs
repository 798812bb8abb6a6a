//! Tests of the MSR policy.

use super::*;
use proptest::prelude::*;

fn policy(vendor: Vendor) -> MsrPolicy {
    MsrPolicy::new(MsrConfig {
        vendor,
        physical_bits: 40,
        speculation_control: true,
        arch_capabilities: Some(0x2B),
        efer_mask: efer_mask(1 << 11 | 1 << 20 | 1 << 29),
    })
}

const REAL: CpuState = CpuState { cr0: 0x10, efer: 0 };
const LONG: CpuState = CpuState { cr0: 0x8000_0011, efer: EFER_LME | EFER_LMA | EFER_SCE };

#[test]
fn every_listed_register_reads() {
    let mut common: std::vec::Vec<u32> =
        std::vec![0x10, 0x1B, 0x3B, 0x48, 0x8B, 0xFE, 0x277, 0x2FF, 0x174, 0x175, 0x176, 0x179, 0x17A, 0x1D9, 0x6E0];
    common.extend(0x200..=0x20F);
    common.extend([0x250, 0x258, 0x259]);
    common.extend(0x268..=0x26F);
    common.push(0x1A0);
    common.extend(0x800..=0x83F);
    common.extend(0xC000_0080..=0xC000_0084);
    common.extend(0xC000_0100..=0xC000_0103);
    let intel = [0x3A, 0x10A, 0x17];
    let amd = [
        0xC001_0000,
        0xC001_0007,
        0xC001_0010,
        0xC001_0015,
        0xC001_001F,
        0xC001_0055,
        0xC001_0131,
        0xC001_1029,
        0xC001_0058,
        0xC001_0112,
        0xC001_0113,
        0xC001_1022,
        0xC001_1023,
        0xC001_102A,
    ];
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let p = policy(vendor);
        for &msr in &common {
            assert_ne!(p.read(msr), Read::Fault, "{msr:#x}");
        }
        for (list, owner) in [(&intel[..], Vendor::Intel), (&amd[..], Vendor::Amd)] {
            for &msr in list {
                assert_eq!(p.read(msr) == Read::Fault, owner != vendor, "{msr:#x} on {vendor:?}");
            }
        }
        // Performance counters, thermal, machine-check banks, XSS, VM_CR, VMX capabilities.
        for msr in [0xC1, 0xC2, 0xE7, 0xE8, 0x186, 0x38D, 0x19C, 0x400, 0x480, 0xDA0, 0xC001_0114, 0xC001_0117, 0x49] {
            assert_eq!(p.read(msr), Read::Fault, "{msr:#x}");
        }
    }
    for (vendor, value, done) in
        [(Vendor::Amd, 0, Write::Done), (Vendor::Amd, 1, Write::Fault), (Vendor::Intel, 0, Write::Fault)]
    {
        assert_eq!(policy(vendor).write(MMIO_CONF_BASE, value, LONG), done);
    }
    assert_eq!(policy(Vendor::Intel).read(FEATURE_CONTROL), Read::Value(1));
    assert_eq!(policy(Vendor::Intel).read(MICROCODE_REVISION), Read::Value(0xFFFF_FFFF_0000_0000));
    assert_eq!(policy(Vendor::Amd).read(HWCR), Read::Value(1 << 24));
}

#[test]
fn kernel_held_values_are_checked() {
    let mut p = policy(Vendor::Intel);
    for msr in [LSTAR, CSTAR, FS_BASE, GS_BASE, KERNEL_GS_BASE, SYSENTER_ESP, SYSENTER_EIP] {
        assert_eq!(p.write(msr, 0x8000_0000_0000, LONG), Write::Fault, "{msr:#x}");
        assert!(matches!(p.write(msr, 0xFFFF_8000_0000_0000, LONG), Write::Kernel(..)));
    }
    assert_eq!(p.write(PAT, 0x0007_0406_0007_0406, LONG), Write::Kernel(KernelMsr::Pat, 0x0007_0406_0007_0406));
    for bad in [2, 3, 8, 0xFF] {
        assert_eq!(p.write(PAT, bad << 24, LONG), Write::Fault);
    }
    assert_eq!(p.write(TSC_AUX, 1 << 32, LONG), Write::Fault);
    assert_eq!(p.write(SPEC_CTRL, 8, LONG), Write::Fault);
    assert_eq!(p.write(PRED_CMD, 1, LONG), Write::Kernel(KernelMsr::PredCmd, 1));
    let mut plain = MsrPolicy::new(MsrConfig { speculation_control: false, arch_capabilities: None, ..p.config });
    assert_eq!(plain.write(SPEC_CTRL, 0, LONG), Write::Fault);
    assert_eq!(plain.read(ARCH_CAPABILITIES), Read::Fault);
}

#[test]
fn efer_keeps_its_rules() {
    let mut p = policy(Vendor::Amd);
    assert_eq!(p.write(EFER, EFER_LME | EFER_SCE | EFER_NXE, REAL), Write::Kernel(KernelMsr::Efer, 0x901));
    assert_eq!(p.write(EFER, 0, LONG), Write::Fault, "LME with paging on");
    assert_eq!(p.write(EFER, EFER_LME, LONG), Write::Kernel(KernelMsr::Efer, 0x500), "LMA is not the guest's to clear");
    assert_eq!(p.write(EFER, EFER_LMA, REAL), Write::Kernel(KernelMsr::Efer, 0), "nor to set");
    assert_eq!(p.write(EFER, 1 << 12, REAL), Write::Fault, "SVME");
    assert_eq!(p.write(EFER, EFER_FFXSR, REAL), Write::Fault, "not in this CPUID");
}

#[test]
fn tsc_and_its_adjustment_move_together() {
    let mut p = policy(Vendor::Intel);
    assert_eq!(p.write(TSC_ADJUST, 100, LONG), Write::AdjustTsc(100));
    assert_eq!(p.write(TSC_ADJUST, 40, LONG), Write::AdjustTsc(-60));
    assert_eq!(p.write(TSC, 5000, LONG), Write::SetTsc(5000));
    p.tsc_was_set(-41);
    assert_eq!(p.read(TSC_ADJUST), Read::Value(u64::MAX));
}

#[test]
fn accepted_writes() {
    let mut p = policy(Vendor::Intel);
    assert_eq!(p.write(MICROCODE_REVISION, 0, LONG), Write::Done);
    assert_eq!(p.write(DEBUGCTL, 1, LONG), Write::Done);
    assert_eq!(p.write(DEBUGCTL, 1 << 6, LONG), Write::Fault);
    assert_eq!(p.write(MISC_ENABLE, 0, LONG), Write::Done);
    assert_eq!(p.read(MISC_ENABLE), Read::Value(1 << 11 | 1 << 12), "unavailable stays unavailable");
    assert_eq!(p.write(FEATURE_CONTROL, 5, LONG), Write::Fault, "locked");
    assert_eq!(p.write(MCG_CAP, 0, LONG), Write::Fault);
    assert_eq!(p.write(APIC_BASE, 0xFEE0_0900, LONG), Write::ApicBase(0xFEE0_0900));
    assert_eq!(p.write(0x830, 7, LONG), Write::X2Apic(0x30, 7));
    let mut amd = policy(Vendor::Amd);
    assert_eq!(amd.write(HWCR, 1 << 6, LONG), Write::Done);
    assert_eq!(amd.read(HWCR), Read::Value(1 << 24 | 1 << 6));
    assert_eq!(amd.write(SYSCFG, 1 << 23, LONG), Write::Fault, "memory encryption");
    assert_eq!(amd.write(NB_CFG, 1 << 46, LONG), Write::Done);
}

#[test]
fn unknown_registers_are_reported_once_each_and_not_for_ever() {
    let mut p = policy(Vendor::Intel);
    assert!(p.first_sight(0x123));
    assert!(!p.first_sight(0x123));
    assert_eq!((0..1000).filter(|&m| p.first_sight(m)).count(), 63);
}

#[test]
fn mtrrs_behave_as_registers() {
    let mut m = Mtrr::reset(40);
    assert_eq!(m.read(0xFE), Some(0x508));
    assert_eq!(m.memory_type(0), 0, "off means uncacheable");
    assert!(!m.write(0xFE, 0));
    assert!(!m.write(0x2FF, 2), "no such type");
    assert!(!m.write(0x2FF, 1 << 12));
    assert!(!m.write(0x200, 1 << 40), "beyond the physical width");
    assert!(!m.write(0x201, 1), "reserved");
    assert!(!m.write(0x250, 7));
    assert!(!m.write(0x251, 0), "no such register");
    assert!(m.write(0x201, 0xFF_F000_0800));
    assert_eq!(m.read(0x201), Some(0xFF_F000_0800));
    m.set_like_firmware();
    assert_eq!(m.read(0x2FF), Some(0xC06));
    let types = [
        (0, 6),
        (0x9_FFFF, 6),
        (0xA_0000, 0),
        (0xB_FFFF, 0),
        (0xC_0000, 6),
        (0xF_FFFF, 6),
        (0x10_0000, 6),
        (0xAFFF_FFFF, 6),
        (0xB000_0000, 0),
        (0xBFFF_FFFF, 0),
        (0xC000_0000, 0),
        (0xFFFF_FFFF, 0),
        (0x1_0000_0000, 6),
    ];
    for (address, kind) in types {
        assert_eq!(m.memory_type(address), kind, "{address:#x}");
    }
    for msr in 0x200..0x210 {
        let value = m.read(msr).unwrap();
        assert!(m.write(msr, value), "what firmware set can be written back");
    }
}

proptest! {
    #[test]
    fn any_access_has_an_answer(msr in any::<u32>(), value in any::<u64>(), cr0 in any::<u64>(), efer in any::<u64>(), amd in any::<bool>()) {
        let mut p = policy(if amd { Vendor::Amd } else { Vendor::Intel });
        for msr in [msr, msr & 0x1FFF, 0xC000_0000 | msr & 0x1FFF, 0xC001_0000 | msr & 0x1FFF] {
            let before = p.read(msr);
            match p.write(msr, value, CpuState { cr0, efer }) {
                Write::Fault => prop_assert_eq!(p.read(msr), before, "a refused write changes nothing"),
                Write::Kernel(KernelMsr::Efer, v) => prop_assert_eq!(v & 1 << 12, 0),
                _ => {}
            }
        }
    }

    #[test]
    fn whatever_is_accepted_reads_back_in_the_mtrrs(msr in 0x200u32..0x300, value in any::<u64>()) {
        let mut m = Mtrr::reset(40);
        for value in [value, value & 0xFF_FFFF_F806, value & 0x0606_0606_0606_0606] {
            if m.write(msr, value) {
                prop_assert_eq!(m.read(msr), Some(value));
            }
        }
        let _ = m.memory_type(value);
    }
}
