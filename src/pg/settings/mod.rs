//! Values in `postgresql.auto.conf`, and commands inside them, so that any path survives the file, the
//! server's placeholders and the shell.

mod auto_conf;
mod command;

#[cfg(test)]
mod tests;

use crate::error::{Class, Explain};

pub use auto_conf::{AutoConf, RECOVERY_SETTINGS, STANDBY_SETTINGS, quoted};
pub use command::{Word, command_words, server_command, shell_text, shell_word};

/// Something that can't be written down in a way the server or the shell reads back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SettingsError {
    /// A line feed in a value. The file's syntax has an escape for it, but `ALTER SYSTEM` rewrites the file
    /// without, and the server would not start again.
    #[error("{name} would contain a line feed, which postgresql.auto.conf can not hold")]
    LineFeed {
        /// The setting.
        name: String,
    },
    /// A zero byte in a value.
    #[error("{name} would contain a zero byte")]
    ZeroByte {
        /// The setting, or the word of a command.
        name: String,
    },
    /// Not the name of a setting.
    #[error("\"{name}\" can not be the name of a setting")]
    Name {
        /// What was given as a name.
        name: String,
    },
}

impl Explain for SettingsError {
    fn class(&self) -> Class {
        Class::Usage
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::LineFeed { .. } => Some("Use a path without a line feed in it.".to_owned()),
            Self::ZeroByte { .. } | Self::Name { .. } => None,
        }
    }
}
