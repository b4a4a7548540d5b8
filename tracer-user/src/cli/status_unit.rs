//! `status --json` of what the service is to protect, and does not at the moment.

use serde_json::Value;

use crate::service::{Recorded, UnitStatus, volume_name};

/// With `volume`, its name, and what its probes recorded meanwhile.
pub(super) fn idle(units: &[UnitStatus], recorded: &[Recorded]) -> serde_json::Result<Vec<Value>> {
    let idle = units.iter().filter(|unit| !unit.is_running());
    idle.map(|unit| {
        let volume = volume_name(&unit.source);
        let of_it = recorded.iter().find(|recorded| recorded.volume == volume);
        let mut value = serde_json::to_value(unit)?;
        value["recorded_bytes"] = serde_json::to_value(of_it.and_then(|recorded| recorded.recorded_bytes))?;
        value["recording"] = of_it.is_some().into();
        value["volume"] = volume.into();
        Ok(value)
    })
    .collect()
}
