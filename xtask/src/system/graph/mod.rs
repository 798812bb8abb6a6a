//! Draws a system: tasks as boxes on their levels, calls uphill as arrows, capabilities and time in the boxes.

mod layout;
mod svg;

use super::units::{Size, Time};
use layout::{Layout, Placed};
use moira_proto::system::{Grant, Restart, Role, System, Task, Time as Contract};
use svg::{Anchor, Style, Svg};

/// Colours of CPUs 0, 1, …, told apart by people who do not see all colours alike.
const CPU_COLOURS: &[&str] = &["#3b6ea5", "#c2701c", "#3f8f5f", "#9a4f96", "#8a7a1f", "#5b5b5b"];
const INK: &str = "#1d2733";
const FAINT: &str = "#66727f";
const CALL: &str = "#2f4b6e";
const SIGNAL: &str = "#b0482f";
const SHARE: &str = "#5f7f57";
/// Room around everything.
const MARGIN: f64 = 32.0;
/// Height of one CPU's bar with its gap.
const BAR: f64 = 30.0;

/// The drawing of `system` as an SVG document.
pub fn draw(system: &System, description: &str) -> String {
    let lines: Vec<Vec<String>> = system.tasks.iter().map(details).collect();
    let head = 92.0 + BAR * f64::from(system.cpus);
    let layout = Layout::new(system, &lines, MARGIN, head);
    let regions = region_lines(system);
    let foot = layout.bottom + if regions.is_empty() { 0.0 } else { 28.0 + 18.0 * regions.len() as f64 };
    let mut svg = Svg::new(layout.width.max(760.0), foot + 56.0);
    header(&mut svg, system, description);
    for band in &layout.bands {
        svg.rect(MARGIN, band.top, svg.width - 2.0 * MARGIN, band.height, 6.0, "#f3f5f8", None);
        svg.text(MARGIN + 12.0, band.top + 20.0, &format!("level {}", band.level), Style::new(12.0, FAINT));
    }
    for route in &layout.routes {
        let (colour, dashed) = if route.signal { (SIGNAL, true) } else { (CALL, false) };
        svg.arrow(&route.points, colour, dashed);
    }
    for (index, placed) in layout.placed.iter().enumerate() {
        if let (Some(task), Some(lines)) = (system.tasks.get(index), lines.get(index)) {
            draw_task(&mut svg, task, lines, placed);
        }
    }
    for (index, line) in regions.iter().enumerate() {
        svg.text(MARGIN, layout.bottom + 28.0 + 18.0 * index as f64, line, Style::new(12.0, INK));
    }
    legend(&mut svg, foot + 30.0);
    svg.finish(&format!("System {}", system.name))
}

fn colour(cpu: u32) -> &'static str {
    CPU_COLOURS.get(cpu as usize % CPU_COLOURS.len()).unwrap_or(&INK)
}

/// Title, what it needs, and a bar for each CPU that shows who was promised which part of it.
fn header(svg: &mut Svg, system: &System, description: &str) {
    svg.text(MARGIN, 42.0, &system.name, Style::new(24.0, INK).bold());
    svg.text(MARGIN, 64.0, description, Style::new(13.0, FAINT));
    let needs = format!("{} CPU{}, {}", system.cpus, if system.cpus == 1 { "" } else { "s" }, memory(system.memory));
    svg.text(svg.width - MARGIN, 42.0, &needs, Style::new(13.0, FAINT).anchored(Anchor::End));
    let (left, width) = (MARGIN + 56.0, svg.width - 2.0 * MARGIN - 56.0);
    for cpu in 0..system.cpus {
        let top = 80.0 + BAR * f64::from(cpu);
        svg.text(MARGIN, top + 15.0, &format!("CPU {cpu}"), Style::new(12.0, colour(cpu)).bold());
        svg.rect(left, top, width, 22.0, 3.0, "#ffffff", Some("#c5cdd6"));
        let mut x = left;
        for (name, _, time) in threads(system).filter(|(_, on, time)| *on == cpu && time.slice_ns > 0) {
            let part = width * share(time);
            svg.rect(x, top, part, 22.0, 3.0, colour(cpu), Some("#ffffff"));
            if part > 7.0 * name.chars().count() as f64 + 8.0 {
                svg.text(x + 6.0, top + 15.0, &name, Style::new(11.0, "#ffffff"));
            }
            x += part;
        }
        if left + width - x > 60.0 {
            svg.text(x + 8.0, top + 15.0, "slack", Style::new(11.0, FAINT));
        }
    }
}

fn share(time: &Contract) -> f64 {
    if time.period_ns == 0 { 0.0 } else { (time.slice_ns as f64 / time.period_ns as f64).min(1.0) }
}

