//! The encoding of invocations, against a fake kernel that writes down what it is asked.

use crate::*;
use moira_abi::{Method, Tag};
use std::{vec, vec::Vec};

/// A kernel that records the call and gives a prepared answer.
pub(crate) mod fake {
    use super::*;
    use crate::raw::Answer;
    use std::cell::RefCell;

    /// What arrived.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Call {
        pub method: Method,
        pub tag: Tag,
        pub slot: u32,
        pub words: Vec<u64>,
        pub deadline: Option<u64>,
    }

    std::thread_local! {
        static CALLS: RefCell<Vec<Call>> = const { RefCell::new(Vec::new()) };
        static ANSWERS: RefCell<Vec<Answer>> = const { RefCell::new(Vec::new()) };
    }

    /// Prepares answers, first one first.
    pub fn answer(status: u8, tag: Tag, badge: u64, words: [u64; 8]) {
        ANSWERS.with_borrow_mut(|answers| answers.push(Answer { tag: tag.with_low(status), badge, words }));
    }

    /// Takes what was asked.
    pub fn calls() -> Vec<Call> {
        CALLS.with_borrow_mut(core::mem::take)
    }

    fn record(method: Method, tag: Tag, slot: u32, words: &[u64], deadline: Option<u64>) -> Answer {
        CALLS.with_borrow_mut(|calls| calls.push(Call { method, tag, slot, words: words.to_vec(), deadline }));
        ANSWERS.with_borrow_mut(|answers| {
            if answers.is_empty() { Answer { tag: Tag(0), badge: 0, words: [0; 8] } } else { answers.remove(0) }
        })
    }

    pub(crate) fn invoke<const N: usize>(method: Method, tag: Tag, slot: u32, words: &[u64; N]) -> Answer {
        record(method, tag, slot, words, None)
    }

    pub(crate) fn invoke_until<const N: usize>(
        method: Method,
        tag: Tag,
        slot: u32,
        words: &[u64; N],
        deadline: u64,
    ) -> Answer {
        record(method, tag, slot, words, Some(deadline))
    }
}

use fake::{Call, answer, calls};

