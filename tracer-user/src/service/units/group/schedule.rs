//! When marks of groups are made, and what became of them. One at a time: two with a volume in common would wait for each other.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::oneshot;

use crate::io::clock::realtime;
use crate::io::log_line::{Priority, say};
use crate::model::Timestamp;
use crate::service::protocol::Response;
use crate::service::units::group::coordinate::{Member, make};
use crate::service::units::group::{Group, GroupMark, GroupStatus};

/// Until the first mark of a group one is tried again this soon: its volumes may have to be copied first.
const RETRY_FIRST: Duration = Duration::from_secs(10);
const WAITING_MAX: usize = 64;

type Reply = oneshot::Sender<Response>;

pub struct Groups {
    all: BTreeMap<String, State>,
    /// Asked for by people, and not begun.
    waiting: VecDeque<(String, String, Reply)>,
    is_busy: bool,
    begun: Timestamp,
    done: UnboundedSender<Marked>,
}

struct State {
    group: Group,
    next: Option<Instant>,
    last_mark: Option<GroupMark>,
    error: Option<String>,
}

/// What became of a mark of a group.
pub struct Marked {
    group: String,
    result: Result<GroupMark, String>,
    reply: Option<Reply>,
}

impl State {
    fn new(group: Group, now: Instant) -> State {
        let next = group.mark_every.map(|every| now + every.min(RETRY_FIRST));
        State { group, next, last_mark: None, error: None }
    }
}

impl Groups {
    /// `done` brings each that has ended back, for [`Groups::ended`].
    pub fn new(groups: Vec<Group>, done: UnboundedSender<Marked>, now: Instant) -> Groups {
        let all = groups.into_iter().map(|group| (group.name.clone(), State::new(group, now))).collect();
        Groups { all, waiting: VecDeque::new(), is_busy: false, begun: Timestamp(0), done }
    }

    /// What that changes, for people.
    pub fn replace(&mut self, groups: Vec<Group>, now: Instant) -> Vec<String> {
        let mut before = std::mem::take(&mut self.all);
        let mut done = Vec::new();
        for group in groups {
            let name = group.name.clone();
            let state = match before.remove(&name) {
                Some(state) if state.group == group => state,
                Some(state) => {
                    done.push(format!("group {name} goes on with its new options"));
                    State { last_mark: state.last_mark, ..State::new(group, now) }
                }
                None => {
                    done.push(format!("group {name} is new"));
                    State::new(group, now)
                }
            };
            self.all.insert(name, state);
        }
        done.extend(before.keys().map(|name| format!("group {name} is no more")));
        done
    }

    pub fn ask(&mut self, group: String, label: String, reply: Reply) {
        let refused = match self.all.contains_key(&group) {
            true if self.waiting.len() < WAITING_MAX => {
                return self.waiting.push_back((group, label, reply));
            }
            true => "too many marks of groups are waited for".into(),
            false => {
                let names = self.all.keys().cloned().collect::<Vec<_>>().join(", ");
                format!("there is no group {group}; these are configured: {names}")
            }
        };
        // Who asked may have gone.
        let _ = reply.send(Response::Error(refused));
    }

    /// Begins what is asked for or due. `member`: a volume by its name.
    pub fn tick(&mut self, now: Instant, member: impl Fn(&str) -> Option<Member>) {
        if self.is_busy {
            return;
        }
        let (name, label, reply) = match self.waiting.pop_front() {
            Some((name, label, reply)) => (name, label, Some(reply)),
            None => {
                let due = self.all.values().filter(|state| state.next.is_some_and(|next| next <= now));
                let Some(first) = due.min_by_key(|state| state.next) else { return };
                (first.group.name.clone(), String::new(), None)
            }
        };
        let Some(state) = self.all.get_mut(&name) else {
            let gone = Response::Error(format!("group {name} is not configured any more"));
            reply.map(|reply| reply.send(gone));
            return;
        };
        let every = state.group.mark_every;
        let is_first = state.last_mark.is_none();
        state.next = every.map(|every| now + if is_first { every.min(RETRY_FIRST) } else { every });
        let group = state.group.clone();
        let members: Option<Vec<Member>> = group.volumes.iter().map(|volume| member(volume)).collect();
        let Some(members) = members else {
            let why = "not all its volumes are protected by the service at the moment".into();
            return self.ended(Marked { group: name, result: Err(why), reply });
        };
        self.begun = realtime().max(Timestamp(self.begun.0 + 1_000));
        let (begun, done) = (self.begun, self.done.clone());
        self.is_busy = true;
        std::thread::spawn(move || {
            let result = make(&group, &members, &label, begun);
            // The service may be over.
            let _ = done.send(Marked { group: name, result, reply });
        });
    }

    /// It was made, or it was not.
    pub fn ended(&mut self, marked: Marked) {
        self.is_busy = false;
        let Marked { group, result, reply } = marked;
        let response = match &result {
            Ok(mark) => Response::of(mark),
            Err(why) => Response::Error(format!("no mark of group {group} was made: {why}")),
        };
        reply.map(|reply| reply.send(response));
        // It may have been configured away meanwhile.
        let Some(state) = self.all.get_mut(&group) else { return };
        match result {
            Ok(mark) => {
                if let Some(why) = &mark.hook_error {
                    say(Priority::Warning, &format!("group {group}: {why}: the mark is not of class app"));
                }
                (state.last_mark, state.error) = (Some(mark), None);
            }
            Err(why) if state.error.as_ref() == Some(&why) => {}
            Err(why) => {
                say(Priority::Warning, &format!("group {group}: no mark was made: {why}"));
                state.error = Some(why);
            }
        }
    }

    /// Nothing more is begun.
    pub fn close(&mut self) {
        self.all.clear();
        self.waiting.clear();
    }

    /// The group that a volume is in.
    pub fn of(&self, volume: &str) -> Option<&str> {
        let mut groups = self.all.values().map(|state| &state.group);
        groups.find(|group| group.volumes.iter().any(|member| member == volume)).map(|group| &group.name[..])
    }

    pub fn status(&self) -> Vec<GroupStatus> {
        let status = |state: &State| GroupStatus {
            name: state.group.name.clone(),
            volumes: state.group.volumes.clone(),
            mark_every_ms: state
                .group
                .mark_every
                .map(|every| u64::try_from(every.as_millis()).unwrap_or(u64::MAX)),
            last_mark: state.last_mark.clone(),
            last_mark_error: state.error.clone(),
        };
        self.all.values().map(status).collect()
    }
}
