//! The screen as text, at three sizes and with no, one and 64 volumes, held against what was looked at and found good:
//! `AFTERWRITE_BLESS=1` writes it anew.

use std::path::Path;

use super::*;
use crate::model::{Lsn, PointClass};
use crate::service::{Survey, samples};

fn watched(count: u64) -> Watched {
    let mut watched = Watched { seen: samples::seen(count), now: samples::now(), ..Watched::default() };
    let point = |id: u64| Point {
        id: MarkId(id),
        class: if id.is_multiple_of(3) { PointClass::Crash } else { PointClass::Fs },
        lsn: Lsn(id * 100),
        time: Timestamp(samples::now().0 - ((17 - id) * 60 + 12) * 1_000_000_000),
        label: if id == 15 { "before\u{1b}upgrade".into() } else { String::new() },
    };
    let points = Ok((1..18).rev().map(point).collect());
    watched.marks.insert("dm-0".into(), Marks { newest: Some(MarkId(17)), points });
    watched
}

/// Three groups, and a volume with several targets is chosen.
fn with_groups() -> Watched {
    let Survey { volumes, groups } = samples::survey_with_groups(9);
    let mut watched = Watched { seen: volumes, groups, ..watched(0) };
    watched.select(|_| 1);
    watched
}

#[test]
fn of_many_groups_those_that_fail_are_shown_first() {
    let mut watched = with_groups();
    let more = watched.groups[2].clone();
    watched.groups.resize(20, more);
    watched.groups.swap(0, 19);
    let shown = watched.screen(80, 24);
    let groups: Vec<&String> = shown.iter().filter(|line| line.contains("group")).collect();
    assert!(groups[0].starts_with("!group ledger"), "{groups:?}");
    assert!(groups.iter().any(|line| line.contains("and 18 groups more")), "{groups:?}");
}

#[test]
fn the_screen_is_as_it_was_looked_at() {
    for (width, height) in [(80, 24), (120, 40), (200, 50)] {
        let shown = [("0-volumes", watched(0)), ("1-volumes", watched(1)), ("64-volumes", watched(64))];
        for (what, watched) in shown.into_iter().chain([("groups", with_groups())]) {
            let shown = watched.screen(width, height).join("\n") + "\n";
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("src/cli/watch/screens")
                .join(format!("{what}-{width}x{height}.txt"));
            if std::env::var_os("AFTERWRITE_BLESS").is_some() {
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(&path, &shown).unwrap();
            }
            let wanted = std::fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(shown, wanted, "{}; if it is meant so: AFTERWRITE_BLESS=1", path.display());
        }
    }
}

#[test]
fn any_size_is_drawn() {
    for (width, height) in
        [(1, 1), (2, 16), (40, 15), (66, 16), (80, 3), (109, 29), (110, 30), (150, 50), (300, 70)]
    {
        for chosen in [0, 3, 6, 9, 12, 14, 15] {
            let mut watched = watched(16);
            watched.select(|_| chosen);
            watched.screen(width, height);
        }
        with_groups().screen(width, height);
        watched(0).screen(width, height);
    }
}

#[test]
fn keys_choose_within_the_volumes_there_are_and_end_it() {
    let mut watched = watched(64);
    let press = |watched: &mut Watched, code| watched.takes(KeyEvent::new(code, KeyModifiers::NONE));
    for (key, chosen) in [
        (KeyCode::Up, 0),
        (KeyCode::Down, 1),
        (KeyCode::PageDown, 11),
        (KeyCode::End, 63),
        (KeyCode::Down, 63),
        (KeyCode::PageUp, 53),
        (KeyCode::Char('c'), 53),
        (KeyCode::Home, 0),
    ] {
        assert!(press(&mut watched, key));
        assert_eq!(watched.index(), chosen, "{key:?}");
    }
    // A volume that went leaves the first chosen.
    press(&mut watched, KeyCode::End);
    watched.seen.truncate(3);
    assert_eq!(watched.index(), 0);
    watched.seen.clear();
    assert!(press(&mut watched, KeyCode::Down));
    assert!(!press(&mut watched, KeyCode::Char('q')));
    assert!(!watched.takes(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
}

#[test]
fn what_volumes_are_called_does_nothing_to_the_terminal() {
    let mut watched = watched(1);
    let status = watched.seen[0].status.as_mut().unwrap();
    status.source = "/dev/\u{1b}[2J\u{7}x".into();
    status.rung = "\u{1b}]0;x\u{7}".into();
    let shown = watched.screen(200, 60).concat();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
}

/// Runs itself on a terminal of its own, and looks at what is left of that.
#[test]
fn a_panic_gives_the_terminal_back() {
    if std::env::var_os("AFTERWRITE_PANICS").is_some() {
        let _ = on_terminal(|_| panic!("as wanted"));
        return;
    }
    let test = "cli::watch::tests::a_panic_gives_the_terminal_back";
    let itself = std::env::current_exe().unwrap();
    let command = format!("AFTERWRITE_PANICS=1 {} --exact {test} --nocapture; stty -a", itself.display());
    let said =
        std::process::Command::new("script").args(["-qec", &command, "/dev/null"]).output().unwrap().stdout;
    let said = String::from_utf8_lossy(&said);
    let (entered, left) = (said.find("\u{1b}[?1049h"), said.find("\u{1b}[?1049l"));
    assert!(entered.is_some() && entered < left, "{said}");
    assert!(left < said.find("as wanted"), "what happened is told on the screen that is left: {said}");
    let modes: Vec<&str> = said.split_whitespace().collect();
    assert!(modes.contains(&"icanon") && modes.contains(&"echo"), "{said}");
}
