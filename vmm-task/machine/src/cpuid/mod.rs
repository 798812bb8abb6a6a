//! What CPUID answers.
//!
//! Features pass by allow-list: a bit the host has and this module does not name is hidden, so a processor that is newer
//! than this code cannot show a guest something nobody virtualises. A [`CpuidTable`] is made once per virtual CPU; an
//! exit is then one look-up ([`CpuidTable::answer`]).

mod features;
mod policy;
mod xsave;

use alloc::vec::Vec;

/// EAX, EBX, ECX, EDX.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// EAX.
    pub eax: u32,
    /// EBX.
    pub ebx: u32,
    /// ECX.
    pub ecx: u32,
    /// EDX.
    pub edx: u32,
}

impl Leaf {
    /// A leaf from its four registers.
    #[must_use]
    pub const fn new(eax: u32, ebx: u32, ecx: u32, edx: u32) -> Self {
        Self { eax, ebx, ecx, edx }
    }
}

/// Whose conventions the guest sees; always the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// Intel, and what behaves like it.
    Intel,
    /// AMD (and Hygon).
    Amd,
}

impl Vendor {
    /// The vendor that the host's leaf 0 names.
    #[must_use]
    pub fn of(leaf0: Leaf) -> Self {
        let name = [leaf0.ebx, leaf0.edx, leaf0.ecx];
        let amd = [*b"Auth", *b"enti", *b"cAMD"].map(u32::from_le_bytes);
        let hygon = [*b"Hygo", *b"nGen", *b"uine"].map(u32::from_le_bytes);
        if name == amd || name == hygon { Self::Amd } else { Self::Intel }
    }
}

/// What the VM is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidConfig {
    /// Virtual CPUs of the VM; one package, one thread a core. APIC ids are below this, rounded up to a power of two.
    pub cpus: u32,
    /// XCR0 bits the kernel lets this VM set. Zero hides XSAVE and everything that needs it.
    pub xcr0: u64,
    /// Frequency of the guest's TSC.
    pub tsc_khz: u32,
    /// Frequency of the virtual APIC timer, which on Intel leaf 15h names as the crystal.
    pub apic_timer_hz: u32,
    /// Physical address bits, at most the host's.
    pub physical_bits: u8,
    /// Whether SPEC_CTRL and PRED_CMD are swapped for this VM, so that the guest may use them.
    pub speculation_control: bool,
    /// Value of IA32_ARCH_CAPABILITIES, if the guest is to see it.
    pub arch_capabilities: Option<u64>,
    /// Whether PCID and INVPCID are shown.
    pub pcid: bool,
}

impl CpuidConfig {
    /// Bits of an APIC id that tell processors of this VM apart.
    #[must_use]
    pub const fn apic_id_bits(&self) -> u32 {
        let cpus = if self.cpus == 0 { 1 } else { self.cpus };
        cpus.next_power_of_two().trailing_zeros()
    }
}

/// State of the asking virtual CPU that some leaves show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    /// CR4.OSXSAVE.
    pub osxsave: bool,
    /// XCR0.
    pub xcr0: u64,
    /// IA32_APIC_BASE.EN: leaves 1 and 80000001h show an APIC only then (SDM 13.4.3, APM 2 16.3.2).
    pub apic: bool,
}

/// First basic leaf of each of the three ranges.
pub const BASIC: u32 = 0;
/// First hypervisor leaf.
pub const HYPERVISOR: u32 = 0x4000_0000;
/// First extended leaf.
pub const EXTENDED: u32 = 0x8000_0000;
/// AMD's extended features, which repeat those of leaf 1.
const AMD_FEATURES: u32 = 0x8000_0001;
/// Our signature in EBX, ECX, EDX of [`HYPERVISOR`].
pub const SIGNATURE: [u8; 12] = *b"MoiraMoira  ";

const BASIC_SLOTS: usize = 0x20;
const EXTENDED_SLOTS: usize = 0x22;
const HYPERVISOR_SLOTS: usize = 2;

/// Where a leaf's subleaves stand in the table: none means all zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Slot {
    first: u16,
    count: u16,
    /// Whether ECX matters: if not, the one subleaf answers every ECX.
    indexed: bool,
}

