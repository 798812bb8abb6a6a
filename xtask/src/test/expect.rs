//! What a serial log must say: strings and patterns in order, and what to type in between.

use std::fmt;

use regex_lite::{Regex, RegexBuilder};
use serde::Deserialize;
use serde::de::Error;

/// One step of an `expect` list.
#[derive(Clone, Debug)]
pub enum Step {
    /// The text must appear.
    Contains(String),
    /// A whole line or a part of it must match. `^` and `$` are the ends of a line.
    Matches(Regex),
    /// All of these must appear, in whatever order.
    All(Vec<Step>),
    /// This is typed once everything before it has been seen.
    Send(String),
    /// This command (`top`, `policy`, `vm`, `vm-stats`) is run over the control channel; what it prints is taken into the text, each line
    /// behind `control: `. The steps behind it wait for it to end.
    Control(String),
}

impl Step {
    /// The bytes of `text` in which this is found, from and to.
    pub fn find(&self, text: &str) -> Option<(usize, usize)> {
        match self {
            Step::Contains(part) => text.find(part.as_str()).map(|at| (at, at + part.len())),
            Step::Matches(regex) => regex.find(text).map(|found| (found.start(), found.end())),
            Step::All(steps) => steps.iter().try_fold((usize::MAX, 0), |(from, to), step| {
                let (start, end) = step.find(text)?;
                Some((from.min(start), to.max(end)))
            }),
            Step::Send(_) | Step::Control(_) => None,
        }
    }

    /// Whether it can be judged by whole lines only.
    fn has_pattern(&self) -> bool {
        match self {
            Step::Matches(_) => true,
            Step::All(steps) => steps.iter().any(Step::has_pattern),
            Step::Contains(_) | Step::Send(_) | Step::Control(_) => false,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Contains(text) => write!(f, "{text:?}"),
            Step::Matches(regex) => write!(f, "/{regex}/"),
            Step::All(steps) => {
                f.write_str("all of")?;
                steps.iter().try_for_each(|step| write!(f, " {step}"))
            }
            Step::Send(text) => write!(f, "(typing {text:?})"),
            Step::Control(text) => write!(f, "(running `{text}`)"),
        }
    }
}

impl<'de> Deserialize<'de> for Step {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            regex: Option<String>,
            send: Option<String>,
            all: Option<Vec<Step>>,
            control: Option<String>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Text(String),
            Table(Table),
        }
        match Form::deserialize(from)? {
            Form::Text(text) if text.is_empty() => Err(Error::custom("an empty string is always found")),
            Form::Text(text) => Ok(Step::Contains(text)),
            Form::Table(Table { regex: Some(pattern), send: None, all: None, control: None }) => {
                let regex = RegexBuilder::new(&pattern).multi_line(true).build();
                regex.map(Step::Matches).map_err(|error| Error::custom(format!("{pattern:?}: {error}")))
            }
            Form::Table(Table { regex: None, send: Some(text), all: None, control: None }) => Ok(Step::Send(text)),
            Form::Table(Table { regex: None, send: None, all: None, control: Some(text) }) => Ok(Step::Control(text)),
            Form::Table(Table { regex: None, send: None, all: Some(steps), control: None })
                if !steps.is_empty() && !steps.iter().any(|step| matches!(step, Step::Send(_) | Step::Control(_))) =>
            {
                Ok(Step::All(steps))
            }
            Form::Table(_) => Err(Error::custom("one of `regex`, `send`, `control`, and `all` with something to see")),
        }
    }
}

/// Follows a growing log through a list of steps.
pub struct Matcher<'a> {
    steps: &'a [Step],
    /// Where in the log the next step is looked for.
    from: usize,
    /// Commands whose turn has come.
    commands: Vec<&'a str>,
}

impl<'a> Matcher<'a> {
    /// Starts before the first step.
    pub fn new(steps: &'a [Step]) -> Self {
        Self { steps, from: 0, commands: Vec::new() }
    }

