//! The attacker: chooses invocations at random, with a bias to what the kernel looks at.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use moira_abi::{Method, ObjectType, Tag, USER_END};
use moira_lab::invoke;

/// Slots of the attacker's table that it aims at: 2 to this.
pub const AIM: u64 = 96;

/// Where it finds its own table, to look what it holds.
pub const OWN_TABLE: u64 = AIM - 3;
/// Invocations between two looks.
const LOOK_EVERY: u64 = 96;

/// The next random number, for the supervisor while the attacker does not run.
pub fn random() -> u64 {
    Random(SHARED).next()
}

/// What the supervisor and the attacker share.
pub struct Shared {
    /// State of the random numbers.
    pub state: AtomicU64,
    /// Invocations still to make.
    pub left: AtomicU64,
    /// Invocations made.
    pub made: AtomicU64,
    /// By method number.
    pub methods: [AtomicU64; 256],
    /// By status; 255: none came back (the thread was stopped in it).
    pub statuses: [AtomicU64; 256],
    /// The tag, capability and words of the invocation under way.
    pub current: [AtomicU64; 11],
    /// Whether one is.
    pub under_way: AtomicBool,
    /// The last successful invocations: tag, capability, W0–W3, status, in a ring.
    pub history: [[AtomicU64; 7]; 512],
    /// Entries ever written.
    pub recorded: AtomicU64,
    /// Entry of the history at which this world began.
    pub begun: AtomicU64,
    /// Type numbers of what its slots held at the last look.
    pub kinds: [AtomicU64; AIM as usize],
    /// An address that the attacker may map at.
    pub address: AtomicU64,
}

/// Most attackers at once.
pub const MOST: usize = 4;

/// Shared, by attacker.
pub static ALL: [Shared; MOST] = [const { Shared::new() }; MOST];

/// Of the attacker on the boot processor.
pub static SHARED: &Shared = &ALL[0];

impl Shared {
    const fn new() -> Shared {
        Shared {
            state: AtomicU64::new(1),
            left: AtomicU64::new(0),
            made: AtomicU64::new(0),
            methods: [const { AtomicU64::new(0) }; 256],
            statuses: [const { AtomicU64::new(0) }; 256],
            current: [const { AtomicU64::new(0) }; 11],
            under_way: AtomicBool::new(false),
            history: [const { [const { AtomicU64::new(0) }; 7] }; 512],
            recorded: AtomicU64::new(0),
            begun: AtomicU64::new(0),
            kinds: [const { AtomicU64::new(0) }; AIM as usize],
            address: AtomicU64::new(0),
        }
    }
}

/// Invocations that all attackers made.
pub fn made() -> u64 {
    ALL.iter().map(|one| one.made.load(Relaxed)).sum()
}

