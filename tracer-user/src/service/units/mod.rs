//! The service: for each volume and each tree of the configuration a process of its own that protects it, and again when that
//! ends.
//!
//! Nothing of theirs goes through this process. It starts them, tells their words, and says what became of them; that a
//! volume's process can be killed at any instant without losing a write is what it builds on: to hand a volume over to another
//! version or other options it kills the one and starts the next, and the probes record meanwhile.

mod group;
mod page;
mod process;
mod retry;
mod run;
mod unit;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use group::{Group, GroupMark, GroupStatus, together};
pub use run::{UnitsOptions, run_units};
pub use unit::UnitStatus;

use crate::service::control::{ControlError, ask};
use crate::service::protocol::Request;
use crate::service::run_dir;

/// The socket of the service, in a directory of its own: those beside it are of protections.
pub(in crate::service) const SOCKET: &str = "service/control.sock";
const SERVICE: &str = "the service (`afterwrite run`)";

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnitKind {
    Volume,
    Tree,
}

/// What a configuration says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Configuration {
    pub units: Vec<Unit>,
    pub groups: Vec<Group>,
    /// Where the page and the metrics are served.
    pub listen: Option<SocketAddr>,
}

/// What is protected by one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unit {
    /// In the configuration.
    pub name: String,
    pub kind: UnitKind,
    pub source: PathBuf,
    pub journal: PathBuf,
    /// One at least; of a tree exactly one.
    pub targets: Vec<PathBuf>,
    /// Of `afterwrite`, `protect` and what is above among them.
    pub arguments: Vec<OsString>,
}

/// What the service says of its units; `None` if none runs.
///
/// # Errors
/// If it cannot be asked.
pub fn units_status() -> Result<Option<Vec<UnitStatus>>, ControlError> {
    let socket = run_dir::path().join(SOCKET);
    if std::os::unix::net::UnixStream::connect(&socket).is_err() {
        return Ok(None);
    }
    asked(&socket, &Request::Status).map(Some)
}

/// What the service says of its groups; none if none runs.
///
/// # Errors
/// If it cannot be asked.
pub fn groups_status() -> Result<Vec<GroupStatus>, ControlError> {
    let socket = run_dir::path().join(SOCKET);
    if std::os::unix::net::UnixStream::connect(&socket).is_err() {
        return Ok(Vec::new());
    }
    asked(&socket, &Request::Groups)
}

/// Has the service make a mark of all members of a group, and waits until each is durable.
///
/// # Errors
/// If no service runs, or why it was not made.
pub fn mark_group(group: &str, label: &str) -> Result<GroupMark, ControlError> {
    let request = Request::MarkGroup { group: group.to_owned(), label: label.to_owned() };
    asked(&run_dir::path().join(SOCKET), &request)
}

fn asked<T: serde::de::DeserializeOwned>(socket: &Path, request: &Request) -> Result<T, ControlError> {
    let answer = ask(socket, SERVICE, request)?;
    serde_json::from_value(answer)
        .map_err(|error| ControlError::Io { whom: SERVICE.into(), source: error.into() })
}

/// Tells the service to do something; what came of it, for people.
///
/// # Errors
/// If none runs, or it refuses.
pub fn tell_service(order: ServiceOrder) -> Result<String, ControlError> {
    let socket = run_dir::path().join(SOCKET);
    let request = match order {
        ServiceOrder::Pause(unit) => Request::Pause { unit },
        ServiceOrder::Resume(unit) => Request::Resume { unit },
        ServiceOrder::Reload => Request::Reload,
    };
    let answer = ask(&socket, SERVICE, &request)?;
    Ok(answer.as_str().unwrap_or_default().to_owned())
}

pub enum ServiceOrder {
    /// By name or path.
    Pause(String),
    Resume(String),
    Reload,
}
