//! The control socket of a protection, and who asks it. The server also waits for signals.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream as BlockingStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, sync_channel};
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use crate::collect::Command;
use crate::service::member::join;
use crate::service::protocol::{Request, Response, Talk, listen};
use crate::service::run_dir;
use crate::service::units::{UnitStatus, units_status};

/// An end that was not asked for is noticed then, too.
const SHOW_EVERY: Duration = Duration::from_millis(500);
/// How soon one is that was asked for.
const ENDED_SOON: Duration = Duration::from_millis(20);

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
    let listener = listen(socket)?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut ticks = tokio::time::interval(SHOW_EVERY);
    let mut stopping = false;
    let mut clients = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let (status, commands) = (Response::of(&running.status()), running.commands());
                    clients.spawn(attend(Talk::new(stream), status, commands));
                }
            }
            Some(_) = clients.join_next() => {}
            _ = ticks.tick() => show(Shown::Progress(&running.status())),
            () = tokio::time::sleep(ENDED_SOON), if stopping => {}
            _ = interrupt.recv() => if stop(running, &mut stopping, show) { return Ok(None) },
            _ = hangup.recv() => if stop(running, &mut stopping, show) { return Ok(None) },
            _ = terminate.recv() => if stop(running, &mut stopping, show) { return Ok(None) },
        }
        if running.ended() {
            // What was asked for is still answered.
            while clients.join_next().await.is_some() {}
            return Ok(Some(running.status()));
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

async fn attend(mut talk: Talk, status: Response, commands: Sender<Command>) {
    let Some(request) = talk.request().await else { return };
    let response = match request {
        Request::Status => status,
        Request::Mark { label } => make_mark(label, commands).await,
        Request::Join { label, freeze_timeout_ms, at_rest } => {
            let freeze_timeout = Duration::from_millis(freeze_timeout_ms);
            return join(talk, label, freeze_timeout, at_rest, &commands).await;
        }
        Request::Pause { .. }
        | Request::Resume { .. }
        | Request::Reload
        | Request::Groups
        | Request::MarkGroup { .. } => {
            Response::Error("that is for the service (`afterwrite run`), not for one protection".into())
        }
    };
    talk.say(&response).await;
}

async fn make_mark(label: String, commands: Sender<Command>) -> Response {
    let (reply, outcome) = sync_channel(1);
    if commands.send(Command::Mark { label, reply: Some(reply), group: None }).is_err() {
        return Response::Error("the protection is ending".into());
    }
    match tokio::task::spawn_blocking(move || outcome.recv()).await {
        Ok(Ok(Ok(done))) => Response::of(&done),
        Ok(Ok(Err(why))) => Response::Error(why),
        _ => Response::Error("the protection ended before the mark was made".into()),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("no volume is being protected (looked in {}): start `afterwrite protect` first", dir.display())]
    NothingRuns { dir: PathBuf },
    #[error("{wanted} is not being protected; these are: {running}")]
    NotProtected { wanted: String, running: String },
    /// The service is to protect it.
    #[error(
        "{name} is {state} at the moment, so it can't be asked: `afterwrite status` says more, `afterwrite resume {name}` goes on"
    )]
    Idle { name: String, state: String },
    #[error(
        "{name} has just been started by the service and can't be asked yet: try again in a moment; `afterwrite status` shows it"
    )]
    Starting { name: String },
    #[error("several volumes are being protected: name one of {running}")]
    NameOne { running: String },
    #[error("could not speak to {whom}; is it running, and are you root or in its group?")]
    Io {
        whom: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Refused(String),
}

impl ControlError {
    /// Of a protection that is not there: if the service runs it, it is not there yet.
    fn of_starting(self, unit: Option<&UnitStatus>) -> ControlError {
        unit.map_or(self, |unit| ControlError::Starting { name: unit.name.clone() })
    }
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
        let mut clients: Vec<Client> = run_dir::sockets(&dir)
            .into_iter()
            // A socket nobody listens to was left by a protection that was killed.
            .filter(|(_, path)| BlockingStream::connect(path).is_ok())
            .map(|(volume, socket)| Client { volume, socket })
            .collect();
        clients.sort_by(|a, b| alphanumeric_sort::compare_str(&a.volume, &b.volume));
        if clients.is_empty() { Err(ControlError::NothingRuns { dir }) } else { Ok(clients) }
    }

    /// The one for a volume, named as a path (`/dev/loop0`), by the kernel (`loop0`) or as the service calls it, or the only one.
    pub fn of(volume: Option<&str>) -> Result<Client, ControlError> {
        let units = units_status().ok().flatten().unwrap_or_default();
        match volume {
            Some(wanted) => Client::named(wanted, &units),
            None => Client::only(&units),
        }
    }

    /// The one for a volume, named as for [`Client::of`], when the service says this of its units.
    pub fn named(wanted: &str, units: &[UnitStatus]) -> Result<Client, ControlError> {
        let unit = units.iter().find(|unit| unit.name == wanted || is_same(&unit.source, wanted));
        if let Some(unit) = unit.filter(|unit| !unit.is_running()) {
            return Err(ControlError::Idle { name: unit.name.clone(), state: unit.state.clone() });
        }
        let clients = Client::all().map_err(|missing| missing.of_starting(unit))?;
        let running = volumes(&clients);
        let name = run_dir::volume_name(unit.map_or(wanted, |unit| &unit.source));
        let found = clients.into_iter().find(|client| client.volume == name);
        let missing = ControlError::NotProtected { wanted: wanted.to_owned(), running };
        found.ok_or_else(|| missing.of_starting(unit))
    }

    fn only(units: &[UnitStatus]) -> Result<Client, ControlError> {
        let starting = units.iter().find(|unit| unit.is_running());
        let mut clients = Client::all().map_err(|missing| missing.of_starting(starting))?;
        match clients.len() {
            1 => Ok(clients.remove(0)),
            _ => Err(ControlError::NameOne { running: volumes(&clients) }),
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
        ask(&self.socket, &format!("the protection of {}", self.volume), request)
    }
}

fn volumes(clients: &[Client]) -> String {
    clients.iter().map(Client::volume).collect::<Vec<_>>().join(", ")
}

fn is_same(one: &str, other: &str) -> bool {
    run_dir::volume_name(one) == run_dir::volume_name(other)
}

/// Waits for the answer. `whom` is what is asked.
pub(super) fn ask(socket: &Path, whom: &str, request: &Request) -> Result<Value, ControlError> {
    let failed = |source| ControlError::Io { whom: whom.to_owned(), source };
    let mut stream = BlockingStream::connect(socket).map_err(failed)?;
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
