//! The timeline on a terminal: commits as bars, events as letters below them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::env::Env;
use crate::ops::find::{Found, Kind};

/// Heights of a bar.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Where nobody says how wide the terminal is.
const WIDTH: usize = 80;
/// Wider than this is hard to read.
const WIDEST: usize = 240;
/// What a letter means.
const LEGEND: &str = "D drop, T truncate, M mass delete, R restore point, + other, * several";

/// The terminal's width in characters.
pub(super) fn width(env: &Env) -> usize {
    let told = rustix::termios::tcgetwinsize(std::io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col));
    let said = || env.var("COLUMNS").and_then(|columns| columns.parse().ok());
    told.filter(|columns| *columns > 0)
        .or_else(said)
        .unwrap_or(WIDTH)
        .clamp(20, WIDEST)
}

/// The timeline, of all that was found or of the time between two moments.
pub(super) fn draw(found: &Found, span: Option<(DateTime<Utc>, DateTime<Utc>)>, width: usize, env: &Env) -> String {
    let minute = |at: DateTime<Utc>| at.timestamp().div_euclid(60);
    let times = || found.minutes.keys().copied();
    let (first, last) = match span {
        Some((from, to)) => (minute(from), minute(to)),
        None => match (times().next(), times().next_back()) {
            (Some(first), Some(last)) => (first, last),
            _ => return String::new(),
        },
    };
    let each = usize::try_from((last - first) / width as i64 + 1).unwrap_or(usize::MAX);
    let column = |minute: i64| {
        let inside = (first..=last).contains(&minute);
        inside.then(|| (minute - first) as usize / each)
    };
    let columns = (last - first) as usize / each + 1;
    let mut commits = vec![0_u64; columns];
    for (minute, more) in &found.minutes {
        if let Some(column) = column(*minute) {
            commits[column] += more;
        }
    }
    let mut marks: BTreeMap<usize, char> = BTreeMap::new();
    for event in found.events.iter().filter(|event| event.kind.is_remarkable()) {
        if let Some(column) = event.at.and_then(|at| column(minute(at))) {
            let letter = letter(event.kind);
            let mark = marks.entry(column).or_insert(letter);
            if *mark != letter {
                *mark = '*';
            }
        }
    }
    let most = commits.iter().copied().max().unwrap_or_default();
    let bars: String = commits.iter().map(|commits| bar(*commits, most)).collect();
    let below: String = (0..columns)
        .map(|column| marks.get(&column).copied().unwrap_or(' '))
        .collect();
    let time = |minute: i64| {
        let at = DateTime::from_timestamp(minute * 60, 0).unwrap_or_default();
        env.local(at).format("%Y-%m-%d %H:%M").to_string()
    };
    let unit = if each == 1 {
        "minute".to_owned()
    } else {
        format!("{each} minutes")
    };
    let mut text = format!(
        "commits each {unit} from {} to {}, at most {most}\n",
        time(first),
        time(last)
    );
    text.push_str(&format!("{bars}\n"));
    if !marks.is_empty() {
        text.push_str(&format!("{}\n{LEGEND}\n", below.trim_end()));
    }
    text.push('\n');
    text
}

/// Something is never drawn as nothing.
fn bar(commits: u64, most: u64) -> char {
    let height = (commits * (BARS.len() as u64 - 1)).div_ceil(most.max(1));
    BARS[usize::try_from(height).unwrap_or_default().min(BARS.len() - 1)]
}

const fn letter(kind: Kind) -> char {
    match kind {
        Kind::Drop | Kind::DropDatabase | Kind::DropTablespace => 'D',
        Kind::Truncate => 'T',
        Kind::MassDelete => 'M',
        Kind::RestorePoint => 'R',
        _ => '+',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(minute * 60, 0).unwrap()
    }

    #[test]
    fn bars_fit_the_width_and_show_the_busiest_minute_highest() {
        let env = Env::made_up(&[], DateTime::UNIX_EPOCH, 1);
        let found = Found {
            minutes: (0..1000)
                .map(|minute| (minute, if minute == 500 { 90 } else { 1 }))
                .collect(),
            ..Found::default()
        };
        let text = draw(&found, None, 40, &env);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines[0],
            "commits each 25 minutes from 1970-01-01 00:00 to 1970-01-01 16:39, at most 114"
        );
        assert_eq!(lines[1].chars().count(), 40);
        assert_eq!(lines[1].chars().filter(|bar| *bar == '█').count(), 1);
        assert!(!lines[1].contains(' '));
    }

    #[test]
    fn without_a_commit_nothing_is_drawn_unless_a_time_was_asked_for() {
        let env = Env::made_up(&[], DateTime::UNIX_EPOCH, 1);
        assert_eq!(draw(&Found::default(), None, 40, &env), "");
        let text = draw(&Found::default(), Some((at(0), at(3))), 40, &env);
        assert_eq!(text.lines().nth(1), Some("    "));
    }
}