/// All threads: the name of the task, with a number where it has several; CPU; time.
fn threads(system: &System) -> impl Iterator<Item = (String, u32, &Contract)> {
    system.tasks.iter().flat_map(|task| {
        let name = task.name.clone();
        let main = if task.threads.is_empty() { name.clone() } else { format!("{name} 0") };
        let further =
            (1..).zip(&task.threads).map(move |(number, one)| (format!("{name} {number}"), one.cpu, &one.time));
        std::iter::once((main, task.cpu, &task.time)).chain(further)
    })
}

fn draw_task(svg: &mut Svg, task: &Task, lines: &[String], at: &Placed) {
    svg.rect(at.x, at.y, layout::WIDTH, at.height, 5.0, "#ffffff", Some("#9aa6b2"));
    svg.rect(at.x, at.y, 5.0, at.height, 2.0, colour(task.cpu), None);
    let (left, right) = (at.x + 16.0, at.x + layout::WIDTH - 12.0);
    svg.text(left, at.y + 22.0, &task.name, Style::new(15.0, INK).bold());
    if let Some(tag) = tag(task) {
        svg.text(right, at.y + 22.0, tag, Style::new(11.0, FAINT).anchored(Anchor::End));
    }
    let bar = right - left;
    svg.rect(left, at.y + 32.0, bar, 8.0, 2.0, "#e6eae4", None);
    svg.rect(left, at.y + 32.0, bar * share(&task.time), 8.0, 2.0, SHARE, None);
    svg.text(left, at.y + 54.0, &time(&task.time), Style::new(11.0, INK));
    for (index, line) in lines.iter().enumerate() {
        svg.text(left, at.y + layout::FIXED + layout::LINE * index as f64, line, Style::new(11.0, FAINT));
    }
}

fn tag(task: &Task) -> Option<&'static str> {
    match task.role {
        Role::Planner => Some("planner"),
        Role::Scheduler => Some("scheduler"),
        Role::None if task.serves => Some("server"),
        Role::None => None,
    }
}

/// The contract in words.
fn time(time: &Contract) -> String {
    if !time.context {
        return "passive: on its callers' time".to_owned();
    }
    if time.slice_ns == 0 {
        return "slack only".to_owned();
    }
    let percent = share(time) * 100.0;
    let slack = if time.extra { " + slack" } else { "" };
    let digits = usize::from(percent < 10.0);
    format!("{} of {} ({percent:.digits$} %){slack}", Time(time.slice_ns), Time(time.period_ns))
}

/// What stands in the box below the time: memory, restart, capabilities.
fn details(task: &Task) -> Vec<String> {
    let mut lines = vec![format!("heap {}, stack {}", Size(task.heap), Size(task.stack))];
    if task.image != task.name {
        lines.insert(0, format!("image {}", task.image));
    }
    let further = task.threads.iter().zip(1..);
    lines.extend(further.map(|(one, number)| format!("thread {number} on CPU {}: {}", one.cpu, time(&one.time))));
    match task.restart {
        Restart::Always | Restart::OnFailure => lines.push("restarted when it dies".to_owned()),
        Restart::EndSystem => lines.push("the system ends with it".to_owned()),
        Restart::Never => {}
    }
    lines.extend(task.grants.iter().filter_map(|(name, grant)| grant_line(name, grant)));
    lines.into_iter().map(|line| clip(&line, 40)).collect()
}

/// One capability; calls and signals are arrows instead.
fn grant_line(name: &str, grant: &Grant) -> Option<String> {
    Some(match grant {
        Grant::Call { .. } | Grant::Signal { .. } => return None,
        Grant::Ports { first, last } if first == last => format!("port {first:#x} ({name})"),
        Grant::Ports { first, last } => format!("ports {first:#x}–{last:#x} ({name})"),
        Grant::Interrupt { gsi, .. } => format!("interrupt {gsi} ({name})"),
        Grant::Device { physical, length } => {
            format!("device {physical:#x}, {} ({name})", Size(*length))
        }
        Grant::Untyped { size_bits } => format!("untyped {} ({name})", Size(1 << size_bits)),
        Grant::Blocks { bytes } => format!("untyped {} ({name})", Size(*bytes)),
        Grant::File { file } => format!("file {file}"),
        Grant::Region { region, writable: true } => format!("region {region}, read and write"),
        Grant::Region { region, writable: false } => format!("region {region}, read"),
        Grant::Cpu { cpu, rights } => format!("CPU {cpu}, {}", cpu_rights(*rights)),
        Grant::Platform => "the platform".to_owned(),
        Grant::Supervisor => "orders to the root task".to_owned(),
        Grant::Context { task } => format!("time of {task}"),
        Grant::Control { task } => format!("control of {task}"),
    })
}

fn cpu_rights(rights: u8) -> String {
    let named = [(moira_abi::Rights::PLAN, "PLAN"), (moira_abi::Rights::DISPATCH, "DISPATCH")];
    let held: Vec<&str> = named.iter().filter(|(bit, _)| rights & bit.0 != 0).map(|(_, name)| *name).collect();
    held.join(" and ")
}

