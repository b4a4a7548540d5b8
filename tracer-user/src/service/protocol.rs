//! What goes through a control socket: a line of JSON asks, a line of JSON answers.
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
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::journal::LABEL_LEN_MAX;

const REQUEST_BYTES_MAX: u64 = 64 << 10;
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
}

impl Request {
    /// Or why not, for whom asked.
    pub(in crate::service) fn parse(line: &str) -> Result<Request, String> {
        let request = serde_json::from_str(line).map_err(|error| format!("not understood: {error}"))?;
        match &request {
            // The journal takes no longer one, and would end with it.
            Request::Mark { label } if label.len() > LABEL_LEN_MAX => {
                Err(format!("a label of {} bytes; use {LABEL_LEN_MAX} at most", label.len()))
            }
            _ => Ok(request),
        }
    }
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
    let is_root = stream.peer_cred().is_ok_and(|peer| peer.uid() == 0);
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(reader.take(REQUEST_BYTES_MAX));
    if !matches!(tokio::time::timeout(REQUEST_TIME_MAX, reader.read_line(&mut line)).await, Ok(Ok(_))) {
        return;
    }
    let response = match Request::parse(&line) {
        Ok(request) if is_root || request == Request::Status => respond(request).await,
        Ok(_) => Response::Error("only root may do that; `status` is open to you".into()),
        Err(why) => Response::Error(why),
    };
    if let Ok(mut text) = serde_json::to_string(&response) {
        text.push('\n');
        // Who asked may have gone.
        let _ = writer.write_all(text.as_bytes()).await;
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
