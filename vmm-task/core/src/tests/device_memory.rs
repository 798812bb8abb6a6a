//! Instructions on the memory of devices: what the decoder completes reaches device and memory alike.

use super::*;

/// A 64-bit guest without tables to walk (paging off is what the page says), whose code at 1000h is `code`, at an access to `gpa`.
fn device_access(page: &StatePage<'_>, gpa: u64, kind: u64) -> (Exit, u64) {
    at(page, 0);
    page.set(field::ADDRESS, gpa);
    page.set(field::QUALIFICATION, kind);
    (Exit::Memory, group::RIP | group::CONTROL | group::SEGMENTS)
}

#[test]
fn instructions_on_device_memory_reach_device_and_memory_alike() {
    const DEVICE: u64 = vmm_devices::test_device::MEMORY;
    let memory = Memory::new();
    let code = |bytes: &[u8]| {
        let mut word = [0x90; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        memory.ram[0x1000 / 8].store(u64::from_le_bytes(word), Relaxed);
    };
    let mut vm = memory.vm();
    memory.ram[0x2000 / 8].store(0x8877_6655_4433_2211, Relaxed);
    // Ends in the last word of RAM, so that what follows it is no memory.
    let mut cpu = Script::new(&memory)
        .step(|page, _| {
            // A 32-bit code segment and no paging: linear addresses are physical.
            page.set(field::CR0, 1);
            page.set_segment(1, &moira_abi::vcpu::Segment { rights: 0xc09b, limit: u32::MAX, ..Default::default() });
            page.set_gpr(gpr::RAX, 0xddcc_bbaa);
            page.set_gpr(7, DEVICE + 0xffe);
            code(&[0x89, 0x07]); // mov [edi],eax, over the end of a page
            device_access(page, DEVICE + 0xffe, access::WRITE)
        })
        .step(|page, _| {
            assert_eq!(page.get(field::RIP), 0x1002);
            page.set_gpr(6, 0x2000);
            page.set_gpr(gpr::RCX, 2);
            page.set_gpr(7, DEVICE + 0x10);
            code(&[0xf3, 0xa5]); // rep movsd to the device
            device_access(page, DEVICE + 0x10, access::WRITE)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX)), (0x1000, 1));
            device_access(page, DEVICE + 0x14, access::WRITE)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX)), (0x1002, 0));
            page.set_gpr(6, DEVICE + 0x10);
            page.set_gpr(7, 0x2000);
            page.set_gpr(gpr::RCX, 5);
            code(&[0xf3, 0x66, 0xa7]); // repe cmpsw of device and memory
            device_access(page, DEVICE + 0x10, 0)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX), page.get(field::RFLAGS) & 0x40), (0x1000, 4, 0x40));
            memory.ram[0x2000 / 8].store(0, Relaxed);
            device_access(page, DEVICE + 0x12, 0)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::RIP), page.gpr(gpr::RCX), page.get(field::RFLAGS) & 0x41), (0x1003, 3, 0));
            page.set_gpr(7, DEVICE + 0xffd);
            code(&[0x0b, 0x07]); // or eax,[edi], over the end of a page
            page.set_gpr(gpr::RAX, 0);
            device_access(page, DEVICE + 0xffd, 0)
        })
        .step(|page, _| {
            assert_eq!(page.gpr(gpr::RAX), 0xccbb_aa00);
            // insb from port E0h, which holds 5Ah, to the device.
            page.set_gpr(gpr::RAX, 0x5a);
            out8(page, 0xe0, 0x5a)
        })
        .step(|page, _| {
            at(page, 0);
            page.set_gpr(gpr::RDX, 0xe0);
            page.set_gpr(7, DEVICE + 0x1000);
            code(&[0x6c]);
            page.set(field::QUALIFICATION, PortIo::new(0xe0, 1, true, true, false).0);
            (Exit::Port, group::RIP | group::CONTROL | group::SEGMENTS)
        })
        .step(|page, _| {
            page.set_gpr(7, DEVICE + 0xfff);
            page.set_gpr(gpr::RAX, 0);
            code(&[0x66, 0x8b, 0x07]); // mov ax,[edi]
            device_access(page, DEVICE + 0xfff, 0)
        })
        .step(|page, _| {
            assert_eq!(page.gpr(gpr::RAX), 0x5abb);
            (Exit::Shutdown, group::ALL)
        });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}
