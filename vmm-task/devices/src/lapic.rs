//! One local APIC (SDM 3A, chapter 11): priorities and acceptance here, the timer and the registers in files of their own.
//!
//! The same state is shown as the xAPIC page (offsets) and as x2APIC MSRs. What concerns other processors, sending
//! and matching of interrupt messages, is in [`crate::apic_bus`].

mod registers;
mod timer;

pub use timer::ApicClocks;

use crate::bits::VectorSet;

/// IA32_APIC_BASE: this is the boot processor.
pub const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: the APIC is on.
pub const BASE_ENABLE: u64 = 1 << 11;

const SVR_ENABLE: u32 = 1 << 8;
const LVT_MASK: u32 = 1 << 16;
const ESR_SEND_ILLEGAL: u32 = 1 << 5;
const ESR_RECEIVE_ILLEGAL: u32 = 1 << 6;
const ESR_ILLEGAL_REGISTER: u32 = 1 << 7;

/// The guest tried what raises #GP(0) in x2APIC mode or on the base MSR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpFault;

/// Entries of the local vector table, in the order of their registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Lvt {
    /// Timer, register 320h.
    Timer = 0,
    /// Thermal sensor, 330h.
    Thermal = 1,
    /// Performance counters, 340h.
    Perf = 2,
    /// Pin LINT0, 350h: wired to the PIC's INTR.
    Lint0 = 3,
    /// Pin LINT1, 360h: wired to NMI.
    Lint1 = 4,
    /// Internal errors, 370h.
    Error = 5,
}

/// What a register write means for the rest of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Nothing,
    /// This vector's interrupt is over, and it was level-triggered: tell the I/O APICs.
    Eoi(u8),
    /// Send what the interrupt command register holds.
    Command,
}

/// What one processor is told to do by INIT and start-up messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuEvent {
    /// Reset the processor; it waits for start-up, unless it is the boot processor.
    Init,
    /// Start in real mode at `vector << 12`.
    Startup(u8),
}

/// A local APIC.
#[derive(Clone, Debug)]
pub struct Lapic {
    id: u32,
    pub(crate) base: u64,
    tpr: u8,
    ldr: u32,
    dfr: u32,
    svr: u32,
    isr: VectorSet,
    irr: VectorSet,
    tmr: VectorSet,
    esr: u32,
    esr_next: u32,
    pub(crate) icr: u64,
    lvt: [u32; 6],
    initial: u32,
    divide: u32,
    /// When the running count was `initial`.
    started: u64,
    /// IA32_TSC_DEADLINE, 0 if not armed.
    tsc_deadline: u64,
    /// The guest's TSC minus the clock's.
    tsc_offset: u64,
    /// When the timer fires next.
    deadline: Option<u64>,
    /// NMIs that wait: two at most, as one is taken at once and another one latched meanwhile (SDM 7.7).
    nmis: u8,
    init: bool,
    startup: Option<u8>,
    waits_for_startup: bool,
}

impl Lapic {
    /// An APIC after power-on. The boot processor's LINT0 takes the PIC's interrupts and LINT1 is NMI, as firmware
    /// leaves them ("virtual wire", MP specification 3.6.2.2); others wait for start-up.
    #[must_use]
    pub fn new(id: u32, boot: bool) -> Self {
        let mut apic = Self {
            id,
            base: crate::platform::LAPIC_BASE | BASE_ENABLE | if boot { BASE_BSP } else { 0 },
            tpr: 0,
            ldr: 0,
            dfr: u32::MAX,
            svr: 0xFF,
            isr: VectorSet::new(),
            irr: VectorSet::new(),
            tmr: VectorSet::new(),
            esr: 0,
            esr_next: 0,
            icr: 0,
            lvt: [LVT_MASK; 6],
            initial: 0,
            divide: 0,
            started: 0,
            tsc_deadline: 0,
            tsc_offset: 0,
            deadline: None,
            nmis: 0,
            init: false,
            startup: None,
            waits_for_startup: !boot,
        };
        apic.reset_registers();
        apic
    }

