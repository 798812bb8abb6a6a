//! `Endpoint`: calls, answers, faults as messages, helping.

mod calls;
mod contents;
mod endings;
mod faults;

use moira_abi::{Error, Method};
use moira_lab::{Answer, Check, Lab, Outcome, Puppet, With};
use moira_sys::{Capability, Deadline, Endpoint};

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("ipc-call-and-reply", calls::call);
    lab.experiment("ipc-call-errors", calls::call_errors);
    lab.experiment("ipc-levels", calls::levels);
    lab.experiment("ipc-reply-errors", calls::reply_errors);
    lab.experiment("ipc-bind", calls::bind);
    lab.experiment("ipc-passive-server", calls::passive);
    lab.experiment("ipc-chain-of-servers", calls::chain);
    lab.experiment("ipc-buffer", contents::buffer);
    lab.experiment("ipc-capabilities", contents::capabilities);
    lab.experiment("ipc-capability-errors", contents::capability_errors);
    lab.experiment("ipc-receive-deadline", calls::deadline);
    lab.experiment("ipc-helping", calls::helping);
    lab.experiment("ipc-server-dies", endings::server_dies);
    lab.experiment("ipc-server-dies-with-callers-queued", endings::server_dies_queued);
    lab.experiment("ipc-caller-dies", endings::caller_dies);
    lab.experiment("ipc-account-dies-while-served", endings::account_dies);
    lab.experiment("ipc-endpoint-dies", endings::endpoint_dies);
    lab.experiment("ipc-stopped-server", calls::stopped_server);
    lab.experiment("ipc-fault-message", faults::fault_message);
    lab.experiment("ipc-fault-write-and-resume", faults::fault_resume);
    lab.experiment("ipc-park", faults::park);
    lab.experiment("ipc-fault-handler-below", faults::fault_below);
    lab.experiment("ipc-notified-while-serving", calls::notified);
}

const CALL: u64 = Method::Call as u64;
const REPLY: u64 = Method::Reply as u64;
const REPLY_RECEIVE: u64 = Method::ReplyReceive as u64;

fn slot(capability: impl Capability) -> u64 {
    capability.slot().0.into()
}

fn endpoint(lab: &mut Lab, server: &Puppet) -> Result<Endpoint, Error> {
    let slot = lab.slots(1);
    let endpoint = lab.arena.retype_endpoints(1, slot)?.get(0).ok_or(Error::NoSlot)?;
    endpoint.bind(server.thread)?;
    Ok(endpoint)
}

/// A server that receives now, and its endpoint.
fn server(lab: &mut Lab, with: With) -> Result<(Puppet, Endpoint), Error> {
    let server = Puppet::with(lab, with)?;
    let endpoint = endpoint(lab, &server)?;
    server.receive(lab, Deadline::NEVER)?;
    if server.context.is_some() && server.run(lab)? != Outcome::Waits(0) {
        return Err(Error::Active);
    }
    Ok((server, endpoint))
}

/// A puppet with time of its own waits for a call from now on.
fn receives(lab: &mut Lab, check: &mut Check, server: &Puppet) {
    check.good("receive", server.receive(lab, Deadline::NEVER));
    check.equal("receives", server.run(lab), Ok(Outcome::Waits(0)));
}

/// The message or answer that a puppet's system call ended with.
fn message(outcome: Result<Outcome, Error>) -> Option<Answer> {
    match outcome {
        Ok(Outcome::Answered(answer)) => Some(answer),
        _ => None,
    }
}

const WORDS: [u64; 8] = [11, 22, 33, 44, 55, 66, 77, 88];
