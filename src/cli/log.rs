//! The log of commands that run for long: one event a line on stderr, as text or JSON.
//!
//! Events are emitted where things happen, with `tracing`; nothing is written unless a command calls [`begin`], so
//! that the others' stderr stays as it is. Values come from servers, stores and names that people chose: whatever
//! would begin a line or speak to a terminal is written as an escape. Other crates may say warnings and errors only,
//! whatever the level: at the lower ones they tell of requests, and those carry credentials.

use std::io::{self, Write};
use std::str::FromStr;

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{fmt, registry};

use super::report::printable;
use super::settings::{Settings, SettingsError};

/// Our own events; all others are somebody else's.
const OURS: &str = "pgp_pitr";

/// How events are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

impl FromStr for Format {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("text or json"),
        }
    }
}

/// From now on events of this process are written to stderr, as `log_format` and `log_level` say.
///
/// # Errors
/// Settings that are neither.
pub fn begin(settings: &Settings) -> Result<(), SettingsError> {
    let format = settings.get("log_format")?.unwrap_or(Format::Text);
    let level = settings.read("log_level", level)?.unwrap_or(LevelFilter::INFO);
    // It fails where a log was begun before: then that one goes on.
    let _ = tracing::subscriber::set_global_default(subscriber(format, level, io::stderr));
    Ok(())
}

fn level(text: &str) -> Result<LevelFilter, &'static str> {
    match text {
        "error" => Ok(LevelFilter::ERROR),
        "warn" => Ok(LevelFilter::WARN),
        "info" => Ok(LevelFilter::INFO),
        "debug" => Ok(LevelFilter::DEBUG),
        _ => Err("error, warn, info or debug"),
    }
}

fn subscriber<W, M>(format: Format, level: LevelFilter, to: M) -> Box<dyn Subscriber + Send + Sync>
where
    W: Write,
    M: Fn() -> W + Send + Sync + 'static,
{
    let others = LevelFilter::WARN.min(level);
    let which = Targets::new().with_default(others).with_target(OURS, level);
    let lines = registry().with(which);
    let to = Harmless { format, to };
    match format {
        Format::Text => Box::new(lines.with(fmt::layer().with_ansi(false).with_target(false).with_writer(to))),
        Format::Json => {
            let layer = fmt::layer().json().flatten_event(true).with_current_span(false);
            Box::new(lines.with(layer.with_span_list(false).with_writer(to)))
        }
    }
}

/// Passes lines on, harmless.
struct Harmless<M> {
    format: Format,
    to: M,
}

impl<'a, W: Write, M: Fn() -> W> MakeWriter<'a> for Harmless<M> {
    type Writer = Line<W>;

    fn make_writer(&'a self) -> Line<W> {
        Line {
            format: self.format,
            to: (self.to)(),
        }
    }
}

/// The writer of one event, which comes in one call.
struct Line<W> {
    format: Format,
    to: W,
}

impl<W: Write> Write for Line<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let mut line = match self.format {
            Format::Text => printable(text),
            Format::Json => text.chars().map(json_escaped).collect(),
        };
        line.push('\n');
        self.to.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// JSON may hold characters as they are that [`printable`] would not let through.
fn json_escaped(character: char) -> String {
    let mut bytes = [0; 4];
    let text = character.encode_utf8(&mut bytes);
    match printable(text) == *text {
        true => text.to_owned(),
        // All of them are below U+10000.
        false => format!("\\u{:04x}", u32::from(character)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::pg::Lsn;

    #[derive(Clone, Default)]
    struct Taken(Arc<Mutex<Vec<u8>>>);

    impl Write for Taken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: Format, level: LevelFilter, events: impl FnOnce()) -> String {
        let taken = Taken::default();
        let to = taken.clone();
        tracing::subscriber::with_default(subscriber(format, level, move || to.clone()), events);
        let bytes = taken.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    const WICKED: &str = "a\nb\u{1b}[2K\u{202e}\u{85}\"";

    fn speak() {
        tracing::info!(lsn = %Lsn::new(0x500_0A10), timeline = 3, "streaming");
        tracing::warn!(error = %WICKED, hint = WICKED, "{WICKED}");
        tracing::debug!("too much");
        tracing::info!(target: "hyper::proto", "authorization: secret");
        tracing::warn!(target: "object_store", "slow");
    }

    #[test]
    fn text_has_one_line_for_an_event_whatever_the_values_are() {
        let text = logged(Format::Text, LevelFilter::INFO, speak);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[0].ends_with(" INFO streaming lsn=0/5000A10 timeline=3"), "{text}");
        assert!(
            text.chars()
                .all(|mark| mark == '\n' || printable(&mark.to_string()) == mark.to_string())
        );
        assert!(lines[2].ends_with("WARN slow"), "{text}");
    }

    #[test]
    fn json_has_the_fields_and_its_values_are_whole() {
        let text = logged(Format::Json, LevelFilter::INFO, speak);
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0]["message"], "streaming");
        assert_eq!(lines[0]["level"], "INFO");
        assert_eq!(lines[0]["lsn"], "0/5000A10");
        assert_eq!(lines[0]["timeline"], 3);
        let at = lines[0]["timestamp"].as_str().unwrap();
        assert!(
            chrono::DateTime::parse_from_rfc3339(at).is_ok() && at.ends_with('Z'),
            "{at}"
        );
        assert_eq!(lines[1]["hint"], WICKED);
        assert_eq!(lines[1]["error"], WICKED);
        assert!(
            text.chars()
                .all(|mark| mark == '\n' || printable(&mark.to_string()) == mark.to_string())
        );
    }

    #[test]
    fn the_level_holds_for_others_too_and_never_opens_them() {
        let text = logged(Format::Text, LevelFilter::DEBUG, speak);
        assert!(text.contains("too much") && !text.contains("secret"), "{text}");
        let text = logged(Format::Text, LevelFilter::ERROR, speak);
        assert_eq!(text, "");
    }

    #[test]
    fn a_setting_that_is_neither_is_refused() {
        assert!("yaml".parse::<Format>().is_err() && level("loud").is_err());
        assert_eq!(level("debug"), Ok(LevelFilter::DEBUG));
    }
}
