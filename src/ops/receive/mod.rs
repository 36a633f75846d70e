//! Receiving WAL over the replication protocol: what is received is kept on its way into the repository, and
//! told of.

pub mod risk;
pub mod spool;
pub mod status;
