//! Makes the mark of a group: all members freeze one after the other, and none thaws before the last one is frozen. Each holds its
//! own freeze by its own helper, with its own limit, and thaws when this connection ends; so whatever dies or hangs, nothing
//! stays frozen. A mark is made only when the freezes of all were found to have held.
//!
//! Runs on a thread of its own, and between freeze and thaw touches nothing but sockets: any file may be on what is frozen.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use crate::collect::{Freeze, FreezeReply, Freezer, GroupOrder, GroupStep};
use crate::io::clock::realtime;
use crate::model::{GroupMarkName, Timestamp};
use crate::service::protocol::{Request, Response};
use crate::service::units::group::{Group, GroupMark, MemberMark, together};

/// For file systems to be synced and most to be read, while all go on.
const PREPARE_MAX: Duration = Duration::from_secs(60);
/// For the thaw; shorter than a member holds its journal for what comes then.
const THAW_MAX: Duration = Duration::from_secs(5);
/// For the marks to be durable.
const DURABLE_MAX: Duration = Duration::from_secs(30);
/// A protection says how it stands at once, if it is not stopped itself.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A volume of the group as it runs.
#[derive(Clone, Debug)]
pub struct Member {
    pub volume: String,
    pub source: PathBuf,
    /// Of its protection.
    pub socket: PathBuf,
}

/// `begun`: no two marks are called the same.
pub fn make(group: &Group, members: &[Member], label: &str, begun: Timestamp) -> Result<GroupMark, String> {
    let sources: Vec<_> = members.iter().map(|of| (&of.volume[..], of.source.as_path())).collect();
    together(&sources)?;
    members.iter().try_for_each(is_live)?;
    let name = GroupMarkName { group: &group.name, label }.at(begun);
    let rest = Rest::begin(group, &name)?;
    let request = Request::Join {
        label: name.clone(),
        freeze_timeout_ms: u64::try_from(group.freeze_timeout.as_millis()).unwrap_or(u64::MAX),
        at_rest: rest.is_at_rest(),
    };
    let mut joined =
        members.iter().map(|member| Joined::new(member, &request)).collect::<Result<Vec<_>, _>>()?;
    let prepared = Instant::now() + PREPARE_MAX;
    for member in &mut joined {
        match member.step(prepared)? {
            GroupStep::Prepared { freezes } => member.freezes = freezes,
            step => return Err(member.unexpected(step)),
        }
    }
    // Where nothing can be frozen nothing may be written: for as short as can be.
    joined.sort_by_key(|member| !member.freezes);
    let asked = Instant::now();
    let limit = asked + group.freeze_timeout;
    for member in &mut joined {
        member.say(&GroupOrder::Freeze)?;
        member.expect(GroupStep::Frozen, limit)?;
    }
    let time = realtime();
    joined.iter_mut().try_for_each(|member| member.expect(GroupStep::Drained, limit))?;
    joined.iter_mut().try_for_each(|member| member.say(&GroupOrder::Thaw { time }))?;
    let thawed = Instant::now() + THAW_MAX;
    joined.iter_mut().try_for_each(|member| member.expect(GroupStep::Held, thawed))?;
    let frozen_ms = joined
        .iter()
        .any(|member| member.freezes)
        .then(|| u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX));
    joined.iter_mut().try_for_each(|member| member.say(&GroupOrder::Commit))?;
    // It need not wait for disks.
    let hook_error = rest.end();
    let durable = Instant::now() + DURABLE_MAX;
    let mut marks = Vec::new();
    for member in &mut joined {
        let made = member.made(durable);
        marks.push(
            made.map_err(|why| format!("{why}; others may have a mark {name}, which is then no group's"))?,
        );
    }
    let place = |mark: &MemberMark| members.iter().position(|member| member.volume == mark.volume);
    marks.sort_by_key(place);
    Ok(GroupMark { name, time, frozen_ms, hook_error, members: marks })
}

/// Asked first, so that no application is brought to rest in vain.
fn is_live(member: &Member) -> Result<(), String> {
    let status = Joined::new(member, &Request::Status)?.answer(Instant::now() + ANSWER_MAX)?;
    match status["state"].as_str() {
        Some("live") => Ok(()),
        state => Err(format!("{} is not live, but {}", member.volume, state.unwrap_or("something else"))),
    }
}

