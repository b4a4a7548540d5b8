//! Asks all protections at once how they stand. Each has a time to answer, so that one which hangs is seen to hang and
//! holds nobody up.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::service::elsewhere::other_services;
use crate::service::group_seen::{GroupSeen, groups_of_volumes};
use crate::service::protocol::{Request, Response};
use crate::service::reading::{Problem, Reading, Standing, problems};
use crate::service::recorded::{Recorded, recorded};
use crate::service::run_dir::{sockets, volume_name};
use crate::service::units::{GroupStatus, SOCKET, UnitStatus};

/// A protection that is at work answers in a millisecond, where all processors are busy with others in a second or two.
const ANSWER_TIME: Duration = Duration::from_secs(3);
const ANSWER_BYTES_MAX: u64 = 1 << 20;

/// A volume as it is seen from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// What `afterwrite status NAME` takes.
    pub name: String,
    pub standing: Standing,
    /// What it says of itself; none where no process says anything.
    pub status: Option<Reading>,
    /// Without a process: bytes written and not under a durable mark, at least, if that is known.
    pub recorded_bytes: Option<u64>,
    /// The group of the service that it is in.
    pub group: Option<String>,
    pub problems: Vec<Problem>,
}

/// All that is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// In the order of what they are called, data2 before data10.
    pub volumes: Vec<Seen>,
    /// Of the service, by name.
    pub groups: Vec<GroupSeen>,
}

impl Seen {
    pub fn told(name: String, status: Reading) -> Seen {
        let status = status.with_replicas();
        let (standing, problems) = (status.standing(), problems(&status));
        Seen { name, standing, status: Some(status), recorded_bytes: None, group: None, problems }
    }

    fn without(name: String, standing: Standing, problem: Problem) -> Seen {
        let problems = vec![problem];
        Seen { name, standing, status: None, recorded_bytes: None, group: None, problems }
    }

    fn recording(of: &Recorded) -> Seen {
        let problem = Problem::urgent(
            "no process runs; the probes record where is written, so nothing is lost",
            "start `afterwrite protect` or the service again, with the same journal: it reads what was written meanwhile \
             (`afterwrite detach` gives that up)",
        );
        let recorded_bytes = of.recorded_bytes;
        Seen { recorded_bytes, ..Seen::without(of.volume.clone(), Standing::Recording, problem) }
    }

    /// What the service is to protect and does not run at the moment. `of`: what its probes record meanwhile.
    fn of_unit(unit: &UnitStatus, volume: String, of: Option<&Recorded>) -> Seen {
        let (standing, problem) = match &unit.state[..] {
            "paused" => (
                Standing::Paused,
                Problem::note(
                    match unit.kind.as_str() {
                        "tree" => "paused by hand: what changes is not seen, and no points are made",
                        _ => "paused by hand: the probes record where is written, no points are made",
                    },
                    format!("`afterwrite resume {}` goes on, and catches up", unit.name),
                ),
            ),
            "stopping" => (Standing::Stopping, Problem::note("it is ending", "it takes a last mark")),
            _ => {
                let why = unit.why.as_deref().unwrap_or("it ended");
                let next = unit.next_try_ms.unwrap_or(0).div_ceil(1000);
                (
                    Standing::Failed,
                    Problem::urgent(
                        format!("it ends again and again ({} times): {why}", unit.failures),
                        format!("tried again in {next} s, at once with `afterwrite resume {}`", unit.name),
                    ),
                )
            }
        };
        let recorded_bytes = of.and_then(|of| of.recorded_bytes);
        Seen { recorded_bytes, ..Seen::without(volume, standing, problem) }
    }

    fn starting(name: String) -> Seen {
        let problem =
            Problem::note("it has just been started, and does not answer yet", "look again in a moment");
        Seen::without(name, Standing::Silent, problem)
    }

    fn silent(name: String, why: &str) -> Seen {
        Seen::without(
            name,
            Standing::Silent,
            Problem::urgent(
                format!("a process is there and does not tell its status: {why}"),
                "are you root? is it stopped (SIGSTOP), or of another version? `journalctl`, `ps`",
            ),
        )
    }

    fn stopped(name: String) -> Seen {
        Seen::without(
            name,
            Standing::Stopped,
            Problem::urgent(
                "the process is gone and left its socket behind",
                "start `afterwrite protect` again",
            ),
        )
    }

    /// The volume's path where it is known.
    pub fn title(&self) -> &str {
        match &self.status {
            Some(status) if !status.source.is_empty() => &status.source,
            _ => &self.name,
        }
    }
}

