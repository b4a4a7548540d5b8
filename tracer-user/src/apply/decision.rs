use crate::apply::{ApplyError, Checkpoint, CheckpointError};
use crate::model::VolumeId;
use crate::target::OpenTarget;

/// How a replica is opened: made from its checkpoint and its target as they are found. Pure.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Nothing of this journal was ever applied to a target.
    Fresh(OpenTarget),
    /// Go on where the checkpoint says.
    Resume(Checkpoint),
    /// The target's content is not known: apply everything again.
    Rebuild(OpenTarget, String),
}

pub(super) struct Found<'a> {
    pub(super) checkpoint: Result<Option<Checkpoint>, CheckpointError>,
    /// Identity of what is at the target's path.
    pub(super) target: Option<&'a str>,
    pub(super) target_path: &'a str,
    pub(super) volume: VolumeId,
    pub(super) force: bool,
}

pub(super) fn decide(found: Found<'_>) -> Result<Decision, ApplyError> {
    let new = OpenTarget::New { force: found.force };
    let checkpoint = match found.checkpoint {
        Ok(Some(checkpoint)) => checkpoint,
        Ok(None) => return Ok(Decision::Fresh(new)),
        Err(CheckpointError::Damaged { what, .. }) => {
            // There was a replica; that what stands here is it is as sure as its path. Everything is written again.
            let how = if found.target.is_some() { OpenTarget::Resume } else { new };
            return Ok(Decision::Rebuild(how, format!("its checkpoint is damaged: {what}")));
        }
        Err(error) => return Err(error.into()),
    };
    if checkpoint.volume != found.volume {
        return Err(ApplyError::WrongVolume { found: checkpoint.volume, expected: found.volume });
    }
    match found.target {
        Some(identity) if identity == checkpoint.target_identity => Ok(Decision::Resume(checkpoint)),
        // Its disk may just not be mounted: a new one here would fill the wrong disk.
        None if checkpoint.target_path == found.target_path && !found.force => {
            Err(ApplyError::TargetGone { path: checkpoint.target_path.into() })
        }
        _ => Ok(Decision::Rebuild(
            new,
            format!("the replica so far was another target, {}", checkpoint.target_path),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Lsn;
    use std::path::Path;

    const VOLUME: VolumeId = VolumeId([1; 16]);

    fn checkpoint() -> Checkpoint {
        Checkpoint { applied: Lsn(9), ..Checkpoint::fresh(VOLUME, Path::new("/r.img"), "file:1:1") }
    }

    /// Every checkpoint that can be found, with every target, with and without force.
    #[test]
    fn the_decision_table_is_complete() {
        for force in [false, true] {
            let new = OpenTarget::New { force };
            for (target, target_path) in [
                (None, "/r.img"),
                (None, "/new.img"),
                (Some("file:1:1"), "/r.img"),
                (Some("file:2:2"), "/r.img"),
            ] {
                let found = |checkpoint| Found { checkpoint, target, target_path, volume: VOLUME, force };
                assert_eq!(decide(found(Ok(None))).unwrap(), Decision::Fresh(new));

                let damaged = || CheckpointError::Damaged { path: "c".into(), what: "hash".into() };
                let how = if target.is_some() { OpenTarget::Resume } else { new };
                assert!(matches!(decide(found(Err(damaged()))), Ok(Decision::Rebuild(got, _)) if got == how));

                let later = CheckpointError::UnsupportedVersion { path: "c".into(), version: 2 };
                assert!(matches!(decide(found(Err(later))), Err(ApplyError::Checkpoint(_))));

                let other = Checkpoint { volume: VolumeId([2; 16]), ..checkpoint() };
                assert!(matches!(decide(found(Ok(Some(other)))), Err(ApplyError::WrongVolume { .. })));

                match (decide(found(Ok(Some(checkpoint())))), target) {
                    (Ok(Decision::Resume(got)), Some("file:1:1")) => assert_eq!(got, checkpoint()),
                    (Err(ApplyError::TargetGone { .. }), None) => assert!(!force && target_path == "/r.img"),
                    (Ok(Decision::Rebuild(got, _)), None) => {
                        assert!(got == new && (force || target_path != "/r.img"))
                    }
                    (Ok(Decision::Rebuild(got, _)), Some("file:2:2")) => assert_eq!(got, new),
                    (got, _) => panic!("{got:?} for {target:?} at {target_path}, force {force}"),
                }
            }
        }
    }
}
