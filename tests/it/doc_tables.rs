//! Tables in documents that the code has, too: they must not differ.

use std::fs;
use std::path::Path;

use pgp_pitr::cli::settings::KEYS;
use pgp_pitr::error::{Caller, Class, exit_code};

/// The cells of the table below this header, without marks of code.
fn table(document: &str, header: &str) -> Vec<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs::read_to_string(path).unwrap();
    let rows = text.lines().skip_while(|line| !line.starts_with(header)).skip(2);
    let cells = |row: &str| {
        let row = row.trim_matches('|').replace('`', "");
        row.split('|').map(|cell| cell.trim().to_owned()).collect()
    };
    rows.take_while(|line| line.starts_with('|')).map(cells).collect()
}

fn name(class: Class) -> &'static str {
    match class {
        Class::NotFound => "not found",
        Class::Failed => "failed",
        Class::Usage => "usage",
        Class::OutOfReach => "out of reach",
        Class::Damaged => "damaged",
        Class::Unavailable => "unavailable",
    }
}

#[test]
fn the_document_has_the_exit_codes_of_the_code() {
    let callers = [
        Caller::Person,
        Caller::ArchiveCommand,
        Caller::RestoreCommand,
        Caller::RecoverySignal,
    ];
    let mut expected = vec![["done", "0", "0", "0", "0"].map(str::to_owned).to_vec()];
    for class in Class::ALL {
        let codes = callers.map(|caller| exit_code(caller, class).to_string());
        expected.push([&[name(class).to_owned()], &codes[..]].concat());
    }
    let header = "| class | pgp-pitr | pgp-archive | pgp-restore | pgp-restore, with `recovery.signal` |";
    assert_eq!(table("docs/exit-codes.md", header), expected);
    let meanings = table("docs/exit-codes.md", "| class | meaning |");
    let meant: Vec<&String> = meanings.iter().map(|row| &row[0]).collect();
    let told: Vec<&String> = expected.iter().map(|row| &row[0]).collect();
    assert_eq!(meant, told, "each class has its meaning");
}

#[test]
fn the_document_has_the_settings_of_the_code() {
    let expected: Vec<Vec<String>> = KEYS
        .iter()
        .map(|key| {
            let meaning = match key.secret {
                true => format!("*secret*; {}", key.meaning),
                false => key.meaning.to_owned(),
            };
            vec![
                key.name.to_owned(),
                key.variable.to_owned(),
                key.default.to_owned(),
                meaning,
            ]
        })
        .collect();
    let lines = |rows: &[Vec<String>]| {
        rows.iter()
            .map(|row| format!("| {} |", row.join(" | ")))
            .collect::<Vec<_>>()
    };
    let found = table("docs/settings.md", "| setting |");
    assert_eq!(
        lines(&found),
        lines(&expected),
        "the rows should be\n{}",
        lines(&expected).join("\n")
    );
}
