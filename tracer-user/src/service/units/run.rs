//! The loop of the service: signals, orders through its socket, processes that end.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::capture::are_at_work;
use crate::io::log_line::{Priority, say};
use crate::service::protocol::{Request, Response, answer, listen};
use crate::service::run_dir::{self, VolumeLock};
use crate::service::units::group::{Groups, Marked, Member};
use crate::service::units::page::{self, Page};
use crate::service::units::process::{Ended, spawn, watch};
use crate::service::units::unit::{Order, Supervised, Wanted};
use crate::service::units::{Configuration, SOCKET, Unit, UnitKind};

const TICK: Duration = Duration::from_millis(250);
/// So long at most systemd is to wait for the probes of all volumes: what is ordered after us comes without those of one that is slow.
const ATTACH_MAX: Duration = Duration::from_secs(30);
const QUESTIONS_MAX: usize = 64;
/// The page has nothing to bring to an end.
const PAGE_ENDS: Duration = Duration::from_secs(1);

/// Reads the configuration again; the error is for people.
type Reread<'a> = dyn FnMut() -> Result<Configuration, String> + 'a;

pub struct UnitsOptions<'a> {
    pub configuration: Configuration,
    pub reread: &'a mut Reread<'a>,
}

/// Until SIGTERM or SIGINT: then all make a last mark and stop; a second signal kills them, and their probes go on recording.
/// SIGHUP reads the configuration again. SIGUSR1 ends at once and leaves the probes at work, for another version to take over.
///
/// # Errors
/// If another service runs here, or it cannot be asked anything.
pub fn run_units(options: UnitsOptions<'_>) -> anyhow::Result<()> {
    let socket = run_dir::path().join(SOCKET);
    let dir = socket.parent().unwrap_or(Path::new("/"));
    let lock = VolumeLock::take(dir, "service")?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(serve(options, &socket));
    runtime.shutdown_background();
    let _ = std::fs::remove_file(&socket);
    drop(lock);
    result
}

async fn serve(options: UnitsOptions<'_>, socket: &Path) -> anyhow::Result<()> {
    let UnitsOptions { configuration, reread } = options;
    let (done, mut marked) = mpsc::unbounded_channel::<Marked>();
    let groups = Groups::new(configuration.groups, done, Instant::now());
    let mut service = Service::new(Page::new(configuration.listen), groups);
    configuration.units.into_iter().for_each(|unit| service.add(unit));
    let listener = listen(socket)?;
    let (ask, mut questions) = mpsc::channel::<(Request, oneshot::Sender<Response>)>(QUESTIONS_MAX);
    let mut clients = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut hand_over = signal(SignalKind::user_defined1())?;
    while !(service.ending && service.supervised.is_empty()) {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((stream, _)) = accepted {
                    let ask = ask.clone();
                    clients.spawn(answer(stream, move |request| through(ask, request)));
                }
            }
            Some(_) = clients.join_next() => {}
            Some((request, reply)) = questions.recv() => {
                service.respond(request, reply, reread);
            }
            Some(marked) = marked.recv() => service.groups.ended(marked),
            Some(ended) = service.processes.join_next() => service.ended(ended),
            _ = ticks.tick() => service.tick(),
            _ = interrupt.recv() => service.stop(),
            _ = terminate.recv() => service.stop(),
            _ = hangup.recv() => match service.reload(reread) {
                Ok(done) => say(Priority::Info, &done),
                Err(why) => say(Priority::Error, &why),
            },
            _ = hand_over.recv() => service.leave(),
        }
    }
    service.page.close();
    let over = async {
        while service.page.is_running()
            && let Some(ended) = service.processes.join_next().await
        {
            service.ended(ended);
        }
    };
    // One that does not end by itself is of no harm.
    let _ = tokio::time::timeout(PAGE_ENDS, over).await;
    Ok(())
}

async fn through(ask: mpsc::Sender<(Request, oneshot::Sender<Response>)>, request: Request) -> Response {
    let (reply, answered) = oneshot::channel();
    let gone = || Response::Error("the service is ending".into());
    if ask.send((request, reply)).await.is_err() {
        return gone();
    }
    answered.await.unwrap_or_else(|_| gone())
}

