//! Fuzz targets of the configuration and of what is shown of a protection's answer: see `crate::fuzzing`.

use crate::cli::config;
use crate::cli::status_table::table;
use crate::cli::watch;
use crate::model::Timestamp;
use crate::service::fuzzing::answered;

/// It is an error, or it is shown, and does nothing to the terminal.
pub fn status_answer(data: &[u8]) {
    let Some(seen) = answered(data) else { return };
    let now = Timestamp(1_800_000_000 * 1_000_000_000);
    let shown = table(std::slice::from_ref(&seen), now).concat();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    for (width, height) in [(80, 24), (200, 60)] {
        let screen = watch::screen(vec![seen.clone()], now, width, height);
        assert!(!screen.chars().any(char::is_control), "{screen:?}");
    }
}

/// Each mistake is told with a line that is there.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Err(mistakes) = config::parse_unmounted(text) else { return };
    let lines = text.split('\n').count();
    assert!(!mistakes.is_empty());
    for mistake in mistakes {
        assert!((1..=lines).contains(&mistake.line), "{mistake:?} of {lines} lines");
    }
}
