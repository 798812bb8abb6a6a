//! What a person reads when a manifest is wrong: the file, the line, the text of that line, and a hint.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One finding, tied to a stretch of the manifest's text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnostic {
    /// Bytes of the source that the finding is about.
    pub span: Range<usize>,
    /// What is wrong, as one sentence without a full stop.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl Diagnostic {
    /// A finding at `span`.
    pub fn new(span: Range<usize>, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Diagnostic { span, message: message.into(), hint: hint.into() }
    }
}

/// All findings of one manifest; never empty where it is returned as an error.
#[derive(Debug)]
pub struct Report {
    path: PathBuf,
    source: String,
    findings: Vec<Diagnostic>,
}

impl Report {
    /// Findings in the text `source` of the file `path`, ordered by where they stand.
    pub fn new(path: &Path, source: &str, mut findings: Vec<Diagnostic>) -> Self {
        findings.sort_by_key(|finding| (finding.span.start, finding.span.end));
        Report { path: path.to_path_buf(), source: source.to_owned(), findings }
    }

    /// The findings themselves.
    #[cfg(test)]
    pub fn findings(&self) -> &[Diagnostic] {
        &self.findings
    }

    /// The line, counted from 1, on which `finding` starts.
    #[cfg(test)]
    pub fn line(&self, finding: &Diagnostic) -> usize {
        self.locate(finding).0
    }

    /// Line (from 1), column (bytes from 0) and the text of that line.
    fn locate(&self, finding: &Diagnostic) -> (usize, usize, &str) {
        let start = finding.span.start.min(self.source.len());
        let before = self.source.get(..start).unwrap_or(&self.source);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let number = before.matches('\n').count() + 1;
        let rest = self.source.get(line_start..).unwrap_or("");
        let text = rest.lines().next().unwrap_or("");
        (number, start - line_start, text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.findings.iter().enumerate() {
            if index > 0 {
                writeln!(out)?;
            }
            let (number, column, text) = self.locate(finding);
            let gutter = " ".repeat(number.to_string().len());
            let length = finding.span.len().clamp(1, text.len().saturating_sub(column).max(1));
            // Tabs would put the marks in the wrong place on a terminal.
            let text = text.replace('\t', " ");
            writeln!(out, "{}:{}: {}", self.path.display(), number, finding.message)?;
            writeln!(out, "{gutter} |")?;
            writeln!(out, "{number} | {text}")?;
            writeln!(out, "{gutter} | {}{}", " ".repeat(column), "^".repeat(length))?;
            write!(out, "{gutter} = {}", finding.hint)?;
            writeln!(out)?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

/// The one of `known` that `word` was most likely meant to be, if any is close.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len() / 4)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, one row at a time.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(l != *r);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(row[j + 1] + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shows_file_line_text_and_mark() {
        let source = "[system]\nname = \"x\"\nlevle = 3\n";
        let start = source.find("levle").unwrap();
        let finding = Diagnostic::new(start..start + 5, "unknown key `levle`", "did you mean `level`?");
        let report = Report::new(Path::new("a.toml"), source, vec![finding]);
        assert_eq!(
            report.to_string(),
            "a.toml:3: unknown key `levle`\n  |\n3 | levle = 3\n  | ^^^^^\n  = did you mean `level`?\n"
        );
    }

    #[test]
    fn survives_spans_outside_the_text() {
        let report = Report::new(Path::new("a"), "x", vec![Diagnostic::new(9..99, "m", "h")]);
        assert!(report.to_string().starts_with("a:1: m"));
    }

    #[test]
    fn nearest_finds_a_typing_error_and_no_stranger() {
        assert_eq!(nearest("levle", ["level", "image"]), Some("level"));
        assert_eq!(nearest("zebra", ["level", "image"]), None);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
