//! The debug stream behind the mailbox, and gdb's protocol on it.

use alloc::vec::Vec;
use moira_ring::{Reader, Writer};
use moira_rt::mapped::Shared;
use moira_rt::proto::mailbox;
use vmm_core::gdb::Gdb;
use vmm_core::machine::Machine;
use vmm_core::state::StatePage;

/// A debugger's end in the monitor.
pub struct Debugger {
    gdb: Gdb<'static>,
    region: Shared<'static>,
    stream: Option<(Reader<'static>, Writer<'static>)>,
    /// Bytes that came and cannot be taken yet, and that do not fit into the queue yet.
    input: Vec<u8>,
    output: Vec<u8>,
}

/// Most bytes that are kept for a guest that does not stop.
const MOST_INPUT: usize = 8192;

impl Debugger {
    /// For this machine; none if the mailbox has no room for a stream.
    pub fn new(
        region: Option<Shared<'static>>,
        machine: &'static Machine<'static>,
        pages: Vec<StatePage<'static>>,
    ) -> Option<Debugger> {
        let region = region.filter(|region| region.len() as u64 >= mailbox::WITH_STREAM)?;
        Some(Debugger { gdb: Gdb::new(machine, pages), region, stream: None, input: Vec::new(), output: Vec::new() })
    }

    /// A debugger comes.
    pub fn open(&mut self) {
        let page = mailbox::BYTES as usize;
        let queues = self.region.part(page, page).zip(self.region.part(2 * page, page));
        self.stream = queues.and_then(|(to, from)| {
            let reader = Reader::new(to.words32(), mailbox::STREAM_ENTRIES).ok()?;
            Some((reader, Writer::new(from.words32(), mailbox::STREAM_ENTRIES).ok()?))
        });
        self.input.clear();
        self.output.clear();
        self.gdb.open();
    }

    /// It goes.
    pub fn close(&mut self) {
        self.stream = None;
        self.gdb.close();
    }

    /// Passes bytes on in both directions. Answers whether there are new ones for the other side.
    pub fn serve(&mut self) -> bool {
        let Some((reader, writer)) = &mut self.stream else { return false };
        let input = &mut self.input;
        if input.len() < MOST_INPUT
            && reader.read(mailbox::STREAM_ENTRIES, |part| input.extend_from_slice(part)).is_err()
        {
            self.close();
            return false;
        }
        self.gdb.poll();
        let mut taken = 0;
        while let Some(byte) = self.input.get(taken).filter(|_| self.gdb.listens()) {
            self.gdb.feed(&[*byte]);
            taken += 1;
        }
        self.input.drain(..taken);
        self.output.append(&mut self.gdb.take_output());
        let written = writer.write(&self.output).unwrap_or(0);
        self.output.drain(..written);
        written > 0
    }
}
