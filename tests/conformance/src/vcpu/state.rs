//! The state page: what is refused, and what goes in and comes back.

use super::{at, bochs_svm, enter, exit, fresh, ready, skip};
use moira_abi::vcpu::{Exit, event, group, interruptibility, invalid};
use moira_lab::{Check, Guest, Lab, Mode, guest::CODE};
use moira_sys::VcpuExit;

/// What the kernel refuses, by group, and what it says of it.
pub fn refused(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\xf4") else { return };
    const BAD: u64 = 1 << 47;
    let fs = at!(segment) + 4 * 24;
    let task = at!(segment) + 7 * 24;
    let event = |info: u64| event::VALID | info;
    let states = [
        (group::SEGMENTS, fs + 16, BAD, invalid::CANONICAL),
        (group::TABLES, at!(gdtr), BAD, invalid::CANONICAL),
        (group::TABLES, at!(idtr), !BAD, invalid::CANONICAL),
        (group::MSRS, at!(lstar), BAD, invalid::CANONICAL),
        (group::MSRS, at!(cstar), BAD, invalid::CANONICAL),
        (group::MSRS, at!(kernel_gs_base), BAD, invalid::CANONICAL),
        (group::MSRS, at!(sysenter_esp), BAD, invalid::CANONICAL),
        (group::MSRS, at!(sysenter_eip), BAD, invalid::CANONICAL),
        (group::DEBUG, at!(dr) + 24, BAD, invalid::CANONICAL),
        (group::CONTROL, at!(cr0), 0x11 | 1 << 32, invalid::RESERVED),
        (group::CONTROL, at!(cr0), 0x8000_0010, invalid::RESERVED),
        (group::CONTROL, at!(cr0), 0xa000_0011, invalid::RESERVED),
        (group::CONTROL, at!(cr3), 1 << 62, invalid::RESERVED),
        (group::CONTROL, at!(cr4), 1 << 40 | 0x20, invalid::RESERVED),
        (group::CONTROL, at!(cr4), 0, invalid::RESERVED),
        (group::CONTROL, at!(efer), 0x500 | 1 << 12, invalid::RESERVED),
        (group::CONTROL, at!(efer), 1 << 40, invalid::RESERVED),
        (group::SEGMENTS, fs, 0x1_0f93 << 32, invalid::RESERVED),
        (group::SEGMENTS, task, 0x40 | 0x89 << 32, invalid::RESERVED),
        (group::SEGMENTS, task, 0x40 | 0x1_008b << 32, invalid::RESERVED),
        (group::MSRS, at!(pat), 2, invalid::RESERVED),
        (group::DEBUG, at!(dr6), 1 << 32, invalid::RESERVED),
        (group::DEBUG, at!(dr7), 1 << 32, invalid::RESERVED),
        (group::DEBUG, at!(exceptions), 1 << 14, invalid::RESERVED),
        (group::TSC_XCR, at!(xcr0), 0, invalid::RESERVED),
        (group::TSC_XCR, at!(xcr0), 1 << 60 | 1, invalid::RESERVED),
        (group::TSC_XCR, at!(tsc_aux), 1 << 32, invalid::RESERVED),
        (group::TSC_XCR, at!(spec_ctrl), 1 << 40, invalid::RESERVED),
        // A type that is none; an NMI that is not 2; no exception; a software event without length; a code where none belongs.
        (group::INJECT, at!(inject), event(1 << 8 | 0x20), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::NMI | 3), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::EXCEPTION | 32), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::EXCEPTION | 2), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::SOFTWARE_INTERRUPT | 0x80), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::SOFTWARE_EXCEPTION | 5), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::EXCEPTION | event::HAS_CODE | 6), invalid::EVENT),
        (group::INJECT, at!(inject), event(event::INTERRUPT | 0x20 | 1 << 12), invalid::EVENT),
    ];
    check.equal("as it is", exit(lab, &guest, group::ALL), Ok(Exit::Halt));
    for (bit, offset, value, why) in states {
        let what = alloc::format!("{offset:#x} = {value:#x}");
        let good = guest.get(offset);
        guest.set(offset, value);
        // What goes before the refused group may have changed; the group itself has not.
        check.equal(&what, enter(lab, &guest, bit), Ok(VcpuExit { reason: Exit::InvalidState, groups: 0 }));
        check.equal(&what, (guest.get(at!(reason)), guest.get(at!(qualification))), (Exit::InvalidState as u64, why));
        check.equal(&what, guest.get(offset), value);
        check.good("kick", guest.vcpu.kick());
        check.equal(&what, exit(lab, &guest, bit << 32), Ok(Exit::Kicked));
        if bit != group::INJECT {
            check.equal(&what, guest.get(offset), good);
        }
        guest.set(offset, good);
        check.equal("it runs as before", exit(lab, &guest, 0), Ok(Exit::Halt));
    }
    // An event stays in the page where something else was refused.
    guest.set(at!(inject), event(event::INTERRUPT | 0x41));
    guest.set(at!(pat), 2);
    check.equal("refused", exit(lab, &guest, group::INJECT | group::MSRS), Ok(Exit::InvalidState));
    check.equal("event", guest.get(at!(inject)), event(event::INTERRUPT | 0x41));
    guest.basis(CODE, Mode::Long);
    hardware_refuses(lab, check, &guest);
}