fn clip(line: &str, limit: usize) -> String {
    if line.chars().count() <= limit {
        return line.to_owned();
    }
    line.chars().take(limit - 1).chain(['…']).collect()
}

/// Shared memory with whoever maps it.
fn region_lines(system: &System) -> Vec<String> {
    let line = |(name, size): &(String, u64)| {
        let maps = |task: &&Task| {
            task.grants.iter().any(|(_, grant)| matches!(grant, Grant::Region { region, .. } if region == name))
        };
        let users: Vec<&str> = system.tasks.iter().filter(maps).map(|task| task.name.as_str()).collect();
        format!(
            "region {name}, {}: shared by {}",
            Size(*size),
            if users.is_empty() { "nobody".into() } else { users.join(", ") }
        )
    };
    system.regions.iter().map(line).collect()
}

fn memory(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

fn legend(svg: &mut Svg, y: f64) {
    svg.arrow(&[(MARGIN, y), (MARGIN + 40.0, y)], CALL, false);
    svg.text(MARGIN + 50.0, y + 4.0, "calls, uphill only", Style::new(12.0, FAINT));
    svg.arrow(&[(MARGIN + 190.0, y), (MARGIN + 230.0, y)], SIGNAL, true);
    svg.text(MARGIN + 240.0, y + 4.0, "signals", Style::new(12.0, FAINT));
    svg.rect(MARGIN + 310.0, y - 4.0, 40.0, 8.0, 2.0, SHARE, None);
    svg.text(MARGIN + 360.0, y + 4.0, "promised share of the CPU", Style::new(12.0, FAINT));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A system of `count` tasks, each calling what `edges` say where that goes uphill.
    fn system(levels: &[u8], edges: &[(usize, usize)]) -> System {
        let task = |(index, level): (usize, &u8)| Task {
            name: format!("task<{index}>"),
            image: "image".to_owned(),
            cpu: 0,
            level: *level,
            time: moira_proto::system::Time {
                context: true,
                slice_ns: 1_000_000,
                period_ns: 100_000_000,
                latency_ns: 0,
                extra: true,
            },
            role: Role::None,
            restart: Restart::Always,
            patience: Default::default(),
            stack: 16384,
            heap: 65536,
            table_bits: 12,
            arguments: Vec::new(),
            grants: edges
                .iter()
                .filter(|(from, to)| *from == index && *to < levels.len())
                .map(|(_, to)| {
                    let task = format!("task<{to}>");
                    (
                        task.clone(),
                        if levels[*to] > *level {
                            Grant::Call { task, badge: 1 }
                        } else {
                            Grant::Signal { task, bits: 1 }
                        },
                    )
                })
                .collect(),
            serves: true,
            threads: Vec::new(),
        };
        let tasks = levels.iter().enumerate().map(task).collect();
        System { name: "a&b".to_owned(), cpus: 1, memory: 1 << 24, tasks, regions: vec![("r".to_owned(), 4096)] }
    }

    #[test]
    fn names_are_escaped_and_every_task_and_call_is_drawn() {
        let svg = draw(&system(&[5, 3, 1], &[(1, 0), (2, 0), (2, 1)]), "x < y");
        assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"));
        assert!(svg.contains("a&amp;b") && svg.contains("x &lt; y") && !svg.contains("task<"));
        for name in ["task&lt;0&gt;", "task&lt;1&gt;", "task&lt;2&gt;"] {
            assert!(svg.contains(name));
        }
        // Three calls, and the two arrows of the legend.
        assert_eq!(svg.matches("marker-end").count(), 5);
    }

    #[test]
    fn time_in_words() {
        let mut system = system(&[1], &[]);
        assert_eq!(time(&system.tasks[0].time), "1 ms of 100 ms (1.0 %) + slack");
        system.tasks[0].time.slice_ns = 0;
        assert_eq!(time(&system.tasks[0].time), "slack only");
        system.tasks[0].time.context = false;
        assert!(time(&system.tasks[0].time).starts_with("passive"));
    }

    proptest! {
        #[test]
        fn any_system_is_drawn_without_overlapping_boxes(
            levels in proptest::collection::vec(0_u8..8, 0..20),
            edges in proptest::collection::vec((0_usize..20, 0_usize..20), 0..40)
        ) {
            let system = system(&levels, &edges);
            let lines: Vec<Vec<String>> = system.tasks.iter().map(details).collect();
            let layout = Layout::new(&system, &lines, MARGIN, 100.0);
            for (index, a) in layout.placed.iter().enumerate() {
                for b in &layout.placed[..index] {
                    let apart = a.x + layout::WIDTH <= b.x || b.x + layout::WIDTH <= a.x
                        || a.y + a.height <= b.y || b.y + b.height <= a.y;
                    prop_assert!(apart);
                }
            }
            prop_assert!(!draw(&system, "").contains("NaN"));
        }
    }
}
