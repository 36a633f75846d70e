//! Round trips: tables that were tried with PostgreSQL 15.20 and dash, and properties over small models of
//! the server's lexer, its placeholders and the shell.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;
use proptest::prelude::*;

/// The values that were written into a `postgresql.auto.conf` and read back with `SHOW`, and handed to
/// `printf %s` by a command: all of them came back.
const VALUES: &[&str] = &[
    "",
    " ",
    "plain",
    " blank before and behind ",
    "two  blanks",
    "it's",
    "'",
    "''",
    "quoted 'here'",
    r"back\slash",
    r"\",
    r"\\",
    r"\n \t \101 \'",
    r"ends with \",
    "100%",
    "%p %f %r %%",
    "%",
    "double \"quotes\"",
    "$HOME `id` $(id) ${x}",
    "#no comment",
    "a;b&c|d>e<f",
    "*?[a]~{b,c}!",
    "tab\there",
    "carriage\rreturn",
    "ünïcödé – 漢字 🐘",
    "-n",
    "a=b",
    "--repo=/x y",
];

/// A value as the server's lexer reads it (`GUC_scanstr` and the rule for strings): `None` where it stops
/// with an error.
fn model_of_the_lexer(line: &[u8]) -> Option<(Vec<u8>, Vec<u8>)> {
    let end = line
        .iter()
        .position(|b| !(b.is_ascii_alphanumeric() || b"_.".contains(b)))?;
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    let mut bytes = rest.strip_prefix(b"'")?.iter().copied().peekable();
    let mut value = Vec::new();
    loop {
        match bytes.next()? {
            b'\'' if bytes.peek() == Some(&b'\'') => value.extend(bytes.next()),
            b'\'' => break,
            b'\n' => return None,
            b'\\' => match bytes.next()? {
                b'\n' => return None,
                b'b' => value.push(8),
                b'f' => value.push(12),
                b'n' => value.push(b'\n'),
                b'r' => value.push(b'\r'),
                b't' => value.push(b'\t'),
                digit @ b'0'..=b'7' => {
                    let mut octal = u32::from(digit - b'0');
                    while let Some(digit) = bytes.next_if(|b| (b'0'..=b'7').contains(b)) {
                        octal = octal * 8 + u32::from(digit - b'0');
                    }
                    value.push(octal as u8);
                }
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    let behind: Vec<u8> = bytes.collect();
    behind.trim_ascii().is_empty().then(|| (name.to_vec(), value))
}

/// The line that the shell gets: placeholders replaced as by `BuildRestoreCommand`. `None` where PostgreSQL
/// 16 and newer refuse.
fn model_of_placeholders(command: &[u8]) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    let mut bytes = command.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'%' => line.extend_from_slice(match bytes.next()? {
                b'%' => b"%",
                b'p' => b"pg_wal/RECOVERYXLOG",
                b'f' => b"000000010000000000000003",
                _ => return None,
            }),
            byte => line.push(byte),
        }
    }
    Some(line)
}

/// The words that `sh -c` makes of a line of plain words and single quotes; `None` for anything that means
/// more to a shell.
fn model_of_the_shell(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = line.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' => words.extend(word.take()),
            b'\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match bytes.next()? {
                        b'\'' => break,
                        byte => word.push(byte),
                    }
                }
            }
            b'\\' => word.get_or_insert_default().push(bytes.next()?),
            b if b.is_ascii_alphanumeric() || b"_-./:,@%+".contains(&b) => word.get_or_insert_default().push(b),
            _ => return None,
        }
    }
    words.extend(word);
    Some(words)
}