/// What the kernel lets pass and the processor does not: 64-bit code of 32 bits.
fn hardware_refuses(lab: &mut Lab, check: &mut Check, guest: &Guest) {
    let code = at!(segment) + 24;
    let good = guest.get(code);
    guest.set(code, good | 0x4000 << 32);
    guest.set(at!(inject), event::VALID | event::EXCEPTION | 6);
    let exit_of = enter(lab, guest, group::ALL);
    check.equal("refused", exit_of, Ok(VcpuExit { reason: Exit::InvalidState, groups: group::ALL }));
    check.equal("by the processor", guest.get(at!(qualification)) & 0xffff_ffff, invalid::HARDWARE);
    // What the page says of the guest then is nothing to go on from: QEMU leaves its own RIP.
    guest.basis(CODE, Mode::Long);
    check.equal("mended", exit(lab, guest, group::ALL & !group::INJECT), Ok(Exit::Halt));
    check.equal("the event is gone", guest.get(at!(rip)), CODE);
}

/// All groups go in and come back, and an exit writes what it should and nothing else.
pub fn groups(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\x0f\xa2\xf4") else { return };
    const FIELDS: [(usize, u64); 35] = [
        (at!(rip), CODE),
        (at!(rflags), 0x246),
        (at!(interruptibility), interruptibility::NMI_BLOCKED),
        (at!(inject), event::VALID | event::INTERRUPT | 0x55),
        (at!(request), 1),
        (at!(cr0), 0x8001_0033),
        (at!(cr2), 0xffff_8123_4567_89ab),
        (at!(cr4), 0x6e0),
        (at!(efer), 0x501),
        (at!(segment) + 8, 0xf_ffff),
        (at!(segment) + 4 * 24 + 16, 0xffff_8000_1234_5678),
        (at!(segment) + 5 * 24 + 16, 0x7fff_8765_4321),
        (at!(segment) + 6 * 24, 0x48 | 0x1_0002 << 32),
        (at!(gdtr), 0xffff_ffff_8000_0000),
        (at!(gdtr) + 8, 0x1234),
        (at!(idtr), 0x7fff_ffff_f000),
        (at!(idtr) + 8, 0xfff),
        (at!(star), 0x1234_5678_9abc_def0),
        (at!(lstar), 0xffff_8000_0000_1234),
        (at!(cstar), 0x4321),
        (at!(sfmask), 0x4_7700),
        (at!(kernel_gs_base), 0xffff_8888_0000_0000),
        (at!(sysenter_cs), 0x10),
        (at!(sysenter_esp), 0xffff_8888_0000_1000),
        (at!(sysenter_eip), 0x7000_1000),
        (at!(pat), 0x0004_0106_0007_0506),
        (at!(dr), 0x1000),
        (at!(dr) + 24, 0xffff_8000_0000_0001),
        (at!(dr6), 0xffff_0ff1),
        (at!(dr7), 0x455),
        (at!(exceptions), 1 << 6),
        (at!(tsc_offset), 0xfedc_ba98_7654_3210),
        (at!(tsc_aux), 0x1234_5678),
        (at!(xcr0), 1),
        (at!(spec_ctrl), 0),
    ];
    for (offset, value) in FIELDS {
        guest.set(offset, value);
    }
    check.good("kick", guest.vcpu.kick());
    check.equal("goes in", exit(lab, &guest, group::ALL), Ok(Exit::Kicked));
    for (offset, _) in FIELDS {
        guest.set(offset, 0x5555);
    }
    check.good("kick", guest.vcpu.kick());
    let came = enter(lab, &guest, group::ALL << 32);
    check.equal("comes out", came, Ok(VcpuExit { reason: Exit::Kicked, groups: group::ALL }));
    for (offset, value) in FIELDS {
        check.equal(&alloc::format!("word {offset:#x}"), guest.get(offset), value);
    }
    // A usual exit writes its own groups and those that were asked for.
    ready(&guest, b"\x0f\xa2\xf4");
    for index in 0..16u64 {
        guest.set(at!(gpr) + index as usize * 8, 0x1000 + index);
    }
    let asked = group::ALL | group::DEBUG << 32;
    let came = enter(lab, &guest, asked);
    check.equal("CPUID", came, Ok(VcpuExit { reason: Exit::Cpuid, groups: group::RIP | group::DEBUG }));
    for index in 0..16u64 {
        check.equal("general registers", guest.get(at!(gpr) + index as usize * 8), 0x1000 + index);
    }
    guest.set(at!(cr3), 0x5555);
    skip(&guest, 2);
    let halted = group::RIP | group::INTERRUPTIBILITY | group::INJECT;
    check.equal("HLT", enter(lab, &guest, group::RIP), Ok(VcpuExit { reason: Exit::Halt, groups: halted }));
    check.equal("nobody wrote that", guest.get(at!(cr3)), 0x5555);
}

