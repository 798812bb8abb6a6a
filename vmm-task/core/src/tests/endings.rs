//! What ends a machine, so that a guest cannot keep its monitor at work for nothing.

use super::*;

#[test]
fn an_unknown_register_faults_and_an_instruction_that_cannot_be_read_ends_the_machine() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory)
        .step(|page, _| {
            at(page, 2);
            page.set_gpr(gpr::RCX, 0x1234_5678);
            (Exit::MsrRead, group::RIP)
        })
        .step(|page, masks| {
            assert_eq!(masks & (group::RIP | group::INJECT), group::RIP | group::INJECT);
            assert_eq!(page.get(field::INJECT), event::VALID | event::EXCEPTION | event::HAS_CODE | 13);
            assert_eq!((page.get(field::RIP), page.get(field::RFLAGS)), (0x1000, 0x1_0202), "a fault sets RF");
            at(page, 0);
            (Exit::Hypercall, group::RIP)
        });
    // No length, and zeroes at RIP: no hypercall.
    for _ in 0..1010 {
        cpu = cpu.step(|page, _| {
            at(page, 0);
            (Exit::Hypercall, group::RIP | group::CONTROL)
        });
    }
    assert!(matches!(vm.run(&mut cpu), Ending::Unsupported(_)));
}

#[test]
fn exits_of_several_kinds_that_come_to_nothing_end_the_machine() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for turn in 0..5000 {
        cpu = cpu.step(move |page, _| {
            at(page, 0);
            match turn % 4 {
                0 => (Exit::Until, group::RIP | group::INJECT | group::INTERRUPTIBILITY),
                2 => (Exit::InterruptWindow, group::RIP | group::INJECT | group::INTERRUPTIBILITY),
                // No length, and zeroes at RIP: no hypercall.
                _ => (Exit::Hypercall, group::RIP | group::CONTROL),
            }
        });
    }
    assert_eq!(vm.run(&mut cpu), Ending::Unsupported("an instruction that cannot be read"));
    // As many at an instruction that the guest comes to each time.
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for turn in 0..5000 {
        cpu = cpu.step(move |page, _| {
            at(page, if turn % 2 == 0 { 0 } else { 3 });
            (Exit::Hypercall, group::RIP | group::CONTROL)
        });
    }
    assert_eq!(vm.run(&mut cpu), Ending::Kernel(Error::PeerGone));
}

#[test]
fn an_event_that_cannot_be_delivered_ends_the_machine() {
    let delivering = |vector: u64| event::VALID | event::EXCEPTION | vector;
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory).step(|page, _| {
        at(page, 0);
        page.set(field::DELIVERING, delivering(6));
        page.set(field::ADDRESS, 0xd000_0000);
        page.set(field::QUALIFICATION, moira_abi::vcpu::access::WRITE);
        (Exit::Memory, group::RIP | group::CONTROL)
    });
    assert!(matches!(vm.run(&mut cpu), Ending::Unsupported("an event whose table or stack is outside of memory")));
    // #AC for ever, as on a stack that is not aligned.
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory);
    for _ in 0..5000 {
        cpu = cpu.step(|page, _| {
            at(page, 0);
            page.set(field::DELIVERING, delivering(17));
            page.set(field::QUALIFICATION, 17);
            (Exit::Exception, group::RIP | group::CONTROL | group::DEBUG)
        });
    }
    assert_eq!(vm.run(&mut cpu), Ending::Unsupported("an event that cannot be delivered"));
}
