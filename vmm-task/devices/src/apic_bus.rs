//! The local APICs together: interrupt messages, their destinations, and IPIs (SDM 3A, 11.6 and 11.11).

#[cfg(test)]
mod tests;

use crate::lapic::{ApicClocks, CpuEvent, GpFault, Lapic, Lvt, Written};
use crate::time::{Rate, earlier};
use crate::traits::MsiMessage;
use alloc::vec::Vec;

/// Most vCPUs of one VM; kick masks have one bit for each.
pub const MAX_VCPUS: usize = 64;

/// How an interrupt message wants to be delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// To every destination.
    Fixed,
    /// To the destination of lowest priority.
    Lowest,
    /// System management: there is none, so it is dropped.
    Smi,
    /// Non-maskable.
    Nmi,
    /// INIT.
    Init,
    /// Start-up; only from a command register.
    Startup,
    /// The PIC has the vector.
    ExtInt,
    /// Reserved encodings.
    Reserved,
}

impl Delivery {
    /// Decodes the three bits of ICR, redirection entries and MSI data.
    #[must_use]
    pub const fn from_bits(v: u32) -> Self {
        match v & 7 {
            0 => Self::Fixed,
            1 => Self::Lowest,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            7 => Self::ExtInt,
            _ => Self::Reserved,
        }
    }
}

/// An interrupt message on its way to the local APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// The destination: 8 bits, or 32 if `wide`.
    pub dest: u32,
    /// From an x2APIC command register.
    pub wide: bool,
    /// `dest` is a logical, not a physical destination.
    pub logical: bool,
    /// Level-triggered.
    pub level: bool,
    /// Delivery mode.
    pub delivery: Delivery,
    /// Vector.
    pub vector: u8,
}

impl From<MsiMessage> for Message {
    fn from(m: MsiMessage) -> Self {
        let address = m.address as u32;
        Self {
            dest: address >> 12 & 0xFF,
            wide: false,
            // The redirection hint without the logical mode has no effect on a physical destination.
            logical: address & 4 != 0,
            level: m.data & 0x8000 != 0,
            delivery: Delivery::from_bits(m.data >> 8),
            vector: m.data as u8,
        }
    }
}

/// What a write to an APIC means for the I/O APIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[must_use]
pub struct EoiBroadcast(pub Option<u8>);

/// All local APICs of a VM. vCPU `n` has index `n`, and APIC id as given at the start.
#[derive(Clone, Debug)]
pub struct ApicBus {
    lapics: Vec<Lapic>,
    clocks: ApicClocks,
    /// vCPUs that have something new to look at.
    kicks: u64,
    /// Where the search for the lowest priority starts, so that equals take turns.
    turn: usize,
}

impl ApicBus {
    /// `ids[n]` is the APIC id of vCPU `n`; vCPU 0 is the boot processor. No more than [`MAX_VCPUS`] are used.
    #[must_use]
    pub fn new(ids: &[u32], timer_hz: u64, tsc_hz: u64) -> Self {
        let lapics = ids.iter().take(MAX_VCPUS).enumerate().map(|(n, &id)| Lapic::new(id, n == 0)).collect();
        Self { lapics, clocks: ApicClocks { timer: Rate::new(timer_hz), tsc: Rate::new(tsc_hz) }, kicks: 0, turn: 0 }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lapics.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lapics.is_empty()
    }

    /// All as after power-on.
    pub fn reset(&mut self) {
        for (n, l) in self.lapics.iter_mut().enumerate() {
            *l = Lapic::new(l.id(), n == 0);
        }
        self.kicks = 0;
    }

    /// The clocks of the timers.
    #[must_use]
    pub fn clocks(&self) -> &ApicClocks {
        &self.clocks
    }

    /// The APIC of a vCPU.
    #[must_use]
    #[inline]
    pub fn get(&self, vcpu: usize) -> Option<&Lapic> {
        self.lapics.get(vcpu)
    }

    /// The APIC of a vCPU, to change.
    #[inline]
    pub fn get_mut(&mut self, vcpu: usize) -> Option<&mut Lapic> {
        self.lapics.get_mut(vcpu)
    }

    /// vCPUs, as bits, that got something since the last call: an interrupt, an NMI, INIT, start-up. Whoever calls
    /// makes those that run leave the guest and those that sleep wake up.
    #[inline]
    pub fn take_kicks(&mut self) -> u64 {
        core::mem::take(&mut self.kicks)
    }

    /// Takes one vCPU out of what [`Self::take_kicks`] will answer.
    pub fn forget_kick(&mut self, vcpu: usize) {
        self.kicks &= !(1 << (vcpu & 63));
    }