/// All volumes that are protected, or were until their process was killed, and the groups they are in.
pub async fn survey(run_dir: &Path) -> Survey {
    let (units, groups) = tokio::join!(
        of_service::<Vec<UnitStatus>>(run_dir, Request::Status),
        of_service::<Vec<GroupStatus>>(run_dir, Request::Groups)
    );
    let mut volumes = survey_with(run_dir, recorded(), &units).await;
    if volumes.iter().any(|seen| seen.standing == Standing::Recording) {
        tell_of_others(&mut volumes, run_dir).await;
    }
    let mut of_volumes = groups_of_volumes(&units, &groups);
    for seen in &mut volumes {
        seen.group = of_volumes.remove(&seen.name);
    }
    Survey { volumes, groups: groups.into_iter().map(GroupSeen::new).collect() }
}

/// No process runs of what the service of another run directory has paused, or tries again.
async fn tell_of_others(volumes: &mut [Seen], run_dir: &Path) {
    for dir in other_services(run_dir) {
        let units = of_service::<Vec<UnitStatus>>(&dir, Request::Status).await;
        for unit in units.iter().filter(|unit| !unit.is_running()) {
            let name = volume_name(&unit.source);
            let of_it = |seen: &&mut Seen| seen.standing == Standing::Recording && seen.name == name;
            if let Some(seen) = volumes.iter_mut().find(of_it) {
                seen.problems = vec![Problem::note(
                    format!("{} in the service with the run directory {}", unit.state, dir.display()),
                    format!("`AFTERWRITE_RUN_DIR={} afterwrite status` says more", dir.display()),
                )];
            }
        }
    }
}

/// [`survey`] for a thread without a runtime.
///
/// # Errors
/// The kernel has no room for a runtime's descriptors.
pub fn survey_now(run_dir: &Path) -> std::io::Result<Survey> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(survey(run_dir)))
}

/// Of the service, if one runs, answers, and knows what is asked for.
async fn of_service<T: DeserializeOwned + Default>(run_dir: &Path, request: Request) -> T {
    let answer = tokio::time::timeout(ANSWER_TIME, ask(&run_dir.join(SOCKET), &request)).await;
    let Ok(Ok(line)) = answer else { return T::default() };
    match serde_json::from_slice(&line) {
        Ok(Response::Ok(value)) => serde_json::from_value(value).unwrap_or_default(),
        _ => T::default(),
    }
}

async fn survey_with(run_dir: &Path, recorded: Vec<Recorded>, units: &[UnitStatus]) -> Vec<Seen> {
    let mut asked = JoinSet::new();
    for (name, socket) in sockets(run_dir) {
        asked.spawn(see(name, socket));
    }
    let mut all: BTreeMap<String, Seen> =
        recorded.iter().map(|of| (of.volume.clone(), Seen::recording(of))).collect();
    while let Some(seen) = asked.join_next().await {
        let Ok(Some(seen)) = seen else { continue };
        // Of a volume without a process the probes know more than the socket that is left.
        if seen.standing != Standing::Stopped || !all.contains_key(&seen.name) {
            all.insert(seen.name.clone(), seen);
        }
    }
    // Who starts it knows best why it does not run.
    for unit in units {
        let volume = volume_name(&unit.source);
        if unit.is_running() {
            all.entry(volume.clone()).or_insert_with(|| Seen::starting(volume));
            continue;
        }
        let of = recorded.iter().find(|of| of.volume == volume);
        all.insert(volume.clone(), Seen::of_unit(unit, volume, of));
    }
    let mut all: Vec<Seen> = all.into_values().collect();
    all.sort_by(|a, b| alphanumeric_sort::compare_str(a.title(), b.title()));
    all
}

/// `None`: it has just ended in order.
async fn see(name: String, socket: PathBuf) -> Option<Seen> {
    Some(match tokio::time::timeout(ANSWER_TIME, ask(&socket, &Request::Status)).await {
        Err(_) => Seen::silent(name, "no answer within 3 s"),
        Ok(Err(error)) if error.kind() == ErrorKind::NotFound => return None,
        Ok(Err(error)) if error.kind() == ErrorKind::ConnectionRefused => Seen::stopped(name),
        Ok(Err(error)) => Seen::silent(name, &error.to_string()),
        Ok(Ok(line)) => match parse(&line) {
            Ok(status) => Seen::told(name, status),
            Err(why) => Seen::silent(name, &why),
        },
    })
}

async fn ask(socket: &Path, request: &Request) -> std::io::Result<Vec<u8>> {
    let (reader, mut writer) = UnixStream::connect(socket).await?.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    writer.write_all(&line).await?;
    let mut answer = Vec::new();
    BufReader::new(reader.take(ANSWER_BYTES_MAX)).read_until(b'\n', &mut answer).await?;
    Ok(answer)
}

