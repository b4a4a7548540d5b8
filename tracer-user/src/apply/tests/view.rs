//! The journal read here and there says what a volume held that all records were applied to.

use proptest::prelude::*;

use super::going_back::{fold, history, overwritten_many_times, reachable};
use super::*;
use crate::journal::JournalError;

fn read(view: &mut crate::journal::View, start: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    view.read_at(start as u64, &mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_view_of_any_point_is_the_volume_whatever_is_read_of_it_first(
        seed in any::<u64>(),
        rounds in prop::collection::vec(any::<bool>(), 3..20),
        prune in prop::option::of((10u64..80, any::<bool>())),
        reads in prop::collection::vec((0..SIZE, 1usize..20_000), 1..12),
    ) {
        let history = history(seed, &rounds);
        if let Some((seconds_ago, image)) = prune {
            fold(&history, seconds_ago, image);
        }
        for lsn in reachable(&history.journal(), &history) {
            let mut view = history.journal().into_view(lsn).unwrap();
            let state = history.state(lsn);
            for (start, len) in &reads {
                let len = *len.min(&(SIZE - start));
                prop_assert!(read(&mut view, *start, len) == state[*start..start + len], "record {lsn}");
            }
            prop_assert!(read(&mut view, 0, SIZE) == state, "record {lsn}");
        }
    }
}

#[test]
fn only_as_much_of_the_journal_is_read_as_tells_what_is_asked_for() {
    let history = overwritten_many_times();
    let points = history.points();
    let (last, old) = (points[points.len() - 1].lsn, points[30].lsn);
    // What is not read can't be missed.
    for segment in history.journal().segments().unwrap().iter().filter(|segment| segment.last_lsn <= old) {
        let path = history.dir().join(&segment.name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.iter_mut().skip(128).step_by(50).for_each(|byte| *byte ^= 1);
        std::fs::write(&path, bytes).unwrap();
    }
    let mut view = history.journal().into_view(last).unwrap();
    assert!(read(&mut view, 0, SIZE) == history.state(last));
    let mut view = history.journal().into_view(points[20].lsn).unwrap();
    let error = view.read_at(0, &mut [0; SIZE]).unwrap_err();
    assert!(error.is_damage() && error.to_string().contains(".awj"), "{error}");
}

#[test]
fn what_does_not_fit_into_memory_is_refused() {
    let history = history(5, &[true, false, true, false]);
    let last = history.points().last().unwrap().lsn;
    let mut view = history.journal().into_view(last).unwrap();
    view.set_ranges_max(3);
    let refused = view.read_at(0, &mut [0; SIZE]);
    assert!(matches!(refused, Err(JournalError::Scattered { ranges_max: 3 })), "{refused:?}");
}
