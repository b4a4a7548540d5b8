//! What is to become of one unit, and when. No process, no clock: see `run`.

use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::service::units::retry::Retry;
use crate::service::units::{Unit, UnitKind};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    Running,
    /// The probes of a volume record meanwhile.
    Paused,
    Gone,
}

/// What to do to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Last mark, probes removed.
    Stop,
    /// As if the machine had taken it: the probes of a volume stay, and the next goes on.
    Kill,
}

pub struct Supervised {
    unit: Unit,
    wanted: Wanted,
    process: Option<(u32, Instant)>,
    /// It was told to end, so its end is no failure.
    told: bool,
    retry: Retry,
    failures: u64,
    why: Option<String>,
}

/// For `status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnitStatus {
    pub name: String,
    pub kind: String,
    pub source: String,
    pub journal: String,
    pub targets: Vec<String>,
    /// running, failed (and started again), paused, stopping
    pub state: String,
    pub pid: Option<u32>,
    /// Times that it ended by itself.
    pub failures: u64,
    /// The last time.
    pub why: Option<String>,
    pub next_try_ms: Option<u64>,
}

impl UnitStatus {
    pub fn is_running(&self) -> bool {
        self.state == "running"
    }
}

impl Supervised {
    pub fn new(unit: Unit) -> Supervised {
        Supervised {
            unit,
            wanted: Wanted::Running,
            process: None,
            told: false,
            retry: Retry::default(),
            failures: 0,
            why: None,
        }
    }

    pub fn unit(&self) -> &Unit {
        &self.unit
    }

    pub fn pid(&self) -> Option<u32> {
        self.process.map(|(pid, _)| pid)
    }

    /// It is, or will be, over.
    pub fn is_going(&self) -> bool {
        self.wanted == Wanted::Gone
    }

    /// Nothing more will come of it.
    pub fn is_over(&self) -> bool {
        self.is_going() && self.process.is_none()
    }

    /// It came to its end by itself, and will be started again.
    pub fn has_failed(&self) -> bool {
        self.failures > 0
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.wanted == Wanted::Running && self.process.is_none() && self.retry.is_due(now)
    }

    pub fn started(&mut self, pid: u32, now: Instant) {
        (self.process, self.told) = (Some((pid, now)), false);
    }

    /// It has ended, or could not be started. Whether that is worth telling.
    pub fn ended(&mut self, why: String, now: Instant) -> bool {
        let since = self.process.take().map(|(_, since)| since);
        if std::mem::take(&mut self.told) || self.wanted != Wanted::Running {
            return false;
        }
        self.retry.failed(since, now);
        self.failures += 1;
        self.why = Some(why);
        true
    }

    /// From here on it is to be so. What that means for its process.
    pub fn want(&mut self, wanted: Wanted) -> Option<Order> {
        self.wanted = wanted;
        self.retry = Retry::default();
        let order = match wanted {
            Wanted::Running => return None,
            Wanted::Paused => self.hand_over(),
            Wanted::Gone => Order::Stop,
        };
        self.tell(order)
    }

    /// What [`Supervised::want`] will come to, for who asks for it: what happens, what is lost, what comes next.
    pub fn told(&self, wanted: Wanted, group: Option<&str>, now: Instant) -> String {
        let name = &self.unit.name;
        let is_volume = self.unit.kind == UnitKind::Volume;
        let before = self.status(now).state;
        match (wanted, &before[..]) {
            (Wanted::Paused, "paused") => {
                format!("{name} was paused already; `afterwrite resume {name}` goes on")
            }
            (Wanted::Paused, _) => {
                let meanwhile = match is_volume {
                    true => {
                        "its process ends at once, its probes go on recording where is written, so no write is lost. Until it goes on \
                         no points are made and the target stays as it is; then what was written meanwhile is read, and nothing is \
                         compared"
                    }
                    false => {
                        "it makes a last mark and ends. What changes until it goes on is not seen, and there are no points of that \
                         time; then the whole tree is looked at again"
                    }
                };
                let group = group.map_or(String::new(), |group| {
                    format!(", nor are there marks of group {group} until then")
                });
                format!("{name} is paused: {meanwhile}{group}. `afterwrite resume {name}` goes on")
            }
            (_, "running") => format!("{name} was not paused: it runs. `afterwrite status` shows it"),
            (_, "failed") => {
                format!("{name} is tried again at once; `afterwrite status` shows what comes of it")
            }
            (_, _) if is_volume => format!(
                "{name} goes on: what was written meanwhile is read now, and the next mark is a point again; `afterwrite status` \
                 shows how far it is"
            ),
            _ => format!(
                "{name} goes on: the tree is looked at again, and the next mark is a point again; `afterwrite status` shows how far \
                 it is"
            ),
        }
    }

    /// Other options, or other places. What that means for its process.
    pub fn replace(&mut self, unit: Unit) -> Option<Order> {
        let places = |unit: &Unit| (unit.source.clone(), unit.journal.clone(), unit.targets.clone());
        let order = if places(&unit) == places(&self.unit) { self.hand_over() } else { Order::Stop };
        self.unit = unit;
        if self.is_going() {
            self.wanted = Wanted::Running;
        }
        self.retry = Retry::default();
        self.tell(order)
    }

