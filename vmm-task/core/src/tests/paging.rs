//! Moves to CR0 and CR4 that exit under PAE paging: the entries that VT-x keeps in the VMCS come from the guest's memory.

use super::*;

const PE_PG: u64 = 0x8000_0001;
const PAE: u64 = 1 << 5;
const TABLE: u64 = 0x2020;

/// `mov cr0, eax` or `mov cr4, eax`, with `value`; paging is `cr0` and `cr4` before.
fn write(page: &StatePage<'_>, register: u64, value: u64, cr0: u64, cr4: u64) -> (Exit, u64) {
    at(page, 3);
    page.set_gpr(gpr::RAX, value);
    page.set(field::CR0, cr0);
    page.set(field::CR3, TABLE);
    page.set(field::CR4, cr4);
    page.set(field::EFER, 0);
    page.set(field::QUALIFICATION, register);
    (Exit::ControlWrite, group::RIP | group::CONTROL)
}

fn table(memory: &Memory, entries: [u64; 4]) {
    for (word, entry) in memory.ram[TABLE as usize / 8..].iter().zip(entries) {
        word.store(entry, Relaxed);
    }
}

fn loaded(page: &StatePage<'_>) -> [u64; 4] {
    core::array::from_fn(|index| page.get(field::PDPTE.plus(index)))
}

#[test]
fn pae_paging_loads_its_four_entries() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    // What is not present may hold anything.
    let (first, second) = ([0x3001, 0x4001, 0x1c6, 0x5001], [0x6001, 0, 0, 0]);
    table(&memory, first.map(|entry| entry | 0x20));
    let mut cpu = Script::new(&memory)
        .step(|page, _| write(page, 0, PE_PG, 1, PAE))
        .step(|page, masks| {
            assert_eq!(masks & (group::CONTROL | group::PDPTE), group::CONTROL | group::PDPTE);
            assert_eq!((page.get(field::CR0), loaded(page)), (PE_PG, first));
            table(&memory, second);
            write(page, 4, PAE | 0x80, PE_PG, PAE)
        })
        .step(|page, masks| {
            assert_ne!(masks & group::PDPTE, 0);
            assert_eq!((page.get(field::CR4), loaded(page)), (PAE | 0x80, second));
            // Without PAE there are none.
            write(page, 4, 0x80, PE_PG, 0)
        })
        .step(|_, masks| {
            assert_eq!(masks & group::PDPTE, 0);
            (Exit::Shutdown, group::ALL)
        });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}

#[test]
fn reserved_bits_of_cr0_fault_above_and_stay_clear_below() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    let mut cpu = Script::new(&memory)
        .step(|page, _| write(page, 0, 1 << 32 | 0x11, 0x11, 0))
        .step(|page, _| {
            assert_eq!(page.get(field::INJECT), event::VALID | event::EXCEPTION | event::HAS_CODE | 13);
            assert_eq!((page.get(field::CR0), page.get(field::RIP)), (0x11, 0x1000));
            write(page, 0, 1 << 7 | 0x13, 0x11, 0)
        })
        .step(|page, _| {
            assert_eq!((page.get(field::CR0), page.get(field::RIP)), (0x13, 0x1003));
            (Exit::Shutdown, group::ALL)
        });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}

#[test]
fn a_reserved_bit_of_a_present_entry_is_a_fault_and_nothing_changes() {
    let memory = Memory::new();
    let mut vm = memory.vm();
    table(&memory, [0x3001, 0x4003, 0, 0]);
    let mut cpu = Script::new(&memory).step(|page, _| write(page, 0, PE_PG, 1, PAE)).step(|page, masks| {
        assert_eq!(masks & (group::INJECT | group::PDPTE), group::INJECT);
        assert_eq!(page.get(field::INJECT), event::VALID | event::EXCEPTION | event::HAS_CODE | 13);
        assert_eq!((page.get(field::CR0), page.get(field::RIP)), (1, 0x1000));
        (Exit::Shutdown, group::ALL)
    });
    assert_eq!(vm.run(&mut cpu), Ending::TripleFault);
}
