//! Calls, signals, the cheapest failing call.

use crate::{Report, server, time};
use moira_rt::Env;
use moira_sys::{Capability, Endpoint, Message, Notification, Slot};

/// Measures.
pub fn measure(env: &mut Env, report: &mut Report) {
    let Some(server) = env.capability::<Endpoint>("bench-server") else {
        log::error!("bench: no server");
        return;
    };
    let mut failed = false;
    let mut check = |good: bool| failed |= !good;
    report.figure("ipc.round_trip.0w", || time(|| check(server.call_short(server::ECHO, &[]).is_ok())));
    let words = [1, 2, 3, 4, 5, 6, 7, 8];
    report.figure("ipc.round_trip.8w", || {
        let mut answer = None;
        let ticks = time(|| answer = server.call_short(server::ECHO_WORDS, &words).ok());
        check(answer.is_some_and(|answer| answer.words == words));
        ticks
    });
    report.figure("ipc.round_trip.4k", || {
        time(|| {
            check(server.call(&Message::new(server::ECHO_PAGE).bytes(4096)).is_ok_and(|answer| answer.bytes == 4096))
        })
    });
    capability(env, server, report);
    let nothing = Notification::new(Slot(u32::MAX));
    report.figure("invoke.null", || time(|| check(nothing.signal().is_err())));
    let own = env.notification();
    report.figure("notification.poll", || time(|| check(own.poll().is_ok())));
    if failed {
        log::error!("bench: a measured call did not do what it should");
    }
}

fn capability(env: &mut Env, server: Endpoint, report: &mut Report) {
    let receive = Slot(moira_rt::proto::start::slot::RECEIVE);
    if env.thread().receive_slots(receive).is_err() {
        log::error!("bench: no receive slots");
        return;
    }
    let sent = env.notification().slot();
    let table = env.table();
    report.figure("ipc.round_trip.cap", || {
        let mut good = false;
        let ticks = time(|| {
            good = server.call(&Message::new(server::CAPABILITY).capability(sent)).is_ok_and(|answer| answer.caps == 1)
        });
        let cleaned = server.call_short(server::CLEAN, &[]).is_ok_and(|answer| answer.label == 0);
        if !good || !cleaned || table.delete_fully(receive).is_err() {
            log::error!("bench: a capability did not arrive");
        }
        ticks
    });
}
