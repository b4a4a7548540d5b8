//! Points in the history of a protected volume, chosen at random, restored and judged.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::legal::judge;
use crate::{Found, Operation, Presence, Protection, Random, afterwrite, run};

/// What `replay --to` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Point {
    /// Since 1970.
    Time(u64),
    Lsn(u64),
    /// Number of a mark.
    Mark(u64),
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Time(ns) => {
                write!(f, "time:{}", humantime::format_rfc3339_nanos(UNIX_EPOCH + Duration::from_nanos(*ns)))
            }
            Point::Lsn(lsn) => write!(f, "lsn:{lsn}"),
            Point::Mark(id) => write!(f, "mark:{id}"),
        }
    }
}

/// A part of the history of which every instant can be restored, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub from_lsn: u64,
    pub to_lsn: u64,
    pub from_ns: u64,
    pub to_ns: u64,
}

impl Stretch {
    /// `stretches` of `afterwrite points --json`.
    pub fn of_journal(journal: &Path) -> Result<Vec<Stretch>> {
        let listing = run(afterwrite().arg("points").arg(journal).arg("--json"))?;
        Stretch::all(&serde_json::from_str(&listing).with_context(|| format!("not JSON: {listing}"))?)
    }

    /// Of what `points --json` prints.
    fn all(listing: &Value) -> Result<Vec<Stretch>> {
        let stretches = listing["stretches"].as_array().context("`points --json` lists no stretches")?;
        stretches.iter().map(|stretch| Stretch::of(stretch).with_context(|| stretch.to_string())).collect()
    }

    fn of(stretch: &Value) -> Result<Stretch> {
        let lsn = |name: &str| stretch[name].as_u64().with_context(|| format!("no {name}"));
        Ok(Stretch {
            from_lsn: lsn("from_lsn")?,
            to_lsn: lsn("to_lsn")?,
            from_ns: time_ns(&stretch["from_time"])?,
            to_ns: time_ns(&stretch["to_time"])?,
        })
    }
}

/// RFC 3339, as all of `--json` is.
pub fn time_ns(value: &Value) -> Result<u64> {
    let text = value.as_str().with_context(|| format!("no time: {value}"))?;
    let time = humantime::parse_rfc3339(text).with_context(|| text.to_owned())?;
    Ok(u64::try_from(time.duration_since(UNIX_EPOCH)?.as_nanos())?)
}

/// Instants of a load, half of them times, half LSNs, and the ends of each stretch. `load`: when it was, since 1970.
/// An error if less than this part of that time can be restored: then there would be little to prove.
pub fn choose(
    stretches: &[Stretch],
    load: std::ops::Range<u64>,
    least: f64,
    count: u64,
    random: &mut Random,
) -> Result<Vec<Point>> {
    let within: Vec<Stretch> = stretches
        .iter()
        .filter(|stretch| stretch.to_ns > load.start && stretch.from_ns < load.end)
        .copied()
        .collect();
    let length = |stretch: &Stretch| stretch.to_ns.min(load.end) - stretch.from_ns.max(load.start);
    let (covered_ns, load_ns) = (within.iter().map(length).sum::<u64>(), load.end - load.start);
    println!(
        "{} stretches cover {:.1} % of {:.1} s of load",
        within.len(),
        100.0 * covered_ns as f64 / load_ns as f64,
        load_ns as f64 / 1e9
    );
    ensure!(
        covered_ns as f64 >= least * load_ns as f64,
        "too little of the load can be restored: {stretches:?}"
    );
    let mut points: Vec<Point> = within
        .iter()
        .flat_map(|stretch| [Point::Lsn(stretch.from_lsn), Point::Lsn(stretch.to_lsn)])
        .collect();
    for nth in 0..count {
        // Weighed by their length in time.
        let mut at_ns = random.below(covered_ns);
        let stretch = within.iter().find(|stretch| {
            let found = at_ns < length(stretch);
            at_ns -= if found { 0 } else { length(stretch) };
            found
        });
        let stretch = stretch.context("the sum of the lengths is the length")?;
        points.push(match nth % 2 {
            0 => Point::Time(stretch.from_ns.max(load.start) + at_ns),
            _ => Point::Lsn(stretch.from_lsn + random.below(stretch.to_lsn - stretch.from_lsn + 1)),
        });
    }
    Ok(points)
}

