//! Faults as messages.

use super::{REPLY, REPLY_RECEIVE, WORDS, message, server, slot};
use crate::thread::answered;
use moira_abi::{
    Error, Method, Rights,
    fault::{FAULT_LABEL, Registers},
};
use moira_lab::{Check, Lab, Outcome, Puppet, Stub, With, code_of, invoke};
use moira_sys::{Blocked, Dispatched, Endpoint};

fn handler(lab: &mut Lab, check: &mut Check, level: u8) -> Option<(Puppet, Endpoint)> {
    let (handler, endpoint) = check.good("handler", server(lab, With::level(level)))?;
    let slot = lab.slots(1);
    let minted = check.good("mint", Lab::TABLE.mint(endpoint, slot, Rights::CALL, 0xfa))?;
    Some((handler, minted))
}

/// One whose faults are calls to this endpoint.
fn patient(lab: &mut Lab, endpoint: Endpoint) -> Result<Puppet, Error> {
    Puppet::with(lab, With { fault_endpoint: Some(endpoint), ..With::level(2) })
}

/// Lets it run into its fault, whoever then works on its time.
fn time(lab: &Lab, patient: &Puppet) -> Result<Dispatched, Error> {
    patient.context.map_or(Ok(Dispatched::News), |context| lab.run(context, Lab::PATIENCE))
}

pub(super) fn fault_message(lab: &mut Lab, check: &mut Check) {
    let Some((handler, endpoint)) = handler(lab, check, 6) else { return };
    let Some(patient) = check.good("patient", patient(lab, endpoint)) else { return };
    let mut registers = Registers::default();
    registers.gpr[3] = 0x5000;
    registers.gpr[4] = 0x7777;
    check.good("set", patient.set(lab, Stub::Load, registers));
    check.good("run", time(lab, &patient));
    let Some(got) = message(handler.outcome(lab)) else {
        check.holds("a message", false);
        return;
    };
    check.equal("label and badge", (got.tag.label(), got.badge), (FAULT_LABEL, 0xfa));
    let [vector, error, rip, address, rsp, flags, ..] = got.words;
    check.equal("fault", (vector, error, rip, address, rsp), (14, 4, Stub::Load.address(), 0x5000, 0x7777));
    check.equal("flags", flags & 0x200, 0x200);
    let seen = patient.look(lab);
    check.equal("its registers can be read", seen.map(|seen| seen.registers.gpr[3]), Ok(0x5000));
    check.equal("resume is the handler's", patient.thread.resume(), Err(Error::Active));
    check.equal("nothing was signalled", lab.faults.poll().map(|bits| bits & 2), Ok(0));
}

pub(super) fn fault_resume(lab: &mut Lab, check: &mut Check) {
    let Some((handler, endpoint)) = handler(lab, check, 6) else { return };
    let Some(patient) = check.good("patient", patient(lab, endpoint)) else { return };
    let mut registers = Registers::default();
    registers.gpr[0] = 123;
    registers.gpr[3] = 0x5000;
    check.good("set", patient.set(lab, Stub::Load, registers));
    check.good("run", time(lab, &patient));
    // The handler makes it go on elsewhere; the answer's words do not reach its registers.
    registers.rip = Stub::Stop.address();
    registers.gpr[12] = 0xcafe;
    check.good("write", patient.thread.write_registers(&mut lab.buffer, &registers));
    check.good("reply", handler.prepare(lab, REPLY_RECEIVE, 0, &WORDS, 0));
    check.good("run", time(lab, &patient));
    let got = message(handler.outcome(lab));
    check.equal("the next fault", got.map(|got| (got.words[0], got.words[2])), Some((6, Stub::Stop.address() + 1)));
    let seen = patient.look(lab).map(|seen| (seen.registers.gpr[0], seen.registers.gpr[12], seen.registers.gpr[6]));
    check.equal("registers are as written", seen, Ok((123, 0xcafe, 0)));
}

pub(super) fn park(lab: &mut Lab, check: &mut Check) {
    let Some((handler, endpoint)) = handler(lab, check, 6) else { return };
    let Some(patient) = check.good("patient", patient(lab, endpoint)) else { return };
    check.good("set", patient.set(lab, Stub::Stop, Registers::default()));
    check.good("run", time(lab, &patient));
    check.equal("park", answered(handler.invoke(lab, code_of(Method::Park), 0, &[])), Some(Ok(())));
    check.equal("nobody is left", answered(handler.invoke(lab, REPLY, 0, &[])), Some(Err(Error::NoCaller)));
    check.equal("the patient is stopped", patient.run(lab), Ok(Outcome::Fault(6, 0, 0)));
    check.good("resume", patient.thread.resume());
    check.equal(
        "faults again: nobody receives",
        patient.context.map(|context| lab.run(context, Lab::PATIENCE).is_ok()),
        Some(true),
    );
    check.equal("the handler receives", handler.invoke(lab, code_of(Method::Receive), 0, &[]), Ok(Outcome::Waits(0)));
    check.equal("on the patient's time it gets it", patient.run(lab), Ok(Outcome::Fault(6, 0, 0)));
    let got = message(handler.outcome(lab));
    check.equal("the fault", got.map(|got| (got.tag.label(), got.words[0])), Some((FAULT_LABEL, 6)));
}

pub(super) fn fault_below(lab: &mut Lab, check: &mut Check) {
    // Faults go uphill like calls: to a handler on its own level a fault only stops it.
    let Some((_, endpoint)) = handler(lab, check, 3) else { return };
    let s = lab.slots(1);
    let Some(thread) = check.good("thread", lab.arena.retype_threads(1, s)).and_then(|made| made.get(0)) else {
        return;
    };
    let words = [3, 2, 0, 3, slot(endpoint), slot(lab.faults), Stub::Stop.address(), 0];
    check.good("configure", invoke(code_of(Method::ThreadConfigure), s.0.into(), words, 0).check());
    let c = lab.slots(1);
    let Some(context) = check.good("context", lab.arena.retype_contexts(1, c)).and_then(|made| made.get(0)) else {
        return;
    };
    check.good("bind", context.bind(thread, Lab::CPU));
    check.good("activate", thread.activate(Lab::CPU, [0, 0]));
    let _ = lab.faults.poll();
    let ran = lab.run(context, Lab::PATIENCE);
    check.holds("stopped", matches!(ran, Ok(Dispatched::Blocked { kind: Blocked::Stopped, .. })));
    check.equal("signalled", lab.faults.poll(), Ok(1));
    let seen = thread.read_registers(&mut lab.buffer);
    check.equal("its fault", seen.map(|seen| seen.fault.map(|fault| fault.vector)), Ok(Some(6)));
}
