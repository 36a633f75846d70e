//! Amounts in words for people.

use std::time::Duration;

/// About this long: `42s`, `14m 3s`, `2h 5m`, `3days 4h`.
pub(super) fn span(length: Duration) -> String {
    let coarse = match length.as_secs() {
        seconds @ 0..3600 => seconds,
        seconds @ 3600..86_400 => seconds / 60 * 60,
        seconds => seconds / 3600 * 3600,
    };
    humantime::format_duration(Duration::from_secs(coarse)).to_string()
}

/// A number and a noun: `1 segment`, `2 segments`.
pub(super) fn count(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}

/// How often: `once`, `twice`, `3 times`.
pub(super) fn times(number: u64) -> String {
    match number {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        _ => format!("{number} times"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_counts_are_short() {
        for (seconds, text) in [(0, "0s"), (843, "14m 3s"), (7530, "2h 5m"), (273_700, "3days 4h")] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
        assert_eq!(
            (count(1, "slot"), count(2, "slot")),
            ("1 slot".to_owned(), "2 slots".to_owned())
        );
    }
}