/// What reaches the program, through all three.
fn as_the_program_sees(words: &[Word<'_>]) -> Vec<Vec<u8>> {
    let command = server_command(words).unwrap();
    let mut conf = AutoConf::default();
    conf.append(&[("restore_command", &command)]).unwrap();
    let line = conf.bytes().strip_prefix(b"# Written by pgp-pitr restore:\n").unwrap();
    let (name, value) = model_of_the_lexer(line).unwrap();
    assert_eq!(name, b"restore_command");
    model_of_the_shell(&model_of_placeholders(&value).unwrap()).unwrap()
}

#[test]
fn every_value_survives_file_server_and_shell() {
    for value in VALUES {
        let words = [Word::Exact(OsStr::new(value)), Word::WalFile, Word::WalPath];
        let seen = as_the_program_sees(&words);
        let expected = [value.as_bytes(), b"000000010000000000000003", b"pg_wal/RECOVERYXLOG"];
        assert_eq!(seen, expected, "{value:?}");
    }
}

#[test]
fn a_command_is_written_plainly_where_it_can_be() {
    let word = |text| Word::Exact(OsStr::new(text));
    let command = [
        word("/usr/bin/pgp-restore"),
        word("--repo"),
        word("s3://wal/50%"),
        word("--config"),
        word("/it's here/pgp.toml"),
        Word::WalFile,
        Word::WalPath,
    ];
    let command = server_command(&command).unwrap();
    assert_eq!(
        String::from_utf8(command.clone()).unwrap(),
        r"/usr/bin/pgp-restore --repo s3://wal/50%% --config '/it'\''s here/pgp.toml' %f %p"
    );
    assert_eq!(
        String::from_utf8(quoted("restore_command", &command).unwrap()).unwrap(),
        r"'/usr/bin/pgp-restore --repo s3://wal/50%% --config ''/it''\\''''s here/pgp.toml'' %f %p'"
    );
}

#[test]
fn what_no_file_and_no_program_can_hold_is_refused() {
    let mut conf = AutoConf::new("a = 'b'\n");
    let before = conf.clone();
    let name = || "x".to_owned();
    assert_eq!(
        conf.append(&[("y", b"1"), ("x", b"a\nb")]),
        Err(SettingsError::LineFeed { name: name() })
    );
    assert_eq!(
        conf.append(&[("x", b"a\0b")]),
        Err(SettingsError::ZeroByte { name: name() })
    );
    for wrong in ["", "a b", "a=b", "1a", "a'", "a\n", "ä"] {
        let name = wrong.to_owned();
        assert_eq!(conf.append(&[(wrong, b"1")]), Err(SettingsError::Name { name }));
    }
    assert_eq!(conf, before);
    assert!(shell_word(OsStr::new("a\0b")).is_err());
}

#[test] // each removed line was seen to set, and each kept one not to set, the name on 15.20
fn an_earlier_recoverys_settings_go_and_all_else_stays() {
    let text = b"# Do not edit this file manually!\n\
        # It will be overwritten by the ALTER SYSTEM command.\n\
        restore_command = 'cp /old/%f %p'\n\
        \tRESTORE_Command='x'\r\n\
        recovery_target_time '2020-01-01 00:00:00+00'\n\
        recovery_target_timeline=3 # three\n\
        #restore_command = 'comment'\n\
        \n\
        restore_command.x = 'other'\n\
        restore_commander = 'other'\n\
        xrestore_command = 'other'\n\
        work_mem = '64MB' # restore_command\n\
        primary_conninfo = 'host=p'\n\
        name\xE9 = '\xFF'\n\
        # Written by pgp-pitr restore:\n\
        recovery_target_action = 'pause'\n\
        recovery_target = 'immediate'";
    let kept = b"# Do not edit this file manually!\n\
        # It will be overwritten by the ALTER SYSTEM command.\n\
        #restore_command = 'comment'\n\
        \n\
        restore_command.x = 'other'\n\
        restore_commander = 'other'\n\
        xrestore_command = 'other'\n\
        work_mem = '64MB' # restore_command\n\
        primary_conninfo = 'host=p'\n\
        name\xE9 = '\xFF'\n";
    let mut conf = AutoConf::new(*text);
    assert!(conf.sets("recovery_target") && conf.sets("Restore_command") && !conf.sets("restore"));
    conf.remove(RECOVERY_SETTINGS);
    assert_eq!(conf.bytes(), kept);
    conf.remove(STANDBY_SETTINGS);
    assert!(!conf.sets("primary_conninfo"));
}

#[test]
fn settings_are_appended_below_what_is_there() {
    let mut conf = AutoConf::new("work_mem = '64MB'");
    conf.append(&[("recovery_target_xid", b"812"), ("a.b", b"")]).unwrap();
    let expected = "work_mem = '64MB'\n# Written by pgp-pitr restore:\nrecovery_target_xid = '812'\na.b = ''\n";
    assert_eq!(conf.bytes(), expected.as_bytes());
}

#[test]
fn one_plain_command_has_words_and_a_script_has_none() {
    let words = |line: &str| {
        let words = command_words(line.as_bytes())?;
        Some(
            words
                .into_iter()
                .map(|word| String::from_utf8(word).unwrap())
                .collect::<Vec<_>>(),
        )
    };
    let expected = ["/a b/pgp-restore", "%f", "%p", "--repo", "100% \\of $it", ""].map(str::to_owned);
    let line = r#" "/a b/pgp-restore" %f  %p --repo '100%% \of $it' ''"#;
    assert_eq!(words(line), Some(expected.to_vec()));
    for script in [
        "a; b", "a | b", "a > b", "a $B", "a \"$B\"", "a `b`", "a 'b", "a \\", "ls *", "a # b",
    ] {
        assert_eq!(words(script), None, "{script}");
    }
}

#[test]
fn the_last_line_of_a_name_gives_its_value() {
    let conf = AutoConf::new(
        "a = '1'\nA='it''s \\\\ \\101\\t' # no\nb 7#x\nc = on\r\n#d = 1\ne =\nab = 'other'\n d='open\n".as_bytes(),
    );
    let value = |name| conf.value(name).map(|value| String::from_utf8(value).unwrap());
    assert_eq!(value("a").as_deref(), Some("it's \\ A\t"));
    assert_eq!(value("b").as_deref(), Some("7"));
    assert_eq!(value("c").as_deref(), Some("on"));
    assert_eq!(value("d").as_deref(), Some("open\n"));
    assert_eq!(value("e").as_deref(), Some(""));
    assert_eq!(value("x"), None);
}

/// Bytes with more of what matters than chance would give.
fn bytes() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop_oneof![
        prop::sample::select(b"'\\% \t\"$`#;&|\r%pfr*~=\xFF\x80".to_vec()),
        1u8..=255
    ];
    prop::collection::vec(byte.prop_filter("no line feed", |b| *b != b'\n'), 0..24)
}

