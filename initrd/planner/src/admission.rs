//! The contracts of all CPUs. A contract is let in only if a table keeps it beside all that were let in before; else nothing changes.

use crate::{
    contract::Contract,
    table::{self, Refusal, Table, Terms},
};
use alloc::{vec, vec::Vec};

/// Where a contract was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its name for [`Admission::leave`].
    pub id: u32,
    /// Its CPU.
    pub cpu: usize,
}

/// A contract that was let in.
#[derive(Clone, Copy, Debug)]
struct Member {
    id: u32,
    contract: Contract,
}

/// What one CPU promised.
#[derive(Clone, Debug, Default)]
struct Share {
    members: Vec<Member>,
}

impl Share {
    fn contracts(&self) -> Vec<Contract> {
        self.members.iter().map(|member| member.contract).collect()
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
    /// An empty book for so many CPUs.
    #[must_use]
    pub fn new(cpus: usize, terms: Terms) -> Admission {
        Admission { cpus: vec![Share::default(); cpus], terms, next: 1 }
    }

    /// Lets a contract in: on `cpu` if it is bound to one, else on the CPU with the most room that takes it. Answers where, and that
    /// CPU's new table, whose owners are positions in [`Admission::members`].
    ///
    /// # Errors
    /// The refusal of the CPU with the most room; the owner is `None` if it is not the new contract itself that is named. No CPU:
    /// [`table::Reason::Impossible`].
    pub fn enter(&mut self, contract: Contract, cpu: Option<usize>) -> Result<(Placed, Table), Refusal> {
        let mut order: Vec<usize> = (0..self.cpus.len()).filter(|index| cpu.is_none_or(|cpu| cpu == *index)).collect();
        order.sort_by_key(|index| self.cpus.get(*index).map_or(u64::MAX, Share::load));
        let mut first = None;
        for index in order {
            let Some(share) = self.cpus.get_mut(index) else {
                continue;
            };
            let mut contracts = share.contracts();
            contracts.push(contract);
            match table::make(&contracts, &self.terms) {
                Ok(table) => {
                    let id = self.next;
                    self.next += 1;
                    share.members.push(Member { id, contract });
                    return Ok((Placed { id, cpu: index }, table));
                }
                Err(refusal) => {
                    let own = refusal.owner.filter(|owner| *owner + 1 == contracts.len());
                    first.get_or_insert(Refusal { owner: own, ..refusal });
                }
            }
        }
        Err(first.unwrap_or(Refusal { owner: None, reason: table::Reason::Impossible }))
    }

    /// Ends a contract. Answers its CPU and that CPU's new table; `None`: there is no such contract.
    pub fn leave(&mut self, id: u32) -> Option<(usize, Table)> {
        let (index, share) =
            self.cpus.iter_mut().enumerate().find(|(_, share)| share.members.iter().any(|member| member.id == id))?;
        let before = share.members.clone();
        share.members.retain(|member| member.id != id);
        match table::make(&share.contracts(), &self.terms) {
            Ok(table) => Some((index, table)),
            Err(_) => {
                // Rounding depends on the longest period, so that less could fit worse: then the old table stays, with a hole.
                let mut table =
                    table::make(&before.iter().map(|member| member.contract).collect::<Vec<_>>(), &self.terms).ok()?;
                let gone = before.iter().position(|member| member.id == id)?;
                table.windows.retain(|window| window.owner != gone);
                for window in &mut table.windows {
                    window.owner -= usize::from(window.owner > gone);
                }
                Some((index, table))
            }
        }
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
}
