//! The command line, in two steps: typed ([`args`]), then meant ([`settings`]).

pub mod args;
mod backup;
mod check;
mod find;
mod list;
pub mod log;
mod pitr;
mod progress;
mod receive;
pub mod receive_status;
pub mod report;
mod restore;
pub mod run;
mod salvage;
mod server;
pub mod settings;
mod shape;
mod show;
mod start;
mod stop;
mod watch;

pub use pitr::pitr;
