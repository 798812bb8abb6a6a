//! Which of a processor's leaks the kernel works around: from what CPUID and ARCH_CAPABILITIES say, and from the command line, to a
//! verdict for each measure. What each measure is against, and on which path it acts, stands in `docs/security.md`.

/// What the processor says of itself; a leaf or register it does not have is zero.
#[derive(Clone, Copy, Debug, Default)]
pub struct Facts {
    /// AMD or Hygon: no Meltdown, no L1TF, no MDS.
    pub amd: bool,
    /// Display family and model (SDM 2, CPUID leaf 1).
    pub family: u32,
    /// See `family`.
    pub model: u32,
    /// It is a virtual machine's processor.
    pub virtual_machine: bool,
    /// Leaf 7, EBX.
    pub leaf7_ebx: u32,
    /// Leaf 7, EDX.
    pub leaf7_edx: u32,
    /// Leaf 7 subleaf 2, EDX.
    pub leaf7_2_edx: u32,
    /// Leaf 8000_0008h, EBX.
    pub amd8_ebx: u32,
    /// Leaf 8000_0021h, EAX.
    pub amd21_eax: u32,
    /// Leaf 8000_0021h, ECX.
    pub amd21_ecx: u32,
    /// IA32_ARCH_CAPABILITIES.
    pub capabilities: u64,
}

impl Facts {
    fn says(&self, bit: u32) -> bool {
        self.capabilities >> bit & 1 != 0
    }

    fn leaks_buffers(&self) -> bool {
        if self.amd {
            // TSA: Zen 3 and 4 without both TSA_SQ_NO and TSA_L1_NO.
            return self.family == 0x19 && self.amd21_ecx & 6 != 6;
        }
        // MDS_NO; TAA_NO or no RTM; SBDR_SSDP_NO, FBSDP_NO, PSDP_NO; RFDS_NO where RFDS_CLEAR says that it matters.
        let asynchronous_abort = self.leaf7_ebx & 1 << 11 != 0 && !self.says(8);
        !self.says(5) || asynchronous_abort || self.capabilities >> 13 & 7 != 7 || self.says(28) && !self.says(27)
    }

    fn is_zenbleed(&self) -> bool {
        self.amd
            && self.family == 0x17
            && matches!(self.model, 0x30..=0x4f | 0x60..=0x7f | 0x90..=0x91 | 0xa0..=0xaf)
            && !self.virtual_machine
    }

    fn has_ibpb(&self) -> bool {
        self.leaf7_edx & 1 << 26 != 0 || self.amd8_ebx & 1 << 12 != 0
    }
}

/// Bits of what is done.
pub mod measure {
    /// Tasks run on tables without the kernel.
    pub const PTI: u32 = 1 << 0;
    /// Branch predictor barrier when another space, or another vCPU, takes the CPU.
    pub const IBPB: u32 = 1 << 1;
    /// The same at each entry of the kernel.
    pub const ENTRY_IBPB: u32 = 1 << 2;
    /// The return stack is filled when another space takes the CPU, and after each guest.
    pub const RSB: u32 = 1 << 3;
    /// Buffers are cleared before a task or a guest goes on.
    pub const VERW: u32 = 1 << 4;
    /// The first-level cache is flushed before a guest goes on.
    pub const L1D: u32 = 1 << 5;
    /// Indirect branches of the kernel are not predicted from what tasks trained: set once.
    pub const IBRS: u32 = 1 << 6;
    /// The same for the history of branches: set once.
    pub const BHI: u32 = 1 << 7;
    /// Loads do not pass stores with unknown addresses: set once.
    pub const SSBD: u32 = 1 << 8;
    /// A fence behind SWAPGS where a branch decides on it.
    pub const FENCE: u32 = 1 << 9;
    /// Zen 2's chicken bit: set once.
    pub const ZENBLEED: u32 = 1 << 10;
}

