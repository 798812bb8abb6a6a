//! Times between two lines of a log, by the stamps that these lines carry.

use serde::Deserialize;

/// Two lines and how many seconds may lie between them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Apart {
    /// A part of the first line.
    from: String,
    /// A part of a later line.
    to: String,
    /// Least and most seconds.
    seconds: [f64; 2],
}

impl Apart {
    /// What is wrong with `text`, if anything.
    pub fn complaint(&self, text: &str) -> Option<String> {
        let mut lines = text.lines();
        let mut stamp = |part: &str| {
            let line = lines.find(|line| line.contains(part)).ok_or_else(|| format!("does not say {part:?}"))?;
            seconds(line).ok_or_else(|| format!("gives no time for {part:?}: {line:?}"))
        };
        let times = stamp(&self.from).and_then(|from| Ok((from, stamp(&self.to)?)));
        let [least, most] = self.seconds;
        match times {
            Err(why) => Some(why),
            Ok((from, to)) if (least..=most).contains(&(to - from)) => None,
            Ok((from, to)) => {
                let Apart { from: first, to: second, .. } = self;
                Some(format!("has {:.6} s between {first:?} and {second:?}, not {least} to {most}", to - from))
            }
        }
    }
}

/// The first stamp of a line, `[   12.345678] `.
fn seconds(line: &str) -> Option<f64> {
    line.split_once('[')?.1.split_once(']')?.0.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_between_two_lines_is_judged() {
        let apart = Apart { from: "begin".into(), to: "end".into(), seconds: [9.9, 10.1] };
        assert_eq!(apart.complaint("[    1.000000] begin\nx\n[   11.050000] end\n"), None);
        for (text, why) in [
            ("[    1.000000] begin\n[   11.200000] end\n", "10.2"),
            ("[    1.000000] end\n[   11.000000] begin\n", "does not say"),
            ("begin\n[   11.000000] end\n", "no time"),
        ] {
            assert!(apart.complaint(text).unwrap().contains(why), "{text}");
        }
    }
}
