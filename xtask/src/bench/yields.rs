//! Which system measures what, so that only those are booted whose figures are asked for. What a system prints is held against this at each boot, and
//! the names against those in `docs/performance.md` by a test.

use anyhow::{Result, bail};

use super::Figure;

/// The systems that measure, and their figures.
const YIELDS: [(&str, &[&str]); 7] = [
    (
        "bench",
        &[
            "ipc.round_trip.0w",
            "ipc.round_trip.8w",
            "ipc.round_trip.4k",
            "ipc.round_trip.cap",
            "invoke.null",
            "notification.poll",
            "object.retype_frame",
            "object.delete_slot",
            "space.map_4k",
            "space.unmap_4k",
            "notification.wake",
            "interrupt.to_user",
        ],
    ),
    ("bench-ipi", &["vm.ipi"]),
    ("bench-scheduler", &["time.scheduler_share"]),
    ("bench-slack", &["interrupt.to_slack"]),
    ("bench-time", &["time.dispatch_round_trip", "time.window_switch", "time.install_plan_512"]),
    (
        "bench-vm",
        &[
            "vm.exit.port_read",
            "vm.exit.cpuid",
            "vm.exit.vmcall",
            "vm.exit.mmio_read",
            "vm.exit.mmio_write",
            "vm.interruption",
        ],
    ),
    ("bench-vm-interrupt", &["vm.exit.host_interrupt"]),
];

/// The systems with figures whose names contain `pattern`.
pub fn systems(pattern: Option<&str>) -> impl Iterator<Item = &'static str> {
    let asked = move |figures: &[&str]| pattern.is_none_or(|pattern| figures.iter().any(|name| name.contains(pattern)));
    YIELDS.into_iter().filter(move |(_, figures)| asked(figures)).map(|(system, _)| system)
}

/// Whether there is a system of that name that measures.
pub fn is_one(name: &str) -> bool {
    YIELDS.iter().any(|(system, _)| *system == name)
}

/// Holds what a system printed against the table.
pub fn check(system: &str, printed: &[Figure]) -> Result<()> {
    let known = YIELDS.iter().find(|(name, _)| *name == system).map_or(&[][..], |(_, figures)| *figures);
    if let Some(figure) = printed.iter().find(|figure| !known.contains(&figure.name.as_str())) {
        bail!("it measures {}, of which xtask/src/bench/yields.rs does not know", figure.name);
    }
    Ok(())
}

/// Refuses a part of a name that no figure has.
pub fn check_pattern(pattern: &str) -> Result<()> {
    let names = names();
    if names.iter().any(|name| name.contains(pattern)) {
        return Ok(());
    }
    bail!("no figure's name contains {pattern:?}; there are: {}", names.into_iter().collect::<Vec<_>>().join(", "))
}

/// The names of all figures, whoever measures them.
pub fn names() -> std::collections::BTreeSet<String> {
    use super::{LEDGER_ERROR, kernel, linux};
    let others = kernel::CHECKED.iter().map(|(_, name)| *name).chain(kernel::SIZES).chain([LEDGER_ERROR]);
    let all = YIELDS.iter().flat_map(|(_, figures)| *figures).copied().chain(others);
    all.map(str::to_owned).chain(linux::names()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::paths;

    #[test]
    fn each_system_and_each_figure_of_the_book_is_known() {
        let systems: BTreeSet<String> = crate::system::names(&paths::root())
            .unwrap()
            .into_iter()
            .filter(|name| name.starts_with("bench"))
            .collect();
        assert_eq!(systems, YIELDS.iter().map(|(name, _)| (*name).to_owned()).collect());
        let book = std::fs::read_to_string(paths::root().join("docs/performance.md")).unwrap();
        let figures = book.split("<!-- bench: begin -->").nth(1).unwrap().split("<!-- bench: end -->").next().unwrap();
        let told: BTreeSet<&str> = figures
            .lines()
            .filter_map(|line| line.split_whitespace().next())
            .filter(|name| name.contains('.'))
            .collect();
        assert_eq!(told, names().iter().map(String::as_str).collect());
    }

    #[test]
    fn a_part_that_no_name_has_is_refused() {
        for part in ["vm.exit", "kernel.lines", "ledger", "vm.boot.firmware"] {
            check_pattern(part).unwrap();
        }
        let text = check_pattern("nosuch").unwrap_err().to_string();
        assert!(text.starts_with("no figure's name contains \"nosuch\"; there are: interrupt."), "{text}");
    }

    #[test]
    fn only_what_is_asked_for_is_booted() {
        assert_eq!(systems(Some("vm.exit.cpuid")).collect::<Vec<_>>(), ["bench-vm"]);
        assert_eq!(
            systems(Some("interrupt")).collect::<Vec<_>>(),
            ["bench", "bench-slack", "bench-vm", "bench-vm-interrupt"]
        );
        assert_eq!(systems(Some("kernel.lines")).count(), 0);
        assert_eq!(systems(None).count(), YIELDS.len());
    }

    #[test]
    fn a_figure_that_nobody_knows_is_an_error() {
        let figure = Figure {
            name: "ipc.new".into(),
            unit: "instructions".into(),
            minimum: 1.0,
            median: 1.0,
            maximum: 1.0,
            samples: 1,
        };
        assert!(check("bench", &[figure]).is_err());
    }
}