/// The marks of this label that can be restored.
pub fn marks(protection: &Protection, label: &str) -> Result<Vec<Point>> {
    let points = protection.points()?;
    let wanted = points.iter().filter(|point| point["restorable"] == true && point["label"] == label);
    Ok(wanted.filter_map(|point| point["id"].as_u64()).map(Point::Mark).collect())
}

/// Restores each point as an image, has `find` look what of the workload's operations is in it, and judges that.
pub fn prove(
    protection: &Protection,
    points: &[Point],
    mut find: impl FnMut(&Path) -> Result<Vec<(Operation, Presence)>>,
) -> Result<()> {
    let mut sum = Found::default();
    for point in points {
        let found = restore(protection, point).and_then(|(image, time_ns)| {
            let found = find(&image)?;
            std::fs::remove_file(&image)?;
            Ok(judge(&found, time_ns)?)
        });
        let found = found.with_context(|| format!("restored to {point}"))?;
        sum.whole += found.whole;
        sum.torn += found.torn;
        sum.absent += found.absent;
        sum.under_way += found.under_way;
    }
    println!("{} instants are legal: {sum:?}", points.len());
    // Or nothing was told apart.
    ensure!(sum.whole > 0, "not one operation was found");
    Ok(())
}

/// An image of the volume at this point, and the time that it is to be judged by.
pub fn restore(protection: &Protection, point: &Point) -> Result<(PathBuf, u64)> {
    let image = protection.dir().join("restored.img");
    if image.exists() {
        std::fs::remove_file(&image)?;
    }
    let mut replay = afterwrite();
    replay.arg("replay").arg(protection.journal()).args(["--json", "--to", &point.to_string(), "--target"]);
    let report = run(replay.arg(&image))?;
    let report: Value = serde_json::from_str(&report).with_context(|| format!("not JSON: {report}"))?;
    let restored = &report["plan"]["point"];
    let restored_ns = time_ns(&restored["time"])?;
    let time_ns = match point {
        // Not an earlier mark in its stead.
        Point::Lsn(lsn) => {
            ensure!(restored["lsn"].as_u64() == Some(*lsn), "not this point was restored: {restored}");
            restored_ns
        }
        Point::Time(wanted_ns) => {
            ensure!(restored_ns <= *wanted_ns, "a later point was restored: {restored}");
            *wanted_ns
        }
        Point::Mark(_) => restored_ns,
    };
    Ok((image, time_ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(from_lsn: u64, to_lsn: u64, from_ns: u64, to_ns: u64) -> Stretch {
        Stretch { from_lsn, to_lsn, from_ns, to_ns }
    }

    #[test]
    fn stretches_are_read() {
        let listing = serde_json::json!({ "stretches": [{
            "from_lsn": 3, "to_lsn": 9, "from_time": "1970-01-01T00:00:01.5Z", "to_time": "1970-01-01T00:00:02Z",
        }] });
        assert_eq!(
            Stretch::all(&listing).expect("well-formed"),
            [stretch(3, 9, 1_500_000_000, 2_000_000_000)]
        );
        assert!(Stretch::all(&serde_json::json!({ "points": [] })).is_err());
    }

    #[test]
    fn points_are_within_the_stretches_and_the_load() {
        let stretches = [stretch(1, 5, 0, 1000), stretch(10, 20, 2000, 5000), stretch(30, 40, 9000, 9500)];
        for seed in 0..50 {
            let points =
                choose(&stretches, 500..6000, 0.5, 10, &mut Random::new(seed)).expect("enough is covered");
            assert_eq!(points.len() as u64, 4 + 10);
            for point in points {
                match point {
                    Point::Time(ns) => {
                        assert!((500..1000).contains(&ns) || (2000..5000).contains(&ns), "{ns}")
                    }
                    Point::Lsn(lsn) => assert!((1..=5).contains(&lsn) || (10..=20).contains(&lsn), "{lsn}"),
                    Point::Mark(_) => panic!("no mark was asked for"),
                }
            }
        }
        assert!(
            choose(&stretches, 5000..9400, 0.5, 10, &mut Random::new(1)).is_err(),
            "little of it can be restored"
        );
    }

    #[test]
    fn times_are_said_to_the_nanosecond() {
        assert_eq!(Point::Time(1_500_000_007).to_string(), "time:1970-01-01T00:00:01.500000007Z");
    }
}
