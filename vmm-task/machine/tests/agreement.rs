//! The ACPI tables and the device models each name the machine's addresses; they must name the same.

use vmm_devices::platform as devices;
use vmm_machine::layout;

#[test]
fn tables_and_models_name_the_same_machine() {
    assert_eq!(layout::LAPIC_BASE, devices::LAPIC_BASE);
    assert_eq!(layout::IOAPIC_BASE, devices::IOAPIC_BASE);
    assert_eq!((layout::HPET_BASE, layout::HPET_SIZE), (devices::HPET_BASE, devices::HPET_SIZE));
    assert_eq!(layout::HPET_ID, vmm_devices::hpet::ID);
    assert_eq!(layout::ECAM_BASE, devices::ECAM_BASE);
    assert_eq!(layout::ECAM_SIZE, devices::ECAM_SIZE);
    assert_eq!(layout::PCI_WINDOW_BASE, devices::PCI_MMIO_BASE);
    assert_eq!(layout::PCI_WINDOW_LAST + 1, devices::PCI_MMIO_END);
    assert_eq!(layout::PM1A_EVENT_PORT, devices::PM1A_EVT);
    assert_eq!(layout::PM1A_CONTROL_PORT, devices::PM1A_CNT);
    assert_eq!(layout::PM_TIMER_PORT, devices::PM_TMR);
    assert_eq!(layout::SCI_GSI, u32::from(devices::SCI_GSI));
    assert_eq!(layout::S5_SLEEP_TYPE, devices::SLP_TYP_S5);
    assert_eq!((layout::RESET_PORT, layout::RESET_VALUE), (devices::RESET_PORT, devices::RESET_VALUE));
    assert_eq!(vmm_machine::acpi::AcpiConfig::new(1).ioapic_id, devices::IOAPIC_ID);
    for slot in 0..32 {
        for pin in 0..4 {
            assert_eq!(layout::pci_gsi(slot, pin), u32::from(devices::intx_gsi(slot, pin)));
        }
    }
}
