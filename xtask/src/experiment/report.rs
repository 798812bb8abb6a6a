//! The one-page report.

use super::chart::escaped;
use super::findings::Judged;
use std::fmt::Write;

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:800px;margin:2em auto;padding:0 1em;color:#222}table{border-collapse:collapse;margin:1em 0}\
td,th{border:1px solid #ccc;padding:.2em .6em;text-align:right}td:first-child,th:first-child{text-align:left}.good{color:#1a7a1a}.bad{color:#b01010;font-weight:bold}svg{width:100%}";

/// The report as HTML that stands alone.
pub fn html(name: &str, title: &str, judged: &Judged, files: &[String]) -> String {
    let mut text = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{name}</title><style>{STYLE}</style>\n<h1>{}</h1>\n\
        <p>Made by <code>cargo xtask experiment {name}</code>: QEMU with <code>-icount shift=0,sleep=off</code>, one CPU. One tick is one executed instruction and one nanosecond; \
        every run gives the same numbers.</p>\n<table><tr><th>goal</th><th>found</th><th></th></tr>\n",
        escaped(title)
    );
    for goal in &judged.goals {
        let (class, word) = if goal.kept { ("good", "kept") } else { ("bad", "missed") };
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{}</td><td class=\"{class}\">{word}</td></tr>",
            escaped(&goal.what),
            escaped(&goal.found)
        );
    }
    text += "</table>\n";
    for chart in &judged.charts {
        text += &chart.svg();
    }
    for (heading, rows) in &judged.tables {
        let _ = writeln!(text, "<h2>{}</h2><table>", escaped(heading));
        for (index, row) in rows.iter().enumerate() {
            let cell = if index == 0 { "th" } else { "td" };
            let cells: String = row.iter().map(|value| format!("<{cell}>{}</{cell}>", escaped(value))).collect();
            let _ = writeln!(text, "<tr>{cells}</tr>");
        }
        text += "</table>\n";
    }
    let links: Vec<String> = files.iter().map(|file| format!("<a href=\"{file}\">{file}</a>")).collect();
    let _ = writeln!(text, "<p>Data: {}</p></html>", links.join(", "));
    text
}
