//! Fuzz target of the control socket: see `crate::fuzzing`.

use crate::journal::LABEL_LEN_MAX;
use crate::service::protocol::Request;
use crate::service::survey::{Seen, parse};

pub fn request(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    let Ok(request) = Request::parse(line) else { return };
    // What the journal would refuse never gets there: it would end the protection.
    assert!(!matches!(&request, Request::Mark { label } if label.len() > LABEL_LEN_MAX));
    let again = serde_json::to_string(&request).expect("what was parsed can be written");
    assert_eq!(Request::parse(&again).as_ref(), Ok(&request));
}

/// What a control socket answered, as whoever asks for a status takes it.
pub fn answered(data: &[u8]) -> Option<Seen> {
    let read = parse(data).ok()?;
    let again = serde_json::to_value(&read).expect("what was read can be written");
    let line = serde_json::json!({ "ok": again }).to_string();
    assert_eq!(parse(line.as_bytes()).as_ref(), Ok(&read));
    Some(Seen::told("name".into(), read))
}
