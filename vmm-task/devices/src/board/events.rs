//! What happens without an access: time, back ends, buttons; and what the vCPUs get of it.

use super::{Board, members};
use crate::debug::DebugPorts;
use crate::fabric::{Fabric, Interrupt};
use crate::fw_cfg::FwCfg;
use crate::hpet::Drive;
use crate::lapic::{CpuEvent, GpFault, Lapic};
use crate::pci::Context;
use crate::platform as p;
use crate::time::earlier;
use crate::traits::GuestMemory;

impl Board {
    /// `vcpu`'s guest has moved its TSC: from now on it is `offset` ticks (modulo 2^64) more than `now` says.
    pub fn set_tsc_offset(&mut self, vcpu: usize, offset: u64, now: u64) {
        let clocks = *self.fabric.apics.clocks();
        if let Some(l) = self.fabric.apics.get_mut(vcpu) {
            l.set_tsc_offset(offset, now, &clocks);
        }
        self.deadline_stale = true;
    }

    /// Whether an MSR is one of the local APIC's: 1Bh, 6E0h, 800h to 8FFh.
    #[must_use]
    pub const fn is_apic_msr(msr: u32) -> bool {
        matches!(msr, 0x1B | 0x6E0 | 0x800..=0x8FF)
    }

    /// Reads an APIC MSR of `vcpu`.
    ///
    /// # Errors
    /// [`GpFault`]: inject #GP(0).
    pub fn msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Result<u64, GpFault> {
        self.fabric.apics.msr_read(vcpu, msr, now)
    }

    /// Writes an APIC MSR of `vcpu`.
    ///
    /// # Errors
    /// [`GpFault`]: inject #GP(0).
    pub fn msr_write(&mut self, vcpu: usize, msr: u32, value: u64, now: u64) -> Result<(), GpFault> {
        let before = self.apic_deadline(vcpu);
        let eoi = self.fabric.apics.msr_write(vcpu, msr, value, now)?;
        self.fabric.broadcast(eoi);
        self.deadline_stale |= self.apic_deadline(vcpu) != before;
        Ok(())
    }

    /// Lets everything happen that is due at `now`. Call it when [`Self::next_deadline`] has passed.
    pub fn tick(&mut self, now: u64, memory: &dyn GuestMemory) {
        if self.next_deadline().is_none_or(|at| now < at) {
            return;
        }
        self.timers(now);
        let text = self.screen.poll(now, memory);
        if !text.is_empty() {
            self.uart.print(&text, now);
        }
        for slot in members(self.pci.plugged()) {
            let mut c = Context { now, memory, msi: &mut self.fabric };
            let Some(f) = self.pci.get_mut(slot) else { continue };
            if f.next_deadline().is_some_and(|at| now >= at) {
                f.poll(&mut c);
                self.sync_slot(slot);
            }
        }
    }

    /// [`Self::tick`], and all devices look at their back ends. Call it when a back end has news: input on a console,
    /// a finished request of a disk.
    pub fn poll(&mut self, now: u64, memory: &dyn GuestMemory) {
        self.timers(now);
        for slot in members(self.pci.plugged()) {
            let mut c = Context { now, memory, msi: &mut self.fabric };
            if let Some(f) = self.pci.get_mut(slot) {
                f.poll(&mut c);
            }
            self.sync_slot(slot);
        }
    }

    fn timers(&mut self, now: u64) {
        self.deadline_stale = true;
        self.fabric.apics.poll(now);
        if self.pit.poll(now) && !self.hpet.replaces_legacy() {
            self.fabric.timer_edge();
        }
        self.hpet.poll(now);
        self.sync_hpet();
        self.rtc.poll(now);
        self.sync_rtc();
        self.uart.poll(now);
        self.fabric.set_isa(p::COM1_IRQ, self.uart.irq());
        self.pm.poll(now);
        self.fabric.set_gsi(p::SCI_GSI, self.pm.sci());
    }

    /// Carries what the HPET's timers do to the interrupt controllers.
    pub(super) fn sync_hpet(&mut self) {
        for index in 0..3 {
            for line in self.hpet.take_lines(index).into_iter().flatten() {
                let levels: &[bool] = match line.drive {
                    Drive::Pulse => &[true, false],
                    Drive::Level(true) => &[true],
                    Drive::Level(false) => &[false],
                };
                levels.iter().for_each(|level| self.fabric.set_gsi(line.gsi, *level));
            }
        }
    }

    /// The RTC's interrupt is the HPET's while that replaces it.
    pub(super) fn sync_rtc(&mut self) {
        if !self.hpet.replaces_legacy() {
            self.fabric.set_isa(p::RTC_IRQ, self.rtc.irq());
        }
    }

    /// When [`Self::poll`] has something to do at the latest, in nanoseconds.
    #[inline]
    pub fn next_deadline(&mut self) -> Option<u64> {
        if self.deadline_stale {
            self.recompute_deadline();
        }
        self.deadline
    }

