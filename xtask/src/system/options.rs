//! `${name}` in a manifest: values from its `[options]` table, or from the command line where that says otherwise.

use super::diagnostic::{Diagnostic, nearest};
use std::collections::BTreeMap;

/// Options by name.
pub type Options = BTreeMap<String, String>;

/// Replaces each `${name}` outside comments. Values stand in TOML strings, so they are escaped as such.
///
/// `given` wins over the manifest's own `[options]`; a name that the manifest does not list is an error either way.
pub fn substitute(source: &str, given: &Options) -> Result<String, Diagnostic> {
    let Some(own) = own(source) else {
        return Ok(source.to_owned());
    };
    if let Some(stranger) = given.keys().find(|name| !own.contains_key(*name)) {
        return Err(Diagnostic::new(0..0, format!("this system has no option `{stranger}`"), hint(stranger, &own)));
    }
    let mut text = String::with_capacity(source.len());
    for line in source.split_inclusive('\n') {
        if line.trim_start().starts_with('#') {
            text.push_str(line);
        } else {
            let start = text.len();
            replace(line, start, &mut text, &own, given)?;
        }
    }
    Ok(text)
}

/// The manifest's own options. None: the file is not TOML, which is reported by the checker, as it reads it again.
pub fn own(source: &str) -> Option<Options> {
    let table = toml::from_str::<toml::Table>(source).ok()?;
    let own = table.get("options").and_then(toml::Value::as_table);
    let texts = own.into_iter().flatten().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    Some(texts.collect())
}

/// Appends `line` with its options replaced.
fn replace(line: &str, start: usize, text: &mut String, own: &Options, given: &Options) -> Result<(), Diagnostic> {
    let mut rest = line;
    while let Some((before, after)) = rest.split_once("${") {
        let Some((name, after)) = after.split_once('}') else {
            break;
        };
        let Some(value) = given.get(name).or_else(|| own.get(name)) else {
            let at = start + before.len();
            return Err(Diagnostic::new(at..at + name.len() + 3, format!("no option `{name}`"), hint(name, own)));
        };
        text.push_str(before);
        // Control characters cannot be typed into a TOML string, and no option has a use for them.
        for c in value.chars().filter(|c| !c.is_control()) {
            if matches!(c, '"' | '\\') {
                text.push('\\');
            }
            text.push(c);
        }
        rest = after;
    }
    text.push_str(rest);
    Ok(())
}

fn hint(name: &str, own: &Options) -> String {
    match nearest(name, own.keys().map(String::as_str)) {
        Some(close) => format!("did you mean `{close}`?"),
        None if own.is_empty() => "it has no [options] at all".to_owned(),
        None => format!("it has {}", own.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "[options]\nmemory = \"1MiB\"\n[x]\n# ${other}\na = \"${memory}\"\n";

    #[test]
    fn defaults_and_given_values_take_their_places() {
        assert!(substitute(SOURCE, &Options::new()).unwrap().ends_with("a = \"1MiB\"\n"));
        let given = Options::from([("memory".to_owned(), "say \"2\"".to_owned())]);
        let text = substitute(SOURCE, &given).unwrap();
        let table: toml::Table = toml::from_str(&text).unwrap();
        assert_eq!(table["x"]["a"].as_str(), Some("say \"2\""));
    }

    #[test]
    fn unknown_options_are_errors() {
        let given = Options::from([("memroy".to_owned(), String::new())]);
        assert_eq!(substitute(SOURCE, &given).unwrap_err().hint, "did you mean `memory`?");
        let wrong = substitute("[options]\n[x]\na = \"${b}\"\n", &Options::new()).unwrap_err();
        assert_eq!(wrong.message, "no option `b`");
        assert_eq!(wrong.hint, "it has no [options] at all");
    }
}
