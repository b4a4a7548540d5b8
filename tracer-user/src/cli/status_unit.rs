//! `status` of what the service is to protect, and does not at the moment.

use serde_json::Value;

use crate::cli::{Output, size};
use crate::service::{Recorded, UnitStatus, volume_name};

/// With `volume`, its name, and what its probes recorded meanwhile.
pub(super) fn idle(units: Vec<UnitStatus>, recorded: &[Recorded]) -> serde_json::Result<Vec<Value>> {
    let idle = units.into_iter().filter(|unit| unit.state != "running");
    idle.map(|unit| {
        let volume = volume_name(&unit.source);
        let of_it = recorded.iter().find(|recorded| recorded.volume == volume);
        let mut value = serde_json::to_value(&unit)?;
        value["recorded_bytes"] = serde_json::to_value(of_it.and_then(|recorded| recorded.recorded_bytes))?;
        value["recording"] = of_it.is_some().into();
        value["volume"] = volume.into();
        Ok(value)
    })
    .collect()
}

pub(super) fn print(unit: &Value, out: &mut Output) -> anyhow::Result<()> {
    let text = |key: &str| unit[key].as_str().unwrap_or_default();
    out.line(format_args!("{} ({})", text("source"), text("name")))?;
    match (text("state"), unit["next_try_ms"].as_u64()) {
        ("failed", Some(ms)) => {
            out.line(format_args!("  FAILED    {}", text("why")))?;
            out.line(format_args!(
                "  next try  in {} s, {} failures; `afterwrite resume {}` tries at once",
                ms.div_ceil(1000),
                unit["failures"],
                text("name")
            ))?;
        }
        ("paused", _) => {
            out.line(format_args!("  state     paused: `afterwrite resume {}`", text("name")))?
        }
        (state, _) => out.line(format_args!("  state     {state}"))?,
    }
    if unit["recording"] == true {
        let bytes = unit["recorded_bytes"].as_u64().map_or("an unknown amount".into(), size);
        out.line(format_args!("  recorded  {bytes} at least, by its probes"))?;
    } else if text("kind") == "volume" {
        out.line("  recorded  nothing: no probes are at work, so all of it will be compared")?;
    }
    Ok(())
}