    fn recompute_deadline(&mut self) {
        let mut at = earlier(self.pit.next_deadline(), self.rtc.next_deadline());
        at = earlier(at, self.hpet.next_deadline());
        at = earlier(at, self.uart.next_deadline());
        at = earlier(at, self.pm.next_deadline());
        at = earlier(at, self.screen.next_deadline());
        for slot in members(self.pci.plugged()) {
            if let Some(f) = self.pci.get_mut(slot) {
                at = earlier(at, f.next_deadline());
            }
        }
        self.device_deadline = at;
        self.deadline = earlier(self.fabric.apics.next_deadline(), at);
        self.deadline_stale = false;
        self.deadlines_changed = true;
    }

    /// Whether a vCPU got something new, or deadlines may have changed, since somebody took note of it.
    #[must_use]
    #[inline(always)]
    pub fn has_news(&self) -> bool {
        self.may_have_moved_deadlines() | self.fabric.apics.has_kicks()
    }

    /// Whether deadlines may have changed since [`Self::take_deadlines_changed`].
    #[must_use]
    #[inline(always)]
    pub fn may_have_moved_deadlines(&self) -> bool {
        self.deadline_stale | self.deadlines_changed
    }

    /// Whether deadlines may have changed since the last call.
    pub fn take_deadlines_changed(&mut self) -> bool {
        let _ = self.next_deadline();
        core::mem::take(&mut self.deadlines_changed)
    }

    /// [`Self::next_deadline`] without the timers of the local APICs.
    pub fn device_deadline(&mut self) -> Option<u64> {
        let _ = self.next_deadline();
        self.device_deadline
    }

    /// When the timer of a vCPU's local APIC fires next.
    #[must_use]
    #[inline(always)]
    pub fn apic_deadline(&self, vcpu: usize) -> Option<u64> {
        self.fabric.apics.get(vcpu).and_then(Lapic::next_deadline)
    }

    /// vCPUs, as bits, that got something new since the last call: make them leave the guest or wake up.
    #[inline]
    pub fn take_kicks(&mut self) -> u64 {
        self.fabric.apics.take_kicks()
    }

    /// A vCPU has looked at everything: it need not be told.
    pub fn forget_kick(&mut self, vcpu: usize) {
        self.fabric.apics.forget_kick(vcpu);
    }

    /// The next INIT or start-up for a vCPU, in order.
    pub fn take_event(&mut self, vcpu: usize) -> Option<CpuEvent> {
        self.fabric.apics.take_event(vcpu)
    }

    /// What waits for a vCPU, most urgent first.
    #[must_use]
    #[inline]
    pub fn pending(&self, vcpu: usize) -> Option<Interrupt> {
        self.fabric.pending(vcpu)
    }

    /// Whether the vCPU's APIC is there: IA32_APIC_BASE.EN.
    #[must_use]
    pub fn has_apic(&self, vcpu: usize) -> bool {
        self.fabric.has_apic(vcpu)
    }

    /// Whether a maskable interrupt waits for a vCPU, whatever NMIs do.
    #[must_use]
    #[inline]
    pub fn maskable_pending(&self, vcpu: usize) -> bool {
        self.fabric.maskable_pending(vcpu)
    }

    /// The vCPU takes its maskable interrupt now: the vector, which must then be injected.
    pub fn accept(&mut self, vcpu: usize) -> Option<u8> {
        self.fabric.accept(vcpu)
    }

    /// The vCPU takes its NMI now, which must then be injected.
    pub fn take_nmi(&mut self, vcpu: usize) -> bool {
        self.fabric.take_nmi(vcpu)
    }

    /// The local APIC of a vCPU (for CR8, TPR threshold, state dumps).
    pub fn lapic(&mut self, vcpu: usize) -> Option<&mut Lapic> {
        self.fabric.apics.get_mut(vcpu)
    }

    /// Presses the power button: the guest's ACPI driver hears of it.
    pub fn press_power_button(&mut self) {
        self.pm.press_power_button();
        self.fabric.set_gsi(p::SCI_GSI, self.pm.sci());
    }

    /// Presses the NMI button: LINT1 of all processors.
    pub fn press_nmi_button(&mut self) {
        self.fabric.apics.nmi_button();
    }

    /// Slots whose driver broke the rules, and which; for the log and a VM's death report.
    pub fn faults(&mut self) -> impl Iterator<Item = (u8, &'static str)> {
        self.pci.iter_mut().filter_map(|(slot, f)| Some((slot, f.fault()?)))
    }

    /// The debug ports, to take their log.
    pub fn debug(&mut self) -> &mut DebugPorts {
        &mut self.debug
    }

    /// The firmware configuration device, to add files.
    pub fn fw_cfg(&mut self) -> &mut FwCfg {
        &mut self.fw_cfg
    }

    /// The interrupt controllers, for state dumps and tests.
    #[must_use]
    pub fn fabric(&self) -> &Fabric {
        &self.fabric
    }

    /// How many ranges are registered: ports and memory.
    #[must_use]
    pub fn ranges(&self) -> (usize, usize) {
        (self.ports.ranges(), self.mmio.ranges())
    }
}
