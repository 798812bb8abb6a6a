//! The wires between devices and processors: PIC, I/O APIC and local APICs together.

use crate::apic_bus::{ApicBus, EoiBroadcast, Message};
use crate::ioapic::IoApic;
use crate::lapic::Lvt;
use crate::pic::Pic;
use crate::platform::{IOAPIC_PINS, PCI_GSI_BASE, PIT_GSI, PIT_IRQ};
use crate::traits::{MsiMessage, MsiSink};

/// What a vCPU should take next, most urgent first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// A non-maskable interrupt; take it with [`Fabric::take_nmi`].
    Nmi,
    /// A maskable interrupt; its vector comes from [`Fabric::accept`].
    Maskable,
}

/// PIC, I/O APIC and local APICs.
#[derive(Clone, Debug)]
pub struct Fabric {
    /// The legacy controllers.
    pub pic: Pic,
    /// The I/O APIC.
    pub ioapic: IoApic,
    /// The local APICs.
    pub apics: ApicBus,
    /// Levels of the GSIs as their sources drive them.
    gsi: u32,
    /// ISA inputs that PCI pins assert through the LPC bridge's routing.
    pirq: u16,
    /// For each PCI pin, GSI 16 to 23, the ISA input that the LPC bridge routes it to; 0 for none.
    routing: [u8; 8],
}

impl Fabric {
    /// Everything as after power-on.
    #[must_use]
    pub fn new(apics: ApicBus) -> Self {
        Self { pic: Pic::new(), ioapic: IoApic::new(), apics, gsi: 0, pirq: 0, routing: [0; 8] }
    }

    /// Everything as after power-on; lines are released.
    pub fn reset(&mut self) {
        self.apics.reset();
        (self.pic, self.ioapic, self.gsi, self.pirq, self.routing) = (Pic::new(), IoApic::new(), 0, 0, [0; 8]);
    }

    /// Drives ISA interrupt `irq` (0 to 15): the PIC's input and the I/O APIC's pin of the same number, but pin 2 for
    /// the timer.
    #[inline]
    pub fn set_isa(&mut self, irq: u8, level: bool) {
        let gsi = if irq == PIT_IRQ { PIT_GSI } else { irq };
        self.set_gsi(gsi, level);
    }

    /// Drives GSI `gsi` (0 to 23).
    #[inline]
    pub fn set_gsi(&mut self, gsi: u8, level: bool) {
        let bit = 1u32.checked_shl(u32::from(gsi)).unwrap_or(0);
        if (self.gsi & bit != 0) != level {
            self.change(gsi, level);
        }
    }

    fn change(&mut self, gsi: u8, level: bool) {
        if gsi >= IOAPIC_PINS {
            return;
        }
        self.gsi ^= 1 << gsi;
        self.ioapic.set_line(gsi, level, &mut self.apics);
        if gsi >= PCI_GSI_BASE {
            self.update_pirq();
        } else {
            let irq = if gsi == PIT_GSI { PIT_IRQ } else { gsi };
            self.drive_pic(irq);
        }
    }

    fn drive_pic(&mut self, irq: u8) {
        let gsi = if irq == PIT_IRQ { PIT_GSI } else { irq };
        let level = self.gsi >> gsi & 1 != 0 || self.pirq >> irq & 1 != 0;
        let was = self.pic.interrupt();
        self.pic.set_line(irq, level);
        if self.pic.interrupt() && !was {
            self.kick_pic();
        }
    }

    /// Writes a port of the PIC; its output may rise by that.
    pub fn write_pic(&mut self, port: u16, v: u8) {
        let was = self.pic.interrupt();
        self.pic.write(port, v);
        if self.pic.interrupt() && !was {
            self.kick_pic();
        }
    }

    /// The PIC's output has risen.
    fn kick_pic(&mut self) {
        for n in 0..self.apics.len() {
            // A LINT0 set to a vector of its own, or to NMI, takes the edge itself: nobody asks the PIC for its vector.
            let latched = self.apics.get_mut(n).is_some_and(|l| l.assert_lvt(Lvt::Lint0));
            if latched || self.takes_pic(n) {
                self.apics.kick(n);
            }
        }
    }

    fn update_pirq(&mut self) {
        let mut now = 0;
        for (i, &irq) in self.routing.iter().enumerate() {
            if irq != 0 && self.gsi >> (usize::from(PCI_GSI_BASE) + i) & 1 != 0 {
                now |= 1u16 << (irq & 15);
            }
        }
        let changed = now ^ self.pirq;
        self.pirq = now;
        for irq in (0..16).filter(|i| changed >> i & 1 != 0) {
            self.drive_pic(irq);
        }
    }

    /// Routes PCI pin `pin` (0 to 7, GSI 16 to 23) to an ISA input as well, or to none with 0.
    pub fn route_pirq(&mut self, pin: u8, irq: u8) {
        if let Some(r) = self.routing.get_mut(usize::from(pin)) {
            *r = irq & 15;
            self.update_pirq();
        }
    }

    /// An edge on the timer's input.
    pub fn timer_edge(&mut self) {
        self.set_isa(PIT_IRQ, true);
        self.set_isa(PIT_IRQ, false);
    }

    /// Carries an end of interrupt from a local APIC to the I/O APIC.
    #[inline]
    pub fn broadcast(&mut self, eoi: EoiBroadcast) {
        if let Some(vector) = eoi.0 {
            self.ioapic.end_of_interrupt(vector, &mut self.apics);
        }
    }

    fn takes_pic(&self, vcpu: usize) -> bool {
        self.apics.get(vcpu).is_some_and(|l| l.takes_pic() || self.ioapic.passes_pic_to(l))
    }

    /// What waits for a vCPU. A maskable interrupt may be injected once the guest's IF and shadows allow it.
    #[must_use]
    #[inline]
    pub fn pending(&self, vcpu: usize) -> Option<Interrupt> {
        let l = self.apics.get(vcpu)?;
        if l.nmi_pending() { Some(Interrupt::Nmi) } else { self.maskable_pending(vcpu).then_some(Interrupt::Maskable) }
    }

    /// Whether the vCPU's APIC is there: IA32_APIC_BASE.EN.
    #[must_use]
    pub fn has_apic(&self, vcpu: usize) -> bool {
        self.apics.get(vcpu).is_some_and(|l| l.hardware_enabled())
    }

    /// Whether a maskable interrupt waits for a vCPU, whatever NMIs do.
    #[must_use]
    #[inline]
    pub fn maskable_pending(&self, vcpu: usize) -> bool {
        self.apics.get(vcpu).is_some_and(|l| l.highest_pending().is_some())
            || self.pic.interrupt() && self.takes_pic(vcpu)
    }

    /// The vCPU takes its maskable interrupt now: its vector. Injection must follow.
    pub fn accept(&mut self, vcpu: usize) -> Option<u8> {
        let l = self.apics.get_mut(vcpu)?;
        if let Some(v) = l.highest_pending() {
            l.accept(v);
            return Some(v);
        }
        (self.pic.interrupt() && self.takes_pic(vcpu)).then(|| self.pic.acknowledge())
    }

    /// The vCPU takes its NMI now. Injection must follow.
    pub fn take_nmi(&mut self, vcpu: usize) -> bool {
        self.apics.get_mut(vcpu).is_some_and(crate::lapic::Lapic::take_nmi)
    }
}

impl MsiSink for Fabric {
    fn send(&mut self, message: MsiMessage) {
        // Only FEExxxxxh is the interrupt range; anything else is a write into nowhere.
        if message.address >> 20 == 0xFEE {
            self.apics.deliver(&Message::from(message));
        }
    }
}