    /// Takes all steps that `text` allows; `text` only grows from call to call. Patterns see `whole_lines` only,
    /// the part of `text` that no later byte can change. Returns what is to be typed.
    pub fn advance(&mut self, text: &str, whole_lines: &str) -> String {
        let mut typed = String::new();
        while let Some((step, rest)) = self.steps.split_first() {
            if let Step::Send(keys) = step {
                typed.push_str(keys);
            } else if let Step::Control(command) = step {
                self.commands.push(command);
            } else {
                let seen = if step.has_pattern() { whole_lines } else { text };
                let Some((_, end)) = seen.get(self.from..).and_then(|seen| step.find(seen)) else {
                    break;
                };
                self.from += end;
            }
            self.steps = rest;
        }
        typed
    }

    /// Commands that are to be run now, in this order.
    pub fn take_commands(&mut self) -> Vec<&'a str> {
        std::mem::take(&mut self.commands)
    }

    /// The step that comes next, or `None` when all were taken.
    pub fn waiting_for(&self) -> Option<&'a Step> {
        self.steps.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct List {
        steps: Vec<Step>,
    }

    fn steps(list: &str) -> Vec<Step> {
        toml::from_str::<List>(&format!("steps = {list}")).unwrap().steps
    }

    #[test]
    fn steps_are_taken_in_order() {
        let steps = steps(r#"["one", { regex = "^t[wv]o$" }, { send = "go\n" }, "three"]"#);
        let mut matcher = Matcher::new(&steps);
        assert_eq!(matcher.advance("one\ntw", "one\n"), "");
        assert!(matches!(matcher.waiting_for(), Some(Step::Matches(_))));
        assert_eq!(matcher.advance("one\ntwo\n", "one\ntwo\n"), "go\n", "typed once");
        assert_eq!(matcher.advance("one\ntwo\nthree", "one\ntwo\n"), "");
        assert!(matcher.waiting_for().is_none());
    }

    #[test]
    fn the_same_line_is_not_taken_twice() {
        let steps = steps(r#"["a", "a"]"#);
        let mut matcher = Matcher::new(&steps);
        matcher.advance("a\n", "a\n");
        assert!(matcher.waiting_for().is_some());
        matcher.advance("a\na\n", "a\na\n");
        assert!(matcher.waiting_for().is_none());
    }

    #[test]
    fn commands_come_in_their_turn() {
        let steps = steps(r#"["up", { control = "vm list" }, "control: one: running", { control = "vm kill one" }]"#);
        let mut matcher = Matcher::new(&steps);
        matcher.advance("u", "");
        assert!(matcher.take_commands().is_empty());
        matcher.advance("up\n", "up\n");
        assert_eq!(matcher.take_commands(), ["vm list"]);
        matcher.advance("up\ncontrol: one: running\n", "up\n");
        assert_eq!(matcher.take_commands(), ["vm kill one"]);
        assert!(matcher.waiting_for().is_none());
    }

    #[test]
    fn what_comes_in_any_order_is_all_seen_before_the_next() {
        let steps = steps(r#"[{ all = ["a", { regex = "^b$" }] }, "c"]"#);
        for (text, left) in [("a\nc\n", true), ("b\nc\na\n", true), ("b\na\nc\n", false), ("a\nb\nc\n", false)] {
            let mut matcher = Matcher::new(&steps);
            matcher.advance(text, text);
            assert_eq!(matcher.waiting_for().is_some(), left, "{text}");
        }
    }

    #[test]
    fn wrong_lists_are_refused() {
        for list in [
            r#"[{ all = [] }]"#,
            r#"[{ all = [{ send = "a" }] }]"#,
            r#"[""]"#,
            r#"[{ regex = "(" }]"#,
            r#"[{}]"#,
            r#"[{ regex = "a", send = "b" }]"#,
            r#"[{ send = "a", control = "b" }]"#,
            r#"[{ x = "a" }]"#,
        ] {
            assert!(toml::from_str::<List>(&format!("steps = {list}")).is_err(), "{list}");
        }
    }
}
