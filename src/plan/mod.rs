//! Decisions, pure and printable: making one changes nothing.
//!
//! | module | decides |
//! | --- | --- |
//! | `search` | which backup a recovery starts from, and what to name where none serves |
//! | `course` | what it meets on its way through the WAL |
//! | `recovery` | what PostgreSQL is told, so that it ends where it was asked to |
//! | `needs` | what the restored server must be ready for |
//! | `refusal` | what is said where a recovery can't be had |

pub mod course;
pub mod needs;
pub mod recovery;
pub mod refusal;
pub mod search;
