//! Judges `synchronous_standby_names`: whether commits wait for a receiver of ours, and whether it is there. Pure.

use super::Check;
use super::facts::ServerFacts;
use crate::replication::SlotName;

const NAME: &str = "synchronous_standby_names";
/// What a receiver calls itself unless its connection string says otherwise.
const RECEIVER: &str = "pgp-pitr";

/// Told where commits wait for a receiver, and where a slot for one was named.
pub(super) fn judge(facts: &ServerFacts, wanted: Option<&SlotName>) -> Option<Check> {
    let setting = facts.setting(NAME);
    let slot = wanted.and_then(|wanted| facts.slots.iter().find(|slot| slot.name == wanted.as_str()));
    let receiver = slot.and_then(|slot| slot.reader.as_deref()).unwrap_or(RECEIVER);
    let listed = names(setting);
    // The server compares without regard to case.
    let is_listed = listed
        .iter()
        .any(|name| name == "*" || name.eq_ignore_ascii_case(receiver));
    let sender = facts
        .senders
        .iter()
        .find(|sender| sender.name.eq_ignore_ascii_case(receiver));
    if !is_listed {
        let detail = match setting {
            "" => "empty: no commit waits for a receiver".to_owned(),
            _ => format!("'{setting}' does not name {receiver}: no commit waits for it"),
        };
        return wanted.map(|_| Check::ok(NAME, detail));
    }
    let named_by_star = !listed.iter().any(|name| name.eq_ignore_ascii_case(receiver));
    let waits = |sender: &super::facts::SenderFacts| matches!(sender.sync_state.as_deref(), Some("sync" | "quorum"));
    Some(match sender {
        Some(sender) => Check::ok(
            NAME,
            match sender.sync_state.as_deref() {
                Some("sync" | "quorum") => format!("commits wait for {receiver}, which streams"),
                Some(state) => format!("names {receiver}, which streams; commits wait for others first ({state})"),
                None => format!("names {receiver}, which streams"),
            },
        ),
        None if named_by_star && wanted.is_none() => return None,
        None if facts.senders.iter().any(waits) => Check::warning(
            NAME,
            format!("names {receiver}, and nobody streams under that name: commits wait for others only"),
            "start `pgp-pitr receive --synchronous`, or take the name out",
        ),
        None => Check::fails(
            NAME,
            format!("'{setting}' names {receiver}, and nobody streams under that name: commits may wait for ever"),
            "start `pgp-pitr receive --synchronous`, or ALTER SYSTEM RESET synchronous_standby_names and reload",
        ),
    })
}

/// The names in a setting such as `FIRST 1 (a, "b c")`, `2 (a, b)`, `ANY 1 (*)` or `a, b`.
fn names(setting: &str) -> Vec<String> {
    let setting = setting.trim();
    let list = match setting.strip_suffix(')').and_then(|inner| inner.split_once('(')) {
        Some((how_many, list)) if !how_many.contains('"') => list,
        _ => setting,
    };
    let (mut names, mut name, mut quoted) = (Vec::new(), String::new(), false);
    for character in list.chars() {
        match character {
            // Two quotes within quotes are one; no application has such a name.
            '"' => quoted = !quoted,
            ',' if !quoted => names.push(std::mem::take(&mut name)),
            blank if blank.is_whitespace() && !quoted => {}
            character => name.push(character),
        }
    }
    names.push(name);
    names.retain(|name| !name.is_empty());
    names
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::facts::SenderFacts;
    use super::super::facts::tests::server;
    use super::*;

    #[test]
    fn names_are_read_as_the_server_reads_them() {
        for (setting, expected) in [
            ("", &[][..]),
            ("pgp-pitr", &["pgp-pitr"]),
            ("\"pgp-pitr\", s1", &["pgp-pitr", "s1"]),
            ("FIRST 2 (s1, \"pgp-pitr\" , s2)", &["s1", "pgp-pitr", "s2"]),
            ("ANY 1 (*)", &["*"]),
            ("1 (\"a (b), c\")", &["a (b), c"]),
        ] {
            assert_eq!(names(setting), expected, "{setting}");
        }
    }

    #[test]
    fn commits_that_wait_for_a_receiver_need_one_that_streams() {
        let sender = |name: &str, state: &str| SenderFacts {
            name: name.to_owned(),
            sync_state: Some(state.to_owned()),
        };
        let ours = || sender("pgp-pitr", "sync");
        let slot = SlotName::new("s").unwrap();
        for (setting, senders, wanted, status) in [
            ("", vec![], None, None),
            ("", vec![], Some(&slot), Some(Status::Ok)),
            ("s1", vec![sender("s1", "sync")], None, None),
            ("\"PGP-pitr\"", vec![ours()], None, Some(Status::Ok)),
            ("\"pgp-pitr\"", vec![], None, Some(Status::Fails)),
            (
                "FIRST 1 (s1, \"pgp-pitr\")",
                vec![sender("s1", "sync")],
                None,
                Some(Status::Warning),
            ),
            ("*", vec![], None, None),
            ("*", vec![], Some(&slot), Some(Status::Fails)),
            ("*", vec![ours()], Some(&slot), Some(Status::Ok)),
        ] {
            let mut facts = server();
            facts.settings.insert(NAME.to_owned(), setting.to_owned());
            facts.senders = senders;
            let check = judge(&facts, wanted);
            assert_eq!(check.as_ref().map(|check| check.status), status, "{setting}: {check:?}");
        }
    }
}
