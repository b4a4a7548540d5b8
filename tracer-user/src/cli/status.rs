use std::time::Duration;

use clap::Args;
use serde_json::Value;

use crate::cli::{Outcome, Output, size};
use crate::service::Client;

/// Show the protected volumes: state, lag, last mark, events seen, emitted and marked
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  afterwrite status --json | jq .[0].replica.age_ms")]
pub struct StatusArgs {
    /// Only this volume, as /dev/NAME or NAME
    volume: Option<String>,
    /// An array with an object for each volume
    #[arg(long)]
    json: bool,
    /// Again every second
    #[arg(long)]
    watch: bool,
}

pub fn run(args: &StatusArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    loop {
        let clients = match &args.volume {
            Some(volume) => vec![Client::of(Some(volume))?],
            None => Client::all()?,
        };
        let all = clients.iter().map(Client::status).collect::<Result<Vec<_>, _>>()?;
        if args.json {
            out.json(&all)?;
        } else {
            for status in &all {
                print(status, out)?;
            }
        }
        if !args.watch || out.is_closed() {
            return Ok(Outcome::Done);
        }
        out.finish()?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn print(status: &Value, out: &mut Output) -> anyhow::Result<()> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let bytes = |value: &Value| size(value.as_u64().unwrap_or(0));
    let counters = &status["counters"];
    out.line(format_args!("{} ({})", text(&status["source"]), bytes(&status["size_bytes"])))?;
    out.line(format_args!("  state     {}", text(&status["state"])))?;
    if status["scan_done_bytes"] != status["scan_total_bytes"] {
        out.line(format_args!(
            "  copied    {} of {}",
            bytes(&status["scan_done_bytes"]),
            bytes(&status["scan_total_bytes"])
        ))?;
    }
    out.line(format_args!("  capture   {} by {}", text(&status["capture"]), text(&status["rung"])))?;
    out.line(format_args!(
        "  writes    {} seen = {} emitted + {} marked (ring full)",
        counters["seen"], counters["emitted"], counters["marked"]
    ))?;
    out.line(format_args!(
        "  pending   {}, oldest {} ms",
        bytes(&status["pending_bytes"]),
        status["pending_ms"]
    ))?;
    if status["unreadable_bytes"] != 0 {
        out.line(format_args!("  UNREADABLE {} of the source", bytes(&status["unreadable_bytes"])))?;
    }
    out.line(format_args!(
        "  journal   {}: record {} durable, {} written",
        text(&status["journal"]),
        status["durable_lsn"],
        bytes(&status["journal_bytes"])
    ))?;
    let mark = &status["last_mark"];
    if mark.is_null() {
        out.line(format_args!("  last mark none yet"))?;
    } else {
        out.line(format_args!(
            "  last mark {} ({}) {} {}",
            mark["id"],
            text(&mark["class"]),
            text(&mark["time"]),
            text(&mark["label"])
        ))?;
    }
    if let Some(error) = status["last_mark_error"].as_str() {
        out.line(format_args!("  last mark failed: {error}"))?;
    }
    let replica = &status["replica"];
    match (replica["mark"].as_u64(), replica["age_ms"].as_u64()) {
        (Some(mark), Some(age)) => {
            out.line(format_args!(
                "  replica   {}: mark {mark}, {:.1} s old",
                text(&status["target"]),
                age as f64 / 1000.0
            ))?;
        }
        _ => out.line(format_args!("  replica   {}: not at a mark", text(&status["target"])))?,
    }
    Ok(())
}
