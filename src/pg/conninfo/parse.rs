//! Connection strings: a URI, `key=value` pairs, or the bare name of a database.

use super::error::{ConnInfoError, Origin};
use super::settings::Settings;
use super::uri;

/// Reads a connection string; as psql's, one without `=` that is not a URI is a database's name.
pub(super) fn connection_string(text: &str) -> Result<Settings, ConnInfoError> {
    if let Some(rest) = uri::after_scheme(text) {
        return uri::parse(text, rest);
    }
    // A mistyped scheme would make the whole URI, password included, a database's name or a keyword.
    let head = text.split_once('=').map_or(text, |(head, _)| head);
    let scheme = ["postgres:", "postgresql:"].iter().any(|scheme| {
        let start = head.get(..scheme.len());
        start.is_some_and(|start| start.eq_ignore_ascii_case(scheme))
    });
    let credentials = head.split_once('@').is_some_and(|(before, _)| before.contains(':'));
    if head.contains("://") || scheme || credentials {
        return Err(ConnInfoError::Scheme);
    }
    if text.contains('=') {
        return pairs(text);
    }
    let mut settings = Settings::default();
    if !text.is_empty() {
        settings.replace("dbname", text, Origin::ConnInfo, None)?;
    }
    Ok(settings)
}

/// C's `isspace`, which also takes the vertical tab.
pub(super) fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0B' | '\x0C' | '\r')
}

/// The characters of a text, with a way to say where we are.
struct Cursor<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    at: usize,
}

impl Cursor<'_> {
    fn peek(&mut self) -> Option<char> {
        self.rest.peek().copied()
    }

    fn next(&mut self) -> Option<char> {
        self.at += 1;
        self.rest.next()
    }

    fn skip_blanks(&mut self) {
        while self.peek().is_some_and(is_space) {
            self.next();
        }
    }
}

fn pairs(text: &str) -> Result<Settings, ConnInfoError> {
    let mut settings = Settings::default();
    let mut cursor = Cursor {
        rest: text.chars().peekable(),
        at: 1,
    };
    loop {
        cursor.skip_blanks();
        if cursor.peek().is_none() {
            return Ok(settings);
        }
        let at = cursor.at;
        let mut name = String::new();
        while let Some(c) = cursor.peek().filter(|c| *c != '=' && !is_space(*c)) {
            name.push(c);
            cursor.next();
        }
        cursor.skip_blanks();
        if cursor.next() != Some('=') {
            return Err(ConnInfoError::MissingEquals { at });
        }
        cursor.skip_blanks();
        let value = if cursor.peek() == Some('\'') {
            quoted(&mut cursor)?
        } else {
            bare(&mut cursor)
        };
        settings.replace(&name, value, Origin::ConnInfo, Some(at))?;
    }
}

/// A value up to the next blank; a backslash takes the character after it as it is.
fn bare(cursor: &mut Cursor<'_>) -> String {
    let mut value = String::new();
    while let Some(c) = cursor.next() {
        match c {
            c if is_space(c) => break,
            '\\' => value.extend(cursor.next()),
            c => value.push(c),
        }
    }
    value
}

fn quoted(cursor: &mut Cursor<'_>) -> Result<String, ConnInfoError> {
    let at = cursor.at;
    cursor.next();
    let mut value = String::new();
    loop {
        match cursor.next() {
            None => return Err(ConnInfoError::UnterminatedQuote { at }),
            Some('\'') => return Ok(value),
            Some('\\') => value.extend(cursor.next()),
            Some(c) => value.push(c),
        }
    }
}

/// Writes a value so that [`connection_string`] reads it back.
pub(super) fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@%+*[]".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    let escaped = value.replace('\\', "\\\\").replace('\'', "\\'");
    format!("'{escaped}'")
}
