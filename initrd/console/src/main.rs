//! The console task: one serial line for all (protocol: `moira_proto::console`).
//!
//! | capability | what for |
//! | --- | --- |
//! | `ports` or `uart` | the UART's eight ports |
//! | `interrupt` or `uart-irq` | optional: its interrupt, bound to this task's notification; without it input is looked for every 20 ms |
//!
//! Input is also looked for at each request, so that the task may be passive: it then runs on its clients' time only.
//!
//! | argument | what it says |
//! | --- | --- |
//! | `port=0x3f8` | the first port |
//! | `name.N=NAME` | the name of the client with number N |
//! | `raw=N` | client N's lines carry no name |
//! | `stamp=N` | client N's lines begin with the time since the TSC was zero |
//! | `hold_ms=0` | so long at most, a line waits for another client's to end in whose middle it would stand; 0 for a passive console, which never comes to put out what waits |
//!
//! Ctrl-] gives the input to the next client.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::{collections::BTreeMap, vec, vec::Vec};
use moira_console::consoles::{Clock, Consoles, MOST_CLIENTS};
use moira_rt::{
    Env,
    memory::Slots,
    proto::console,
    received,
    sys::{
        CapTable, Deadline, Event, Interrupt, IoPorts, Message, MessageBuffer, Next, Notification, Received, now, serve,
    },
};
use serial_core::{ports::Ports, uart::Uart};

moira_rt::entry!(main);

/// The line of the kernel's log.
const KERNELS_PORT: &str = "0x3f8";
/// Most bytes taken in one request, so that each client waits for a bounded time.
const MOST_BYTES: usize = 1024;
/// Most bytes read from the line in one go.
const MOST_TYPED: usize = 256;
/// How often input is looked for if there is no interrupt.
const POLL_NS: u64 = 20_000_000;

struct Server {
    uart: Uart<Ports>,
    consoles: Consoles,
    /// Who wants to know of input.
    listeners: BTreeMap<u16, Notification>,
    interrupt: Option<Interrupt>,
    poll_ticks: u64,
    /// The line had more to read than was read.
    more: bool,
    table: CapTable,
    slots: Slots,
    buffer: MessageBuffer,
    out: Vec<u8>,
}

fn main(env: Env) {
    // Without a line there is nobody to tell; the panic text reaches the supervisor.
    let ports =
        env.capability::<IoPorts>("ports").or_else(|| env.capability("uart")).expect("the manifest grants `ports`");
    let interrupt = env.capability::<Interrupt>("interrupt").or_else(|| env.capability("uart-irq"));
    let first = env.argument("port").unwrap_or(KERNELS_PORT);
    let mut uart = Uart(Ports::named(ports, first).expect("`port=` is a hexadecimal number"));
    let begin = if first == KERNELS_PORT { Uart::share } else { Uart::init };
    begin(&mut uart, interrupt.is_some()).expect("the UART's ports are among `ports`");
    let mut server = Server {
        uart,
        consoles: named_clients(&env),
        listeners: BTreeMap::new(),
        interrupt,
        poll_ticks: env.ticks(POLL_NS),
        more: false,
        table: env.table(),
        slots: env.slots(),
        buffer: env.buffer,
        out: Vec::new(),
    };
    // What came before this task started may have left the source masked.
    server.acknowledge();
    let error = serve(server.deadline(), |event| server.handle(event));
    panic!("cannot serve: {error:?}");
}

/// The clients that the manifest's arguments name.
fn named_clients(env: &Env) -> Consoles {
    let raw: Vec<u16> =
        env.info.arguments.iter().filter_map(|argument| argument.strip_prefix("raw=")?.parse().ok()).collect();
    let mut consoles = Consoles::new();
    for argument in &env.info.arguments {
        let named = argument.strip_prefix("name.").and_then(|rest| rest.split_once('='));
        if let Some((number, name)) = named.and_then(|(number, name)| Some((number.parse().ok()?, name))) {
            consoles.add(number, name, raw.contains(&number));
        }
    }
    let clock = Clock { now: moira_rt::sys::now, hz: env.info.tsc_hz };
    for number in env.info.arguments.iter().filter_map(|argument| argument.strip_prefix("stamp=")?.parse().ok()) {
        consoles.stamp(number, clock);
    }
    consoles.hold(env.ticks(env.number("hold_ms", 0).saturating_mul(1_000_000)));
    consoles
}

