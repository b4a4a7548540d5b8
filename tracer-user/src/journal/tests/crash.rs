use super::*;
use crate::io::store::faulty::Fault;

const RECORDS: usize = 45;
/// Pages of 64 bytes tear headers and payloads, pages of 512 whole frames.
const PAGES: [usize; 2] = [64, 512];

struct Run {
    store: FaultyStore,
    appended: Vec<Record>,
    durable: Lsn,
    result: Result<(), JournalError>,
}

/// Creates a journal and works on it, until something fails.
fn run(page_bytes: usize, fault: Option<(u64, Fault)>, sync: SyncPolicy, seed: u64) -> Run {
    let store = FaultyStore::new(page_bytes);
    if let Some((at, fault)) = fault {
        store.fail_at(at, fault, seed);
    }
    let (mut appended, mut durable) = (Vec::new(), Lsn::ZERO);
    let result = Writer::create_in(store.clone(), &sample_info(), tiny(sync)).and_then(|mut writer| {
        let result = work(&mut writer, &mut Random::new(42), RECORDS, &mut appended, &mut durable);
        assert!(durable <= writer.durable());
        durable = writer.durable();
        if result.is_err() {
            assert!(matches!(writer.flush(), Err(JournalError::Latched)));
            assert!(matches!(writer.sync(), Err(JournalError::Latched)));
            assert!(matches!(writer.tick(std::time::Instant::now()), Err(JournalError::Latched)));
            let zero = RecordBody::Zero(ByteRange::new(0, 1));
            assert!(matches!(writer.append(Timestamp(0), zero), Err(JournalError::Latched)));
        }
        result
    });
    Run { store, appended, durable, result }
}

/// What is on this disk is a prefix of the run that holds all that was acknowledged, and it can be continued.
fn assert_recovers(store: &FaultyStore, run: &Run, context: &str) {
    let read = match read_all(store) {
        Ok(read) => read,
        // Without volume.toml no journal had been made yet, and making one again works.
        Err(JournalError::NotAJournal { .. }) => {
            assert_eq!(run.durable, Lsn::ZERO, "{context}");
            let again = Writer::create_in(store.clone(), &sample_info(), tiny(SyncPolicy::Mark));
            assert!(again.is_ok(), "{context}: {}", again.err().unwrap());
            return append_on(store, &[]);
        }
        Err(error) => panic!("{context}: {error}"),
    };
    let points = Journal::open_in(store.clone()).unwrap().points().unwrap();
    assert!(points.iter().all(|point| point.lsn.0 <= read.len() as u64), "{context}");
    let report = check(store).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(report.last_lsn.0, read.len() as u64, "{context}");
    let (writer, recovery) = Writer::open_in(store.clone(), tiny(SyncPolicy::Mark))
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    drop(writer);
    let kept = usize::try_from(recovery.last_lsn.0).unwrap();
    assert!(recovery.last_lsn >= run.durable, "{context}: lost {}..{}", recovery.last_lsn, run.durable);
    assert!(kept <= run.appended.len(), "{context}");
    assert_eq!(read_all(store).unwrap(), run.appended[..kept], "{context}");
    // What recovery calls there is durable.
    let after = store.after_power_cut(7);
    assert_eq!(read_all(&after).unwrap(), run.appended[..kept], "{context}");
    append_on(store, &run.appended[..kept]);
}

#[test]
fn what_was_acknowledged_survives_a_power_cut_at_every_operation() {
    let mut cuts = 0;
    for (sync, page_bytes) in
        [(SyncPolicy::Mark, PAGES[0]), (SyncPolicy::Mark, PAGES[1]), (SyncPolicy::Always, PAGES[0])]
    {
        let good = run(page_bytes, None, sync, 0);
        good.result.unwrap();
        assert!(segments(&good.store).len() >= 3);
        for at in 0..good.store.operations() {
            let run = run(page_bytes, Some((at, Fault::PowerCut)), sync, 0);
            run.result.as_ref().unwrap_err();
            for seed in 0..12 {
                let survivor = run.store.after_power_cut(seed);
                assert_recovers(
                    &survivor,
                    &run,
                    &format!("{sync}, page {page_bytes}, cut at {at}, seed {seed}"),
                );
                cuts += 1;
            }
        }
    }
    assert!(cuts > 1000, "{cuts}");
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_more() {
    let total = run(64, None, SyncPolicy::Mark, 0).store.operations();
    for at in (0..total).step_by(3) {
        let first = run(64, Some((at, Fault::PowerCut)), SyncPolicy::Mark, 0);
        for seed in 0..6 {
            for again in 0.. {
                let store = first.store.after_power_cut(seed);
                store.fail_at(again, Fault::PowerCut, seed);
                match Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)) {
                    // Not a journal yet, or recovery needed no more operations.
                    Err(JournalError::NotAJournal { .. }) | Ok(_) => break,
                    Err(_) => {}
                }
                let context = format!("cut at {at}, seed {seed}, again at {again}");
                assert_recovers(&store.after_power_cut(seed + 100), &first, &context);
            }
        }
    }
}

