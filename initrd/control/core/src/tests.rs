use super::*;
use alloc::vec;
use moira_proto::control::State;
use moira_proto::frame::{FLAG, MOST_ANSWER};
use proptest::prelude::*;

/// A system of thirty tasks; task 7 is the machine `linux`.
#[derive(Default)]
struct Fake {
    now: u64,
    policy: usize,
    posted: Vec<(Agent, u64, u64)>,
    results: Vec<Option<u64>>,
    stream: Vec<u8>,
}

const TASKS: u16 = 30;

impl World for Fake {
    fn system(&self) -> SystemInfo {
        SystemInfo { name: "fake".into(), tsc_hz: 1_000, cpus: 2, tasks: TASKS }
    }
    fn task(&self, number: u16) -> Option<TaskInfo> {
        (number < TASKS).then(|| TaskInfo {
            name: alloc::format!("task-with-a-name-of-32-bytes-{number:03}"),
            cpu: 0,
            level: 1,
            slice_ns: u64::MAX,
            period_ns: u64::MAX,
            slack: true,
            account: true,
            machine: number == 7,
        })
    }
    fn cpu(&mut self, number: u32) -> Option<CpuAccount> {
        let most = u64::MAX;
        (number < 64).then_some(CpuAccount {
            cpu: number,
            elapsed: most,
            contexts: most,
            idle: most,
            interrupts: most,
            choices: most,
        })
    }
    fn account(&mut self, task: u16) -> Option<Account> {
        let most = u64::MAX;
        (task < TASKS).then_some(Account {
            task,
            own: most,
            lost: most,
            delivered: most,
            structural: most,
            interrupts: most,
            number: most,
        })
    }
    fn losers(&mut self, task: u16) -> Result<Vec<(u64, u64)>, Error> {
        if task < TASKS { Ok(vec![(1, 2)]) } else { Err(Error::NoSuchNumber) }
    }
    fn policies(&self) -> Vec<String> {
        vec!["one".into(), "two".into()]
    }
    fn policy(&self, cpu: u32) -> Result<Option<usize>, Error> {
        if cpu == 0 { Ok(Some(self.policy)) } else { Err(Error::NoSuchNumber) }
    }
    fn set_policy(&mut self, cpu: u32, policy: usize) -> Result<(), Error> {
        self.policy(cpu)?;
        self.policy = policy;
        Ok(())
    }
    fn machines(&self) -> Vec<MachineInfo> {
        vec![MachineInfo { name: "linux".into(), state: State::Running, cpus: 1, resets: 0 }]
    }
    fn machine(&self, name: &str) -> Option<u16> {
        (name == "linux").then_some(7)
    }
    fn post(&mut self, agent: Agent, order: u64, argument: u64) -> Result<u64, Error> {
        self.posted.push((agent, order, argument));
        self.results.push(None);
        Ok(self.results.len() as u64 - 1)
    }
    fn result(&self, _: Agent, number: u64) -> Option<u64> {
        self.results.get(number as usize).copied().flatten()
    }
    fn exits(&self, _: u16) -> Exits {
        Exits { cpus: vec![vec![(2, 5)]] }
    }
    fn begin_stream(&mut self, task: u16) -> Result<(), Error> {
        self.stream.clear();
        if task == 7 { Ok(()) } else { Err(Error::NotGranted) }
    }
    fn read_stream(&mut self, _: u16, most: usize) -> Vec<u8> {
        let count = self.stream.len().min(most);
        self.stream.drain(..count).collect()
    }
    /// An echo with room for ten bytes.
    fn write_stream(&mut self, _: u16, bytes: &[u8]) -> usize {
        let count = bytes.len().min(10 - self.stream.len());
        self.stream.extend(&bytes[..count]);
        count
    }
    fn now(&self) -> u64 {
        self.now
    }
}

fn bytes(number: u16, request: &Request) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame::encode(Kind::Request, number, &request.encode().unwrap(), &mut bytes);
    bytes
}

