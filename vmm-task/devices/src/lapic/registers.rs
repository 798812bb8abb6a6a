//! The registers of a local APIC, as the xAPIC page and the x2APIC MSRs show them (SDM 3A, 11.4.1 and 11.12.1.2).

use super::{ApicClocks, LVT_MASK, Lapic, Lvt, SVR_ENABLE, Written};
use crate::bits::VectorSet;

/// Bits that may be set in each LVT entry.
const LVT_WRITABLE: [u32; 6] = [0x0007_00FF, 0x0001_07FF, 0x0001_07FF, 0x0001_A7FF, 0x0001_A7FF, 0x0001_00FF];

impl Lapic {
    /// Reads the register at `offset` of the xAPIC page (a multiple of 10h), or x2APIC MSR 800h + offset / 10h.
    /// `None`: there is no such register.
    #[must_use]
    pub fn read_register(&self, offset: u32, now: u64, clocks: &ApicClocks) -> Option<u32> {
        let set = |s: &VectorSet| s.word((offset >> 4 & 7) as usize);
        Some(match offset {
            0x020 if self.x2apic() => self.id,
            0x020 => self.id << 24,
            0x030 => 0x0005_0014,
            0x080 => u32::from(self.tpr),
            0x0A0 => u32::from(self.ppr()),
            0x0D0 => self.ldr,
            0x0E0 if !self.x2apic() => self.dfr,
            0x0F0 => self.svr,
            0x100..=0x170 => set(&self.isr),
            0x180..=0x1F0 => set(&self.tmr),
            0x200..=0x270 => set(&self.irr),
            0x280 => self.esr,
            0x300 => self.icr as u32,
            0x310 if !self.x2apic() => (self.icr >> 32) as u32,
            0x320..=0x370 => self.lvt[(offset as usize >> 4) - 0x32],
            0x380 => self.initial,
            0x390 => self.current_count(now, clocks),
            0x3E0 => self.divide,
            _ => return None,
        })
    }

    /// Writes a register named as in [`Self::read_register`]. `None`: there is no such writable register.
    pub fn write_register(&mut self, offset: u32, v: u32, now: u64, clocks: &ApicClocks) -> Option<Written> {
        match offset {
            0x020 if !self.x2apic() => {}
            0x080 => self.tpr = v as u8,
            0x0B0 => return Some(self.end_of_interrupt()),
            0x0D0 if !self.x2apic() => self.ldr = v & 0xFF00_0000,
            0x0E0 if !self.x2apic() => self.dfr = v | 0x0FFF_FFFF,
            0x0F0 => {
                self.svr = v & 0x3FF;
                if v & SVR_ENABLE == 0 {
                    for e in &mut self.lvt {
                        *e |= LVT_MASK;
                    }
                }
            }
            0x280 => self.esr = core::mem::take(&mut self.esr_next),
            0x300 => {
                self.icr = self.icr & !0xFFFF_FFFF | u64::from(v & 0x000C_CFFF);
                return Some(Written::Command);
            }
            0x310 if !self.x2apic() => self.icr = self.icr & 0xFFFF_FFFF | u64::from(v & 0xFF00_0000) << 32,
            0x320..=0x370 => self.write_lvt((offset as usize >> 4) - 0x32, v),
            0x380 => {
                if self.timer_mode() != 2 {
                    self.initial = v;
                    self.arm(now, clocks);
                }
            }
            0x3E0 => {
                self.divide = v & 0xB;
                if self.timer_mode() < 2 && self.deadline.is_some() {
                    self.arm(now, clocks);
                }
            }
            _ => return None,
        }
        Some(Written::Nothing)
    }

    fn write_lvt(&mut self, index: usize, v: u32) {
        let Some(writable) = LVT_WRITABLE.get(index) else { return };
        let old_mode = self.timer_mode();
        self.lvt[index] = v & writable | if self.svr & SVR_ENABLE == 0 { LVT_MASK } else { 0 };
        // A change to or from deadline mode disarms the timer; between the other two the count goes on.
        let mode = self.timer_mode();
        if index == Lvt::Timer as usize && mode != old_mode && (mode >= 2 || old_mode >= 2) {
            (self.initial, self.tsc_deadline, self.deadline) = (0, 0, None);
        }
    }
}
