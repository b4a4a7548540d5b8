//! A running protection: what `protect` is made of, and how `mark` and `status` speak to it.

mod applier;
mod call_share;
mod control;
mod device_source;
mod early;
mod elsewhere;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod group_seen;
mod journal_slot;
mod limits;
mod looks;
mod member;
mod memory;
mod origin;
mod pipeline;
mod placer;
mod prepare;
mod privileges;
mod progress;
mod protect;
mod protocol;
mod reading;
mod recorded;
mod replica_samples;
mod retention;
mod run_dir;
#[cfg(test)]
pub(crate) mod samples;
mod stopped;
mod supervisor;
mod survey;
mod tree;
mod units;
mod unwatched;

pub use control::{Client, ControlError};
pub use device_source::volume_extent;
pub use early::{AttachError, Attached, FinishError, attach, finish};
pub use elsewhere::{Elsewhere, elsewhere};
pub use group_seen::{GroupSeen, groups_of_volumes};
pub use limits::Limits;
pub use origin::OriginStatus;
pub use prepare::PrepareError;
pub use privileges::{PrivilegesError, give_up_privileges};
pub use progress::{LeftOut, ReplicaStatus, Status};
pub use protect::{ProtectError, ProtectEvent, ProtectOptions, ProtectSummary, protect};
pub use reading::{BurstRead, Problem, Reading, ReplicaRead, Standing};
pub use recorded::{DetachError, Recorded, detach, recorded};
pub use run_dir::{path as run_dir, volume_name};
pub use survey::{Seen, Survey, survey, survey_now};
pub use tree::{TreeEvent, TreeOptions, TreeStatus, protect_tree};
pub use units::{
    Configuration, Group, GroupMark, GroupStatus, ServiceOrder, Unit, UnitKind, UnitStatus, UnitsOptions,
    groups_status, mark_group, run_units, tell_service, together, units_status,
};