proptest! {
    #[test]
    fn any_words_survive_file_server_and_shell(words in prop::collection::vec(bytes(), 1..5)) {
        let given: Vec<_> = words.iter().map(|word| Word::Exact(OsStr::from_bytes(word))).collect();
        prop_assert_eq!(as_the_program_sees(&given), words);
    }

    #[test]
    fn the_words_of_a_command_are_read_back(words in prop::collection::vec(bytes(), 1..5)) {
        let given: Vec<_> = words.iter().map(|word| Word::Exact(OsStr::from_bytes(word))).collect();
        prop_assert_eq!(command_words(&server_command(&given).unwrap()), Some(words));
    }

    #[test]
    fn what_is_appended_is_read_back(before in bytes(), value in bytes()) {
        let mut conf = AutoConf::new(before);
        conf.append(&[("recovery_target_name", &value)]).unwrap();
        prop_assert_eq!(conf.value("recovery_target_name"), Some(value));
    }

    #[test]
    fn a_second_restore_leaves_what_the_first_would(before in bytes(), value in bytes()) {
        let settings: &[(&str, &[u8])] = &[("restore_command", &value), ("recovery_target_lsn", b"0/1")];
        let mut once = AutoConf::new(before);
        once.remove(RECOVERY_SETTINGS);
        once.append(settings).unwrap();
        let mut twice = once.clone();
        twice.remove(RECOVERY_SETTINGS);
        twice.append(settings).unwrap();
        prop_assert_eq!(once, twice);
    }
}
