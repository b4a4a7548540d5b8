//! The contract of the command line, from outside: exit codes, what is on stdout and stderr, inputs left alone.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use afterwrite::apply::{Replica, ReplicaFiles};
use afterwrite::journal::{Journal, JournalOptions, SyncPolicy, Writer};
use afterwrite::model::{ByteRange, Mark, PointClass, RecordBody, Timestamp, VolumeId, VolumeInfo};
use serde_json::Value;

const SIZE: u64 = 256 << 10;

/// Commands and sub-commands with arguments that are enough to get them going.
const READERS: [&[&str]; 5] = [
    &["points", "JOURNAL"],
    &["journal", "ls", "JOURNAL"],
    &["journal", "dump", "JOURNAL"],
    &["journal", "check", "JOURNAL"],
    &["replay", "JOURNAL", "--to", "latest", "--target", "TARGET"],
];

struct Bench {
    dir: tempfile::TempDir,
    states: Vec<Vec<u8>>,
}

/// A journal of three marks: crash "first", fs "second", fuzzy "loose"; then a record without a mark.
fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let info = VolumeInfo {
        id: VolumeId([7; 16]),
        source: "/dev/example".into(),
        identity: "name:example".into(),
        size_bytes: SIZE,
        sector_bytes: 512,
        created: Timestamp(0),
    };
    let options = JournalOptions {
        segment_bytes_max: 128 << 10,
        frame_bytes_max: 16 << 10,
        sync: SyncPolicy::Mark,
        zstd_level: 0,
    };
    let mut writer = Writer::create(&dir.path().join("journal"), &info, options).unwrap();
    let mut states = vec![vec![0; SIZE as usize]];
    let mut append = |body: RecordBody| {
        let mut state = states.last().unwrap().clone();
        if let RecordBody::Data { start, bytes } = &body {
            state[*start as usize..*start as usize + bytes.len()].copy_from_slice(bytes);
        } else if let Some(range) = body.content_range() {
            state[range.start as usize..range.end as usize].fill(0);
        }
        states.push(state);
        let time = Timestamp(states.len() as u64 * 60_000_000_000);
        if let RecordBody::Mark(mark) = &body {
            assert_eq!(mark.id, writer.next_mark());
        }
        writer.append(time, body).unwrap();
        writer.flush().unwrap();
        writer.next_mark()
    };
    let mut next = append(RecordBody::Zero(ByteRange::new(0, SIZE)));
    for (class, label) in
        [(PointClass::Crash, "first"), (PointClass::Fs, "second"), (PointClass::Fuzzy, "loose")]
    {
        for n in 0..6u8 {
            let bytes = vec![n + 1 + class as u8 * 16; 16 << 10];
            append(RecordBody::Data { start: u64::from(n) * 40_960, bytes });
        }
        append(RecordBody::Discard(ByteRange::new(100_000, 120_000)));
        next = append(RecordBody::Mark(Mark { id: next, class, label: label.into() }));
    }
    append(RecordBody::Gap(ByteRange::new(0, SIZE)));
    writer.sync().unwrap();
    Bench { dir, states }
}

impl Bench {
    fn journal(&self) -> PathBuf {
        self.dir.path().join("journal")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `JOURNAL` and `TARGET` in the arguments stand for the paths.
    fn run(&self, args: &[&str]) -> Output {
        let arg = |arg: &&str| match *arg {
            "JOURNAL" => self.journal(),
            "TARGET" => self.path("target.img"),
            other => other.into(),
        };
        run_in(self.dir.path(), &args.iter().map(arg).collect::<Vec<_>>())
    }

    /// `target.img` becomes the replica, at mark "second".
    fn protect(&self) {
        let journal = Journal::open(&self.journal()).unwrap();
        let target = self.path("target.img");
        let (mut replica, _) =
            Replica::open(&ReplicaFiles::first(&self.journal()), &target, journal.info(), false).unwrap();
        let mark = &journal.points().unwrap()[1];
        replica.advance(&journal, mark.lsn, Some(mark)).unwrap();
    }

    fn segments(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> =
            fs::read_dir(self.journal()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "awj"));
        paths.sort();
        assert!(paths.len() > 2, "{paths:?}");
        paths
    }

