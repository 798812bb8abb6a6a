//! From events to tracks: who ran when, on whose time, in whose window.

use super::stream::Recorded;
use moira_abi::trace::{Event, FIRST_SOURCE, LAST_SOURCE, kind};
use std::collections::BTreeMap;

/// Where something is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Track {
    /// Who runs on a CPU.
    Cpu(u32),
    /// The windows of its plan.
    Plan(u32),
    /// What a context has.
    Context(u64),
    /// When a thread without a context of its own runs: a passive server.
    Server(u64),
}

/// A stretch of time on a track, in ticks from the start of the trace.
#[derive(Clone, Debug, PartialEq)]
pub struct Slice {
    /// Where.
    pub track: Track,
    /// First tick.
    pub start: u64,
    /// Tick after the last.
    pub end: u64,
    /// What is written on it.
    pub name: String,
    /// What else is known: name and ticks, or a word.
    pub details: Vec<(String, String)>,
}

/// An arrow from a slice to another one: time is given.
#[derive(Clone, Debug, PartialEq)]
pub struct Flow {
    /// `call`, `help` or `dispatch`.
    pub name: &'static str,
    /// Where it comes from and when.
    pub from: (Track, u64),
    /// Where it goes and when.
    pub to: (Track, u64),
}

/// A deadline that was missed: a window of which others took more than they may.
#[derive(Clone, Debug, PartialEq)]
pub struct Missed {
    /// Whose window.
    pub context: u64,
    /// When it ended.
    pub at: u64,
    /// Ticks that it was late.
    pub late: u64,
    /// Who took how much.
    pub taken: Vec<(String, u64)>,
}

/// All that is shown.
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// Name of each track.
    pub tracks: BTreeMap<Track, String>,
    /// In the order of their starts on each track.
    pub slices: Vec<Slice>,
    /// Donations.
    pub flows: Vec<Flow>,
    /// Missed deadlines.
    pub missed: Vec<Missed>,
    /// Length of the trace in ticks.
    pub length: u64,
}

/// The window that a CPU is in.
struct Window {
    context: u64,
    start: u64,
    end: u64,
    late: u64,
    taken: BTreeMap<String, u64>,
    lost: BTreeMap<String, u64>,
    ran: u64,
}

/// What a CPU does, as far as its events were read.
struct Cpu {
    index: u32,
    context: u64,
    whom: u64,
    thread: u64,
    since: u64,
    /// Since when this thread runs on this context's time.
    thread_since: u64,
    window: Option<Window>,
    interrupt: Option<u64>,
    structural: Option<u64>,
    last_context: u64,
    last_end: u64,
}

/// Builds the model. `late`: ticks that a window may be short before its deadline counts as missed.
pub fn build(recorded: &Recorded, late: u64) -> Model {
    let mut builder = Builder { recorded, late, model: Model::default(), root: root(recorded) };
    builder.model.length = recorded.to - recorded.from;
    for named in &recorded.names {
        builder.model.tracks.insert(Track::Context(named.context), named.name.clone());
    }
    let mut cpus: Vec<u32> = recorded.events.iter().map(Event::cpu).collect();
    cpus.sort_unstable();
    cpus.dedup();
    for index in cpus {
        builder.cpu(index);
    }
    let mut model = builder.model;
    model.slices.sort_by_key(|slice| (slice.track, slice.start, u64::MAX - slice.end));
    // What lasted no tick has no slice, and a donation of nothing is none.
    let inside = |(track, at): (Track, u64)| {
        let first = model.slices.partition_point(|slice| (slice.track, slice.start) <= (track, at));
        let before = model.slices[..first].iter().rev().take_while(|slice| slice.track == track);
        before.take(4).any(|slice| slice.end > at)
    };
    let flows: Vec<Flow> = model.flows.iter().filter(|flow| inside(flow.from) && inside(flow.to)).cloned().collect();
    model.flows = flows;
    model
}

struct Builder<'a> {
    recorded: &'a Recorded,
    late: u64,
    model: Model,
    root: Option<u64>,
}

/// The root task's context: the one that no manifest names, if there is one such only.
fn root(recorded: &Recorded) -> Option<u64> {
    let windows =
        recorded.events.iter().filter(|event| event.kind() == kind::WINDOW && event.a != 0).map(|event| event.a);
    let mut unknown: Vec<u64> =
        windows.filter(|context| recorded.names.iter().all(|named| named.context != *context)).collect();
    unknown.sort_unstable();
    unknown.dedup();
    if let [root] = unknown.as_slice() { Some(*root) } else { None }
}