#[test]
fn every_failed_operation_latches_and_reopening_recovers() {
    let total = run(64, None, SyncPolicy::Mark, 0).store.operations();
    let mut out_of_space = 0;
    for at in 0..total {
        for fault in [Fault::Eio, Fault::ShortWrite, Fault::NoSpace] {
            for seed in 0..4 {
                let run = run(64, Some((at, fault)), SyncPolicy::Mark, seed);
                let context = format!("{fault:?} at {at}, seed {seed}");
                let error = run.result.as_ref().expect_err(&context);
                match error {
                    JournalError::NoSpace { .. } => {
                        assert_eq!(fault, Fault::NoSpace);
                        assert!(error.to_string().contains("free some under /memory"));
                        out_of_space += 1;
                    }
                    JournalError::Io { .. } => assert_ne!(fault, Fault::NoSpace, "{context}"),
                    other => panic!("{context}: {other}"),
                }
                // The same machine starts again; the cache may lie about what a failed sync left behind.
                if !run.store.list().unwrap().contains(&"volume.toml".to_owned()) {
                    continue;
                }
                let (writer, recovery) = Writer::open_in(run.store.clone(), tiny(SyncPolicy::Mark))
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                drop(writer);
                assert!(recovery.last_lsn >= run.durable, "{context}");
                assert_recovers(&run.store.after_power_cut(seed), &run, &context);
            }
        }
    }
    assert!(out_of_space > 100);
}

#[test]
fn a_failure_during_recovery_is_an_error_and_the_next_one_recovers() {
    let mut crashed = run(64, Some((60, Fault::PowerCut)), SyncPolicy::Mark, 0);
    for fault in [Fault::Eio, Fault::ShortWrite, Fault::NoSpace] {
        for seed in 0..10 {
            for at in 0.. {
                let store = crashed.store.after_power_cut(seed);
                store.fail_at(at, fault, seed);
                if Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).is_ok() {
                    break;
                }
                crashed.result = Ok(());
                assert_recovers(&store, &crashed, &format!("{fault:?} at {at} of recovery, seed {seed}"));
            }
        }
    }
}

#[test]
fn what_recovery_finds_after_a_killed_process_is_durable() {
    let store = FaultyStore::new(64);
    let mut writer = Writer::create_in(store.clone(), &sample_info(), tiny(SyncPolicy::Mark)).unwrap();
    for _ in 0..10 {
        writer.append(Timestamp(0), RecordBody::Data { start: 0, bytes: vec![5; 100] }).unwrap();
    }
    writer.flush().unwrap();
    assert_eq!(writer.durable(), Lsn(0));
    drop(writer);
    let (writer, recovery) = Writer::open_in(store.clone(), tiny(SyncPolicy::Mark)).unwrap();
    assert_eq!((recovery.cut, recovery.last_lsn, writer.durable()), (None, Lsn(10), Lsn(10)));
    for seed in 0..20 {
        assert_eq!(read_all(&store.after_power_cut(seed)).unwrap().len(), 10, "seed {seed}");
    }
}

