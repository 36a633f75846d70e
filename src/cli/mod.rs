//! The command line, in two steps: typed ([`args`]), then meant ([`settings`]).

pub mod args;
mod pitr;
pub mod report;
pub mod run;
mod server;
pub mod settings;
pub use pitr::pitr;