/// The frames that wait to be sent.
fn drain(session: &mut Session) -> Vec<Frame> {
    let out = session.outgoing().to_vec();
    session.sent(out.len());
    let mut decoder = Decoder::new(MOST_ANSWER);
    out.into_iter().filter_map(|byte| decoder.feed(byte)).collect()
}

/// The answers among them, with the numbers of their requests.
fn answers(session: &mut Session) -> Vec<(u16, Answer)> {
    let frames = drain(session).into_iter().filter(|frame| frame.kind == Kind::Answer);
    frames.map(|frame| (frame.number, Answer::decode(&frame.payload).unwrap())).collect()
}

fn ask(session: &mut Session, world: &mut Fake, request: &Request) -> Answer {
    session.feed(&bytes(3, request), world);
    let mut all = answers(session);
    assert_eq!((all.len(), all[0].0), (1, 3));
    all.remove(0).1
}

#[test]
fn it_greets_and_gives_back_credit() {
    let (mut session, mut world) = (Session::new(1_000), Fake::default());
    let frames = drain(&mut session);
    assert_eq!(
        (frames[0].kind, frames[0].number, &frames[0].payload[..]),
        (Kind::Hello, 0, &[frame::VERSION, 16, 0][..])
    );
    let request = bytes(1, &Request::System);
    session.feed(&request, &mut world);
    let frames = drain(&mut session);
    assert_eq!((frames[1].kind, &frames[1].payload[..]), (Kind::Credit, &(request.len() as u16).to_le_bytes()[..]));
    let mut reset = Vec::new();
    frame::encode(Kind::Reset, 9, &[], &mut reset);
    session.feed(&reset, &mut world);
    let frames = drain(&mut session);
    assert_eq!((frames.len(), frames[0].kind, frames[0].number), (1, Kind::Hello, 9));
}

#[test]
fn lists_come_in_parts_that_fit() {
    let (mut session, mut world) = (Session::new(1_000), Fake::default());
    let mut names = Vec::new();
    let mut from = Some(0);
    while let Some(first) = from {
        let Answer::Tasks { tasks, next } = ask(&mut session, &mut world, &Request::Tasks { from: first }) else {
            panic!("no tasks");
        };
        names.extend(tasks);
        from = next;
    }
    assert_eq!(names.len(), usize::from(TASKS));
    let Answer::Ledger { cpus, tasks, next, .. } = ask(&mut session, &mut world, &Request::Ledger { from: 0 }) else {
        panic!("no ledger");
    };
    assert_eq!((cpus.len(), tasks.len(), next), (64, 24, Some(24)));
}

#[test]
fn policies_are_replaced_by_name() {
    let (mut session, mut world) = (Session::new(1_000), Fake::default());
    let ask = |session: &mut Session, world: &mut Fake, cpu, name| ask(session, world, &Request::Policy { cpu, name });
    let Answer::Policy { name, all } = ask(&mut session, &mut world, 0, "two") else { panic!("no policy") };
    assert_eq!((name.as_str(), all.len(), world.policy), ("two", 2, 1));
    assert_eq!(ask(&mut session, &mut world, 0, "three"), Answer::Error(Error::NoSuchPolicy));
    assert_eq!(ask(&mut session, &mut world, 1, "one"), Answer::Error(Error::NoSuchNumber));
    assert_eq!(world.policy, 1);
}

