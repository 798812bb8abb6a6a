//! The manifest as written: one serde type per table of `initrd/systems/NAME.toml`.
//!
//! Every table refuses unknown keys. Spans are kept wherever the checker may have something to say, so that it can
//! point at the line.

use super::units::{Size, Time};
use serde::Deserialize;
use std::collections::BTreeMap;
use toml::Spanned;

/// A name with the place where it stands.
pub type Name = Spanned<String>;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// What the system is and the machine it asks for.
    pub system: System,
    /// Values that the command line may change, by name: `${name}` anywhere below stands for one.
    #[serde(default)]
    #[expect(dead_code, reason = "options are in their places before the rest is read")]
    pub options: BTreeMap<String, String>,
    /// The tasks by name.
    #[serde(default)]
    pub tasks: BTreeMap<Name, Spanned<Task>>,
    /// Regions of memory that several tasks map, by name.
    #[serde(default)]
    pub regions: BTreeMap<Name, Region>,
    /// Further files of the archive by name: a path from the repository's root, `"guest:NAME"`
    /// for Debian's guest, or `""` for a file that is left out, with the capabilities that name it.
    #[serde(default)]
    pub files: BTreeMap<Name, Spanned<String>>,
}

/// `[system]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct System {
    /// One line for people.
    pub description: String,
    /// Processors the system needs.
    #[serde(default = "one")]
    pub cpus: Spanned<u32>,
    /// Memory of the machine that the system needs; none: what its tasks take.
    pub memory: Option<Spanned<Size>>,
    /// Binary of the root task.
    #[serde(default = "root_image")]
    pub root: Spanned<String>,
}

/// `[tasks.NAME]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Task {
    /// Binary of the workspace; none: the task's own name.
    pub image: Option<Spanned<String>>,
    /// CPU that the task's thread and context live on.
    #[serde(default = "zero")]
    pub cpu: Spanned<u32>,
    /// Level 0 to 7; calls go strictly uphill.
    pub level: Spanned<u32>,
    /// A promised share of the CPU.
    pub time: Option<Spanned<Contract>>,
    /// Takes slack from the scheduler, with or without a contract.
    #[serde(default)]
    pub slack: bool,
    /// Further threads, each on a CPU and with time of its own; the main one's are `cpu`, `time` and `slack`.
    #[serde(default)]
    pub threads: Vec<Spanned<Thread>>,
    /// Virtual processors of a monitor, one thread each, the main one's among them: how many on the task's CPU, or a list of
    /// CPUs, `"0,1"`. They share the task's contract: on each CPU as much is promised, in equal parts.
    pub vcpus: Option<Spanned<String>>,
    /// Has no time of its own and runs on its callers'.
    #[serde(default)]
    pub passive: Option<Spanned<bool>>,
    /// What the task is to the system.
    pub role: Option<Spanned<Role>>,
    /// What happens when the task dies.
    pub restart: Option<Spanned<Restart>>,
    /// Deaths in a row after which a task that is made anew is left dead; 0: never. None: 16.
    pub restart_limit: Option<Spanned<u32>>,
    /// How long it stays dead the second time; each death in a row doubles it, up to a second. None: a millisecond.
    pub restart_delay: Option<Spanned<Time>>,
    /// Words handed to the task at its start.
    #[serde(default)]
    pub args: Vec<String>,
    /// Bytes for heap and stack.
    #[serde(default)]
    pub memory: Memory,
    /// Slots of the capability table at least; none: 126, and two for each frame that `blocks` are cut into.
    pub slots: Option<Spanned<u32>>,
    /// Takes calls on an endpoint of its own.
    #[serde(default)]
    pub serves: bool,
    /// Tasks that this one may call. The capability has the server's name.
    #[serde(default)]
    pub calls: Vec<Name>,
    /// Tasks whose notification this one may signal: `NAME-signal`.
    #[serde(default)]
    pub signals: Vec<Name>,
    /// Regions that the task maps, with `"rw"` or `"ro"`.
    #[serde(default)]
    pub maps: BTreeMap<Name, Access>,
    /// Files of the archive that the task maps, read-only.
    #[serde(default)]
    pub files: Vec<Name>,
    /// Untyped memory to make objects from, by name; each a power of two.
    #[serde(default)]
    pub untyped: BTreeMap<Name, Spanned<Size>>,
    /// Untyped memory in as many blocks as it takes, by name: any whole number of MiB.
    #[serde(default)]
    pub blocks: BTreeMap<Name, Spanned<Size>>,
    /// Port ranges by name, `"0x3f8-0x3ff"` or `"0x70"`.
    #[serde(default)]
    pub ports: BTreeMap<Name, Spanned<String>>,
    /// Interrupt lines by name, bound to the task's notification.
    #[serde(default)]
    pub interrupts: BTreeMap<Name, Spanned<Interrupt>>,
    /// Device memory by name, mapped uncached.
    #[serde(default)]
    pub device_memory: BTreeMap<Name, Spanned<DeviceMemory>>,
    /// Rights on the task's CPU beyond what its role gives: `cpu`.
    #[serde(default)]
    pub cpu_rights: Vec<CpuRight>,
    /// Holds every CPU, without rights, to read the ledgers: `cpu-0` and so on.
    #[serde(default)]
    pub ledgers: bool,
    /// Tasks whose scheduling context this one holds: `NAME-context`.
    #[serde(default)]
    pub contexts: Vec<Name>,
    /// Tasks whose thread and address space this one holds: `NAME-control`.
    #[serde(default)]
    pub controls: Vec<Name>,
    /// Holds the machine: starts CPUs, makes interrupts and port ranges, ends the run: `platform`.
    #[serde(default)]
    pub platform: bool,
}