/// The application of the group at rest. Goes on when this is dropped, and by the helper if this process dies.
struct Rest {
    helper: Option<Freezer>,
    error: Option<String>,
}

impl Rest {
    fn begin(group: &Group, name: &str) -> Result<Rest, String> {
        let Some(hooks) = group.hooks.clone() else { return Ok(Rest { helper: None, error: None }) };
        let limit = Instant::now() + hooks.timeout + DURABLE_MAX;
        let failed =
            |error: std::io::Error| format!("the process that runs commands cannot be spoken to: {error}");
        let mut helper = Freezer::spawn(Some(hooks)).map_err(failed)?;
        helper.begin_hook(name).map_err(failed)?;
        loop {
            match helper.poll() {
                Some(FreezeReply::AtRest { why_not }) => {
                    return Ok(Rest { helper: Some(helper), error: why_not });
                }
                Some(FreezeReply::Failed { what }) => return Err(what),
                _ if Instant::now() >= limit => return Err("the command before a mark never ended".into()),
                _ => std::thread::sleep(LOOK_EVERY),
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        self.helper.is_some() && self.error.is_none()
    }

    /// Waits until the application was let go on; why it was not at rest.
    fn end(self) -> Option<String> {
        self.error
    }
}

/// A member that takes part. It gives its mark up when this is dropped before the commit.
struct Joined {
    volume: String,
    freezes: bool,
    stream: BufReader<UnixStream>,
}

impl Joined {
    fn new(member: &Member, request: &Request) -> Result<Joined, String> {
        let volume = member.volume.clone();
        let stream = UnixStream::connect(&member.socket)
            .map_err(|error| format!("{volume} cannot be asked, `afterwrite status` says more: {error}"))?;
        let mut joined = Joined { volume, freezes: false, stream: BufReader::new(stream) };
        joined.say(request)?;
        Ok(joined)
    }

    fn say(&mut self, what: &impl Serialize) -> Result<(), String> {
        let told = |error: std::io::Error| format!("{}: its process has ended: {error}", self.volume);
        let mut line = serde_json::to_string(what).map_err(|error| told(error.into()))?;
        line.push('\n');
        self.stream.get_ref().write_all(line.as_bytes()).map_err(told)
    }

    fn answer(&mut self, limit: Instant) -> Result<Value, String> {
        let volume = &self.volume;
        // None at all would be for ever.
        let left = limit.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let mut line = String::new();
        let read = self.stream.get_ref().set_read_timeout(Some(left));
        match read.and_then(|()| self.stream.read_line(&mut line)) {
            Ok(0) => return Err(format!("{volume}: its process has ended")),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return Err(format!("{volume} took too long"));
            }
            Err(error) => return Err(format!("{volume}: {error}")),
        }
        match serde_json::from_str(&line) {
            Ok(Response::Ok(value)) => Ok(value),
            Ok(Response::Error(why)) => Err(format!("{volume}: {why}")),
            Err(error) => Err(format!("{volume}: its answer is not understood: {error}")),
        }
    }

    fn step(&mut self, limit: Instant) -> Result<GroupStep, String> {
        let answer = self.answer(limit)?;
        serde_json::from_value(answer)
            .map_err(|error| format!("{}: its answer is not understood: {error}", self.volume))
    }

    fn expect(&mut self, wanted: GroupStep, limit: Instant) -> Result<(), String> {
        let step = self.step(limit)?;
        if step == wanted { Ok(()) } else { Err(self.unexpected(step)) }
    }

    fn unexpected(&self, step: GroupStep) -> String {
        format!("{}: answered {step:?} out of turn; is it of another version?", self.volume)
    }

    fn made(&mut self, limit: Instant) -> Result<MemberMark, String> {
        let mark = self.answer(limit)?;
        let class = mark["class"].as_str().unwrap_or_default().to_owned();
        Ok(MemberMark { volume: self.volume.clone(), id: mark["id"].as_u64().unwrap_or(0), class })
    }
}
