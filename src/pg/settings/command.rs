//! Commands that the server runs: `restore_command`, `archive_command` and their like. The server replaces
//! `%p`, `%f` and others first, then gives the line to `sh -c`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::SettingsError;

/// A word of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word<'a> {
    /// Must reach the program exactly as it is.
    Exact(&'a OsStr),
    /// `%f`, the name of a WAL file, for the server to fill in.
    WalFile,
    /// `%p`, the path to read it from or write it to, relative to the data directory.
    WalPath,
}

/// The value of a command setting, before it is quoted for the file. What the server fills in needs no
/// quotes: its names of WAL files are plain, and its paths relative.
///
/// # Errors
/// A zero byte can be given to no program.
pub fn server_command(words: &[Word<'_>]) -> Result<Vec<u8>, SettingsError> {
    let mut line = Vec::new();
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            line.push(b' ');
        }
        match word {
            Word::WalFile => line.extend_from_slice(b"%f"),
            Word::WalPath => line.extend_from_slice(b"%p"),
            Word::Exact(text) => {
                // The server reads "%%" as "%" within quotes too; a lone "%" is an error from 16 on.
                for byte in shell_word(text)? {
                    line.extend_from_slice(if byte == b'%' {
                        b"%%"
                    } else {
                        std::slice::from_ref(&byte)
                    });
                }
            }
        }
    }
    Ok(line)
}

/// A word of a command line as people type it; bytes that are no text are shown as such.
pub fn shell_text(text: &OsStr) -> String {
    // A zero byte can stand in no path.
    String::from_utf8_lossy(&shell_word(text).unwrap_or_default()).into_owned()
}

/// A word as the shell reads it back; plain where it can be, else in single quotes.
///
/// # Errors
/// A zero byte can be given to no program.
pub fn shell_word(text: &OsStr) -> Result<Vec<u8>, SettingsError> {
    let bytes = text.as_bytes();
    if bytes.contains(&0) {
        let name = "a word of a command".to_owned();
        return Err(SettingsError::ZeroByte { name });
    }
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"_-./:,@%+".contains(b);
    if !bytes.is_empty() && bytes.iter().all(plain) {
        return Ok(bytes.to_vec());
    }
    let mut word = vec![b'\''];
    for byte in bytes {
        match byte {
            b'\'' => word.extend_from_slice(br"'\''"),
            byte => word.push(*byte),
        }
    }
    word.push(b'\'');
    Ok(word)
}

/// The words of a command setting as they reach the program; `%f` and its like stay as they are. `None`
/// for anything but one plain command: variables, pipes, redirections, an open quote.
pub fn command_words(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut quote = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match (quote, byte) {
            (Some(end), byte) if byte == end => quote = None,
            (Some(b'"') | None, b'$' | b'`') => return None,
            (None, b'\'' | b'"') => {
                quote = Some(byte);
                word.get_or_insert_default();
            }
            (None, b'\\') => word.get_or_insert_default().push(bytes.next()?),
            (Some(b'"'), b'\\') => {
                let next = bytes.next()?;
                let word = word.get_or_insert_default();
                if !b"\"\\$`".contains(&next) {
                    word.push(b'\\');
                }
                word.push(next);
            }
            (None, b' ' | b'\t') => words.extend(word.take()),
            (None, b';' | b'|' | b'&' | b'<' | b'>' | b'(' | b')' | b'\n' | b'*' | b'?' | b'[' | b'~' | b'#') => {
                return None;
            }
            (_, byte) => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    let words = words.into_iter().map(|word| without_escapes(&word)).collect();
    quote.is_none().then_some(words)
}

/// The server reads "%%" as "%".
fn without_escapes(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut bytes = word.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            bytes.next_if_eq(&b'%');
        }
        plain.push(byte);
    }
    plain
}
