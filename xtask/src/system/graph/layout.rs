//! Where boxes stand and arrows run: levels are bands, the highest on top; arrows pass between boxes, never through them.

use moira_proto::system::{Grant, System};
use std::collections::{BTreeMap, BTreeSet};

/// Width of a box.
pub const WIDTH: f64 = 264.0;
/// Height of a box down to its first detail line's base.
pub const FIXED: f64 = 72.0;
/// Height of one detail line.
pub const LINE: f64 = 16.0;
/// Room between boxes of a band, where arrows of other bands pass.
const GAP: f64 = 56.0;
/// Room in a band above and below its boxes.
const PAD: f64 = 30.0;
/// Room between bands.
const BETWEEN: f64 = 34.0;
/// Distance between arrows in one gap or on one edge.
const LANE: f64 = 9.0;

/// A box.
#[derive(Debug, Clone, Copy, Default)]
pub struct Placed {
    /// Left edge.
    pub x: f64,
    /// Top edge.
    pub y: f64,
    /// Height.
    pub height: f64,
    /// Which band.
    band: usize,
}

/// A level that has tasks.
#[derive(Debug, Clone)]
pub struct Band {
    /// The level.
    pub level: u8,
    /// Top edge.
    pub top: f64,
    /// Height.
    pub height: f64,
    /// Tasks from left to right.
    tasks: Vec<usize>,
}

/// An arrow.
#[derive(Debug, Clone)]
pub struct Route {
    /// Points that it passes.
    pub points: Vec<(f64, f64)>,
    /// A signal, else a call.
    pub signal: bool,
}

/// The whole drawing.
#[derive(Debug)]
pub struct Layout {
    /// Width with margins.
    pub width: f64,
    /// Where the last band ends.
    pub bottom: f64,
    /// Bands from top to bottom.
    pub bands: Vec<Band>,
    /// Boxes, in the order of the system's tasks.
    pub placed: Vec<Placed>,
    /// Arrows.
    pub routes: Vec<Route>,
}

struct Edge {
    from: usize,
    to: usize,
    signal: bool,
}

impl Layout {
    /// Lays `system` out below `top`; `lines` are the details in each box.
    pub fn new(system: &System, lines: &[Vec<String>], margin: f64, top: f64) -> Layout {
        let edges = edges(system);
        let mut bands = bands(system);
        let widest = bands.iter().map(|band| band.tasks.len()).max().unwrap_or(1).max(1);
        let inner = widest as f64 * (WIDTH + GAP) + GAP;
        let width = inner + 2.0 * margin;
        let heights: Vec<f64> = lines.iter().map(|lines| FIXED + LINE * lines.len() as f64 - 2.0).collect();
        let mut placed = vec![Placed::default(); system.tasks.len()];
        place(&mut bands, &mut placed, &heights, margin, inner, top);
        // Boxes move towards those they talk to, and their new places move others: a few rounds settle it.
        for _ in 0..4 {
            for band in &mut bands {
                sort_by_neighbours(band, &placed, &edges);
            }
            place(&mut bands, &mut placed, &heights, margin, inner, top);
        }
        let bottom = bands.last().map_or(top, |band| band.top + band.height);
        let routes = Router { bands: &bands, placed: &placed, ports: ports(&placed, &edges), used: BTreeMap::new() }
            .routes(&edges);
        Layout { width, bottom, bands, placed, routes }
    }
}

fn edges(system: &System) -> Vec<Edge> {
    let find = |name: &str| system.tasks.iter().position(|task| task.name == name);
    let mut edges = Vec::new();
    for (from, task) in system.tasks.iter().enumerate() {
        for (_, grant) in &task.grants {
            let (name, signal) = match grant {
                Grant::Call { task, .. } => (task, false),
                Grant::Signal { task, .. } => (task, true),
                _ => continue,
            };
            if let Some(to) = find(name) {
                edges.push(Edge { from, to, signal });
            }
        }
    }
    edges
}

