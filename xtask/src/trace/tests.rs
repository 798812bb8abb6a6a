//! A stream becomes a file, and the file says what the stream said.

use super::{
    model::{self, Track},
    perfetto, stream,
};
use moira_abi::trace::kind;

const VICTIM: u64 = 0x1000;
const OTHER: u64 = 0x2000;
const SCHEDULER: u64 = 0x3000;
const SERVER: u64 = 0x9000;

fn bytes(events: &[(u64, u32, u64, u64)]) -> Vec<u8> {
    let words = |(time, kind, a, b): &(u64, u32, u64, u64)| [*time, u64::from(*kind), *a, *b];
    events.iter().flat_map(words).flat_map(u64::to_le_bytes).collect()
}

fn names() -> Vec<String> {
    ["victim", "other", "scheduler"].map(String::from).into()
}

/// A hundred microseconds of a CPU: the victim's window comes late, is interrupted, helps a server along; then slack is dispatched.
fn story() -> Vec<(u64, u32, u64, u64)> {
    vec![
        (1_000_000_000, kind::STRETCH, 1_000, 101_000),
        (0, kind::NAME, VICTIM, 0x1100),
        (1, kind::NAME, OTHER, 0x2100),
        (2, kind::NAME, SCHEDULER, 0x3100),
        (900, kind::WINDOW, 0, 11_000),
        (900, kind::CHOOSE, OTHER, 0x2100),
        (2_000, kind::SWITCH, SERVER, 0),
        // Due at 11,000.
        (14_000, kind::WINDOW, VICTIM, 51_000),
        (14_000, kind::CHOOSE, VICTIM, 0x1100),
        (20_000, kind::INTERRUPT, 50, 0),
        (20_500, kind::INTERRUPT_END, 50, OTHER),
        (30_000, kind::CHOOSE, VICTIM, SERVER),
        (30_000, kind::FOR, VICTIM, OTHER),
        (35_000, kind::CHOOSE, VICTIM, 0x1100),
        (51_000, kind::WINDOW, 0, 200_000),
        (51_000, kind::CHOOSE, SCHEDULER, 0x3100),
        (52_000, kind::CHOOSE, OTHER, 0x2100),
        (90_000, kind::CHOOSE, 0, 0),
        (150_000, kind::CHOOSE, OTHER, 0x2100),
    ]
}

#[test]
fn a_file_says_what_the_stream_said() {
    let recorded = stream::read(&bytes(&story()), &names()).unwrap();
    let model = model::build(&recorded, 2_000);
    let of = |track| {
        model.slices.iter().filter(move |slice| slice.track == track).map(|s| (s.start, s.end, s.name.as_str()))
    };
    assert_eq!(
        of(Track::Cpu(0)).collect::<Vec<_>>(),
        [
            (0, 13_000, "other"),
            (13_000, 29_000, "victim"),
            (19_000, 19_500, "interrupt of other"),
            (29_000, 34_000, "victim"),
            (34_000, 50_000, "victim"),
            (50_000, 51_000, "scheduler"),
            (51_000, 89_000, "other"),
            (89_000, 100_000, "idle"),
        ]
    );
    assert_eq!(
        of(Track::Plan(0)).collect::<Vec<_>>(),
        [(0, 10_000, "slack"), (10_000, 50_000, "victim"), (50_000, 100_000, "slack")]
    );
    assert!(of(Track::Context(OTHER)).any(|slice| slice == (29_000, 34_000, "helped by victim")));
    assert_eq!(
        of(Track::Server(SERVER)).collect::<Vec<_>>(),
        [(1_000, 13_000, "for other"), (29_000, 34_000, "for other")]
    );
    let flows: Vec<&str> = model.flows.iter().map(|flow| flow.name).collect();
    assert_eq!(flows, ["call", "call", "help", "dispatch"]);
    let [missed] = model.missed.as_slice() else { panic!("{:?}", model.missed) };
    assert_eq!((missed.context, missed.late), (VICTIM, 3_000));
    assert_eq!(missed.taken, [("interrupt of other".to_string(), 500), ("other".to_string(), 3_000)]);

    let text = perfetto::write(&model, recorded.tsc_hz);
    let counted = perfetto::check(&text).unwrap();
    assert_eq!(counted, perfetto::Counted { tracks: 6, slices: model.slices.len(), flows: 4, missed: 1 });
}

#[test]
fn a_stream_that_is_cut_off_or_strange_is_refused() {
    let good = bytes(&story());
    assert!(stream::read(&good[..good.len() - 1], &names()).is_err());
    assert!(stream::read(&good[32..], &names()).is_err());
    assert!(stream::read(&good, &names()[..2]).is_err());
    assert!(stream::read(&[], &names()).is_err());
}

#[test]
fn the_check_finds_what_makes_no_sense() {
    let recorded = stream::read(&bytes(&story()), &names()).unwrap();
    let model = model::build(&recorded, 2_000);
    let spoilt = |spoil: &dyn Fn(&mut model::Model)| {
        let mut model = model.clone();
        spoil(&mut model);
        perfetto::check(&perfetto::write(&model, recorded.tsc_hz)).is_err()
    };
    assert!(!spoilt(&|_| {}));
    // A slice that crosses another one, a hole, an arrow to nowhere, one that goes back, a mark without a culprit.
    assert!(spoilt(&|model| model.slices[2].end += 20_000));
    assert!(spoilt(&|model| drop(model.slices.remove(0))) || spoilt(&|model| drop(model.slices.remove(4))));
    assert!(spoilt(&|model| model.flows[0].to = (Track::Server(SERVER), 60_000)));
    assert!(spoilt(&|model| model.flows[0].from.1 += 8_000));
    assert!(spoilt(&|model| model.missed[0].taken.clear()));
}