impl Builder<'_> {
    fn name(&self, context: u64) -> String {
        let known = self.recorded.names.iter().find(|named| named.context == context);
        match (known, context) {
            (_, 0) => "idle".into(),
            (Some(named), _) => named.name.clone(),
            (None, root) if Some(root) == self.root => "root".into(),
            (None, _) => format!("context {context:#x}"),
        }
    }

    /// The context whose own thread this is.
    fn owner(&self, thread: u64) -> Option<u64> {
        self.recorded.names.iter().find(|named| named.thread == thread).map(|named| named.context)
    }

    fn context_track(&mut self, context: u64) -> Track {
        let track = Track::Context(context);
        let name = self.name(context);
        self.model.tracks.entry(track).or_insert(name);
        track
    }

    fn server_track(&mut self, thread: u64) -> Track {
        let track = Track::Server(thread);
        self.model.tracks.entry(track).or_insert(format!("thread {thread:#x}"));
        track
    }

    fn slice(&mut self, track: Track, start: u64, end: u64, name: String, details: Vec<(String, String)>) {
        if start < end {
            self.model.slices.push(Slice { track, start, end, name, details });
        }
    }

    fn cpu(&mut self, index: u32) {
        self.model.tracks.insert(Track::Cpu(index), format!("CPU {index}"));
        self.model.tracks.insert(Track::Plan(index), format!("CPU {index}: plan"));
        let (from, to) = (self.recorded.from, self.recorded.to);
        let events = self.recorded.events.iter().filter(|event| event.cpu() == index);
        // What was recorded before the stretch says who is on when it begins.
        let mut cpu = Cpu {
            index,
            context: 0,
            whom: 0,
            thread: 0,
            since: 0,
            thread_since: 0,
            window: None,
            interrupt: None,
            structural: None,
            last_context: 0,
            last_end: 0,
        };
        for event in events.filter(|event| event.time <= to) {
            let at = event.time.saturating_sub(from);
            self.event(&mut cpu, event, at);
        }
        let end = self.model.length;
        self.close(&mut cpu, end);
        if let Some(window) = cpu.window.take() {
            self.window(&cpu, window, end);
        }
    }

    fn event(&mut self, cpu: &mut Cpu, event: &Event, at: u64) {
        let source = (FIRST_SOURCE..=LAST_SOURCE).contains(&event.a);
        match event.kind() {
            kind::WINDOW => self.stretch(cpu, event, at),
            kind::CHOOSE if (event.a, event.a, event.b) == (cpu.context, cpu.whom, cpu.thread) => {}
            kind::CHOOSE => {
                self.close(cpu, at);
                (cpu.context, cpu.whom, cpu.thread) = (event.a, event.a, event.b);
                self.opened(cpu, at);
            }
            kind::FOR => {
                self.close(cpu, at);
                cpu.whom = event.b;
                if event.b != 0 {
                    let from = self.context_track(event.a);
                    let to = self.context_track(event.b);
                    self.model.flows.push(Flow { name: "help", from: (from, at), to: (to, at) });
                }
            }
            kind::SWITCH if event.a != cpu.thread => {
                self.close_thread(cpu, at);
                cpu.thread = event.a;
                self.donated(cpu, at);
            }
            kind::INTERRUPT if source => cpu.interrupt = Some(at),
            kind::INTERRUPT_END => {
                if let Some(begin) = cpu.interrupt.take() {
                    let whose = if event.b == 0 { "nobody".into() } else { self.name(event.b) };
                    let name = format!("interrupt of {whose}");
                    self.slice(Track::Cpu(cpu.index), begin, at, name.clone(), Vec::new());
                    if let Some(window) = cpu.window.as_mut().filter(|window| window.context != event.b) {
                        *window.taken.entry(name).or_default() += at - begin;
                    }
                }
            }
            kind::STRUCTURAL => cpu.structural = Some(at),
            kind::STRUCTURAL_END => {
                if let Some(begin) = cpu.structural.take() {
                    self.slice(Track::Cpu(cpu.index), begin, at, format!("structural {}", event.b), Vec::new());
                }
            }
            _ => {}
        }
    }

    /// A stretch of the plan begins, at the end of the one before.
    fn stretch(&mut self, cpu: &mut Cpu, event: &Event, at: u64) {
        let end = event.b.saturating_sub(self.recorded.from);
        let due = cpu.window.as_ref().map_or(at, |window| window.end.min(at));
        // Who ran until now had what is missing at the start.
        let runs = self.name(cpu.context);
        self.close(cpu, at);
        if let Some(window) = cpu.window.take() {
            self.window(cpu, window, due);
        }
        let mut window = Window {
            context: event.a,
            start: due,
            end,
            late: at - due,
            taken: BTreeMap::new(),
            lost: BTreeMap::new(),
            ran: 0,
        };
        if at > due && cpu.context != event.a {
            window.taken.insert(runs, at - due);
        }
        cpu.window = Some(window);
    }

    fn window(&mut self, cpu: &Cpu, window: Window, end: u64) {
        let end = window.end.min(end);
        let name = if window.context == 0 { "slack".into() } else { self.name(window.context) };
        let mut details = vec![("ran".into(), window.ran.to_string()), ("late".into(), window.late.to_string())];
        details.extend(window.lost.iter().map(|(who, ticks)| (format!("lost to {who}"), ticks.to_string())));
        details.extend(window.taken.iter().map(|(who, ticks)| (format!("taken by {who}"), ticks.to_string())));
        self.slice(Track::Plan(cpu.index), window.start, end, name, details);
        let taken: u64 = window.taken.values().sum();
        if window.context != 0 && taken > self.late {
            self.context_track(window.context);
            let missed = Missed {
                context: window.context,
                at: end,
                late: window.late,
                taken: window.taken.into_iter().collect(),
            };
            self.model.missed.push(missed);
        }
    }

    /// What went on ends.
    fn close(&mut self, cpu: &mut Cpu, at: u64) {
        self.close_thread(cpu, at);
        // Whose account it was ended in the middle of it.
        if let Some(begin) = cpu.structural.replace(at).filter(|begin| *begin < at) {
            self.slice(Track::Cpu(cpu.index), begin, at, "structural".into(), Vec::new());
        } else {
            cpu.structural = None;
        }
        let (start, context) = (cpu.since, cpu.context);
        cpu.since = at;
        if at <= start {
            return;
        }
        let name = self.name(context);
        let mut details = Vec::new();
        if cpu.whom != context {
            let whom = if cpu.whom == 0 { "nobody".into() } else { self.name(cpu.whom) };
            details.push(("lost to".to_string(), whom.clone()));
            if let Some(window) = cpu.window.as_mut().filter(|window| window.context == context) {
                *window.lost.entry(whom).or_default() += at - start;
            }
            if cpu.whom != 0 {
                let track = self.context_track(cpu.whom);
                self.slice(track, start, at, format!("helped by {name}"), Vec::new());
            }
        }
        if let Some(window) = cpu.window.as_mut().filter(|window| window.context == context) {
            window.ran += at - start;
        }
        self.slice(Track::Cpu(cpu.index), start, at, name, details.clone());
        if context != 0 {
            let track = self.context_track(context);
            self.slice(track, start, at, format!("CPU {}", cpu.index), details);
            (cpu.last_context, cpu.last_end) = (context, at);
        }
    }

    fn close_thread(&mut self, cpu: &mut Cpu, at: u64) {
        let start = std::mem::replace(&mut cpu.thread_since, at);
        if cpu.thread != 0 && self.owner(cpu.thread).is_none() && cpu.context != 0 {
            let track = self.server_track(cpu.thread);
            let name = format!("for {}", self.name(cpu.whom));
            self.slice(track, start, at, name, Vec::new());
        }
    }

    /// Something begins: by whose gift?
    fn opened(&mut self, cpu: &Cpu, at: u64) {
        let in_window = cpu.window.as_ref().is_some_and(|window| window.context == cpu.context);
        let (giver, end) = (cpu.last_context, cpu.last_end);
        if cpu.context != 0 && !in_window && giver != 0 && giver != cpu.context && end == at && self.is_scheduler(giver)
        {
            let from = self.context_track(giver);
            let to = self.context_track(cpu.context);
            self.model.flows.push(Flow { name: "dispatch", from: (from, at - 1), to: (to, at) });
        }
        self.donated(cpu, at);
    }

    /// A server's thread runs on somebody's time.
    fn donated(&mut self, cpu: &Cpu, at: u64) {
        if cpu.thread != 0 && cpu.context != 0 && self.owner(cpu.thread).is_none() {
            let from = self.context_track(cpu.context);
            let to = self.server_track(cpu.thread);
            self.model.flows.push(Flow { name: "call", from: (from, at), to: (to, at) });
        }
    }

    fn is_scheduler(&self, context: u64) -> bool {
        self.recorded.names.iter().any(|named| named.context == context && named.name.starts_with("scheduler"))
    }
}