/// xorshift64*; the state is kept where a rebuilt attacker finds it.
struct Random(&'static Shared);

impl Random {
    fn next(&self) -> u64 {
        let mut x = self.0.state.load(Relaxed).max(1);
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.0.state.store(x, Relaxed);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&self, limit: u64) -> u64 {
        (self.next() >> 16) % limit.max(1)
    }

    fn one_in(&self, times: u64) -> bool {
        self.below(times) == 0
    }

    fn of(&self, list: &[u64]) -> u64 {
        list.get(self.below(list.len() as u64) as usize).copied().unwrap_or(0)
    }

    /// A slot, mostly one of the table.
    fn slot(&self) -> u64 {
        match self.below(40) {
            0 => self.boundary(),
            1 => self.below(256),
            _ => 2 + self.below(AIM - 2),
        }
    }

    /// A slot that held this type at the last look, mostly.
    fn slot_of(&self, kind: ObjectType) -> u64 {
        let start = self.below(AIM);
        let fits =
            |slot: &u64| self.0.kinds.get(*slot as usize).is_some_and(|found| found.load(Relaxed) == kind as u64);
        match (start..AIM).chain(2..start).find(fits) {
            Some(slot) if !self.one_in(12) => slot,
            _ => self.slot(),
        }
    }

    fn empty_slot(&self) -> u64 {
        let start = 2 + self.below(AIM - 2);
        let empty = |slot: &u64| self.0.kinds.get(*slot as usize).is_some_and(|found| found.load(Relaxed) == 0);
        match (start..AIM).chain(2..start).find(empty) {
            Some(slot) if !self.one_in(12) => slot,
            _ => self.slot(),
        }
    }

    fn boundary(&self) -> u64 {
        const EDGES: [u64; 24] = [
            0,
            1,
            2,
            3,
            7,
            8,
            255,
            256,
            4095,
            4096,
            4097,
            0xffff,
            0x1_0000,
            1 << 21,
            1 << 30,
            1 << 32,
            1 << 46,
            USER_END - 4096,
            USER_END,
            1 << 47,
            1 << 63,
            0xffff_8000_0000_0000,
            u64::MAX - 1,
            u64::MAX,
        ];
        self.of(&EDGES).wrapping_add(self.below(5)).wrapping_sub(2)
    }

    /// Any argument.
    fn word(&self) -> u64 {
        match self.below(12) {
            0..4 => self.slot(),
            4..7 => self.below(20),
            7 => self.boundary(),
            8 => self.0.address.load(Relaxed) + self.below(8) * 4096,
            9 => moira_sys::now().wrapping_add(self.below(100_000)),
            10 => 1 << self.below(64),
            _ => self.next(),
        }
    }

    fn method(&self) -> u64 {
        if self.one_in(16) {
            return self.below(256);
        }
        let all = Method::ALL;
        let destructive = |method: &Method| {
            matches!(
                method,
                Method::UntypedRevoke | Method::CapDelete | Method::CapRevoke | Method::ThreadStop | Method::CapMove
            )
        };
        let chosen = all.get(self.below(all.len() as u64) as usize).copied().unwrap_or(Method::Poll);
        // What ends things comes seldom, or there would be nothing left to attack.
        if destructive(&chosen) && !self.one_in(6) {
            return Method::CapCopy as u64;
        }
        chosen as u64
    }
}

/// The type that a method's capability has, and the words that name slots, with their types.
fn needs(method: Method) -> (Option<ObjectType>, &'static [(usize, ObjectType)]) {
    use Method as M;
    use ObjectType::*;
    match method {
        M::Call => (Some(Endpoint), &[]),
        M::EndpointBind => (Some(Endpoint), &[(0, Thread)]),
        M::Signal | M::Wait | M::Poll => (Some(Notification), &[]),
        M::VcpuRun | M::VcpuKick | M::VcpuAllowMsr => (Some(Vcpu), &[]),
        M::VcpuConfigure => (Some(Vcpu), &[(0, Frame), (1, AddressSpace), (2, Cpu)]),
        M::VcpuSetSpace => (Some(Vcpu), &[(0, AddressSpace)]),
        M::VcpuAllowPorts => (Some(Vcpu), &[(0, IoPorts)]),
        M::Dispatch => (Some(Cpu), &[(0, SchedContext)]),
        M::UntypedRetype | M::UntypedRevoke | M::UntypedInfo => (Some(Untyped), &[]),
        M::CapCopy | M::CapMint | M::CapMove | M::CapDelete | M::CapRevoke | M::CapInspect => (Some(CapTable), &[]),
        M::SpaceMap | M::SpaceUnmap | M::SpaceProtect => (Some(AddressSpace), &[(0, Frame)]),
        M::SpaceAddMemory => (Some(AddressSpace), &[(0, Untyped)]),
        M::ThreadConfigure => {
            (Some(Thread), &[(0, AddressSpace), (1, CapTable), (2, Frame), (4, Endpoint), (5, Notification)])
        }
        M::ThreadActivate => (Some(Thread), &[(0, Cpu)]),
        M::ThreadBindNotification => (Some(Thread), &[(0, Notification)]),
        M::ThreadStop | M::ThreadResume | M::ThreadReadRegisters | M::ThreadWriteRegisters | M::ThreadReceiveSlots => {
            (Some(Thread), &[])
        }
        M::ContextBind => (Some(SchedContext), &[(0, Thread), (1, Cpu)]),
        M::ContextConsumed => (Some(SchedContext), &[]),
        M::ContextSetHome => (Some(SchedContext), &[(0, Cpu)]),
        M::InterruptBind => (Some(Interrupt), &[(0, Notification)]),
        M::InterruptAck | M::InterruptMessage => (Some(Interrupt), &[]),
        M::PortIn | M::PortOut => (Some(IoPorts), &[]),
        M::PlanClear => (Some(Plan), &[]),
        M::PlanAppend => (Some(Plan), &[(0, SchedContext)]),
        M::CpuInstallPlan => (Some(Cpu), &[(0, Plan)]),
        M::CpuSetScheduler => (Some(Cpu), &[(0, SchedContext), (1, Frame)]),
        M::CpuLedger => (Some(Cpu), &[]),
        _ => (None, &[]),
    }
}

/// Looks what its slots hold.
fn look(shared: &Shared) {
    for (slot, kind) in shared.kinds.iter().enumerate().skip(2) {
        let answer = invoke(Method::CapInspect as u64, OWN_TABLE, [slot as u64, 0, 0, 0, 0, 0, 0, 0], 0);
        if answer.tag.low() != 0 {
            return;
        }
        kind.store(answer.words[0], Relaxed);
    }
}

/// Arguments that get past the first checks of a method more often than not.
fn shape(random: &Random, method: u64, words: &mut [u64; 8]) {
    if let Some(method) = Method::from_code(method as u8) {
        for (index, kind) in needs(method).1 {
            words[*index] = random.slot_of(*kind);
        }
        if matches!(method, Method::CapCopy | Method::CapMint | Method::CapMove) {
            words[1] = random.empty_slot();
        }
    }
    let rights = random.of(&[1, 2, 3, 5, 7, 255]);
    let nowhere = random.0.address.load(Relaxed);
    match Method::from_code(method as u8) {
        Some(Method::UntypedRetype) => {
            words[0] = random.below(15);
            words[1] = match ObjectType::from_code(words[0] as u8) {
                Some(ObjectType::Untyped) => 12 + random.below(6),
                Some(ObjectType::Frame) => 12,
                Some(ObjectType::CapTable) => 7 + random.below(5),
                Some(ObjectType::Vcpu) => 0,
                Some(ObjectType::Plan) => 8 + random.below(3),
                _ => random.below(2),
            };
            words[2] = 1 + random.below(3);
            words[3] = random.empty_slot();
        }
        Some(Method::CapCopy | Method::CapMint) => words[2] = rights,
        Some(Method::SpaceMap) => {
            words[1] = nowhere + random.below(512) * 4096;
            words[2] = rights & 7;
        }
        Some(Method::SpaceProtect) => words[1] = rights & 7,
        Some(Method::ThreadConfigure) => {
            words[3] = random.below(8);
            words[2] = if random.one_in(2) { 0 } else { words[2] };
            words[4] = if random.one_in(2) { 0 } else { words[4] };
            words[5] = if random.one_in(8) { 0 } else { words[5] };
            // Where nothing is mapped: a thread that runs there faults.
            (words[6], words[7]) = (0x1000, 0x2000);
        }
        Some(Method::VcpuRun) => {
            words[0] = random.next() & random.next();
            words[1] = moira_sys::now().wrapping_add(random.below(20_000)).max(1);
        }
        Some(Method::VcpuAllowMsr) => {
            words[0] = random.of(&[0x10, 0x1b, 0xc000_0080, 0xc000_0081, 0xc000_0102, 0x174, 0x277])
        }
        Some(Method::PortIn | Method::PortOut) => (words[0], words[1]) = (0x7f + random.below(3), random.below(5)),
        Some(Method::PlanClear) => words[0] = 1000 + random.below(1_000_000),
        Some(Method::PlanAppend) => {
            words[1] = random.below(10) * 1000;
            words[2] = words[1] + 1000 * random.below(4);
        }
        _ => {}
    }
}

/// The attacker's thread.
pub extern "C" fn main(index: u64, _: u64) -> ! {
    let shared = ALL.get(index as usize).unwrap_or(SHARED);
    let random = Random(shared);
    let mut since = LOOK_EVERY;
    while shared.left.load(Relaxed) > 0 {
        since += 1;
        if since >= LOOK_EVERY {
            since = 0;
            look(shared);
        }
        let method = random.method();
        let mut words = [0; 8].map(|_: u64| random.word());
        if !random.one_in(4) {
            shape(&random, method, &mut words);
        }
        let mut tag = method;
        if random.one_in(6) {
            tag |= Tag::new(random.next() as u32, random.below(5000) as usize, random.below(6) as usize).0;
        }
        // Waits end soon, mostly: the supervisor ends the others.
        let deadline =
            if random.one_in(50) { random.word() } else { moira_sys::now().wrapping_add(random.below(2000)).max(1) };
        let kind = Method::from_code(method as u8).and_then(|method| needs(method).0);
        let capability = kind.map_or_else(|| random.slot(), |kind| random.slot_of(kind));
        shared.left.fetch_sub(1, Relaxed);
        shared.made.fetch_add(1, Relaxed);
        if let Some(count) = shared.methods.get(method as usize) {
            count.fetch_add(1, Relaxed);
        }
        for (cell, value) in shared.current.iter().zip([tag, capability, deadline].into_iter().chain(words)) {
            cell.store(value, Relaxed);
        }
        shared.under_way.store(true, Relaxed);
        let answer = invoke(tag, capability, words, deadline);
        shared.under_way.store(false, Relaxed);
        let status = u64::from(answer.tag.low());
        // What succeeded, what was half done, and whatever else may have changed something.
        if matches!(status, 0 | 10 | 11) {
            let at = shared.recorded.fetch_add(1, Relaxed) as usize % shared.history.len();
            if let Some(entry) = shared.history.get(at) {
                for (cell, value) in entry.iter().zip([tag, capability, words[0], words[1], words[2], words[3], status])
                {
                    cell.store(value, Relaxed);
                }
            }
        }
        if let Some(count) = shared.statuses.get(usize::from(answer.tag.low())) {
            count.fetch_add(1, Relaxed);
        }
    }
    loop {
        // Done: until the supervisor sees it, nothing.
        core::hint::spin_loop();
    }
}
