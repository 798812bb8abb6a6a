//! Several threads at one machine: nobody sleeps through what is for it, nobody waits for ever for the devices.

use super::*;
use std::boxed::Box;
use std::sync::{Condvar, Mutex};
use std::time::Duration;
use vmm_devices::board::BoardConfig;
use vmm_devices::traits::NullConsole;

const CPUS: usize = 4;
const ROUNDS: u32 = 2000;
/// Long after the last thread should have done its last step.
const LATE: Duration = Duration::from_secs(20);

/// One bit for each thread, as the kernel's notifications have it. Kicks count as wakes: these threads have no guests.
struct Bells([(Mutex<bool>, Condvar); CPUS]);

impl Bells {
    /// Sleeps until the bell rings; false: it did not.
    fn sleep(&self, cpu: usize) -> bool {
        let (rung, bell) = &self.0[cpu];
        let (mut rung, late) = bell.wait_timeout_while(rung.lock().unwrap(), LATE, |rung| !*rung).unwrap();
        *rung = false;
        !late.timed_out()
    }
}

impl Threads for Bells {
    fn wake(&self, cpu: usize) {
        let (rung, bell) = &self.0[cpu];
        *rung.lock().unwrap() = true;
        bell.notify_one();
    }
    fn kick(&self, cpu: usize) {
        self.wake(cpu);
    }
    fn wait(&self, cpu: usize) {
        assert!(self.sleep(cpu), "processor {cpu} was left waiting for the devices");
    }
}

fn machine() -> &'static Machine<'static> {
    let bells: &'static Bells = Box::leak(Box::new(Bells(Default::default())));
    let ids: Vec<u32> = (0..CPUS as u32).collect();
    let board = Board::new(BoardConfig {
        apic_ids: &ids,
        apic_timer_hz: 1_000_000_000,
        tsc_hz: 1_000_000_000,
        unix_ns: 0,
        memory_below_4g: 4 << 20,
        memory_above_4g: 0,
        without_firmware: true,
        console: Box::new(NullConsole),
    });
    let map = MemoryMap::new(4 << 20).unwrap();
    let machine = Box::leak(Box::new(Machine::new(Ram::new(&[], &[]), map, board, 1_000_000_000, CPUS, bells)));
    BELLS.lock().unwrap().push((machine as *const Machine<'_> as usize, bells));
    machine
}

static BELLS: Mutex<Vec<(usize, &'static Bells)>> = Mutex::new(Vec::new());

fn bells(machine: &Machine<'_>) -> &'static Bells {
    let place = machine as *const Machine<'_> as usize;
    BELLS.lock().unwrap().iter().find(|(at, _)| *at == place).unwrap().1
}

/// Waits, as a halted processor does, until an interrupt comes; takes and ends it. None: the machine ended.
fn next_interrupt(machine: &Machine<'_>, cpu: usize) -> Option<u8> {
    loop {
        machine.seat(cpu).take_news();
        if machine.ending().is_some() {
            return None;
        }
        {
            let mut board = machine.board(cpu);
            if let Some(vector) = board.accept(cpu) {
                board.msr_write(cpu, 0x80b, 0, 0).unwrap();
                board.forget_kick(cpu);
                return Some(vector);
            }
        }
        machine.seat(cpu).while_asleep(|| {
            assert!(bells(machine).sleep(cpu), "processor {cpu} slept through its interrupt");
            0
        });
    }
}

fn send(machine: &Machine<'_>, from: usize, to: usize, vector: u8) {
    machine.board(from).msr_write(from, 0x830, (to as u64) << 32 | u64::from(vector), 0).unwrap();
}

#[test]
fn interrupts_go_round_and_none_is_lost() {
    let machine = machine();
    for cpu in 0..CPUS {
        let base = machine.board(cpu).msr_read(cpu, 0x1b, 0).unwrap();
        machine.board(cpu).msr_write(cpu, 0x1b, base | 1 << 10, 0).unwrap();
        machine.board(cpu).msr_write(cpu, 0x80f, 0x1ff, 0).unwrap();
    }
    // Each hands on to the next one; several are on their way at once, as the vectors differ.
    let threads: Vec<_> = (0..CPUS)
        .map(|cpu| {
            std::thread::spawn(move || {
                for _ in 0..ROUNDS * CPUS as u32 {
                    let vector = next_interrupt(machine, cpu).unwrap();
                    send(machine, cpu, (cpu + 1) % CPUS, vector);
                }
            })
        })
        .collect();
    for number in 0..CPUS as u8 {
        send(machine, 0, usize::from(number), 0x40 + 0x10 * number);
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn the_first_ending_counts_and_reaches_those_who_sleep() {
    let machine = machine();
    let sleepers: Vec<_> = (1..CPUS).map(|cpu| std::thread::spawn(move || next_interrupt(machine, cpu))).collect();
    machine.end(Ending::PowerOff, 0);
    machine.end(Ending::TripleFault, 2);
    for sleeper in sleepers {
        assert_eq!(sleeper.join().unwrap(), None);
    }
    assert_eq!(machine.ending(), Some((Ending::PowerOff, 0)));
    for cpu in 1..CPUS {
        assert!(!machine.all_left());
        machine.leave(cpu);
    }
    assert!(machine.all_left());
    machine.begin_again();
    assert!(machine.ending().is_none() && !machine.all_left());
}
