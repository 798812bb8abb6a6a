//! Exits that no guest makes, in any order.

use super::*;

/// A processor that does anything: page and RAM are random, exits and groups too.
struct Anything<'a> {
    memory: &'a Memory,
    numbers: Vec<(u8, u16, u64)>,
    next: usize,
    now: u64,
}

impl Processor for Anything<'_> {
    fn run(&mut self, masks: u64, _until: u64) -> Result<(u64, u64), Error> {
        let Some(&(exit, word, value)) = self.numbers.get(self.next) else { return Err(Error::PeerGone) };
        self.next += 1;
        self.now = self.now.wrapping_add(value >> 40);
        let page = self.memory.page();
        // A few words at a time, those that decide most often.
        let favourites = [
            field::RIP,
            field::QUALIFICATION,
            field::ADDRESS,
            field::LENGTH,
            field::RFLAGS,
            field::DELIVERING,
            field::CR3,
            field::CR0,
        ];
        page.set(favourites[usize::from(word) % favourites.len()], value);
        self.memory.page[usize::from(word) % WORDS].store(value.rotate_left(7), Relaxed);
        self.memory.ram[usize::from(word) * 3 % self.memory.ram.len()].store(value.rotate_left(23), Relaxed);
        let groups = if value & 1 != 0 { group::ALL } else { masks >> 32 | group::RIP };
        Ok((u64::from(exit), groups))
    }
    fn now(&self) -> u64 {
        self.now
    }
    fn sleep(&mut self, _until: u64) -> u64 {
        self.next += 1;
        self.now = self.now.wrapping_add(1_000_000);
        u64::from(self.next >= self.numbers.len())
    }
    fn poll(&mut self) -> u64 {
        0
    }
    fn orders(&mut self, _bits: u64) -> Orders {
        Orders { kill: true, ..Orders::default() }
    }
}

fn exits() -> impl Strategy<Value = Vec<(u8, u16, u64)>> {
    // Now and then one that no kernel gives, and seldom those that end a machine at once.
    let exit = prop_oneof![8 => prop::sample::select(vec![0u8, 2, 2, 2, 3, 3, 4, 5, 6, 6, 7, 7, 8, 9, 10, 11, 13, 14, 15, 16, 22]), 1 => 0u8..30];
    let value = prop_oneof![
        any::<u64>(),
        (any::<u16>(), 0u64..1 << 20).prop_map(|(port, low)| u64::from(port) << 16 | low & 0xff7d),
        (0u64..0x4000).prop_map(|low| 0xfee0_0000 + low),
        (0u64..0x400).prop_map(|low| 0xfed0_0000 + low),
        (0u64..0x2_0000).prop_map(|low| 0xffff_0000 + low),
        (0u64..RAM as u64)
    ];
    prop::collection::vec((exit, any::<u16>(), value), 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn nothing_that_a_guest_does_panics(numbers in exits(), restart: bool, firmware: bool) {
        let memory = Memory::new();
        let rom: Vec<AtomicU64> = (0..8192u64 * u64::from(firmware)).map(AtomicU64::new).collect();
        let mut vm = memory.with_rom(&rom);
        let mut cpu = Anything { memory: &memory, numbers, next: 0, now: 0 };
        // Each ending but the last two lets the machine go on, to try more.
        while !matches!(vm.run(&mut cpu), Ending::Kernel(_) | Ending::Killed) {
            if restart {
                let _ = vm.restart(&Guest::default());
            } else {
                vm.machine().go_on();
            }
        }
        let mut lines = 0;
        crate::report::write(&vm, &Ending::TripleFault, |_| lines += 1);
        prop_assert!(lines > 5);
    }
}