fn bands(system: &System) -> Vec<Band> {
    let levels: BTreeSet<u8> = system.tasks.iter().map(|task| task.level).collect();
    let band = |level: u8| {
        let tasks = system.tasks.iter().enumerate().filter(|(_, task)| task.level == level);
        Band { level, top: 0.0, height: 0.0, tasks: tasks.map(|(index, _)| index).collect() }
    };
    levels.into_iter().rev().map(band).collect()
}

/// Gives every box its place: bands below each other, boxes of a band side by side and centred.
fn place(bands: &mut [Band], placed: &mut [Placed], heights: &[f64], margin: f64, inner: f64, top: f64) {
    let mut y = top;
    for (number, band) in bands.iter_mut().enumerate() {
        let height_of = |task: &usize| heights.get(*task).copied().unwrap_or(FIXED);
        let tallest = band.tasks.iter().map(height_of).fold(0.0, f64::max);
        let row = band.tasks.len() as f64 * (WIDTH + GAP) - GAP;
        let mut x = margin + (inner - row) / 2.0;
        band.top = y;
        band.height = tallest + 2.0 * PAD;
        for task in &band.tasks {
            if let Some(place) = placed.get_mut(*task) {
                *place = Placed { x, y: y + PAD, height: height_of(task), band: number };
            }
            x += WIDTH + GAP;
        }
        y += band.height + BETWEEN;
    }
}

/// Orders a band by the mean place of each box's neighbours; boxes without keep theirs.
fn sort_by_neighbours(band: &mut Band, placed: &[Placed], edges: &[Edge]) {
    let x_of = |task: usize| placed.get(task).map_or(0.0, |place| place.x);
    let wish = |task: usize| {
        let neighbours = edges.iter().filter_map(|edge| match edge {
            edge if edge.from == task && edge.to != task => Some(x_of(edge.to)),
            edge if edge.to == task && edge.from != task => Some(x_of(edge.from)),
            _ => None,
        });
        let places: Vec<f64> = neighbours.collect();
        if places.is_empty() { x_of(task) } else { places.iter().sum::<f64>() / places.len() as f64 }
    };
    band.tasks.sort_by(|a, b| wish(*a).total_cmp(&wish(*b)));
}

/// Where each arrow touches its two boxes, by the arrow's number and whether it is its start: arrows on one edge of a box
/// stand in the order of where they lead, so that they do not cross at once.
fn ports(placed: &[Placed], edges: &[Edge]) -> BTreeMap<(usize, bool), f64> {
    // By task and edge: where an arrow leads, its number, whether it starts here.
    type Ends = Vec<(f64, usize, bool)>;
    let mut sides: BTreeMap<(usize, bool), Ends> = BTreeMap::new();
    for (number, edge) in edges.iter().enumerate() {
        let (Some(from), Some(to)) = (placed.get(edge.from), placed.get(edge.to)) else {
            continue;
        };
        // Bands count from the top: an arrow up leaves at the top edge and comes in at the bottom edge.
        let (out_top, in_top) = (to.band < from.band, to.band > from.band);
        sides.entry((edge.from, out_top)).or_default().push((to.x, number, true));
        sides.entry((edge.to, in_top)).or_default().push((from.x, number, false));
    }
    let mut ports = BTreeMap::new();
    for ((task, _), mut ends) in sides {
        ends.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let middle = placed.get(task).map_or(0.0, |place| place.x + WIDTH / 2.0);
        let apart = (WIDTH / (ends.len() as f64 + 1.0)).min(2.0 * LANE);
        for (index, (_, number, start)) in ends.iter().enumerate() {
            let offset = index as f64 - (ends.len() as f64 - 1.0) / 2.0;
            ports.insert((*number, *start), middle + offset * apart);
        }
    }
    ports
}

