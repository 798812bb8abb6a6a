//! Device interrupts that hit whatever runs a little later: a guest, in the system `bench-vm-interrupt`, which sees them as gaps.

use moira_rt::Env;
use moira_sys::{Deadline, Interrupt, IoPorts};

/// The 8254: its first counter and the control word, and the counter's frequency (Intel 8254 data sheet).
const COUNTER: u16 = 0x40;
const CONTROL: u16 = 0x43;
/// Counter 0, low byte then high byte, mode 0: one edge at the end.
const ONE_SHOT: u8 = 0x30;
/// 300 µs.
const COUNT: u16 = 358;

/// One interrupt in each of this task's windows' periods, in the middle of somebody else's window: nobody waits for it there.
pub fn run(env: &Env) {
    let Some((timer, ports)) = env.capability::<Interrupt>("timer").zip(env.capability::<IoPorts>("pit")) else {
        log::error!("bench interrupts: no timer");
        return;
    };
    let [low, high] = COUNT.to_le_bytes();
    loop {
        // Unmasks the line: the kernel masked it as the last one came.
        let _ = timer.ack();
        let set = [(CONTROL, ONE_SHOT), (COUNTER, low), (COUNTER, high)].map(|(port, value)| ports.out8(port, value));
        if set.iter().any(Result::is_err) {
            log::error!("bench interrupts: the ports are refused");
            return;
        }
        let _ = env.notification().wait(Deadline::NEVER);
    }
}
