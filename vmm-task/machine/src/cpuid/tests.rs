//! Tests of the CPUID policy over invented hosts: the best and the worst that a policy can meet.

use super::*;
use proptest::prelude::*;

const XCR0: u64 = 0b1110_0111;

fn config(cpus: u32) -> CpuidConfig {
    CpuidConfig {
        cpus,
        xcr0: XCR0,
        tsc_khz: 2_500_000,
        apic_timer_hz: 1_000_000_000,
        physical_bits: 40,
        speculation_control: false,
        arch_capabilities: None,
        pcid: false,
    }
}

/// A host with every feature bit set, in the vendor's form.
fn full_host(vendor: Vendor) -> impl Fn(u32, u32) -> Leaf {
    let name = match vendor {
        Vendor::Intel => Leaf::new(0x20, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
        Vendor::Amd => Leaf::new(0x10, 0x6874_7541, 0x444D_4163, 0x6974_6E65),
    };
    move |leaf, subleaf| match (leaf, subleaf) {
        (0, _) => name,
        (EXTENDED, _) => Leaf { eax: 0x8000_0028, ..name },
        (0x8000_0008, _) => Leaf::new(0x3034, u32::MAX, u32::MAX, 0),
        (4 | 0x8000_001D, 0..3) => Leaf::new(0x3C00_C001 | (subleaf + 1) << 5, 0x01C0_003F, 63, 0),
        (4 | 0x8000_001D, _) => Leaf::default(),
        (0xD, 0) => Leaf::new(u32::MAX, 0x2000, 0x2000, 0),
        (0xD, 2) => Leaf::new(256, 576, 0, 0),
        (0xD, 5) => Leaf::new(64, 1088, 0, 0),
        (0xD, 6) => Leaf::new(512, 1152, 0, 0),
        (0xD, 7) => Leaf::new(1024, 1664, 2, 0),
        _ => Leaf::new(u32::MAX, u32::MAX, u32::MAX, u32::MAX),
    }
}

fn table(vendor: Vendor, cpus: u32, apic_id: u32) -> CpuidTable {
    CpuidTable::new(&config(cpus), apic_id, &full_host(vendor))
}

fn ask(table: &CpuidTable, leaf: u32, subleaf: u32) -> Leaf {
    table.answer(leaf, subleaf, Live { osxsave: false, xcr0: 1, apic: true })
}

#[test]
fn what_must_be_hidden_is_hidden() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let t = table(vendor, 4, 0);
        let one = ask(&t, 1, 0);
        // MONITOR, VMX, thermal, PDCM (PMU), PCID.
        for bit in [3, 5, 7, 8, 15, 17] {
            assert_eq!(one.ecx >> bit & 1, 0, "leaf 1 ECX bit {bit}");
        }
        for bit in [21, 24, 31] {
            assert_eq!(one.ecx >> bit & 1, 1, "leaf 1 ECX bit {bit}");
        }
        assert_eq!(one.edx & (1 << 22 | 1 << 29), 0, "thermal");
        assert_eq!(ask(&t, 5, 0), Leaf::default(), "MONITOR");
        assert_eq!(ask(&t, 6, 0), Leaf::new(4, 0, 0, 0), "ARAT only");
        let seven = ask(&t, 7, 0);
        // SGX, HLE, INVPCID, RTM, MPX, PT.
        for bit in [2, 4, 10, 11, 14, 25] {
            assert_eq!(seven.ebx >> bit & 1, 0, "leaf 7 EBX bit {bit}");
        }
        assert_eq!(seven.ebx & 2, 2, "TSC_ADJUST");
        // PKU, OSPKE, LA57.
        assert_eq!(seven.ecx & (1 << 3 | 1 << 4 | 1 << 16), 0);
        assert_eq!(seven.edx & (0xD << 26 | 1 << 29), 0, "no speculation control unless configured");
        assert_eq!(ask(&t, 0xA, 0), Leaf::default(), "PMU");
        assert_eq!(ask(&t, 0xD, 1).eax & (1 << 3 | 1 << 4), 0, "XSAVES, XFD");
        for leaf in [0xF, 0x10, 0x12, 0x14] {
            assert_eq!(ask(&table(Vendor::Amd, 4, 0), leaf, 0), Leaf::default());
        }
        assert_eq!(ask(&t, 0x8000_0001, 0).ecx & (1 << 2 | 1 << 12 | 1 << 23 | 1 << 29), 0, "SVM and friends");
        assert_eq!(ask(&t, 0x8000_0007, 0), Leaf::new(0, 0, 0, 1 << 8), "invariant TSC only");
        assert_eq!(ask(&t, 0x8000_000A, 0), Leaf::default());
    }
}

