//! `postgresql.auto.conf`: lines of `name = 'value'`, the last one of a name counts.
//!
//! The server reads a setting from one line only, so lines are all we need to tell apart. What is not
//! understood is kept byte for byte; names and comments may have any encoding.

use super::SettingsError;

/// What an earlier recovery may have left behind and a new one must not find. `recovery_min_apply_delay`
/// is among them: it holds back every kind of recovery, not only a standby's.
pub const RECOVERY_SETTINGS: &[&str] = &[
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "recovery_min_apply_delay",
];

/// What ties a standby to its primary. `promote_trigger_file` is of 15 and older.
pub const STANDBY_SETTINGS: &[&str] = &["primary_conninfo", "primary_slot_name", "promote_trigger_file"];

/// Stands above the lines we append, and goes with them.
const MARK: &[u8] = b"# Written by pgp-pitr restore:\n";

/// The text of a `postgresql.auto.conf`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AutoConf {
    text: Vec<u8>,
}

impl AutoConf {
    /// Takes the file's bytes as they are.
    pub fn new(text: impl Into<Vec<u8>>) -> Self {
        Self { text: text.into() }
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.text
    }

    /// Whether a line sets this.
    pub fn sets(&self, name: &str) -> bool {
        self.lines().any(|line| is_setting(line, name))
    }

    /// The value that the last line of this name gives, as the server's lexer reads it. Include files are not
    /// looked into.
    pub fn value(&self, name: &str) -> Option<Vec<u8>> {
        let last = self.lines().filter(|line| is_setting(line, name)).last()?;
        let start = last.iter().position(|b| !b" \t\r".contains(b))? + name.len();
        let rest = last[start..].trim_ascii_start();
        let rest = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii_start();
        Some(match rest.strip_prefix(b"'") {
            Some(quoted) => unquoted(quoted),
            None => {
                let ends = |b: &u8| b.is_ascii_whitespace() || *b == b'#';
                rest[..rest.iter().position(ends).unwrap_or(rest.len())].to_vec()
            }
        })
    }

    /// Drops every line that sets one of these, and our own mark above what an earlier restore appended.
    pub fn remove(&mut self, names: &[&str]) {
        let keep = |line: &&[u8]| *line != MARK && !names.iter().any(|name| is_setting(line, name));
        self.text = self.lines().filter(keep).flatten().copied().collect();
    }

    /// Appends settings, quoted, beneath a comment that says who did. Nothing is appended on an error.
    ///
    /// # Errors
    /// A value with a line feed or a zero byte; a name that is none.
    pub fn append(&mut self, settings: &[(&str, &[u8])]) -> Result<(), SettingsError> {
        let mut block = MARK.to_vec();
        for (name, value) in settings {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'.';
            let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
            if !starts || !name.bytes().all(plain) {
                let name = (*name).to_owned();
                return Err(SettingsError::Name { name });
            }
            block.extend_from_slice(name.as_bytes());
            block.extend_from_slice(b" = ");
            block.extend_from_slice(&quoted(name, value)?);
            block.push(b'\n');
        }
        // A last line without an end would swallow our first.
        if self.text.last().is_some_and(|last| *last != b'\n') {
            self.text.push(b'\n');
        }
        self.text.extend_from_slice(&block);
        Ok(())
    }

    /// The lines, each with its line feed.
    fn lines(&self) -> impl Iterator<Item = &[u8]> {
        self.text.split_inclusive(|b| *b == b'\n')
    }
}

/// Whether the server would read this line as a setting of that name, in any case: a name, and then
/// something that can't go on with it.
fn is_setting(line: &[u8], name: &str) -> bool {
    let start = line.iter().position(|b| !b" \t\r".contains(b)).unwrap_or(line.len());
    let goes_on = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_' || *b == b'.' || !b.is_ascii();
    let word = &line[start..];
    let word = &word[..word.iter().position(|b| !goes_on(b)).unwrap_or(word.len())];
    word.eq_ignore_ascii_case(name.as_bytes())
}

/// A value in quotes, as the server's lexer reads it back: quotes and backslashes are doubled.
///
/// # Errors
/// A line feed or a zero byte; `name` is for the message.
pub fn quoted(name: &str, value: &[u8]) -> Result<Vec<u8>, SettingsError> {
    let name = || name.to_owned();
    let mut text = vec![b'\''];
    for byte in value {
        match byte {
            b'\n' => return Err(SettingsError::LineFeed { name: name() }),
            0 => return Err(SettingsError::ZeroByte { name: name() }),
            b'\'' => text.extend_from_slice(b"''"),
            b'\\' => text.extend_from_slice(br"\\"),
            byte => text.push(*byte),
        }
    }
    text.push(b'\'');
    Ok(text)
}

/// What stands between quotes, up to the closing one: a quote is doubled or escaped, a backslash begins
/// an escape.
fn unquoted(text: &[u8]) -> Vec<u8> {
    let mut value = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\'' if bytes.peek() == Some(&b'\'') => {
                bytes.next();
                value.push(b'\'');
            }
            b'\'' => break,
            b'\\' => match bytes.next() {
                Some(digit @ b'0'..=b'7') => {
                    let mut octal = digit - b'0';
                    for _ in 0..2 {
                        let Some(digit) = bytes.next_if(|b| (b'0'..=b'7').contains(b)) else {
                            break;
                        };
                        octal = octal.wrapping_mul(8).wrapping_add(digit - b'0');
                    }
                    value.push(octal);
                }
                Some(b'b') => value.push(0x08),
                Some(b'f') => value.push(0x0C),
                Some(b'n') => value.push(b'\n'),
                Some(b'r') => value.push(b'\r'),
                Some(b't') => value.push(b'\t'),
                Some(other) => value.push(other),
                None => {}
            },
            other => value.push(other),
        }
    }
    value
}
