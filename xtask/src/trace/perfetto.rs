//! The file that ui.perfetto.dev opens: Chrome's JSON format of trace events, and a reader that checks what was written.

use super::model::{Model, Track};
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Processes, which group tracks.
const CPUS: u64 = 1;
const CONTEXTS: u64 = 2;
const SERVERS: u64 = 3;

/// Which group a track is in.
fn group(track: Track) -> u64 {
    match track {
        Track::Cpu(_) | Track::Plan(_) => CPUS,
        Track::Context(_) => CONTEXTS,
        Track::Server(_) => SERVERS,
    }
}

/// Writes the model. Times are microseconds from the start, with three decimals of the nanosecond if the TSC has them.
pub fn write(model: &Model, tsc_hz: u64) -> String {
    let micros = |ticks: u64| ticks as f64 * 1e6 / tsc_hz.max(1) as f64;
    let numbers: BTreeMap<Track, u64> = model.tracks.keys().copied().zip(1..).collect();
    let place = |track: Track| (group(track), numbers.get(&track).copied().unwrap_or(0));
    let mut events: Vec<Value> = Vec::new();
    for (pid, name) in [(CPUS, "CPUs"), (CONTEXTS, "contexts"), (SERVERS, "servers")] {
        events.push(json!({"ph": "M", "pid": pid, "name": "process_name", "args": {"name": name}}));
        events.push(json!({"ph": "M", "pid": pid, "name": "process_sort_index", "args": {"sort_index": pid}}));
    }
    for (track, name) in &model.tracks {
        let (pid, tid) = place(*track);
        events.push(json!({"ph": "M", "pid": pid, "tid": tid, "name": "thread_name", "args": {"name": name}}));
        events
            .push(json!({"ph": "M", "pid": pid, "tid": tid, "name": "thread_sort_index", "args": {"sort_index": tid}}));
    }
    for slice in &model.slices {
        let (pid, tid) = place(slice.track);
        let kind = if matches!(slice.track, Track::Plan(_)) { "plan" } else { "run" };
        let details: serde_json::Map<String, Value> =
            slice.details.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
        events.push(json!({
            "ph": "X", "pid": pid, "tid": tid, "cat": kind, "name": slice.name,
            "ts": micros(slice.start), "dur": micros(slice.end) - micros(slice.start), "args": details,
        }));
    }
    for (id, flow) in (1_u64..).zip(&model.flows) {
        for (phase, (track, at)) in [("s", flow.from), ("f", flow.to)] {
            let (pid, tid) = place(track);
            let mut event = json!({
                "ph": phase, "id": id, "pid": pid, "tid": tid, "cat": "donation", "name": flow.name, "ts": micros(at),
            });
            if phase == "f" {
                event["bp"] = "e".into();
            }
            events.push(event);
        }
    }
    for missed in &model.missed {
        let (pid, tid) = place(Track::Context(missed.context));
        let worst = missed.taken.iter().max_by_key(|taken| taken.1).map_or("nobody", |taken| taken.0.as_str());
        let taken: BTreeMap<&str, u64> = missed.taken.iter().map(|(who, ticks)| (who.as_str(), *ticks)).collect();
        events.push(json!({
            "ph": "i", "s": "t", "pid": pid, "tid": tid, "cat": "deadline", "ts": micros(missed.at),
            "name": format!("missed deadline: {worst} took the time"), "args": {"late": missed.late, "taken": taken},
        }));
    }
    // The reader takes them in the order of time; what begins together, the longer one first, and arrows after what they touch.
    events.sort_by(|left, right| {
        let key = |event: &Value| {
            let number = |name: &str| event.get(name).and_then(Value::as_f64).unwrap_or(-1.0);
            (number("ts"), -number("dur").max(0.0), event["ph"] != "X")
        };
        let (left, right) = (key(left), key(right));
        left.0.total_cmp(&right.0).then(left.1.total_cmp(&right.1)).then(left.2.cmp(&right.2))
    });
    let lines: Vec<String> = events.iter().map(Value::to_string).collect();
    format!(
        "{{\"displayTimeUnit\":\"ns\",\"otherData\":{{\"tsc_hz\":{tsc_hz},\"length_us\":{}}},\"traceEvents\":[\n{}\n]}}\n",
        micros(model.length),
        lines.join(",\n")
    )
}

/// What a file holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Tracks with a name.
    pub tracks: usize,
    /// Slices.
    pub slices: usize,
    /// Arrows.
    pub flows: usize,
    /// Missed deadlines.
    pub missed: usize,
}

