//! What each figure may be at most. The median is held against it; `docs/performance.md` shows both.

use super::Figure;

const LIMITS: [(&str, f64); 36] = [
    ("interrupt.to_slack", 1_200.0),
    ("interrupt.to_user", 350.0),
    ("invoke.null", 90.0),
    ("ipc.round_trip.0w", 300.0),
    // A message buffer of 4 KiB each way is 1,024 iterations of REP MOVSQ, which count as one each.
    ("ipc.round_trip.4k", 1_624.0),
    ("ipc.round_trip.8w", 330.0),
    ("ipc.round_trip.cap", 900.0),
    ("kernel.lines", 10_000.0),
    ("kernel.longest_stretch", 2_000.0),
    ("kernel.structural_hold", 1_000.0),
    ("kernel.text_bytes", 131_072.0),
    ("notification.wake", 350.0),
    ("object.delete_slot", 500.0),
    ("object.retype_frame", 600.0),
    ("space.map_4k", 400.0),
    ("space.unmap_4k", 500.0),
    ("time.dispatch_round_trip", 700.0),
    ("time.install_plan_512", 60_000.0),
    ("time.ledger_error", 0.01),
    ("time.scheduler_share", 0.5),
    ("time.window_switch", 350.0),
    ("vm.boot.firmware", 1.05),
    ("vm.boot.quiet", 1.02),
    ("vm.boot.serial_log", 1.1),
    ("vm.boot.smp2", 1.15),
    ("vm.exit.cpuid", 500.0),
    ("vm.exit.host_interrupt", 400.0),
    ("vm.exit.mmio_read", 1_500.0),
    ("vm.exit.port_read", 500.0),
    ("vm.exit.vmcall", 450.0),
    ("vm.guest.fork_wait", 1.01),
    ("vm.guest.getppid", 1.01),
    ("vm.guest.page_fault", 1.01),
    ("vm.guest.pipe", 1.01),
    ("vm.ipi", 2_500.0),
    ("vm.memory_overhead", 1_048_576.0),
];

/// The most that a figure's median may be; none: it has no limit, it only shows something.
pub fn of(name: &str) -> Option<f64> {
    LIMITS.iter().find(|(known, _)| *known == name).map(|(_, limit)| *limit)
}

/// Whether the median is within the limit, if there is one.
pub fn is_kept(figure: &Figure) -> bool {
    of(&figure.name).is_none_or(|limit| figure.median <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::yields;

    #[test]
    fn each_limit_is_of_a_figure() {
        let names = yields::names();
        for (name, _) in LIMITS {
            assert!(names.contains(name), "{name} is measured by nobody");
        }
    }

    #[test]
    fn a_median_at_its_limit_is_within_it() {
        let figure = |median: f64| Figure {
            name: "vm.boot.quiet".into(),
            unit: String::new(),
            minimum: 0.0,
            median,
            maximum: 9.0,
            samples: 1,
        };
        assert!(is_kept(&figure(1.02)) && !is_kept(&figure(1.0201)));
        assert!(is_kept(&Figure { name: "vm.interruption".into(), ..figure(9e9) }), "it has no limit");
    }
}