    /// What INIT does: all registers but the id and the base MSR as after power-on.
    fn reset_registers(&mut self) {
        let (id, base) = (self.id, self.base);
        self.tpr = 0;
        (self.ldr, self.dfr, self.svr) = (0, u32::MAX, 0xFF);
        (self.isr, self.irr, self.tmr) = (VectorSet::new(), VectorSet::new(), VectorSet::new());
        (self.esr, self.esr_next, self.icr) = (0, 0, 0);
        self.lvt = [LVT_MASK; 6];
        if base & BASE_BSP != 0 {
            self.lvt[Lvt::Lint0 as usize] = 0x700;
            self.lvt[Lvt::Lint1 as usize] = 0x400;
        }
        (self.initial, self.divide, self.started, self.tsc_deadline, self.deadline) = (0, 0, 0, 0, None);
        if base & BASE_X2APIC != 0 {
            self.ldr = x2apic_ldr(id);
        }
    }

    /// The APIC id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub fn base_msr(&self) -> u64 {
        self.base
    }

    /// Writes IA32_APIC_BASE (SDM 3A, 11.12.5.1 has the legal transitions). The page does not move: another address
    /// is refused, because no guest needs it.
    ///
    /// # Errors
    /// [`GpFault`] for reserved bits, an illegal transition, or another address.
    pub fn write_base_msr(&mut self, value: u64) -> Result<(), GpFault> {
        let mode = |v: u64| (v & BASE_ENABLE != 0, v & BASE_X2APIC != 0);
        if value & !0xFFF != crate::platform::LAPIC_BASE || value & 0x2FF != 0 {
            return Err(GpFault);
        }
        match (mode(self.base), mode(value)) {
            (_, (false, true)) | ((true, true), (true, false)) | ((false, false), (true, true)) => return Err(GpFault),
            (_, (false, false)) => {
                self.base = value & !BASE_BSP | self.base & BASE_BSP;
                self.reset_registers();
            }
            ((_, false), (true, true)) => {
                self.base = value & !BASE_BSP | self.base & BASE_BSP;
                self.ldr = x2apic_ldr(self.id);
                self.icr &= 0xFFFF_FFFF;
            }
            _ => self.base = value & !BASE_BSP | self.base & BASE_BSP,
        }
        Ok(())
    }

    /// Whether the APIC is on at all (IA32_APIC_BASE bit 11).
    #[must_use]
    pub fn hardware_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0
    }

    /// Whether the APIC is in x2APIC mode.
    #[must_use]
    pub fn x2apic(&self) -> bool {
        self.base & BASE_X2APIC != 0
    }

    /// Whether software has enabled it (SVR bit 8).
    #[must_use]
    pub fn software_enabled(&self) -> bool {
        self.hardware_enabled() && self.svr & SVR_ENABLE != 0
    }

    /// Whether an interrupt of the PIC reaches this processor by LINT0, or past an APIC that is off.
    #[must_use]
    #[inline]
    pub fn takes_pic(&self) -> bool {
        !self.hardware_enabled() || self.lvt[Lvt::Lint0 as usize] & (LVT_MASK | 0x700) == 0x700
    }

    /// The task priority, as CR8 shows it (0 to 15).
    #[must_use]
    pub fn cr8(&self) -> u8 {
        self.tpr >> 4
    }

    /// Writes CR8.
    pub fn set_cr8(&mut self, v: u8) {
        self.tpr = v << 4;
    }

    /// The processor priority (SDM 3A, 11.8.3.1).
    #[must_use]
    #[inline]
    pub fn ppr(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0);
        if self.tpr >> 4 >= serving >> 4 { self.tpr } else { serving & 0xF0 }
    }

    /// The vector to deliver now, if its priority is above the processor's.
    #[must_use]
    #[inline]
    pub fn highest_pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.hardware_enabled() && vector >> 4 > self.ppr() >> 4).then_some(vector)
    }

    /// The highest requested vector whatever the priorities, for a TPR threshold.
    #[must_use]
    pub fn highest_requested(&self) -> Option<u8> {
        self.irr.highest()
    }

    /// The processor takes `vector`, which [`Self::highest_pending`] named.
    pub fn accept(&mut self, vector: u8) {
        if self.irr.remove(vector) {
            self.isr.insert(vector);
        }
    }

    /// A fixed interrupt arrives. Says whether it was taken.
    pub fn request(&mut self, vector: u8, level: bool) -> bool {
        if !self.software_enabled() {
            return false;
        }
        if vector < 16 {
            self.error(ESR_RECEIVE_ILLEGAL);
            return false;
        }
        self.irr.insert(vector);
        if level {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
        true
    }

    /// An NMI arrives.
    pub fn request_nmi(&mut self) {
        self.nmis = (self.nmis + 1).min(2);
    }

    /// Whether an NMI waits.
    #[must_use]
    #[inline]
    pub fn nmi_pending(&self) -> bool {
        self.nmis != 0
    }

    /// Takes a waiting NMI.
    pub fn take_nmi(&mut self) -> bool {
        let waits = self.nmi_pending();
        self.nmis = self.nmis.saturating_sub(1);
        waits
    }

    /// The processor is in its handler of an NMI, where it latches one more.
    pub fn latch_nmis(&mut self) {
        self.nmis = self.nmis.min(1);
    }

    /// INIT arrives.
    pub(crate) fn request_init(&mut self) {
        self.reset_registers();
        // The boot processor starts at its reset vector, the others wait (SDM 3A, 9.1).
        let boot = self.base & BASE_BSP != 0;
        (self.init, self.startup, self.nmis, self.waits_for_startup) = (true, None, 0, !boot);
    }

    /// A start-up message arrives; it is lost unless the processor waits for one.
    pub(crate) fn request_startup(&mut self, vector: u8) -> bool {
        if self.waits_for_startup {
            self.startup = Some(vector);
            self.waits_for_startup = false;
            return true;
        }
        false
    }

    /// Whether the processor is parked until a start-up message arrives.
    #[must_use]
    pub fn waits_for_startup(&self) -> bool {
        self.waits_for_startup
    }

    /// The next INIT or start-up, in order.
    pub fn take_event(&mut self) -> Option<CpuEvent> {
        if core::mem::take(&mut self.init) {
            return Some(CpuEvent::Init);
        }
        self.startup.take().map(CpuEvent::Startup)
    }

    /// A pin of the local vector table is asserted (NMI by LINT1, internal errors). Says whether it brought an interrupt.
    pub fn assert_lvt(&mut self, entry: Lvt) -> bool {
        let v = self.lvt[entry as usize];
        if !self.hardware_enabled() || v & LVT_MASK != 0 {
            return false;
        }
        match v >> 8 & 7 {
            0 => self.request(v as u8, false),
            4 => {
                self.request_nmi();
                true
            }
            _ => false,
        }
    }

    fn error(&mut self, bit: u32) {
        let new = self.esr_next & bit == 0;
        self.esr_next |= bit;
        let v = self.lvt[Lvt::Error as usize];
        // An illegal vector in the error entry itself must not recurse.
        if new && v & LVT_MASK == 0 && v & 0xFF >= 16 {
            self.request(v as u8, false);
        }
    }

    /// Reports that a command with an illegal vector was sent.
    pub(crate) fn send_error(&mut self) {
        self.error(ESR_SEND_ILLEGAL);
    }

    /// Whether a message for `dest` is for this APIC. `wide` says that `dest` has 32 bits (it comes from an x2APIC
    /// command) rather than 8.
    #[must_use]
    pub fn matches(&self, dest: u32, logical: bool, wide: bool) -> bool {
        if dest == if wide { u32::MAX } else { 0xFF } {
            return true;
        }
        if !logical {
            return self.id == dest;
        }
        if self.x2apic() {
            return self.ldr >> 16 == dest >> 16 && self.ldr & dest & 0xFFFF != 0;
        }
        let (mine, dest) = (self.ldr >> 24, dest & 0xFF);
        if self.dfr >> 28 == 0xF { mine & dest != 0 } else { mine >> 4 == dest >> 4 && mine & dest & 15 != 0 }
    }

    fn end_of_interrupt(&mut self) -> Written {
        let Some(vector) = self.isr.highest() else { return Written::Nothing };
        self.isr.remove(vector);
        if self.tmr.contains(vector) { Written::Eoi(vector) } else { Written::Nothing }
    }

    /// An access outside the registers was made.
    pub(crate) fn illegal_register(&mut self) {
        self.error(ESR_ILLEGAL_REGISTER);
    }
}

/// The logical id of an x2APIC: cluster in the upper half, one bit in the lower (SDM 3A, 11.12.10.2).
fn x2apic_ldr(id: u32) -> u32 {
    id >> 4 << 16 | 1 << (id & 15)
}