/// Or why not, for people.
pub(super) fn parse(line: &[u8]) -> Result<Reading, String> {
    let not_understood = |error: serde_json::Error| format!("its answer is not understood: {error}");
    match serde_json::from_slice(line).map_err(not_understood)? {
        Response::Ok(status) => match Reading::deserialize(status).map_err(not_understood)? {
            // Nothing is taken for granted: not that all is well, nor that it is being copied.
            Reading { state: Standing::Silent, .. } => Err("its answer has no state".into()),
            read => Ok(read),
        },
        Response::Error(why) => Err(format!("it says: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::time::Instant;

    use serde_json::json;

    use super::*;
    use crate::service::samples;

    #[test]
    fn any_answer_is_a_status_or_an_error() {
        let status = serde_json::to_value(samples::reading(3)).unwrap();
        let told = parse(json!({ "ok": status }).to_string().as_bytes()).unwrap();
        assert_eq!(told, samples::reading(3));
        // An older version says less.
        let little = parse(br#"{"ok":{"source":"/dev/loop0","state":"live"}}"#).unwrap();
        assert_eq!((little.source.as_str(), little.state), ("/dev/loop0", Standing::Live));
        for (answer, hint) in [
            (&b""[..], "not understood"),
            (b"\xff\xfe", "not understood"),
            (b"HTTP/1.1 200 OK", "not understood"),
            (br#"{"ok":7}"#, "not understood"),
            (br#"{"ok":{"state":"dancing"}}"#, "not understood"),
            (br#"{"ok":{"counters":{"seen":-1}}}"#, "not understood"),
            (br#"{"ok":{"source":"/dev/loop0"}}"#, "state"),
            (br#"{"ok":{"state":"silent"}}"#, "state"),
            (br#"{"error":"no"}"#, "it says: no"),
        ] {
            let why = parse(answer).unwrap_err();
            assert!(why.contains(hint), "{answer:?}: {why}");
        }
    }

    #[test]
    fn volumes_are_in_the_order_of_their_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let recorded = ["sdb10", "sda2", "sdb9", "sda10"];
        let recorded = recorded.map(|name| Recorded { volume: name.into(), recorded_bytes: None });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(survey_with(dir.path(), recorded.to_vec(), &[]));
        let names: Vec<&str> = seen.iter().map(|seen| seen.name.as_str()).collect();
        assert_eq!(names, ["sda2", "sda10", "sdb9", "sdb10"]);
    }

    #[test]
    fn what_the_service_has_just_started_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let unit = json!({
            "name": "data", "kind": "volume", "source": "/dev/dm-7", "journal": "/j", "targets": ["/t"], "state": "running",
            "pid": 7, "failures": 0, "why": null, "next_try_ms": null
        });
        let units: Vec<UnitStatus> = vec![serde_json::from_value(unit).unwrap()];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(survey_with(dir.path(), Vec::new(), &units));
        assert_eq!((seen[0].name.as_str(), seen[0].standing), ("dm-7", Standing::Silent));
        assert!(seen[0].problems[0].what.contains("just been started") && !seen[0].problems[0].urgent);
    }

    #[test]
    fn who_does_not_answer_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let listening: Vec<UnixListener> = (0..20)
            .map(|index| UnixListener::bind(dir.path().join(format!("dm-{index}.sock"))).unwrap())
            .collect();
        drop(UnixListener::bind(dir.path().join("killed.sock")).unwrap());
        drop(UnixListener::bind(dir.path().join("loop7.sock")).unwrap());
        std::fs::write(dir.path().join("loop7.lock"), "1").unwrap();
        let begun = Instant::now();
        let recorded = [("loop7", Some(5)), ("zram0", None)]
            .map(|(volume, recorded_bytes)| Recorded { volume: volume.into(), recorded_bytes });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let seen = runtime.block_on(survey_with(dir.path(), recorded.to_vec(), &[]));
        assert!(begun.elapsed() < ANSWER_TIME * 5, "{:?}", begun.elapsed());
        let standings = |standing| seen.iter().filter(|seen| seen.standing == standing).count();
        assert_eq!(standings(Standing::Silent), listening.len());
        let rest: Vec<(&str, Standing)> = seen
            .iter()
            .filter(|seen| seen.standing != Standing::Silent)
            .map(|seen| (seen.name.as_str(), seen.standing))
            .collect();
        let wanted =
            [("killed", Standing::Stopped), ("loop7", Standing::Recording), ("zram0", Standing::Recording)];
        assert_eq!(rest, wanted);
        assert!(seen.iter().all(|seen| seen.problems.iter().any(|problem| problem.urgent)));
    }
}
