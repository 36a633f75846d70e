//! The command line, in two steps: typed ([`args`]), then meant ([`settings`]).

pub mod args;
mod pitr;
pub mod report;
pub mod run;
mod server;
pub mod settings;
#[allow(dead_code)]
mod shape;
pub use pitr::pitr;
