//! Takes interrupts: the legacy interval timer's, `hz=` times a second, until `to_ms`.

use crate::time;
use moira_rt::{
    Env,
    sys::{self, Deadline, Interrupt, IoPorts},
};

/// Ticks of the timer in a second.
const TIMER_HZ: u64 = 1_193_182;

/// Counts, and says how many came.
pub fn run(env: &Env) {
    let (Some(ports), Some(interrupt)) = (env.capability::<IoPorts>("pit"), env.capability::<Interrupt>("tick")) else {
        log::error!("ticker: not given what it needs");
        return;
    };
    let divisor = (TIMER_HZ / env.number("hz", 2_000).max(19)) as u16;
    let [low, high] = divisor.to_le_bytes();
    // Channel 0, low byte then high byte, mode 2: a pulse in each period.
    let set = [(0x43, 0x34), (0x40, low), (0x40, high)];
    if set.into_iter().any(|(port, value)| ports.out8(port, value).is_err()) {
        log::error!("ticker: the timer's ports are not `pit`");
        return;
    }
    let (end, mut count) = (crate::moment(env, "to_ms", 1_500), 0_u64);
    // What came before may have left it masked.
    let _ = interrupt.ack();
    while sys::now() < end {
        if env.notification().wait(Deadline(end)).is_ok() {
            count += 1;
            let _ = interrupt.ack();
        }
    }
    crate::sleep_until(env, end + time(env, "print_ms", 500));
    log::info!("ticker: {count} interrupts");
}