#[test]
fn signature_and_ranges() {
    let t = table(Vendor::Amd, 1, 0);
    let h = ask(&t, HYPERVISOR, 0);
    let mut name = std::vec::Vec::new();
    [h.ebx, h.ecx, h.edx].iter().for_each(|w| name.extend_from_slice(&w.to_le_bytes()));
    assert_eq!(name, b"MoiraMoira  ");
    assert_eq!(h.eax, HYPERVISOR);
    assert_eq!(ask(&t, 0, 0).eax, 0xD);
    for leaf in [0x17, 0xFFFF, 0x4000_0001, 0x4001_0000, 0x8000_0099, 0xFFFF_FFFF] {
        assert_eq!(ask(&t, leaf, 0), Leaf::default(), "{leaf:#x}");
    }
    let t = table(Vendor::Intel, 1, 0);
    assert_eq!(ask(&t, 0x17, 0), ask(&t, 0x16, 0), "Intel repeats its highest basic leaf");
    assert_eq!(ask(&t, 0x9000_0000, 0), ask(&t, 0x16, 0));
    assert_eq!(ask(&t, 0x4000_0100, 0), Leaf::default());
}

#[test]
fn topology_leaves_agree() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (64, 6)] {
            let id = cpus - 1;
            let t = table(vendor, cpus, id);
            let one = ask(&t, 1, 0);
            assert_eq!(one.ebx >> 24, id);
            assert_eq!(one.ebx >> 16 & 0xFF, 1 << bits);
            assert_eq!(one.edx >> 28 & 1, u32::from(cpus > 1));
            assert_eq!(ask(&t, 0xB, 0), Leaf::new(0, 1, 0x100, id));
            assert_eq!(ask(&t, 0xB, 1), Leaf::new(bits, cpus, 0x201, id));
            assert_eq!(ask(&t, 0xB, 2), Leaf::new(0, 0, 2, id));
            if vendor == Vendor::Intel {
                assert_eq!(ask(&t, 4, 0).eax >> 26, (1 << bits) - 1);
                assert_eq!(ask(&t, 4, 0).eax >> 14 & 0xFFF, 0, "L1 is not shared");
                assert_eq!(ask(&t, 4, 2).eax >> 14 & 0xFFF, (1 << bits) - 1, "the last level is shared by all");
                assert_eq!(ask(&t, 4, 3), Leaf::default());
            } else {
                let eight = ask(&t, 0x8000_0008, 0);
                assert_eq!((eight.ecx & 0xFF, eight.ecx >> 12 & 0xF), (id, bits));
                assert_eq!(ask(&t, 0x8000_001E, 0), Leaf::new(id, id, 0, 0));
                assert_eq!(ask(&t, 0x8000_001D, 2).eax >> 14 & 0xFFF, cpus - 1);
                assert_eq!(ask(&t, 0x8000_0001, 0).ecx >> 1 & 1, u32::from(cpus > 1));
            }
        }
    }
}

#[test]
fn xsave_sizes_follow_xcr0() {
    let t = table(Vendor::Intel, 1, 0);
    let size = |xcr0| t.answer(0xD, 0, Live { osxsave: true, xcr0, apic: true }).ebx;
    assert_eq!((size(1), size(3), size(7), size(XCR0)), (576, 576, 832, 2688));
    let zero = ask(&t, 0xD, 0);
    assert_eq!((zero.eax, zero.ecx, zero.edx), (XCR0 as u32, 2688, 0));
    assert_eq!(ask(&t, 0xD, 2), Leaf::new(256, 576, 0, 0));
    assert_eq!(ask(&t, 0xD, 3), Leaf::default(), "MPX");
    assert_eq!(ask(&t, 0xD, 9), Leaf::default(), "PKRU");
    assert_eq!(ask(&t, 0xD, 7).ecx, 2, "alignment passes");
    // 576 + 256, then 64 and 512 packed, then 1024 aligned to 64.
    assert_eq!(t.answer(0xD, 1, Live { osxsave: true, xcr0: XCR0, apic: true }).ebx, 832 + 64 + 512 + 1024);
    let one = |osxsave| t.answer(1, 0, Live { osxsave, xcr0: 7, apic: true }).ecx >> 27 & 1;
    assert_eq!((one(false), one(true)), (0, 1));
}