/// One entry of `threads`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thread {
    /// CPU that it lives on.
    #[serde(default = "zero")]
    pub cpu: Spanned<u32>,
    /// A promised share of that CPU.
    pub time: Option<Spanned<Contract>>,
    /// Takes slack from the scheduler of that CPU.
    #[serde(default)]
    pub slack: bool,
}

/// `time = { … }`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    /// Time promised in each period.
    pub slice: Spanned<Time>,
    /// How often.
    pub period: Spanned<Time>,
    /// The longest wait between two windows; none: the period.
    pub latency: Option<Spanned<Time>>,
}

/// `memory = { … }`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Heap of the task's runtime; none: 64 KiB.
    pub heap: Option<Spanned<Size>>,
    /// Stack of its first thread; none: 16 KiB.
    pub stack: Option<Spanned<Size>>,
}

/// `[regions.NAME]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Region {
    /// Bytes, a multiple of a page.
    pub size: Spanned<Size>,
}

/// One entry of `interrupts`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Interrupt {
    /// Global system interrupt number.
    pub gsi: u32,
    /// Level-triggered; else by edge.
    #[serde(default)]
    pub level: bool,
    /// Active low, as PCI's lines are.
    #[serde(default, rename = "active-low")]
    pub active_low: bool,
}

/// One entry of `device-memory`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceMemory {
    /// Physical address, page-aligned.
    pub address: u64,
    /// Bytes, a multiple of a page.
    pub size: Size,
}

/// How a region is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Access {
    /// Read and write.
    #[serde(rename = "rw")]
    ReadWrite,
    /// Read only.
    #[serde(rename = "ro")]
    ReadOnly,
}

/// What a task is to the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Makes plans from contracts; one a system.
    Planner,
    /// Hands out slack; one a CPU.
    Scheduler,
    /// Restarts tasks that die; one a system.
    Supervisor,
    /// Answers the host over the control channel; one a system.
    Control,
}

/// What happens when a task dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Restart {
    /// It is started again, for as long as the system runs.
    Always,
    /// It is started again; the system waits until it has finished.
    OnFailure,
    /// It stays dead.
    Never,
    /// The system ends.
    EndSystem,
}

impl Restart {
    /// Whether a task that died is started again, which is for a supervisor to do.
    pub fn makes_anew(self) -> bool {
        matches!(self, Self::Always | Self::OnFailure)
    }
}

/// A right on the CPU that the task lives on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CpuRight {
    /// Install plans, register schedulers.
    Plan,
    /// Dispatch.
    Dispatch,
}

fn at_nowhere<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn one() -> Spanned<u32> {
    at_nowhere(1)
}

fn zero() -> Spanned<u32> {
    at_nowhere(0)
}

fn root_image() -> Spanned<String> {
    at_nowhere("root".to_owned())
}
