//! Slack in windows, for a CPU without a scheduler: what is free is handed out in turns.

use crate::{
    contract::{Contract, Window},
    table::Table,
};
use alloc::vec::Vec;

/// Gives the gaps of a table to the contracts that take slack, in turns of at most `quantum` and at least `shortest`. Answers a
/// contract that would never run: nothing is promised to it and no turn came to it.
pub fn fill(table: &mut Table, contracts: &[Contract], quantum: u64, shortest: u64, most: usize) -> Option<usize> {
    let takers = contracts.iter().enumerate().filter(|(_, contract)| contract.extra || !contract.promises());
    let takers: Vec<usize> = takers.map(|(owner, _)| owner).collect();
    let gaps: Vec<(u64, u64)> = table.gaps().collect();
    let shortest = shortest.max(1);
    let mut turn = 0;
    for (start, end) in gaps {
        let Some(count) = u64::try_from(takers.len()).ok().filter(|count| *count > 0) else {
            break;
        };
        // Turns are for those that share.
        let longest = if count == 1 { end - start } else { quantum };
        let fair = ((end - start) / count).min(longest).max(shortest);
        let mut at = start;
        while end - at >= shortest && table.windows.len() < most {
            let to = if end - at < fair + shortest { end } else { at + fair };
            if let Some(owner) = takers.get(turn % takers.len()) {
                table.windows.push(Window { start: at, end: to, owner: *owner });
            }
            turn += 1;
            at = to;
        }
    }
    table.windows.sort_unstable_by_key(|window| window.start);
    takers.into_iter().find(|owner| !table.windows.iter().any(|window| window.owner == *owner))
}