struct Service {
    supervised: BTreeMap<String, Supervised>,
    groups: Groups,
    page: Page,
    processes: JoinSet<Ended>,
    ending: bool,
    shown: String,
    begun: Instant,
    /// That was said to systemd.
    ready: bool,
}

impl Service {
    fn new(page: Page, groups: Groups) -> Service {
        Service {
            supervised: BTreeMap::new(),
            groups,
            page,
            processes: JoinSet::new(),
            ending: false,
            shown: String::new(),
            begun: Instant::now(),
            ready: false,
        }
    }

    fn add(&mut self, unit: Unit) {
        self.supervised.insert(unit.name.clone(), Supervised::new(unit));
    }

    fn tick(&mut self) {
        let now = Instant::now();
        for (name, supervised) in &mut self.supervised {
            if !supervised.is_due(now) {
                continue;
            }
            match spawn(&supervised.unit().arguments, Stdio::null()) {
                Ok(child) => {
                    supervised.started(child.id().unwrap_or_default(), now);
                    self.processes.spawn(watch(name.clone(), child));
                }
                Err(error) => {
                    supervised.ended(format!("it cannot be started: {error}"), now);
                }
            }
        }
        self.groups.tick(now, |volume| self.supervised.get(volume).and_then(member));
        match self.page.start(now) {
            None => {}
            Some(Ok(child)) => drop(self.processes.spawn(watch(page::NAME.into(), child))),
            Some(Err(error)) => {
                let told = self.page.ended(None, &format!("it cannot be started: {error}"), now);
                told.iter().for_each(|told| say(Priority::Error, told));
            }
        }
        if !self.ready && (self.begun.elapsed() >= ATTACH_MAX || self.supervised.values().all(is_captured)) {
            self.ready = true;
            tell_systemd(&[NotifyState::Ready]);
        }
        let running = self.supervised.values().filter(|supervised| supervised.pid().is_some()).count();
        let shown = format!("{running} of {} are being protected", self.supervised.len());
        if shown != self.shown {
            tell_systemd(&[NotifyState::Status(&shown)]);
            self.shown = shown;
        }
        tell_systemd(&[NotifyState::Watchdog]);
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok(Ended { name, pid, why, .. }) = ended else { return };
        if name == page::NAME {
            let told = self.page.ended(Some(pid), &why, Instant::now());
            return told.iter().for_each(|told| say(Priority::Error, told));
        }
        let Some(supervised) = self.supervised.get_mut(&name) else { return };
        if supervised.pid() == Some(pid) && supervised.ended(why.clone(), Instant::now()) {
            let next = supervised.status(Instant::now()).next_try_ms.unwrap_or(0).div_ceil(1000);
            say(Priority::Error, &format!("{name}: ended, started again in {next} s: {why}"));
        }
        self.supervised.retain(|_, supervised| !supervised.is_over());
    }

    fn stop(&mut self) {
        tell_systemd(&[NotifyState::Stopping]);
        let again = std::mem::replace(&mut self.ending, true);
        self.groups.close();
        if !again {
            say(
                Priority::Info,
                "stopping: each makes a last mark (again to kill them; their probes go on recording)",
            );
        }
        for supervised in self.supervised.values_mut() {
            let order = supervised.want(Wanted::Gone);
            send(supervised, if again { order.map(|_| Order::Kill) } else { order });
        }
        self.supervised.retain(|_, supervised| !supervised.is_over());
    }

    fn leave(&mut self) {
        self.ending = true;
        self.groups.close();
        say(
            Priority::Info,
            "ending at once; the probes of volumes go on recording, and the next start goes on",
        );
        for supervised in self.supervised.values_mut() {
            let order = supervised.leave();
            send(supervised, order);
        }
        self.supervised.retain(|_, supervised| !supervised.is_over());
    }

