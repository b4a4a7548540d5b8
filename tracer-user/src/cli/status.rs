use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::cli::{Outcome, Output, say, size, status_group, status_table, status_tree, status_unit, watch};
use crate::io::clock::realtime;
use crate::service::{
    BurstRead, Client, ControlError, Elsewhere, LeftOut, ReplicaRead, Survey, elsewhere, groups_of_volumes,
    groups_status, recorded, run_dir, survey_now, units_status,
};

/// Show the protected volumes: state, rate, lag, last mark, ring, writes seen, emitted and marked
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  afterwrite status\n  afterwrite status --watch\n  afterwrite status --json | jq .[0].replica.age_ms"
)]
pub struct StatusArgs {
    /// Only this volume, as /dev/NAME or NAME, or its name in the configuration, with all its details
    volume: Option<String>,
    /// An array with an object for each volume, and for each group
    #[arg(long)]
    json: bool,
    /// Again every second: on a terminal a live view, else, or with --json, line after line
    #[arg(long)]
    watch: bool,
}

pub fn run(args: &StatusArgs, out: &mut Output) -> anyhow::Result<Outcome> {
    if args.watch && !args.json && std::io::stdout().is_terminal() && std::io::stdin().is_terminal() {
        return watch::run(args.volume.as_deref());
    }
    loop {
        match &args.volume {
            _ if args.json => out.json(&all(args)?)?,
            Some(_) => {
                for status in all(args)? {
                    print_details(&status, out)?;
                }
            }
            None => print_table(out)?,
        }
        if !args.watch || out.is_closed() {
            return Ok(Outcome::Done);
        }
        out.finish()?;
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn print_table(out: &mut Output) -> anyhow::Result<()> {
    let dir = run_dir();
    let Survey { volumes, groups } = survey_now(&dir).context("the protections can't be asked")?;
    let elsewhere = elsewhere(&dir).iter().map(of_elsewhere).collect::<Vec<_>>();
    if volumes.is_empty() {
        elsewhere.iter().for_each(|line| say(line));
        return Err(ControlError::NothingRuns { dir }.into());
    }
    let now = realtime();
    let lines = status_table::table(&volumes, now).into_iter();
    let lines = lines.chain(status_group::lines(&groups, now)).chain(elsewhere);
    lines.into_iter().try_for_each(|line| out.line(line))
}

fn of_elsewhere(elsewhere: &Elsewhere) -> String {
    let (dir, volumes) = (elsewhere.run_dir.display(), elsewhere.volumes.join(", "));
    status_table::printable(&format!(
        "elsewhere: {volumes}, protected with another run directory: `AFTERWRITE_RUN_DIR={dir} afterwrite status` shows it"
    ))
}

fn print_details(status: &Value, out: &mut Output) -> anyhow::Result<()> {
    match status["kind"] == "tree" {
        true => status_tree::print(status, out),
        false => print(status, out),
    }
}

/// Running protections, what the service does not run at the moment (`paused`, `failed`), and volumes whose probes are at work
/// without either (`recording`).
fn all(args: &StatusArgs) -> anyhow::Result<Vec<Value>> {
    // One of another version may know of no groups.
    let groups = groups_status().unwrap_or_default();
    if let Some(volume) = &args.volume {
        let units = units_status().ok().flatten().unwrap_or_default();
        let mut status = Client::named(volume, &units)?.status()?;
        status_group::add(&mut status, &groups_of_volumes(&units, &groups));
        return Ok(vec![status]);
    }
    let recorded = recorded();
    let units = units_status()?.unwrap_or_default();
    let idle = status_unit::idle(&units, &recorded)?;
    let recorded: Vec<Value> = recorded
        .iter()
        .filter(|recorded| idle.iter().all(|unit| unit["volume"] != recorded.volume))
        .map(|recorded| {
            let mut value = serde_json::to_value(recorded)?;
            value["state"] = "recording".into();
            Ok(value)
        })
        .collect::<serde_json::Result<_>>()?;
    let clients = match Client::all() {
        Err(ControlError::NothingRuns { .. }) if !recorded.is_empty() || !idle.is_empty() => Vec::new(),
        clients => clients?,
    };
    let mut all = clients.iter().map(Client::status).collect::<Result<Vec<_>, _>>()?;
    all.extend(idle);
    let of_volumes = groups_of_volumes(&units, &groups);
    all.iter_mut().for_each(|status| status_group::add(status, &of_volumes));
    all.extend(recorded);
    all.extend(status_group::objects(&groups)?);
    Ok(all)
}

fn print_origin(origin: &Value, out: &mut Output) -> anyhow::Result<()> {
    match (origin["rung"].as_str(), origin["off"].as_str()) {
        (Some(rung), _) => out.line(format_args!(
            "  origins   {} changes of files on {} file systems by {rung}, {} missing",
            origin["counters"]["seen"], origin["file_systems"], origin["missing"]
        ))?,
        (None, Some(why)) => out.line(format_args!("  origins   not recorded: {why}"))?,
        (None, None) => {}
    }
    let bursts = Vec::<BurstRead>::deserialize(&origin["bursts"]).unwrap_or_default();
    bursts.iter().try_for_each(|burst| out.line(format_args!("  WARNING   {burst}")))?;
    Ok(())
}

fn print(status: &Value, out: &mut Output) -> anyhow::Result<()> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let bytes = |value: &Value| size(value.as_u64().unwrap_or(0));
    let counters = &status["counters"];
    out.line(format_args!("{} ({})", text(&status["source"]), bytes(&status["size_bytes"])))?;
    out.line(format_args!("  state     {}", text(&status["state"])))?;
    if let Some(group) = status["group"].as_str() {
        out.line(format_args!(
            "  group     {group}, marked together: `afterwrite status` has its last mark"
        ))?;
    }
    if status["scan_done_bytes"] != status["scan_total_bytes"] {
        out.line(format_args!(
            "  copied    {} of {}",
            bytes(&status["scan_done_bytes"]),
            bytes(&status["scan_total_bytes"])
        ))?;
    }
    if let Some(why) = status["paused"].as_str() {
        out.line(format_args!("  PAUSED    {why}"))?;
    }
    out.line(format_args!(
        "  capture   {} by {}, through the {}{}",
        text(&status["capture"]),
        text(&status["rung"]),
        text(&status["recording"]),
        if status["pinned"] == true { "" } else { ", not pinned: ends with this process" }
    ))?;
    out.line(format_args!(
        "  writes    {} seen = {} emitted + {} marked (ring full)",
        counters["seen"], counters["emitted"], counters["marked"]
    ))?;
    out.line(format_args!(
        "  pending   {}, oldest {} ms",
        bytes(&status["pending_bytes"]),
        status["pending_ms"]
    ))?;
    if status["failed_writes"] != 0 {
        out.line(format_args!(
            "  FAILED    {} writes of the source, by its own account",
            status["failed_writes"]
        ))?;
    }
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
    if let Some(why) = status["last_hook_error"].as_str() {
        out.line(format_args!("  HOOK FAILED {why}"))?;
    }
    if let Some(error) = status["last_mark_error"].as_str() {
        out.line(format_args!("  last mark failed: {error}"))?;
    }
    if let Some(why) = status["retention"]["error"].as_str() {
        out.line(format_args!("  RETENTION FAILS {why}"))?;
    }
    print_origin(&status["origin"], out)?;
    status["replicas"]
        .as_array()
        .into_iter()
        .flatten()
        .try_for_each(|replica| print_replica(replica, out))?;
    for left in Vec::<LeftOut>::deserialize(&status["left_out"]).unwrap_or_default() {
        let at = status_table::at_mark(left.mark);
        out.line(format_args!(
            "  left out  {}: {at}; named as a target again it goes on from there",
            left.target
        ))?;
    }
    Ok(())
}

fn print_replica(replica: &Value, out: &mut Output) -> anyhow::Result<()> {
    let read = ReplicaRead::deserialize(replica).unwrap_or_default();
    let ReplicaRead { target, mark, age_ms, behind_marks, error, .. } = &read;
    if let Some(why) = error {
        out.line(format_args!("  TARGET FAILS {target}: {why}"))?;
    }
    match (mark, age_ms) {
        (Some(mark), Some(age)) => {
            let behind =
                if *behind_marks > 1 { format!(", {behind_marks} marks behind") } else { String::new() };
            out.line(format_args!(
                "  replica   {target}: mark {mark}, {:.1} s old{behind}",
                *age as f64 / 1000.0
            ))
        }
        _ => out.line(format_args!("  replica   {target}: not at a mark")),
    }
}