#[test]
fn without_xcr0_no_vector_extension_is_left() {
    for vendor in [Vendor::Intel, Vendor::Amd] {
        let host = full_host(vendor);
        let none = CpuidTable::new(&CpuidConfig { xcr0: 0, ..config(1) }, 0, &host);
        assert_eq!(ask(&none, 1, 0).ecx & (1 << 26 | 1 << 28 | 1 << 12 | 1 << 29), 0);
        assert_eq!(ask(&none, 7, 0).ebx & (1 << 5 | 1 << 16 | 1 << 31), 0);
        assert_eq!(ask(&none, 0xD, 0), Leaf::default());
        let sse = CpuidTable::new(&CpuidConfig { xcr0: 3, ..config(1) }, 0, &host);
        assert_eq!(ask(&sse, 1, 0).ecx >> 26 & 1, 1);
        assert_eq!(ask(&sse, 1, 0).ecx >> 28 & 1, 0);
        let avx = CpuidTable::new(&CpuidConfig { xcr0: 0b1100_0111, ..config(1) }, 0, &host);
        assert_eq!(ask(&avx, 0xD, 0).eax, 7, "half of AVX-512 is none of it");
        assert_eq!(ask(&avx, 7, 0).ebx >> 16 & 1, 0);
        assert_eq!(ask(&avx, 7, 0).ebx >> 5 & 1, 1);
    }
}

#[test]
fn frequencies_are_exact_or_absent() {
    let tsc_hz = |c: CpuidConfig| {
        let l = ask(&CpuidTable::new(&c, 0, &full_host(Vendor::Intel)), 0x15, 0);
        (l.eax > 0).then(|| u64::from(l.ecx) * u64::from(l.ebx) / u64::from(l.eax))
    };
    assert_eq!(tsc_hz(config(1)), Some(2_500_000_000));
    // A ratio whose product with the crystal leaves 32 bits is not given.
    let odd = CpuidConfig { tsc_khz: 2_500_001, ..config(1) };
    assert_eq!(tsc_hz(odd), None);
    assert_eq!(ask(&CpuidTable::new(&odd, 0, &full_host(Vendor::Intel)), 0x16, 0), Leaf::default());
    assert_eq!(tsc_hz(CpuidConfig { apic_timer_hz: 0, ..config(1) }), None);
    assert_eq!(ask(&table(Vendor::Intel, 1, 0), 0x16, 0).eax, 2500);
    assert_eq!(ask(&table(Vendor::Amd, 1, 0), 0x15, 0), Leaf::default());
}

#[test]
fn options_show_what_they_promise() {
    let with = |c: CpuidConfig, v| CpuidTable::new(&c, 0, &full_host(v));
    let spec = with(CpuidConfig { speculation_control: true, ..config(1) }, Vendor::Intel);
    assert_eq!(ask(&spec, 7, 0).edx >> 26 & 0b100011, 0b100011);
    let caps = with(CpuidConfig { arch_capabilities: Some(1), ..config(1) }, Vendor::Intel);
    assert_eq!(ask(&caps, 7, 0).edx >> 29 & 1, 1);
    let pcid = with(CpuidConfig { pcid: true, ..config(1) }, Vendor::Intel);
    assert_eq!((ask(&pcid, 1, 0).ecx >> 17 & 1, ask(&pcid, 7, 0).ebx >> 10 & 1), (1, 1));
    assert_eq!(ask(&spec, 0x8000_0008, 0).eax, 0x3028, "the configured physical width, never five-level paging");
}

proptest! {
    /// Any host and any question: no panic, and nothing the host lacks but what is ours.
    #[test]
    fn no_host_makes_it_panic(words in prop::collection::vec(any::<u32>(), 64), cpus in 0u32..300, leaf in any::<u32>(),
                              subleaf in any::<u32>(), xcr0 in any::<u64>(), tsc_khz in any::<u32>(), apic in any::<u32>()) {
        let host = |leaf: u32, subleaf: u32| {
            let at = (leaf.wrapping_mul(7).wrapping_add(subleaf.wrapping_mul(3)) % 61) as usize;
            Leaf::new(words[at], words[at + 1], words[at + 2], words[at + 3])
        };
        let c = CpuidConfig { cpus, xcr0, tsc_khz, apic_timer_hz: apic, ..config(1) };
        let t = CpuidTable::new(&c, apic, &host);
        for leaf in [leaf, leaf & 0x1F, EXTENDED | leaf & 0x1F, 0xD, 1] {
            for subleaf in [subleaf, subleaf & 0x1F] {
                let _ = t.answer(leaf, subleaf, Live { osxsave: true, xcr0, apic: true });
            }
        }
        prop_assert_eq!(ask(&t, 1, 0).ecx & 1, host(1, 0).ecx & u32::from(host(0, 0).eax >= 1));
    }
}
