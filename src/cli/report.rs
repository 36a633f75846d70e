//! What people read: errors, warnings and notes on stderr, answers on stdout.

use std::io::{self, Write};

use crate::error::{Class, Explain, Failure};

/// Writes an error as one line, and a hint as another; with `verbose`, each cause on a line as well.
pub fn failure(program: &str, failure: &Failure, verbose: bool) {
    let mut text = format!("{program}: error: {}\n", failure.one_line());
    if verbose {
        for cause in failure.causes() {
            text.push_str(&format!("  caused by: {}\n", cause.replace('\n', " ")));
        }
    }
    if let Some(hint) = failure.hint() {
        text.push_str(&format!("hint: {hint}\n"));
    }
    to_stderr(&text);
}

/// Writes a warning on one line.
pub fn warning(program: &str, text: &str) {
    to_stderr(&format!("{program}: warning: {text}\n"));
}

/// Writes a note on one line.
pub fn note(text: &str) {
    to_stderr(&format!("{text}\n"));
}

/// An answer that nobody took.
#[derive(Debug, thiserror::Error)]
#[error("could not write the answer to standard output")]
pub struct AnswerError(#[source] io::Error);

impl Explain for AnswerError {
    fn class(&self) -> Class {
        Class::Failed
    }
}

/// Writes an answer to stdout.
///
/// # Errors
/// When it can't be written. A reader that has gone away has read enough.
pub fn answer(text: &str) -> Result<(), AnswerError> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(AnswerError(error)),
        _ => Ok(()),
    }
}

/// The same without what would begin a line or speak to the terminal: names are chosen by whoever may create things.
pub fn printable(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    for character in text.chars() {
        // Those that turn the direction of writing hide what stands there, too.
        let is_unseen =
            matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        match character.is_control() || is_unseen {
            true => plain.extend(character.escape_default()),
            false => plain.push(character),
        }
    }
    plain
}

fn to_stderr(text: &str) {
    let text: Vec<String> = text.split('\n').map(printable).collect();
    let text = text.join("\n");
    // With stderr gone there is nobody left to tell.
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_writes_no_line_of_its_own() {
        assert_eq!(printable("täglich \"x\""), "täglich \"x\"");
        assert_eq!(printable("a\n  rm -rf /\u{1b}[2K"), "a\\n  rm -rf /\\u{1b}[2K");
    }
}
