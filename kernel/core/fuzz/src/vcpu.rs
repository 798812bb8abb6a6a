//! The state page of a vCPU as a hostile monitor fills it, and what the hardware reports.

use crate::Words;
use moira_abi::vcpu::{Exit, PortIo, Segment, event, invalid, seg};
use moira_kernel_core::vcpu_check::{self as check, Control, Debug, Event, Limits, cr0, cr4, efer};

/// Checks a whole page, and converts what an exit of either vendor says.
pub fn run(data: &[u8]) {
    let mut words = Words::new(data);
    let limits = Limits {
        cr4: cr4::BASE
            | words.number(4) & (cr4::PCIDE | cr4::OSXSAVE | cr4::SMEP | cr4::SMAP | cr4::UMIP | cr4::FSGSBASE),
        efer: efer::SCE | efer::LME | efer::LMA | efer::NXE,
        xcr0: 1 | words.number(1) & 0xe7,
        spec_ctrl: 0,
        physical_bits: 36 + words.number(1) as u32 % 17,
    };
    control(&mut words, &limits);
    debug(&mut words);
    inject(&mut words);
    segments(&mut words);
    let (pat, xcr0) = (words.word(), words.number(2));
    assert_eq!(check::pat_valid(pat), pat.to_le_bytes().iter().all(|kind| ![2, 3].contains(kind) && *kind < 8));
    if check::xcr0_valid(xcr0, &limits) {
        assert!(xcr0 & 1 != 0 && xcr0 & !limits.xcr0 == 0 && (xcr0 & 4 == 0 || xcr0 & 2 != 0), "{xcr0:x}");
    }
    exits(&mut words);
}

fn control(words: &mut Words<'_>, limits: &Limits) {
    let [cr0, cr2, cr3, cr4, efer] = [(); 5].map(|()| words.any());
    match (Control { cr0, cr2, cr3, cr4, efer }).checked(limits) {
        Err(code) => assert_eq!(code, invalid::RESERVED),
        Ok(done) => {
            let paging = done.cr0 & cr0::PG != 0;
            let long = paging && done.efer & efer::LME != 0;
            assert_eq!((done.cr0 & !cr0::DEFINED, done.cr4 & !limits.cr4, done.efer & efer::SVME), (0, 0, 0));
            assert!(!paging || done.cr0 & cr0::PE != 0, "paging without protection");
            assert!(done.cr0 & cr0::NW == 0 || done.cr0 & cr0::CD != 0, "NW without CD");
            assert_eq!(done.efer & efer::LMA != 0, long);
            assert!(!long || done.cr4 & cr4::PAE != 0, "long mode without PAE");
            assert!(done.cr4 & cr4::PCIDE == 0 || long, "PCID outside of long mode");
            assert_eq!((done.cr2, done.cr3 >> limits.physical_bits), (cr2, 0));
            assert_eq!(done.checked(limits), Ok(done), "what was accepted is accepted again");
        }
    }
}

fn debug(words: &mut Words<'_>) {
    let dr = [(); 4].map(|()| words.any());
    let [dr6, dr7, exceptions] = [(); 3].map(|()| words.any());
    match (Debug { dr, dr6, dr7, exceptions }).checked() {
        Err(code) => assert!(code == invalid::RESERVED || code == invalid::CANONICAL, "{code}"),
        Ok(done) => {
            assert!(done.dr.iter().all(|address| check::canonical(*address)), "{dr:x?}");
            assert_eq!((done.dr6 >> 32, done.dr7 >> 32, done.dr7 & 0xd400), (0, 0, 0x400));
            assert_eq!(done.checked(), Ok(done));
        }
    }
}

fn inject(words: &mut Words<'_>) {
    let (word, length) = (words.word(), words.number(1));
    match Event::checked(word, length) {
        Err(code) => assert_eq!(code, invalid::EVENT),
        Ok(done) => {
            let (kind, vector) = (u64::from(done.info) & event::TYPE, done.info & 0xff);
            assert_eq!(done.info & 0x7fff_f000, 0);
            assert!(kind != event::NMI || vector == 2 || done == Event::NONE, "{done:?}");
            assert!(kind != event::EXCEPTION || vector < 32 && vector != 2, "{done:?}");
            assert!(!done.is_software() || (1..=15).contains(&done.length), "{done:?}");
            assert_eq!(Event::checked(done.packed(), done.length.into()), Ok(done));
            let back = Event::from_svm(done.to_svm());
            assert_eq!((back.info & 0xff, back.code, back.is_nmi()), (done.info & 0xff, done.code, done.is_nmi()));
        }
    }
}

