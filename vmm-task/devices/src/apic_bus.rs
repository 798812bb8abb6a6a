//! The local APICs together: interrupt messages, their destinations, and IPIs (SDM 3A, 11.6 and 11.11).

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
            if let Some(l) = self.lapics.get_mut(n) {
                l.assert_lvt(Lvt::Lint1);
                if l.nmi_pending() {
                    self.kick(n);
                }
            }
        }
    }

    /// The next INIT or start-up for a vCPU.
    pub fn take_event(&mut self, vcpu: usize) -> Option<CpuEvent> {
        self.lapics.get_mut(vcpu).and_then(Lapic::take_event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lapic::{BASE_ENABLE, BASE_X2APIC};
    use proptest::prelude::*;

    const TIMER_HZ: u64 = 1_000_000_000;
    const TSC_HZ: u64 = 2_500_000_000;

    fn bus(n: u32) -> ApicBus {
        let ids: Vec<u32> = (0..n).collect();
        let mut b = ApicBus::new(&ids, TIMER_HZ, TSC_HZ);
        for i in 0..n as usize {
            let _ = b.mmio_write(i, 0xF0, 0x1FF, 0);
        }
        b
    }

    fn fixed(dest: u32, vector: u8) -> Message {
        Message { dest, wide: false, logical: false, level: false, delivery: Delivery::Fixed, vector }
    }

    #[test]
    fn priorities_and_end_of_interrupt() {
        let mut b = bus(1);
        assert!(b.deliver(&fixed(0, 0x35)));
        assert!(b.deliver(&Message { level: true, ..fixed(0, 0x81) }));
        let l = b.get_mut(0).unwrap();
        assert_eq!(l.highest_pending(), Some(0x81));
        l.accept(0x81);
        assert_eq!(l.highest_pending(), None);
        assert_eq!(b.mmio_read(0, 0xA0, 0), 0x80);
        assert_eq!(b.mmio_write(0, 0xB0, 0, 0), EoiBroadcast(Some(0x81)));
        let l = b.get_mut(0).unwrap();
        assert_eq!(l.highest_pending(), Some(0x35));
        l.set_cr8(3);
        assert_eq!(l.highest_pending(), None);
        assert_eq!(b.mmio_read(0, 0x80, 0), 0x30);
        assert_eq!(b.mmio_read(0, 0x210, 0), 1 << 0x15);
    }

    #[test]
    fn init_and_startup_bring_up_a_processor() {
        let mut b = bus(1);
        b = ApicBus { lapics: [Lapic::new(0, true), Lapic::new(1, false)].to_vec(), ..b };
        assert!(b.get(1).unwrap().waits_for_startup());
        let _ = b.mmio_write(0, 0x310, 1 << 24, 0);
        let _ = b.mmio_write(0, 0x300, 0x0000_C500, 0);
        assert_eq!(b.take_event(1), Some(CpuEvent::Init));
        let _ = b.mmio_write(0, 0x300, 0x0000_8500, 0);
        assert_eq!(b.take_event(1), None, "de-assert does nothing");
        let _ = b.mmio_write(0, 0x300, 0x0000_069A, 0);
        let _ = b.mmio_write(0, 0x300, 0x0000_069B, 0);
        assert_eq!(b.take_event(1), Some(CpuEvent::Startup(0x9A)), "the second start-up is lost");
        assert_eq!(b.take_event(1), None);
        assert_eq!(b.take_kicks(), 2);
    }

    #[test]
    fn timer_modes() {
        let mut b = bus(1);
        let _ = b.mmio_write(0, 0x3E0, 3, 0); // divide by 16
        let _ = b.mmio_write(0, 0x320, 0xEF, 0);
        let _ = b.mmio_write(0, 0x380, 1_000_000, 100);
        assert_eq!(b.mmio_read(0, 0x390, 100 + 8_000_000), 500_000);
        assert_eq!(b.next_deadline(), Some(16_000_100));
        b.poll(16_000_099);
        assert_eq!(b.get(0).unwrap().highest_pending(), None);
        b.poll(16_000_100);
        assert_eq!(b.get(0).unwrap().highest_pending(), Some(0xEF));
        assert_eq!((b.next_deadline(), b.mmio_read(0, 0x390, 17_000_000)), (None, 0));
        let _ = b.mmio_write(0, 0x320, 0x2_00EF, 20_000_000);
        let _ = b.mmio_write(0, 0x380, 1_000_000, 20_000_000);
        b.poll(20_000_000 + 3 * 16_000_000 + 5);
        assert_eq!(b.next_deadline(), Some(20_000_000 + 4 * 16_000_000), "the phase is kept");
        let _ = b.mmio_write(0, 0x320, 0x4_00EF, 0);
        assert_eq!(b.next_deadline(), None);
        let _ = b.msr_write(0, 0x6E0, TSC_HZ, 0).unwrap();
        let at = b.next_deadline().unwrap();
        assert!((1_000_000_000..1_000_000_005).contains(&at));
        assert_eq!(b.msr_read(0, 0x6E0, 0), Ok(TSC_HZ));
        b.poll(at);
        assert_eq!(b.msr_read(0, 0x6E0, 0), Ok(0));
    }

    #[test]
    fn destinations() {
        let mut b = bus(8);
        for i in 0..8 {
            let _ = b.mmio_write(i, 0xD0, 1 << (24 + i), 0);
        }
        let hit =
            |b: &ApicBus, v: u8| (0..8).filter(|&i| b.get(i).unwrap().highest_pending() == Some(v)).collect::<Vec<_>>();
        b.deliver(&Message { logical: true, ..fixed(0b101, 0x40) });
        assert_eq!(hit(&b, 0x40), [0, 2]);
        b.deliver(&fixed(0xFF, 0x50));
        assert_eq!(hit(&b, 0x50).len(), 8);
        for _ in 0..4 {
            b.deliver(&Message { logical: true, delivery: Delivery::Lowest, ..fixed(0xF0, 0x60) });
        }
        assert_eq!(hit(&b, 0x60), [4, 5, 6, 7], "equals take turns");
        for i in 0..8 {
            let _ = b.mmio_write(i, 0xE0, 0x0FFF_FFFF, 0);
            let _ = b.mmio_write(i, 0xD0, ((i as u32 / 4) << 28) | 1 << (24 + i % 4), 0);
        }
        b.deliver(&Message { logical: true, ..fixed(0x16, 0x70) });
        assert_eq!(hit(&b, 0x70), [5, 6]);
        let _ = b.mmio_write(3, 0x300, 0x000C_4080, 0);
        assert_eq!(hit(&b, 0x80), [0, 1, 2, 4, 5, 6, 7]);
    }

    #[test]
    fn x2apic_mode() {
        let ids: Vec<u32> = (0..34).collect();
        let mut b = ApicBus::new(&ids, TIMER_HZ, TSC_HZ);
        for i in 0..34 {
            let base = b.msr_read(i, 0x1B, 0).unwrap();
            assert_eq!(b.msr_read(i, 0x802, 0), Err(GpFault));
            let _ = b.msr_write(i, 0x1B, base | BASE_X2APIC, 0).unwrap();
            let _ = b.msr_write(i, 0x80F, 0x1FF, 0).unwrap();
        }
        assert_eq!(b.msr_read(33, 0x802, 0), Ok(33));
        assert_eq!(b.msr_read(33, 0x80D, 0), Ok(2 << 16 | 2));
        assert_eq!(b.mmio_read(0, 0x20, 0), u32::MAX);
        let _ = b.msr_write(0, 0x830, 0x0002_0003_0000_0841, 0).unwrap();
        assert_eq!(b.take_kicks(), 3 << 32);
        let _ = b.msr_write(5, 0x83F, 0x55, 0).unwrap();
        assert_eq!(b.get(5).unwrap().highest_pending(), Some(0x55));
        for (msr, v) in [(0x80B, 1), (0x802, 0), (0x80D, 0), (0x80E, 0), (0x831, 0), (0x8FF, 0), (0x808, 0x100)] {
            assert!(b.msr_write(0, msr, v, 0).is_err(), "{msr:x}");
        }
        let base = b.msr_read(1, 0x1B, 0).unwrap();
        assert!(b.msr_write(1, 0x1B, base & !BASE_X2APIC, 0).is_err());
        let _ = b.msr_write(1, 0x1B, base & !BASE_X2APIC & !BASE_ENABLE, 0).unwrap();
        assert!(b.get(1).unwrap().takes_pic());
    }

    #[test]
    fn errors_are_reported_once_written() {
        let mut b = bus(1);
        let _ = b.mmio_write(0, 0x370, 0xFE, 0);
        let _ = b.mmio_write(0, 0x300, 0x0004_4005, 0);
        assert_eq!(b.mmio_read(0, 0x280, 0), 0);
        let _ = b.mmio_write(0, 0x280, 0, 0);
        assert_eq!(b.mmio_read(0, 0x280, 0), 0x20);
        assert_eq!(b.get(0).unwrap().highest_pending(), Some(0xFE));
        let _ = b.mmio_write(0, 0x370, 5, 0);
        let _ = b.mmio_write(0, 0x300, 0x0004_4005, 0);
        assert!(b.get(0).unwrap().highest_pending() == Some(0xFE));
    }

    #[test]
    fn lint0_and_lint1() {
        let mut b = ApicBus::new(&[0, 1], TIMER_HZ, TSC_HZ);
        assert!(b.get(0).unwrap().takes_pic());
        assert!(!b.get(1).unwrap().takes_pic());
        b.nmi_button();
        assert!(b.get_mut(0).unwrap().take_nmi());
        assert!(!b.get(1).unwrap().nmi_pending());
        let _ = b.mmio_write(0, 0x350, 0x1_0700, 0);
        assert!(!b.get(0).unwrap().takes_pic());
    }

    proptest! {
        #[test]
        fn storms_do_not_panic(ops in proptest::collection::vec((0u8..8, 0usize..5, any::<u16>(), any::<u64>(), 0u64..1 << 34), 0..300)) {
            let mut b = ApicBus::new(&[0, 1, 2, 17], TIMER_HZ, TSC_HZ);
            let mut now = 0;
            for (op, cpu, reg, v, dt) in ops {
                now += dt;
                match op {
                    0 => { b.mmio_read(cpu, u32::from(reg & 0xFFF), now); }
                    1 => { let _ = b.mmio_write(cpu, u32::from(reg & 0x3F0), v as u32, now); }
                    2 => { let _ = b.msr_read(cpu, 0x800 | u32::from(reg & 0x3F), now); }
                    3 => { let _ = b.msr_write(cpu, 0x800 | u32::from(reg & 0x3F), v & 0xFF_FFFF_FFFF, now); }
                    4 => { let _ = b.msr_write(cpu, 0x1B, crate::platform::LAPIC_BASE | v & 0xD00, now); }
                    5 => { b.deliver(&Message::from(MsiMessage { address: v, data: u32::from(reg) })); }
                    6 => { let _ = b.msr_write(cpu, 0x6E0, v, now); }
                    _ => {
                        b.poll(now);
                        for n in 0..4 {
                            prop_assert!(b.get(n).unwrap().next_deadline().is_none_or(|d| d > now));
                            let l = b.get_mut(n).unwrap();
                            if let Some(v) = l.highest_pending() { l.accept(v); prop_assert!(l.ppr() >> 4 >= v >> 4); }
                        }
                    }
                }
            }
        }
    }
}
