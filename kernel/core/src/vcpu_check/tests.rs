//! Tests of the checks.
use super::*;
use proptest::prelude::*;

const LIMITS: Limits =
    Limits { cr4: cr4::BASE | cr4::PCIDE | cr4::OSXSAVE, efer: 0xd01, xcr0: 0xe7, spec_ctrl: 0, physical_bits: 40 };

#[test]
fn long_mode_needs_its_parts_and_lma_is_computed() {
    let long = Control { cr0: cr0::PG | cr0::PE, cr4: cr4::PAE, efer: efer::LME, ..Control::default() };
    let checked = long.checked(&LIMITS).unwrap();
    assert_eq!(checked.efer, efer::LME | efer::LMA);
    assert_eq!(checked.cr0 & cr0::ET, cr0::ET);
    assert!(Control { cr4: 0, ..long }.checked(&LIMITS).is_err());
    assert!(Control { cr0: cr0::PG, ..long }.checked(&LIMITS).is_err());
    assert!(Control { cr3: 1 << 40, ..long }.checked(&LIMITS).is_err());
    assert!(Control { cr4: cr4::PAE | cr4::VMXE, ..long }.checked(&LIMITS).is_err());
    assert!(Control { efer: efer::LME | efer::SVME, ..long }.checked(&LIMITS).is_err());
    let claimed = Control { cr0: cr0::PE, efer: efer::LME | efer::LMA, ..Control::default() };
    assert_eq!(claimed.checked(&LIMITS).unwrap().efer, efer::LME);
}

#[test]
fn xcr0_needs_its_parts() {
    for good in [1, 3, 7, 0xe7] {
        assert!(xcr0_valid(good, &LIMITS));
    }
    for bad in [0, 2, 5, 0x27, 0xe3, 0x207, 0x1f] {
        assert!(!xcr0_valid(bad, &LIMITS));
    }
}

#[test]
fn task_register_is_a_busy_tss_and_loses_its_busy_bit_on_svm() {
    let mut segments = [Segment { rights: 0xc093, ..Segment::default() }; 8];
    for (rights, good) in [(0x8b, true), (0x83, true), (0x89, false), (0x0b, false), (0x1008b, false), (0x9b, false)] {
        segments[seg::TR].rights = rights;
        assert_eq!(check_segments(&segments).is_ok(), good, "{rights:x}");
    }
    assert_eq!(task_rights_to_svm(0x8b), 0x89);
    assert_eq!(task_rights_from_svm(0x89), 0x8b);
    segments[seg::TR].rights = 0x8b;
    segments[seg::GS].base = 1 << 47;
    assert_eq!(check_segments(&segments), Err(invalid::CANONICAL));
}

#[test]
fn ports_mean_the_same_on_both_vendors() {
    // INS with REP, two bytes, port 1F0h.
    let vmx = port_from_vmx(0x01f0_0000 | 1 | 1 << 3 | 1 << 4 | 1 << 5);
    let svm = port_from_svm(0x01f0_0000 | 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 8 | 3 << 10);
    assert_eq!(vmx, PortIo::new(0x1f0, 2, true, true, true));
    assert_eq!(svm, vmx);
    assert_eq!(port_from_vmx(0xcf8_0000 | 3), PortIo::new(0xcf8, 4, false, false, false));
}

#[test]
fn maps_hold_what_they_should() {
    assert_eq!(msr_bits_svm(0xc000_0100), Some(((0x800 + 0x40) * 8, (0x800 + 0x40) * 8 + 1)));
    assert_eq!(msr_bits_svm(0x4000_0000), None);
    assert_eq!(msr_bits_vmx(0xc000_0102), Some((0x420 * 8 + 2, 0xc20 * 8 + 2)));
    assert_eq!(msr_bits_vmx(0xc001_0015), None);
    for msr in [0x10, 0x1b, 0x48, 0x277, 0x3a, 0xc000_0080, 0xc001_0114, 0xc001_0117, 0x1d9, 0x38f] {
        assert_eq!(msr_openable(msr, true).or(msr_openable(msr, false)), None, "{msr:x}");
    }
}