fn segments(words: &mut Words<'_>) {
    let mut segments = [Segment { rights: 0xc093, limit: u32::MAX, ..Segment::default() }; 8];
    segments[seg::TR].rights = 0x8b;
    for segment in &mut segments {
        match words.number(1) & 3 {
            0 => {}
            1 => segment.rights ^= words.number(3) as u32,
            2 => segment.base = words.word(),
            _ => (segment.rights, segment.base) = (words.number(4) as u32, words.any()),
        }
    }
    if check::check_segments(&segments).is_ok() {
        for segment in &segments {
            assert!(check::canonical(segment.base), "{segment:?}");
            let attributes = check::rights_to_svm(segment.rights);
            assert_eq!(attributes & 0xf000, 0, "SVM's attributes have twelve bits");
            if segment.rights & check::UNUSABLE == 0 && segment.rights & 0x80 != 0 {
                assert_eq!(check::rights_from_svm(attributes), segment.rights);
            }
        }
        let task = segments[seg::TR].rights;
        assert_eq!(check::task_rights_to_svm(task) & 0x82, 0x80, "present, and available as TCG wants it");
        assert_eq!(check::task_rights_from_svm(check::task_rights_to_svm(task)), task);
    }
}

fn exits(words: &mut Words<'_>) {
    let (one, two) = (words.word(), words.word());
    for port in [check::port_from_svm(one), check::port_from_vmx(one), PortIo(one)] {
        let _ = (port.port(), port.size(), port.input(), port.string(), port.rep());
    }
    assert_eq!(check::access_from_svm(one) & !0x1f, 0, "only bits of the ABI");
    assert_eq!(check::access_from_vmx(one) & !0x1f, 0, "only bits of the ABI");
    assert_eq!(check::task_switch_from_svm(one, two, one & 1 != 0) & !0xc000_ffff, 0);
    let _ = Event::from_svm(one).packed();
    for exit in [check::plain_exit_svm(one), check::plain_exit_vmx(two as u32)] {
        assert_eq!(Exit::from_code(exit as u64), Some(exit));
        assert_eq!(check::default_groups(exit) & !moira_abi::vcpu::group::ALL, 0);
    }
    let msr = words.number(4) as u32;
    let bits = [(check::msr_bits_svm(msr), 0x1800), (check::msr_bits_vmx(msr), 0x1000)];
    for (read, write, bytes) in
        bits.into_iter().filter_map(|(bits, bytes)| bits.map(|(read, write)| (read, write, bytes)))
    {
        assert!(read < write && write < 8 * bytes, "the maps have 6 and 4 KiB: {msr:x}");
    }
    for svm in [false, true] {
        let open = check::msr_openable(msr, svm);
        let mapped = if svm { check::msr_bits_svm(msr) } else { check::msr_bits_vmx(msr) }.is_some();
        assert!(open.is_none() || mapped, "what may be opened has its place in the map: {msr:x}");
    }
}

/// States that are accepted, as starting points.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    // Limits, then CR0, CR2, CR3, CR4 and EFER, each behind its size.
    let state = |cr0: u32, cr4: u16, efer: u16| {
        let mut bytes = vec![0xff, 0xff, 0xff, 0xff, 7, 4, 2];
        bytes.extend(cr0.to_le_bytes());
        bytes.extend([1, 0, 0, 1, 0, 0x10, 1]);
        bytes.extend(cr4.to_le_bytes());
        bytes.push(1);
        bytes.extend(efer.to_le_bytes());
        // DR0 to DR7 and exceptions, an external interrupt, segments as they are.
        bytes.extend([0; 14]);
        bytes.extend((event::VALID | 0x20).to_le_bytes());
        bytes.extend([0; 9]);
        bytes.extend(0x0007_0406_0007_0406u64.to_le_bytes());
        bytes.extend([7, 0]);
        bytes
    };
    vec![state(0x10, 0, 0), state(0x11, 0, 0), state(0x8000_0011, 0x20, 0x500), state(0x8005_0033, 0x6f0, 0xd01)]
}
