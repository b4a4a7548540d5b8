//! `status` of a directory tree.

use serde_json::Value;

use crate::cli::{Output, size};

pub(super) fn print(status: &Value, out: &mut Output) -> anyhow::Result<()> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let bytes = |value: &Value| size(value.as_u64().unwrap_or(0));
    let counters = &status["counters"];
    out.line(format_args!("{} (tree, {} inodes)", text(&status["source"]), status["inodes"]))?;
    out.line(format_args!("  state     {}", text(&status["state"])))?;
    for (name, key) in
        [("PAUSED   ", "paused"), ("last mark failed:", "last_mark_error"), ("UNREADABLE", "unreadable_why")]
    {
        let shown = key != "unreadable_why" || status["unreadable"] != 0;
        if let Some(why) = status[key].as_str().filter(|_| shown) {
            out.line(format_args!("  {name} {why}"))?;
        }
    }
    out.line(format_args!("  capture   changes of files by {}", text(&status["rung"])))?;
    out.line(format_args!(
        "  changes   {} seen, {} emitted, {} lost; all was looked at again {} times",
        counters["seen"], counters["emitted"], status["missing"], status["rescans"]
    ))?;
    if let Some(why) = status["not_frozen"].as_str() {
        out.line(format_args!("  marks     without a freeze: {why}"))?;
    }
    out.line(format_args!(
        "  pending   {} names and files, {}",
        status["pending"],
        bytes(&status["pending_bytes"])
    ))?;
    out.line(format_args!(
        "  journal   {}: {} written",
        text(&status["journal"]),
        bytes(&status["journal_bytes"])
    ))?;
    let mark = &status["last_mark"];
    match mark.is_null() {
        true => out.line("  last mark none yet")?,
        false => out.line(format_args!(
            "  last mark {} ({}) {} {}",
            mark["id"],
            text(&mark["class"]),
            text(&mark["time"]),
            text(&mark["label"])
        ))?,
    }
    if let Some(why) = status["retention"]["error"].as_str() {
        out.line(format_args!("  RETENTION FAILS {why}"))?;
    }
    let replica = &status["replica"];
    if let Some(why) = replica["error"].as_str() {
        out.line(format_args!("  TARGET FAILS {why}"))?;
    }
    match (replica["mark"].as_u64(), replica["age_ms"].as_u64()) {
        (Some(mark), Some(age)) => {
            let seconds = std::time::Duration::from_millis(age).as_secs_f64();
            out.line(format_args!("  replica   {}: mark {mark}, {seconds:.1} s old", text(&status["target"])))
        }
        _ => out.line(format_args!("  replica   {}: not at a mark", text(&status["target"]))),
    }
}