/// One measure: its name on the command line, and when it is needed and possible.
pub struct Measure {
    /// Name.
    pub name: &'static str,
    /// Bit of [`measure`].
    pub bit: u32,
    needed: fn(&Facts) -> bool,
    possible: fn(&Facts) -> bool,
}

const fn entry(name: &'static str, bit: u32, needed: fn(&Facts) -> bool, possible: fn(&Facts) -> bool) -> Measure {
    Measure { name, bit, needed, possible }
}

/// All measures.
pub static MEASURES: [Measure; 11] = [
    entry("pti", measure::PTI, |f| !f.amd && !f.says(0), |_| true),
    entry("ibpb", measure::IBPB, |_| true, Facts::has_ibpb),
    entry("entry-ibpb", measure::ENTRY_IBPB, |_| false, Facts::has_ibpb),
    entry("rsb", measure::RSB, Facts::has_ibpb, |_| true),
    entry("verw", measure::VERW, Facts::leaks_buffers, |f| {
        if f.amd { f.amd21_eax & 1 << 5 != 0 } else { f.leaf7_edx & 1 << 10 != 0 || f.says(17) || f.says(28) }
    }),
    entry("l1d", measure::L1D, |f| !f.amd && !f.says(0) && !f.says(3), |f| f.leaf7_edx & 1 << 28 != 0),
    entry("ibrs", measure::IBRS, |_| true, |f| f.says(1) || f.amd && f.amd21_eax & 1 << 8 != 0),
    entry("bhi", measure::BHI, |f| !f.amd && !f.says(20), |f| f.leaf7_2_edx & 1 << 4 != 0),
    entry("ssbd", measure::SSBD, |_| false, |f| f.leaf7_edx >> 31 != 0 || f.amd8_ebx & 1 << 24 != 0),
    entry("fence", measure::FENCE, |f| !f.amd, |_| true),
    entry("zenbleed", measure::ZENBLEED, Facts::is_zenbleed, Facts::is_zenbleed),
];

/// What becomes of a measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is done.
    On,
    /// This processor does not need it.
    Unneeded,
    /// The command line switched it off.
    Off,
    /// It would be needed (or was asked for), and the processor does not offer it.
    Missing,
}

