//! Who may call whom: calls go strictly uphill, on one CPU, to tasks that serve.

use super::super::manifest::{Name, Task};
use super::Checker;
use std::collections::BTreeSet;

impl<'a> Checker<'a> {
    pub(super) fn calls(&mut self) {
        let manifest = self.manifest;
        let mut in_cycles = BTreeSet::new();
        for (name, task) in &manifest.tasks {
            for server in &task.get_ref().calls {
                if let Some(path) = self.path(server.get_ref(), name.get_ref()) {
                    in_cycles.insert((name.get_ref().as_str(), server.get_ref().as_str()));
                    // Every call of the cycle would be reported; the alphabetically first caller speaks for it.
                    if path.iter().all(|other| *other >= name.get_ref().as_str()) {
                        let cycle = format!("{} → {}", name.get_ref(), path.join(" → "));
                        let hint =
                            "calls go strictly uphill, so no task may reach itself; answer by a signal or a ring";
                        self.report(server.span(), format!("calls form a cycle: {cycle}"), hint);
                    }
                }
            }
        }
        for (name, task) in &manifest.tasks {
            for server in &task.get_ref().calls {
                let edge = (name.get_ref().as_str(), server.get_ref().as_str());
                if let Some(target) = self.lookup(server.get_ref())
                    && !in_cycles.contains(&edge)
                {
                    self.call(name, task.get_ref(), server, target);
                }
            }
        }
    }

    fn call(&mut self, name: &Name, task: &Task, server: &Name, target: &Task) {
        let (from, to) = (name.get_ref(), server.get_ref());
        let (low, high) = (*task.level.get_ref(), *target.level.get_ref());
        if low >= high {
            let message = format!("`{from}` on level {low} calls `{to}` on level {high}");
            let hint = format!("calls go strictly uphill: put `{to}` above level {low} or `{from}` below level {high}");
            self.report(server.span(), message, hint);
        }
        if !target.serves {
            let hint = format!("add `serves = true` to [tasks.{to}], or remove the call");
            self.report(server.span(), format!("`{from}` calls `{to}`, which serves nothing"), hint);
        }
        let (here, there) = (*task.cpu.get_ref(), *target.cpu.get_ref());
        if here != there {
            let hint = "a call stays on its CPU: give the server an instance there, or use a ring and a signal";
            self.report(server.span(), format!("`{from}` on CPU {here} calls `{to}` on CPU {there}"), hint);
        }
    }

    /// Tasks passed on the way from `from` along calls to `goal`, both ends included; none if there is no way.
    fn path(&self, from: &'a str, goal: &str) -> Option<Vec<&'a str>> {
        let mut seen = BTreeSet::new();
        let mut stack = vec![vec![from]];
        while let Some(path) = stack.pop() {
            let last = *path.last()?;
            if last == goal {
                return Some(path);
            }
            if !seen.insert(last) {
                continue;
            }
            for next in self.lookup(last).map_or(&[][..], |task| &task.calls) {
                let mut longer = path.clone();
                longer.push(next.get_ref());
                stack.push(longer);
            }
        }
        None
    }
}
