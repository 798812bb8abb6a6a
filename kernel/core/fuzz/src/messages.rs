//! What comes in messages: tags, frames and requests of the control channel, and a queue whose other side keeps no rule.

use crate::Words;
use moira_abi::Tag;
use moira_proto::control::{Answer, Request};
use moira_proto::frame::{self, Decoder, Kind, MOST_REQUEST};
use moira_proto::start::StartInfo;
use moira_ring::{Consumer, Producer, PushError, words_needed};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Reads the bytes as each kind of message there is.
pub fn run(data: &[u8]) {
    let mut words = Words::new(data);
    match words.number(1) & 3 {
        0 => tag(words.word()),
        1 => frames(words.rest()),
        2 => requests(words.rest()),
        _ => queue(&mut words),
    }
}

fn tag(word: u64) {
    let tag = Tag(word);
    assert!(tag.caps() < 8 && tag.bytes() < 0x2000);
    let same = Tag::new(tag.label(), tag.bytes(), tag.caps()).with_low(tag.low());
    assert_eq!(
        (same.label(), same.bytes(), same.caps(), same.low()),
        (tag.label(), tag.bytes(), tag.caps(), tag.low())
    );
    assert_eq!(same.0 & !word, 0, "nothing is added");
    assert_eq!(tag.is_long(), tag.bytes() != 0 || tag.caps() != 0);
}

fn frames(bytes: &[u8]) {
    let mut decoder = Decoder::new(MOST_REQUEST);
    for byte in bytes {
        let Some(found) = decoder.feed(*byte) else { continue };
        assert!(found.payload.len() <= MOST_REQUEST);
        // What was understood is understood again.
        let (mut again, mut second) = (Vec::new(), Decoder::new(MOST_REQUEST));
        frame::encode(found.kind, found.number, &found.payload, &mut again);
        let mut frames = again.iter().filter_map(|byte| second.feed(*byte));
        let copy = frames.next().map(|frame| (frame.kind, frame.number, frame.payload));
        assert_eq!(copy, Some((found.kind, found.number, found.payload.clone())));
        requests(&found.payload);
    }
}

fn requests(bytes: &[u8]) {
    if let Ok(request) = Request::decode(bytes) {
        let again = request.encode().unwrap_or_default();
        assert_eq!(Request::decode(&again), Ok(request));
    }
    let _ = Answer::decode(bytes);
    let _ = StartInfo::decode(bytes);
}

fn queue(words: &mut Words<'_>) {
    const CAPACITY: u32 = 8;
    let memory: Vec<AtomicU32> = (0..words_needed::<u64>(CAPACITY).unwrap_or(0)).map(|_| AtomicU32::new(0)).collect();
    let Ok(mut consumer) = Consumer::<u64>::new(&memory, CAPACITY) else { return };
    let Ok(mut producer) = Producer::<u64>::new(&memory, CAPACITY) else { return };
    let (mut pushed, mut taken, mut honest) = (0u64, 0u64, true);
    while !words.is_empty() {
        match words.number(1) % 8 {
            0 | 1 => match producer.push(pushed) {
                Ok(()) => pushed += 1,
                Err(PushError::Full) => assert!(!honest || pushed - taken == u64::from(CAPACITY)),
                Err(PushError::Peer(_)) => assert!(!honest, "nobody did wrong"),
            },
            2 => match consumer.pop() {
                Ok(Some(value)) => {
                    assert!(!honest || value == taken, "{value} in place of {taken}");
                    taken += 1;
                }
                Ok(None) => assert!(!honest || pushed == taken),
                Err(_) => assert!(!honest, "nobody did wrong"),
            },
            3 => {
                let most = words.number(1) as u32;
                let count = consumer.drain(most).map_or(0, |entries| entries.count() as u64);
                assert!(count <= u64::from(CAPACITY.min(most)), "no more than there is room for");
                taken += count;
            }
            4 => assert!(producer.room().map_or(!honest, |room| room <= CAPACITY)),
            5 => assert!(consumer.available().map_or(!honest, |there| there <= CAPACITY)),
            6 => {
                let _ =
                    (consumer.prepare_sleep(), producer.must_wake(), producer.prepare_sleep(), consumer.must_wake());
            }
            _ => {
                let (at, value) = (words.number(1) as usize, words.number(4) as u32);
                if let Some(word) = memory.get(at) {
                    word.store(value, Relaxed);
                    honest = false;
                }
            }
        }
    }
}

/// One of each.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let mut framed = vec![1];
    frame::encode(Kind::Request, 7, &[0, 1, 2], &mut framed);
    frame::encode(Kind::Reset, 8, &[], &mut framed);
    let requests = (0..24).map(|variant| vec![2, variant, 1, 0, 0, 0]);
    let queue = vec![3, 0, 0, 2, 0, 3, 4, 6, 2, 7, 0, 1, 0, 0, 0, 2];
    [vec![0, 5, 3, 0, 1, 1, 0, 0, 0], framed, queue].into_iter().chain(requests).collect()
}
