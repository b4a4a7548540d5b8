//! The control socket: a line of JSON asks, a line of JSON answers. The server also waits for signals.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::collect::Command;
use crate::journal::LABEL_LEN_MAX;
use crate::service::run_dir;

const REQUEST_BYTES_MAX: u64 = 64 << 10;
const REQUEST_TIME_MAX: Duration = Duration::from_secs(2);
const SHOW_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "lowercase")]
pub(super) enum Request {
    Status,
    Mark { label: String },
}

impl Request {
    /// Or why not, for whom asked.
    pub(super) fn parse(line: &str) -> Result<Request, String> {
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
pub(super) enum Response {
    Ok(Value),
    Error(String),
}

/// A running protection.
pub(super) trait Served {
    /// What `status` prints, as JSON.
    type Status: Serialize;
    fn status(&self) -> Self::Status;
    fn commands(&self) -> Sender<Command>;
    fn ended(&self) -> bool;
}

/// What a user interface may show.
pub(super) enum Shown<'a, S> {
    /// Twice a second.
    Progress(&'a S),
    Stopping,
}

/// Serves until the protection ends (its last status) or is told to end at once (`None`).
pub(super) fn serve<P: Served>(
    socket: &Path,
    running: &P,
    show: &mut dyn FnMut(Shown<'_, P::Status>),
) -> anyhow::Result<Option<P::Status>> {
    // We hold the volume's lock: a socket that is there is left over.
    let _ = std::fs::remove_file(socket);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve_until_end(socket, running, show));
    // Nobody is waited for who asked and will not be answered.
    runtime.shutdown_background();
    let _ = std::fs::remove_file(socket);
    result
}

async fn serve_until_end<P: Served>(
    socket: &Path,
    running: &P,
    show: &mut dyn FnMut(Shown<'_, P::Status>),
) -> anyhow::Result<Option<P::Status>> {
    let listener = UnixListener::bind(socket).map_err(|error| {
        anyhow::anyhow!("could not make the control socket {}: {error}", socket.display())
    })?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    let mut ended = tokio::time::interval(Duration::from_millis(20));
    let mut stopping = false;
    let mut clients = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    clients.spawn(answer(stream, as_response(&running.status()), running.commands()));
                }
            }
            Some(_) = clients.join_next() => {}
            _ = ticks.tick() => show(Shown::Progress(&running.status())),
            _ = ended.tick() => {
                if running.ended() {
                    // What was asked for is still answered.
                    while clients.join_next().await.is_some() {}
                    return Ok(Some(running.status()));
                }
            }
            _ = interrupt.recv() => if stop(running, &mut stopping, show) { return Ok(None) },
            _ = hangup.recv() => if stop(running, &mut stopping, show) { return Ok(None) },
            _ = terminate.recv() => if stop(running, &mut stopping, show) { return Ok(None) },
        }
    }
}

/// Whether to end at once.
fn stop<P: Served>(running: &P, stopping: &mut bool, show: &mut dyn FnMut(Shown<'_, P::Status>)) -> bool {
    if *stopping {
        return true;
    }
    *stopping = true;
    show(Shown::Stopping);
    running.commands().send(Command::Stop).is_err()
}

async fn answer(stream: UnixStream, status: Response, commands: Sender<Command>) {
    let (reader, mut writer) = stream.into_split();
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(tokio::io::AsyncReadExt::take(reader, REQUEST_BYTES_MAX));
    if !matches!(tokio::time::timeout(REQUEST_TIME_MAX, reader.read_line(&mut line)).await, Ok(Ok(_))) {
        return;
    }
    let response = match Request::parse(&line) {
        Ok(Request::Status) => status,
        Ok(Request::Mark { label }) => make_mark(label, commands).await,
        Err(why) => Response::Error(why),
    };
    if let Ok(mut text) = serde_json::to_string(&response) {
        text.push('\n');
        // Who asked may have gone.
        let _ = writer.write_all(text.as_bytes()).await;
    }
}

async fn make_mark(label: String, commands: Sender<Command>) -> Response {
    let (reply, outcome) = sync_channel(1);
    if commands.send(Command::Mark { label, reply: Some(reply) }).is_err() {
        return Response::Error("the protection is ending".into());
    }
    match tokio::task::spawn_blocking(move || outcome.recv()).await {
        Ok(Ok(Ok(done))) => as_response(&done),
        Ok(Ok(Err(why))) => Response::Error(why),
        _ => Response::Error("the protection ended before the mark was made".into()),
    }
}

fn as_response(value: &impl Serialize) -> Response {
    serde_json::to_value(value).map_or_else(|error| Response::Error(error.to_string()), Response::Ok)
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no volume is being protected (looked in {}): start `afterwrite protect` first", dir.display())]
    NothingRuns { dir: PathBuf },
    #[error("{wanted} is not being protected; these are: {running}")]
    NotProtected { wanted: String, running: String },
    #[error("several volumes are being protected: name one of {running}")]
    NameOne { running: String },
    #[error("could not speak to the protection of {volume}; is it running, and are you root?")]
    Io {
        volume: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
}

/// The other end: `afterwrite status` and `mark`.
pub struct Client {
    volume: String,
    socket: PathBuf,
}

impl Client {
    /// One for each protected volume.
    pub fn all() -> Result<Vec<Client>, ControlError> {
        let dir = run_dir::path();
        let mut clients: Vec<Client> = std::fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
            // A socket nobody listens to was left by a protection that was killed.
            .filter(|path| BlockingStream::connect(path).is_ok())
            .filter_map(|socket| Some(Client { volume: socket.file_stem()?.to_str()?.to_owned(), socket }))
            .collect();
        clients.sort_by(|a, b| a.volume.cmp(&b.volume));
        if clients.is_empty() { Err(ControlError::NothingRuns { dir }) } else { Ok(clients) }
    }

    /// The one for a volume, named as a path (`/dev/loop0`) or by the kernel (`loop0`), or the only one.
    pub fn of(volume: Option<&str>) -> Result<Client, ControlError> {
        let mut clients = Client::all()?;
        let running = clients.iter().map(|client| client.volume.as_str()).collect::<Vec<_>>().join(", ");
        match volume {
            Some(wanted) => {
                let name = run_dir::volume_name(wanted);
                let found = clients.into_iter().find(|client| client.volume == name);
                found.ok_or(ControlError::NotProtected { wanted: wanted.to_owned(), running })
            }
            None if clients.len() == 1 => Ok(clients.remove(0)),
            None => Err(ControlError::NameOne { running }),
        }
    }

    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// The status as JSON.
    pub fn status(&self) -> Result<Value, ControlError> {
        self.ask(&Request::Status)
    }

    /// Waits until the mark is durable; a [`crate::collect::MarkDone`] as JSON.
    pub fn mark(&self, label: &str) -> Result<Value, ControlError> {
        self.ask(&Request::Mark { label: label.to_owned() })
    }

    fn ask(&self, request: &Request) -> Result<Value, ControlError> {
        let failed = |source| ControlError::Io { volume: self.volume.clone(), source };
        let mut stream = BlockingStream::connect(&self.socket).map_err(failed)?;
        let mut line = serde_json::to_string(request).map_err(|error| failed(error.into()))?;
        line.push('\n');
        stream.write_all(line.as_bytes()).map_err(failed)?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer).map_err(failed)?;
        match serde_json::from_str(&answer) {
            Ok(Response::Ok(value)) => Ok(value),
            Ok(Response::Error(why)) => Err(ControlError::Refused(why)),
            Err(error) => Err(failed(error.into())),
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