    fn respond(&mut self, request: Request, reply: oneshot::Sender<Response>, reread: &mut Reread<'_>) {
        let now = Instant::now();
        let response = match request {
            Request::Status => {
                let all: Vec<_> = self.supervised.values().map(|supervised| supervised.status(now)).collect();
                Response::of(&all)
            }
            Request::Pause { unit } => self.want(&unit, Wanted::Paused),
            Request::Resume { unit } => self.want(&unit, Wanted::Running),
            Request::Reload => match self.reload(reread) {
                Ok(done) => Response::of(&done),
                Err(why) => Response::Error(why),
            },
            Request::Groups => Response::of(&self.groups.status()),
            // Answered when it is made, or at the next turn, as none is begun when all ends.
            Request::MarkGroup { group, label } => return self.groups.ask(group, label, reply),
            Request::Mark { .. } | Request::Join { .. } => {
                Response::Error("marks are made by the protection of a volume".into())
            }
        };
        // Who asked may have gone.
        let _ = reply.send(response);
    }

    fn want(&mut self, which: &str, wanted: Wanted) -> Response {
        if self.ending {
            return Response::Error("the service is ending".into());
        }
        let names = self.supervised.keys().cloned().collect::<Vec<_>>().join(", ");
        let is_it = |supervised: &Supervised| {
            let unit = supervised.unit();
            !supervised.is_going() && (unit.name == which || unit.source == Path::new(which))
        };
        let Some(supervised) = self.supervised.values_mut().find(|supervised| is_it(supervised)) else {
            return Response::Error(format!("{which} is not in the configuration; these are: {names}"));
        };
        let told = supervised.told(wanted, self.groups.of(&supervised.unit().name), Instant::now());
        let order = supervised.want(wanted);
        send(supervised, order);
        Response::of(&told)
    }

    /// What is as before goes on undisturbed. Says what it does.
    fn reload(&mut self, reread: &mut Reread<'_>) -> Result<String, String> {
        if self.ending {
            return Err("the service is ending".into());
        }
        let configuration = reread().map_err(|why| format!("not reloaded, all goes on as before: {why}"))?;
        let Configuration { units, groups, listen } = configuration;
        let mut done = Vec::new();
        for (name, supervised) in &mut self.supervised {
            if !units.iter().any(|unit| unit.name == *name) {
                done.push(format!("{name} stops"));
                let order = supervised.want(Wanted::Gone);
                send(supervised, order);
            }
        }
        for unit in units {
            match self.supervised.get_mut(&unit.name) {
                Some(supervised) if *supervised.unit() == unit && !supervised.is_going() => {}
                Some(supervised) => {
                    done.push(format!("{} goes on with its new options", unit.name));
                    let order = supervised.replace(unit);
                    send(supervised, order);
                }
                None => {
                    done.push(format!("{} starts", unit.name));
                    self.add(unit);
                }
            }
        }
        done.extend(self.groups.replace(groups, Instant::now()));
        done.extend(self.page.replace(listen));
        self.supervised.retain(|_, supervised| !supervised.is_over());
        Ok(match done.is_empty() {
            true => "reloaded: nothing has changed".into(),
            false => format!("reloaded: {}", done.join(", ")),
        })
    }
}

/// Writes from now on are seen, or it is known that they are not. A tree has no probes that one could look for.
fn is_captured(supervised: &Supervised) -> bool {
    let unit = supervised.unit();
    unit.kind == UnitKind::Tree
        || supervised.has_failed()
        || are_at_work(&run_dir::volume_name(&unit.source.to_string_lossy()))
}

/// As it can take part in a mark of its group now.
fn member(supervised: &Supervised) -> Option<Member> {
    supervised.pid()?;
    let unit = supervised.unit();
    let name = run_dir::volume_name(&unit.source.to_string_lossy());
    let socket = run_dir::socket(&run_dir::path(), &name);
    Some(Member { volume: unit.name.clone(), source: unit.source.clone(), socket })
}

fn send(supervised: &Supervised, order: Option<Order>) {
    let (Some(order), Some(pid)) = (order, supervised.pid().and_then(|pid| i32::try_from(pid).ok())) else {
        return;
    };
    let signal = match order {
        Order::Stop => Signal::SIGTERM,
        Order::Kill => Signal::SIGKILL,
    };
    // One that has ended by itself meanwhile is heard of.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Of no interest to anybody else, and without it all goes on.
fn tell_systemd(states: &[NotifyState<'_>]) {
    let _ = sd_notify::notify(states);
}
