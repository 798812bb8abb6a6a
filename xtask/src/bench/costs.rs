//! `bench --mitigations`: what each measure against processor leaks adds to each figure.

use std::collections::BTreeMap;

use anyhow::Result;

use super::{Figure, Options, build, measure};
use crate::emulator::Machine;

/// Systems whose figures a measure can change.
const SYSTEMS: [&str; 3] = ["bench", "bench-vm", "bench-vm-interrupt"];
/// The measures that cost anything while the system runs, by their names on the kernel's command line. What they write to registers
/// that the emulated processor does not have is ignored there.
const MEASURES: [&str; 7] = ["pti", "ibpb", "entry-ibpb", "rsb", "verw", "l1d", "fence"];

/// The table: the figure with all measures off, and what one measure more makes of it.
pub fn table(options: &Options, images: &build::Images, machine: &Machine) -> Result<String> {
    let mut columns = vec![medians(options, images, machine, None)?];
    for name in MEASURES {
        columns.push(medians(options, images, machine, Some(name))?);
    }
    Ok(render(&columns, options.pattern.as_deref()))
}

/// Medians by name, in the order of the names, with only this measure on.
fn medians(
    options: &Options,
    images: &build::Images,
    machine: &Machine,
    name: Option<&str>,
) -> Result<BTreeMap<String, f64>> {
    let one = name.map(|name| format!(" {name}=force")).unwrap_or_default();
    let mut all = BTreeMap::new();
    for system in SYSTEMS {
        let figures: Vec<Figure> = measure(system, options, &format!("{}{one}", super::OFF), images, machine)?;
        all.extend(figures.into_iter().filter(|f| f.unit == "instructions").map(|f| (f.name, f.median)));
    }
    Ok(all)
}

fn render(columns: &[BTreeMap<String, f64>], pattern: Option<&str>) -> String {
    let Some((off, measures)) = columns.split_first() else { return String::new() };
    let mut text = format!("{:<24} {:>8}", "FIGURE", "OFF");
    for name in MEASURES {
        text += &format!(" {name:>11}");
    }
    text.push('\n');
    for (name, base) in off.iter().filter(|(name, _)| pattern.is_none_or(|pattern| name.contains(pattern))) {
        text += &format!("{name:<24} {base:>8}");
        for column in measures {
            let more = column.get(name).map_or("?".into(), |value| format!("{:+}", value - base));
            text += &format!(" {more:>11}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_says_what_is_added() {
        let of = |value: f64| BTreeMap::from([("ipc".to_owned(), value), ("vm".to_owned(), 5.0)]);
        let columns: Vec<_> =
            std::iter::once(of(278.0)).chain((0..MEASURES.len()).map(|i| of(290.0 + i as f64))).collect();
        let text = render(&columns, Some("ipc"));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("+12") && text.contains("+18"), "{text}");
    }
}
