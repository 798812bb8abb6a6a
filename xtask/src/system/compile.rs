//! A checked manifest becomes what the root task reads: [`moira_proto::system::System`].

use super::check::{image_of, parse_ports, threads_of};
use super::manifest::{self, Access, CpuRight, Manifest, Name};
use super::units::Size;
use moira_abi::Rights;
use moira_abi::object::cap_table_slots;
use moira_proto::mailbox;
use moira_proto::system::{Grant, Patience, Restart, Role, System, Task, Thread, Time};
use std::collections::BTreeMap;
use toml::Spanned;

/// Stack of a task that names none.
const STACK: u64 = 16 << 10;
/// Heap of a task that names none.
const HEAP: u64 = 64 << 10;
/// A task always has a main thread.
const NO_TIME: Time = Time { context: false, slice_ns: 0, period_ns: 0, latency_ns: 0, extra: false };
/// Slots of a task that names none: a table of one page.
const SLOTS: u32 = cap_table_slots(12);
/// The memory of a monitor that its virtual processors are made from, and the bytes of each: the kernel's object and its state page.
const OBJECTS: &str = "objects";
const VCPU: u64 = 36 << 10;
/// Page tables for a further GiB of its guest, here and there, with what rounding up to powers of two costs.
const TABLES: u64 = 16 << 10;
/// What kernel, root task and page tables take beside the tasks' own memory.
const BASE: u64 = 16 << 20;

/// Compiles `manifest`, which passed the check, as the system `name`. Files with an empty path are left out, and with
/// them the capabilities that name them.
pub fn compile(name: &str, manifest: &Manifest) -> System {
    let mut tasks: Vec<_> = manifest.tasks.iter().map(|(name, task)| (name, task.get_ref())).collect();
    // Servers first, so that whoever calls finds them; then as the file has them.
    tasks.sort_by_key(|(name, task)| (std::cmp::Reverse(*task.level.get_ref()), name.span().start));
    let bits = Bits::assign(manifest);
    let tasks: Vec<Task> = tasks.iter().map(|(name, task)| compile_task(manifest, &bits, name, task)).collect();
    let mut regions: Vec<(String, u64)> =
        manifest.regions.iter().map(|(name, region)| (name.get_ref().clone(), region.size.get_ref().0)).collect();
    if tasks.iter().any(is_control) {
        regions.push((mailbox::ROOT.to_owned(), mailbox::BYTES));
    }
    let taken: u64 = tasks.iter().map(memory_of).sum::<u64>() + regions.iter().map(|(_, size)| size).sum::<u64>();
    System {
        name: name.to_owned(),
        cpus: cpus(manifest, &tasks),
        memory: manifest.system.memory.as_ref().map_or(BASE + taken, |memory| memory.get_ref().0),
        tasks,
        regions,
    }
}

/// Whether a task answers the host.
pub fn is_control(task: &Task) -> bool {
    task.grants.iter().any(|(_, grant)| *grant == Grant::Supervisor)
}

/// Whether a task is a machine's monitor.
pub fn is_monitor(task: &Task) -> bool {
    task.image == "vmm"
}

/// The CPUs that the system needs: what it says, and those that `vcpus` names.
fn cpus(manifest: &Manifest, tasks: &[Task]) -> u32 {
    let threads = tasks.iter().flat_map(|task| &task.threads);
    threads.map(|thread| thread.cpu + 1).fold(*manifest.system.cpus.get_ref(), u32::max)
}

/// Bytes that a task takes for itself.
fn memory_of(task: &Task) -> u64 {
    let untyped = task.grants.iter().map(|(_, grant)| match grant {
        Grant::Untyped { size_bits } => 1 << size_bits,
        Grant::Blocks { bytes } => *bytes,
        _ => 0,
    });
    task.stack * (1 + task.threads.len() as u64) + task.heap + (1 << task.table_bits) + untyped.sum::<u64>()
}

/// Bits of each task's notification: one for each interrupt, then one for each task that signals it; and badges of
/// each server's clients. Both count in the order of the file, so that adding a task at its end moves nobody's.
struct Bits {
    interrupts: BTreeMap<(String, String), u64>,
    signals: BTreeMap<(String, String), u64>,
    badges: BTreeMap<(String, String), u64>,
}

impl Bits {
    fn assign(manifest: &Manifest) -> Bits {
        let mut next_bit: BTreeMap<String, u32> = BTreeMap::new();
        let mut next_badge: BTreeMap<String, u64> = BTreeMap::new();
        let mut bits = Bits { interrupts: BTreeMap::new(), signals: BTreeMap::new(), badges: BTreeMap::new() };
        let mut tasks: Vec<_> = manifest.tasks.iter().map(|(name, task)| (name, task.get_ref())).collect();
        tasks.sort_by_key(|(name, _)| name.span().start);
        let mut take = |task: &str| {
            let bit = next_bit.entry(task.to_owned()).or_default();
            *bit += 1;
            // The check has counted: no task has more than 64.
            1_u64.checked_shl(*bit - 1).unwrap_or(0)
        };
        for (name, task) in &tasks {
            for line in in_file_order(&task.interrupts) {
                bits.interrupts.insert((name.get_ref().clone(), line.0.clone()), take(name.get_ref()));
            }
        }
        for (name, task) in &tasks {
            for other in &task.signals {
                bits.signals.insert((name.get_ref().clone(), other.get_ref().clone()), take(other.get_ref()));
            }
            for server in &task.calls {
                let badge = next_badge.entry(server.get_ref().clone()).or_default();
                *badge += 1;
                bits.badges.insert((name.get_ref().clone(), server.get_ref().clone()), *badge);
            }
        }
        bits
    }
}