/// Frames of the first life that were cut must not come back between those of the second, though they have the very
/// same lengths and LSNs.
#[test]
fn histories_of_two_lives_never_mix() {
    let options = JournalOptions { segment_bytes_max: 1 << 20, zstd_level: 0, ..tiny(SyncPolicy::Mark) };
    let work = |writer: &mut Writer<FaultyStore>, life: u64, count: u64| -> Result<(), JournalError> {
        for _ in 0..count {
            let start = writer.next_lsn().0 * 512;
            writer.append(Timestamp(life), RecordBody::Data { start, bytes: vec![life as u8; 50] })?;
            writer.flush()?;
        }
        Ok(())
    };
    let mut revived = 0;
    for seed in 0..200 {
        let store = FaultyStore::new(if seed % 2 == 0 { 64 } else { 200 });
        let mut writer = Writer::create_in(store.clone(), &sample_info(), options.clone()).unwrap();
        work(&mut writer, 1, 6).unwrap();
        drop(writer);
        let second = store.after_power_cut(seed);
        let (writer, recovery) = Writer::open_in(second.clone(), options.clone()).unwrap();
        let operations = second.operations();
        drop(writer);
        for at in operations..operations + 8 {
            let store = store.after_power_cut(seed);
            let (mut writer, again) = Writer::open_in(store.clone(), options.clone()).unwrap();
            assert_eq!(again, recovery);
            store.fail_at(at, Fault::PowerCut, seed);
            let _ = work(&mut writer, 2, 8).and_then(|()| writer.sync());
            for cut in 0..4 {
                let third = store.after_power_cut(cut);
                let read = read_all(&third).unwrap();
                let lives: Vec<u64> = read.iter().map(|record| record.time.0).collect();
                let (old, new) = lives.split_at(recovery.last_lsn.0 as usize);
                assert!(old.iter().all(|life| *life == 1) && new.iter().all(|life| *life == 2), "{lives:?}");
                revived += usize::from(!new.is_empty());
            }
        }
    }
    assert!(revived > 100);
}

/// One of what can go wrong, at an operation to come.
fn next_fault(store: &FaultyStore, within: usize, random: &mut Random) {
    let fault = [Fault::Eio, Fault::ShortWrite, Fault::NoSpace, Fault::PowerCut][random.below(4)];
    store.fail_at(store.operations() + random.below(within) as u64, fault, random.below(1000) as u64);
}

/// Opens the journal as a service does: again after each failure, and on what is left after a power cut.
fn open_again(run: &mut Run, random: &mut Random, context: &str) -> Writer<FaultyStore> {
    for _ in 0..3 {
        match Writer::open_in(run.store.clone(), tiny(SyncPolicy::Mark)) {
            Ok((writer, recovery)) => {
                assert!(recovery.last_lsn >= run.durable, "{context}: {} was durable", run.durable);
                run.durable = recovery.last_lsn;
                run.appended.truncate(recovery.last_lsn.0 as usize);
                assert_eq!(read_all(&run.store).unwrap(), run.appended, "{context}");
                return writer;
            }
            Err(JournalError::Io { .. } | JournalError::NoSpace { .. }) => {}
            Err(error) => panic!("{context}: {error}"),
        }
        if run.store.is_dead() {
            run.store = run.store.after_power_cut(random.below(1000) as u64);
        }
    }
    panic!("{context}: one fault failed it three times")
}

/// Several lives of one journal, each ended by a fault at any operation, in opening too; some by the machine's end.
#[test]
fn whatever_failed_and_however_often_the_history_goes_on() {
    let total = run(64, None, SyncPolicy::Mark, 0).store.operations();
    let (mut lives, mut cut) = (0, 0);
    for at in 0..total {
        for fault in [Fault::Eio, Fault::ShortWrite, Fault::NoSpace, Fault::PowerCut] {
            for seed in 0..3 {
                let context = format!("{fault:?} at {at}, seed {seed}");
                let mut run = run(PAGES[seed as usize % 2], Some((at, fault)), SyncPolicy::Mark, seed);
                let mut random = Random::new(at * 100 + seed);
                if run.store.is_dead() {
                    run.store = run.store.after_power_cut(seed);
                }
                if !run.store.list().unwrap().contains(&"volume.toml".to_owned()) {
                    continue;
                }
                for _ in 0..4 {
                    next_fault(&run.store, 40, &mut random);
                    let mut writer = open_again(&mut run, &mut random, &context);
                    let sealed: Vec<_> = segments(&run.store)
                        .into_iter()
                        .map(|name| (run.store.content(&name), name))
                        .filter(|(_, name)| !name.starts_with(&format!("{:020}", run.durable.0 + 1)))
                        .collect();
                    let _ = work(&mut writer, &mut random, 12, &mut run.appended, &mut run.durable);
                    run.durable = writer.durable();
                    assert!(
                        sealed.iter().all(|(bytes, name)| run.store.content(name) == *bytes),
                        "{context}"
                    );
                    lives += 1;
                    if run.store.is_dead() {
                        run.store = run.store.after_power_cut(seed);
                        cut += 1;
                    }
                }
                assert_recovers(&run.store.after_power_cut(seed), &run, &context);
            }
        }
    }
    assert!(lives > 2000 && cut > 100, "{lives} lives, {cut} cut");
}