    /// Whether [`Self::take_kicks`] has something.
    #[must_use]
    #[inline(always)]
    pub fn has_kicks(&self) -> bool {
        self.kicks != 0
    }

    pub(crate) fn kick(&mut self, vcpu: usize) {
        self.kicks |= 1 << (vcpu & 63);
    }

    /// Delivers a message; says whether any APIC took it.
    pub fn deliver(&mut self, m: &Message) -> bool {
        if m.delivery == Delivery::Lowest {
            let mut best: Option<(u8, usize)> = None;
            for i in 0..self.lapics.len() {
                let n = (i + self.turn) % self.lapics.len();
                let Some(l) = self.lapics.get(n) else { continue };
                if l.software_enabled() && l.matches(m.dest, m.logical, m.wide) && best.is_none_or(|(p, _)| l.ppr() < p)
                {
                    best = Some((l.ppr(), n));
                }
            }
            let Some((_, n)) = best else { return false };
            self.turn = n + 1;
            return self.deliver_to(n, &Message { delivery: Delivery::Fixed, ..*m });
        }
        // A machine's processors are usually numbered by their places, and no two have the same number.
        let place = m.dest as usize;
        if !m.logical && self.lapics.get(place).is_some_and(|l| l.id() == m.dest) {
            return self.lapics.get(place).is_some_and(Lapic::hardware_enabled) && self.deliver_to(place, m);
        }
        let mut taken = false;
        for n in 0..self.lapics.len() {
            if self.lapics.get(n).is_some_and(|l| l.hardware_enabled() && l.matches(m.dest, m.logical, m.wide)) {
                taken |= self.deliver_to(n, m);
            }
        }
        taken
    }

    fn deliver_to(&mut self, n: usize, m: &Message) -> bool {
        let Some(l) = self.lapics.get_mut(n) else { return false };
        let taken = match m.delivery {
            Delivery::Fixed | Delivery::Lowest => l.request(m.vector, m.level),
            Delivery::Nmi => {
                l.request_nmi();
                true
            }
            Delivery::Init => {
                l.request_init();
                true
            }
            Delivery::Startup => l.request_startup(m.vector),
            Delivery::Smi | Delivery::ExtInt | Delivery::Reserved => false,
        };
        if taken {
            self.kick(n);
        }
        taken
    }

    /// Sends what vCPU `from` has in its interrupt command register.
    fn send_command(&mut self, from: usize) {
        let Some(l) = self.lapics.get_mut(from) else { return };
        let low = l.icr as u32;
        let wide = l.x2apic();
        let m = Message {
            dest: if wide { (l.icr >> 32) as u32 } else { (l.icr >> 56) as u32 },
            wide,
            logical: low & 0x800 != 0,
            // IPIs are edge-triggered; only INIT's de-assert uses the level bits.
            level: false,
            delivery: Delivery::from_bits(low >> 8),
            vector: low as u8,
        };
        if matches!(m.delivery, Delivery::Fixed | Delivery::Lowest) && m.vector < 16 {
            l.send_error();
            return;
        }
        // INIT level de-assert has no effect on processors since the Pentium 4.
        if m.delivery == Delivery::Init && low & 0xC000 == 0x8000 {
            return;
        }
        match low >> 18 & 3 {
            0 => {
                self.deliver(&m);
            }
            // To oneself only fixed interrupts are legal.
            1 if m.delivery == Delivery::Fixed => {
                self.deliver_to(from, &m);
            }
            1 => {}
            shorthand => {
                for n in (0..self.lapics.len()).filter(|&n| shorthand == 2 || n != from) {
                    if self.lapics.get(n).is_some_and(Lapic::hardware_enabled) {
                        self.deliver_to(n, &m);
                    }
                }
            }
        }
    }

    fn after_write(&mut self, vcpu: usize, w: Written) -> EoiBroadcast {
        match w {
            Written::Nothing => EoiBroadcast(None),
            Written::Eoi(v) => EoiBroadcast(Some(v)),
            Written::Command => {
                self.send_command(vcpu);
                EoiBroadcast(None)
            }
        }
    }

    /// A 32-bit read in the xAPIC page of `vcpu`. All ones while the APIC is off or in x2APIC mode.
    #[inline]
    pub fn mmio_read(&mut self, vcpu: usize, offset: u32, now: u64) -> u32 {
        let Some(l) = self.lapics.get_mut(vcpu) else { return u32::MAX };
        if !l.hardware_enabled() || l.x2apic() {
            return u32::MAX;
        }
        match l.read_register(offset & !0xF, now, &self.clocks) {
            Some(v) if offset & 0xF < 4 => v,
            _ => {
                l.illegal_register();
                0
            }
        }
    }

