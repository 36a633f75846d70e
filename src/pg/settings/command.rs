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