    /// A hash over names and bytes of all of the journal.
    fn hash(&self) -> blake3::Hash {
        let mut paths: Vec<_> =
            fs::read_dir(self.journal()).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        let mut hasher = blake3::Hasher::new();
        for path in paths {
            hasher.update(path.to_str().unwrap().as_bytes());
            hasher.update(&fs::read(path).unwrap());
        }
        hasher.finalize()
    }
}

fn run_in(dir: &Path, args: &[PathBuf]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_afterwrite"))
        .args(args)
        .current_dir(dir)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn run(args: &[&str]) -> Output {
    run_in(Path::new("/tmp"), &args.iter().map(PathBuf::from).collect::<Vec<_>>())
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed by a signal")
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

#[test]
fn every_command_has_help_with_an_example_on_stdout() {
    for args in [
        &[][..],
        &["points"],
        &["replay"],
        &["rewind"],
        &["verify"],
        &["journal"],
        &["journal", "ls"],
        &["journal", "dump"],
        &["journal", "check"],
        &["journal", "prune"],
        &["completions"],
        &["man"],
    ] {
        let output = run(&[args, &["--help"]].concat());
        assert_eq!(code(&output), 0, "{args:?}");
        assert!(stderr(&output).is_empty());
        let text = stdout(&output);
        assert!(text.contains("Usage: afterwrite"), "{args:?}");
        if !args.is_empty() && args != ["journal"] {
            assert!(text.contains("Example"), "{args:?}");
        }
    }
    let version = run(&["--version"]);
    assert_eq!((code(&version), stdout(&version).starts_with("afterwrite ")), (0, true));
}

#[test]
fn a_bad_flag_a_bad_point_and_a_missing_argument_exit_2() {
    for args in [
        &["--no-such-flag"][..],
        &["no-such-command"],
        &["points"],
        &["points", "/tmp", "--no-such-flag"],
        &["verify", "/tmp/one"],
        &["journal"],
        &["journal", "dump", "/tmp", "--from", "x"],
        &["replay", "/tmp", "--target", "/tmp/x"],
        &["replay", "/tmp", "--to", "yesterday", "--target", "/tmp/x"],
        &["rewind", "/tmp/x", "--to", "latest"],
        &["rewind", "/tmp/x", "--journal", "/tmp", "--to", "yesterday"],
        &["completions", "no-such-shell"],
    ] {
        let output = run(args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stdout(&output).is_empty() && stderr(&output).contains("--help"), "{args:?}: {output:?}");
    }
}

#[test]
fn what_is_not_there_exits_2_and_says_which() {
    let bench = bench();
    for args in READERS {
        let args: Vec<_> =
            args.iter().map(|arg| if *arg == "JOURNAL" { "/tmp/no/such" } else { arg }).collect();
        let output = bench.run(&args);
        assert_eq!(code(&output), 2, "{args:?}");
        assert!(stdout(&output).is_empty(), "{args:?}");
        let text = stderr(&output);
        assert!(text.starts_with("afterwrite: ") && text.contains("/tmp/no/such"), "{args:?}: {text}");
    }
    assert!(!bench.path("target.img").exists());
    let output = run(&["verify", "/tmp/no/such", "/tmp/no/such/either"]);
    assert_eq!(code(&output), 2);
    let output = run(&["man", "/tmp/no/such"]);
    assert_eq!(code(&output), 2);
}

#[test]
fn readers_leave_the_journal_untouched() {
    let bench = bench();
    let before = bench.hash();
    for args in READERS {
        for json in [false, true] {
            let _ = fs::remove_file(bench.path("target.img"));
            let args = [args, if json { &["--json"][..] } else { &[] }].concat();
            let output = bench.run(&args);
            assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
            assert!(stderr(&output).is_empty() && !output.stdout.is_empty(), "{args:?}: {output:?}");
            if json {
                for line in stdout(&output).lines() {
                    serde_json::from_str::<Value>(line).unwrap();
                }
            }
        }
    }
    assert_eq!(bench.hash(), before);
}

#[test]
fn points_tells_class_time_and_label_of_every_mark() {
    let bench = bench();
    let text = stdout(&bench.run(&["points", "JOURNAL"]));
    for wanted in
        ["/dev/example", "256.0 KiB", "crash", "first", "fs", "second", "fuzzy", "loose", "1970-01-01T"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    let value = json(&bench.run(&["points", "JOURNAL", "--json"]));
    assert_eq!(value["last_lsn"], 26);
    assert_eq!(value["volume"]["size_bytes"], SIZE);
    assert_eq!(value["points"].as_array().unwrap().len(), 3);
    let point = &value["points"][1];
    assert_eq!(
        *point,
        serde_json::json!({
            "id": 2, "class": "fs", "lsn": 17, "time": "1970-01-01T00:18:00Z", "label": "second", "restorable": true
        })
    );
    assert_eq!(value["points"][2]["restorable"], false);
}

#[test]
fn every_write_of_a_stretch_is_listed_restored_and_of_class_crash() {
    let mut bench = bench();
    let mut writer = Writer::open(&bench.journal(), JournalOptions::default()).unwrap().0;
    let mut state = bench.states.last().unwrap().clone();
    let mark = Mark { id: writer.next_mark(), class: PointClass::Fs, label: "third".into() };
    writer.append(Timestamp(27 * 60_000_000_000), RecordBody::Mark(mark)).unwrap();
    bench.states.push(state.clone());
    for n in 28..31u64 {
        state[n as usize * 512..][..512].fill(n as u8);
        bench.states.push(state.clone());
        let body = RecordBody::Data { start: n * 512, bytes: vec![n as u8; 512] };
        writer.append_ordered(Timestamp(n * 60_000_000_000), body).unwrap();
    }
    writer.append(Timestamp(31 * 60_000_000_000), RecordBody::Zero(ByteRange::new(0, 512))).unwrap();
    writer.sync().unwrap();
    let value = json(&bench.run(&["points", "JOURNAL", "--json"]));
    assert_eq!(
        value["stretches"],
        serde_json::json!([{
            "from_lsn": 27, "from_time": "1970-01-01T00:27:00Z", "to_lsn": 30, "to_time": "1970-01-01T00:30:00Z"
        }])
    );
    let text = stdout(&bench.run(&["points", "JOURNAL"]));
    assert!(text.contains("every instant between") && text.contains("1970-01-01T00:30:00.000Z"), "{text}");
    let text = stdout(&bench.run(&["journal", "dump", "JOURNAL", "--from", "29"]));
    assert!(text.lines().next().unwrap().ends_with("data 14848..15360 (512 bytes) ordered"), "{text}");
    for (to, lsn) in [
        ("lsn:28", 28),
        ("lsn:30", 30),
        ("time:1970-01-01T00:29:59Z", 29),
        ("time:1970-01-01T00:40:00Z", 30),
        ("latest", 27),
    ] {
        let output = bench.run(&["replay", "JOURNAL", "--to", to, "--target", "TARGET"]);
        assert_eq!(code(&output), 0, "{to}: {}", stderr(&output));
        let text = stdout(&output);
        let class = if to == "latest" { "class fs" } else { "class crash" };
        assert!(text.contains(class) && text.contains(&format!("1970-01-01T00:{lsn}:00.000Z")), "{text}");
        assert!(text.contains("to write"), "{text}");
        assert!(fs::read(bench.path("target.img")).unwrap() == bench.states[lsn], "{to}");
        fs::remove_file(bench.path("target.img")).unwrap();
    }
    let output = bench.run(&["replay", "JOURNAL", "--to", "lsn:31", "--target", "TARGET"]);
    assert!(code(&output) == 2 && stderr(&output).contains("mark:4 (record 27"), "{}", stderr(&output));
    for to in ["before-process:rm", "before-file:/home/*"] {
        let output = bench.run(&["replay", "JOURNAL", "--to", to, "--target", "TARGET"]);
        assert!(code(&output) == 2 && stderr(&output).contains("no origin records"), "{}", stderr(&output));
    }
    assert!(!bench.path("target.img").exists());
}

#[test]
fn rewind_goes_to_a_point_and_says_from_where() {
    let bench = bench();
    bench.protect();
    let rewind = |to: &str, more: &[&str]| {
        bench.run(&[&["rewind", "TARGET", "--journal", "JOURNAL", "--to", to], more].concat())
    };
    let replica = || fs::read(bench.path("target.img")).unwrap();
    let before = (bench.hash(), replica());
    let dry = json(&rewind("mark:first", &["--dry-run", "--json"]));
    let text = stdout(&rewind("mark:first", &["--dry-run"]));
    for wanted in
        ["mark 2, record 17", "back to  mark 1, class crash, record 9", "8 records", "nothing was written"]
    {
        assert!(text.contains(wanted), "{wanted}: {text}");
    }
    assert!((bench.hash(), replica()) == before, "a dry run changes nothing");
    assert_eq!((&dry["plan"]["from_mark"], &dry["plan"]["back"]), (&2.into(), &true.into()));

    let done = json(&rewind("mark:first", &["--json"]));
    assert_eq!(done["plan"], dry["plan"]);
    assert!(done["done"]["written_bytes"].as_u64() > Some(0), "{done}");
    assert!(replica() == bench.states[9]);
    let text = stdout(&rewind("latest", &[]));
    assert!(
        text.contains("mark 1, record 9") && text.contains("to       mark 2") && text.contains("rewound"),
        "{text}"
    );
    assert!(replica() == bench.states[17]);
    assert!(stdout(&rewind("mark:loose", &["--force"])).contains("class fuzzy"));
    assert!(replica() == bench.states[25]);
}

#[test]
fn rewind_refuses_what_it_must_not_touch_and_says_what_to_do() {
    let bench = bench();
    let rewind = |target: &str, to: &str| {
        let output = bench.run(&["rewind", target, "--journal", "JOURNAL", "--to", to]);
        assert_eq!(code(&output), 2, "{output:?}");
        assert!(stdout(&output).is_empty());
        stderr(&output)
    };
    fs::write(bench.path("target.img"), b"precious").unwrap();
    assert!(rewind("TARGET", "latest").contains("has no replica yet. `afterwrite replay`"));
    assert_eq!(fs::read(bench.path("target.img")).unwrap(), b"precious");
    fs::remove_file(bench.path("target.img")).unwrap();
    bench.protect();
    let before = (bench.hash(), fs::read(bench.path("target.img")).unwrap());
    fs::copy(bench.path("target.img"), bench.path("copy.img")).unwrap();
    for (target, to, said) in [
        ("copy.img", "latest", "is not a replica that this journal keeps, which is"),
        ("none.img", "latest", "does not exist"),
        ("TARGET", "mark:loose", "is fuzzy"),
        ("TARGET", "lsn:4", "--force takes it all the same"),
        ("TARGET", "lsn:400", "ends at record 26"),
        ("TARGET", "mark:none", "no mark \"none\""),
        ("TARGET", "time:1969-01-01T00:00:00Z", "no restorable point at or before"),
        ("TARGET", "before-process:rm", "no origin records"),
    ] {
        let text = rewind(target, to);
        assert!(text.contains(said), "{said}: {text}");
    }
    let (writer, _) = Writer::open(&bench.journal(), JournalOptions::default()).unwrap();
    assert!(rewind("TARGET", "latest").contains("Stop that `protect` first"));
    drop(writer);
    assert!(fs::read(bench.path("target.img")).unwrap() == before.1);
    let segment = &bench.segments()[0];
    let mut bytes = fs::read(segment).unwrap();
    bytes[1000] ^= 1;
    fs::write(segment, bytes).unwrap();
    let text = rewind("TARGET", "mark:first");
    assert!(text.contains("byte") && text.contains("restore"), "{text}");
}

#[test]
fn prune_says_what_goes_then_does_it_and_every_command_works_on_what_is_left() {
    let bench = bench();
    let before = bench.hash();
    // The records are of 1970, so all of them are old enough.
    let args =
        ["journal", "prune", "JOURNAL", "--drop-labelled", "--daily", "0", "--weekly", "0", "--hourly", "1"];
    let dry = json(&bench.run(&[&args[..], &["--dry-run", "--json"]].concat()));
    assert_eq!(bench.hash(), before, "a dry run changes nothing");
    let text = stdout(&bench.run(&[&args[..], &["--dry-run"]].concat()));
    assert!(text.contains("mark 1 crash") && text.contains("nothing was changed"), "{text}");
    assert_eq!(
        (&dry["upto"], &dry["folds_made"], &dry["dropped"][0]["label"]),
        (&17.into(), &1.into(), &"first".into())
    );
    let output = bench.run(&[&args[..], &["--json"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let done = json(&output);
    assert_eq!((&done["segments"], &done["freed_bytes"]), (&dry["segments"], &dry["freed_bytes"]));
    for segment in done["segments"].as_array().unwrap() {
        assert!(!bench.journal().join(segment.as_str().unwrap()).exists());
    }
    let again = bench.run(&args);
    assert_eq!((code(&again), stdout(&again).starts_with("nothing to do")), (0, true), "{}", stdout(&again));

    let points = json(&bench.run(&["points", "JOURNAL", "--json"]));
    let ids: Vec<_> =
        points["points"].as_array().unwrap().iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids, [2, 3]);
    let listed = json(&bench.run(&["journal", "ls", "JOURNAL", "--json"]));
    assert_eq!((&listed["folds"][0]["upto"], &listed["folds"][0]["marks"]), (&17.into(), &1.into()));
    assert!(stdout(&bench.run(&["journal", "ls", "JOURNAL"])).contains("folded"));
    let checked = json(&bench.run(&["journal", "check", "JOURNAL", "--json"]));
    assert_eq!((&checked["whole"], &checked["folds"]), (&true.into(), &1.into()));
    let output = bench.run(&["replay", "JOURNAL", "--to", "latest", "--target", "TARGET"]);
    assert!(code(&output) == 0 && stdout(&output).contains("base     the volume at record 17"), "{output:?}");
    assert!(fs::read(bench.path("target.img")).unwrap() == bench.states[17]);
    for args in [
        &["replay", "JOURNAL", "--to", "lsn:9", "--target", "TARGET", "--force"][..],
        &["journal", "dump", "JOURNAL", "--from", "1"],
    ] {
        let output = bench.run(args);
        assert!(code(&output) == 2 && stderr(&output).contains("not in the journal any more"), "{output:?}");
    }
    assert_eq!(code(&bench.run(&["journal", "dump", "JOURNAL"])), 0);
    // A writer goes on, and knows the last mark's number.
    let (writer, recovery) = Writer::open(&bench.journal(), JournalOptions::default()).unwrap();
    assert_eq!((recovery.last_lsn.0, writer.next_mark().0), (26, 4));
    // One byte of the base is enough to be found.
    let base = fs::read_dir(bench.journal()).unwrap().map(|entry| entry.unwrap().path());
    let base =
        base.into_iter().find(|p| p.to_str().unwrap().contains("fold-") && p.extension().unwrap() == "awj");
    let mut bytes = fs::read(base.as_ref().unwrap()).unwrap();
    bytes[300] ^= 1;
    fs::write(base.unwrap(), bytes).unwrap();
    let output = bench.run(&["journal", "check", "JOURNAL"]);
    assert!(code(&output) == 1 && stdout(&output).contains("fold-"), "{output:?}");
}

#[test]
fn replay_gives_back_what_was_there() {
    let bench = bench();
    for (to, lsn) in [("latest", 17), ("mark:first", 9), ("mark:2", 17), ("time:1970-01-01T00:12:00Z", 9)] {
        let dry =
            json(&bench.run(&["replay", "JOURNAL", "--to", to, "--target", "TARGET", "--dry-run", "--json"]));
        assert!(!bench.path("target.img").exists(), "a dry run writes nothing");
        let output = bench.run(&["replay", "JOURNAL", "--to", to, "--target", "TARGET", "--json"]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let done = json(&output);
        assert_eq!(
            (&done["plan"], &done["dry_run"], &dry["dry_run"]),
            (&dry["plan"], &false.into(), &true.into())
        );
        assert_eq!((&done["plan"]["last_lsn"], &done["done"]["undefined_bytes"]), (&lsn.into(), &0.into()));
        assert!(dry.get("done").is_none());
        assert!(fs::read(bench.path("target.img")).unwrap() == bench.states[lsn], "{to}");
        fs::remove_file(bench.path("target.img")).unwrap();
    }
}

#[test]
fn replay_refuses_what_would_destroy_or_mislead_and_force_allows_it() {
    let bench = bench();
    fs::write(bench.path("target.img"), "precious").unwrap();
    let args = ["replay", "JOURNAL", "--to", "latest", "--target", "TARGET"];
    let output = bench.run(&args);
    assert_eq!(code(&output), 2);
    assert!(
        stderr(&output).contains("not empty") && stderr(&output).contains("--force"),
        "{}",
        stderr(&output)
    );
    assert_eq!(fs::read(bench.path("target.img")).unwrap(), b"precious");
    let fuzzy = ["replay", "JOURNAL", "--to", "mark:loose", "--target", "TARGET"];
    let output = bench.run(&fuzzy);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("fuzzy") && stderr(&output).contains("mark:2"), "{}", stderr(&output));
    let output = bench.run(&[&fuzzy[..], &["--force"]].concat());
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stdout(&output).contains("class fuzzy"), "never overstated");
    assert!(fs::read(bench.path("target.img")).unwrap() == bench.states[25]);
    let output = bench.run(&["replay", "JOURNAL", "--to", "mark:99", "--target", "TARGET", "--force"]);
    assert_eq!(code(&output), 2);
    assert!(fs::read(bench.path("target.img")).unwrap() == bench.states[25]);
}

#[test]
fn verify_exits_0_1_2_and_lists_the_ranges() {
    let bench = bench();
    let (source, target) = (bench.path("source"), bench.path("target.img"));
    fs::write(&source, vec![5; 100_000]).unwrap();
    fs::write(&target, vec![5; 100_000]).unwrap();
    let args = ["verify", "source", "target.img"];
    let output = bench.run(&args);
    let digest = blake3::hash(&[5; 100_000]).to_hex();
    let identical = format!("identical: 100000 bytes, blake3 {digest}\n");
    assert_eq!((code(&output), stdout(&output)), (0, identical));
    let mut bytes = vec![5; 100_000];
    bytes[4096] = 6;
    bytes[8191] = 6;
    bytes[99_999] = 6;
    fs::write(&target, &bytes).unwrap();
    let output = bench.run(&args);
    assert_eq!((code(&output), stdout(&output)), (1, "4096..8192\n98304..100000\n".to_owned()));
    let value = json(&bench.run(&["verify", "source", "target.img", "--json"]));
    assert_eq!((&value["identical"], &value["differing_bytes"]), (&false.into(), &(4096 + 1696).into()));
    fs::write(&target, vec![5; 90_000]).unwrap();
    let output = bench.run(&args);
    assert_eq!((code(&output), stdout(&output)), (1, "90000..100000\n".to_owned()));
    fs::write(&target, vec![5; 110_000]).unwrap();
    assert_eq!(code(&bench.run(&args)), 0);
    fs::remove_file(&target).unwrap();
    assert_eq!(code(&bench.run(&args)), 2);
    assert!(fs::read(&source).unwrap() == vec![5; 100_000]);
}

#[test]
fn dump_shows_the_records_asked_for() {
    let bench = bench();
    let all = stdout(&bench.run(&["journal", "dump", "JOURNAL"]));
    assert_eq!(all.lines().count(), 26);
    let some = stdout(&bench.run(&["journal", "dump", "JOURNAL", "--from", "8", "--to", "9"]));
    assert_eq!(
        some,
        "8 1970-01-01T00:09:00.000Z discard 100000..120000 (20000 bytes)\n\
         9 1970-01-01T00:10:00.000Z mark 1 crash \"first\"\n"
    );
    let lines = stdout(&bench.run(&["journal", "dump", "JOURNAL", "--from", "9", "--to", "10", "--json"]));
    let values: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(values[0]["kind"], "mark");
    assert_eq!(
        (&values[1]["kind"], &values[1]["start"], &values[1]["end"]),
        (&"data".into(), &0.into(), &16384.into())
    );
    assert_eq!(code(&bench.run(&["journal", "dump", "JOURNAL", "--from", "100"])), 0);
}

#[test]
fn a_flipped_bit_is_found_by_check_and_stops_the_replay() {
    let bench = bench();
    let segment = &bench.segments()[0];
    let whole = fs::read(segment).unwrap();
    for at in [whole.len() / 3, whole.len() / 2, whole.len() - 1] {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        fs::write(segment, &bytes).unwrap();
        let before = bench.hash();
        let output = bench.run(&["journal", "check", "JOURNAL"]);
        assert_eq!(code(&output), 1, "byte {at}: {output:?}");
        let name = segment.file_name().unwrap().to_str().unwrap();
        assert!(stdout(&output).contains(name) && stdout(&output).contains("byte"), "{}", stdout(&output));
        let value = json(&bench.run(&["journal", "check", "JOURNAL", "--json"]));
        assert_eq!((&value["whole"], value["damage"].is_string()), (&false.into(), true));
        assert_eq!(bench.hash(), before, "damage is told, never repaired");
    }
    let mut bytes = whole.clone();
    bytes[whole.len() / 2] ^= 0x10;
    fs::write(segment, &bytes).unwrap();
    let output = bench.run(&["replay", "JOURNAL", "--to", "latest", "--target", "TARGET"]);
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("incomplete"), "{}", stderr(&output));
    fs::write(segment, &whole).unwrap();
    assert_eq!(code(&bench.run(&["journal", "check", "JOURNAL"])), 0);
}

#[test]
fn a_cut_in_the_middle_is_damage_and_a_torn_end_is_a_note() {
    let bench = bench();
    let segments = bench.segments();
    let last = segments.last().unwrap();
    // What a writer that was killed amid a write leaves: bytes after what was acknowledged.
    let mut bytes = fs::read(last).unwrap();
    bytes.extend_from_slice(&[0xab; 37]);
    fs::write(last, &bytes).unwrap();
    let before = bench.hash();
    let output = bench.run(&["journal", "check", "JOURNAL"]);
    assert_eq!(code(&output), 0, "{output:?}");
    assert!(stdout(&output).starts_with("whole: 26 records"), "{output:?}");
    assert!(stderr(&output).starts_with("note: ") && stderr(&output).contains("37 bytes"), "{output:?}");
    let value = json(&bench.run(&["journal", "check", "JOURNAL", "--json"]));
    assert_eq!((&value["whole"], &value["torn_tail"]["bytes"]), (&true.into(), &37.into()));
    assert_eq!(code(&bench.run(&["replay", "JOURNAL", "--to", "latest", "--target", "TARGET"])), 0);
    assert_eq!(bench.hash(), before, "a reader does not cut the torn end");

    let first = File::options().write(true).open(&segments[0]).unwrap();
    first.set_len(first.metadata().unwrap().len() - 100).unwrap();
    assert_eq!(code(&bench.run(&["journal", "check", "JOURNAL"])), 1);
    fs::remove_file(&segments[0]).unwrap();
    assert_eq!(code(&bench.run(&["journal", "check", "JOURNAL"])), 1);
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let bench = bench();
    for args in [&["journal", "dump", "JOURNAL"][..], &["points", "JOURNAL"], &["completions", "zsh"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_afterwrite"));
        command.args(args.iter().map(|arg| if *arg == "JOURNAL" { bench.journal() } else { arg.into() }));
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output =
            command.stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), stderr(&output)), (Some(0), String::new()), "{args:?}");
    }
}

#[test]
fn a_result_that_cannot_be_written_exits_2() {
    let bench = bench();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_afterwrite"))
        .args(["points".as_ref(), bench.journal().as_path()])
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("standard output"), "{}", stderr(&output));
}

#[test]
fn completions_and_man_pages_name_all_commands() {
    let script = stdout(&run(&["completions", "bash"]));
    let bench = bench();
    fs::create_dir(bench.path("man")).unwrap();
    assert_eq!(code(&bench.run(&["man", "man"])), 0);
    for command in ["points", "replay", "verify", "journal"] {
        assert!(script.contains(command));
        let page = fs::read_to_string(bench.path("man").join(format!("afterwrite-{command}.1"))).unwrap();
        assert!(page.contains(".TH"), "{command}");
    }
    assert!(bench.path("man/afterwrite-journal-check.1").exists());
}
