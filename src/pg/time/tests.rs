//! Times tried on PostgreSQL 15.20 with `::timestamptz`, with `timezone` set to Europe/Paris like the
//! machine made up here; and properties.

use super::*;
use crate::error::Explain;
use chrono::{SubsecRound, TimeZone};
use chrono_tz::Europe::Paris;
use proptest::prelude::*;

/// A machine in Paris.
fn offset_in_paris(wall: NaiveDateTime) -> Option<FixedOffset> {
    let at = Paris.from_local_datetime(&wall).single()?;
    Some(at.fixed_offset().timezone())
}

/// Reads a text on that machine, on 2026-11-21 at 12:12:00.7084071 UTC.
fn parse(text: &str) -> Result<RecoveryTime, ParseTimeError> {
    let now = DateTime::parse_from_rfc3339("2026-11-21T13:12:00.708407123+01:00").unwrap();
    let local_offset = &offset_in_paris;
    RecoveryTime::parse(text, &Clock { now, local_offset })
}

fn settings(text: &str) -> String {
    match parse(text) {
        Ok(time) => time.for_settings(),
        Err(error) => panic!("{text}: {error}"),
    }
}

#[test] // on the left what was asked, on the right what PostgreSQL 15.20 made of it
fn times_that_the_server_takes_mean_the_same_here() {
    for (text, expected) in [
        ("2026-11-21 10:20:00.123456+00", "2026-11-21 10:20:00.123456+00"),
        ("2026-11-21 10:20:00+01", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20:00+0100", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20:00+01:00", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20:00+01:00:30", "2026-11-21 09:19:30.000000+00"),
        ("2026-11-21 10:20:00 +01", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20:00-08", "2026-11-21 18:20:00.000000+00"),
        ("2026-11-21T10:20:00Z", "2026-11-21 10:20:00.000000+00"),
        ("2026-11-21t10:20:00z", "2026-11-21 10:20:00.000000+00"),
        ("2026-11-21T10:20:00", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20Z", "2026-11-21 10:20:00.000000+00"),
        ("2026-11-21 10:20+05:30", "2026-11-21 04:50:00.000000+00"),
        ("2026-11-21 10:20:00 UTC", "2026-11-21 10:20:00.000000+00"),
        ("2026-11-21 10:20:00 utc", "2026-11-21 10:20:00.000000+00"),
        ("2026-11-21 10:20:00UTC", "2026-11-21 10:20:00.000000+00"),
        ("2026-11-21 10:20:00 GMT", "2026-11-21 10:20:00.000000+00"),
        ("2026-11-21 10:20:00 Europe/Paris", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20:00 europe/paris", "2026-11-21 09:20:00.000000+00"),
        ("2026-11-21 10:20:00 America/New_York", "2026-11-21 15:20:00.000000+00"),
        ("2026-11-21 10:20:00 Asia/Kolkata", "2026-11-21 04:50:00.000000+00"),
        ("2026-11-21 10:20:00 Etc/GMT+5", "2026-11-21 15:20:00.000000+00"),
        ("2026-11-21 10:20:00.1", "2026-11-21 09:20:00.100000+00"),
        ("2026-11-21 10:20:00.123456000", "2026-11-21 09:20:00.123456+00"),
        ("2024-02-29 10:00:00", "2024-02-29 09:00:00.000000+00"),
        ("2026-11-21 10:20:00+15:59", "2026-11-20 18:21:00.000000+00"),
        ("2026-11-21 10:20:00+15:59:59", "2026-11-20 18:20:01.000000+00"),
        ("2026-11-21 10:20:00-00", "2026-11-21 10:20:00.000000+00"),
        ("2026-10-25 02:30:00+02", "2026-10-25 00:30:00.000000+00"),
        ("2026-07-01 12:00:00", "2026-07-01 10:00:00.000000+00"),
        ("2026-07-01 12:00:00 Europe/Paris", "2026-07-01 10:00:00.000000+00"),
        ("now", "2026-11-21 12:12:00.708407+00"),
        ("yesterday 14:00", "2026-11-20 13:00:00.000000+00"),
        ("today 09:30", "2026-11-21 08:30:00.000000+00"),
        ("0001-01-01 00:00:00+00", "0001-01-01 00:00:00.000000+00"),
        ("9999-12-31 23:59:59.999999+00", "9999-12-31 23:59:59.999999+00"),
        ("2026-11-21  10:20:00  +01", "2026-11-21 09:20:00.000000+00"),
        (" 2026-11-21 10:20:00+01 ", "2026-11-21 09:20:00.000000+00"),
        // As the server prints times in other zones, and from before zones had whole minutes.
        ("2026-11-21 11:20:00.5+01", "2026-11-21 10:20:00.500000+00"),
        ("2026-11-21 06:50:00.5-03:30", "2026-11-21 10:20:00.500000+00"),
        ("1890-01-01 00:09:21+00:09:21", "1890-01-01 00:00:00.000000+00"),
        ("1969-12-31 23:15:30-00:44:30", "1970-01-01 00:00:00.000000+00"),
    ] {
        assert_eq!(settings(text), expected, "{text}");
    }
}

#[test]
fn forms_of_our_own_are_read() {
    for (text, expected) in [
        ("10 minutes ago", "2026-11-21 12:02:00.708407+00"),
        ("1 hour 30 minutes ago", "2026-11-21 10:42:00.708407+00"),
        ("-10m", "2026-11-21 12:02:00.708407+00"),
        ("-1h 30m", "2026-11-21 10:42:00.708407+00"),
        ("1 day ago", "2026-11-20 12:12:00.708407+00"),
        ("NOW", "2026-11-21 12:12:00.708407+00"),
        ("@1700000000.123456", "2023-11-14 22:13:20.123456+00"),
        ("@0", "1970-01-01 00:00:00.000000+00"),
        ("Yesterday 14:00:01.5Z", "2026-11-20 14:00:01.500000+00"),
        ("yesterday 14:00 Asia/Tokyo", "2026-11-20 05:00:00.000000+00"),
        // It is tomorrow already in Auckland.
        ("today 00:30 Pacific/Auckland", "2026-11-21 11:30:00.000000+00"),
    ] {
        assert_eq!(settings(text), expected, "{text}");
    }
}

#[test]
fn what_could_mean_something_else_is_refused() {
    let field = |text: &str, what| ParseTimeError::Field {
        text: text.to_owned(),
        what,
    };
    let no_day = "there is no such day";
    for (text, what) in [
        // The server takes the first three of these.
        ("2026-11-21 24:00:00", "hours go from 00 to 23"),
        ("2026-11-21 10:20:60", "seconds go from 00 to 59"),
        ("2026-11-21T23:59:60Z", "seconds go from 00 to 59"),
        ("2026-11-21 10:60:00", "minutes go from 00 to 59"),
        ("2026-02-29 10:00:00", no_day),
        ("2026-02-30 10:00:00", no_day),
        ("2026-13-01 10:00:00", no_day),
        ("2026-00-10 10:00:00", no_day),
        ("0000-01-01 00:00:00+00", no_day),
    ] {
        assert_eq!(parse(text), Err(field(text, what)), "{text}");
    }
    for text in ["2026-11-21", "yesterday", "today", "YESTERDAY "] {
        assert_eq!(
            parse(text),
            Err(ParseTimeError::DayOnly(text.trim().to_owned())),
            "{text}"
        );
    }
    for text in ["14:00", "9:30", "10:20:00+01"] {
        assert_eq!(parse(text), Err(ParseTimeError::NoDay(text.to_owned())), "{text}");
    }
    for zone in ["CET", "EST", "IST", "PST", "cest", "MSK", "Cuba"] {
        let text = format!("2026-11-21 10:20:00 {zone}");
        assert_eq!(
            parse(&text),
            Err(ParseTimeError::Abbreviation(zone.to_owned())),
            "{text}"
        );
    }
    for zone in ["+16", "+24", "+01:60", "+1", "+010030", "+01:", "+01:0", "+é1", "-"] {
        let text = format!("2026-11-21 10:20:00 {zone}");
        assert_eq!(parse(&text), Err(ParseTimeError::Offset(zone.to_owned())), "{text}");
    }
    for zone in ["Europe/Pari", "UTC+1", "EST5EDT", "+01 x"] {
        let text = format!("2026-11-21 10:20:00 {zone}");
        assert!(
            matches!(
                parse(&text),
                Err(ParseTimeError::UnknownZone(_) | ParseTimeError::Offset(_))
            ),
            "{text}"
        );
    }
    assert_eq!(
        parse("2026-11-21 10:20 pm"),
        Err(field(
            "2026-11-21 10:20 pm",
            "write hours from 00 to 23, without AM and PM"
        ))
    );
    for text in [
        "2026-11-21 10:20:00.1234564",
        "2026-11-21 10:20:59.9999999",
        "@1.0000001",
    ] {
        assert_eq!(parse(text), Err(ParseTimeError::TooPrecise(text.to_owned())), "{text}");
    }
    for text in [
        "@99999999999999999999",
        "@253402300800",
        "9999-12-31 23:59:59-01",
        "0001-01-01 00:00:00+01",
    ] {
        assert_eq!(parse(text), Err(ParseTimeError::OutOfRange(text.to_owned())), "{text}");
    }
    for text in [
        "",
        " ",
        "infinity",
        "epoch",
        "tomorrow 10:00",
        "noon",
        "yesterday14:00",
        "today  ",
        "10 minutes",
        "ago",
        "5 ago",
        "5M ago",
        "-5",
        "-",
        "--5m",
        "1.5 hours ago",
        "a month ago",
        "1 month ago",
        "2026-1-2 3:4:5",
        "2026-11-21 10",
        "2026-11-21 10:2",
        "2026-11-21 1:20",
        "2026-11-21T",
        "2026-11-21 T10:20",
        "2026-11-21T 10:20",
        "2026-11-2110:20",
        "2026-11-21 10:20:",
        "2026-11-21 10:20:00.",
        "2026-11-21 10:20:00,5",
        "2026-11-21 10:20:000",
        "2026-11-21 10:20.5",
        "21/11/2026 10:20:00",
        "11-21-2026 10:20:00",
        "20261121T102000Z",
        "12026-11-21 10:20:00",
        "2026-325 10:20:00",
        "@",
        "@-1",
        "@1e3",
        "@.5",
        "@1.",
        "2026-11-21 +01",
        "１０ minutes ago",
    ] {
        assert!(
            matches!(
                parse(text),
                Err(ParseTimeError::NotATime(_) | ParseTimeError::DayOnly(_))
            ),
            "{text}: {:?}",
            parse(text)
        );
    }
    // The server shifts a word at the end into the zone or the era.
    for text in ["2026-11-21 10:20:00 BC", "2026-11-21 10:20:00+01:00 x"] {
        assert!(parse(text).is_err(), "{text}");
    }
}

#[test] // the server takes them all, as standard time
fn a_wall_time_that_was_twice_or_never_is_refused() {
    for (zone, name) in [("", "this machine's zone"), (" Europe/Paris", "Europe/Paris")] {
        let twice = parse(&format!("2026-10-25 02:30:00{zone}")).unwrap_err();
        let expected =
            format!("2026-10-25 02:30:00 was twice in {name}: 2026-10-25T02:30:00+02:00 and 2026-10-25T02:30:00+01:00");
        assert_eq!(twice.to_string(), expected);
        assert_eq!(
            twice.hint().as_deref(),
            Some("Write the offset from UTC behind the time, for example +01.")
        );
        let never = parse(&format!("2026-03-29 02:30:00{zone}")).unwrap_err();
        let expected = format!("2026-03-29 02:30:00 never was in {name}: the clocks were turned forward over it");
        assert_eq!(never.to_string(), expected);
    }
    let now = DateTime::UNIX_EPOCH.fixed_offset();
    let broken = Clock {
        now,
        local_offset: &|_| None,
    };
    let error = RecoveryTime::parse("2026-03-29 02:30:00", &broken).unwrap_err();
    assert!(matches!(error, ParseTimeError::TwiceOrNever { .. }));
}

#[test]
fn how_the_zone_was_understood_is_told() {
    let told = |text: &str| parse(text).unwrap().understood().to_string();
    assert_eq!(told("2026-11-21 10:20:00+05:30"), "as given, +05:30");
    assert_eq!(told("2026-11-21 10:20:00Z"), "as given, +00:00");
    assert_eq!(told("2026-07-01 10:20:00 europe/paris"), "Europe/Paris, +02:00");
    assert_eq!(told("2026-07-01 10:20:00"), "this machine's zone, +02:00");
    assert_eq!(told("yesterday 10:20"), "this machine's zone, +01:00");
    assert_eq!(told("-5m"), "counted from now");
    assert_eq!(told("@5"), "seconds since 1970");
}

#[test] // extract(epoch …) and pg_control's own epoch; the ends are those of datatype/timestamp.h
fn timestamps_count_from_2000() {
    let at = |text: &str| DateTime::parse_from_rfc3339(text).unwrap().to_utc();
    assert_eq!(PgTimestamp::new(0).to_string(), "2000-01-01T00:00:00.000000Z");
    assert_eq!(
        PgTimestamp::from_utc(at("2026-11-21T10:20:00.123456Z")),
        Some(PgTimestamp::new(848_571_600_123_456))
    );
    assert_eq!(
        PgTimestamp::from_utc(at("1999-12-31T23:59:59.9999999Z")),
        Some(PgTimestamp::new(-1))
    );
    assert_eq!(
        PgTimestamp::new(-211_813_488_000_000_000).to_string(),
        "-4713-11-24T00:00:00.000000Z"
    );
    for beyond in [i64::MIN, i64::MAX, 9_223_371_331_199_999_999] {
        assert_eq!(PgTimestamp::new(beyond).to_utc(), None);
        assert_eq!(
            PgTimestamp::new(beyond).to_string(),
            format!("{beyond} µs since 2000-01-01")
        );
    }
}

/// Moments of years of four digits, to the microsecond.
fn moments() -> impl Strategy<Value = DateTime<Utc>> {
    (-62_000_000_000_000_000i64..253_402_300_799_999_999)
        .prop_map(|micros| DateTime::from_timestamp_micros(micros).unwrap())
}

proptest! {
    #[test]
    fn every_moment_survives_printing(at in moments(), offset in -57_599..57_599i32) {
        let zone = FixedOffset::east_opt(offset).unwrap();
        let time = parse(&at.format("%Y-%m-%d %H:%M:%S%.6f+00").to_string()).unwrap();
        prop_assert_eq!(time.instant(), at);
        prop_assert_eq!(parse(&time.for_settings()).unwrap().instant(), at);
        prop_assert_eq!(parse(&time.rfc3339()).unwrap().instant(), at);
        let elsewhere = at.with_timezone(&zone).format("%Y-%m-%d %H:%M:%S%.6f%::z").to_string();
        prop_assert_eq!(parse(&elsewhere).map(|time| time.instant()), Ok(at));
    }

    #[test]
    fn a_wall_time_is_this_machines_or_refused(at in moments()) {
        let wall = at.with_timezone(&Paris).naive_local();
        match parse(&wall.format("%Y-%m-%dT%H:%M:%S%.6f").to_string()) {
            Ok(time) => prop_assert_eq!(time.instant(), at),
            Err(error) => prop_assert!(matches!(error, ParseTimeError::Twice { .. }), "{}", error),
        }
    }

    #[test]
    fn every_timestamp_survives(micros: i64) {
        if let Some(at) = PgTimestamp::new(micros).to_utc() {
            prop_assert_eq!(PgTimestamp::from_utc(at), Some(PgTimestamp::new(micros)));
            prop_assert_eq!(at.trunc_subsecs(6), at);
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,40}", tail in "[-+:.0-9 TZagotdy@/é]{0,20}") {
        let _ = parse(&text);
        let _ = parse(&tail);
        let _ = parse(&format!("2026-11-21 {tail}"));
        let _ = parse(&format!("2026-11-21 10:20:00{tail}"));
    }
}