#[test]
fn orders_are_answered_when_they_were_carried_out() {
    let (mut session, mut world) = (Session::new(1_000), Fake::default());
    drain(&mut session);
    let kill = Request::Machine { name: "linux", command: Command::Kill };
    session.feed(&bytes(1, &kill), &mut world);
    session.feed(&bytes(2, &Request::Exits { name: "linux" }), &mut world);
    session.feed(&bytes(3, &Request::Machine { name: "linux", command: Command::Pause }), &mut world);
    session.poll(&mut world);
    assert_eq!(answers(&mut session), [(3, Answer::Error(Error::Busy))]);
    assert_eq!(world.posted, [(Agent::Root, root::KILL, 7), (Agent::Machine(7), machine::LOOK, 0)]);
    world.results = vec![Some(1), Some(0)];
    session.poll(&mut world);
    let exits = Answer::Exits(Exits { cpus: vec![vec![(2, 5)]] });
    assert_eq!(answers(&mut session), [(1, Answer::Error(Error::Refused)), (2, exits)]);
    assert!(!session.waits());
    assert_eq!(ask(&mut session, &mut world, &Request::Exits { name: "x" }), Answer::Error(Error::NoSuchMachine));
    session.feed(&bytes(4, &kill), &mut world);
    world.now = 6_000;
    session.poll(&mut world);
    assert_eq!(answers(&mut session), [(4, Answer::Error(Error::NoAnswer))]);
}

#[test]
fn a_stream_lasts_until_it_is_closed() {
    let (mut session, mut world) = (Session::new(1_000), Fake::default());
    drain(&mut session);
    session.feed(&bytes(5, &Request::Debug { name: "linux" }), &mut world);
    world.results = vec![Some(0)];
    session.poll(&mut world);
    assert!(answers(&mut session).is_empty());
    let write = |session: &mut Session, world: &mut Fake, stream, text| {
        ask(session, world, &Request::Write { stream, bytes: text })
    };
    assert_eq!(write(&mut session, &mut world, 6, b"x"), Answer::Error(Error::NoStream));
    assert_eq!(write(&mut session, &mut world, 5, b"0123456789+"), Answer::Error(Error::Busy));
    session.pump(&mut world);
    let parts = drain(&mut session);
    assert_eq!((parts[0].kind, parts[0].number), (Kind::Part, 5));
    assert_eq!(Answer::decode(&parts[0].payload), Ok(Answer::Bytes(b"0123456789".to_vec())));
    assert_eq!(ask(&mut session, &mut world, &Request::Debug { name: "linux" }), Answer::Error(Error::Busy));
    session.feed(&bytes(9, &Request::Close { stream: 5 }), &mut world);
    world.results = vec![Some(0); 2];
    session.poll(&mut world);
    assert_eq!(answers(&mut session), [(5, Answer::Done), (9, Answer::Done)]);
}

#[test]
fn a_host_that_does_not_listen_gets_no_credit() {
    let (mut session, mut world) = (Session::new(1_000), Fake::default());
    let mut given = 0;
    for _ in 0..1000 {
        let before = session.outgoing().len();
        // The host keeps to its credit: it sends only if some was given.
        if session.owed > 0 {
            break;
        }
        session.feed(&bytes(1, &Request::Ledger { from: 0 }), &mut world);
        assert!(session.outgoing().len() > before);
        given += 1;
    }
    assert!(given < 1000 && session.out.len() < 3 * MOST_WAITING);
}

proptest! {
    /// Whatever the host sends: the session goes on, keeps little, and answers the next proper request.
    #[test]
    fn nonsense_does_no_harm(noise in prop::collection::vec(prop_oneof![Just(FLAG), any::<u8>()], 0..600),
                             payloads in prop::collection::vec(prop::collection::vec(0u8..12, 0..9), 0..10)) {
        let (mut session, mut world) = (Session::new(1_000), Fake::default());
        for chunk in noise.chunks(16) {
            session.feed(chunk, &mut world);
            drain(&mut session);
        }
        for payload in payloads {
            let mut bytes = Vec::new();
            frame::encode(Kind::Request, 5, &payload, &mut bytes);
            session.feed(&bytes, &mut world);
            drain(&mut session);
            prop_assert!(session.pending.len() <= MOST_ORDERS);
        }
        session.feed(&[FLAG], &mut world);
        drain(&mut session);
        prop_assert!(matches!(ask(&mut session, &mut world, &Request::System), Answer::System(_)));
    }
}