fn in_file_order<T>(map: &BTreeMap<Name, T>) -> Vec<(&String, &T)> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(name, _)| name.span().start);
    entries.into_iter().map(|(name, value)| (name.get_ref(), value)).collect()
}

fn size(given: &Option<Spanned<Size>>, otherwise: u64) -> u64 {
    given.as_ref().map_or(otherwise, |size| size.get_ref().0)
}

fn compile_task(manifest: &Manifest, bits: &Bits, name: &Name, task: &manifest::Task) -> Task {
    let mut grants = calls_and_signals(bits, name, task);
    grants.extend(mapped(manifest, task));
    grants.extend(devices(bits, name, task));
    grants.extend(rights(manifest, name, task));
    let mut threads = threads_of(task).into_iter();
    let time = threads.next().map_or(NO_TIME, |main| main.time);
    let slots = task.slots.as_ref().map_or_else(|| SLOTS + slots_of_blocks(task), |slots| *slots.get_ref());
    let usual = Patience::default();
    let patience = Patience {
        limit: task.restart_limit.as_ref().map_or(usual.limit, |limit| *limit.get_ref()),
        delay_ns: task.restart_delay.as_ref().map_or(usual.delay_ns, |delay| delay.get_ref().0),
    };
    Task {
        name: name.get_ref().clone(),
        image: image_of(name, task).to_owned(),
        cpu: *task.cpu.get_ref(),
        // The check refused what is above 7.
        level: u8::try_from(*task.level.get_ref()).unwrap_or(7),
        time,
        role: match task.role.as_ref().map(Spanned::get_ref) {
            Some(manifest::Role::Planner) => Role::Planner,
            Some(manifest::Role::Scheduler) => Role::Scheduler,
            Some(manifest::Role::Supervisor | manifest::Role::Control) | None => Role::None,
        },
        restart: match task.restart.as_ref().map(Spanned::get_ref) {
            Some(manifest::Restart::Always) => Restart::Always,
            Some(manifest::Restart::OnFailure) => Restart::OnFailure,
            Some(manifest::Restart::EndSystem) => Restart::EndSystem,
            Some(manifest::Restart::Never) | None => Restart::Never,
        },
        patience,
        stack: size(&task.memory.stack, STACK),
        heap: size(&task.memory.heap, HEAP),
        table_bits: (7..=21).find(|bits| cap_table_slots(*bits) >= slots).unwrap_or(21),
        arguments: task.args.clone(),
        grants,
        serves: task.serves,
        threads: threads.map(|thread| Thread { cpu: thread.cpu, time: thread.time }).collect(),
    }
}

type Grants = Vec<(String, Grant)>;

fn calls_and_signals(bits: &Bits, name: &Name, task: &manifest::Task) -> Grants {
    let key = |other: &Name| (name.get_ref().clone(), other.get_ref().clone());
    let calls = task.calls.iter().map(|server| {
        let badge = bits.badges.get(&key(server)).copied().unwrap_or(0);
        (server.get_ref().clone(), Grant::Call { task: server.get_ref().clone(), badge })
    });
    let signals = task.signals.iter().map(|other| {
        let bits = bits.signals.get(&key(other)).copied().unwrap_or(0);
        (format!("{}-signal", other.get_ref()), Grant::Signal { task: other.get_ref().clone(), bits })
    });
    calls.chain(signals).collect()
}

fn mapped(manifest: &Manifest, task: &manifest::Task) -> Grants {
    let present =
        |file: &&Name| manifest.files.get(file.get_ref().as_str()).is_some_and(|path| !path.get_ref().is_empty());
    let files = task
        .files
        .iter()
        .filter(present)
        .map(|file| (file.get_ref().clone(), Grant::File { file: file.get_ref().clone() }));
    let regions = in_file_order(&task.maps).into_iter().map(|(region, access)| {
        let writable = *access == Access::ReadWrite;
        (region.clone(), Grant::Region { region: region.clone(), writable })
    });
    let further = threads_of(task).len().saturating_sub(1) as u64;
    let more = task.blocks.values().map(|size| (size.get_ref().0 >> 30).saturating_sub(1)).sum::<u64>();
    let untyped = in_file_order(&task.untyped).into_iter().map(|(name, size)| {
        // Powers of two, as the check has made sure.
        let bytes = match task.vcpus {
            Some(_) if name == OBJECTS => (size.get_ref().0 + VCPU * further + TABLES * more).next_power_of_two(),
            _ => size.get_ref().0,
        };
        let size_bits = u8::try_from(bytes.trailing_zeros()).unwrap_or(0);
        (name.clone(), Grant::Untyped { size_bits })
    });
    let blocks = in_file_order(&task.blocks).into_iter();
    let blocks = blocks.map(|(name, size)| (name.clone(), Grant::Blocks { bytes: size.get_ref().0 }));
    files.chain(regions).chain(untyped).chain(blocks).collect()
}

