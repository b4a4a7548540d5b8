//! Tries every way to change a file or name in a directory, one at a time, while `afterwrite changes` watches its file
//! system, and holds what that says to the table of docs/OPERATIONS.md. `ways DIR RUNG`, or `best` for the best there is; exit code 1 if it is otherwise.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};

use afterwrite_tests::ways::system::Dir;
use afterwrite_tests::ways::{Sight, Watched, all, best};

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let dir = PathBuf::from(arguments.next().context("the directory")?);
    let rung = arguments.next().context("the rung")?;
    let afterwrite = std::env::var_os("AFTERWRITE_BIN").unwrap_or_else(|| "afterwrite".into());
    std::fs::create_dir_all(&dir)?;
    let mut watched = Watched::begin(Path::new(&afterwrite), &dir, &rung)?;
    println!("rung {}, absent {:?}", watched.rung, watched.absent);
    let mut wrong = 0;
    for (number, way) in all().into_iter().enumerate() {
        let place = Dir { path: dir.clone(), prefix: format!("way{number}") };
        let act = (way.prepare)(&place).with_context(|| way.name)?;
        watched.events()?;
        let expected = act().with_context(|| way.name)?;
        let events = watched.events()?;
        let Some(expected) = expected else {
            println!("   -        {}", way.name);
            continue;
        };
        let wanted = way.wanted(&watched.rung, &watched.absent);
        let seen = best(&events, &expected);
        // Some file systems show more than all do.
        let right = seen == wanted || (wanted == Sight::Pages && seen == Sight::Full);
        println!("{} {:8} {}", if right { "  " } else { "!!" }, word(seen), way.name);
        if !right {
            wrong += 1;
            println!("     wanted {}: {expected:?}", word(wanted));
            events.iter().for_each(|event| println!("     {}", event.0));
        }
    }
    if !watched.missed.is_null() {
        println!("!! missed: {}", watched.missed);
        wrong += 1;
    }
    println!("{wrong} wrong");
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn word(sight: Sight) -> &'static str {
    match sight {
        Sight::Full => "full",
        Sight::Pages => "pages",
        Sight::None => "none",
    }
}
