//! The contracts of all CPUs. A contract is let in only if a table keeps it beside all that were let in before; else nothing changes.

use crate::{
    contract::Contract,
    table::{self, Reason, Refusal, Table, Terms},
};
use alloc::vec::Vec;

/// Where a contract was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its name for [`Admission::leave`] and [`Admission::shift`].
    pub id: u32,
    /// Its CPU.
    pub cpu: usize,
}

/// Why no CPU takes a contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// What each CPU that was asked says, the one with the most room first. An owner is `None` if another contract is named than the new
    /// one. Empty: there is no such CPU.
    pub cpus: Vec<(usize, Refusal)>,
    /// Parts per million of a CPU that are not promised, over all CPUs.
    pub room_ppm: u64,
}

impl Refused {
    /// What the CPU with the most room says; without a CPU, that it is impossible.
    #[must_use]
    pub fn first(&self) -> (usize, Refusal) {
        self.cpus.first().copied().unwrap_or((0, Refusal { owner: None, reason: Reason::Impossible }))
    }
}

/// A contract that was let in.
#[derive(Clone, Copy, Debug)]
struct Member {
    id: u32,
    contract: Contract,
}

/// What one CPU promised.
#[derive(Clone, Debug)]
struct Share {
    members: Vec<Member>,
    /// Its windows; their owners are positions among the members.
    table: Table,
    /// Slack is handed out in windows of at most so much; `None`: by a scheduler.
    quantum: Option<u64>,
}

impl Share {
    fn contracts(&self) -> Vec<Contract> {
        self.members.iter().map(|member| member.contract).collect()
    }

    /// Ends a contract, if it is here.
    fn remove(&mut self, id: u32, terms: &Terms) {
        let Some(gone) = self.members.iter().position(|member| member.id == id) else {
            return;
        };
        self.members.remove(gone);
        if let Ok(table) = table::make_full(&self.contracts(), terms, self.quantum) {
            self.table = table;
            return;
        }
        // Whole grains depend on the longest period, so that less could fit worse: then the old table stays, with a hole.
        self.table.windows.retain(|window| window.owner != gone);
        for window in &mut self.table.windows {
            window.owner -= usize::from(window.owner > gone);
        }
    }

    /// Sum of the shares in parts per million.
    fn load(&self) -> u64 {
        self.members.iter().filter(|member| member.contract.promises()).map(|member| member.contract.share_ppm()).sum()
    }
}

/// The book of contracts.
#[derive(Clone, Debug)]
pub struct Admission {
    cpus: Vec<Share>,
    terms: Terms,
    next: u32,
}

impl Admission {
    /// An empty book. Each CPU: the longest window of slack, or `None` if a scheduler hands it out.
    #[must_use]
    pub fn new(cpus: &[Option<u64>], terms: Terms) -> Admission {
        let table = Table { cycle: terms.empty, windows: Vec::new() };
        let share = |quantum: &Option<u64>| Share { members: Vec::new(), table: table.clone(), quantum: *quantum };
        Admission { cpus: cpus.iter().map(share).collect(), terms, next: 1 }
    }

    /// Lets a contract in: on `cpu` if it is bound to one, else on the CPU with the most room that takes it.
    ///
    /// # Errors
    /// [`Refused`]: what each of these CPUs says.
    pub fn enter(&mut self, contract: Contract, cpu: Option<usize>) -> Result<Placed, Refused> {
        self.enter_as(self.next, contract, cpu).inspect(|_| self.next += 1)
    }

    fn enter_as(&mut self, id: u32, contract: Contract, cpu: Option<usize>) -> Result<Placed, Refused> {
        let mut order: Vec<usize> = (0..self.cpus.len()).filter(|index| cpu.is_none_or(|cpu| cpu == *index)).collect();
        order.sort_by_key(|index| self.cpus.get(*index).map_or(u64::MAX, Share::load));
        let mut refusals = Vec::new();
        for index in order {
            let Some(share) = self.cpus.get_mut(index) else {
                continue;
            };
            let mut contracts = share.contracts();
            contracts.push(contract);
            match table::make_full(&contracts, &self.terms, share.quantum) {
                Ok(table) => {
                    share.members.push(Member { id, contract });
                    share.table = table;
                    return Ok(Placed { id, cpu: index });
                }
                Err(refusal) => {
                    let own = refusal.owner.filter(|owner| *owner + 1 == contracts.len());
                    refusals.push((index, Refusal { owner: own, ..refusal }));
                }
            }
        }
        let room_ppm = (0..self.cpus.len()).map(|cpu| self.room_ppm(cpu)).sum();
        Err(Refused { cpus: refusals, room_ppm })
    }

    /// Moves a contract to another CPU, if that one takes it; else nothing changes. `None`: there is no such contract. Answers the CPU that it
    /// left.
    ///
    /// # Errors
    /// [`Refused`]: what that CPU says.
    pub fn shift(&mut self, id: u32, to: usize) -> Option<Result<usize, Refused>> {
        let from = self.cpu_of(id)?;
        let contract = self.members(from).find(|member| member.0 == id)?.1;
        if from == to {
            return Some(Ok(from));
        }
        Some(self.enter_as(id, contract, Some(to)).map(|_| {
            if let Some(share) = self.cpus.get_mut(from) {
                share.remove(id, &self.terms);
            }
            from
        }))
    }

    /// Ends a contract. Answers its CPU; `None`: there is no such contract.
    pub fn leave(&mut self, id: u32) -> Option<usize> {
        let cpu = self.cpu_of(id)?;
        self.cpus.get_mut(cpu)?.remove(id, &self.terms);
        Some(cpu)
    }

    fn cpu_of(&self, id: u32) -> Option<usize> {
        self.cpus.iter().position(|share| share.members.iter().any(|member| member.id == id))
    }

    /// The table of a CPU; its owners are positions in [`Admission::members`].
    #[must_use]
    pub fn table(&self, cpu: usize) -> Option<&Table> {
        self.cpus.get(cpu).map(|share| &share.table)
    }

    /// The contracts of a CPU in the order of its table's owners, with their names.
    pub fn members(&self, cpu: usize) -> impl Iterator<Item = (u32, Contract)> + '_ {
        let members = self.cpus.get(cpu).map_or(&[][..], |share| share.members.as_slice());
        members.iter().map(|member| (member.id, member.contract))
    }

    /// Parts per million of a CPU that are not promised.
    #[must_use]
    pub fn room_ppm(&self, cpu: usize) -> u64 {
        self.cpus.get(cpu).map_or(0, |share| 1_000_000_u64.saturating_sub(share.load()))
    }

    /// CPUs in the book.
    #[must_use]
    pub fn cpus(&self) -> usize {
        self.cpus.len()
    }
}