/// Slots for the frames of its blocks: of 2 MiB, of 4 KiB for an odd MiB. A monitor maps each twice.
fn slots_of_blocks(task: &manifest::Task) -> u32 {
    let frames = task.blocks.values().map(|size| {
        let bytes = size.get_ref().0;
        bytes / (2 << 20) + bytes % (2 << 20) / (4 << 10)
    });
    u32::try_from(2 * frames.sum::<u64>()).unwrap_or(u32::MAX - SLOTS)
}

fn devices(bits: &Bits, name: &Name, task: &manifest::Task) -> Grants {
    let ports = in_file_order(&task.ports).into_iter().filter_map(|(label, range)| {
        let (first, last) = parse_ports(range.get_ref())?;
        Some((label.clone(), Grant::Ports { first, last }))
    });
    let lines = in_file_order(&task.interrupts).into_iter().map(|(label, line)| {
        let line = *line.get_ref();
        let bits = bits.interrupts.get(&(name.get_ref().clone(), label.clone())).copied().unwrap_or(0);
        let grant = Grant::Interrupt { gsi: line.gsi, level: line.level, active_low: line.active_low, bits };
        (label.clone(), grant)
    });
    let memory = in_file_order(&task.device_memory).into_iter().map(|(label, device)| {
        let device = *device.get_ref();
        (label.clone(), Grant::Device { physical: device.address, length: device.size.0 })
    });
    ports.chain(lines).chain(memory).collect()
}

fn rights(manifest: &Manifest, name: &Name, task: &manifest::Task) -> Grants {
    let mut grants = Grants::new();
    if !task.cpu_rights.is_empty() {
        let bits = task.cpu_rights.iter().fold(0, |bits, right| match right {
            CpuRight::Plan => bits | Rights::PLAN.0,
            CpuRight::Dispatch => bits | Rights::DISPATCH.0,
        });
        grants.push(("cpu".to_owned(), Grant::Cpu { cpu: *task.cpu.get_ref(), rights: bits }));
    }
    if task.ledgers {
        let named = manifest.tasks.values().flat_map(|task| threads_of(task.get_ref())).map(|thread| thread.cpu + 1);
        let cpus = 0..named.fold(*manifest.system.cpus.get_ref(), u32::max);
        grants.extend(cpus.map(|cpu| (format!("cpu-{cpu}"), Grant::Cpu { cpu, rights: 0 })));
    }
    for other in &task.contexts {
        let task = other.get_ref().clone();
        grants.push((format!("{task}-context"), Grant::Context { task }));
    }
    let supervisor = task.role.as_ref().is_some_and(|role| *role.get_ref() == manifest::Role::Supervisor);
    let controlled = task.controls.iter().map(Spanned::get_ref).cloned();
    let supervised = manifest.tasks.iter().filter(|(other, task)| {
        let restart = task.get_ref().restart.as_ref().map(Spanned::get_ref);
        supervisor && *other != name && restart.is_some_and(|restart| restart.makes_anew())
    });
    let mut all: Vec<String> = controlled.collect();
    for (other, _) in supervised {
        if !all.contains(other.get_ref()) {
            all.push(other.get_ref().clone());
        }
    }
    for task in all {
        grants.push((format!("{task}-control"), Grant::Control { task }));
    }
    if task.platform {
        grants.push(("platform".to_owned(), Grant::Platform));
    }
    if task.role.as_ref().is_some_and(|role| *role.get_ref() == manifest::Role::Control) {
        control(manifest, &mut grants);
    }
    grants
}

/// What the role `control` is given: all accounts, the compiled manifest, and the way to the root task's ear. DISPATCH alone lets a
/// task that is not the scheduler read the ledger and nothing else.
fn control(manifest: &Manifest, grants: &mut Grants) {
    for cpu in 0..*manifest.system.cpus.get_ref() {
        grants.push((format!("cpu-{cpu}"), Grant::Cpu { cpu, rights: Rights::DISPATCH.0 }));
    }
    for (other, task) in &manifest.tasks {
        let (task, name) = (task.get_ref(), format!("{}-context", other.get_ref()));
        if (task.time.is_some() || task.slack) && !grants.iter().any(|(taken, _)| *taken == name) {
            grants.push((name, Grant::Context { task: other.get_ref().clone() }));
        }
    }
    grants.push(("system".to_owned(), Grant::File { file: "system".to_owned() }));
    grants.push(("root-signal".to_owned(), Grant::Supervisor));
    grants.push((mailbox::ROOT.to_owned(), Grant::Region { region: mailbox::ROOT.to_owned(), writable: true }));
}