/// Finds ways for arrows and remembers which lanes are taken.
struct Router<'a> {
    bands: &'a [Band],
    placed: &'a [Placed],
    ports: BTreeMap<(usize, bool), f64>,
    used: BTreeMap<(usize, i64), u32>,
}

impl Router<'_> {
    fn routes(mut self, edges: &[Edge]) -> Vec<Route> {
        let mut routes = Vec::new();
        for (number, edge) in edges.iter().enumerate() {
            let (Some(from), Some(to)) = (self.placed.get(edge.from), self.placed.get(edge.to)) else {
                continue;
            };
            let x = |start: bool| self.ports.get(&(number, start)).copied().unwrap_or(from.x);
            let (from, to, xs) = (*from, *to, (x(true), x(false)));
            let points = match to.band.cmp(&from.band) {
                std::cmp::Ordering::Less => self.between(from, to, xs, true),
                std::cmp::Ordering::Greater => self.between(from, to, xs, false),
                std::cmp::Ordering::Equal => self.sideways(from, to, xs),
            };
            routes.push(Route { points, signal: edge.signal });
        }
        routes
    }

    /// From one band to another: out of one edge of the box, through a gap of each band between, into the other edge.
    fn between(&mut self, from: Placed, to: Placed, xs: (f64, f64), up: bool) -> Vec<(f64, f64)> {
        let edge = |place: Placed, top: bool| if top { place.y } else { place.y + place.height };
        let start = (xs.0, edge(from, up));
        let end = (xs.1, edge(to, !up));
        let mut points = vec![start];
        // A short box in a tall band: leave the band straight before turning.
        let band_edge = |band: &Band, top: bool| {
            if top { band.top } else { band.top + band.height }
        };
        if let Some(band) = self.bands.get(from.band).filter(|_| !up) {
            points.push((start.0, band_edge(band, false)));
        }
        let passed: Vec<usize> =
            if up { (to.band + 1..from.band).rev().collect() } else { (from.band + 1..to.band).collect() };
        let steps = passed.len() as f64 + 1.0;
        for (step, number) in passed.into_iter().enumerate() {
            let wish = start.0 + (end.0 - start.0) * (step as f64 + 1.0) / steps;
            let Some(band) = self.bands.get(number) else {
                continue;
            };
            let x = self.lane(number, self.nearest_gap(band, wish));
            points.push((x, band_edge(band, !up)));
            points.push((x, band_edge(band, up)));
        }
        if let Some(band) = self.bands.get(to.band).filter(|_| up) {
            points.push((end.0, band_edge(band, false)));
        }
        points.push(end);
        points
    }

    /// Within a band: below the boxes, from one bottom edge to the other.
    fn sideways(&self, from: Placed, to: Placed, xs: (f64, f64)) -> Vec<(f64, f64)> {
        let (start, end) = ((xs.0, from.y + from.height), (xs.1, to.y + to.height));
        let floor = self.bands.get(from.band).map_or(start.1, |band| band.top + band.height) - PAD / 2.0;
        vec![start, (start.0, floor), (end.0, floor), end]
    }

    /// `x`, moved aside as far as others have come here before: 0, +1, −1, +2, … lanes.
    fn lane(&mut self, band: usize, x: f64) -> f64 {
        let count = self.used.entry((band, x as i64)).or_default();
        let step = f64::from(count.div_ceil(2));
        let side = if *count % 2 == 1 { 1.0 } else { -1.0 };
        *count += 1;
        x + side * step * LANE
    }

    /// The middle of the gap beside boxes of `band` that is closest to `wish`.
    fn nearest_gap(&self, band: &Band, wish: f64) -> f64 {
        let boxes = band.tasks.iter().filter_map(|task| self.placed.get(*task));
        let gaps = boxes.flat_map(|place| [place.x - GAP / 2.0, place.x + WIDTH + GAP / 2.0]);
        gaps.min_by(|a, b| (a - wish).abs().total_cmp(&(b - wish).abs())).unwrap_or(wish)
    }
}