/// EFER.LME first, CR4.PAE and paging later, as some systems do it: legal, and fatal for QEMU's own host if it sees it.
pub fn long_mode_half_way(lab: &mut Lab, check: &mut Check) {
    let Some(guest) = fresh(lab, check, b"\x0f\xa2\xf4") else { return };
    guest.basis(CODE, Mode::Protected);
    guest.set(at!(efer), 0x100);
    check.equal("CPUID", exit(lab, &guest, group::ALL | group::CONTROL << 32), Ok(Exit::Cpuid));
    check.equal("long mode is only asked for", guest.get(at!(efer)), 0x100);
    check.good("kick", guest.vcpu.kick());
    check.equal("an interrupt of the host's", exit(lab, &guest, 0), Ok(Exit::Kicked));
    skip(&guest, 2);
    check.equal("HLT", exit(lab, &guest, group::RIP), Ok(Exit::Halt));
}

/// A guest sets CR0.NW without CR0.CD, which raises #GP on processors; QEMU lets it, and refuses the next entry. Then a guest spins with
/// its interrupts off (not where Bochs' SVM would overlook the host's): they must come all the same.
pub fn refused_then_spins(lab: &mut Lab, check: &mut Check) {
    // mov cr0, rax; cpuid; hlt
    let Some(guest) = fresh(lab, check, b"\x0f\x22\xc0\x0f\xa2\xf4") else { return };
    guest.set(at!(gpr), 0xa000_0011);
    let first = exit(lab, &guest, group::ALL);
    check.holds("done, or a fault", matches!(first, Ok(Exit::Cpuid | Exit::Halt | Exit::ControlWrite)));
    let second = exit(lab, &guest, 0);
    check.holds("refused, or as before", second == Ok(Exit::InvalidState) || second == first);
    ready(&guest, b"\xeb\xfe");
    if bochs_svm(lab) {
        guest.set(at!(rflags), 0x202);
    }
    check.equal("its time is over", exit(lab, &guest, group::ALL & !group::INJECT), Ok(Exit::Until));
}
