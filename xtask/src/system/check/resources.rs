//! Memory, ports, interrupts, device memory, files: sizes are sane and nothing has two owners.

use super::super::manifest::{Name, Task};
use super::super::units::Size;
use super::Checker;
use std::ops::Range;
use toml::Spanned;

/// Bytes of the smallest page.
const PAGE: u64 = 4096;
/// Most memory in blocks: its frames of 2 MiB, twice, and an odd MiB in small frames, fit into the largest table.
const MOST_BLOCKS: u64 = 60 << 30;
/// What blocks of memory are measured in.
const MIB: u64 = 1 << 20;
/// Interrupt sources end here: more I/O APIC inputs than any machine has.
const GSI_LIMIT: u32 = 1024;
/// Bits of a notification.
const BITS: usize = 64;

/// First and last port of `"0x3f8-0x3ff"` or `"0x70"`, numbers in hexadecimal or decimal.
pub fn parse_ports(text: &str) -> Option<(u16, u16)> {
    let number = |text: &str| match text.trim().strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16).ok(),
        None => text.trim().parse().ok(),
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    (first <= last).then_some((first, last))
}

/// Something that one task owns alone: an interval, whose it is and where that stands.
struct Owned<'a> {
    start: u64,
    end: u64,
    task: &'a str,
    span: Range<usize>,
}

impl<'a> Checker<'a> {
    pub(super) fn resources(&mut self) {
        let manifest = self.manifest;
        for (name, region) in &manifest.regions {
            self.pages(&region.size, &format!("region `{}`", name.get_ref()));
        }
        let mut needed = 0_u64;
        for (name, task) in &manifest.tasks {
            let (name, task) = (name.get_ref(), task.get_ref());
            for (size, what) in [(&task.memory.heap, "heap"), (&task.memory.stack, "stack")] {
                if let Some(size) = size {
                    self.pages(size, &format!("{what} of `{name}`"));
                    needed = needed.saturating_add(size.get_ref().0);
                }
            }
            for (label, size) in &task.untyped {
                let bytes = size.get_ref().0;
                needed = needed.saturating_add(bytes);
                if !bytes.is_power_of_two() || bytes < PAGE {
                    let up = bytes.max(PAGE).checked_next_power_of_two().map(Size);
                    let up = up.map_or("make it smaller".to_owned(), |up| format!("the next one is {up}"));
                    let message = format!("untyped memory `{}` of {}", label.get_ref(), size.get_ref());
                    self.report(size.span(), message, format!("sizes are powers of two, a page or more; {up}"));
                }
            }
            for (label, size) in &task.blocks {
                let bytes = size.get_ref().0;
                needed = needed.saturating_add(bytes);
                if bytes == 0 || !bytes.is_multiple_of(MIB) {
                    let message = format!("blocks `{}` of {}", label.get_ref(), size.get_ref());
                    self.report(size.span(), message, "sizes are whole MiB, at least one");
                } else if bytes > MOST_BLOCKS {
                    let message = format!("blocks `{}` of {}", label.get_ref(), size.get_ref());
                    let hint = format!("a capability table has slots for the frames of {}", Size(MOST_BLOCKS));
                    self.report(size.span(), message, hint);
                }
            }
            self.references(task);
        }
        if let Some(memory) = &manifest.system.memory
            && memory.get_ref().0 < needed
        {
            let hint = format!("the tasks' heaps, stacks and untyped memory add up to {}", Size(needed));
            self.report(memory.span(), format!("{} of memory is too little", memory.get_ref()), hint);
        }
        self.devices();
    }

    /// A size that is mapped: whole pages, more than none.
    fn pages(&mut self, size: &Spanned<Size>, what: &str) {
        let bytes = size.get_ref().0;
        if bytes == 0 || !bytes.is_multiple_of(PAGE) {
            let hint = "sizes are whole pages of 4 KiB, at least one";
            self.report(size.span(), format!("{what}: {}", size.get_ref()), hint);
        }
    }

    /// Regions and files that are not declared.
    fn references(&mut self, task: &'a Task) {
        for region in task.maps.keys() {
            if !self.manifest.regions.contains_key(region.get_ref().as_str()) {
                let hint = format!("add [regions.{}] with its size", region.get_ref());
                self.report(region.span(), format!("no region `{}`", region.get_ref()), hint);
            }
        }
        for file in &task.files {
            if !self.manifest.files.contains_key(file.get_ref().as_str()) {
                let hint = format!("add `{} = \"PATH\"` to [files]", file.get_ref());
                self.report(file.span(), format!("no file `{}`", file.get_ref()), hint);
            }
        }
    }

    /// Ports, interrupts and device memory; each belongs to one task.
    fn devices(&mut self) {
        let (mut ports, mut lines, mut memory) = (Vec::new(), Vec::new(), Vec::new());
        for (name, task) in &self.manifest.tasks {
            let (task_name, task) = (name.get_ref().as_str(), task.get_ref());
            for range in task.ports.values() {
                match parse_ports(range.get_ref()) {
                    Some((first, last)) => ports.push(Owned {
                        start: first.into(),
                        end: u64::from(last) + 1,
                        task: task_name,
                        span: range.span(),
                    }),
                    None => {
                        let hint = "write \"0x3f8-0x3ff\" or \"0x70\", at most 0xffff";
                        self.report(range.span(), format!("bad port range `{}`", range.get_ref()), hint);
                    }
                }
            }
            for line in task.interrupts.values() {
                let gsi = line.get_ref().gsi;
                if gsi >= GSI_LIMIT {
                    self.report(line.span(), format!("interrupt {gsi}"), format!("numbers are 0 to {}", GSI_LIMIT - 1));
                }
                let (start, end) = (gsi.into(), u64::from(gsi) + 1);
                lines.push(Owned { start, end, task: task_name, span: line.span() });
            }
            for device in task.device_memory.values() {
                let (start, size) = (device.get_ref().address, device.get_ref().size.0);
                let whole = start.is_multiple_of(PAGE) && size.is_multiple_of(PAGE) && size != 0;
                match start.checked_add(size).filter(|_| whole) {
                    Some(end) => memory.push(Owned { start, end, task: task_name, span: device.span() }),
                    None => {
                        let hint = "address and size are multiples of 4 KiB, below 2^64";
                        self.report(device.span(), "bad range of device memory", hint);
                    }
                }
            }
            self.notification(name, task);
        }
        self.exclusive(ports, "these ports");
        self.exclusive(lines, "this interrupt");
        self.exclusive(memory, "this device memory");
    }

    /// A task's notification has a bit for each interrupt and each task that signals it.
    fn notification(&mut self, name: &Name, task: &Task) {
        let signallers =
            self.manifest.tasks.values().flat_map(|other| &other.get_ref().signals).filter(|to| *to == name).count();
        let bits = task.interrupts.len() + signallers;
        if bits > BITS {
            let hint = format!("a notification has {BITS} bits, one for each interrupt and each task that signals");
            self.report(name.span(), format!("`{}` needs {bits} bits", name.get_ref()), hint);
        }
    }

    fn exclusive(&mut self, mut owned: Vec<Owned<'_>>, what: &str) {
        owned.sort_by_key(|range| (range.start, range.end, range.span.start));
        for pair in owned.windows(2) {
            let [first, second] = pair else { continue };
            if second.start < first.end {
                let (mine, other) = (second.task, first.task);
                let message = if mine == other {
                    format!("`{mine}` claims {what} twice")
                } else {
                    format!("`{mine}` and `{other}` both claim {what}")
                };
                self.report(second.span.clone(), message, "each belongs to one task; the others call it");
            }
        }
    }
}
