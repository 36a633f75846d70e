//! What went wrong, seen from outside: a coarse class, an exit code, one line and a hint.
//!
//! Each module has its own error enum and says through [`Explain`] what its variants mean to a
//! caller. [`Failure`] carries any of them up to the command line unchanged.

use std::error::Error;
use std::fmt;

/// What must happen next. Coarse: a new class only when somebody would act differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// The repository has been read and has answered that the thing does not exist.
    NotFound,
    /// Failed for a reason that fits no other class (a local disk that is full, an unreadable file).
    Failed,
    /// Wrong command line or wrong settings.
    Usage,
    /// Nothing is broken, but what was asked can't be had.
    OutOfReach,
    /// An object or file failed its checksum.
    Damaged,
    /// Store or server out of reach, refused us, or timed out.
    Unavailable,
}

impl Class {
    /// Every class, for tables and tests.
    pub const ALL: [Self; 6] = [
        Self::NotFound,
        Self::Failed,
        Self::Usage,
        Self::OutOfReach,
        Self::Damaged,
        Self::Unavailable,
    ];

    /// The code of the class itself (CONTRACT 3), before the caller is considered.
    pub const fn code(self) -> u8 {
        match self {
            Self::NotFound | Self::Failed => 1,
            Self::Usage => 2,
            Self::OutOfReach => 3,
            Self::Damaged => 4,
            Self::Unavailable => 5,
        }
    }
}

/// Who reads the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Caller {
    /// A person or a script (`pgp-pitr`).
    Person,
    /// PostgreSQL's archiver (`pgp-archive`).
    ArchiveCommand,
    /// PostgreSQL in targeted or crash-proof recovery: `recovery.signal` is there (`pgp-restore`).
    RecoverySignal,
    /// `pgp-restore` on a standby, or called by a person.
    RestoreCommand,
}

/// The one table of exit codes (`docs/exit-codes.md` is tested against it).
pub const fn exit_code(caller: Caller, class: Class) -> u8 {
    match (caller, class) {
        // 1..=125 means "no such file" and recovery ENDS there. Nothing but the repository's own
        // answer may end recovery, so all else goes above 125, and clear of 128 + signal.
        (Caller::RecoverySignal, Class::NotFound) => Class::NotFound.code(),
        (Caller::RecoverySignal, class) => 200 + class.code(),
        // The archiver keeps the segment and retries on 1..=125; above, its process dies. A standby
        // asks again on 1..=125 and stops above.
        (Caller::Person | Caller::ArchiveCommand | Caller::RestoreCommand, class) => class.code(),
    }
}

/// An error that knows what it means to whoever has to act on it.
pub trait Explain: Error + Send + Sync + 'static {
    /// What must happen next.
    fn class(&self) -> Class;
    /// One sentence: what to do about it. `None` where the message says it already.
    fn hint(&self) -> Option<String> {
        None
    }
}

/// Any module's error on its way to the command line. Deliberately not an [`Error`] itself, so that
/// every [`Explain`] converts into it with `?`.
pub struct Failure {
    error: Box<dyn Explain>,
    hint: Option<String>,
}

impl Failure {
    /// What must happen next.
    pub fn class(&self) -> Class {
        self.error.class()
    }

    /// What to do about it, if the error knows.
    pub fn hint(&self) -> Option<String> {
        self.hint.clone().or_else(|| self.error.hint())
    }

    /// Puts a better hint in the place of the error's own, where the caller knows more.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error and its causes on one line, each text once.
    pub fn one_line(&self) -> String {
        on_one_line(self.error.as_ref())
    }

    /// The causes below the error itself, outermost first, for `--verbose`.
    pub fn causes(&self) -> Vec<String> {
        let mut causes = Vec::new();
        let mut next = self.error.source();
        while let Some(cause) = next {
            causes.push(cause.to_string());
            next = cause.source();
        }
        causes
    }

    /// The error as the type it was made of, for callers that act on one variant.
    pub fn downcast_ref<E: Explain>(&self) -> Option<&E> {
        let error: &(dyn Error + 'static) = self.error.as_ref();
        error.downcast_ref()
    }
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            error: Box::new(error),
            hint: None,
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.class(), self.one_line())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.one_line())
    }
}

/// The error and its causes, joined by ": ". A cause whose text was already said is dropped: some
/// libraries repeat their source in their own message.
pub fn on_one_line(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_not_found_may_end_recovery() {
        for class in Class::ALL {
            let code = exit_code(Caller::RecoverySignal, class);
            assert_eq!(code <= 125, class == Class::NotFound, "{class:?}");
        }
    }

    #[test]
    fn the_archiver_process_never_dies_of_us() {
        for class in Class::ALL {
            assert!(
                (1..=125).contains(&exit_code(Caller::ArchiveCommand, class)),
                "{class:?}"
            );
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("could not store: disk on fire")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("disk on fire")]
    struct Inner(#[source] std::io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let error = Outer(Inner(std::io::Error::other("smoke")));
        assert_eq!(on_one_line(&error), "could not store: disk on fire: smoke");
    }
}
