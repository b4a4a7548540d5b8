//! Fuzz target of the control socket: see `crate::fuzzing`.

use crate::collect::GroupStep;
use crate::journal::LABEL_LEN_MAX;
use crate::model::{GroupMarkName, Timestamp};
use crate::service::protocol::{Request, parse_order};
use crate::service::survey::{Seen, parse};

pub fn request(data: &[u8]) {
    let Ok(line) = std::str::from_utf8(data) else { return };
    of_a_group(line);
    let Ok(request) = Request::parse(line) else { return };
    // What the journal would refuse never gets there: it would end the protection.
    match &request {
        Request::Mark { label } => {
            assert!(label.len() <= LABEL_LEN_MAX && GroupMarkName::of(label).is_none());
        }
        Request::Join { label, .. } => {
            assert!(label.len() <= LABEL_LEN_MAX && GroupMarkName::of(label).is_some());
        }
        Request::MarkGroup { label, .. } => {
            // The longest name that a configuration takes.
            let group = &"g".repeat(64);
            let name = GroupMarkName { group, label }.at(Timestamp(u64::MAX));
            assert!(name.len() <= LABEL_LEN_MAX);
            assert_eq!(GroupMarkName::of(&name), Some(GroupMarkName { group, label }));
        }
        _ => {}
    }
    let again = serde_json::to_string(&request).expect("what was parsed can be written");
    assert_eq!(Request::parse(&again).as_ref(), Ok(&request));
}

/// What coordinator and member say to each other after that.
fn of_a_group(line: &str) {
    if let Ok(order) = parse_order(line) {
        let again = serde_json::to_string(&order).expect("what was parsed can be written");
        assert_eq!(parse_order(&again), Ok(order));
    }
    if let Ok(step) = serde_json::from_str::<GroupStep>(line) {
        let again = serde_json::to_string(&step).expect("what was parsed can be written");
        assert_eq!(serde_json::from_str::<GroupStep>(&again).ok(), Some(step));
    }
}

/// What a control socket answered, as whoever asks for a status takes it.
pub fn answered(data: &[u8]) -> Option<Seen> {
    let read = parse(data).ok()?;
    let again = serde_json::to_value(&read).expect("what was read can be written");
    let line = serde_json::json!({ "ok": again }).to_string();
    assert_eq!(parse(line.as_bytes()).as_ref(), Ok(&read));
    Some(Seen::told("name".into(), read))
}