/// An end of an arrow: whether it begins here, track, microseconds.
type End = (bool, (u64, u64), f64);

/// Parts of a nanosecond, in microseconds: what numbers may be off by.
const NEAR: f64 = 1e-3;

/// Reads a file back and sees that it makes sense: slices of a track lie in or beside each other, each CPU is always doing something, arrows begin and end in
/// slices and do not go back in time, marks stand on contexts and name who took the time.
///
/// # Errors
/// The first thing that does not.
pub fn check(text: &str) -> Result<Counted> {
    let file: Value = serde_json::from_str(text).context("not JSON")?;
    let length = file["otherData"]["length_us"].as_f64().context("no length")?;
    let events = file["traceEvents"].as_array().context("no events")?;
    let mut counted = Counted::default();
    let mut names: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut slices: BTreeMap<(u64, u64), Vec<(f64, f64)>> = BTreeMap::new();
    let mut flows: BTreeMap<u64, Vec<End>> = BTreeMap::new();
    for event in events {
        let place = (event["pid"].as_u64().unwrap_or(0), event["tid"].as_u64().unwrap_or(0));
        let at = event["ts"].as_f64().unwrap_or(0.0);
        ensure!(at >= 0.0 && at <= length + NEAR, "an event is outside of the trace: {event}");
        match event["ph"].as_str() {
            Some("M") => {
                if event["name"] == "thread_name" {
                    names.insert(place, event["args"]["name"].as_str().unwrap_or_default().into());
                }
            }
            Some("X") => {
                let duration = event["dur"].as_f64().context("a slice without a length")?;
                ensure!(duration > 0.0, "a slice of nothing: {event}");
                ensure!(at + duration <= length + NEAR, "a slice goes beyond the end: {event}");
                slices.entry(place).or_default().push((at, at + duration));
            }
            Some(phase @ ("s" | "f")) => {
                let id = event["id"].as_u64().context("an arrow without a number")?;
                flows.entry(id).or_default().push((phase == "s", place, at));
            }
            Some("i") => {
                let taken = event["args"]["taken"].as_object().context("nobody took the time")?;
                ensure!(place.0 == CONTEXTS && names.contains_key(&place), "a mark on no context: {event}");
                ensure!(!taken.is_empty() && taken.values().all(|ticks| ticks.as_u64() > Some(0)), "{event}");
                counted.missed += 1;
            }
            _ => bail!("an unknown event: {event}"),
        }
    }
    for (place, list) in &slices {
        let name = names.get(place).with_context(|| format!("track {place:?} has no name"))?;
        nested(list).with_context(|| format!("track {name}"))?;
        if name.starts_with("CPU ") && !name.contains("plan") {
            let busy = outer(list);
            let first = list.iter().map(|slice| slice.0).fold(f64::MAX, f64::min);
            // Before the first event of a CPU nothing is known of it.
            ensure!(
                (length - first - busy).abs() < length * 1e-6 + NEAR,
                "{name} does nothing for {} us",
                length - first - busy
            );
        }
    }
    for (id, ends) in &flows {
        let [(true, from, begin), (false, to, end)] = ends.as_slice() else {
            bail!("arrow {id} has not two ends");
        };
        ensure!(begin <= end, "arrow {id} goes back in time");
        for (place, at) in [(from, *begin), (to, *end)] {
            let inside = slices
                .get(place)
                .is_some_and(|list| list.iter().any(|slice| slice.0 <= at + NEAR / 2.0 && at < slice.1 + NEAR / 2.0));
            ensure!(inside, "arrow {id} touches nothing at {at}");
        }
    }
    counted.tracks = names.len();
    counted.slices = slices.values().map(Vec::len).sum();
    counted.flows = flows.len();
    Ok(counted)
}

/// Slices in the order of their starts must lie in or beside each other.
fn nested(list: &[(f64, f64)]) -> Result<()> {
    let mut open: Vec<f64> = Vec::new();
    for (start, end) in list {
        while open.last().is_some_and(|last| *last <= start + NEAR / 2.0) {
            open.pop();
        }
        if let Some(last) = open.last() {
            ensure!(*end <= last + NEAR / 2.0, "a slice from {start} to {end} crosses the end {last} of another one");
        }
        open.push(*end);
    }
    Ok(())
}

/// Time in outermost slices.
fn outer(list: &[(f64, f64)]) -> f64 {
    let (mut sum, mut until) = (0.0, f64::MIN);
    for (start, end) in list {
        if *start >= until - NEAR / 2.0 {
            sum += end - start;
            until = *end;
        }
    }
    sum
}
