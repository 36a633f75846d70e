//! WAL archiving and point-in-time recovery for PostgreSQL.
//!
//! The map of this crate. A module may `use` only modules with a lower number, and of its own number
//! only its own folder; all may use `error` and `env`. `tests/it/tidy.rs` reads this table and holds
//! everyone to it.
//!
//! | layer | modules |
//! | --- | --- |
//! | 0 | [`error`] classes and exit codes · [`env`](mod@env) time, chance, environment · `disk` durable files · [`pg`] PostgreSQL's nouns · `varint` short numbers |
//! | 1 | `codec` bytes to bytes: frames, compression · `wal` the meaning of WAL bytes |
//! | 2 | `replication` what the server tells · `store` where objects lie |
//! | 3 | `repo` the repository: names, WAL objects, packs, backups |
//! | 4 | `catalog` what is there: segments, backups, windows |
//! | 5 | `plan` decisions, without I/O |
//! | 6 | `ops` the verbs: gather, plan, do |
//! | 7 | `cli` arguments, settings, reports, progress |
//!
//! Begin reading at `ops::archive`: it is the shortest whole path.
pub mod catalog;
pub mod cli;
pub mod codec;
pub mod disk;
pub mod env;
pub mod error;
pub mod ops;
pub mod pg;
pub mod plan;
pub mod replication;
pub mod repo;
pub mod store;
pub mod varint;
pub mod wal;
