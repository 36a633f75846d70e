//! The verbs: gather, plan, do.

pub mod archive;
pub mod backup;
pub mod check;
pub mod fetch;
pub mod find;
mod history;
pub mod init;
pub mod inventory;
pub mod list;
pub mod local;
pub mod names;
pub mod plan;
pub mod receive;
pub mod restore;
pub mod salvage;
pub mod show;
pub mod start;
mod walk;
pub mod watch;
