//! Words of Dockerfiles: quotes, escapes, variables, lines that go on.

use std::collections::BTreeMap;

/// One word of a shell, whatever is in the text; plain words stay as they are.
pub(super) fn quoted(text: &str) -> String {
    let plain = |it: char| it.is_ascii_alphanumeric() || "-_./:=@%+,".contains(it);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A text without its quotes.
pub(super) fn unquoted(text: &str) -> String {
    let text = text.trim();
    split(text).map_or_else(|_| text.to_owned(), |words| words.join(" "))
}

/// One line of a command that goes over several, without the comments between them. What is in no continued line stays as it is.
pub(super) fn joined(text: &str, escape: char) -> String {
    let mut out = String::new();
    let mut goes_on = false;
    for line in text.lines() {
        if goes_on && (line.trim_start().starts_with('#') || line.trim().is_empty()) {
            continue;
        }
        match line.trim_end().strip_suffix(escape) {
            Some(begin) => {
                out.push_str(begin);
                goes_on = true;
            }
            None => {
                out.push_str(line);
                out.push('\n');
                goes_on = false;
            }
        }
    }
    out.trim().to_owned()
}

/// Names and values of ENV and ARG. ENV has an old form without `=`, whose value is the rest of the line; an ARG may have no value.
pub(super) fn pairs(text: &str, is_arg: bool) -> Result<Vec<(String, Option<String>)>, String> {
    let text = text.trim();
    let first = text.split_whitespace().next().unwrap_or_default();
    if !is_arg && !first.contains('=') {
        let (name, value) = text
            .split_once(char::is_whitespace)
            .ok_or_else(|| format!("`{text}` has no value"))?;
        return Ok(vec![(name.to_owned(), Some(unquoted_value(value.trim())))]);
    }
    let mut pairs = Vec::new();
    for word in split(text)? {
        match word.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                pairs.push((name.to_owned(), Some(value.to_owned())));
            }
            None if is_arg => pairs.push((word, None)),
            _ => return Err(format!("`{word}` is not a name and a value")),
        }
    }
    Ok(pairs)
}

/// The old form of ENV keeps its spaces, but not its quotes.
fn unquoted_value(value: &str) -> String {
    match split(value) {
        Ok(words) if value.contains(['"', '\'', '\\']) => words.join(" "),
        _ => value.to_owned(),
    }
}

/// Words as a shell has them. `\$` and `'$'` stay escaped: the server completes variables later.
fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = text.chars();
    let mut quote = None;
    while let Some(it) = characters.next() {
        let place =
            |word: &mut Option<String>, text: &str| word.get_or_insert_default().push_str(text);
        match (quote, it) {
            (Some(open), it) if it == open => quote = None,
            (Some('\''), '$') => place(&mut word, r"\$"),
            (Some('\''), it) => place(&mut word, it.encode_utf8(&mut [0; 4])),
            (None, '\'' | '"') => {
                quote = Some(it);
                place(&mut word, "");
            }
            (_, '\\') => match characters.next() {
                Some('$') => place(&mut word, r"\$"),
                Some(next) if quote.is_none() || matches!(next, '"' | '\\' | '`') => {
                    place(&mut word, next.encode_utf8(&mut [0; 4]));
                }
                Some(next) => place(&mut word, &format!("\\{next}")),
                None => place(&mut word, "\\"),
            },
            (None, it) if it.is_whitespace() => words.extend(word.take()),
            (_, it) => place(&mut word, it.encode_utf8(&mut [0; 4])),
        }
    }
    if quote.is_some() {
        return Err(format!("a quote is not closed: {text}"));
    }
    words.extend(word);
    Ok(words)
}

/// `$NAME`, `${NAME}` and `${NAME:-value}` replaced; what is not known is empty.
pub(super) fn expanded(text: &str, values: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text.trim_matches('"');
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let (reference, next) = match after.strip_prefix('{').and_then(|it| it.split_once('}')) {
            Some(found) => found,
            None => {
                let is_name = |it: char| it.is_ascii_alphanumeric() || it == '_';
                let end = after.find(|it| !is_name(it)).unwrap_or(after.len());
                after.split_at(end)
            }
        };
        let (name, default) = reference.split_once(":-").unwrap_or((reference, ""));
        let value = values
            .get(name)
            .map(String::as_str)
            .filter(|it| !it.is_empty());
        out.push_str(value.unwrap_or(default));
        rest = next;
    }
    out.push_str(rest);
    out
}
