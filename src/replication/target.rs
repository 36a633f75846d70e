//! Whether a server is what `target_session_attrs` asks for.

use super::connect::Purpose;
use super::error::ConnectError;
use super::wire::{Wire, WireError};
use crate::pg::conninfo::TargetSessionAttrs;

/// What a session on the server can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kind {
    in_recovery: bool,
    read_only: bool,
}

impl Kind {
    fn is(self, wanted: TargetSessionAttrs) -> bool {
        match wanted {
            TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => true,
            TargetSessionAttrs::ReadWrite => !self.read_only,
            TargetSessionAttrs::ReadOnly => self.read_only,
            TargetSessionAttrs::Primary => !self.in_recovery,
            TargetSessionAttrs::Standby => self.in_recovery,
        }
    }
}

/// Whether the server at the other end will do.
pub(super) async fn will_do(
    wire: &mut Wire,
    wanted: TargetSessionAttrs,
    purpose: Purpose,
) -> Result<bool, ConnectError> {
    if wanted == TargetSessionAttrs::Any {
        return Ok(true);
    }
    match kind(wire, purpose).await {
        Ok(kind) => Ok(kind.is(wanted)),
        Err(WireError::Lost(source)) => Err(ConnectError::Closed {
            at: wire.at().clone(),
            source,
        }),
        Err(WireError::Server(source)) => Err(ConnectError::Server {
            at: wire.at().clone(),
            source,
        }),
        Err(WireError::Frame(error)) => Err(protocol(wire, error.to_string())),
        Err(WireError::Unexpected(what)) => Err(protocol(wire, format!("{what} in answer to SHOW"))),
    }
}

fn protocol(wire: &Wire, what: String) -> ConnectError {
    ConnectError::Protocol {
        at: wire.at().clone(),
        what,
    }
}

async fn kind(wire: &mut Wire, purpose: Purpose) -> Result<Kind, WireError> {
    // From 14 on the server tells in its greeting.
    let told = |name| wire.parameter(name).map(|value| value == "on");
    if let (Some(in_recovery), Some(read_only)) = (told("in_hot_standby"), told("default_transaction_read_only")) {
        return Ok(Kind {
            in_recovery,
            read_only: read_only || in_recovery,
        });
    }
    let read_only = first_value(wire, "SHOW transaction_read_only").await? == "on";
    let in_recovery = match purpose {
        Purpose::Sql => first_value(wire, "SELECT pg_catalog.pg_is_in_recovery()").await? == "t",
        // A walsender answers no SELECT. In recovery every transaction is read-only, elsewhere only
        // where default_transaction_read_only says so, which then hides what we want to know.
        Purpose::Replication => read_only && first_value(wire, "SHOW default_transaction_read_only").await? == "off",
    };
    Ok(Kind { in_recovery, read_only })
}

async fn first_value(wire: &mut Wire, query: &str) -> Result<String, WireError> {
    let rows = wire.query(query).await?;
    let value = rows.into_iter().next().and_then(|row| row.into_iter().next().flatten());
    let value = value.ok_or(WireError::Unexpected("an empty answer"))?;
    Ok(String::from_utf8_lossy(&value).into_owned())
}
