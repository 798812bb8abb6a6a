//! The serial driver: one serial port as a stream of bytes for one client (protocol: `moira_proto::console`, `docs/abi/serial.md`).
//!
//! | capability | what for |
//! | --- | --- |
//! | `ports` | the UART's eight ports |
//! | `interrupt` | its interrupt, bound to this task's notification |
//!
//! Arguments: `port=0x2f8` (the first port).
//!
//! Whoever sends to this line sends at most a FIFO (16 bytes) that was not answered yet: a line without flow control loses what
//! comes while this task waits for its window.
#![no_std]
#![no_main]
#![forbid(unsafe_code)]

extern crate alloc;

use alloc::{vec, vec::Vec};
use log::{error, warn};
use moira_rt::{
    Env,
    memory::Slots,
    proto::console,
    received,
    sys::{CapTable, Deadline, Event, Interrupt, IoPorts, Message, MessageBuffer, Next, Notification, Received, serve},
};
use serial_core::{line::Line, ports::Ports};

moira_rt::entry!(main);

/// Most bytes taken in one request.
const MOST_BYTES: usize = 1024;
/// How soon the hardware is looked at again if it did not fall silent, and while bytes wait to be sent: an interrupt that was lost
/// must not stop the line for good.
const AGAIN_NS: u64 = 1_000_000;
const SENDING_NS: u64 = 50_000_000;

struct Server {
    line: Line<Ports>,
    /// Who wants to know of input and of room for output.
    listener: Option<Notification>,
    interrupt: Interrupt,
    more: bool,
    again: u64,
    sending: u64,
    table: CapTable,
    slots: Slots,
    buffer: MessageBuffer,
}

fn main(env: Env) {
    let Some((ports, interrupt)) = env.capability::<IoPorts>("ports").zip(env.capability::<Interrupt>("interrupt"))
    else {
        error!("the manifest grants no `ports` and `interrupt`");
        return;
    };
    let Some(ports) = Ports::named(ports, env.argument("port").unwrap_or("0x2f8")) else {
        error!("`port=` is a hexadecimal number");
        return;
    };
    let line = match Line::new(ports) {
        Ok(line) => line,
        Err(error) => {
            error!("the UART's ports are not among `ports`: {error:?}");
            return;
        }
    };
    let mut server = Server {
        line,
        listener: None,
        interrupt,
        more: false,
        again: env.ticks(AGAIN_NS),
        sending: env.ticks(SENDING_NS),
        table: env.table(),
        slots: env.slots(),
        buffer: env.buffer,
    };
    // What came before this task started may have left the source masked.
    server.serve_line();
    let error = serve(server.deadline(), |event| server.handle(event));
    error!("cannot serve: {error:?}");
}

impl Server {
    fn deadline(&self) -> Deadline {
        if self.more {
            Deadline::after(self.again)
        } else if self.line.sending() {
            Deadline::after(self.sending)
        } else {
            Deadline::NEVER
        }
    }

    fn handle(&mut self, event: Event) -> Next {
        match event {
            Event::Call(call) => {
                let answer = self.answer(&call);
                received::drop_rest(self.table, &call);
                let answer = match answer {
                    Answer::Word(word) => Message::new(0).words([word]),
                    Answer::Bytes(bytes) => {
                        Message::new(0).words([bytes.len() as u64]).bytes(self.buffer.write(&bytes))
                    }
                };
                Next::Reply(answer, self.deadline())
            }
            Event::Notified(_) | Event::Timeout => {
                self.serve_line();
                Next::Receive(self.deadline())
            }
        }
    }

    fn answer(&mut self, call: &Received) -> Answer {
        match call.label {
            console::WRITE => {
                let mut bytes = vec![0; call.bytes.min(MOST_BYTES)];
                self.buffer.read(&mut bytes);
                Answer::Word(self.line.write(&bytes).unwrap_or(0) as u64)
            }
            console::READ => {
                let most = usize::try_from(call.words[0]).unwrap_or(usize::MAX).min(MessageBuffer::BYTES);
                let bytes = self.line.read(most);
                // A full queue may have left bytes in the hardware, whose interrupt does not come again.
                self.serve_line();
                Answer::Bytes(bytes)
            }
            console::NOTIFY => Answer::Word(u64::from(self.register(call))),
            _ => Answer::Word(0),
        }
    }

    /// Keeps the client's notification; an earlier one is let go.
    fn register(&mut self, call: &Received) -> bool {
        let Some(notification) = received::keep(self.table, &mut self.slots, call, 0) else { return false };
        if let Some(old) = self.listener.replace(notification) {
            received::let_go(self.table, &mut self.slots, old);
        }
        true
    }

    fn serve_line(&mut self) {
        // First: an edge of a line that is masked is lost, and what came meanwhile would stay in the UART. Refused only if the interrupt
        // was taken away.
        let _ = self.interrupt.ack();
        match self.line.serve() {
            Ok(news) => {
                self.more = news.more;
                if (news.received || news.sent)
                    && let Some(listener) = self.listener
                {
                    // A client that took its notification back does not want to know.
                    let _ = listener.signal();
                }
            }
            // The ports were taken away: there is no line any more.
            Err(error) => warn!("the line is gone: {error:?}"),
        }
    }
}

/// What goes back to the client.
enum Answer {
    Word(u64),
    Bytes(Vec<u8>),
}
