//! `postgresql://[user[:password]@][host][:port][,…][/dbname][?key=value&…]`, read as libpq reads it:
//! cut first, percent-decoded afterwards.
//!
//! Some things libpq takes are refused, because they come from a password that was not encoded, a piece of
//! which would be printed as a host, port or database: an `@` behind `user:password@`, and one in the path
//! behind a `:` or an `@` in front of it. `%40` is always right.

use super::error::{ConnInfoError, Origin, UriFault};
use super::settings::Settings;

/// What follows the scheme, if the text has one of ours.
pub(super) fn after_scheme(text: &str) -> Option<&str> {
    text.strip_prefix("postgresql://")
        .or_else(|| text.strip_prefix("postgres://"))
}

/// A URI being read; knows where a piece of it stands.
struct Uri<'a> {
    whole: &'a str,
}

impl Uri<'_> {
    /// The error at the beginning of `piece`, which must be a slice of the whole.
    fn fault(&self, fault: UriFault, piece: &str) -> ConnInfoError {
        let offset = (piece.as_ptr() as usize).saturating_sub(self.whole.as_ptr() as usize);
        let before = self.whole.get(..offset).unwrap_or(self.whole);
        ConnInfoError::Uri {
            fault,
            at: before.chars().count() + 1,
        }
    }

    fn decode(&self, piece: &str) -> Result<Vec<u8>, ConnInfoError> {
        percent_decode(piece.as_bytes()).map_err(|fault| self.fault(fault, piece))
    }

    fn set(&self, settings: &mut Settings, name: &str, value: &str) -> Result<(), ConnInfoError> {
        if value.is_empty() {
            return Ok(());
        }
        settings.replace(name, self.decode(value)?, Origin::ConnInfo, None)
    }
}

pub(super) fn parse(whole: &str, rest: &str) -> Result<Settings, ConnInfoError> {
    let uri = Uri { whole };
    let mut settings = Settings::default();
    let rest = match rest.find(['@', '/']) {
        Some(at) if rest[at..].starts_with('@') => {
            let (user, password) = rest[..at].split_once(':').unwrap_or((&rest[..at], ""));
            uri.set(&mut settings, "user", user)?;
            uri.set(&mut settings, "password", password)?;
            let after = &rest[at + 1..];
            if after.contains('@') && (!password.is_empty() || after.split('?').next().is_some_and(|p| p.contains('@')))
            {
                return Err(uri.fault(UriFault::StrayAt, after));
            }
            after
        }
        _ => rest,
    };
    let rest = hosts(&uri, &mut settings, rest)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = path.strip_prefix('/').unwrap_or(path);
    uri.set(&mut settings, "dbname", path)?;
    parameters(&uri, &mut settings, query)?;
    Ok(settings)
}

/// Reads hosts and ports up to the path or query, and returns what follows.
fn hosts<'a>(uri: &Uri<'_>, settings: &mut Settings, text: &'a str) -> Result<&'a str, ConnInfoError> {
    let (mut names, mut ports) = (String::new(), String::new());
    let mut rest = text;
    loop {
        let (name, after) = host(uri, rest)?;
        names.push_str(name);
        rest = after;
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            let port = &after[..end];
            // Not shown: with an unencoded "/" in a password, this is the password's beginning.
            if !port.bytes().all(|b| b.is_ascii_digit() || b == b'%') {
                let stray = port.contains('@');
                return Err(uri.fault(if stray { UriFault::StrayAt } else { UriFault::Port }, port));
            }
            ports.push_str(port);
            rest = &after[end..];
        }
        let Some(after) = rest.strip_prefix(',') else { break };
        names.push(',');
        ports.push(',');
        rest = after;
    }
    let authority = &text[..text.len() - rest.len()];
    let path = rest.split('?').next().unwrap_or_default();
    if authority.contains('@') || (authority.contains(':') && path.contains('@')) {
        return Err(uri.fault(UriFault::StrayAt, text));
    }
    for (name, value) in [("host", names), ("port", ports)] {
        if !value.is_empty() {
            let decoded = percent_decode(value.as_bytes()).map_err(|fault| uri.fault(fault, text))?;
            if name == "port" && !decoded.iter().all(|b| b.is_ascii_digit() || *b == b',') {
                return Err(uri.fault(UriFault::Port, text));
            }
            settings.replace(name, decoded, Origin::ConnInfo, None)?;
        }
    }
    Ok(rest)
}

/// Cuts off one host: a name, an IPv4 address, or an IPv6 address in brackets.
fn host<'a>(uri: &Uri<'_>, text: &'a str) -> Result<(&'a str, &'a str), ConnInfoError> {
    let Some(inner) = text.strip_prefix('[') else {
        let end = text.find([':', '/', '?', ',']).unwrap_or(text.len());
        return Ok(text.split_at(end));
    };
    let Some((name, after)) = inner.split_once(']') else {
        return Err(uri.fault(UriFault::OpenBracket, text));
    };
    if name.is_empty() {
        return Err(uri.fault(UriFault::EmptyBrackets, text));
    }
    if !after.is_empty() && !after.starts_with([':', '/', '?', ',']) {
        return Err(uri.fault(UriFault::AfterBracket, after));
    }
    Ok((name, after))
}

fn parameters(uri: &Uri<'_>, settings: &mut Settings, query: &str) -> Result<(), ConnInfoError> {
    let mut rest = query;
    while !rest.is_empty() {
        let (parameter, after) = rest.split_once('&').unwrap_or((rest, ""));
        let Some((name, value)) = parameter.split_once('=') else {
            return Err(uri.fault(UriFault::NoEquals, parameter));
        };
        if value.contains('=') {
            return Err(uri.fault(UriFault::TwoEquals, parameter));
        }
        let (name_bytes, value) = (uri.decode(name)?, uri.decode(value)?);
        let at = uri.whole.len() - rest.len();
        let at = uri.whole.get(..at).map(|before| before.chars().count() + 1);
        // As the JDBC driver writes it.
        if name_bytes == b"ssl" && value == b"true" {
            settings.replace("sslmode", "require", Origin::ConnInfo, at)?;
        } else {
            let name = String::from_utf8_lossy(&name_bytes);
            let stored = settings.replace(&name, value, Origin::ConnInfo, at);
            stored.map_err(|error| error.without_key_if(query.contains('@')))?;
        }
        rest = after;
    }
    Ok(())
}

fn percent_decode(text: &[u8]) -> Result<Vec<u8>, UriFault> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or(UriFault::Percent)?;
        let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        match (digit(digits[0]), digit(digits[1])) {
            (Some(0), Some(0)) => return Err(UriFault::PercentZero),
            (Some(high), Some(low)) => decoded.push(high << 4 | low),
            _ => return Err(UriFault::Percent),
        }
        rest = after;
    }
    Ok(decoded)
}
