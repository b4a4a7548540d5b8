//! Lines on stderr for who runs the machine. Under systemd each says how urgent it is, as `sd-daemon(3)` has it: `<3>` is for who
//! is on call, `<4>` for who looks in the morning, `<6>` for who wonders later.

use std::io::Write;
use std::sync::LazyLock;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    Error = 3,
    Warning = 4,
    Info = 6,
}

/// Set by systemd for what it starts, and by it for what that starts.
static IN_JOURNAL: LazyLock<bool> = LazyLock::new(|| std::env::var_os("JOURNAL_STREAM").is_some());

impl Priority {
    /// What a line says of itself, and the rest of it.
    pub fn of(line: &str) -> (Priority, &str) {
        let found = [Priority::Error, Priority::Warning, Priority::Info]
            .into_iter()
            .find_map(|priority| Some((priority, line.strip_prefix(&format!("<{}>", priority as u8))?)));
        found.unwrap_or((Priority::Info, line))
    }

    pub fn of_level(level: log::Level) -> Priority {
        match level {
            log::Level::Error => Priority::Error,
            log::Level::Warn => Priority::Warning,
            _ => Priority::Info,
        }
    }
}

/// Whether lines are to say how urgent they are.
pub fn in_journal() -> bool {
    *IN_JOURNAL
}

/// That nobody reads it is no reason to stop.
pub fn say(priority: Priority, line: &str) {
    let _ = match in_journal() {
        true => writeln!(std::io::stderr(), "<{}>{line}", priority as u8),
        false => writeln!(std::io::stderr(), "{line}"),
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_urgent_it_is() {
        assert_eq!(Priority::of("<3>no room"), (Priority::Error, "no room"));
        assert_eq!(Priority::of("<6>going on"), (Priority::Info, "going on"));
        for plain in ["no room", "<9>no room", "<3 no room", ""] {
            assert_eq!(Priority::of(plain), (Priority::Info, plain));
        }
    }
}
