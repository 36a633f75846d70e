//! What the server says when it refuses, warns or tells: an error or notice message, taken apart.

use std::fmt;

/// A five-character SQLSTATE. Unlike the message it is never translated, so code decides by it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState([u8; 5]);

impl SqlState {
    /// A page or file does not pass its checksum.
    pub const DATA_CORRUPTED: Self = Self(*b"XX001");
    /// The thing (a slot, for example) exists already.
    pub const DUPLICATE_OBJECT: Self = Self(*b"42710");
    /// The thing (a slot, for example) does not exist.
    pub const UNDEFINED_OBJECT: Self = Self(*b"42704");
    /// A slot that another connection uses.
    pub const OBJECT_IN_USE: Self = Self(*b"55006");
    /// A slot of another kind, or one that was given up.
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: Self = Self(*b"55000");
    /// A file does not exist; a timeline's history, for example.
    pub const UNDEFINED_FILE: Self = Self(*b"58P01");
    /// The role may not do this.
    pub const INSUFFICIENT_PRIVILEGE: Self = Self(*b"42501");
    /// No `pg_hba.conf` line, no such role, or a role that may not log in.
    pub const INVALID_AUTHORIZATION: Self = Self(*b"28000");
    /// Wrong password.
    pub const INVALID_PASSWORD: Self = Self(*b"28P01");
    /// No such database.
    pub const INVALID_CATALOG_NAME: Self = Self(*b"3D000");
    /// All connections, or all walsenders, are taken.
    pub const TOO_MANY_CONNECTIONS: Self = Self(*b"53300");
    /// Starting up, shutting down or recovering: later it may work.
    pub const CANNOT_CONNECT_NOW: Self = Self(*b"57P03");

    /// The state that these five upper-case letters and digits name; `None` if they are not that.
    pub fn new(text: &[u8]) -> Option<Self> {
        let state: [u8; 5] = text.try_into().ok()?;
        let plain = state.iter().all(|b| b.is_ascii_digit() || b.is_ascii_uppercase());
        plain.then_some(Self(state))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        // Only ASCII ever gets in, so the default is never used.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How much of each text of a message is kept: warnings are collected, and memory is bounded.
const LONGEST_TEXT: usize = 4096;

/// How grave a message of the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// `DEBUG`, `LOG`, `INFO` or `NOTICE`: nothing is wrong.
    Notice,
    /// `WARNING`: the command went on.
    Warning,
    /// `ERROR`: the command failed, the session goes on.
    Error,
    /// `FATAL` or `PANIC`: the session is over.
    Fatal,
}

impl Severity {
    fn of(word: &[u8]) -> Option<Self> {
        match word {
            b"DEBUG" | b"LOG" | b"INFO" | b"NOTICE" => Some(Self::Notice),
            b"WARNING" => Some(Self::Warning),
            b"ERROR" => Some(Self::Error),
            b"FATAL" | b"PANIC" => Some(Self::Fatal),
            _ => None,
        }
    }
}

/// An error, warning or notice that the server sent. Its texts are in the server's language and
/// encoding; bytes that are not UTF-8 are replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerError(Box<Parts>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Parts {
    severity: Severity,
    sqlstate: Option<SqlState>,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
    routine: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)?;
        match &self.0.detail {
            Some(detail) => write!(f, " ({detail})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ServerError {}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        let word = error.parsed_severity().map(|severity| severity.to_string());
        let severity = word.and_then(|word| Severity::of(word.as_bytes()));
        Self(Box::new(Parts {
            severity: severity.unwrap_or(Severity::Error),
            sqlstate: SqlState::new(error.code().code().as_bytes()),
            message: error.message().to_owned(),
            detail: error.detail().map(str::to_owned),
            hint: error.hint().map(str::to_owned),
            routine: error.routine().map(str::to_owned),
        }))
    }
}

impl ServerError {
    /// Reads the fields of an `ErrorResponse` or `NoticeResponse`: a type byte and a zero-terminated
    /// text each, and a zero byte behind the last. `None` if they break off.
    pub(super) fn parse(mut fields: &[u8]) -> Option<Self> {
        let mut parts = Parts::of(Severity::Error, String::new());
        loop {
            let (&kind, rest) = fields.split_first()?;
            if kind == 0 {
                return Some(Self(Box::new(parts)));
            }
            let end = rest.iter().position(|&b| b == 0)?;
            let (value, rest) = rest.split_at(end);
            let text = || String::from_utf8_lossy(value.get(..LONGEST_TEXT).unwrap_or(value)).into_owned();
            match kind {
                // `S` is the same word in the server's language; `V` is there since 9.6.
                b'V' => parts.severity = Severity::of(value).unwrap_or(parts.severity),
                b'C' => parts.sqlstate = SqlState::new(value),
                b'M' => parts.message = text(),
                b'D' => parts.detail = Some(text()),
                b'H' => parts.hint = Some(text()),
                b'R' => parts.routine = Some(text()),
                _ => {}
            }
            fields = rest.get(1..)?;
        }
    }

    /// The plain text that a server sends when it cannot even start a process for the session.
    pub(super) fn plain(text: &str) -> Self {
        Self(Box::new(Parts::of(Severity::Fatal, text.trim_end().to_owned())))
    }

    /// How grave it is.
    pub fn severity(&self) -> Severity {
        self.0.severity
    }

    /// The SQLSTATE, if the server told one.
    pub fn sqlstate(&self) -> Option<SqlState> {
        self.0.sqlstate
    }

    /// Whether this is its SQLSTATE.
    pub fn is(&self, state: SqlState) -> bool {
        self.0.sqlstate == Some(state)
    }

    /// The primary message.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// More about the message, if the server has more to say.
    pub fn detail(&self) -> Option<&str> {
        self.0.detail.as_deref()
    }

    /// What the server advises.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The server's own function that complained: not translated, so it tells apart what shares a
    /// SQLSTATE.
    pub(super) fn routine(&self) -> Option<&str> {
        self.0.routine.as_deref()
    }
}

impl Parts {
    fn of(severity: Severity, message: String) -> Self {
        Self {
            severity,
            sqlstate: None,
            message,
            detail: None,
            hint: None,
            routine: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_taken_apart_by_its_untranslated_fields() {
        let bytes = b"SFATAL\0VFATAL\0C28P01\0Mpassword authentication failed\0Dtried\xFF\0Hfix it\0Fauth.c\0\0";
        let error = ServerError::parse(bytes).unwrap();
        assert_eq!(error.severity(), Severity::Fatal);
        assert!(error.is(SqlState::INVALID_PASSWORD));
        assert_eq!(error.to_string(), "password authentication failed (tried\u{FFFD})");
        assert_eq!(error.hint(), Some("fix it"));
    }

    #[test]
    fn fields_that_break_off_are_no_message() {
        let whole = b"VERROR\0Mno\0\0";
        for end in 0..whole.len() {
            assert_eq!(ServerError::parse(&whole[..end]), None, "{end}");
        }
    }
}
