//! Method numbers: the low eight bits of the tag.
//!
//! `rdi` names the capability (a slot index); arguments are the message words W0–W7. Columns of the tables in `docs/abi/`
//! carry the same names. Answers: status in the tag's low bits, results in W0–W7.

macro_rules! methods {
    ($($(#[$doc:meta])* $name:ident = $value:literal,)*) => {
        /// Every method of every object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Method { $($(#[$doc])* $name = $value,)* }

        impl Method {
            /// Every method.
            pub const ALL: &'static [Method] = &[$(Method::$name,)*];

            /// The method with this number.
            #[must_use]
            pub const fn from_code(code: u8) -> Option<Method> {
                match code { $($value => Some(Method::$name),)* _ => None }
            }
        }
    };
}

methods! {
    /// `Endpoint` (CALL): send W0–W7, the buffer and capabilities to the server and wait for its answer.
    Call = 1,
    /// Answer the current caller, then receive. No capability. `r15`: deadline of the receive, 0 for none.
    ReplyReceive = 2,
    /// Receive on all endpoints bound to this thread and its notification. `r15`: deadline.
    Receive = 3,
    /// Answer the current caller without receiving.
    Reply = 4,
    /// Let go of the current caller (a faulting thread) without an answer: it stays stopped until resumed.
    Park = 5,
    /// `Notification` (SIGNAL): set the bits of the capability's badge.
    Signal = 6,
    /// `Notification` (WAIT): wait for bits, take them all. `r15`: deadline. Answer: W0 bits.
    Wait = 7,
    /// `Notification` (WAIT): take the bits there are, without waiting. Answer: W0 bits (0: none).
    Poll = 8,
    /// `Vcpu`: enter the guest. W0 groups changed in the state page, W1 until (TSC, 0 none). Answer: W0 exit reason,
    /// W1 exit groups written.
    VcpuRun = 9,
    /// `Cpu` (DISPATCH): W0 context slot (0 none), W1 until (TSC), W2 token. Answer: W0 [`time::dispatch`](crate::time::dispatch) code, W1–W3
    /// details, W4 ticks that the context was charged meanwhile outside of its windows.
    Dispatch = 10,

    /// `Untyped`: W0 type, W1 size bits (or space kind), W2 count (1–16), W3 first destination slot of the caller's table.
    UntypedRetype = 16,
    /// `Untyped`: end every object made from it, zero the memory. Answers *Again* or *Retiring* until done.
    UntypedRevoke = 17,
    /// `Untyped`: answer W0 physical address, W1 size bits, W2 free bytes, W3 kind.
    UntypedInfo = 18,

    /// `CapTable`: W0 source slot (caller's table), W1 destination slot in the invoked table, W2 rights.
    CapCopy = 20,
    /// `CapTable`: like copy, W3 badge of the new capability (`Endpoint`, `Notification`; source badge must be 0).
    CapMint = 21,
    /// `CapTable`: W0 source slot (caller's table), W1 destination slot in the invoked table.
    CapMove = 22,
    /// `CapTable`: W0 slot of the invoked table; empties it.
    CapDelete = 23,
    /// `CapTable`: W0 slot of the invoked table; removes all capabilities derived from it. *Again* until done.
    CapRevoke = 24,
    /// `CapTable`: W0 slot: answer W0 type (0 empty), W1 rights, W2 badge.
    CapInspect = 25,

    /// `AddressSpace`: W0 frame slot, W1 virtual address, W2 rights and cache ([`map`](crate::method::map)).
    SpaceMap = 28,
    /// `AddressSpace`: W0 frame slot.
    SpaceUnmap = 29,
    /// `AddressSpace`: W0 frame slot, W1 rights.
    SpaceProtect = 30,
    /// `AddressSpace`: W0 slot of an untouched `Untyped`, which becomes page tables.
    SpaceAddMemory = 31,

    /// `Thread`: W0 space slot, W1 table slot, W2 message-buffer frame slot (0 none), W3 level, W4 fault endpoint slot (0
    /// none), W5 fault notification slot for level 7 (0 none), W6 entry rip, W7 entry rsp.
    ThreadConfigure = 34,
    /// `Thread`: W0 `Cpu` slot: becomes active there, ready at its entry. W1, W2: first two arguments (`rdi`, `rsi`).
    ThreadActivate = 35,
    /// `Thread`: stops it wherever it is.
    ThreadStop = 36,
    /// `Thread`: a stopped or parked thread goes on where it stopped.
    ThreadResume = 37,
    /// `Thread`: W0 notification slot; its bits end this thread's receive.
    ThreadBindNotification = 38,
    /// `Thread` (not running): answer in the caller's message buffer, [`fault::Registers`](crate::fault::Registers); W0 state, W1 vector, W2
    /// error code, W3 CR2 of its last fault (W1 all ones: none).
    ThreadReadRegisters = 39,
    /// `Thread` (stopped or faulting): registers from the caller's message buffer.
    ThreadWriteRegisters = 40,
    /// `Thread` (inactive, or the caller itself): W0 first of four slots that take received capabilities.
    ThreadReceiveSlots = 41,

    /// `SchedContext`: W0 thread slot: this account pays for that thread. W1 `Cpu` slot: its home. Answer: W0 its index on the
    /// status page of that CPU (all ones: none free).
    ContextBind = 44,
    /// `SchedContext`: answer W0 own, W1 lost to others, W2 delivered by helping, W3 structural, W4 interrupts of its
    /// sources, W5 the part of W1 that was lost to nobody who lives (TSC ticks), W6 its number in others' accounts.
    ContextConsumed = 45,
    /// `SchedContext` (inactive thread): W0 `Cpu` slot, the new home.
    ContextSetHome = 46,
    /// `SchedContext`: [`time::Losers`](crate::time::Losers) into the caller's message buffer.
    ContextLosers = 47,

    /// `Endpoint` (SERVE): W0 thread slot: the one server.
    EndpointBind = 50,

    /// `Interrupt`: W0 notification slot (its badge gives the bits).
    InterruptBind = 53,
    /// `Interrupt`: let the source fire again.
    InterruptAck = 54,
    /// `Interrupt` (MSI): answer W0 address, W1 data to program into the device.
    InterruptMessage = 55,

    /// `IoPorts`: W0 port, W1 size in bytes (1, 2, 4). Answer: W0 value.
    PortIn = 58,
    /// `IoPorts`: W0 port, W1 size, W2 value.
    PortOut = 59,

    /// `Vcpu`: W0 state-page frame slot, W1 guest space slot, W2 `Cpu` slot (its home; 0: the caller's).
    VcpuConfigure = 64,
    /// `Vcpu`: a running guest exits with *Kicked*; a later `run` returns at once, once.
    VcpuKick = 65,
    /// `Vcpu`: W0 guest space slot.
    VcpuSetSpace = 66,
    /// `Vcpu`: W0 MSR number, W1 bit 0 read, bit 1 write: no exit for it (only harmless ones: see docs).
    VcpuAllowMsr = 67,
    /// `Vcpu`: W0 `IoPorts` slot: the guest reaches these ports without exit.
    VcpuAllowPorts = 68,

    /// `Plan` (not installed): W0 cycle length in ticks; empties it.
    PlanClear = 72,
    /// `Plan` (not installed): W0 context slot, W1 start, W2 end, in ticks from the start of the cycle.
    PlanAppend = 73,
    /// `Plan` (not installed): W0 windows (1–16), which lie in the caller's message buffer from number W1 on, three words each as
    /// W0–W2 of `PlanAppend`. Of eight all or none are appended. Answer: W0 0, W1 number after the last.
    PlanAppendMany = 74,

    /// `Cpu` (PLAN): W0 plan slot (0: none, all is slack). Starts at the next cycle boundary of the old one.
    CpuInstallPlan = 76,
    /// `Cpu` (PLAN): W0 context slot of the scheduler, W1 status-page frame slot.
    CpuSetScheduler = 77,
    /// `Cpu`: [`time::CpuLedger`](crate::time::CpuLedger) into the caller's message buffer.
    CpuLedger = 78,

    /// `Platform`: W0 APIC id, W1 destination slot: starts a processor, gives its `Cpu`. *Again* until it runs.
    PlatformStartCpu = 84,
    /// `Platform`: W0 physical address, W1 first GSI of an I/O APIC. Answer: W0 pins.
    PlatformAddIoApic = 85,
    /// `Platform`: W0 kind (0 GSI, 1 MSI), W1 GSI, W2 flags (bit 0 level, bit 1 active low), W3 slot of a fresh `Interrupt`, W4 `Cpu`
    /// slot, W5 notification slot (its badge gives the bits).
    PlatformMakeInterrupt = 86,
    /// `Platform`: W0 first port, W1 last port, W2 destination slot.
    PlatformMakeIoPorts = 87,
    /// `Platform`: prints the message buffer's bytes (tag) on the kernel's log. W0 1: *Again* while a task that drives the
    /// serial line itself is in the middle of a line.
    PlatformLog = 88,
    /// `Platform`: ends the run. W0 0 well, 1 failed (message buffer: why), 2 reboot, 3 power off.
    PlatformEnd = 89,
    /// `Platform`: W0 CPU index, W1 first event: trace events into the message buffer. Answer: W0 next event.
    PlatformTrace = 90,
    /// `Platform`: W0 physical address, W1 log2 of the bytes (12, 21, 30), W2 destination slot: a `Frame` of device memory or
    /// firmware tables; never of memory that the kernel gave out.
    PlatformMakeFrame = 91,
}

/// Bits of W2 of `SpaceMap`, beside the rights.
pub mod map {
    /// Uncached (device memory).
    pub const UNCACHED: u64 = 1 << 8;
    /// Write-combining.
    pub const WRITE_COMBINING: u64 = 1 << 9;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_round_trip() {
        for method in Method::ALL {
            assert_eq!(Method::from_code(*method as u8), Some(*method));
        }
        assert_eq!(Method::from_code(0), None);
    }
}