impl Measure {
    /// Decides: `off` is what `mitigations=off` says of all, `choice` the measure's own value on the command line, which comes first.
    #[must_use]
    pub fn decide(&self, facts: &Facts, off: bool, choice: Option<&str>) -> Verdict {
        let (needed, possible) = ((self.needed)(facts), (self.possible)(facts));
        match choice {
            Some("force") => Verdict::On,
            Some("on") if possible => Verdict::On,
            Some("on") => Verdict::Missing,
            Some("off") => Verdict::Off,
            _ if off => Verdict::Off,
            _ if !needed => Verdict::Unneeded,
            _ if possible => Verdict::On,
            _ => Verdict::Missing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn on(facts: &Facts) -> u32 {
        MEASURES.iter().filter(|m| m.decide(facts, false, None) == Verdict::On).map(|m| m.bit).sum()
    }

    fn verdict(name: &str, facts: &Facts) -> Verdict {
        MEASURES.iter().find(|m| m.name == name).unwrap().decide(facts, false, None)
    }

    const INTEL: Facts = Facts {
        amd: false,
        family: 6,
        model: 0,
        virtual_machine: false,
        leaf7_ebx: 0,
        leaf7_edx: 0,
        leaf7_2_edx: 0,
        amd8_ebx: 0,
        amd21_eax: 0,
        amd21_ecx: 0,
        capabilities: 0,
    };

    #[test]
    fn processors_of_the_years() {
        // Haswell without microcode, as Bochs plays it.
        assert_eq!(on(&INTEL), measure::PTI | measure::FENCE);
        assert_eq!(verdict("verw", &INTEL), Verdict::Missing);
        assert_eq!(verdict("l1d", &INTEL), Verdict::Missing);
        // Skylake with microcode: IBRS/IBPB, MD_CLEAR, L1D_FLUSH, SSBD.
        let skylake = Facts { leaf7_edx: 1 << 26 | 1 << 10 | 1 << 28 | 1 << 31, ..INTEL };
        use measure::*;
        assert_eq!(on(&skylake), PTI | FENCE | IBPB | RSB | VERW | L1D);
        assert_eq!(verdict("ibrs", &skylake), Verdict::Missing);
        // Sapphire Rapids: RDCL_NO, IBRS_ALL, MDS_NO, TAA_NO, three NOs of stale data, BHI_DIS_S.
        let capabilities = 1 | 2 | 1 << 3 | 1 << 5 | 1 << 8 | 7 << 13;
        let new = Facts { capabilities, leaf7_2_edx: 1 << 4, leaf7_ebx: 1 << 11, ..skylake };
        assert_eq!(on(&new), FENCE | IBPB | RSB | IBRS | BHI);
        // Cascade Lake: the same without TAA_NO, with RTM.
        assert_ne!(on(&Facts { capabilities: capabilities & !(1 << 8), ..new }) & VERW, 0);
        // Gracemont: RFDS_CLEAR without RFDS_NO.
        assert_ne!(on(&Facts { capabilities: capabilities | 1 << 28, ..new }) & VERW, 0);
        assert_eq!(on(&Facts { capabilities: capabilities | 3 << 27, ..new }) & VERW, 0);
    }

    #[test]
    fn processors_of_amd() {
        use measure::*;
        let k8 = Facts { amd: true, family: 15, model: 107, ..INTEL };
        assert_eq!(on(&k8), 0, "QEMU's own processor");
        let zen2 = Facts { family: 0x17, model: 0x31, amd8_ebx: 1 << 12 | 1 << 24, ..k8 };
        assert_eq!(on(&zen2), IBPB | RSB | ZENBLEED);
        assert_eq!(on(&Facts { virtual_machine: true, ..zen2 }), IBPB | RSB);
        let zen4 = Facts { family: 0x19, model: 0x11, amd21_eax: 1 << 8 | 1 << 5, ..zen2 };
        assert_eq!(on(&zen4), IBPB | RSB | IBRS | VERW);
        assert_eq!(on(&Facts { amd21_ecx: 6, ..zen4 }), IBPB | RSB | IBRS);
        assert_eq!(verdict("verw", &Facts { amd21_eax: 0, ..zen4 }), Verdict::Missing);
    }

    #[test]
    fn names_and_bits_are_distinct() {
        for (i, a) in MEASURES.iter().enumerate() {
            assert!(a.bit.is_power_of_two());
            for b in &MEASURES[..i] {
                assert!(a.name != b.name && a.bit != b.bit);
            }
        }
    }

    proptest! {
        #[test]
        fn the_command_line_is_obeyed(
            edx in any::<u32>(), capabilities in any::<u64>(), amd in any::<bool>(), off in any::<bool>(),
            choice in prop::option::of(prop::sample::select(vec!["on", "off", "auto", "force", "what"])),
        ) {
            let facts = Facts { amd, leaf7_edx: edx, capabilities, ..INTEL };
            for m in &MEASURES {
                let verdict = m.decide(&facts, off, choice);
                match choice {
                    Some("off") => prop_assert_eq!(verdict, Verdict::Off),
                    Some("force") => prop_assert_eq!(verdict, Verdict::On),
                    Some("on") => prop_assert!(matches!(verdict, Verdict::On | Verdict::Missing)),
                    _ if off => prop_assert_eq!(verdict, Verdict::Off),
                    // Nothing is done that nobody needs, and nothing that the processor does not offer.
                    _ if verdict == Verdict::On => prop_assert!((m.needed)(&facts) && (m.possible)(&facts)),
                    _ => {}
                }
            }
        }
    }
}