impl Server {
    fn deadline(&self) -> Deadline {
        let poll = match self.interrupt {
            Some(_) if !self.more => None,
            _ => Some(now().saturating_add(self.poll_ticks)),
        };
        poll.into_iter().chain(self.consoles.due()).min().map_or(Deadline::NEVER, Deadline)
    }

    fn handle(&mut self, event: Event) -> Next {
        self.consoles.tick(now(), &mut self.out);
        match event {
            Event::Call(call) => {
                let reply = self.answer(&call);
                received::drop_rest(self.table, &call);
                self.read_line();
                self.flush();
                // Last, because the bytes of the answer lie in the message buffer.
                let reply = self.fill(reply);
                Next::Reply(reply, self.deadline())
            }
            Event::Notified(_) | Event::Timeout => {
                // First: an edge of a line that is masked is lost, and what came meanwhile would stay in the UART.
                self.acknowledge();
                self.read_line();
                self.flush();
                Next::Receive(self.deadline())
            }
        }
    }

    fn answer(&mut self, call: &Received) -> Answer {
        // The low half of the badge is the client's number.
        let number = call.badge as u16;
        match call.label {
            console::WRITE => {
                let mut bytes = vec![0; call.bytes.min(MOST_BYTES)];
                self.buffer.read(&mut bytes);
                Answer::Words(self.consoles.write(number, &bytes, &mut self.out) as u64)
            }
            console::READ => {
                self.consoles.listen(number, &mut self.out);
                let most = usize::try_from(call.words[0]).unwrap_or(usize::MAX).min(MessageBuffer::BYTES);
                Answer::Bytes(self.consoles.read(number, most))
            }
            console::NOTIFY => Answer::Words(u64::from(self.register(number, call))),
            _ => Answer::Words(0),
        }
    }

    fn fill(&mut self, answer: Answer) -> Message {
        match answer {
            Answer::Words(word) => Message::new(0).words([word]),
            Answer::Bytes(bytes) => Message::new(0).words([bytes.len() as u64]).bytes(self.buffer.write(&bytes)),
        }
    }

    /// Keeps the client's notification; an earlier one is let go.
    fn register(&mut self, number: u16, call: &Received) -> bool {
        if !self.listeners.contains_key(&number) && self.listeners.len() >= MOST_CLIENTS {
            return false;
        }
        let Some(notification) = received::keep(self.table, &mut self.slots, call, 0) else {
            return false;
        };
        if let Some(old) = self.listeners.insert(number, notification) {
            received::let_go(self.table, &mut self.slots, old);
        }
        self.consoles.listen(number, &mut self.out);
        true
    }

    /// Takes what was typed to the client in the foreground.
    fn read_line(&mut self) {
        let mut typed = 0;
        while typed < MOST_TYPED
            && let Ok(Some(byte)) = self.uart.receive()
        {
            typed += 1;
            if let Some(number) = self.consoles.typed(byte, &mut self.out)
                && let Some(notification) = self.listeners.get(&number)
            {
                // A client that took its notification back does not want to know.
                let _ = notification.signal();
            }
        }
        // An edge-triggered line does not rise again while bytes are left: come back for them.
        self.more = typed == MOST_TYPED;
    }

    fn flush(&mut self) {
        // If the ports were taken away there is no line any more, and nobody to tell.
        let _ = self.uart.send(&self.out);
        self.out.clear();
    }

    fn acknowledge(&self) {
        if let Some(interrupt) = self.interrupt {
            // Refused only if the interrupt was taken away.
            let _ = interrupt.ack();
        }
    }
}

/// What goes back to a client.
enum Answer {
    Words(u64),
    Bytes(Vec<u8>),
}