    /// A 32-bit write in the xAPIC page of `vcpu`. The answer is for the I/O APIC.
    #[inline]
    pub fn mmio_write(&mut self, vcpu: usize, offset: u32, value: u32, now: u64) -> EoiBroadcast {
        let Some(l) = self.lapics.get_mut(vcpu) else { return EoiBroadcast(None) };
        if !l.hardware_enabled() || l.x2apic() || offset & 0xF != 0 {
            return EoiBroadcast(None);
        }
        match l.write_register(offset, value, now, &self.clocks) {
            Some(w) => self.after_write(vcpu, w),
            None => {
                l.illegal_register();
                EoiBroadcast(None)
            }
        }
    }

    /// Reads MSR 1Bh, 6E0h or 800h to 8FFh of `vcpu`.
    ///
    /// # Errors
    /// [`GpFault`] where the processor would raise #GP(0).
    pub fn msr_read(&mut self, vcpu: usize, msr: u32, now: u64) -> Result<u64, GpFault> {
        let l = self.lapics.get_mut(vcpu).ok_or(GpFault)?;
        match msr {
            0x1B => Ok(l.base_msr()),
            0x6E0 => Ok(l.tsc_deadline()),
            0x800..=0x8FF if l.x2apic() => {
                if msr == 0x830 {
                    return Ok(l.icr);
                }
                l.read_register((msr - 0x800) << 4, now, &self.clocks).map(u64::from).ok_or(GpFault)
            }
            _ => Err(GpFault),
        }
    }

    /// Writes MSR 1Bh, 6E0h or 800h to 8FFh of `vcpu`. The answer is for the I/O APIC.
    ///
    /// # Errors
    /// [`GpFault`] where the processor would raise #GP(0).
    pub fn msr_write(&mut self, vcpu: usize, msr: u32, value: u64, now: u64) -> Result<EoiBroadcast, GpFault> {
        let l = self.lapics.get_mut(vcpu).ok_or(GpFault)?;
        match msr {
            0x1B => l.write_base_msr(value)?,
            0x6E0 => l.set_tsc_deadline(value, now, &self.clocks),
            0x800..=0x8FF if l.x2apic() => return self.x2apic_write(vcpu, msr, value, now),
            _ => return Err(GpFault),
        }
        Ok(EoiBroadcast(None))
    }

    fn x2apic_write(&mut self, vcpu: usize, msr: u32, value: u64, now: u64) -> Result<EoiBroadcast, GpFault> {
        let l = self.lapics.get_mut(vcpu).ok_or(GpFault)?;
        let low = value as u32;
        let reserved = match msr {
            0x808 => value & !0xFF,
            // End of interrupt and ESR take 0 only.
            0x80B | 0x828 => value,
            0x80F => value & !0x1FF,
            0x830 => low as u64 & !0x000C_CFFF,
            0x83F => value & !0xFF,
            0x832..=0x837 | 0x838 | 0x83E => value & !0xFFFF_FFFF,
            _ => return Err(GpFault),
        };
        if reserved != 0 {
            return Err(GpFault);
        }
        match msr {
            0x830 => {
                l.icr = value;
                self.send_command(vcpu);
                Ok(EoiBroadcast(None))
            }
            0x83F => {
                let m = Message {
                    dest: 0,
                    wide: true,
                    logical: false,
                    level: false,
                    delivery: Delivery::Fixed,
                    vector: low as u8,
                };
                if m.vector < 16 {
                    l.send_error();
                } else {
                    self.deliver_to(vcpu, &m);
                }
                Ok(EoiBroadcast(None))
            }
            _ => {
                let w = l.write_register((msr - 0x800) << 4, low, now, &self.clocks).ok_or(GpFault)?;
                Ok(self.after_write(vcpu, w))
            }
        }
    }

    /// Lets the timers fire whose time has come.
    pub fn poll(&mut self, now: u64) {
        for n in 0..self.lapics.len() {
            if self.lapics.get_mut(n).is_some_and(|l| l.poll(now, &self.clocks)) {
                self.kick(n);
            }
        }
    }

    /// When the next timer of any vCPU fires.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.lapics.iter().fold(None, |at, l| earlier(at, l.next_deadline()))
    }

    /// Raises NMI on every processor whose LINT1 says so (the platform's NMI button).
    pub fn nmi_button(&mut self) {
        for n in 0..self.lapics.len() {
            if self.lapics.get_mut(n).is_some_and(|l| l.assert_lvt(Lvt::Lint1)) {
                self.kick(n);
            }
        }
    }

    /// The next INIT or start-up for a vCPU.
    pub fn take_event(&mut self, vcpu: usize) -> Option<CpuEvent> {
        self.lapics.get_mut(vcpu).and_then(Lapic::take_event)
    }
}
