//! What a PostgreSQL server tells: connections, replication commands, base backups, WAL as it is written.
//!
//! Our own thin client on `postgres-protocol`, because the published ones cannot read a base backup to its end.
//! What parses or decides is sans-io (`message`, `auth`, `tar`, `basebackup::parser`, `stream::machine`); sockets are in `socket`, `tls`,
//! `wire`. One way in, [`connect`](self::ReplicationSession::connect), serves replication and SQL alike, so that hosts, TLS,
//! passwords and their errors mean the same for both.
//!
//! A stream runs best on a `current_thread` runtime of its own: a third faster than on several threads.

mod auth;
mod basebackup;
mod connect;
mod error;
mod login;
mod message;
mod server_error;
mod session;
mod socket;
mod sql;
mod stream;
mod tar;
mod target;
mod tls;
mod wire;

pub use auth::AuthError;
pub use basebackup::{
    BackupEnd, BackupEvent, BackupOptionsError, BaseBackup, BaseBackupOptions, Checkpoint, ManifestChecksum, Tablespace,
};
pub use error::{ConnectError, ReplicationError};
pub use message::{FrameError, Row};
pub use server_error::{ServerError, Severity, SqlState};
pub use session::{ReplicationSession, ServerVersion, SlotName, SlotPosition, SystemIdentity};
pub use socket::ServerAddress;
pub use sql::{SqlError, SqlSession};
pub use stream::{NextTimeline, StandbyStatus, Started, StreamEvent, StreamStart, WalStream};
pub use tar::{EntryKind, TarEntry, TarError, TarEvent, TarReader};
pub use tls::{CertificateFault, TlsSettingsError};
