//! Retype, delete, map, unmap.

use crate::{Report, time};
use moira_abi::FrameSize;
use moira_rt::{Env, proto::start::layout};
use moira_sys::{MapFlags, Space, Untyped};

/// Measures.
pub fn measure(env: &mut Env, report: &mut Report) {
    let Some(untyped) = env.capability::<Untyped>("objects") else {
        log::error!("bench: no untyped");
        return;
    };
    let (table, space) = (env.table(), env.space());
    let mut slots = env.slots();
    let Some(slot) = slots.take(1) else { return };
    let mut bad = 0;
    let mut check = |good: bool| bad += u64::from(!good);
    // 1,008 frames, one at a time, from an untyped of 8 MiB.
    report.figure("object.retype_frame", || {
        let ticks = time(|| check(untyped.retype_frames(FrameSize::Small, 1, slot).is_ok()));
        check(table.delete(slot).is_ok());
        ticks
    });
    if untyped.revoke_fully().is_err() {
        log::error!("bench: revoke failed");
    }
    report.figure("object.delete_slot", || {
        check(untyped.retype_frames(FrameSize::Small, 1, slot).is_ok());
        time(|| check(table.delete(slot).is_ok()))
    });
    let _ = untyped.revoke_fully();
    let Ok(frames) = untyped.retype_frames(FrameSize::Small, 1, slot) else {
        log::error!("bench: no frame");
        return;
    };
    let Some(frame) = frames.get(0) else { return };
    let address = layout::FREE;
    // The tables exist from the second time on.
    let _ = space.map(frame, address, MapFlags::READ_WRITE);
    let _ = space.unmap_fully(frame);
    report.figure("space.map_4k", || {
        let ticks = time(|| check(space.map(frame, address, MapFlags::READ_WRITE).is_ok()));
        check(space.unmap_fully(frame).is_ok());
        ticks
    });
    report.figure("space.unmap_4k", || {
        check(space.map(frame, address, MapFlags::READ_WRITE).is_ok());
        time(|| check(space.unmap(frame).is_ok()))
    });
    if bad > 0 {
        log::error!("bench: {bad} measured invocations failed");
    }
}
