//! `Endpoint`: where one server thread takes calls. ABI: `docs/abi/endpoint.md`. The calls themselves: `ipc.rs`.

use super::Header;
use crate::{
    cap::{self, Slot},
    memory::{Obj, Object},
    object::thread::Thread,
};
use moira_abi::{Error, ObjectType, Rights};

/// An endpoint: 64 bytes.
#[repr(C)]
pub struct Endpoint {
    /// Header.
    pub header: Header,
    /// The server thread's capability.
    pub server: Slot,
}

static_assertions::assert_eq_size!(Endpoint, [u8; 64]);

impl Object for Endpoint {
    const KIND: ObjectType = ObjectType::Endpoint;
}

/// `bind`: W0 thread slot. Another server may take over: the old binding is dropped.
pub fn bind(endpoint: Obj<Endpoint>, caller: Obj<Thread>) -> Result<(), Error> {
    let slot = cap::slot_of(caller.table()?, caller.word(0))?;
    slot.read().object::<Thread>(Rights::USE)?;
    cap::keep(slot, &endpoint.server, Rights::ALL)
}
