//! What integration tests stand on: real servers, thrown away after use.
//!
//! | module | gives |
//! | --- | --- |
//! | [`user`] | whom servers run as, and scratch folders that belong to that user |
//! | [`tools`] | the PostgreSQL majors and other programs found on this machine |
//! | [`program`] | our own binaries, run as that user, and their answers |
//! | [`cluster`] | a PostgreSQL cluster: new, or started on a restored directory |
//! | [`s3`] | an S3 server that can be killed, paused and brought back |
//! | [`vault`] | a repository, and what leads a server and our binaries to it |
//! | [`receiver`] | a receiver that runs beside a test |
//! | [`ledger`] | a workload whose rows are known for any recovery target |
//! | [`faulty`] | an object store that breaks at a chosen call |
//! | [`strace`] | a disk that breaks at a chosen system call |
//! | [`chance`] | random numbers that a seed brings back |
//! | [`disk`] | a disk small enough to be filled |
//! | [`made_up`] | segments and backups that no server has made |
//!
//! A missing tool is a panic that names the command which installs it; nothing here ever skips.
//! Everything listens on loopback or a private socket folder, and each guard stops only what it
//! started itself, by process id.

pub mod chance;
pub mod cluster;
pub mod disk;
pub mod faulty;
pub mod ledger;
pub mod made_up;
pub mod process;
pub mod program;
pub mod receiver;
pub mod s3;
pub mod strace;
pub mod tools;
pub mod user;
pub mod vault;