    /// Another process is to take over, which is not of this service.
    pub fn leave(&mut self) -> Option<Order> {
        self.wanted = Wanted::Gone;
        self.tell(self.hand_over())
    }

    /// The probes of a tree end with its process, so that it had to be looked at as a whole after a kill.
    fn hand_over(&self) -> Order {
        match self.unit.kind {
            UnitKind::Volume => Order::Kill,
            UnitKind::Tree => Order::Stop,
        }
    }

    fn tell(&mut self, order: Order) -> Option<Order> {
        self.process?;
        self.told = true;
        Some(order)
    }

    pub fn status(&self, now: Instant) -> UnitStatus {
        let state = match (self.wanted, self.process) {
            (Wanted::Paused, None) => "paused",
            (Wanted::Running, Some(_)) if !self.told => "running",
            (Wanted::Running, None) => "failed",
            _ => "stopping",
        };
        let text = |path: &std::path::Path| path.display().to_string();
        let next_try = self.retry.next(now).filter(|_| self.process.is_none());
        UnitStatus {
            name: self.unit.name.clone(),
            kind: match self.unit.kind {
                UnitKind::Volume => "volume".into(),
                UnitKind::Tree => "tree".into(),
            },
            source: text(&self.unit.source),
            journal: text(&self.unit.journal),
            targets: self.unit.targets.iter().map(|target| text(target)).collect(),
            state: state.into(),
            pid: self.pid(),
            failures: self.failures,
            why: self.why.clone(),
            next_try_ms: next_try.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::service::units::retry::{AGAIN_MAX, STEADY};

    fn unit(kind: UnitKind, option: &str) -> Unit {
        Unit {
            name: "data".into(),
            kind,
            source: "/dev/data".into(),
            journal: "/j".into(),
            targets: vec!["/t".into()],
            arguments: vec!["protect".into(), option.into()],
        }
    }

    #[test]
    fn what_fails_is_tried_again_less_and_less_often_until_it_ran_for_a_while() {
        let mut supervised = Supervised::new(unit(UnitKind::Volume, ""));
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert!(supervised.is_due(now));
            supervised.started(7, now);
            assert!(!supervised.is_due(now) && supervised.status(now).is_running());
            assert!(supervised.ended("no room".into(), now));
            assert_eq!(supervised.status(now).state, "failed");
            let pause = Duration::from_millis(supervised.status(now).next_try_ms.unwrap());
            assert!(!supervised.is_due(now + pause - Duration::from_millis(1)));
            pauses.push(pause.as_secs());
            now += pause;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        supervised.started(8, now);
        now += STEADY;
        assert!(supervised.ended("killed".into(), now));
        assert_eq!(supervised.status(now).next_try_ms, Some(1000));
        assert_eq!(supervised.status(now).failures, 9);
    }

    #[test]
    fn other_options_are_a_hand_over_and_other_places_are_a_stop() {
        let now = Instant::now();
        for (kind, expected) in [(UnitKind::Volume, Order::Kill), (UnitKind::Tree, Order::Stop)] {
            let mut supervised = Supervised::new(unit(kind, "a"));
            assert_eq!(supervised.replace(unit(kind, "b")), None, "there is no process yet");
            supervised.started(7, now);
            assert_eq!(supervised.replace(unit(kind, "c")), Some(expected));
            assert_eq!(supervised.status(now).state, "stopping");
            assert!(!supervised.ended("killed".into(), now), "it was told to");
            assert!(supervised.is_due(now));
            supervised.started(8, now);
            let elsewhere = Unit { journal: "/elsewhere".into(), ..unit(kind, "c") };
            assert_eq!(supervised.replace(elsewhere), Some(Order::Stop));
        }
    }

    #[test]
    fn paused_it_stays_until_it_is_resumed_and_gone_it_is_over() {
        let now = Instant::now();
        let mut supervised = Supervised::new(unit(UnitKind::Volume, ""));
        supervised.started(7, now);
        let told = supervised.told(Wanted::Paused, Some("shop"), now);
        assert!(told.contains("no write is lost") && told.contains("group shop"), "{told}");
        assert!(supervised.told(Wanted::Running, None, now).contains("was not paused"));
        assert_eq!(supervised.want(Wanted::Paused), Some(Order::Kill));
        assert!(!supervised.ended("killed".into(), now));
        assert!(!supervised.is_due(now + AGAIN_MAX) && supervised.status(now).state == "paused");
        assert!(supervised.told(Wanted::Paused, None, now).contains("paused already"));
        assert!(
            supervised
                .told(Wanted::Running, None, now)
                .starts_with("data goes on: what was written meanwhile")
        );
        assert_eq!(supervised.want(Wanted::Running), None);
        assert!(supervised.is_due(now));
        supervised.started(8, now);
        assert_eq!(supervised.want(Wanted::Gone), Some(Order::Stop));
        assert!(!supervised.is_over());
        assert!(!supervised.ended("stopped".into(), now));
        assert!(supervised.is_over() && !supervised.is_due(now + AGAIN_MAX));
        // It came back into the configuration before it was gone.
        supervised.replace(unit(UnitKind::Volume, ""));
        assert!(supervised.is_due(now));
    }
}
