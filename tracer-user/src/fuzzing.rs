//! What the fuzz targets of `fuzz/` run: for each decoder a function that takes any bytes and fails if a promise of
//! the decoder is broken, not only if it panics. Checksums would keep nearly all mutated bytes out, so most targets
//! take the bytes twice: as they are, and with their checksums put right.
//!
//! Compiled for `cargo fuzz`, which sets `cfg(fuzzing)`, and for tests, which run the corpus that is in the tree and inputs made
//! of it.

pub use crate::apply::fuzzing::{checkpoint, hash_list};
#[cfg(feature = "capture")]
pub use crate::capture::fuzzing::{event, vfs_event};
#[cfg(feature = "capture")]
pub use crate::cli::fuzzing::{configuration, status_answer};
pub use crate::filemap::fuzzing::{fanotify_events, map_segment};
pub use crate::files::fuzzing::ext4;
pub use crate::journal::fuzzing::{folds, frame, index, record, seal, segment, segment_header, volume_file};
#[cfg(feature = "capture")]
pub use crate::service::fuzzing::request;
pub use crate::tree::fuzzing::tree_checkpoint;

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use proptest::prelude::*;
    use proptest::sample::{Index, select};
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    /// Of each target.
    const CASES: u32 = 3_000;

    type Target = (&'static str, fn(&[u8]));

    const TARGETS: &[Target] = &[
        ("checkpoint", super::checkpoint),
        #[cfg(feature = "capture")]
        ("configuration", super::configuration),
        #[cfg(feature = "capture")]
        ("event", super::event),
        ("ext4", super::ext4),
        ("fanotify_events", super::fanotify_events),
        ("folds", super::folds),
        ("frame", super::frame),
        ("hash_list", super::hash_list),
        ("index", super::index),
        ("map_segment", super::map_segment),
        ("record", super::record),
        #[cfg(feature = "capture")]
        ("request", super::request),
        ("seal", super::seal),
        ("segment", super::segment),
        ("segment_header", super::segment_header),
        #[cfg(feature = "capture")]
        ("status_answer", super::status_answer),
        ("tree_checkpoint", super::tree_checkpoint),
        #[cfg(feature = "capture")]
        ("vfs_event", super::vfs_event),
        ("volume_file", super::volume_file),
    ];

    fn files(dir: &str) -> Vec<PathBuf> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(dir);
        let entries = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    #[test]
    fn every_target_takes_its_corpus() {
        for (name, target) in TARGETS {
            let corpus = files(&format!("corpus/{name}"));
            assert!(!corpus.is_empty(), "{name} has no corpus");
            for file in corpus {
                let bytes = std::fs::read(&file).unwrap();
                let taken = std::panic::catch_unwind(|| target(&bytes));
                assert!(taken.is_ok(), "{name} does not take {}", file.display());
            }
        }
    }

    /// What may become of an input: where, and with what.
    #[derive(Clone, Debug)]
    enum Edit {
        Set(Index, u8),
        Cut(Index),
        Copy { from: Index, to: Index, bytes: usize },
    }

    impl Edit {
        fn apply(&self, input: &mut Vec<u8>) {
            let len = input.len();
            if len == 0 {
                return;
            }
            match self {
                Edit::Set(at, byte) => input[at.index(len)] = *byte,
                Edit::Cut(at) => input.truncate(at.index(len)),
                Edit::Copy { from, to, bytes } => {
                    let (from, to) = (from.index(len), to.index(len));
                    let bytes = (*bytes).min(len - from.max(to));
                    input.copy_within(from..from + bytes, to);
                }
            }
        }
    }

    fn edit() -> impl Strategy<Value = Edit> {
        let byte = prop_oneof![any::<u8>(), select(vec![0, 1, 0x7F, 0x80, 0xFF])];
        prop_oneof![
            6 => (any::<Index>(), byte).prop_map(|(at, byte)| Edit::Set(at, byte)),
            1 => any::<Index>().prop_map(Edit::Cut),
            2 => (any::<Index>(), any::<Index>(), 1usize..64)
                .prop_map(|(from, to, bytes)| Edit::Copy { from, to, bytes }),
        ]
    }

    /// The same each time: for the fuzzer's luck there is `cargo xtask fuzz`.
    #[test]
    fn no_target_is_broken_by_what_is_made_of_its_corpus() {
        for (name, target) in TARGETS {
            let corpus: Vec<_> =
                files(&format!("corpus/{name}")).iter().map(|file| std::fs::read(file).unwrap()).collect();
            let edits = prop::collection::vec(edit(), 1..8);
            let inputs = (select(corpus), edits).prop_map(|(mut input, edits)| {
                edits.iter().for_each(|edit| edit.apply(&mut input));
                input
            });
            let mut runner = TestRunner::deterministic();
            for _ in 0..CASES {
                let input = inputs.new_tree(&mut runner).expect("no input is refused").current();
                let taken = std::panic::catch_unwind(|| target(&input));
                assert!(taken.is_ok(), "{name} is broken by {input:?}");
            }
        }
    }

    #[cfg(feature = "capture")]
    #[test]
    fn every_target_is_one_of_cargo_fuzz() {
        let stems = files("fuzz_targets").into_iter().filter_map(|file| {
            assert_eq!(file.extension()?, "rs");
            Some(file.file_stem()?.to_str()?.to_owned())
        });
        let mut stems: Vec<String> = stems.collect();
        stems.sort();
        let known: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        assert_eq!(stems, known);
    }
}
