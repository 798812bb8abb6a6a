//! `Untyped`.

use moira_lab::Lab;

/// All experiments.
pub fn all(lab: &mut Lab) {
    lab.experiment("untyped-info", |lab, check| {
        if let Some(info) = check.good("info", lab.arena.info()) {
            check.equal("bits", info.size_bits, moira_lab::ARENA_BITS);
            check.equal("free", info.free, 1 << moira_lab::ARENA_BITS);
            check.equal("kind", info.kind, 1);
        }
    });
}