fn one() -> Call {
    let mut all = calls();
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn expect(method: Method, slot: u32, words: &[u64]) {
    let call = one();
    assert_eq!((call.method, call.slot, call.words.as_slice()), (method, slot, words));
    assert!(!call.tag.is_long());
}

#[test]
fn retype_names_type_size_count_and_slot() {
    let frames = Untyped::new(Slot(9)).retype_frames(FrameSize::Large, 3, Slot(20)).unwrap();
    expect(Method::UntypedRetype, 9, &[ObjectType::Frame as u64, 21, 3, 20]);
    assert_eq!(
        frames.iter().collect::<Vec<_>>(),
        vec![Frame::new(Slot(20)), Frame::new(Slot(21)), Frame::new(Slot(22))]
    );
    assert_eq!(frames.get(3), None);
}

#[test]
fn configure_uses_all_eight_words_and_zero_for_none() {
    let configuration = Configuration {
        space: AddressSpace::new(Slot(1)),
        table: CapTable::new(Slot(2)),
        buffer: Some(Frame::new(Slot(3))),
        level: 4,
        fault_endpoint: Some(Endpoint::new(Slot(5))),
        fault_notification: None,
        entry: 7,
        stack: 8,
    };
    Thread::new(Slot(30)).configure(&configuration).unwrap();
    expect(Method::ThreadConfigure, 30, &[1, 2, 3, 4, 5, 0, 7, 8]);
}

#[test]
fn capabilities_of_a_message_stand_from_word_four() {
    answer(0, Tag::new(7, 0, 2), 0, [0, 0, 0, 0, 40, 41, 0, 0]);
    let message = Message::new(3).words([1, 2]).bytes(5000).capability(Slot(11)).capability(Slot(12));
    let received = Endpoint::new(Slot(6)).call(&message).unwrap();
    let call = one();
    assert_eq!((call.tag.label(), call.tag.caps(), call.tag.bytes()), (3, 2, 4096));
    assert_eq!(call.words, [1, 2, 0, 0, 11, 12, 0, 0]);
    assert_eq!(
        (received.capability(0), received.capability(1), received.capability(2)),
        (Some(Slot(40)), Some(Slot(41)), None)
    );
    let full = (0..6).fold(Message::new(0), |message, slot| message.capability(Slot(slot)));
    assert_eq!(full.parts().0.caps(), 4);
}

#[test]
fn errors_come_through_and_unknown_ones_do_not_look_like_success() {
    answer(Error::NoMemory as u8, Tag(0), 0, [0; 8]);
    assert_eq!(Untyped::new(Slot(9)).revoke(), Err(Error::NoMemory));
    answer(0xee, Tag(0), 0, [0; 8]);
    assert_eq!(Untyped::new(Slot(9)).revoke(), Err(Error::NoMethod));
}

#[test]
fn helpers_come_back_until_done() {
    answer(Error::Again as u8, Tag(0), 0, [0; 8]);
    answer(Error::Retiring as u8, Tag(0), 0, [0; 8]);
    assert_eq!(Untyped::new(Slot(9)).revoke_fully(), Ok(()));
    assert_eq!(calls().len(), 3);
    answer(Error::Retiring as u8, Tag(0), 0, [0; 8]);
    answer(Error::NotMapped as u8, Tag(0), 0, [0; 8]);
    assert_eq!(AddressSpace::new(Slot(3)).unmap_fully(Frame::new(Slot(50))), Ok(()));
    answer(Error::NotMapped as u8, Tag(0), 0, [0; 8]);
    assert_eq!(AddressSpace::new(Slot(3)).unmap_fully(Frame::new(Slot(50))), Err(Error::NotMapped));
}

#[test]
fn receive_tells_calls_bits_and_deadlines_apart() {
    answer(0, Tag::new(5, 12, 0), 77, [1; 8]);
    let Ok(Event::Call(call)) = receive(Deadline(99)) else { panic!("no call") };
    assert_eq!((call.label, call.badge, call.bytes), (5, 77, 12));
    assert_eq!(one().deadline, Some(99));
    answer(Error::Notified as u8, Tag(0), 0, [6, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(receive(Deadline::NEVER), Ok(Event::Notified(6)));
    answer(Error::Timeout as u8, Tag(0), 0, [0; 8]);
    assert_eq!(receive(Deadline::NEVER), Ok(Event::Timeout));
}

#[test]
fn serving_survives_dead_callers_and_answers_only_calls() {
    answer(0, Tag::new(1, 0, 0), 0, [0; 8]); // receive: a call
    answer(Error::CallerGone as u8, Tag(0), 0, [0; 8]); // reply_receive: it died
    answer(Error::Notified as u8, Tag(0), 0, [1; 8]); // receive: bits
    answer(Error::Inactive as u8, Tag(0), 0, [0; 8]); // receive, since nobody waits for an answer
    let error = serve(Deadline::NEVER, |_| Next::Reply(Message::new(0), Deadline::NEVER));
    assert_eq!(error, Error::Inactive);
    let methods: Vec<_> = calls().iter().map(|call| call.method).collect();
    assert_eq!(methods, [Method::Receive, Method::ReplyReceive, Method::Receive, Method::Receive]);
}

#[test]
fn dispatch_reads_every_code() {
    let cpu = Cpu::new(Slot(6));
    let ask = |words: [u64; 3]| {
        answer(0, Tag(0), 0, [words[0], words[1], words[2], 77, 55, 0, 0, 0]);
        cpu.dispatch(Some(SchedContext::new(Slot(33))), Deadline(500), 4).unwrap()
    };
    assert_eq!(ask([0, 0, 0]), (Dispatched::Stale, 55));
    expect(Method::Dispatch, 6, &[33, 500, 4, 0, 0]);
    assert_eq!(ask([1, 0, 0]).0, Dispatched::News);
    assert_eq!(ask([2, 0, 0]).0, Dispatched::Until);
    assert_eq!(ask([3, 1, 900]).0, Dispatched::Blocked { kind: Blocked::Waiting, deadline: 900, at: 77 });
    answer(Error::Stale as u8, Tag(0), 0, [0; 8]);
    assert_eq!(cpu.dispatch(None, Deadline::NEVER, 4), Ok((Dispatched::Stale, 0)));
}

#[test]
fn snapshots_tell_whether_there_was_a_fault() {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = std::boxed::Box::new(Page([3; 4096]));
    #[allow(unsafe_code)]
    // SAFETY: the page lives longer than the buffer and nobody else uses it meanwhile.
    let mut buffer = unsafe { MessageBuffer::new(page.0.as_mut_ptr() as u64) };
    answer(0, Tag(0), 0, [9, 14, 2, 0x10, 0, 0, 0, 0]);
    let snapshot = Thread::new(Slot(4)).read_registers(&mut buffer).unwrap();
    let same = u64::from_le_bytes([3; 8]);
    assert_eq!((snapshot.state, snapshot.registers.gpr[0], snapshot.registers.rflags), (9, same, same));
    assert_eq!(snapshot.fault.map(|fault| (fault.vector, fault.error_code, fault.cr2)), Some((14, 2, 0x10)));
    answer(0, Tag(0), 0, [8, u64::MAX, 0, 0, 0, 0, 0, 0]);
    assert_eq!(Thread::new(Slot(4)).read_registers(&mut buffer).unwrap().fault, None);
}

#[test]
fn buffers_keep_to_their_page() {
    #[repr(align(4096))]
    struct Page([u8; 4096]);
    let mut page = std::boxed::Box::new(Page([0; 4096]));
    let address = page.0.as_mut_ptr() as u64;
    #[allow(unsafe_code)]
    // SAFETY: the page lives longer than the buffer and nobody else uses it meanwhile.
    let mut buffer = unsafe { MessageBuffer::new(address) };
    assert_eq!(buffer.write(&[7; 5000]), 4096);
    assert_eq!(buffer.write_at(4095, &[1, 2]), 1);
    assert_eq!(buffer.write_at(usize::MAX, &[1]), 0);
    assert_eq!(buffer.word(511), u64::from_le_bytes([7, 7, 7, 7, 7, 7, 7, 1]));
    assert_eq!(buffer.word(512), 0);
    let mut back = [0; 8];
    assert_eq!(buffer.read_at(4092, &mut back), 4);
    assert_eq!(back, [7, 7, 7, 1, 0, 0, 0, 0]);
}
