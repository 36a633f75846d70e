//! How far a long command is: one line that is drawn over on a terminal, a line every ten seconds
//! elsewhere.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use crate::pg::size::Size;

/// Drawing more often than this helps nobody.
const ON_TERMINAL: Duration = Duration::from_millis(200);
/// In a log, a line now and then says that it lives.
const IN_LOG: Duration = Duration::from_secs(10);

/// A line of progress on stderr.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    begun: Instant,
    last: Option<Instant>,
    phase: String,
    drawn: bool,
}

impl Progress {
    /// Begins now.
    pub fn begin() -> Self {
        let terminal = io::stderr().is_terminal();
        Self {
            terminal,
            begun: Instant::now(),
            last: None,
            phase: String::new(),
            drawn: false,
        }
    }

    /// Tells a phase without a number, once.
    pub fn phase(&mut self, phase: &str) {
        if self.phase != phase {
            phase.clone_into(&mut self.phase);
            self.write(phase);
            self.last = Some(Instant::now());
        }
    }

    /// Tells how many bytes of how many are done; `more` is added at the end.
    pub fn bytes(&mut self, done: u64, total: u64, more: &str) {
        if !self.is_due() {
            return;
        }
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let rate = done as f64 / seconds;
        let left = (total.saturating_sub(done)) as f64 / rate.max(1.0);
        let percent = (done * 100).checked_div(total).unwrap_or(100);
        let text = format!(
            "{} of {} ({percent} %), {}/s, {} left{more}",
            size(done),
            size(total),
            size(rate as u64),
            humantime::format_duration(Duration::from_secs(left as u64)),
        );
        self.write(&text);
    }

    /// Tells a line of one's own.
    pub fn line(&mut self, text: &str) {
        if self.is_due() {
            self.write(text);
        }
    }

    fn is_due(&mut self) -> bool {
        let every = if self.terminal { ON_TERMINAL } else { IN_LOG };
        if self.last.is_some_and(|last| last.elapsed() < every) {
            return false;
        }
        self.last = Some(Instant::now());
        self.phase.clear();
        true
    }

    /// Tells how many things of how many are done; nothing where that takes no time.
    pub fn counted(&mut self, doing: &str, done: usize, total: usize, things: &str) {
        self.last.get_or_insert(self.begun);
        if self.is_due() {
            self.write(&format!("{doing}: {} of {} {things}", grouped(done), grouped(total)));
        }
    }

    /// Ends the line that was drawn.
    pub fn end(&mut self) {
        if self.drawn {
            self.drawn = false;
            let _ = io::stderr().write_all(b"\n");
        }
    }

    fn write(&mut self, text: &str) {
        let line = if self.terminal {
            format!("\r\x1b[K{text}")
        } else {
            format!("{text}\n")
        };
        self.drawn = self.terminal;
        // With stderr gone there is nobody left to tell.
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.end();
    }
}

/// Bytes for people.
pub fn size(bytes: u64) -> String {
    Size::new(bytes).short()
}

/// A number with its thousands apart: `12,345`.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_stand_apart() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }
}