#[test]
fn software_events_are_told_apart() {
    let int3 = Event::from_svm(event::VALID | event::EXCEPTION | 3);
    assert!(int3.is_software());
    assert_eq!(int3.to_svm(), event::VALID | event::EXCEPTION | 3);
    assert!(!Event::from_svm(event::VALID | event::EXCEPTION | 14 | event::HAS_CODE).is_software());
    assert!(Event::from_svm(event::VALID | event::NMI | 2).is_nmi());
}

proptest! {
    #[test]
    fn whatever_is_accepted_has_no_reserved_bit(
        raw in any::<(u64, u64, u64, u64)>(), keep in any::<[u32; 4]>()
    ) {
        // Sparse values, so that some are accepted.
        let thin = |value: u64, mask: u32| value & u64::from(mask) & u64::from(mask.rotate_left(7));
        let control = Control {
            cr0: thin(raw.0, keep[0]), cr2: raw.1, cr3: thin(raw.1, keep[1]), cr4: thin(raw.2, keep[2]), efer: thin(raw.3, keep[3]),
        };
        if let Ok(done) = control.checked(&LIMITS) {
            prop_assert_eq!(done.cr0 & !cr0::DEFINED, 0);
            prop_assert_eq!(done.cr4 & !LIMITS.cr4, 0);
            prop_assert_eq!(done.efer & efer::SVME, 0);
            let long = done.cr0 & cr0::PG != 0 && done.efer & efer::LME != 0;
            prop_assert_eq!(done.efer & efer::LMA != 0, long);
            prop_assert_eq!(done.checked(&LIMITS), Ok(done));
        }
    }

    #[test]
    fn events_survive_svm_and_nothing_else_gets_in(inject in any::<u64>(), length in 0u64..20) {
        let inject = inject | event::VALID;
        if let Ok(event) = Event::checked(inject & 0xffff_ffff_8000_0fff, length) {
            prop_assert!(event.info & 0x7fff_f000 == 0);
            let back = Event::from_svm(event.to_svm());
            prop_assert_eq!(back.info & 0xff, event.info & 0xff);
            prop_assert_eq!(back.code, event.code);
            prop_assert_eq!(back.is_nmi(), event.is_nmi());
        }
        prop_assert_eq!(Event::checked(inject | 1 << 20, length), Err(invalid::EVENT));
    }

    #[test]
    fn segment_rights_survive_svm(rights in any::<u32>()) {
        let rights = rights & 0xf0ff | 0x80;
        prop_assert_eq!(rights_from_svm(rights_to_svm(rights)), rights);
        prop_assert_eq!(rights_from_svm(rights_to_svm(rights | UNUSABLE)) & UNUSABLE, UNUSABLE);
    }

    #[test]
    fn debug_registers_come_out_loadable(raw in any::<([u64; 4], u32, u32)>()) {
        let low = raw.0.map(|address| address & 0x7fff_ffff_ffff);
        let debug = Debug { dr: low, dr6: raw.1.into(), dr7: raw.2.into(), exceptions: 0 }.checked().unwrap();
        prop_assert_eq!((debug.dr6 >> 32, debug.dr7 >> 32), (0, 0));
        prop_assert_eq!(debug.dr7 & 0xd400, 0x400);
        prop_assert_eq!(debug.checked(), Ok(debug));
    }

    /// What a hostile VMM writes: valid states with a few bits turned over. What is refused is refused with a code of the ABI, and
    /// what is accepted loads: nothing the hardware knows as reserved, and accepted again.
    #[test]
    fn nearly_right_control_registers(
        base in 0usize..4, flips in prop::collection::vec((0usize..4, 0u32..64), 0..6), cr2 in any::<u64>(),
    ) {
        let (cr0, cr4, efer) = [(0x10, 0, 0), (0x11, 0, 0), (0x8000_0011, 0x20, 0x500), (0x8000_0031, 0x6a0, 0xd01)][base];
        let mut words = [cr0, 0x1000, cr4, efer];
        for (word, bit) in flips {
            words[word] ^= 1 << bit;
        }
        let control = Control { cr0: words[0], cr2, cr3: words[1], cr4: words[2], efer: words[3] };
        match control.checked(&LIMITS) {
            Err(code) => prop_assert_eq!(code, invalid::RESERVED),
            Ok(done) => {
                prop_assert_eq!(done.cr0 >> 32, 0);
                prop_assert!(done.cr0 & cr0::PG == 0 || done.cr0 & cr0::PE != 0);
                prop_assert!(done.cr0 & cr0::NW == 0 || done.cr0 & cr0::CD != 0);
                prop_assert!(done.efer & efer::LMA == 0 || done.cr4 & cr4::PAE != 0);
                prop_assert!(done.cr4 & cr4::PCIDE == 0 || done.efer & efer::LMA != 0);
                prop_assert_eq!(done.cr4 & cr4::VMXE, 0);
                prop_assert_eq!(done.cr3 >> LIMITS.physical_bits, 0);
                prop_assert_eq!((done.cr2, done.cr3), (cr2, words[1]));
                prop_assert_eq!(done.checked(&LIMITS), Ok(done));
            }
        }
    }

    /// Segments with a few bits turned over: bases are canonical, rights have no reserved bit, the task register is a busy TSS.
    #[test]
    fn nearly_right_segments(flips in prop::collection::vec((0usize..8, 0u32..3, 0u32..64), 0..6)) {
        let data = Segment { rights: 0xc093, limit: 0xffff_ffff, ..Segment::default() };
        let mut segments = [data; 8];
        segments[seg::CS].rights = 0xa09b;
        segments[seg::LDTR].rights = 0x1_0082;
        segments[seg::TR].rights = 0x8b;
        for (index, field, bit) in flips {
            let segment = &mut segments[index];
            match field {
                0 => segment.base ^= 1 << bit,
                1 => segment.rights ^= 1 << (bit & 31),
                _ => segment.limit ^= 1 << (bit & 31),
            }
        }
        match check_segments(&segments) {
            Err(code) => prop_assert!(code == invalid::CANONICAL || code == invalid::RESERVED),
            Ok(()) => {
                for segment in &segments {
                    prop_assert!(canonical(segment.base));
                    prop_assert_eq!(segment.rights & !(UNUSABLE | 0xf0ff), 0);
                    // SVM's attributes have twelve bits.
                    prop_assert_eq!(rights_to_svm(segment.rights) & 0xf000, 0);
                }
                // Present and available: what SVM saves and TCG insists on.
                prop_assert_eq!(task_rights_to_svm(segments[seg::TR].rights) & 0x82, 0x80);
                prop_assert_eq!(segments[seg::TR].rights & UNUSABLE, 0);
            }
        }
    }

    /// Every word that a VMM can put in the event field: what is accepted is a vector that its type allows, with an error code only
    /// where the processor knows one, and comes out of both formats again.
    #[test]
    fn events_are_what_processors_know(
        vector in any::<u8>(), kind in 0u64..8, has_code in any::<bool>(), code in any::<u32>(), length in 0u64..20, junk in any::<u64>(),
        dirty in any::<bool>(),
    ) {
        let junk = if dirty { junk & 0x7fff_f000 } else { 0 };
        let bit = if has_code { event::HAS_CODE } else { 0 };
        let word = event::VALID | u64::from(vector) | kind << 8 | bit | u64::from(code) << 32 | junk;
        match Event::checked(word, length) {
            Err(code) => prop_assert_eq!(code, invalid::EVENT),
            Ok(done) => {
                prop_assert_eq!(junk, 0);
                prop_assert!(!matches!(kind, 1 | 7));
                prop_assert!(kind != 2 || vector == 2);
                prop_assert!(kind != 3 || vector < 32 && vector != 2);
                prop_assert!(!has_code || kind == 3 && code >> 16 == 0);
                prop_assert_eq!(done.is_software(), kind >= 4);
                prop_assert!(!done.is_software() || (1..=15).contains(&done.length));
                prop_assert_eq!(Event::checked(done.packed(), done.length.into()), Ok(done));
                prop_assert_eq!(done.to_svm() >> 12 & 0x7_ffff, 0);
            }
        }
    }

    /// XCR0: what is accepted is a combination that XSETBV accepts.
    #[test]
    fn xcr0_is_loadable(value in 0u64..0x400, supported in 0u64..0x400) {
        let limits = Limits { xcr0: supported | 1, ..LIMITS };
        if xcr0_valid(value, &limits) {
            prop_assert_eq!(value & !(supported | 1), 0);
            prop_assert!(value & 1 != 0 && (value & 4 == 0 || value & 2 != 0));
            prop_assert!(matches!(value & 0xe0, 0 | 0xe0) && (value & 0xe0 == 0 || value & 4 != 0));
        }
    }
}
