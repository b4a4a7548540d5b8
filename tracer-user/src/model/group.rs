//! What the mark of a consistency group is called, in the journal of each member the same: `group:NAME/INSTANT`, and with a label
//! that a person gave `group:NAME/INSTANT/LABEL`. INSTANT is when it was begun, so that no two marks of a group are called
//! the same, and one that failed in a member is never taken for another one there.

use crate::model::Timestamp;

pub const GROUP_PREFIX: &str = "group:";

/// The parts of such a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupMarkName<'a> {
    pub group: &'a str,
    /// Empty for one that was due.
    pub label: &'a str,
}

impl<'a> GroupMarkName<'a> {
    /// `None` if the label is that of a volume's own mark.
    pub fn of(label: &'a str) -> Option<GroupMarkName<'a>> {
        let (group, rest) = label.strip_prefix(GROUP_PREFIX)?.split_once('/')?;
        let label = rest.split_once('/').map_or("", |(_, label)| label);
        Some(GroupMarkName { group, label })
    }

    /// The whole name.
    pub fn at(&self, begun: Timestamp) -> String {
        let instant = match jiff::Timestamp::from_nanosecond(i128::from(begun.0)) {
            Ok(time) => format!("{time:.6}"),
            Err(_) => begun.0.to_string(),
        };
        let label = if self.label.is_empty() { String::new() } else { format!("/{}", self.label) };
        format!("{GROUP_PREFIX}{}/{instant}{label}", self.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_its_group_and_the_label_that_was_given() {
        for label in ["", "before-upgrade", "a/b c"] {
            let name = GroupMarkName { group: "orders", label };
            let whole = name.at(Timestamp(1_700_000_000_123_456_789));
            assert!(whole.starts_with("group:orders/2023-11-14T22:13:20.123456Z"), "{whole}");
            assert_eq!(GroupMarkName::of(&whole), Some(name));
        }
        for other in ["", "before-upgrade", "group", "group:orders"] {
            assert_eq!(GroupMarkName::of(other), None);
        }
    }
}
