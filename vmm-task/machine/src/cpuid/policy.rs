//! Which leaves a guest sees, and what stands in them.

use super::features::*;
use super::xsave::{AVX, AVX512, Areas};
use super::{BASIC, CpuidConfig, CpuidTable, EXTENDED, HYPERVISOR, Leaf, SIGNATURE, Vendor};

type Host<'a> = &'a dyn Fn(u32, u32) -> Leaf;

/// Highest basic leaf on Intel: the frequencies, which are ours to say whatever the host has.
const LAST_BASIC_INTEL: u32 = 0x16;
/// Highest basic leaf on AMD: XSAVE.
const LAST_BASIC_AMD: u32 = 0xD;
const LAST_EXTENDED: u32 = 0x8000_0021;
const MAX_CACHE_LEVELS: u32 = 8;

struct Builder<'a> {
    config: &'a CpuidConfig,
    apic_id: u32,
    vendor: Vendor,
    host: Host<'a>,
    host_basic: u32,
    host_extended: u32,
    avx: bool,
    avx512: bool,
    table: CpuidTable,
}

pub fn build(config: &CpuidConfig, apic_id: u32, host: Host) -> CpuidTable {
    let leaf0 = host(BASIC, 0);
    let vendor = Vendor::of(leaf0);
    let has_xsave = leaf0.eax >= 0xD && host(1, 0).ecx & L1_ECX_XSAVE != 0;
    let areas = Areas::new(if has_xsave { config.xcr0 } else { 0 }, host);
    let last_basic = if vendor == Vendor::Intel { LAST_BASIC_INTEL } else { LAST_BASIC_AMD };
    let host_extended = host(EXTENDED, 0).eax;
    let mut builder = Builder {
        config,
        apic_id,
        vendor,
        host,
        host_basic: leaf0.eax,
        host_extended: if host_extended & EXTENDED != 0 { host_extended } else { EXTENDED },
        avx: areas.allowed() & AVX != 0,
        avx512: areas.allowed() & AVX512 != 0,
        table: CpuidTable::empty((vendor == Vendor::Intel).then_some(last_basic), areas),
    };
    builder.basic(leaf0, last_basic);
    builder.hypervisor();
    builder.extended();
    builder.table
}