/// All answers for one virtual CPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuidTable {
    basic: [Slot; BASIC_SLOTS],
    extended: [Slot; EXTENDED_SLOTS],
    hypervisor: [Slot; HYPERVISOR_SLOTS],
    leaves: Vec<Leaf>,
    /// Intel answers leaves above the highest with the highest basic leaf; AMD with zeros (SDM vol. 2A, CPUID).
    out_of_range: Option<u32>,
    /// Size of the XSAVE area for each component, standard form.
    areas: xsave::Areas,
}

impl CpuidTable {
    /// Makes the table of the virtual CPU with `apic_id`, from the host's leaves.
    ///
    /// `host` answers (leaf, subleaf) as the processor does; leaves the host does not have may be anything.
    pub fn new(config: &CpuidConfig, apic_id: u32, host: &dyn Fn(u32, u32) -> Leaf) -> Self {
        policy::build(config, apic_id, host)
    }

    fn empty(out_of_range: Option<u32>, areas: xsave::Areas) -> Self {
        Self {
            basic: [Slot::default(); BASIC_SLOTS],
            extended: [Slot::default(); EXTENDED_SLOTS],
            hypervisor: [Slot::default(); HYPERVISOR_SLOTS],
            leaves: Vec::with_capacity(64),
            out_of_range,
            areas,
        }
    }

    fn put(&mut self, leaf: u32, indexed: bool, subleaves: &[Leaf]) {
        let slot = Slot { first: self.leaves.len() as u16, count: subleaves.len() as u16, indexed };
        let at = match leaf {
            BASIC..HYPERVISOR => self.basic.get_mut(leaf as usize),
            HYPERVISOR..EXTENDED => self.hypervisor.get_mut((leaf - HYPERVISOR) as usize),
            _ => self.extended.get_mut((leaf - EXTENDED) as usize),
        };
        if let Some(at) = at {
            *at = slot;
            self.leaves.extend_from_slice(subleaves);
        }
    }

    fn slot(&self, leaf: u32) -> Option<Slot> {
        match leaf {
            BASIC..HYPERVISOR => self.basic.get(leaf as usize),
            HYPERVISOR..EXTENDED => self.hypervisor.get((leaf - HYPERVISOR) as usize),
            _ => self.extended.get((leaf - EXTENDED) as usize),
        }
        .copied()
        .filter(|slot| slot.count > 0)
    }

    /// What the guest's CPUID with EAX = `leaf` and ECX = `subleaf` answers.
    #[must_use]
    #[inline]
    pub fn answer(&self, leaf: u32, subleaf: u32, live: Live) -> Leaf {
        let (slot, leaf) = match self.slot(leaf) {
            Some(slot) => (slot, leaf),
            None => match self.out_of_range {
                Some(last) if self.beyond(leaf) => (self.slot(last).unwrap_or_default(), last),
                _ => return Leaf::default(),
            },
        };
        let index = if slot.indexed { subleaf } else { 0 };
        if index >= u32::from(slot.count) {
            return self.past_last_subleaf(leaf, subleaf);
        }
        let mut answer = self.leaves.get(usize::from(slot.first) + index as usize).copied().unwrap_or_default();
        match leaf {
            1 => {
                features::set_osxsave(&mut answer, live.osxsave);
                features::set_apic(&mut answer, live.apic);
            }
            AMD_FEATURES => features::set_apic(&mut answer, live.apic),
            0xD => self.areas.set_current_size(&mut answer, subleaf, live.xcr0),
            _ => {}
        }
        answer
    }

    /// Whether `leaf` lies above the highest of its range (and not merely unused below it).
    fn beyond(&self, leaf: u32) -> bool {
        let highest =
            |first: u32| self.slot(first).and_then(|s| self.leaves.get(usize::from(s.first))).map_or(0, |l| l.eax);
        match leaf {
            BASIC..HYPERVISOR => leaf > highest(BASIC),
            // No processor has opinions here.
            HYPERVISOR..EXTENDED => false,
            _ => leaf > highest(EXTENDED),
        }
    }

    /// Topology leaves return ECX[7:0] and the APIC id even past their last level; others nothing.
    fn past_last_subleaf(&self, leaf: u32, subleaf: u32) -> Leaf {
        let x2apic_id = |slot: Slot| self.leaves.get(usize::from(slot.first)).map_or(0, |l| l.edx);
        match (leaf, self.slot(leaf)) {
            (0xB | 0x1F, Some(slot)) => Leaf::new(0, 0, subleaf & 0xFF, x2apic_id(slot)),
            _ => Leaf::default(),
        }
    }
}

#[cfg(test)]
mod tests;
