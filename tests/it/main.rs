//! The one integration binary. `support` holds what tests stand on; every other module is a set of tests.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that can't go on must fail, loudly"
)]

mod bad_input;
mod catalog_rows;
mod check;
mod doc_tables;
mod docs;
mod faulty_disk;
mod find;
mod fuzz;
mod guards;
mod inventory;
mod ledger_works;
mod main_path;
mod pieces;
mod plan_lacks;
mod plan_oracle;
mod plan_proves;
mod receive;
mod receive_spool;
mod receive_status;
mod recovery_outage;
mod replication;
mod salvage;
mod shapes;
mod show;
mod start;
mod stores;
mod support;
mod support_works;
mod sweeps;
mod tidy;
mod timelines;
mod wal_index;
mod waldump;
mod watch;
mod windows;
