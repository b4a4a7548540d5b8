//! What goes through a control socket: a line of JSON asks, a line of JSON answers. Only about the mark of a group more is said.
//!
//! Who may connect is said by the socket's mode: root, and the members of the group `afterwrite`, or of root's where there is no such
//! group. Who is not root may look, and change nothing.

use std::future::Future;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::unistd::{Gid, Group};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines, Take};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};

use crate::collect::GroupOrder;
use crate::journal::LABEL_LEN_MAX;
use crate::model::{GROUP_PREFIX, GroupMarkName};

const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// With the rest of the name it is one that the journal takes.
const GROUP_LABEL_LEN_MAX: usize = LABEL_LEN_MAX - 256;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(2);
/// Its members may look.
const GROUP: &str = "afterwrite";

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub(in crate::service) enum Request {
    Status,
    /// Of a protection.
    Mark {
        label: String,
    },
    /// Of the service: what is called so in its configuration, or is protected at this path.
    Pause {
        unit: String,
    },
    Resume {
        unit: String,
    },
    /// Its configuration is read again.
    Reload,
    /// Of the service: its groups, and how their last marks went.
    Groups,
    /// Of the service: a mark of all members of a group.
    MarkGroup {
        group: String,
        label: String,
    },
    /// Of a protection, by the service: its part in such a mark. Orders follow, a line each, and are answered by steps.
    Join {
        /// As in `model::GroupMarkName`.
        label: String,
        freeze_timeout_ms: u64,
        /// What writes was brought to rest.
        at_rest: bool,
    },
}

impl Request {
    /// Or why not, for whom asked.
    pub(in crate::service) fn parse(line: &str) -> Result<Request, String> {
        let request = serde_json::from_str(line).map_err(|error| format!("not understood: {error}"))?;
        match &request {
            // The journal takes no longer one, and would end with it.
            Request::Mark { label } | Request::Join { label, .. } if label.len() > LABEL_LEN_MAX => {
                Err(format!("a label of {} bytes; use {LABEL_LEN_MAX} at most", label.len()))
            }
            Request::MarkGroup { label, .. } if label.len() > GROUP_LABEL_LEN_MAX => {
                Err(format!("a label of {} bytes; use {GROUP_LABEL_LEN_MAX} at most", label.len()))
            }
            // Whoever restores by it relies on that all were frozen at once.
            Request::Mark { label } if label.starts_with(GROUP_PREFIX) => {
                Err(format!("labels with `{GROUP_PREFIX}` are of groups: `afterwrite mark --group NAME`"))
            }
            Request::Join { label, .. } if GroupMarkName::of(label).is_none() => {
                Err(format!("{label:?} is no name of a group's mark"))
            }
            _ => Ok(request),
        }
    }

    /// Who is not root may ask that, too.
    fn is_open(&self) -> bool {
        matches!(self, Request::Status | Request::Groups)
    }
}

/// What a member is told after it has joined.
pub(in crate::service) fn parse_order(line: &str) -> Result<GroupOrder, String> {
    serde_json::from_str(line).map_err(|error| format!("not understood: {error}"))
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::service) enum Response {
    Ok(Value),
    Error(String),
}

impl Response {
    pub(in crate::service) fn of(value: &impl Serialize) -> Response {
        serde_json::to_value(value).map_or_else(|error| Response::Error(error.to_string()), Response::Ok)
    }
}

/// A socket of ours; one that is there was left behind, as its place is locked.
pub(in crate::service) fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(socket);
    let failed = || format!("could not make the control socket {}", socket.display());
    let listener = UnixListener::bind(socket).with_context(failed)?;
    // Nobody's, until it is said whose.
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600)).with_context(failed)?;
    std::os::unix::fs::chown(socket, None, Some(group().as_raw())).with_context(failed)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o660)).with_context(failed)?;
    Ok(listener)
}

/// Whose members may connect.
pub(in crate::service) fn group() -> Gid {
    let group = Group::from_name(GROUP).ok().flatten();
    group.map_or(Gid::from_raw(0), |group| group.gid)
}

/// One question, one answer.
pub(in crate::service) async fn answer<F: Future<Output = Response>>(
    stream: UnixStream,
    respond: impl FnOnce(Request) -> F,
) {
    let mut talk = Talk::new(stream);
    if let Some(request) = talk.request().await {
        let response = respond(request).await;
        talk.say(&response).await;
    }
}

/// With whoever connected.
pub(in crate::service) struct Talk {
    is_root: bool,
    lines: Lines<BufReader<Take<OwnedReadHalf>>>,
    writer: OwnedWriteHalf,
}

impl Talk {
    pub(in crate::service) fn new(stream: UnixStream) -> Talk {
        let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
        let (reader, writer) = stream.into_split();
        Talk { is_root, lines: BufReader::new(reader.take(REQUEST_BYTES_MAX)).lines(), writer }
    }

    /// What is asked, if it may be; else why not was said.
    pub(in crate::service) async fn request(&mut self) -> Option<Request> {
        let line = tokio::time::timeout(REQUEST_TIME_MAX, self.line()).await.ok()??;
        let refused = match Request::parse(&line) {
            Ok(request) if self.is_root || request.is_open() => return Some(request),
            Ok(_) => "only root may do that; `status` is open to you".into(),
            Err(why) => why,
        };
        self.say(&Response::Error(refused)).await;
        None
    }

    /// The next one; `None`: nothing more will be said. None is lost if this is not waited for to its end.
    pub(in crate::service) async fn line(&mut self) -> Option<String> {
        self.lines.next_line().await.ok()?
    }

    pub(in crate::service) async fn say(&mut self, said: &impl Serialize) {
        if let Ok(mut text) = serde_json::to_string(said) {
            text.push('\n');
            // Who asked may have gone.
            let _ = self.writer.write_all(text.as_bytes()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_the_journal_would_refuse_is_refused_at_the_socket() {
        for (len, taken) in [(0, true), (LABEL_LEN_MAX, true), (LABEL_LEN_MAX + 1, false)] {
            let request = Request::Mark { label: "x".repeat(len) };
            let parsed = Request::parse(&serde_json::to_string(&request).unwrap());
            assert_eq!(parsed.is_ok(), taken, "{len}");
        }
        assert!(Request::parse("{\"command\":\"detonate\"}").unwrap_err().starts_with("not understood"));
    }
}