impl Builder<'_> {
    /// The host's leaf, zeros if the host has none.
    fn host(&self, leaf: u32, subleaf: u32) -> Leaf {
        let last = if leaf >= EXTENDED { self.host_extended } else { self.host_basic };
        if leaf <= last { (self.host)(leaf, subleaf) } else { Leaf::default() }
    }

    fn put(&mut self, leaf: u32, value: Leaf) {
        self.table.put(leaf, false, &[value]);
    }

    fn xsave(&self) -> bool {
        self.table.areas.allowed() != 0
    }

    /// Clears what needs vector state that the guest may not turn on.
    fn state(&self, word: u32, avx: u32, avx512: u32) -> u32 {
        let word = if self.avx { word } else { word & !avx };
        if self.avx512 { word } else { word & !avx512 }
    }

    fn cpus(&self) -> u32 {
        self.config.cpus.max(1)
    }

    fn basic(&mut self, leaf0: Leaf, last: u32) {
        self.put(BASIC, Leaf { eax: last, ..leaf0 });
        self.feature_leaf();
        if self.vendor == Vendor::Intel {
            self.put(2, self.host(2, 0));
            self.intel_caches();
        }
        self.put(6, Leaf::new(L6_EAX_ARAT, 0, 0, 0));
        self.structured_features();
        self.topology();
        let areas = self.table.areas.leaves(self.host, LD_1_EAX);
        self.table.put(0xD, true, &areas);
        if self.vendor == Vendor::Intel {
            self.frequencies();
        }
    }

    fn feature_leaf(&mut self) {
        let host = self.host(1, 0);
        let mut ecx = self.state(host.ecx & L1_ECX, L1_ECX_AVX, 0) | L1_ECX_OURS;
        if !self.xsave() {
            ecx &= !L1_ECX_XSAVE;
        }
        if self.config.pcid {
            ecx |= host.ecx & L1_ECX_PCID;
        }
        let mut edx = host.edx & L1_EDX | L1_EDX_OURS;
        if self.cpus() > 1 {
            edx |= L1_EDX_HTT;
        }
        let count = (1u32 << self.config.apic_id_bits()).min(0xFF);
        let ebx = self.apic_id << 24 | count << 16 | host.ebx & 0xFFFF;
        self.put(1, Leaf::new(host.eax, ebx, ecx, edx));
    }

    /// Leaf 4: the host's caches. The last level is shared by all processors, the others by none.
    fn intel_caches(&mut self) {
        let mut caches = alloc::vec::Vec::new();
        let largest = (0..MAX_CACHE_LEVELS).map(|i| cache_level(self.host(4, i))).max().unwrap_or(0);
        for i in 0..MAX_CACHE_LEVELS {
            let host = self.host(4, i);
            if host.eax & 0x1F == 0 {
                break;
            }
            let ids = (1u32 << self.config.apic_id_bits()) - 1;
            let sharing = if cache_level(host) == largest && largest > 2 { ids } else { 0 };
            let eax = host.eax & 0x3FF | sharing.min(0xFFF) << 14 | ids.min(0x3F) << 26;
            caches.push(Leaf { eax, ..host });
        }
        if !caches.is_empty() {
            self.table.put(4, true, &caches);
        }
    }

    fn structured_features(&mut self) {
        let host = self.host(7, 0);
        let mut ebx = self.state(host.ebx & L7_EBX, L7_EBX_AVX, L7_EBX_AVX512) | L7_EBX_OURS;
        if self.config.pcid {
            ebx |= host.ebx & L7_EBX_PCID;
        }
        let ecx = self.state(host.ecx & L7_ECX, L7_ECX_AVX, L7_ECX_AVX512);
        let mut edx = self.state(host.edx & L7_EDX, 0, L7_EDX_AVX512);
        if self.config.speculation_control {
            edx |= host.edx & L7_EDX_SPECULATION;
        }
        if self.config.arch_capabilities.is_some() && self.vendor == Vendor::Intel {
            edx |= L7_EDX_ARCH_CAPABILITIES;
        }
        let one = if host.eax >= 1 {
            Leaf::new(self.state(self.host(7, 1).eax & L7_1_EAX, L7_1_EAX_AVX, L7_1_EAX_AVX512), 0, 0, 0)
        } else {
            Leaf::default()
        };
        self.table.put(7, true, &[Leaf::new(u32::from(one.eax != 0), ebx, ecx, edx), one]);
    }

    /// Leaf 0Bh: one thread a core, all cores in one package.
    fn topology(&mut self) {
        let (threads, cores) = ((1, 1), (2, self.cpus()));
        let levels = [(0, threads, 0), (1, cores, self.config.apic_id_bits())]
            .map(|(level, (kind, count), shift)| Leaf::new(shift, count, kind << 8 | level, self.apic_id));
        self.table.put(0xB, true, &levels);
    }

    /// Leaves 15h and 16h, exact or absent: a guest takes them for the truth and calibrates no more.
    fn frequencies(&mut self) {
        let tsc_hz = u64::from(self.config.tsc_khz) * 1000;
        let crystal_hz = u64::from(self.config.apic_timer_hz);
        let divisor = gcd(tsc_hz, crystal_hz);
        if divisor > 0 && crystal_hz.is_multiple_of(1000) {
            let (numerator, denominator) = (tsc_hz / divisor, crystal_hz / divisor);
            // Linux multiplies the crystal in kHz by the numerator in 32 bits.
            let product = (crystal_hz / 1000).checked_mul(numerator).filter(|&p| p <= u64::from(u32::MAX));
            if product.is_some() && numerator > 0 && denominator > 0 {
                self.put(0x15, Leaf::new(denominator as u32, numerator as u32, crystal_hz as u32, 0));
            }
        }
        if self.config.tsc_khz.is_multiple_of(1000) && self.config.tsc_khz / 1000 <= 0xFFFF {
            let mhz = self.config.tsc_khz / 1000;
            self.put(0x16, Leaf::new(mhz, mhz, 100, 0));
        }
    }

    fn hypervisor(&mut self) {
        let word =
            |i: usize| SIGNATURE.get(i..).and_then(|s| s.first_chunk::<4>()).map_or(0, |b| u32::from_le_bytes(*b));
        self.put(HYPERVISOR, Leaf::new(HYPERVISOR, word(0), word(4), word(8)));
    }

    fn extended(&mut self) {
        let last = self.host_extended.clamp(0x8000_0008, LAST_EXTENDED);
        let names = self.host(EXTENDED, 0);
        self.put(EXTENDED, Leaf { eax: last, ..names });
        self.extended_features();
        for leaf in 0x8000_0002..=0x8000_0006 {
            self.put(leaf, self.host(leaf, 0));
        }
        self.put(0x8000_0007, Leaf::new(0, 0, 0, X7_EDX_INVARIANT_TSC));
        self.addresses();
        if self.vendor == Vendor::Amd {
            for leaf in [0x8000_0019, 0x8000_001A] {
                self.put(leaf, self.host(leaf, 0));
            }
            if last >= 0x8000_001E {
                self.amd_topology();
            }
            self.put(0x8000_0021, Leaf::new(self.host(0x8000_0021, 0).eax & X21_EAX, 0, 0, 0));
        }
    }

    fn extended_features(&mut self) {
        let host = self.host(0x8000_0001, 0);
        let mut ecx = self.state(host.ecx & X1_ECX, X1_ECX_AVX, 0);
        let mut edx = host.edx & X1_EDX;
        if self.vendor == Vendor::Amd {
            edx |= host.edx & X1_EDX_AMD | X1_EDX_AMD_OURS;
            if self.cpus() > 1 {
                ecx |= X1_ECX_CMP_LEGACY;
            }
            if self.host_extended >= 0x8000_001E {
                ecx |= X1_ECX_TOPOLOGY;
            }
        }
        self.put(0x8000_0001, Leaf::new(host.eax, host.ebx, ecx, edx));
    }

    fn addresses(&mut self) {
        let host = self.host(0x8000_0008, 0);
        let physical = match host.eax & 0xFF {
            0 => 36,
            bits => bits.min(u32::from(self.config.physical_bits)),
        };
        // No 5-level paging, whatever the host has.
        let linear = (host.eax >> 8 & 0xFF).clamp(32, 48);
        let (mut ebx, mut ecx) = (0, 0);
        if self.vendor == Vendor::Amd {
            ebx = host.ebx & (X8_EBX | X8_EBX_SSB_NO);
            if self.config.speculation_control {
                ebx |= host.ebx & X8_EBX_SPECULATION;
            }
            ecx = self.config.apic_id_bits() << 12 | (self.cpus() - 1).min(0xFF);
        }
        self.put(0x8000_0008, Leaf::new(linear << 8 | physical, ebx, ecx, 0));
    }

    /// Leaves 8000001Dh (caches) and 8000001Eh (ids): the same topology in AMD's words.
    fn amd_topology(&mut self) {
        let mut caches = alloc::vec::Vec::new();
        for i in 0..MAX_CACHE_LEVELS {
            let host = self.host(0x8000_001D, i);
            if host.eax & 0x1F == 0 {
                break;
            }
            let sharing = if cache_level(host) >= 3 { self.cpus() - 1 } else { 0 };
            caches.push(Leaf { eax: host.eax & 0x3FF | sharing.min(0xFFF) << 14, ..host });
        }
        if !caches.is_empty() {
            self.table.put(0x8000_001D, true, &caches);
        }
        // Core id = APIC id, one thread a core (EBX[15:8] = threads - 1), one node.
        self.put(0x8000_001E, Leaf::new(self.apic_id, self.apic_id & 0xFF, 0, 0));
    }
}

fn cache_level(leaf: Leaf) -> u32 {
    if leaf.eax & 0x1F == 0 { 0 } else { leaf.eax >> 5 & 7 }
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
